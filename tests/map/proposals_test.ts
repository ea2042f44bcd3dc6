/**
 * Proposals: exactly once, and as bytes.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  checkMap,
  type ClusterMap,
  findDisk,
  type MapCommand,
  type Proposal,
} from "../../agent/map/map.ts";
import {
  decodeProposal,
  encodeProposal,
  PROPOSAL_BYTES_MAX,
  readCommand,
} from "../../agent/map/proposal_codec.ts";
import { applyProposal } from "../../agent/map/proposals.ts";
import { addNode, atLevelTwo, clusterOf, clusterWithDisk, nodeUp, runAll } from "./cluster.ts";

function create(name: string): MapCommand {
  return { kind: "create-disk", name, sizeBytes: 512, nowMs: 0 };
}

Deno.test("a proposal is applied when its number is the next one of its node, and only then", () => {
  const map = clusterOf(2);
  const proposal: Proposal = { node: 2, sequence: 1, command: create("web") };
  const early = applyProposal(map, { ...proposal, sequence: 2 });
  assertEquals([early.outcome, early.map === map, early.effects], ["early", true, []]);
  const first = applyProposal(map, proposal);
  assertEquals(first.outcome, "applied");
  assertEquals(first.map.nodes.map((node) => node.requestSequence), [0, 1]);
  assertEquals(first.map.epoch, map.epoch + 1);
  assertEquals(first.effects.map((effect) => effect.kind), ["layer-created", "disk-added"]);
  const again = applyProposal(first.map, proposal);
  assertEquals([again.outcome, again.map === first.map, again.effects], ["repeated", true, []]);
  assertEquals(again.result.ok ? "" : again.result.error.code, "stale");
  assertEquals(applyProposal(first.map, { ...proposal, node: 3 }).outcome, "stranger");
  // The numbers of other nodes are their own.
  assertEquals(applyProposal(first.map, { ...proposal, node: 1 }).outcome, "applied");
});

Deno.test("a refused command uses its number up, and raises no epoch", () => {
  const map = clusterWithDisk(1, 1);
  const refused = applyProposal(map, { node: 1, sequence: 1, command: create("web") });
  assertEquals([refused.outcome, refused.result.ok, refused.map.epoch], [
    "applied",
    false,
    map.epoch,
  ]);
  assertEquals(refused.map.nodes[0].requestSequence, 1);
  assertEquals(refused.map.disks, map.disks);
  assertEquals(
    applyProposal(refused.map, { node: 1, sequence: 2, command: create("b") }).map.disks.length,
    2,
  );
});

Deno.test("a node that removes itself, or starts anew, keeps the count straight", () => {
  const map = clusterOf(2);
  const gone = applyProposal(map, {
    node: 2,
    sequence: 1,
    command: { kind: "remove-node", node: 2, nowMs: 0 },
  });
  assertEquals([gone.outcome, gone.map.nodes.length], ["applied", 1]);
  const up = applyProposal(map, { node: 2, sequence: 1, command: nodeUp(2) });
  assertEquals([up.map.nodes[1].incarnation, up.map.nodes[1].requestSequence], [2, 1]);
});

Deno.test("pipelined proposals over a log that repeats and reorders come out once each, in order", () => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Prng(seed);
    let map: ClusterMap = clusterOf(3);
    const names = new Map<number, string[]>([[1, []], [2, []], [3, []]]);
    for (let step = 0; step < 400; step++) {
      const node = 1 + random.below(3);
      const sequence = 1 + random.below(20);
      const command = create(`n${node}-${String(sequence).padStart(2, "0")}`);
      const { outcome, map: next } = applyProposal(map, { node, sequence, command });
      map = next;
      const done = names.get(node)!;
      const expected = sequence === done.length + 1
        ? "applied"
        : sequence <= done.length
        ? "repeated"
        : "early";
      assertEquals(outcome, expected, `seed ${seed} step ${step}`);
      if (expected === "applied") done.push((command as { name: string }).name);
    }
    const all = [...names.values()].flat().toSorted();
    assertEquals(map.disks.map((disk) => disk.name), all);
    for (const name of all) assert(findDisk(map, name) !== undefined);
  }
});

const EVERY: MapCommand[] = [
  {
    kind: "create-disk",
    name: "web",
    sizeBytes: 2 ** 50,
    nowMs: 1.7e12,
    readOnly: true,
    copies: 2,
    copiesMin: null,
    attributes: { b: "ü", a: "" },
  },
  create("x"),
  { kind: "delete-disk", name: "web" },
  { kind: "resize-disk", name: "web", sizeBytes: 512, shrink: true },
  { kind: "rename-disk", name: "web", newName: "b" },
  { kind: "change-disk", name: "web", copiesMin: 1 },
  { kind: "take-lease", id: 1, node: 2, incarnation: 3 },
  { kind: "take-lease", id: 1, node: 2, incarnation: 3, generation: 4 },
  { kind: "delete-disk", name: "web", id: 7 },
  { kind: "release-lease", id: 1, node: 2, generation: 3 },
  { kind: "force-release-lease", id: 1, generation: 3 },
  { kind: "reconciled", id: 1, generation: 3 },
  { kind: "change-settings", outAfterMs: 1, trustedNetwork: false },
  addNode(3),
  nodeUp(3, { name: "other" }),
  { kind: "node-down", node: 1, incarnation: 2, nowMs: 3 },
  { kind: "node-leave", node: 1, incarnation: 2, nowMs: 3 },
  { kind: "drop-member", node: 1, incarnation: 2, by: 3, nowMs: 4 },
  nodeUp(3, { lost: [255, 0, 1, 128] }),
  { kind: "lose-groups", node: 1, incarnation: 2, lost: [1, 0], capacityBytes: 5 },
  { kind: "set-availability", node: 1, availability: "draining" },
  { kind: "set-weight", node: 1, weight: null },
  { kind: "set-zone", node: 1, zone: "" },
  { kind: "set-availability", node: 1, availability: "in", basedOnTargetsEpoch: 3 },
  { kind: "set-weight", node: 1, weight: 2, basedOnTargetsEpoch: 3 },
  { kind: "set-zone", node: 1, zone: "a", basedOnTargetsEpoch: 3 },
  { kind: "remove-node", node: 1, nowMs: 2, force: true, acceptLoss: false },
  { kind: "set-voters", voters: [1, 2, 3] },
  { kind: "raise-level", level: 2 },
  { kind: "drop-unclean", pool: 3, pgs: [1, 2], node: 2 },
  { kind: "unsettle", pool: 3, pgs: [] },
  { kind: "settled", pool: 3, pgs: [0], node: 1, incarnation: 1 },
  { kind: "set-targets", pool: 3, basedOnTargetsEpoch: 9, changes: [[0, [1, 2]], [255, [3]]] },
  { kind: "start-joining", pool: 3, pgs: [0], node: 1, incarnation: 1 },
  { kind: "in-sync", pool: 3, pgs: [0], node: 1, incarnation: 1, basedOnEpoch: 7 },
  { kind: "trim", pool: 3, pgs: [16383] },
  { kind: "split-groups", pgBits: 8 },
  { kind: "delete-disk", name: "web", trashedMs: 1.7e12 },
  { kind: "change-disk", name: "web", limits: [1, 2, 3, 4, 5], detectZeroes: false },
  { kind: "change-settings", trashMs: 0 },
  { kind: "create-snapshots", disks: [1, 2], name: "s", nowMs: 1.7e12 },
  { kind: "snapshot-taken", id: 1, layer: 2, generation: 3 },
  { kind: "abort-snapshots", taking: 4 },
  { kind: "delete-snapshot", disk: "web", name: "s" },
  { kind: "delete-snapshot", disk: "web", name: "s", layer: 5 },
  { kind: "change-snapshot", disk: "web", name: "s", newName: "t", isProtected: true },
  { kind: "change-snapshot", disk: "web", name: "s" },
  {
    kind: "clone-disk",
    disk: "web",
    snapshot: "s",
    name: "b",
    nowMs: 1,
    readOnly: false,
    attributes: { a: "" },
  },
  { kind: "rollback-disk", disk: "web", snapshot: "s", nowMs: 1 },
  { kind: "restore-disk", id: 1, name: "b" },
  { kind: "purge-disk", id: 1 },
  { kind: "set-copies", name: "web", copies: 2 },
  { kind: "finish-copies", pool: 12 },
  { kind: "absorbed", node: 1, incarnation: 2, layers: [3, 4] },
  { kind: "flatten-disk", disk: "web" },
  { kind: "flatten-disk", disk: "web", cancel: true },
  { kind: "flattened", node: 1, incarnation: 2, layers: [3, 4], epoch: 70_000 },
  {
    kind: "set-schedule",
    disk: "web",
    name: "hourly",
    everyMs: 3_600_000,
    keep: 24,
    keepDaily: 7,
    keepWeekly: 4,
    keepMonthly: 12,
    nowMs: 1.7e12,
  },
  { kind: "delete-schedule", disk: "web", name: "hourly" },
  { ...create("z"), zones: ["b", "a"] } as MapCommand,
  { kind: "set-copies", name: "web", zones: [] },
  { kind: "set-copies", name: "web", copies: 1, zones: ["a"] },
];

/** A map in which what these commands name is there. */
function mapForEvery(): ClusterMap {
  const create = { kind: "create-disk", sizeBytes: 512, nowMs: 0, copies: 2 } as const;
  return runAll(
    atLevelTwo(clusterWithDisk(3, 3)),
    { ...create, name: "db" },
    { kind: "create-snapshots", disks: [1], name: "s", nowMs: 1 },
    { kind: "take-lease", id: 1, node: 1, incarnation: 1 },
    { kind: "create-snapshots", disks: [1, 2], name: "t", nowMs: 1 },
    { ...create, name: "old" },
    { kind: "delete-disk", name: "old", trashedMs: 5 },
  );
}

