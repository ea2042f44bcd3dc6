/**
 * Space of disks and snapshots: the tree of the file's head, what a rollback, the trash and merging do to it, and random families beside
 * a naive oracle that deletes and looks at what is left.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  chainOf,
  type ClusterMap,
  type DiskEntry,
  disksWithData,
  type MapCommand,
  type Merge,
  merges,
  spaceOf,
} from "../../agent/map/map.ts";
import { clusterAtLevelTwo, runAll } from "./cluster.ts";

const take = (disk: number, name: string): MapCommand[] => [
  { kind: "create-snapshots", disks: [disk], name, nowMs: 1 },
];

/** `web` with snapshots monday and tuesday, and `test`, which goes on from web@monday. */
function family(): ClusterMap {
  return runAll(
    clusterAtLevelTwo(1, "web"),
    ...take(1, "monday"),
    ...take(1, "tuesday"),
    { kind: "clone-disk", disk: "web", snapshot: "monday", name: "test", nowMs: 2 },
  );
}

const diskNamed = (map: ClusterMap, name: string) => map.disks.find((disk) => disk.name === name)!;

/** Used, exclusive and shared of everything that has a name. */
function table(map: ClusterMap, bytes: ReadonlyMap<number, number>): Record<string, number[]> {
  const { disks, snapshots } = spaceOf(map, bytes);
  const rows: Record<string, number[]> = {};
  for (const disk of disksWithData(map)) {
    const of = disks.get(disk.id)!;
    rows[disk.name] = [of.usedBytes, of.exclusiveBytes, of.sharedBytes];
    for (const { name, layer } of disk.snapshots) {
      const each = snapshots.get(layer)!;
      rows[`${disk.name}@${name}`] = [each.usedBytes, each.exclusiveBytes, each.sharedBytes];
    }
  }
  return rows;
}

Deno.test("a family of two disks: what each takes alone, and what they share", () => {
  const map = family();
  const [web, tuesday, monday] = diskNamed(map, "web").layers;
  const [test] = diskNamed(map, "test").layers;
  const bytes = new Map([[web, 1], [tuesday, 2], [monday, 7], [test, 5]]);
  assertEquals(table(map, bytes), {
    "web": [10, 3, 7],
    "web@tuesday": [9, 0, 9],
    "web@monday": [7, 0, 7],
    "test": [12, 5, 7],
  });
  // Layers that this node does not have hold nothing.
  assertEquals(table(map, new Map())["web"], [0, 0, 0]);
});

Deno.test("what the trash needs is not exclusive, and a disk that was rolled back keeps its later snapshots", () => {
  let map = family();
  const [web, tuesday, monday] = diskNamed(map, "web").layers;
  const [test] = diskNamed(map, "test").layers;
  const bytes = new Map([[web, 1], [tuesday, 2], [monday, 7], [test, 5]]);
  const trashed = runAll(map, { kind: "delete-disk", name: "test", trashedMs: 3 });
  assertEquals(table(trashed, bytes)["web"], [10, 3, 7], "test still needs monday's layer");
  const purged = runAll(trashed, { kind: "purge-disk", id: diskNamed(map, "test").id });
  assertEquals(table(purged, bytes)["web"], [10, 10, 0]);

  map = runAll(purged, { kind: "rollback-disk", disk: "web", snapshot: "monday", nowMs: 4 });
  map = { ...map, trash: [] };
  const space = table(map, bytes);
  assertEquals(
    space["web"],
    [9, 9, 0],
    "its snapshots are deleted with it: tuesday's layer counts",
  );
  assertEquals(space["web@tuesday"], [9, 2, 7], "nothing goes on from tuesday any more");
});

/** What is left in the store when some owners are gone: the union of the chains of the others. */
function heldWithout(
  map: ClusterMap,
  bytes: ReadonlyMap<number, number>,
  isGone: (disk: DiskEntry, snapshot: number | null) => boolean,
): number {
  const held = new Set<number>();
  for (const disk of disksWithData(map)) {
    if (!isGone(disk, null)) chainOf(map.layers, disk.layers[0]).forEach((id) => held.add(id));
    for (const { layer } of disk.snapshots) {
      if (!isGone(disk, layer)) chainOf(map.layers, layer).forEach((id) => held.add(id));
    }
  }
  return [...held].reduce((sum, id) => sum + bytes.get(id)!, 0);
}

/** A random family of disks, snapshots and clones. */
function randomFamily(random: Prng, steps: number): ClusterMap {
  let map = clusterAtLevelTwo(1, "d0", "d1");
  for (let step = 0; step < steps; step++) {
    const disk = map.disks[random.below(map.disks.length)];
    const snapshot = disk.snapshots.at(random.below(Math.max(1, disk.snapshots.length)));
    const kind = random.below(6);
    const [trashed] = map.trash;
    if (kind < 2 || snapshot === undefined) map = runAll(map, ...take(disk.id, `s${step}`));
    else if (kind === 2) {
      const name = `c${step}`;
      map = runAll(map, {
        kind: "clone-disk",
        disk: disk.name,
        snapshot: snapshot.name,
        name,
        nowMs: 1,
      });
    } else if (kind === 3) {
      map = runAll(map, { kind: "delete-snapshot", disk: disk.name, name: snapshot.name });
    } else if (kind === 4 && trashed !== undefined) {
      map = runAll(map, { kind: "purge-disk", id: trashed.disk.id });
    } else {
      map = runAll(map, {
        kind: "rollback-disk",
        disk: disk.name,
        snapshot: snapshot.name,
        nowMs: 1,
      });
    }
  }
  return map;
}

/** What layers hold of a few places: data or zeros. */
type Held = ReadonlyMap<number, ReadonlyMap<number, "data" | "zero">>;

