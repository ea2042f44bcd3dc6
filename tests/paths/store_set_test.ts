/**
 * Several data paths of one node: what goes where, what is remembered, and what happens when one is lost, comes back, or is new.
 *
 * @module
 */
import { assert, assertAlmostEquals, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { ClusterMap, PgEntry } from "../../agent/map/map.ts";
import { type Store } from "../../agent/store/store.ts";
import { StoreError } from "../../agent/store/errors.ts";
import { chunkList, Stamp } from "../../agent/replication/local_store.ts";
import { Machine, mapWith } from "./harness.ts";

const EIO = 5, ENODEV = 19;
const LAYER = 1;

/** A node alone with every group, on some paths; chunk n is in a group of its own. */
function alone(seed: number, ...locations: string[]): { machine: Machine; map: ClusterMap } {
  const machine = new Machine(seed, ...locations);
  machine.mustOpen(...locations);
  const map = mapWith(1, 1);
  machine.install(map);
  return { machine, map };
}

/** The chunk's path, by what a set without it says. */
function lostChunks(machine: Machine, count: number): number[] {
  return Array.from({ length: count }, (_, chunk) => chunk).filter((chunk) =>
    machine.set!.paths.isLost(LAYER, chunk)
  );
}

function listed(machine: Machine, room: number, step = 1, offset = 0): number[] {
  const list = chunkList(room);
  const chunks: number[] = [];
  let from = 0;
  do {
    machine.store.listChunks(LAYER, from, list, step, offset);
    chunks.push(...list.chunks.subarray(0, list.count));
    from = list.next;
  } while (from >= 0);
  return chunks;
}

const NUMBERS = Array.from({ length: 24 }, (_, index) => index);

Deno.test("one path is its store alone, and has nothing to remember", () => {
  const { machine } = alone(1, "/a");
  assertEquals([machine.set, machine.isNew], [null, true]);
  assertEquals(machine.store.metaKeys(), []);
  machine.close();
  machine.mustOpen("/a");
  assertEquals([machine.set, machine.isNew], [null, false]);
});

Deno.test("chunks are spread over the paths, read back, listed in order, and there after a restart", () => {
  const { machine, map } = alone(2, "/a", "/b", "/c");
  for (const chunk of NUMBERS) assertEquals(machine.write(LAYER, chunk, chunk + 1), 0);
  assertEquals(machine.sync(), 0);
  const used = machine.set!.pathStatus();
  assertEquals(used.map(({ state }) => state), ["ok", "ok", "ok"]);
  assert(used.every(({ usedBytes }) => usedBytes >= 4096 * 4), JSON.stringify(used));
  for (const room of [1, 5, 100]) assertEquals(listed(machine, room), NUMBERS);
  machine.crash();
  machine.mustOpen("/c", "/a", "/b");
  machine.install(map);
  for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), chunk + 1);
  for (const chunk of NUMBERS) assertEquals(listed(machine, 2, 256, chunk), [chunk]);
  const stamp = { generation: 0, sequence: 0, set() {} };
  assertEquals(machine.store.stampOf(LAYER, 7, stamp), true);
});

Deno.test("a sync covers every path: what was written to any of them outlives a loss of power", () => {
  for (let seed = 0; seed < 8; seed++) {
    const { machine, map } = alone(seed, "/a", "/b");
    for (const chunk of NUMBERS) machine.write(LAYER, chunk, 7);
    assertEquals(machine.sync(), 0);
    machine.crash();
    machine.mustOpen("/a", "/b");
    machine.install(map);
    for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), 7, `seed ${seed}`);
  }
});

Deno.test("META is on every path, and after a crash between two of them the newer one counts everywhere", () => {
  for (let seed = 0; seed < 40; seed++) {
    const machine = new Machine(seed, "/a", "/b");
    machine.mustOpen("/a", "/b");
    const set = (value: number, done: (error: Error | null) => void) =>
      machine.store.setMetaBatch([
        { key: "raft", value: Uint8Array.of(value) },
        { key: `v${value}`, value: Uint8Array.of(value) },
      ], done);
    assertEquals(machine.call((done) => set(1, done)), null);
    let done = 1;
    set(2, () => done = 2);
    // Anywhere in the middle: each disk has come as far as chance will have it.
    const random = new Prng(seed);
    for (let step = random.below(14); step > 0; step--) {
      machine.store.endTurn();
      machine.disk(random.chance(0.5) ? "/a" : "/b").pump();
    }
    machine.crash();
    // Any of them alone has all that was done.
    machine.mustOpen(...[["/a", "/b"], ["/a"], ["/b"]][seed % 3]);
    const found = machine.store.getMeta("raft")![0];
    assert(found >= done && found <= 2, `seed ${seed}: ${found} after ${done}`);
    assertEquals(machine.store.getMeta("v2") !== null, found === 2);
    machine.crash();
    machine.mustOpen("/b", "/a");
    machine.crash();
    for (const only of ["/a", "/b"]) {
      machine.mustOpen(only);
      assertEquals(machine.store.getMeta("raft")![0], found, `${only} of seed ${seed}`);
      machine.crash();
    }
  }
});

