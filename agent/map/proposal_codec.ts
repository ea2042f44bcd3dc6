/**
 * Proposals as bytes, as the consensus' log and its messages carry them: MessagePack.
 *
 *     [ version 1, node, sequence, kind, { field: value, … } ]       fields sorted by name
 *
 * The kinds and their fields are those of `MapCommand`. Decoding makes sure of every type, of the size of
 * every list, and that there are no fields but the known ones; what the values may be is checked when the
 * command is applied.
 *
 * Kinds and fields are only added, and only with a level (`levels.ts`). A node that does not know one cannot
 * apply what the others apply, so the decoder says `limit` and the agent has to stop until it is upgraded.
 *
 * @module
 */

import { Packr } from "msgpackr";
import { failure, type Result, success } from "./errors.ts";
import {
  type Attributes,
  ATTRIBUTES_MAX,
  type MapCommand,
  PG_BITS_MAX,
  type Proposal,
} from "./model.ts";

/**
 * Most bytes of an encoded proposal: twice the longest sensible one, new targets for all PGs of a pool
 * (16384 of up to 20 bytes).
 */
export const PROPOSAL_BYTES_MAX = 1024 * 1024;

/** What {@linkcode encodeProposal} writes, and the newest that {@linkcode decodeProposal} reads. */
const VERSION = 1;

/** Longest text in a command; each field has a shorter limit of its own. */
const TEXT_LENGTH_MAX = 1024;

/** Longest list of texts: each has a shorter limit of its own. */
const TEXTS_LENGTH_MAX = 256;

/** Longest list in a command: every PG of a pool. */
const LIST_LENGTH_MAX = 2 ** PG_BITS_MAX;

type FieldType =
  | "number"
  | "number or null"
  | "text"
  | "boolean"
  | "numbers"
  | "texts"
  | "attributes"
  | "changes";

