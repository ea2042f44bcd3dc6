/**
 * How commands show what disks and snapshots take: see `agent/map/space.ts`.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { SpaceDocument } from "../agent/http/documents.ts";

/** Headings for {@linkcode spaceCells}. */
export const SPACE_COLUMNS = [">USED", ">SHARED", ">EXCLUSIVE"] as const;

/** What the columns mean, for `--help`. */
export const SPACE_HELP =
  "Space is that of this node's copies: USED is all that is read for it (a disk's with its snapshots), " +
  "EXCLUSIVE what nothing else needs, which comes back when this one is deleted for good, SHARED the rest.";

/** Used, shared, exclusive; `?` where it is not known. */
export function spaceCells(space: SpaceDocument | null): string[] {
  if (space === null) return SPACE_COLUMNS.map(() => "?");
  return [space.usedBytes, space.sharedBytes, space.exclusiveBytes].map(formatSize);
}

/** The same in words. */
export function spaceText(space: SpaceDocument | null): string {
  if (space === null) return "not known: the store did not answer in time";
  const [used, shared, exclusive] = spaceCells(space);
  return `${used} with its snapshots: ${exclusive} exclusive, ${shared} shared`;
}