Deno.test("what is done without a path counts for more than what that path alone has, and nobody was promised", () => {
  const machine = new Machine(12, "/a", "/b");
  machine.mustOpen("/a", "/b");
  const set = (value: number, done: (error: Error | null) => void) =>
    machine.store.setMetaBatch([{ key: "raft", value: Uint8Array.of(value) }], done);
  assertEquals(machine.call((done) => set(1, done)), null);
  // Changes that only one of the disks gets to see.
  let promised = 0;
  for (let value = 100; value < 120; value++) {
    set(value, () => promised++);
    for (let step = 0; step < 20; step++) {
      machine.store.endTurn();
      machine.disk("/b").pump();
    }
  }
  assertEquals(promised, 0);
  machine.crash();
  machine.mustOpen("/a");
  assertEquals(machine.store.getMeta("raft"), Uint8Array.of(1));
  assertEquals(machine.call((done) => set(2, done)), null);
  machine.crash();
  machine.mustOpen("/b", "/a");
  assertEquals(machine.store.getMeta("raft"), Uint8Array.of(2));
});

Deno.test("a path that is missing takes nothing with it but its own chunks, and those are not empty", () => {
  const { machine, map } = alone(3, "/a", "/b");
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
  machine.sync();
  machine.close();
  const place = machine.places.get("/b")!;
  const { disk } = place;
  place.disk = null;
  machine.mustOpen("/a", "/b");
  assertEquals(machine.set!.pathStatus().map(({ state }) => state), ["ok", "missing"]);
  machine.install(map);
  const lost = lostChunks(machine, NUMBERS.length);
  assert(lost.length > 4 && lost.length < 20);
  for (const chunk of NUMBERS) {
    const wanted = lost.includes(chunk) ? -ENODEV : chunk + 1;
    assertEquals(machine.read(LAYER, chunk), wanted, `chunk ${chunk}`);
  }
  assertEquals(machine.write(LAYER, lost[0], 99, 2), -ENODEV);
  assertEquals(listed(machine, 100), NUMBERS.filter((chunk) => !lost.includes(chunk)));
  // By this map the node is in sync for all of it: nothing may be called flushed.
  assertEquals(machine.sync(), -EIO);
  assert(machine.set!.paths.owed() !== null);
  assertEquals(machine.set!.paths.lossEpoch, 0);
  const noticed = mapWith(1, 1, (pg, group) => {
    return machine.set!.paths.lossOf(group) === null ? pg : { ...pg, unclean: [1] };
  });
  machine.install({ ...noticed, epoch: map.epoch + 1 });
  assertEquals([machine.set!.paths.owed(), machine.sync()], [null, 0]);
  assertEquals(machine.set!.paths.lossEpoch, map.epoch + 1);
  assertStringIncludes(machine.set!.paths.lossOf(groupOf(machine, lost[0]))!, "/b");
  machine.close();
  place.disk = machine.again(disk!);
  machine.mustOpen("/a", "/b");
  machine.install({ ...map, epoch: map.epoch + 2 });
  for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), chunk + 1);
  assertEquals(machine.sync(), 0);
});

/** A lost group that the chunk is in, found by asking. */
function groupOf(machine: Machine, chunk: number): number {
  assert(machine.set!.paths.isLost(LAYER, chunk));
  for (let group = 0; group < 256; group++) {
    if (machine.set!.paths.lossOf(group) !== null) return group;
  }
  throw new Error("no group is lost");
}

