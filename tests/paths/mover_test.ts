/**
 * Groups that move between the paths of a node while they are used, and crashes on the way.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { pgOf } from "../../agent/map/hash.ts";
import { Stamp } from "../../agent/replication/local_store.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import { Machine, mapWith } from "./harness.ts";

const EIO = 5, EINVAL = 22;
const LAYER = 1, CHUNKS = 48;
const MAP = mapWith(1, 1);

/** A node with data on one path, and another one that was added. */
function half(seed: number): Machine {
  const machine = new Machine(seed, "/a");
  machine.mustOpen("/a");
  machine.install(MAP);
  for (let chunk = 0; chunk < CHUNKS; chunk++) machine.write(LAYER, chunk, 1, 1);
  machine.close();
  machine.add("/b");
  machine.moves = true;
  return machine;
}

/** Blocks that each path holds. */
function used(machine: Machine): number[] {
  return machine.set!.pathStatus().map(({ usedBytes }) => usedBytes / 4096);
}

Deno.test("data moves to a path that was added until both are filled alike, and stays what it is", () => {
  const machine = half(1);
  machine.mustOpen("/a", "/b");
  machine.install(MAP);
  // Zeros and holes are moved as what they are.
  machine.run(OperationKind.Zero, LAYER, 3, 0, 2);
  machine.run(OperationKind.Free, LAYER, 4, 0, 2);
  assertEquals(used(machine), [CHUNKS - 2, 0]);
  machine.pass(1200);
  const [a, b] = used(machine);
  assertEquals(a + b, CHUNKS - 2, "nothing is left over, and nothing is gone");
  assert(Math.abs(a - b) <= 4, `${a} ${b}`);
  const stamp = new Stamp();
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    const isEmpty = chunk === 3 || chunk === 4;
    assertEquals(machine.read(LAYER, chunk), isEmpty ? 0 : 1, `chunk ${chunk}`);
    assert(machine.store.stampOf(LAYER, chunk, stamp));
    assertEquals(stamp.sequence, isEmpty ? 2 : 1);
  }
  machine.close();
  machine.mustOpen("/a", "/b");
  machine.install(MAP);
  for (let chunk = 5; chunk < CHUNKS; chunk++) assertEquals(machine.read(LAYER, chunk), 1);
});

Deno.test("what is written while groups move is there, whenever a crash comes", () => {
  let moved = 0;
  for (let seed = 0; seed < 40; seed++) {
    const random = new Prng(seed);
    const machine = half(seed);
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    const latest = new Array(CHUNKS).fill(1);
    const synced = [...latest];
    let sequence = 1;
    const work = (steps: number) => {
      for (let step = 0; step < steps; step++) {
        if (random.chance(0.1)) machine.pass(random.below(8));
        const chunk = random.below(CHUNKS);
        const value = 2 + random.below(250);
        assertEquals(machine.write(LAYER, chunk, value, ++sequence), 0);
        latest[chunk] = value;
        if (random.chance(0.3)) assertEquals(machine.read(LAYER, chunk), value);
        if (random.chance(0.1)) {
          assertEquals(machine.sync(), 0);
          for (let i = 0; i < CHUNKS; i++) synced[i] = latest[i];
        }
      }
    };
    for (let life = 0; life < 4; life++) {
      work(random.below(60));
      for (let chunk = 0; chunk < CHUNKS; chunk++) {
        assertEquals(machine.read(LAYER, chunk), latest[chunk], `seed ${seed}, chunk ${chunk}`);
      }
      for (let turns = random.below(30); turns > 0; turns--) {
        machine.store.endTurn();
        machine.disk(random.chance(0.5) ? "/a" : "/b").pump();
      }
      machine.crash();
      machine.mustOpen("/b", "/a");
      machine.install(MAP);
      for (let chunk = 0; chunk < CHUNKS; chunk++) {
        const found = machine.read(LAYER, chunk);
        // What a move has copied and synced may be newer than what was asked to be.
        const isRight = found === synced[chunk] || found === latest[chunk];
        assert(
          isRight || latest[chunk] !== synced[chunk],
          `seed ${seed}, chunk ${chunk}: ${found}`,
        );
        assert(found > 0, `seed ${seed}, chunk ${chunk} is empty`);
        synced[chunk] = latest[chunk] = found;
      }
      assertEquals(machine.sync(), 0);
    }
    machine.pass(300);
    moved += used(machine)[1];
  }
  assert(moved > 200, `${moved}`);
});

Deno.test("a group that is written to at every moment of its move loses none of it", () => {
  const { family } = MAP.disks[0];
  let moved = 0;
  for (let seed = 0; seed < 25; seed++) {
    const random = new Prng(seed);
    const machine = half(seed);
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    const latest = new Array(CHUNKS).fill(1);
    const isBusyGuest = random.pick([0.02, 0.1, 0.4]);
    let sequence = 1;
    let underWay = 0;
    for (let step = 0; step < 12_000; step++) {
      machine.step(random);
      const group = machine.set!.movingGroup;
      if (group < 0 || underWay > 100 || !random.chance(isBusyGuest)) continue;
      const chunk = latest.findIndex((_, index) => pgOf(family, index, 256) === group);
      if (chunk < 0) continue;
      const value = 2 + random.below(250);
      latest[chunk] = value;
      underWay++;
      machine.submit(LAYER, chunk, value, ++sequence, (result) => {
        assertEquals(result, 0);
        underWay--;
      });
    }
    machine.until(() => underWay === 0, "writes");
    moved += machine.set!.movedGroups;
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      assertEquals(machine.read(LAYER, chunk), latest[chunk], `seed ${seed}, chunk ${chunk}`);
    }
    assertEquals(machine.sync(), 0);
    machine.crash();
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      assertEquals(machine.read(LAYER, chunk), latest[chunk], `seed ${seed}, chunk ${chunk}`);
    }
  }
  assert(moved > 60, `${moved}`);
});

