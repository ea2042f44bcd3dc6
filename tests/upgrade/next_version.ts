/**
 * The next version of Kelpie: a copy of this source that speaks one level more, for tests of upgrades.
 *
 * It is made as a release would be made (`agent/base/levels.ts` says how), by changing lines of the copy; the product has no switch for
 * it.
 *
 * What is new in it:
 *
 * | what                                                          | when            |
 * | ------------------------------------------------------------- | --------------- |
 * | a key of gossip's meta, a field of reports, a feature of      | always: older   |
 * | connections, a kind of control message                        | ones pass over  |
 * | a command, `set-motto`, which the leader gives once           | at level 3 only |
 * | a field of the map, in version 5 of its encoding              | at level 3 only |
 *
 * `motto` shows that level 3 is in use: it is among the notes of `GET /v1/cluster`, and in the map of a `Control` of this version.
 *
 * @module
 */
import type { ClusterMap } from "../../agent/map/map.ts";
import { type Changes, SourceCopy } from "./source_copy.ts";

/** Of its program. */
export const NEXT_VERSION = "0.3.0";
/** The newest level that it speaks. */
export const NEXT_LEVEL = 3;
/** What its leader says, once it may. */
export const NEXT_MOTTO = "all together";

const CHANGES: Changes = {
  "agent/base/levels.ts": [
    ["export const LEVEL_MAX = 2;", `export const LEVEL_MAX = ${NEXT_LEVEL};`],
  ],
  "agent/version.ts": [
    ['export const VERSION = "0.2.0";', `export const VERSION = "${NEXT_VERSION}";`],
  ],
  // A command.
  "agent/map/levels.ts": [
    [
      "const LEVELS: Readonly<Record<string, number>> = {",
      `const LEVELS: Readonly<Record<string, number>> = {\n  "set-motto": ${NEXT_LEVEL},`,
    ],
  ],
  "agent/map/proposal_codec.ts": [
    ['  "raise-level": {', '  "set-motto": { motto: "text" },\n  "raise-level": {'],
  ],
  "agent/map/map.ts": [
    [
      "  switch (command.kind) {",
      '  if (command.kind === "set-motto") {\n' +
      "    const next = { ...map, motto: command.motto, epoch: map.epoch + 1 };\n" +
      "    return { ok: true, value: { map: next, effects: [] } };\n" +
      "  }\n" +
      "  switch (command.kind) {",
    ],
  ],
  "agent/control/leader.ts": [
    [
      "    const level = commonLevel(map);",
      '    if (map.level >= 3 && (map.motto ?? "") === "") {\n' +
      `      commands.push({ kind: "set-motto", motto: "${NEXT_MOTTO}" });\n` +
      "    }\n" +
      "    const level = commonLevel(map);",
    ],
  ],
  // A field of the map, and a version of its encoding.
  "agent/map/map_codec.ts": [
    ["export const MAP_VERSION = 4;", "export const MAP_VERSION = 5;"],
    [
      "  return level === 1 ? 2 : MAP_VERSION;",
      "  return level === 1 ? 2 : level === 2 ? 4 : MAP_VERSION;",
    ],
    [
      "  ]]);\n  if (packed.length > MAP_BYTES_MAX) {",
      '    ...(version === 5 ? [map.motto ?? ""] : []),\n' +
      "  ]]);\n  if (packed.length > MAP_BYTES_MAX) {",
    ],
    [
      "  const map = version === 1",
      "  const motto = version === 5 && Array.isArray(decoded[2]) ? decoded[2].pop() : undefined;\n" +
      "  const map = version === 1",
    ],
    [
      '  if (map === null) return corrupt("a field has the wrong type, or too many entries");',
      '  if (map === null) return corrupt("a field has the wrong type, or too many entries");\n' +
      "  if (motto !== undefined) map.motto = motto;",
    ],
  ],
  "agent/agent.ts": [
    [
      "      notes: this.#node.joinNote === null ? [] : [this.#node.joinNote],",
      "      notes: map.motto === undefined ? [] : [`the motto is: ${map.motto}`],",
    ],
  ],
  // What older ones pass over, always.
  "agent/gossip/meta.ts": [
    [
      '    ["protocol", meta.protocol],',
      '    ["protocol", meta.protocol],\n    ["pulse", 7],',
    ],
  ],
  "agent/control/messages.ts": [
    ["  if (!isMore) return [];\n", ""],
    [
      "    ...(hasOtherLog || io !== null || flattening !== null ? [hasOtherLog] : []),\n" +
      "    ...(io !== null || flattening !== null ? [io === null ? null : ioFields(io)] : []),\n" +
      "    ...(flattening !== null ? [flatteningFields(flattening)] : []),\n  ];",
      "    hasOtherLog,\n    io === null ? null : ioFields(io),\n" +
      '    flattening === null ? null : flatteningFields(flattening),\n    "a field that is new",\n  ];',
    ],
    [
      "  switch (message.kind) {\n    case ControlKind.Raft:\n      return [message.kind, message.bytes];",
      "  switch (message.kind) {\n    case 99:\n      return [99, { what: 1 }];\n" +
      "    case ControlKind.Raft:\n      return [message.kind, message.bytes];",
    ],
  ],
  "agent/control/control.ts": [
    [
      "      this.#sendToLeader({ kind: ControlKind.Renew,",
      "      this.#sendToLeader({ kind: 99 });\n" +
      "      this.#sendToLeader({ kind: ControlKind.Renew,",
    ],
  ],
  "agent/cluster_node.ts": [
    [
      "    features: seals ? FEATURE.sealBulk : 0,",
      "    features: (seals ? FEATURE.sealBulk : 0) | 0x4000,",
    ],
  ],
};

/** The next version; {@linkcode SourceCopy} says what there is to do with it. */
export type NextVersion = SourceCopy;

/** Makes the next version. */
export const NextVersion = {
  /** @param mistake what else is changed, to show that it is noticed */
  make: (mistake: Changes = {}): Promise<SourceCopy> => SourceCopy.make("next", CHANGES, mistake),
};

/** What a map of the next version says, "" while it may not. */
export function mottoOf(map: ClusterMap): string {
  return (map as ClusterMap & { readonly motto?: string }).motto ?? "";
}