Deno.test("a path that fails while it is used is left behind; the others go on, and META with them", () => {
  for (const kind of ["write", "sync"] as const) {
    const { machine, map } = alone(4, "/a", "/b");
    for (const chunk of NUMBERS) machine.write(LAYER, chunk, 5);
    assertEquals(machine.sync(), 0);
    machine.disk("/b").faults = { fail: (what) => what === kind ? -EIO : 0 };
    let failed = 0;
    for (const chunk of NUMBERS) if (machine.write(LAYER, chunk, 6, 2) < 0) failed++;
    assertEquals(machine.sync(), -EIO);
    assertEquals([machine.failures, machine.store.state], [["/b"], "open"]);
    assert(kind === "sync" || failed > 4);
    const lost = lostChunks(machine, NUMBERS.length);
    for (const chunk of NUMBERS) {
      if (!lost.includes(chunk)) assertEquals(machine.read(LAYER, chunk), 6);
    }
    assertEquals(machine.sync(), -EIO, "a flush may owe what is lost");
    const value = Uint8Array.of(9);
    assertEquals(
      machine.call((done) => machine.store.setMetaBatch([{ key: "k", value }], done)),
      null,
    );
    // The map takes the node out of what was there, and has it join anew: that goes to the path that is left.
    const out = mapWith(
      1,
      2,
      (pg, group) =>
        machine.set!.paths.lossOf(group) === null ? pg : { ...pg, target: [2], inSync: [2] },
    );
    machine.install({ ...out, epoch: map.epoch + 1 });
    assertEquals(machine.sync(), 0);
    const epoch = map.epoch + 2;
    machine.install({
      ...mapWith(
        1,
        2,
        (pg, group) =>
          out.pools[0].pgs[group].inSync.includes(1)
            ? pg
            : { ...pg, inSync: [2], joining: [1], joinedEpochs: [epoch] },
      ),
      epoch,
    });
    assertEquals(lostChunks(machine, NUMBERS.length), []);
    for (const chunk of lost) {
      assertEquals(machine.read(LAYER, chunk), 0, "nothing of it is there yet");
      assertEquals(machine.write(LAYER, chunk, 8, 3), 0);
    }
    assertEquals(machine.sync(), 0);
    machine.crash();
    // The path that failed is back, with what it had: behind, and of no account.
    machine.disk("/b").faults = {};
    machine.mustOpen("/b", "/a");
    assertEquals(machine.store.getMeta("k"), value);
    const before = machine.set!.stats().stampedChunks;
    machine.install({ ...mapWith(1, 1), epoch: epoch + 1 });
    for (const chunk of NUMBERS) {
      assertEquals(machine.read(LAYER, chunk), lost.includes(chunk) ? 8 : 6, `chunk ${chunk}`);
    }
    assertEquals(listed(machine, 100), NUMBERS);
    machine.pass(20);
    assertEquals(
      [before, machine.set!.stats().stampedChunks],
      [NUMBERS.length + lost.length, NUMBERS.length],
      "what is left over is dropped",
    );
  }
});

Deno.test("a path that fails at any write of its opening, or of being brought in line, is lost, and the others go on", () => {
  const states = new Set<string>();
  for (let good = 0; good < 12; good++) {
    const { machine, map } = alone(14, "/a", "/b", "/c");
    for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
    machine.close();
    // So that /b is behind.
    const place = machine.places.get("/b")!;
    const { disk } = place;
    place.disk = null;
    machine.mustOpen("/a", "/b", "/c");
    const value = Uint8Array.of(4);
    assertEquals(
      machine.call((done) => machine.store.setMetaBatch([{ key: "k", value }], done)),
      null,
    );
    machine.close();
    place.disk = machine.again(disk!);
    let writes = 0;
    machine.disk("/b").faults = { fail: (kind) => kind === "write" && ++writes > good ? -EIO : 0 };
    machine.mustOpen("/b", "/a", "/c");
    const [, { state }] = machine.set!.pathStatus();
    states.add(state);
    assertEquals(machine.store.getMeta("k"), value);
    machine.install(map);
    const lost = lostChunks(machine, NUMBERS.length);
    assertEquals(lost.length > 0, machine.set!.pathStatus()[1].state !== "ok");
    for (const chunk of NUMBERS) {
      if (!lost.includes(chunk)) assertEquals(machine.read(LAYER, chunk), chunk + 1);
    }
  }
  assertEquals([...states].sort(), ["failed", "missing", "ok"]);
});

Deno.test("the last path that fails ends the set", () => {
  const { machine } = alone(5, "/a", "/b");
  for (const location of ["/a", "/b"]) machine.disk(location).faults = { fail: () => -EIO };
  for (const chunk of NUMBERS) assert(machine.write(LAYER, chunk, 6, 2) < 0);
  assertEquals(machine.store.state, "failed");
  const error = machine.call((done) =>
    machine.store.setMetaBatch([{ key: "k", value: null }], done)
  );
  assert(error !== null);
});

