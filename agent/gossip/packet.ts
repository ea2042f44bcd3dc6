/**
 * Gossip packets, version 1: what is inside a sealed datagram. MessagePack arrays, positions only.
 *
 *     packet    [ 1, kind, [ sender uuid, run, incarnation ], [ field, … ], [ entry, … ] ]
 *
 *     kind 0    ping            [ number, target uuid ]
 *          1    ack             [ number, subject uuid, its run, its incarnation ]
 *          2    ping request    [ number, target uuid, target address ]
 *          3    nack            [ number ]
 *          4    news            [ ]
 *          5    digest          [ 16 × u32 in one binary ]
 *          6    digest answer   [ the same ]                       entries: slice of where the digests differ
 *          7    slice           [ ]                                entries: the same from the other side
 *          8    pull            [ number, after uuid or nothing ]
 *          9    pull answer     [ number, after, next uuid or nothing ]   entries: all members behind `after`
 *
 *     entry     [ 0 alive,   uuid, run, incarnation ] or [ 0, uuid, run, incarnation, address, meta ]
 *               [ 1 suspect, uuid, run, incarnation, [ [ accuser uuid, asked, nacks ], … ] ]
 *               [ 2 dead,    uuid, run, incarnation, uuid of who confirmed it ]
 *               [ 3 left,    uuid, run, incarnation ]
 *
 * A uuid is 16 bytes. Claims about a member are ordered by (run, incarnation), in this order:
 *
 *     run            2 × agent incarnation, the number that the map gave to this start of the agent, or one more than
 *                    that of an earlier start while the agent has no number yet
 *     incarnation    raised by the member itself, to refute and to tell news about itself
 *
 * so a restart wins over everything that is said about the time before it, and an agent without a number is never
 * taken for an earlier start of itself.
 *
 * Invariant: decoding never throws; what it gives is within the bounds below, and none of it is a view of what came.
 *
 * @module
 */
import { decodeMeta, type MemberMeta, META_BYTES_MAX } from "./meta.ts";
import { PackReader, PackWriter } from "./pack.ts";

/** Version that is written, and the only one that is read. */
export const PACKET_VERSION = 1;

/** Largest packet: what a sealed datagram holds (`wire/datagram_seal.ts`). */
export const PACKET_BYTES_MAX = 1320;

/** Longest `host:port`. */
export const ADDRESS_BYTES_MAX = 128;

/** Largest agent incarnation: the map counts with 32 bits. */
export const AGENT_INCARNATION_MAX = 0xffff_ffff;

/** Largest run, see above. */
const RUN_MAX = 2 * AGENT_INCARNATION_MAX + 1;

/** Largest incarnation: far more than refutations of a lifetime, far less than where + 1 fails. */
export const INCARNATION_MAX = 2 ** 48;

/** Members that accuse one suspect, as far as they are kept and passed on. */
export const ACCUSATIONS_MAX = 5;

/** Parts of the digest, by the first digit of the uuid. */
export const DIGEST_PARTS = 16;

/** Most helpers and nacks that an accusation tells of. */
const HELPERS_MAX = 255;

/** The smallest entry has 21 bytes, so this many never fit. */
const ENTRIES_MAX = 64;

const NOTHING = new Uint8Array(0);

/** What is known about a member, in the order of their numbers on the wire. */
export const MEMBER_STATES = ["alive", "suspect", "dead", "left"] as const;
/** See {@linkcode MEMBER_STATES}. */
export type MemberState = typeof MEMBER_STATES[number];

/** Kinds of packets. Only appended to. */
export const enum PacketKind {
  Ping = 0,
  Ack = 1,
  PingRequest = 2,
  Nack = 3,
  News = 4,
  Digest = 5,
  DigestAnswer = 6,
  Slice = 7,
  Pull = 8,
  PullAnswer = 9,
}

/** Why a member is suspected, by one that suspects it. */
export interface Accusation {
  /** Who probed in vain; 32 hex digits. */
  readonly by: string;
  /** Members that were asked to probe for it, after the direct probe had failed. */
  readonly asked: number;
  /** How many of them said that they got no answer either; the others said nothing. */
  readonly nacks: number;
}

/** A claim about a member. */
export interface Entry {
  readonly state: MemberState;
  readonly uuid: string;
  readonly run: number;
  readonly incarnation: number;
  /** Alive: where it is, null where the sender does not know that of this incarnation. */
  readonly content: Content | null;
  /** Suspect: by whom; one at least. */
  readonly accusations: readonly Accusation[];
  /** Dead: who confirmed it; else "". */
  readonly by: string;
}