Deno.test("a group whose chunks are absorbed at every moment of its move holds the same through both layers", () => {
  const { family } = MAP.disks[0];
  const map = {
    ...MAP,
    epoch: MAP.epoch + 1,
    disks: [{ ...MAP.disks[0], layers: [2, LAYER] }],
    layers: [...MAP.layers, { id: 2, parent: LAYER, absorbedBy: null }],
    nextLayer: 3,
  };
  let moved = 0, absorbed = 0, refused = 0;
  for (let seed = 0; seed < 25; seed++) {
    const random = new Prng(seed);
    const machine = half(seed);
    machine.mustOpen("/a", "/b");
    machine.install(map);
    for (let chunk = 0; chunk < CHUNKS; chunk += 3) machine.write(2, chunk, 7, 1);
    const expected = Array.from({ length: CHUNKS }, (_, chunk) => chunk % 3 === 0 ? 7 : 1);
    const done = new Set<number>();
    let underWay = 0;
    const submit = (chunk: number, layers: number[], finished: (result: number) => void) => {
      const operation = new Operation({
        operationDone: ({ result }) => finished(result),
      }, 0);
      Object.assign(operation, { kind: OperationKind.Absorb, layers, chunk });
      machine.store.submit(operation);
    };
    const often = random.pick([0.05, 0.3]);
    for (let step = 0; step < 8000; step++) {
      machine.step(random);
      const group = machine.set!.movingGroup;
      if (group < 0 || !random.chance(often)) continue;
      const chunk = expected.findIndex((_, at) => !done.has(at) && pgOf(family, at, 256) === group);
      if (chunk < 0) continue;
      done.add(chunk);
      underWay++;
      submit(chunk, [2, LAYER], (result) => {
        assertEquals(result, 0);
        underWay--;
      });
    }
    machine.until(() => underWay === 0, "absorbs");
    moved += machine.set!.movedGroups;
    absorbed += done.size;
    for (let life = 0; life < 2; life++) {
      for (const chunk of done) {
        assertEquals(machine.read(2, chunk), expected[chunk], `seed ${seed}, chunk ${chunk}`);
        assertEquals(machine.read(LAYER, chunk), 0, `seed ${seed}, chunk ${chunk} below`);
      }
      for (let chunk = 0; chunk < CHUNKS; chunk++) {
        if (done.has(chunk)) continue;
        assertEquals(machine.read(LAYER, chunk), 1, `seed ${seed}, chunk ${chunk}`);
      }
      submit(0, [9, LAYER], (result) => {
        assertEquals(result, -EINVAL);
        refused++;
      });
      assertEquals(machine.sync(), 0);
      machine.crash();
      machine.mustOpen("/a", "/b");
      machine.install(map);
    }
  }
  assert(moved > 60 && absorbed > 100, `${moved} ${absorbed}`);
  assertEquals(refused, 50);
});

Deno.test("what the old path knows of a move is not ahead of what the new one has", () => {
  let moved = 0;
  for (let seed = 0; seed < 150; seed++) {
    const random = new Prng(seed);
    const machine = half(seed);
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    for (let step = 400 + random.below(1500); step > 0; step--) machine.step(random);
    // The new path hangs from some moment on.
    for (let step = 0; step < 150; step++) machine.step(random, machine.disk("/a"));
    moved += machine.set!.movedGroups;
    machine.crash();
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      assertEquals(machine.read(LAYER, chunk), 1, `seed ${seed}, chunk ${chunk}`);
    }
  }
  assert(moved > 50, `${moved}`);
});

Deno.test("a path that fails while a group moves costs its own data at the most", () => {
  for (const [path, kind] of [["/b", "write"], ["/b", "sync"], ["/a", "read"]] as const) {
    const machine = half(7);
    machine.mustOpen("/a", "/b");
    machine.install(MAP);
    machine.pass(40);
    // What cannot be read once more is damage; a disk that takes nothing is a lost one.
    let left = kind === "read" ? 2 : Infinity;
    machine.disk(path).faults = { fail: (what) => what === kind && left-- > 0 ? -EIO : 0 };
    machine.pass(60);
    machine.disk(path).faults = {};
    for (let chunk = 0; chunk < CHUNKS; chunk++) {
      if (machine.set!.isLost(LAYER, chunk)) continue;
      assertEquals(machine.read(LAYER, chunk), 1, `${path} ${kind}, chunk ${chunk}`);
    }
    const isLost = machine.set!.pathStatus().some(({ state }) => state === "failed");
    assertEquals(isLost, kind !== "read");
  }
});

Deno.test("a group that this node is not in sync for, or that others wait for, does not move", () => {
  const machine = half(8);
  machine.mustOpen("/a", "/b");
  machine.install(mapWith(1, 1, (pg) => ({ ...pg, unclean: [1] })));
  machine.pass(200);
  assertEquals(used(machine), [CHUNKS, 0]);
  machine.install({ ...MAP, epoch: MAP.epoch + 1 });
  machine.pass(200);
  assert(used(machine)[1] > 0);
});