Deno.test("a path that is added gets what holds nothing yet, and its own place in what is remembered", () => {
  const { machine, map } = alone(6, "/a");
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
  const value = Uint8Array.of(1, 2, 3);
  machine.call((done) => machine.store.setMetaBatch([{ key: "secret", value }], done));
  machine.close();
  machine.add("/b");
  machine.mustOpen("/a", "/b");
  assertEquals(machine.isNew, false);
  machine.install(map);
  for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), chunk + 1);
  const [a, b] = machine.set!.pathStatus();
  assertEquals(a.slots + b.slots, 16384);
  assertAlmostEquals(b.slots, 8192, 512);
  for (let chunk = 24; chunk < 64; chunk++) assertEquals(machine.write(LAYER, chunk, 77), 0);
  machine.close();
  machine.mustOpen("/b");
  assertEquals(machine.store.getMeta("secret"), value);
  assertEquals(machine.set!.pathStatus().map(({ state }) => state), ["left-out", "ok"]);
  machine.install(map);
  assertEquals(lostChunks(machine, 24), NUMBERS);
});

Deno.test("a group that comes back to a node that has nothing of it any more goes where most room is", () => {
  const { machine, map } = alone(13, "/a");
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, 1);
  machine.close();
  machine.add("/b");
  machine.mustOpen("/a", "/b");
  machine.install(map);
  const [{ slots }] = machine.set!.pathStatus();
  // Drained: others have it all, and what is here is dropped.
  machine.install({
    ...mapWith(1, 2, (pg) => ({ ...pg, target: [2], inSync: [2] })),
    epoch: map.epoch + 1,
  });
  for (const chunk of NUMBERS.slice(0, 20)) {
    assertEquals(machine.call((done) => machine.store.dropChunk(LAYER, chunk, done)), null);
  }
  // Back again.
  const epoch = map.epoch + 2;
  machine.install({
    ...mapWith(1, 2, (pg) => ({ ...pg, inSync: [2], joining: [1], joinedEpochs: [epoch] })),
    epoch,
  });
  assertEquals(slots > 0, true);
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, 2, 2);
  const used = machine.set!.pathStatus().map(({ usedBytes }) => usedBytes / 4096);
  assertEquals(used[0] + used[1], NUMBERS.length);
  assert(used[0] >= 4 && used[1] >= 6, `${used}`);
  for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), 2);
});

Deno.test("a group that goes to a path which has something of it left over begins with nothing, whenever power fails", () => {
  for (let seed = 0; seed < 60; seed++) {
    const { machine, map } = alone(seed, "/a", "/b");
    for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
    machine.sync();
    machine.close();
    const place = machine.places.get("/b")!;
    const { disk } = place;
    place.disk = null;
    machine.mustOpen("/a", "/b");
    machine.install(map);
    const lost = lostChunks(machine, NUMBERS.length);
    assert(lost.length > 4);
    // Nobody here knows what others make of these groups from now on.
    const away = (pg: PgEntry) => ({ ...pg, target: [2], inSync: [2] });
    machine.install({ ...mapWith(1, 2, away), epoch: map.epoch + 1 });
    machine.close();
    place.disk = machine.again(disk!);
    machine.mustOpen("/a", "/b");
    const epoch = map.epoch + 2;
    const join = (pg: PgEntry) => ({ ...pg, inSync: [2], joining: [1], joinedEpochs: [epoch] });
    const joined = { ...mapWith(1, 2, join), epoch };
    let isReady = false;
    if (machine.set!.prepare(joined, 1, () => isReady = true)) isReady = true;
    const random = new Prng(seed);
    // The one path may be far ahead of the other when power fails.
    const share = random.pick([0.1, 0.5, 0.9]);
    for (let step = random.below(200); step > 0 && !isReady; step--) {
      machine.step(random, machine.disk(random.chance(share) ? "/a" : "/b"));
    }
    if (seed > 0) {
      machine.crash();
      machine.mustOpen("/a", "/b");
    }
    machine.install(joined);
    const stamp = new Stamp();
    let onSame = 0;
    for (const chunk of lost) {
      if (machine.set!.locationOf(LAYER, chunk) === "/b") onSame++;
      assertEquals(machine.store.stampOf(LAYER, chunk, stamp), false, `${chunk} of seed ${seed}`);
      assertEquals(machine.read(LAYER, chunk), 0);
      assertEquals(listed(machine, 10, 256, chunk), []);
    }
    assert(onSame > 0, "all of them are elsewhere");
    machine.close();
  }
});