/** What a member says about itself. Shared by all that know it, never changed. */
export interface Content {
  readonly address: string;
  readonly meta: MemberMeta;
  /** `meta` as the member encoded it. */
  readonly metaBytes: Uint8Array;
}

/** A packet that was read. Fields that its kind does not have are 0, "" and empty. */
export interface Packet {
  readonly kind: PacketKind;
  readonly from: string;
  readonly run: number;
  readonly incarnation: number;
  readonly number: number;
  /** Ping, ping request: who is to answer, "" for anybody. Ack: who has answered. */
  readonly subject: string;
  readonly subjectRun: number;
  readonly subjectIncarnation: number;
  /** Ping request: where the subject is. */
  readonly address: string;
  readonly digest: Uint8Array;
  /** Pull: the slice that begins behind this uuid, and behind which the next one begins; "" for none. */
  readonly after: string;
  readonly next: string;
  readonly entries: readonly Entry[];
}

/** Why a packet was refused. */
export type PacketFault = "tooLong" | "version" | "malformed";

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));
const UUID = /^[0-9a-f]{32}$/;
const ADDRESS = /^(?:\[[0-9a-zA-Z:.%]+\]|[0-9a-zA-Z._-]+):([0-9]{1,5})$/;

/** True for 32 lower-case hex digits. */
export function isUuid(text: string): boolean {
  return UUID.test(text);
}

/** True for `host:port` and `[IPv6]:port` of at most {@linkcode ADDRESS_BYTES_MAX} bytes. */
export function isAddress(text: string): boolean {
  if (text.length > ADDRESS_BYTES_MAX) return false;
  const port = Number(ADDRESS.exec(text)?.[1] ?? 0);
  return port >= 1 && port <= 65535;
}

/** The 16 bytes of a uuid; none for "". */
export function uuidBytes(uuid: string): Uint8Array {
  if (uuid === "") return NOTHING;
  const bytes = new Uint8Array(16);
  for (let at = 0; at < 16; at += 4) {
    const word = parseInt(uuid.slice(2 * at, 2 * at + 8), 16);
    for (let i = 0; i < 4; i++) bytes[at + i] = word >>> (24 - 8 * i);
  }
  return bytes;
}

function uuidText(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += HEX[byte];
  return text;
}

/** Below zero where the first claim is older than the second, zero where both are of one incarnation. */
export function compareClaims(
  a: { run: number; incarnation: number },
  b: { run: number; incarnation: number },
): number {
  return a.run - b.run || a.incarnation - b.incarnation;
}

/**
 * Encodes an entry, to be put into packets by {@linkcode PackWriter.raw}.
 *
 * @returns bytes of the caller's own, at most 512
 */
export function encodeEntry(entry: Entry): Uint8Array<ArrayBuffer> {
  const { state, content } = entry;
  const writer = entryWriter;
  const isFull = state === "alive" && content !== null;
  writer.array(isFull ? 6 : state === "suspect" || state === "dead" ? 5 : 4);
  writer.uint(MEMBER_STATES.indexOf(state));
  writer.binary(uuidBytes(entry.uuid));
  writer.uint(entry.run);
  writer.uint(entry.incarnation);
  if (isFull) {
    writer.text(content.address);
    writer.binary(content.metaBytes);
  } else if (state === "suspect") {
    writer.array(entry.accusations.length);
    for (const { by, asked, nacks } of entry.accusations) {
      writer.array(3);
      writer.binary(uuidBytes(by));
      writer.uint(Math.min(asked, HELPERS_MAX));
      writer.uint(Math.min(nacks, HELPERS_MAX));
    }
  } else if (state === "dead") writer.binary(uuidBytes(entry.by));
  return writer.take();
}

const entryWriter = new PackWriter(512);

/**
 * Reads a packet.
 *
 * @param bytes from a holder of the secret, who may still be wrong; not kept
 * @returns the packet, or why it is none
 */
export function decodePacket(bytes: Uint8Array): Packet | PacketFault {
  if (bytes.length > PACKET_BYTES_MAX) return "tooLong";
  const reader = new PackReader(bytes);
  const isPacket = reader.array() === 5;
  const version = reader.uint();
  if (!isPacket || reader.isFailed) return "malformed";
  if (version !== PACKET_VERSION) return "version";
  const packet = readPacket(reader);
  return reader.isFailed || !reader.isAtEnd ? "malformed" : packet;
}

