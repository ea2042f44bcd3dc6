/**
 * What can go wrong with a store as a whole, coded for those who act on it, worded for those who
 * read it.
 *
 * @module
 */

/** Why a store could not be made, opened or changed. */
export type StoreErrorCode =
  /** There is no store in the file. */
  | "NOT_A_STORE"
  /** Made by a newer version. */
  | "NEWER_FORMAT"
  /** Whoever opens it does not speak what its cluster speaks. */
  | "LEVEL"
  /** Belongs to another host. */
  | "OTHER_HOST"
  /** What had been made durable cannot be read back. */
  | "DAMAGED"
  /** The disk reported an error. */
  | "IO"
  /** The store is in the wrong state for this. */
  | "BUSY"
  /** No space left for what must be written. */
  | "FULL"
  /** An argument is out of range. */
  | "INVALID"
  /** A layer is not there, or there already. */
  | "LAYER";

/** See {@linkcode StoreErrorCode}. */
export class StoreError extends Error {
  override readonly name = "StoreError";

  constructor(readonly code: StoreErrorCode, message: string) {
    super(message);
  }
}

/** Told when something slow is over: null, or why it failed. */
export type Done = (error: StoreError | null) => void;