/** Fields of every kind of command; those that may be left out end in a question mark. */
const KINDS: { readonly [K in MapCommand["kind"]]: Readonly<Record<string, FieldType>> } = {
  "create-disk": {
    name: "text",
    sizeBytes: "number",
    nowMs: "number",
    "readOnly?": "boolean",
    "copies?": "number",
    "copiesMin?": "number or null",
    "zones?": "texts",
    "attributes?": "attributes",
    "detectZeroes?": "boolean",
  },
  "delete-disk": { name: "text", "id?": "number", "trashedMs?": "number" },
  "resize-disk": { name: "text", sizeBytes: "number", "shrink?": "boolean" },
  "rename-disk": { name: "text", newName: "text" },
  "change-disk": {
    name: "text",
    "readOnly?": "boolean",
    "copies?": "number",
    "copiesMin?": "number or null",
    "attributes?": "attributes",
    "limits?": "numbers",
    "detectZeroes?": "boolean",
  },
  "set-copies": { name: "text", "copies?": "number", "zones?": "texts" },
  "finish-copies": { pool: "number" },
  "create-snapshots": { disks: "numbers", name: "text", nowMs: "number" },
  "snapshot-taken": { id: "number", layer: "number", generation: "number" },
  "abort-snapshots": { taking: "number" },
  "delete-snapshot": { disk: "text", name: "text", "layer?": "number" },
  "change-snapshot": {
    disk: "text",
    name: "text",
    "newName?": "text",
    "isProtected?": "boolean",
  },
  "clone-disk": {
    disk: "text",
    snapshot: "text",
    name: "text",
    nowMs: "number",
    "readOnly?": "boolean",
    "attributes?": "attributes",
  },
  "rollback-disk": { disk: "text", snapshot: "text", nowMs: "number" },
  "restore-disk": { id: "number", name: "text" },
  "purge-disk": { id: "number", "deletedMs?": "number" },
  "absorbed": { node: "number", incarnation: "number", layers: "numbers" },
  "flatten-disk": { disk: "text", "cancel?": "boolean" },
  "flattened": { node: "number", incarnation: "number", layers: "numbers", epoch: "number" },
  "set-schedule": {
    disk: "text",
    name: "text",
    everyMs: "number",
    keep: "number",
    keepDaily: "number",
    keepWeekly: "number",
    keepMonthly: "number",
    nowMs: "number",
  },
  "delete-schedule": { disk: "text", name: "text" },
  "take-lease": {
    id: "number",
    node: "number",
    incarnation: "number",
    "generation?": "number",
  },
  "release-lease": {
    id: "number",
    node: "number",
    generation: "number",
    "unwritten?": "boolean",
  },
  "force-release-lease": { id: "number", generation: "number", "unwritten?": "boolean" },
  "reconciled": { id: "number", generation: "number" },
  "change-settings": {
    "copies?": "number",
    "copiesMin?": "number or null",
    "outAfterMs?": "number",
    "trustedNetwork?": "boolean",
    "trashMs?": "number",
  },
  "add-node": {
    uuid: "text",
    name: "text",
    address: "text",
    zone: "text",
    capacityBytes: "number",
    witness: "boolean",
    version: "text",
    "protocolMin?": "number",
    protocol: "number",
    bootId: "text",
    nowMs: "number",
  },
  "node-up": {
    node: "number",
    bootId: "text",
    clean: "boolean",
    "torn?": "boolean",
    address: "text",
    version: "text",
    "protocolMin?": "number",
    protocol: "number",
    capacityBytes: "number",
    "name?": "text",
    "lost?": "numbers",
    nowMs: "number",
  },
  "lose-groups": {
    node: "number",
    incarnation: "number",
    lost: "numbers",
    capacityBytes: "number",
  },
  "node-down": { node: "number", incarnation: "number", nowMs: "number" },
  "node-leave": { node: "number", incarnation: "number", nowMs: "number" },
  "drop-member": { node: "number", incarnation: "number", by: "number", nowMs: "number" },
  "set-availability": {
    node: "number",
    availability: "text",
    "basedOnTargetsEpoch?": "number",
  },
  "set-weight": { node: "number", weight: "number or null", "basedOnTargetsEpoch?": "number" },
  "set-zone": { node: "number", zone: "text", "basedOnTargetsEpoch?": "number" },
  "remove-node": {
    node: "number",
    "force?": "boolean",
    "acceptLoss?": "boolean",
    nowMs: "number",
  },
  "raise-level": { level: "number" },
  "set-voters": { voters: "numbers" },
  "drop-unclean": { pool: "number", pgs: "numbers", node: "number" },
  "unsettle": { pool: "number", pgs: "numbers" },
  "settled": { pool: "number", pgs: "numbers", node: "number", incarnation: "number" },
  "set-targets": { pool: "number", basedOnTargetsEpoch: "number", changes: "changes" },
  "start-joining": { pool: "number", pgs: "numbers", node: "number", incarnation: "number" },
  "in-sync": {
    pool: "number",
    pgs: "numbers",
    node: "number",
    incarnation: "number",
    basedOnEpoch: "number",
  },
  "trim": { pool: "number", pgs: "numbers" },
  "split-groups": { pgBits: "number" },
};

/** Plain MessagePack: no records, no extensions, smallest headers. */
const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

/**
 * Encodes a proposal.
 *
 * @param proposal of which everything is allowed that the types allow
 * @returns bytes of the caller's own, or an error with code `limit` where they would be more than
 * {@linkcode PROPOSAL_BYTES_MAX}
 */
export function encodeProposal(proposal: Proposal): Result<Uint8Array<ArrayBuffer>> {
  const { kind, ...fields } = proposal.command;
  const entries = Object.entries(fields).filter(([, value]) => value !== undefined);
  const sorted = entries.toSorted(([a], [b]) => a < b ? -1 : 1);
  const packed = packr.pack([
    VERSION,
    proposal.node,
    proposal.sequence,
    kind,
    Object.fromEntries(sorted),
    ...(proposal.id ? [proposal.id] : []),
  ]);
  if (packed.length > PROPOSAL_BYTES_MAX) {
    return failure(
      "limit",
      `a change of the map of ${packed.length} bytes is too long: ${PROPOSAL_BYTES_MAX} is the most`,
    );
  }
  // msgpackr returns a slice of its own buffer, which the next call writes again.
  return success(new Uint8Array(packed));
}