Deno.test("what is left over of a layer that the first map after a start does not know yet is dropped as well", () => {
  const { machine, map } = alone(31, "/a", "/b");
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
  machine.close();
  const place = machine.places.get("/b")!;
  const { disk } = place;
  place.disk = null;
  machine.mustOpen("/a", "/b");
  machine.install(map);
  const lost = lostChunks(machine, NUMBERS.length);
  const away = (pg: PgEntry) => ({ ...pg, target: [2], inSync: [2] });
  machine.install({ ...mapWith(1, 2, away), epoch: map.epoch + 1 });
  machine.close();
  place.disk = machine.again(disk!);
  machine.mustOpen("/a", "/b");
  machine.install({ ...mapWith(1, 2, away), disks: [], layers: [], epoch: map.epoch + 2 });
  machine.pass(10);
  assertEquals(machine.set!.idle, true);
  const epoch = map.epoch + 3;
  const join = (pg: PgEntry) => ({ ...pg, inSync: [2], joining: [1], joinedEpochs: [epoch] });
  machine.install({ ...mapWith(1, 2, join), epoch });
  const stamp = new Stamp();
  for (const chunk of lost) {
    assertEquals(machine.store.stampOf(LAYER, chunk, stamp), false, `chunk ${chunk}`);
  }
  assert(lost.some((chunk) => machine.set!.locationOf(LAYER, chunk) === "/b"));
});

Deno.test("a path that is closed before the others is not empty, and nobody who asks stumbles over it", () => {
  const { machine, map } = alone(21, "/a", "/b");
  for (const chunk of NUMBERS) machine.write(LAYER, chunk, chunk + 1);
  const onA = NUMBERS.filter((chunk) => machine.set!.locationOf(LAYER, chunk) === "/a");
  const random = new Prng(21);
  let isClosed = false;
  machine.store.close(() => isClosed = true);
  while (machine.stores[0].state !== "closed") machine.step(random, machine.disk("/a"));
  assertEquals([isClosed, machine.store.state], [false, "closing"]);
  assertEquals(machine.store.hasLayer(LAYER), true);
  assertEquals(machine.store.layers(), [LAYER]);
  const [chunk] = onA;
  assertEquals(machine.set!.paths.isLost(LAYER, chunk), true);
  assertEquals(listed(machine, 100), NUMBERS.filter((chunk) => !onA.includes(chunk)));
  assertEquals(listed(machine, 10, 256, chunk), []);
  assertStringIncludes(machine.set!.paths.lossOf(groupOf(machine, chunk))!, "/a, which is closed");
  assertEquals(machine.store.stampOf(LAYER, chunk, new Stamp()), false);
  assertEquals(machine.read(LAYER, chunk), -ENODEV);
  machine.until(() => isClosed, "closing");
  machine.stores = [];
  machine.mustOpen("/a", "/b");
  assertEquals(machine.set!.wasClean, true);
  machine.install(map);
  for (const chunk of NUMBERS) assertEquals(machine.read(LAYER, chunk), chunk + 1);
});

Deno.test("nothing is made where a path that is missing was last", () => {
  const { machine } = alone(7, "/a", "/b");
  machine.close();
  const place = machine.places.get("/b")!;
  place.isFormatted = false; // As an empty directory, where a disk is not mounted.
  machine.mustOpen("/a", "/b");
  const [, b] = machine.set!.pathStatus();
  assertEquals([b.state, b.reason], ["missing", "there is no store; is it mounted?"]);
  assertEquals(place.isFormatted, false);
  machine.close();
  // Left out once, it is given up; then the place may be used anew.
  machine.mustOpen("/a");
  machine.close();
  machine.mustOpen("/a", "/b");
  assertEquals(place.isFormatted, true);
  // Its slots wait for it still: nobody else has them.
  assertEquals(machine.set!.pathStatus().map(({ state }) => state), ["ok", "left-out", "ok"]);
});

Deno.test("no new node is made where none is wanted, and one that is there opens, also with a path more", () => {
  const machine = new Machine(11, "/a", "/b");
  const isMade = () => ["/a", "/b"].map((location) => machine.places.get(location)!.isFormatted);
  machine.refuseNew = "it needs a secret";
  const error = machine.open("/a", "/b");
  assertEquals([error?.code, error?.message], ["INVALID", "it needs a secret"]);
  assertEquals(isMade(), [false, false]);
  machine.refuseNew = undefined;
  machine.mustOpen("/a");
  machine.close();
  machine.refuseNew = "it needs a secret";
  machine.mustOpen("/a", "/b");
  assertEquals([machine.isNew, ...isMade()], [false, true, true]);
});

