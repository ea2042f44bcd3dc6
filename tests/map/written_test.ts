/**
 * Who may have written to a disk, and under which lease: `DiskEntry.written`.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import {
  checkMap,
  type ClusterMap,
  findDisk,
  type MapCommand,
  UNWRITTEN,
  type Written,
  writtenByOthers,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { clusterAtLevelTwo, clusterWithDisk, nodeUp, runAll } from "./cluster.ts";

const take = (node: number, incarnation = 1): MapCommand => ({
  kind: "take-lease",
  id: 1,
  node,
  incarnation,
});
const release = (node: number, generation: number, unwritten?: boolean): MapCommand => ({
  kind: "release-lease",
  id: 1,
  node,
  generation,
  ...(unwritten === undefined ? {} : { unwritten }),
});
const force = (generation: number, unwritten?: boolean): MapCommand => ({
  kind: "force-release-lease",
  id: 1,
  generation,
  ...(unwritten === undefined ? {} : { unwritten }),
});

/** What is known of the disk after some commands; the map is one that can be read again. */
function after(map: ClusterMap, ...commands: MapCommand[]): readonly number[] {
  const next = runAll(map, ...commands);
  assertEquals(checkMap(next), null);
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(next)))), next);
  const { node, generation, before }: Written = findDisk(next, "web")!.written;
  return [node, generation, before];
}

Deno.test("a lease that is over may have written, but where its holder says that it has not", () => {
  const map = clusterAtLevelTwo(3, "web");
  assertEquals(findDisk(map, "web")!.written, UNWRITTEN);
  assertEquals(after(map, take(1)), [0, 0, 0], "not over yet");
  assertEquals(after(map, take(1), release(1, 1)), [1, 1, 0]);
  assertEquals(after(map, take(1), release(1, 1, true)), [0, 0, 0]);
  assertEquals(after(map, take(1), force(1)), [1, 1, 0]);
  assertEquals(after(map, take(1), force(1, true)), [0, 0, 0]);
  // Whoever has died, or has started anew, says nothing.
  const down: MapCommand = { kind: "node-down", node: 3, incarnation: 1, nowMs: 0 };
  assertEquals(after(map, take(3), down, take(2)), [3, 1, 0]);
  const remove: MapCommand = {
    kind: "remove-node",
    node: 3,
    force: true,
    acceptLoss: true,
    nowMs: 0,
  };
  assertEquals(after(map, take(3), down, remove), [3, 1, 0]);
  assertEquals(after(map, take(1), take(1)), [1, 1, 0], "another front end");
});

Deno.test("leases of one node are one after the other, whatever it did under each; another's are before them", () => {
  const map = clusterAtLevelTwo(3, "web");
  const first = [take(1), release(1, 1), take(1), release(1, 2)];
  assertEquals(after(map, ...first), [1, 2, 0]);
  const second = [...first, take(2), release(2, 3)];
  assertEquals(after(map, ...second), [2, 3, 2]);
  assertEquals(after(map, ...second, take(3), release(3, 4, true)), [2, 3, 2]);
  const back = runAll(map, ...second, take(1), release(1, 4), take(1), release(1, 5));
  const disk = findDisk(back, "web")!;
  assertEquals(disk.written, { node: 1, generation: 5, before: 3 });
  assertEquals([1, 2, 3].map((node) => writtenByOthers(disk, node)), [3, 5, 5]);
});

Deno.test("a disk that is rolled back has been changed by others, for every guest that was there before", () => {
  const map = runAll(clusterAtLevelTwo(3, "web"), take(1), release(1, 1), {
    kind: "create-snapshots",
    disks: [1],
    name: "s",
    nowMs: 0,
  }, { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 0 });
  assertEquals(findDisk(map, "web")!.written, { node: 0, generation: 2, before: 1 });
  // The next lease is behind that: who has it is not told of it any more when it has begun under it.
  const next = findDisk(runAll(map, take(1), release(1, 2)), "web")!;
  assertEquals([next.written, writtenByOthers(next, 1)], [
    { node: 1, generation: 2, before: 2 },
    2,
  ]);
  assertEquals(after(map, take(1), release(1, 2)), [1, 2, 2]);
});

Deno.test("a map that older agents read knows nothing of it", () => {
  const map = clusterWithDisk(3, 3);
  assertEquals(findDisk(runAll(map, take(1), release(1, 1)), "web")!.written, UNWRITTEN);
  assertEquals(findDisk(runAll(map, take(1), nodeUp(1), take(2)), "web")!.written, UNWRITTEN);
});
