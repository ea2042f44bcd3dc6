/**
 * Making clones independent: what is refused, whose word counts, and what is cut off whom.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  apply,
  checkMap,
  clonePoint,
  type ClusterMap,
  type DiskEntry,
  findDisk,
  findLayer,
  findNode,
  flattenedLayer,
  type MapCommand,
  type PgEntry,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { addNode, clusterAtLevelTwo, clusterWithDisk, nodeUp, refuse, step } from "./cluster.ts";

const nowMs = 1.7e12;

function all(map: ClusterMap, ...commands: MapCommand[]): ClusterMap {
  return commands.reduce((before, command) => step(before, command).map, map);
}

function disk(map: ClusterMap, name: string): DiskEntry {
  return findDisk(map, name)!;
}

function snapshot(map: ClusterMap, name: string, ...disks: string[]): ClusterMap {
  const ids = disks.map((each) => disk(map, each).id);
  return all(map, { kind: "create-snapshots", disks: ids, name, nowMs });
}

function clone(map: ClusterMap, of: string, name: string): ClusterMap {
  const [disk, snapshot] = of.split("@");
  return all(map, { kind: "clone-disk", disk, snapshot, name, nowMs });
}

/** "web" with the snapshot v1 (layer 1) and "copy", a clone of it (layer 3 above 1), on three nodes. */
function cloned(): ClusterMap {
  return clone(snapshot(clusterAtLevelTwo(3, "web"), "v1", "web"), "web@v1", "copy");
}

/** The word of a node, as it would give it now. */
function word(map: ClusterMap, node: number, ...layers: number[]): MapCommand {
  const { incarnation } = findNode(map, node)!;
  const { epoch } = map;
  return { kind: "flattened", node, incarnation, layers, epoch };
}

function words(map: ClusterMap, nodes: readonly number[], ...layers: number[]): ClusterMap {
  return nodes.reduce((before, node) => all(before, word(before, node, ...layers)), map);
}

const FLATTEN: MapCommand = { kind: "flatten-disk", disk: "copy" };
const CANCEL: MapCommand = { kind: "flatten-disk", disk: "copy", cancel: true };

/** Layers as "id<parent". */
function shape(map: ClusterMap): string {
  return map.layers.map(({ id, parent }) => `${id}<${parent}`).join(" ");
}

function by(map: ClusterMap, name = "copy"): readonly number[] | undefined {
  return flattenedLayer(map, disk(map, name))?.flatten.by;
}

/** The map with another first group of the clone's pool. */
function withGroup(map: ClusterMap, change: Partial<PgEntry>): ClusterMap {
  const pools = map.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.with(0, { ...pool.pgs[0], ...change }),
  }));
  return { ...map, pools };
}

Deno.test("a clone is cut off when every storage node has given its word, and then its origin can go", () => {
  let map = all(cloned(), FLATTEN);
  assertEquals([shape(map), by(map)], ["1<0 2<1 3<1", []]);
  assertEquals(all(map, FLATTEN), map, "said twice");
  map = words(map, [3, 1], 3);
  assertEquals([shape(map), by(map)], ["1<0 2<1 3<1", [1, 3]]);
  assertEquals(all(map, word(map, 1, 3)), map, "a word twice");
  map = words(map, [2], 3);
  assertEquals([shape(map), by(map)], ["1<0 2<1 3<0", undefined]);
  assertEquals(disk(map, "copy").layers, [3]);
  assertEquals(disk(map, "web").layers, [2, 1]);
  map = all(map, { kind: "delete-disk", name: "web" });
  assertEquals(shape(map), "3<0");
});

