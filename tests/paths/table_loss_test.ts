/**
 * A data path is lost just while the table of slots is being written, which is often what shows that it is lost.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import type { Store } from "../../agent/store/store.ts";
import { Machine, mapWith } from "./harness.ts";

const LAYER = 1, EIO = 5;

/** Calls something whenever a table is about to be written. */
function beforeTables(machine: Machine, call: (isMove: boolean) => void): void {
  const set = machine.set!;
  const original: Store["setMetaBatch"] = set.setMetaBatch.bind(set);
  set.setMetaBatch = (entries, done) => {
    if (entries.some(({ key }) => key === "paths")) call(set.movingGroup >= 0);
    original(entries, done);
  };
}

Deno.test("a path that is lost while a group's move is written down takes its own data at the most, also after a restart", () => {
  const map = mapWith(1, 1);
  const chunks = Array.from({ length: 48 }, (_, chunk) => chunk);
  /** A path fills up, others are added, groups move there; `/c` fails as that move is written down. Returns how many moved. */
  const move = (seed: number, failsAt: number) => {
    const machine = new Machine(seed, "/a");
    machine.mustOpen("/a");
    machine.install(map);
    for (const chunk of chunks) assertEquals(machine.write(LAYER, chunk, 1, 1), 0);
    assertEquals(machine.sync(), 0);
    machine.close();
    machine.add("/b");
    machine.add("/c");
    machine.moves = true;
    machine.mustOpen("/a", "/b", "/c");
    machine.install(map);
    let moves = 0;
    beforeTables(machine, (isMove) => {
      if (!isMove || ++moves !== failsAt) return;
      machine.disk("/c").faults = { fail: (kind) => kind === "write" ? -EIO : 0 };
    });
    machine.pass(1500);
    return { machine, moves };
  };
  for (let seed = 1; seed <= 3; seed++) {
    const { moves } = move(seed, -1);
    assert(moves > 2, `${moves} moves`);
    const { machine } = move(seed, moves);
    assertEquals(machine.failures, ["/c"]);
    machine.close();
    machine.places.get("/c")!.disk = null;
    machine.mustOpen("/a", "/b", "/c");
    machine.install(map);
    const found = chunks.map((chunk) => machine.read(LAYER, chunk));
    // What is lost is refused, and not taken for zeros; the rest is there.
    assertEquals(found.filter((value) => value >= 0 && value !== 1), [], `seed ${seed}`);
    assert(found.some((value) => value < 0) && found.includes(1));
  }
});

Deno.test("a path that is lost while a map's groups are written down is owed to the map, and no flush passes over it", () => {
  // This node alone has every even group; by the second map it begins to join an odd one.
  const first = mapWith(1, 2, (pg, index) => {
    const members = [index % 2 === 0 ? 1 : 2];
    return {
      ...pg,
      target: members,
      inSync: members,
      joining: [],
      joinedEpochs: [],
      unclean: [],
    };
  });
  const epoch = first.epoch + 1;
  const joined = mapWith(1, 2, (pg, index) =>
    index !== 1 ? first.pools[0].pgs[index] : {
      ...pg,
      target: [2, 1],
      inSync: [2],
      joining: [1],
      joinedEpochs: [epoch],
      changedEpoch: epoch,
      unclean: [],
    });
  const second = { ...joined, epoch };
  const machine = new Machine(5, "/a", "/b");
  machine.mustOpen("/a", "/b");
  machine.install(first);
  const here = Array.from({ length: 24 }, (_, chunk) => chunk)
    .filter((chunk) => machine.write(LAYER, chunk, 7) === 0);
  assertEquals(machine.sync(), 0);
  for (const chunk of here) assertEquals(machine.write(LAYER, chunk, 8, 2), 0);
  beforeTables(machine, () => {
    machine.disk("/b").faults = { fail: (kind) => kind === "read" ? 0 : -EIO };
  });
  machine.install(second);
  machine.pass(5);
  assertEquals(machine.failures, ["/b"]);
  const { paths } = machine.set!;
  assert(here.some((chunk) => paths.isLost(LAYER, chunk)), "something was there");
  assert(paths.owed() !== null, "the map has to be told");
  assertEquals(machine.sync(), -EIO, "what is lost was acknowledged");
  // A map that changes no group says nothing of it.
  machine.install({ ...second, epoch: epoch + 1 });
  assert(paths.owed() !== null, "still");
  assertEquals(machine.sync(), -EIO);
});
