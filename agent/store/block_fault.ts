/**
 * Why a block cannot be returned.
 *
 * @module
 */

/** See the head of the file. */
export const enum BlockFault {
  /** The disk cannot read it, or not the header with its checksum. */
  Unread = 0,
  /** It does not match its checksum. */
  Mismatch = 1,
  /** Nobody knows its checksum: what the disk has in the place of its record's header is none that belongs there. */
  NoHeader = 2,
}

const MESSAGES: readonly string[] = [
  "the disk cannot read it",
  "its checksum does not match",
  "the header with its checksum is not there: it is damaged, or the disk has lost a write",
];

/** What to tell of it. */
export function faultMessage(fault: BlockFault): string {
  return MESSAGES[fault];
}