Deno.test("what cannot be flattened is refused, and says why", () => {
  const map = cloned();
  const cases: [ClusterMap, MapCommand, string, RegExp][] = [
    [map, { kind: "flatten-disk", disk: "none" }, "missing", /no disk named "none"/],
    [map, { kind: "flatten-disk", disk: "web" }, "invalid", /web goes on from no other disk/],
    [
      all(map, { kind: "delete-disk", name: "web" }),
      FLATTEN,
      "invalid",
      /copy goes on from no other disk/,
    ],
    [map, { ...word(map, 1, 3), incarnation: 9 } as MapCommand, "stale", /a run that is over/],
    [map, { ...word(map, 1, 3), node: 9 } as MapCommand, "stale", /a run that is over/],
    [map, { ...word(map, 1, 3), epoch: map.epoch + 1 } as MapCommand, "invalid", /no map of epoch/],
    [map, { ...word(map, 1, 3), epoch: NaN } as MapCommand, "invalid", /no map of epoch/],
  ];
  for (const [before, command, code, message] of cases) {
    const error = refuse(before, command);
    assertEquals(error.code, code, error.message);
    assertMatch(error.message, message);
  }
  // The clone's oldest layer is that of a snapshot which was deleted: it is merged into the one above first.
  let merging = snapshot(map, "s", "copy");
  merging = all(merging, { kind: "delete-snapshot", disk: "copy", name: "s" });
  assertEquals(findLayer(merging.layers, 3)!.absorbedBy, []);
  assertEquals(refuse(merging, FLATTEN).code, "busy");
  assertEquals(all(map, CANCEL), map, "nothing to cancel");
  assertEquals(all(map, word(map, 1, 3)), map, "a word about what is not flattened");
});

Deno.test("level 1 knows nothing of it", async () => {
  const { commandLevel } = await import("../../agent/map/levels.ts");
  assertEquals([commandLevel(FLATTEN), commandLevel(word(cloned(), 1, 3))], [2, 2]);
});

Deno.test("where a disk hangs on others", () => {
  // web: 2 1; copy: 5 3 1, of which s is 3; deep, a clone of copy@s: 6 3 1 (4 was the newest of web in between).
  let map = snapshot(cloned(), "s", "copy");
  map = clone(map, "copy@s", "deep");
  const point = (name: string) => clonePoint(map, disk(map, name));
  assertEquals(disk(map, "deep").layers, [5, 3, 1]);
  assertEquals(point("web"), { id: 1, parent: 0 });
  assertEquals(point("copy"), { id: 3, parent: 1 });
  assertEquals(point("deep"), { id: 5, parent: 3 });
  // Whoever hangs on the one that is cut off goes with it.
  const cut = words(all(map, FLATTEN), [1, 2, 3], 3);
  assertEquals([disk(cut, "copy").layers, disk(cut, "deep").layers], [[4, 3], [5, 3]]);
  // A snapshot that only others need is not the disk's own any more.
  map = all(map, { kind: "delete-snapshot", disk: "copy", name: "s" });
  assertEquals(point("copy"), { id: 4, parent: 3 });
  // Two of one chain at a time.
  map = all(map, FLATTEN, { kind: "flatten-disk", disk: "deep" });
  map = words(map, [1, 2, 3], 4, 5);
  assertEquals([disk(map, "copy").layers, disk(map, "deep").layers], [[4], [5]]);
  assertEquals(shape(map), "1<0 2<1 4<0 5<0", "nobody needs 3 any more");
});

Deno.test("who joins, or is unclean, has no word, and one that was on its way does not count", () => {
  const map = words(all(cloned(), FLATTEN), [1, 2], 3);
  const late = word(map, 3, 3);
  const pool = map.pools[0];
  const at = pool.pgs.findIndex(({ inSync }) => inSync.includes(2) && inSync.length === 2);
  const other = pool.pgs[at].inSync.find((node) => node !== 2)!;
  // It is down, leaves its groups, comes back, and joins: its word is gone.
  let next = all(map, { kind: "node-down", node: 2, incarnation: 1, nowMs });
  assertEquals(by(next), [1, 2], "what it has is durable");
  next = all(next, nodeUp(2, { protocol: 2 }));
  assertEquals(by(next), [1, 2]);
  const { incarnation } = findNode(next, 2)!;
  const target = next.pools[0].pgs.findIndex((pg) =>
    pg.target.includes(2) && !pg.inSync.includes(2)
  );
  const before = next;
  next = all(next, { kind: "start-joining", pool: 2, pgs: [target], node: 2, incarnation });
  assertEquals(by(next), [1]);
  assertEquals(all(next, word(next, 2, 3)), next, "while it joins");
  next = all(next, {
    kind: "in-sync",
    pool: 2,
    pgs: [target],
    node: 2,
    incarnation,
    basedOnEpoch: next.epoch,
  });
  assertEquals(all(next, { ...word(before, 2, 3), incarnation } as MapCommand), next, "of before");
  assertEquals(by(all(next, word(next, 2, 3))), [1, 2]);
  // Groups in which it is in sync have changed, and who knows how: it says so again.
  assertEquals(all(next, late), next);
  assertEquals(by(all(next, word(next, 3, 3))), [1, 3]);
  // A crash that lost something.
  const crashed = all(map, nodeUp(other, { protocol: 2, bootId: "another" }));
  assertEquals(by(crashed)!.includes(other), false);
  // A map that says otherwise is none.
  const joins = withGroup(map, { inSync: [3], joining: [2], joinedEpochs: [1], unclean: [] });
  assertMatch(checkMap(joins)!.message, /flattened on node 2, which is no member yet/);
});