Deno.test("every kind of command comes back from its bytes, and the same bytes whatever its order", () => {
  for (const command of EVERY) {
    const proposal = { node: 65535, sequence: 2 ** 40, command };
    const bytes = unwrap(encodeProposal(proposal));
    assertEquals(unwrap(decodeProposal(bytes)), proposal);
    const { kind, ...fields } = command;
    const turned = Object.fromEntries(Object.entries(fields).toReversed());
    const other = { ...proposal, command: { ...turned, kind } as MapCommand };
    assertEquals(unwrap(encodeProposal(other)), bytes);
  }
  // The golden bytes of version 1.
  const bytes = unwrap(encodeProposal({ node: 1, sequence: 2, command: EVERY[6] }));
  assertEquals(bytes, Uint8Array.from(GOLDEN));
});

Deno.test("a proposal's own id is a sixth element, left out where there is none", () => {
  const proposal = { node: 1, sequence: 2, command: EVERY[6] };
  const bytes = unwrap(encodeProposal({ ...proposal, id: 5 }));
  assertEquals(bytes, Uint8Array.from([0x96, ...GOLDEN.slice(1), 5]));
  assertEquals(unwrap(decodeProposal(bytes)), { ...proposal, id: 5 });
  const id = 2 ** 52 - 1;
  assertEquals(unwrap(decodeProposal(unwrap(encodeProposal({ ...proposal, id })))).id, id);
  assertEquals(unwrap(encodeProposal({ ...proposal, id: 0 })), Uint8Array.from(GOLDEN));
  const wrong = Uint8Array.from([0x96, ...GOLDEN.slice(1), 0xc0]);
  assertEquals(decodeProposal(wrong).ok, false);
  assertEquals(decodeProposal(Uint8Array.from([0x97, ...GOLDEN.slice(1), 5, 5])).ok, false);
});

