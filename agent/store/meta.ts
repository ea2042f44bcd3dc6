/**
 * META: small named values that are durable when they are acknowledged. The map, identities, and
 * what consensus must not forget: many small keys, several of them changed at a time, many times a
 * second.
 *
 *     requests of a turn ─▶ one META_BATCH entry, one record ─▶ applied ─▶ one sync ─▶ done
 *
 * Data of a META_BATCH entry: its items, one after the other, in the order in which they take effect
 *
 *       0  keyBytes         u16, 1…255
 *       2  flags            u16, bit 0 = removed
 *       4  valueBytes       u32, 0…65536
 *       8  key              UTF-8
 *       …  value
 *       …  zeros up to a multiple of 4
 *
 * Invariants:
 * - Setting and removing are absolute, so replaying them twice does no harm.
 * - An entry counts as a whole or not at all (its record's data is checked when it may be torn).
 *
 * @module
 */
import { META_BATCH_BYTES_MAX, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX } from "./format.ts";
import type { Window } from "../platform/platform.ts";

const ITEM_BYTES = 8;
const ITEM_REMOVED = 1;

/** A value to set, or to remove. */
export interface MetaItem {
  readonly key: string;
  /** The key in UTF-8. */
  readonly keyBytes: Uint8Array;
  /** null: removed. */
  readonly value: Uint8Array | null;
}

/** Bytes that an item takes in a META_BATCH. */
export function metaItemBytes(item: MetaItem): number {
  return padded(ITEM_BYTES + item.keyBytes.length + (item.value?.length ?? 0));
}

function padded(bytes: number): number {
  return Math.ceil(bytes / 4) * 4;
}

/**
 * Lays an item out at arena offset `at`.
 *
 * @returns bytes written, see {@linkcode metaItemBytes}
 */
export function encodeMetaItem(window: Window, at: number, item: MetaItem): number {
  const { bytes, u32 } = window;
  const { keyBytes, value } = item;
  const valueBytes = value?.length ?? 0;
  const length = padded(ITEM_BYTES + keyBytes.length + valueBytes);
  u32[at + length - 4 >>> 2] = 0;
  u32[at >>> 2] = keyBytes.length | (value === null ? ITEM_REMOVED << 16 : 0);
  u32[(at >>> 2) + 1] = valueBytes;
  bytes.set(keyBytes, at + ITEM_BYTES);
  if (value !== null) bytes.set(value, at + ITEM_BYTES + keyBytes.length);
  return length;
}

/**
 * Reads the items of a META_BATCH from arena offset `at`. Trusts nothing.
 *
 * @param byteLength bytes of all items, as the entry says
 * @param items their number, as the entry says
 * @param take called for each, in order; the value is the receiver's own
 * @returns false when they are not what the entry says; some may have been taken then
 */
export function decodeMetaItems(
  window: Window,
  at: number,
  byteLength: number,
  items: number,
  take: (key: string, value: Uint8Array | null) => void,
): boolean {
  const { bytes, u32 } = window;
  const end = at + byteLength;
  if (byteLength > META_BATCH_BYTES_MAX) return false;
  for (let i = 0; i < items; i++) {
    if (at + ITEM_BYTES > end) return false;
    const keyBytes = u32[at >>> 2] & 0xffff;
    const flags = u32[at >>> 2] >>> 16;
    const valueBytes = u32[(at >>> 2) + 1];
    if (keyBytes < 1 || keyBytes > META_KEY_BYTES_MAX || valueBytes > META_VALUE_BYTES_MAX) {
      return false;
    }
    const isRemoved = flags === ITEM_REMOVED;
    const length = padded(ITEM_BYTES + keyBytes + valueBytes);
    if (flags > ITEM_REMOVED || (isRemoved && valueBytes > 0) || at + length > end) return false;
    const value = at + ITEM_BYTES + keyBytes;
    const key = new TextDecoder().decode(bytes.slice(at + ITEM_BYTES, value));
    take(key, isRemoved ? null : bytes.slice(value, value + valueBytes));
    at += length;
  }
  return at === end;
}

/** The values, in memory. */
export class MetaTable {
  /** Most bytes that all of them take in a checkpoint, frames aside. */
  imageBytes = 0;
  readonly #values = new Map<string, Uint8Array>();

  /** Values. */
  get size(): number {
    return this.#values.size;
  }

  /** A value, or undefined. The caller must not change it. */
  get(key: string): Uint8Array | undefined {
    return this.#values.get(key);
  }

  /** Sets a value, which is the table's from now on, or removes it (null). */
  set(key: string, value: Uint8Array | null): void {
    const old = this.#values.get(key);
    if (old !== undefined) this.imageBytes -= imageBytes(key, old);
    if (value === null) {
      this.#values.delete(key);
      return;
    }
    this.#values.set(key, value);
    this.imageBytes += imageBytes(key, value);
  }

  /** All keys, sorted. */
  keys(): string[] {
    return [...this.#values.keys()].sort();
  }

  /** All keys and values as they are now. */
  entries(): [string, Uint8Array][] {
    return [...this.#values];
  }
}

/** Bytes of a value in a checkpoint, at the most: three for each UTF-16 unit of the key. */
function imageBytes(key: string, value: Uint8Array): number {
  return 12 + 3 * key.length + value.length;
}