Deno.test("a word of before it was cancelled, and begun anew, does not count", () => {
  let map = all(cloned(), FLATTEN);
  const old = word(map, 1, 3);
  map = words(map, [2], 3);
  map = all(map, CANCEL);
  assertEquals([by(map), shape(map)], [undefined, "1<0 2<1 3<1"]);
  map = all(map, FLATTEN);
  assertEquals(by(map), []);
  assertEquals(all(map, old), map);
});

Deno.test("a node that comes in later has to say so, too; one that is removed need not", () => {
  let map = words(all(cloned(), FLATTEN), [1, 2], 3);
  const more = all(map, addNode(4, { protocol: 2 }));
  const said = words(more, [3], 3);
  assertEquals(by(said), [1, 2, 3]);
  assertEquals(by(words(said, [4], 3)), undefined);
  map = all(
    map,
    { kind: "node-down", node: 3, incarnation: 1, nowMs },
    { kind: "remove-node", node: 3, force: true, acceptLoss: true, nowMs },
  );
  assertEquals([by(map), shape(map)], [undefined, "1<0 2<1 3<0"]);
});

Deno.test("it ends with the disk, and where nobody else needs what lies below", () => {
  const map = words(all(cloned(), FLATTEN), [1], 3);
  const trashed = all(map, { kind: "delete-disk", name: "copy", trashedMs: nowMs });
  assertEquals(findLayer(trashed.layers, 3)!.flatten, undefined);
  const gone = all(map, { kind: "delete-disk", name: "copy" });
  assertEquals(shape(gone), "1<0 2<1");
  // The origin goes: all below is merged into the clone instead.
  const alone = all(map, { kind: "delete-disk", name: "web" });
  assertEquals([findLayer(alone.layers, 3)!.flatten, findLayer(alone.layers, 1)!.absorbedBy], [
    undefined,
    [],
  ]);
  // Only its nearest part goes: that is merged, and the rest is still to be cut off.
  let deep = snapshot(clusterAtLevelTwo(3, "web"), "v1", "web");
  deep = clone(snapshot(deep, "v2", "web"), "web@v2", "copy");
  deep = all(deep, FLATTEN, { kind: "rollback-disk", disk: "web", snapshot: "v1", nowMs });
  deep = all(deep, { kind: "purge-disk", id: deep.trash[0].disk.id });
  deep = all(deep, { kind: "delete-snapshot", disk: "web", name: "v2" });
  assertEquals(disk(deep, "copy").layers, [4, 2, 1]);
  assertEquals([by(deep), findLayer(deep.layers, 2)!.absorbedBy], [[], []]);
  for (const node of [1, 2, 3]) {
    deep = all(deep, { kind: "absorbed", node, incarnation: 1, layers: [2] });
  }
  assertEquals([disk(deep, "copy").layers, by(deep)], [[4, 1], []]);
  assertEquals(disk(words(deep, [1, 2, 3], 4), "copy").layers, [4]);
});

Deno.test("a snapshot that is deleted meanwhile is merged when that is over", () => {
  let map = all(snapshot(cloned(), "s", "copy"), FLATTEN);
  assertEquals(flattenedLayer(map, disk(map, "copy"))!.id, 3);
  map = all(map, { kind: "delete-snapshot", disk: "copy", name: "s" });
  assertEquals(findLayer(map.layers, 3)!.absorbedBy, null);
  assertEquals(findLayer(all(map, CANCEL).layers, 3)!.absorbedBy, []);
  map = words(map, [1, 2, 3], 3);
  assertEquals([disk(map, "copy").layers, findLayer(map.layers, 3)!.absorbedBy], [[4, 3], []]);
});

