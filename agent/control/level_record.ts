/**
 * What a store remembers of its cluster's level, beside its membership: the first that an agent looks at, before anything
 * is written to the store. Written before the level is used.
 *
 *     META "level":  text   "1 LEVEL SINCE VERSION"
 *                            │   │     │     └ of the program that wrote it, which spoke it
 *                            │   │     └ milliseconds since 1970
 *                            │   └ what the cluster speaks
 *                            └ of this record; others begin with another number
 *
 * A store without one is of before there were levels, or belongs to nobody yet: level 1.
 *
 * @module
 */
import { levelError, type Speaker } from "../map/levels.ts";
import type { ControlError } from "../map/errors.ts";

/** Key in META. */
export const LEVEL_KEY = "level";

/** See the head of the file. */
export interface LevelRecord {
  readonly level: number;
  /** Milliseconds since 1970. */
  readonly sinceMs: number;
  /** Of the program that wrote it. */
  readonly version: string;
}

/** The level of a store that remembers none. */
export const LEVEL_UNKNOWN: LevelRecord = { level: 1, sinceMs: 0, version: "" };

const PATTERN = /^1 ([1-9]\d{0,4}) (\d{1,16}) (\S{1,64})$/;

/** The value for META; bytes of the caller's own. */
export function encodeLevel({ level, sinceMs, version }: LevelRecord): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`1 ${level} ${sinceMs} ${version}`);
}

/**
 * Reads the value in META.
 *
 * @returns null for one that this version cannot read
 */
export function decodeLevel(value: Uint8Array | undefined): LevelRecord | null {
  if (value === undefined) return LEVEL_UNKNOWN;
  const match = PATTERN.exec(new TextDecoder().decode(value));
  if (match === null) return null;
  return { level: Number(match[1]), sinceMs: Number(match[2]), version: match[3] };
}

/**
 * Whether an agent may open a store.
 *
 * @param value in META
 * @returns null when it may, else why not and what to do
 */
export function storeLevelError(
  value: Uint8Array | undefined,
  speaker: Speaker,
): ControlError | null {
  const record = decodeLevel(value);
  if (record === null) {
    return {
      code: "limit",
      message:
        `what the store remembers of its cluster's level is not for Kelpie ${speaker.version}`,
      hint: "install the version that was here before, or a newer one; nothing was changed",
    };
  }
  const known = record.version === "" ? [] : [record.version];
  return levelError(record.level, speaker, known);
}