Deno.test("paths of another node, and the same path twice, are refused by name", () => {
  const one = alone(8, "/a", "/b").machine;
  one.close();
  const other = alone(9, "/x").machine;
  other.close();
  one.places.set("/x", other.places.get("/x")!);
  const foreign = one.open("/a", "/b", "/x");
  assertEquals(foreign?.code, "INVALID");
  assertStringIncludes(foreign!.message, "/x belongs to another node");
  one.crash();
  one.places.set("/copy", {
    location: "/copy",
    disk: one.again(one.disk("/b")),
    isFormatted: true,
  });
  const twice = one.open("/a", "/b", "/copy");
  assertStringIncludes(twice!.message, "/b and /copy are the same data path");
  one.crash();
  // One that is not known and cannot be opened is a mistake, not a loss.
  one.places.set("/new", { location: "/new", disk: null, isFormatted: false });
  const unknown = one.open("/a", "/b", "/new");
  assertStringIncludes(unknown!.message, "/new: no such device");
});

Deno.test("what a node remembers of its paths is not among what it gives out", () => {
  const { machine } = alone(10, "/a", "/b");
  assertEquals(machine.store.metaKeys(), []);
  machine.close();
  machine.mustOpen("/a");
  assertEquals(machine.store.metaKeys(), []);
  assertEquals(machine.set!.pathStatus().map(({ slots }) => slots), [8192, 8192]);
});

Deno.test("a path that was left behind does not stand in for those that went on, as long as that is known", () => {
  for (const how of ["failed", "missing"] as const) {
    const { machine } = alone(16, "/a", "/b");
    const value = Uint8Array.of(1);
    machine.call((done) => machine.store.setMetaBatch([{ key: "k", value }], done));
    const place = machine.places.get("/b")!;
    const { disk } = place;
    if (how === "failed") {
      machine.disk("/b").faults = { fail: (kind) => kind === "write" ? -EIO : 0 };
      for (const chunk of NUMBERS) machine.write(LAYER, chunk, 6, 2);
      machine.disk("/b").faults = {};
      machine.crash();
    } else {
      machine.close();
      place.disk = null;
      machine.mustOpen("/a", "/b");
      machine.close();
      place.disk = machine.again(disk!);
    }
    const [a] = [machine.places.get("/a")!.disk];
    machine.places.get("/a")!.disk = null;
    const error = machine.open("/a", "/b");
    assertEquals(error?.code, "INVALID");
    assertStringIncludes(error!.message, "/b was left behind");
    machine.crash();
    // With the other one all is well; and where nothing is known of it, it is taken for what it says.
    machine.places.get("/a")!.disk = machine.again(a!);
    machine.mustOpen("/b", "/a");
    assertEquals(machine.set!.pathStatus().map(({ state }) => state), ["ok", "ok"]);
    machine.close();
    machine.leastCount = 0;
    machine.mustOpen("/b");
    assertEquals(machine.store.getMeta("k"), value);
  }
});

Deno.test("a path that refuses META which the others take is lost: they must not say different things", () => {
  const { machine } = alone(15, "/a", "/b", "/c");
  const set = (value: number) =>
    machine.call((done) =>
      machine.store.setMetaBatch([{ key: "k", value: Uint8Array.of(value) }], done)
    );
  assertEquals(set(1), null);
  const refuse = (store: Store) => {
    const take = store.setMetaBatch.bind(store);
    store.setMetaBatch = (_, done) => done(new StoreError("BUSY", "too much META waits"));
    return () => store.setMetaBatch = take;
  };
  // All of them: nothing has happened, and nothing is lost.
  const restore = machine.stores.map(refuse);
  assertEquals((set(2) as StoreError).code, "BUSY");
  for (const each of restore) each();
  assertEquals([machine.failures, machine.store.getMeta("k")], [[], Uint8Array.of(1)]);
  refuse(machine.stores[1]);
  assertEquals(set(3), null);
  assertEquals(machine.failures, ["/b"]);
  const [, { state, reason }] = machine.set!.pathStatus();
  assertEquals([state, reason], ["failed", "too much META waits"]);
  assert(lostChunks(machine, 24).length > 0);
  machine.crash();
  machine.mustOpen("/b", "/c", "/a");
  assertEquals(machine.store.getMeta("k"), Uint8Array.of(3));
});