Deno.test("disks that hang on others keep their number of copies, and so their groups, meanwhile", () => {
  const map = all(cloned(), FLATTEN);
  for (const name of ["web", "copy"]) {
    const error = refuse(map, { kind: "set-copies", name, copies: 1 });
    assertMatch(error.message, /disk copy is being flattened/);
  }
});

Deno.test("a map with a layer that is flattened comes back from its bytes, and nothing wrong does", () => {
  const map = words(all(cloned(), FLATTEN), [1, 3], 3);
  const bytes = unwrap(encodeMap(map));
  assertEquals(unwrap(decodeMap(bytes)), map);
  const { since } = flattenedLayer(map, disk(map, "copy"))!.flatten;
  // [3, 1, null, disk 2, since, list 0]
  const layer = `960301c002${since.toString(16).padStart(2, "0")}00`;
  assertEquals(bytes.toHex().split(layer).length, 2, "one layer is these bytes");
  const altered = (from: string, to: string) =>
    decodeMap(Uint8Array.fromHex(bytes.toHex().replace(from, to)));
  for (
    const [to, message] of [
      [
        `960301c00100`.replace("0100", "01") + `${since.toString(16).padStart(2, "0")}00`,
        /layer 3 cannot be flattened/,
      ],
      [`960300c002${since.toString(16).padStart(2, "0")}00`, /./],
      [`960301c0027f00`, /has been flattened since epoch 127/],
      [`960301c002${since.toString(16).padStart(2, "0")}05`, /wrong type/],
      [`960301c202${since.toString(16).padStart(2, "0")}00`, /wrong type/],
    ] as const
  ) {
    const read = altered(layer, to);
    assertEquals(read.ok, false, to);
    if (!read.ok) assertMatch(read.error.message, message);
  }
  const unsorted = altered("920103", "920301");
  assertEquals(unsorted.ok, false);
  assertEquals(clusterWithDisk(1, 1).layers[0].flatten, undefined);
});

/** What a node has of a group of the layer that is flattened. */
const enum Has {
  /** Perhaps not all, under stamps that others know. */
  Half,
  All,
  /** Nothing under a known stamp: it is copied whole before it counts. */
  Unknown,
}

/**
 * Nodes that die, come back, join and leave groups while they flatten, and whose words come late and twice. Whatever joins takes over what
 * its source has, which may be less than it had. Each node keeps the promise of a word, and no more.
 */
class Nodes {
  readonly random: Prng;
  map: ClusterMap;
  readonly has = new Map<string, Has>();
  readonly late: MapCommand[] = [];
  cuts = 0;
  refusedLate = 0;
  steps = 0;

  constructor(seed: number) {
    this.random = new Prng(seed);
    this.map = clone(snapshot(clusterAtLevelTwo(4, "web"), "v1", "web"), "web@v1", "copy");
  }

  pick<T>(list: readonly T[]): T {
    return list[this.random.below(list.length)];
  }

  get groups(): readonly PgEntry[] {
    return this.map.pools[0].pgs;
  }

  propose(command: MapCommand): boolean {
    const before = this.map;
    const result = apply(before, command);
    if (!result.ok || result.value.map === before) return false;
    this.map = result.value.map;
    assertEquals(checkMap(this.map), null);
    this.groups.forEach((pg, group) => {
      const old = before.pools[0].pgs[group];
      for (const node of pg.joining) {
        const isNew = !old.joining.includes(node) || old.changedEpoch !== pg.changedEpoch;
        if (isNew) this.has.set(`${node}/${group}`, Has.Half);
      }
      // It has taken over what others had.
      if (old.unsettled && !pg.unsettled) this.has.set(`${pg.inSync[0]}/${group}`, Has.Half);
    });
    const flatten = (map: ClusterMap) => findLayer(map.layers, 3)?.flatten;
    if (flatten(this.map) !== undefined && flatten(before) === undefined) this.has.clear();
    if (findLayer(before.layers, 3)!.parent !== 0 && findLayer(this.map.layers, 3)!.parent === 0) {
      this.checkCut();
    }
    return true;
  }

  /** The parent has been cut off: nobody may be read, now or ever, who lacks what it had. */
  checkCut(): void {
    this.cuts++;
    this.groups.forEach((pg, group) => {
      assertEquals(pg.joining, []);
      for (const { id } of this.map.nodes) {
        const has = this.has.get(`${id}/${group}`) ?? Has.Half;
        const isRight = has === Has.All || (has === Has.Unknown && !pg.inSync.includes(id));
        if (!isRight) throw new Error(`group ${group}: node ${id} has ${has}`);
      }
    });
  }