/**
 * Decodes a proposal.
 *
 * @param bytes anything; not kept
 * @returns the proposal, or an error: `corrupt` for bytes that are none, `limit` for a newer version, an
 * unknown kind or an unknown field
 */
export function decodeProposal(bytes: Uint8Array): Result<Proposal> {
  if (bytes.length > PROPOSAL_BYTES_MAX) return corrupt(`it has ${bytes.length} bytes`);
  let decoded: unknown;
  try {
    decoded = packr.unpack(bytes);
  } catch {
    return corrupt("it is not MessagePack");
  }
  if (!Array.isArray(decoded) || typeof decoded[0] !== "number") return corrupt("it is no list");
  const [version, node, sequence, kind, fields, id = 0] = decoded;
  if (Number.isInteger(version) && version > VERSION) return tooNew(`version ${version}`);
  if (version !== VERSION || decoded.length < 5 || decoded.length > 6) {
    return corrupt("its head is wrong");
  }
  if (!isCount(node) || !isCount(sequence) || !isCount(id)) {
    return corrupt("its sender is no number");
  }
  const command = readCommand(kind, fields);
  if (!command.ok) return command;
  const proposal = { node, sequence, command: command.value };
  return success(id === 0 ? proposal : { ...proposal, id });
}

/**
 * Makes sure of the types of a command.
 *
 * @param kind anything
 * @param fields anything; what is taken from it is not copied
 * @returns the command, or an error: `corrupt`, or `limit` for an unknown kind or field
 */
export function readCommand(kind: unknown, fields: unknown): Result<MapCommand> {
  if (typeof kind !== "string" || kind.length > TEXT_LENGTH_MAX) return corrupt("it has no kind");
  if (!Object.hasOwn(KINDS, kind)) return tooNew(`the kind ${JSON.stringify(kind)}`);
  if (!isPlainObject(fields)) return corrupt("it has no fields");
  const types = KINDS[kind as MapCommand["kind"]];
  const command: Record<string, unknown> = { kind };
  let left = Object.keys(fields).length;
  for (const [field, type] of Object.entries(types)) {
    const isOptional = field.endsWith("?");
    const name = isOptional ? field.slice(0, -1) : field;
    if (!Object.hasOwn(fields, name)) {
      if (isOptional) continue;
      return corrupt(`${name} of ${kind} is not there`);
    }
    if (!isOfType(fields[name], type)) return corrupt(`${name} of ${kind} is no ${type}`);
    command[name] = fields[name];
    left--;
  }
  if (left > 0) return tooNew(`a field of ${kind}`);
  // Every field that the kind has was checked against the table, which the compiler cannot follow.
  return success(command as unknown as MapCommand);
}

function isOfType(value: unknown, type: FieldType): boolean {
  switch (type) {
    case "number":
      return typeof value === "number";
    case "number or null":
      return value === null || typeof value === "number";
    case "text":
      return isText(value);
    case "texts":
      return Array.isArray(value) && value.length <= TEXTS_LENGTH_MAX && value.every(isText);
    case "boolean":
      return typeof value === "boolean";
    case "numbers":
      return isNumbers(value);
    case "attributes":
      return isAttributes(value);
    case "changes":
      return Array.isArray(value) && value.length <= LIST_LENGTH_MAX && value.every(isChange);
  }
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length <= TEXT_LENGTH_MAX;
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.length <= LIST_LENGTH_MAX &&
    value.every((each) => typeof each === "number");
}

function isChange(value: unknown): boolean {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === "number" &&
    isNumbers(value[1]);
}

function isAttributes(value: unknown): value is Attributes {
  if (!isPlainObject(value)) return false;
  const entries = Object.entries(value);
  return entries.length <= 2 * ATTRIBUTES_MAX &&
    entries.every(([, each]) => typeof each === "string");
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null &&
    Object.getPrototypeOf(value) === Object.prototype;
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function corrupt<T>(reason: string): Result<T> {
  return failure("corrupt", `a change of the map is damaged: ${reason}`);
}

function tooNew<T>(what: string): Result<T> {
  return failure(
    "limit",
    `a change of the map has ${what.slice(0, 100)}, which this Kelpie does not know`,
    "use the Kelpie that the other nodes have, or a newer one",
  );
}