/** Merges what is to be merged, until nothing is, and drops what is gone. */
function settled(map: ClusterMap, held: Held): { map: ClusterMap; held: Held } {
  const now = new Map(held);
  for (;;) {
    const pairs = map.layers.filter(({ absorbedBy }) => absorbedBy !== null);
    for (const { id } of pairs) {
      const child = map.layers.find(({ parent }) => parent === id)!.id;
      now.set(child, new Map([...now.get(id)!, ...now.get(child)!]));
    }
    if (pairs.length === 0) break;
    const layers = pairs.map(({ id }) => id);
    map = runAll(map, { kind: "absorbed", node: 1, incarnation: 1, layers });
  }
  for (const id of now.keys()) if (!map.layers.some((layer) => layer.id === id)) now.delete(id);
  return { map, held: now };
}

const dataOf = (held: Held) =>
  [...held.values()].reduce(
    (sum, places) => sum + [...places.values()].filter((kind) => kind === "data").length,
    0,
  );

/** What the layers above hide of those below, place by place. */
function hidden(held: Held, { above, below }: Merge): number {
  let count = 0;
  for (let place = 0; place < 16; place++) {
    const lower = below.map((layer) => held.get(layer)!.get(place)).find((each) => each);
    if (lower === "data" && above.some((layer) => held.get(layer)!.has(place))) count++;
  }
  return count;
}

Deno.test("random families: what a snapshot has alone is what deleting and merging then frees, to the block", () => {
  const seen = { merged: 0, whole: 0, both: 0, nothing: 0 };
  for (let seed = 1; seed <= 120; seed++) {
    const random = new Prng(seed);
    const family = randomFamily(random, 5 + random.below(25));
    const made = new Map(family.layers.map(({ id }) => {
      const places = new Map<number, "data" | "zero">();
      for (let place = 0; place < 16; place++) {
        if (random.chance(0.4)) places.set(place, random.chance(0.8) ? "data" : "zero");
      }
      return [id, places];
    }));
    // A quiet cluster: all that can be merged has been.
    const { map, held } = settled(family, made);
    const bytes = new Map([...held].map(([id, places]) => [id, dataOf(new Map([[id, places]]))]));
    const merge = merges(map);
    for (const disk of map.disks) {
      for (const { name, layer } of disk.snapshots) {
        const wanted = merge(layer);
        const merged = wanted === null ? 0 : hidden(held, wanted);
        const { snapshots } = spaceOf(map, bytes, new Map([[layer, merged]]));
        const { exclusiveBytes, usedBytes, sharedBytes } = snapshots.get(layer)!;
        const left = settled(
          runAll(map, { kind: "delete-snapshot", disk: disk.name, name }),
          held,
        );
        const freed = dataOf(held) - dataOf(left.held);
        assertEquals(exclusiveBytes, freed, `seed ${seed}, ${disk.name}@${name}`);
        assertEquals(usedBytes, exclusiveBytes + sharedBytes);
        if (merged === freed && freed > 0) seen.merged++;
        else if (merged > 0) seen.both++;
        else if (freed > 0) seen.whole++;
        else seen.nothing++;
      }
    }
  }
  for (const [what, count] of Object.entries(seen)) assert(count > 0, `${what}: never`);
});

Deno.test("what is hidden is looked for in layers that wait for their turn to be merged, too", () => {
  // The node has not merged anything yet.
  let map = runAll(
    clusterAtLevelTwo(1, "web"),
    ...["a", "b", "c", "d"].flatMap((name) => take(1, name)),
  );
  const [top, d, c, b, a] = map.disks[0].layers;
  map = runAll(map, { kind: "delete-snapshot", disk: "web", name: "c" });
  assertEquals(merges(map)(b), { above: [d, c], below: [b] });
  assertEquals(merges(map)(d), { above: [top], below: [d, c] });
  map = runAll(map, { kind: "delete-snapshot", disk: "web", name: "b" });
  assertEquals(merges(map)(a), { above: [d, c, b], below: [a] });
  assertEquals(merges(map)(d), { above: [top], below: [d, c, b] });
});

Deno.test("random families: exclusive is what goes when only that is deleted", () => {
  let shared = 0, exclusiveSnapshots = 0;
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Prng(seed);
    const map = randomFamily(random, 25);
    const bytes = new Map(map.layers.map(({ id }) => [id, 1 + random.below(1000)]));
    const { disks, snapshots } = spaceOf(map, bytes);
    const all = heldWithout(map, bytes, () => false);
    let sum = 0;
    for (const disk of disksWithData(map)) {
      const of = disks.get(disk.id)!;
      assertEquals(
        of.exclusiveBytes,
        all - heldWithout(map, bytes, (each) => each.id === disk.id),
        `seed ${seed}, disk ${disk.name}`,
      );
      assertEquals(of.usedBytes, heldWithout(map, bytes, (each) => each.id !== disk.id));
      sum += of.exclusiveBytes;
      shared += of.sharedBytes;
      for (const { layer } of disk.snapshots) {
        const each = snapshots.get(layer)!;
        const left = heldWithout(map, bytes, (_, snapshot) => snapshot === layer);
        assertEquals(each.exclusiveBytes, all - left, `seed ${seed}, layer ${layer}`);
        assertEquals(each.usedBytes, heldWithout(map, bytes, (_, other) => other !== layer));
        assert(each.exclusiveBytes <= of.exclusiveBytes);
        if (each.exclusiveBytes > 0) exclusiveSnapshots++;
      }
    }
    assert(sum <= all);
  }
  assert(shared > 0 && exclusiveSnapshots > 0, "the families have nothing to look at");
});