  /** A node copies everything that it may, and says so: at once, later, or never. */
  flatten(): void {
    const { id, state, incarnation } = this.pick(this.map.nodes);
    if (state !== "up" || findLayer(this.map.layers, 3)?.flatten === undefined) return;
    if (this.groups.some((pg) => pg.joining.includes(id) || pg.unclean.includes(id))) return;
    this.groups.forEach((pg, group) => {
      const has = pg.inSync.includes(id) ? Has.All : Has.Unknown;
      this.has.set(`${id}/${group}`, has);
    });
    const { epoch } = this.map;
    const said: MapCommand = { kind: "flattened", node: id, incarnation, layers: [3], epoch };
    if (this.random.chance(0.5)) this.late.push(said);
    if (this.random.chance(0.6)) this.propose(said);
  }

  step(): void {
    const { random, map } = this;
    const { id: node, incarnation, state } = this.pick(map.nodes);
    const about = (holds: (pg: PgEntry) => boolean): number[] =>
      this.groups.flatMap((pg, at) => holds(pg) ? [at] : []);
    // In turns: calm enough to get done, and not.
    const isCalm = this.steps++ % 100 > 40;
    const share = isCalm && random.chance(0.97)
      ? this.pick([0, 0, 45, 55, 60, 75, 86, 89, 92, 99])
      : random.below(100);
    if (share < 40) return this.flatten();
    if (share < 50 && this.late.length > 0) {
      const at = random.below(this.late.length);
      if (!this.propose(this.late.splice(at, 1)[0])) this.refusedLate++;
    } else if (share < 53) this.propose({ kind: "node-down", node, incarnation, nowMs });
    else if (share < 58) {
      if (state === "up" && random.chance(0.6)) return;
      const bootId = random.chance(0.5) ? `boot${random.below(9)}` : map.nodes[node - 1].bootId;
      this.propose(nodeUp(node, { protocol: 2, bootId }));
    } else if (share < 70) {
      const pgs = about((pg) => pg.target.includes(node) && !pg.inSync.includes(node));
      this.propose({ kind: "start-joining", pool: 2, pgs, node, incarnation });
    } else if (share < 85) {
      const pgs = about((pg) => pg.joining.includes(node));
      const basedOnEpoch = map.epoch;
      this.propose({ kind: "in-sync", pool: 2, pgs, node, incarnation, basedOnEpoch });
    } else if (share < 88) {
      const pgs = about((pg) => pg.unclean.includes(node));
      this.propose({ kind: "drop-unclean", pool: 2, pgs, node });
    } else if (share < 91) {
      this.propose({ kind: "unsettle", pool: 2, pgs: about(() => true) });
    } else if (share < 95) {
      const pgs = about((pg) => pg.unsettled);
      this.propose({ kind: "settled", pool: 2, pgs, node, incarnation });
    } else if (share < 96) this.propose({ kind: "trim", pool: 2, pgs: about(() => true) });
    else if (share < 97) {
      const target = random.shuffle([1, 2, 3, 4]).slice(0, 2);
      const changes = [[random.below(this.groups.length), target]] as const;
      const basedOnTargetsEpoch = map.targetsEpoch;
      this.propose({ kind: "set-targets", pool: 2, basedOnTargetsEpoch, changes });
    } else this.propose(!isCalm && random.chance(0.3) ? CANCEL : FLATTEN);
  }
}

Deno.test("however nodes come and go, the parent is cut off only where nobody lacks anything, or could in the end", () => {
  let cuts = 0, refusedLate = 0;
  for (let seed = 1; seed <= 150; seed++) {
    const nodes = new Nodes(seed);
    for (let step = 0; step < 600 && nodes.cuts === 0; step++) {
      try {
        nodes.step();
      } catch (error) {
        throw new Error(`seed ${seed} step ${step}: ${(error as Error).message}`, { cause: error });
      }
    }
    cuts += nodes.cuts;
    refusedLate += nodes.refusedLate;
  }
  assertEquals([cuts > 30, refusedLate > 100], [true, true], `${cuts}, ${refusedLate}`);
});
