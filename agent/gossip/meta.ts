/**
 * What a member tells about itself beside its address: a MessagePack map of at most {@linkcode META_BYTES_MAX} bytes.
 *
 *     { name, zone, version: text, protocol, capacity, free, flags: unsigned }
 *
 * Members pass the bytes on as they got them, so keys that a newer version adds travel through older ones; here
 * they are passed over. Keys that are missing read as "" and 0.
 *
 * @module
 */
import { PackReader, PackWriter } from "./pack.ts";

/** Longest meta, in bytes: what the texts and numbers of today can take, and a little more. */
export const META_BYTES_MAX = 320;

/** Longest `name`, `zone` and `version`, in bytes: that of a DNS label. */
export const META_TEXT_BYTES_MAX = 63;

const encoder = new TextEncoder();
/** Never holds anything between two calls: everything is checked before the first is written. */
const metaWriter = new PackWriter(4 * META_BYTES_MAX);

/** Greatest `flags`. */
const FLAGS_MAX = 0xffff_ffff;

/** Most keys of a meta, known or not. */
const KEYS_MAX = 15;

/** What a member tells about itself. */
export interface MemberMeta {
  /** The host's name, for people. */
  readonly name: string;
  /** Failure zone; "" is a zone of its own. */
  readonly zone: string;
  /** Version of Kelpie, for people. */
  readonly version: string;
  /** Newest protocol that it speaks. */
  readonly protocol: number;
  /** Size of its store in bytes. */
  readonly capacityBytes: number;
  /** Bytes of it that are free. */
  readonly freeBytes: number;
  /** Bits whose meaning is the caller's; 32 of them. */
  readonly flags: number;
}

/** The meta of a member that told nothing. */
export const EMPTY_META: MemberMeta = {
  name: "",
  zone: "",
  version: "",
  protocol: 0,
  capacityBytes: 0,
  freeBytes: 0,
  flags: 0,
};

/**
 * Encodes a meta.
 *
 * @returns bytes of the caller's own
 * @throws {RangeError} when a text is longer than {@linkcode META_TEXT_BYTES_MAX} or a number is not whole, below zero
 * or above 2^53 − 1 (`flags`: 2^32 − 1): the caller checks its configuration first
 *
 * @example
 * ```ts
 * import { decodeMeta, EMPTY_META, encodeMeta } from "./meta.ts";
 *
 * const bytes = encodeMeta({ ...EMPTY_META, name: "host-1" });
 * console.assert(decodeMeta(bytes)?.name === "host-1");
 * ```
 */
export function encodeMeta(meta: MemberMeta): Uint8Array<ArrayBuffer> {
  const writer = metaWriter;
  const texts: [string, string][] = [
    ["name", meta.name],
    ["zone", meta.zone],
    ["version", meta.version],
  ];
  const numbers: [string, number][] = [
    ["protocol", meta.protocol],
    ["capacity", meta.capacityBytes],
    ["free", meta.freeBytes],
    ["flags", meta.flags],
  ];
  for (const [key, text] of texts) {
    if (encoder.encode(text).length > META_TEXT_BYTES_MAX) {
      throw new RangeError(`gossip: ${key} '${text}' is longer than ${META_TEXT_BYTES_MAX} bytes`);
    }
  }
  for (const [key, value] of numbers) {
    const most = key === "flags" ? FLAGS_MAX : Number.MAX_SAFE_INTEGER;
    if (!Number.isInteger(value) || value < 0 || value > most) {
      throw new RangeError(`gossip: ${key} ${value} is not a whole number from 0 to ${most}`);
    }
  }
  writer.map(texts.length + numbers.length);
  for (const [key, text] of texts) {
    writer.text(key);
    writer.text(text);
  }
  for (const [key, value] of numbers) {
    writer.text(key);
    writer.uint(value);
  }
  return writer.take();
}

/**
 * Decodes a meta.
 *
 * @param bytes from a peer; not kept
 * @returns null when the bytes are none
 */
export function decodeMeta(bytes: Uint8Array): MemberMeta | null {
  if (bytes.length > META_BYTES_MAX) return null;
  const reader = new PackReader(bytes);
  const meta: { -readonly [Key in keyof MemberMeta]: MemberMeta[Key] } = { ...EMPTY_META };
  const count = reader.map();
  if (count > KEYS_MAX) return null;
  for (let i = 0; i < count && !reader.isFailed; i++) {
    const key = reader.text(META_TEXT_BYTES_MAX);
    if (key === "name") meta.name = reader.text(META_TEXT_BYTES_MAX);
    else if (key === "zone") meta.zone = reader.text(META_TEXT_BYTES_MAX);
    else if (key === "version") meta.version = reader.text(META_TEXT_BYTES_MAX);
    else if (key === "protocol") meta.protocol = reader.uint();
    else if (key === "capacity") meta.capacityBytes = reader.uint();
    else if (key === "free") meta.freeBytes = reader.uint();
    else if (key === "flags") meta.flags = reader.uint(FLAGS_MAX);
    else reader.skip();
  }
  return reader.isFailed || !reader.isAtEnd ? null : meta;
}