/** `[1, 1, 2, "take-lease", { id: 1, incarnation: 3, node: 2 }]`. */
const GOLDEN = [
  ...[0x95, 1, 1, 2, 0xaa, ...new TextEncoder().encode("take-lease"), 0x83],
  ...[0xa2, ...new TextEncoder().encode("id"), 1],
  ...[0xab, ...new TextEncoder().encode("incarnation"), 3],
  ...[0xa4, ...new TextEncoder().encode("node"), 2],
];

Deno.test("new targets for all PGs of a large pool fit into a proposal", () => {
  const changes = Array.from(
    { length: 16384 },
    (_, pg) => [pg, [60001, 60002, 60003, 4, 5]] as const,
  );
  const command: MapCommand = {
    kind: "set-targets",
    pool: 5,
    basedOnTargetsEpoch: 2 ** 33,
    changes,
  };
  assertEquals(encodeProposal({ node: 1, sequence: 1, command }).ok, true);
  const huge: MapCommand = { kind: "trim", pool: 5, pgs: Array(400_000).fill(65000) };
  assertEquals(encodeProposal({ node: 1, sequence: 1, command: huge }).ok, false);
});

Deno.test("a command of the wrong shape is refused, and an unknown kind told from damage", () => {
  const cases: [string, unknown, unknown][] = [
    ["corrupt", 7, {}],
    ["corrupt", "trim", null],
    ["corrupt", "trim", [3, []]],
    ["corrupt", "trim", { pool: 3 }],
    ["corrupt", "trim", { pool: "3", pgs: [] }],
    ["corrupt", "trim", { pool: 3, pgs: 0 }],
    ["corrupt", "trim", { pool: 3, pgs: ["0"] }],
    ["corrupt", "trim", { pool: 3, pgs: Array(16385).fill(0) }],
    ["limit", "trim", { pool: 3, pgs: [], more: 1 }],
    ["corrupt", "set-targets", { pool: 3, basedOnTargetsEpoch: 1, changes: [[0]] }],
    ["corrupt", "set-targets", { pool: 3, basedOnTargetsEpoch: 1, changes: [[0, 1]] }],
    ["corrupt", "set-targets", { pool: 3, basedOnTargetsEpoch: 1, changes: [["0", []]] }],
    ["corrupt", "set-zone", { node: 1, zone: 7 }],
    ["corrupt", "set-zone", { node: 1, zone: "z".repeat(1025) }],
    ["corrupt", "set-weight", { node: 1, weight: "1" }],
    ["corrupt", "change-disk", { name: "a", attributes: ["a"] }],
    ["corrupt", "change-disk", { name: "a", attributes: { a: 1 } }],
    ["corrupt", "change-disk", { name: "a", readOnly: 1 }],
    ["corrupt", "create-snapshots", { disks: Array(16385).fill(0), name: "s", nowMs: 1 }],
    ["corrupt", "create-snapshots", { disks: 1, name: "s", nowMs: 1 }],
    ["corrupt", "absorbed", { node: 1, incarnation: 1, layers: ["1"] }],
    ["corrupt", "flatten-disk", { disk: "web", cancel: 1 }],
    ["corrupt", "flattened", { node: 1, incarnation: 1, layers: [1] }],
    ["corrupt", "change-disk", { name: "a", limits: 5 }],
    ["corrupt", "set-copies", { name: "a", zones: "a" }],
    ["corrupt", "set-copies", { name: "a", zones: ["a", 1] }],
    ["corrupt", "set-copies", { name: "a", zones: Array(257).fill("a") }],
    ["limit", "delete-snapshot", { disk: "a", name: "s", force: true }],
    ["limit", "set-colour", {}],
    ["limit", "toString", {}],
    ["limit", "__proto__", {}],
  ];
  for (const [code, kind, fields] of cases) {
    const result = readCommand(kind, fields);
    assertEquals(
      result.ok ? "" : result.error.code,
      code,
      JSON.stringify([kind, fields]).slice(0, 80),
    );
  }
  assertEquals(decodeProposal(new Uint8Array(PROPOSAL_BYTES_MAX + 1)).ok, false);
});

Deno.test("damage of a proposal gives an error or a command that can be applied, and never throws", () => {
  const random = new Prng(3);
  const map = mapForEvery();
  assertEquals(checkMap(map), null);
  for (const command of EVERY) {
    const bytes = unwrap(encodeProposal({ node: 1, sequence: 1, command }));
    for (let round = 0; round < 300; round++) {
      const damaged = bytes.slice(
        0,
        random.below(8) === 0 ? 1 + random.below(bytes.length - 1) : undefined,
      );
      for (let count = 1 + random.below(3); count > 0; count--) {
        damaged[random.below(damaged.length)] = random.u32();
      }
      const result = decodeProposal(damaged);
      if (!result.ok) {
        assert(["corrupt", "limit"].includes(result.error.code));
        continue;
      }
      const decided = applyProposal(map, { ...result.value, node: 1, sequence: 1 });
      assertEquals(checkMap(decided.map), null);
    }
  }
});