function readPacket(reader: PackReader): Packet {
  const kind = reader.uint(PacketKind.PullAnswer);
  expectArray(reader, 3);
  const packet = {
    kind,
    from: readUuid(reader),
    run: reader.uint(RUN_MAX),
    incarnation: reader.uint(INCARNATION_MAX),
    number: 0,
    subject: "",
    subjectRun: 0,
    subjectIncarnation: 0,
    address: "",
    digest: NOTHING,
    after: "",
    next: "",
    entries: [] as Entry[],
  };
  expectArray(reader, FIELDS[kind]);
  const isNumbered = kind <= PacketKind.Nack || kind >= PacketKind.Pull;
  if (isNumbered) packet.number = reader.uint(0xffff_ffff);
  switch (kind) {
    case PacketKind.Ping:
      packet.subject = readUuid(reader, true);
      break;
    case PacketKind.Ack:
      packet.subject = readUuid(reader);
      packet.subjectRun = reader.uint(RUN_MAX);
      packet.subjectIncarnation = reader.uint(INCARNATION_MAX);
      break;
    case PacketKind.PingRequest:
      packet.subject = readUuid(reader);
      packet.address = readAddress(reader);
      break;
    case PacketKind.Digest:
    case PacketKind.DigestAnswer:
      packet.digest = reader.binary(4 * DIGEST_PARTS).slice();
      if (packet.digest.length !== 4 * DIGEST_PARTS) reader.fail();
      break;
    case PacketKind.Pull:
      packet.after = readUuid(reader, true);
      break;
    case PacketKind.PullAnswer:
      packet.after = readUuid(reader, true);
      packet.next = readUuid(reader, true);
      break;
  }
  const count = reader.array();
  if (count > ENTRIES_MAX) reader.fail();
  for (let i = 0; i < count && !reader.isFailed; i++) packet.entries.push(readEntry(reader));
  return packet;
}

/** How many fields each kind has. */
const FIELDS: readonly number[] = [2, 4, 3, 1, 0, 1, 1, 0, 2, 3];

function readEntry(reader: PackReader): Entry {
  const count = reader.array();
  const state = MEMBER_STATES[reader.uint(MEMBER_STATES.length - 1)];
  const uuid = readUuid(reader);
  const run = reader.uint(RUN_MAX);
  const incarnation = reader.uint(INCARNATION_MAX);
  let content: Content | null = null;
  let accusations: Accusation[] = [];
  let by = "";
  const isFull = state === "alive" && count === 6;
  if (isFull) content = readContent(reader);
  else if (state === "suspect") accusations = readAccusations(reader, uuid);
  else if (state === "dead") by = readUuid(reader);
  const expected = isFull ? 6 : state === "suspect" || state === "dead" ? 5 : 4;
  if (count !== expected) reader.fail();
  return { state, uuid, run, incarnation, content, accusations, by };
}

function readContent(reader: PackReader): Content | null {
  const address = readAddress(reader);
  const metaBytes = reader.binary(META_BYTES_MAX).slice();
  const meta = decodeMeta(metaBytes);
  if (meta === null) reader.fail();
  return meta === null ? null : { address, meta, metaBytes };
}

function readAccusations(reader: PackReader, uuid: string): Accusation[] {
  const count = reader.array();
  if (count < 1 || count > ACCUSATIONS_MAX) reader.fail();
  const accusations: Accusation[] = [];
  for (let i = 0; i < count && !reader.isFailed; i++) {
    expectArray(reader, 3);
    const by = readUuid(reader);
    if (by === uuid) reader.fail();
    accusations.push({ by, asked: reader.uint(HELPERS_MAX), nacks: reader.uint(HELPERS_MAX) });
  }
  return accusations;
}

function expectArray(reader: PackReader, count: number): void {
  if (reader.array() !== count) reader.fail();
}

function readUuid(reader: PackReader, mayBeEmpty = false): string {
  const bytes = reader.binary(16);
  if (bytes.length !== 16 && !(mayBeEmpty && bytes.length === 0)) reader.fail();
  return uuidText(bytes);
}

function readAddress(reader: PackReader): string {
  const address = reader.text(ADDRESS_BYTES_MAX);
  if (!reader.isFailed && !isAddress(address)) reader.fail();
  return address;
}
