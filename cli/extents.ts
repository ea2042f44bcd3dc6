/**
 * What the agent knows of where a disk or a snapshot holds data.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { CommandError, ExitCode } from "./output.ts";

/** What extents have to be of, whatever has its name by now: ids, of which those that are given count. */
export interface Meant {
  readonly disk?: number;
  readonly layer?: number;
  readonly sinceLayer?: number;
}

/**
 * All extents of a disk or a snapshot, one answer after the other.
 *
 * @param meant where what they say is used on a session: that stays with its disk when others take its name
 * @throws CommandError where the name is another one's by now
 */
export async function* extents(
  client: AdminClient,
  disk: string,
  question: { readonly snapshot?: string; readonly since?: string },
  sizeBytes: number,
  meant: Meant = {},
) {
  for (let at = 0; at < sizeBytes;) {
    const range = { offsetBytes: at, lengthBytes: sizeBytes - at, ...question };
    const answer = await client.diskExtents(disk, range);
    if (answer.extents.length === 0) {
      throw new CommandError(ExitCode.System, `the agent does not serve disk ${disk}`, {
        hint: "try again in a moment",
      });
    }
    for (const key of ["disk", "layer", "sinceLayer"] as const) {
      // An agent that is older than this says nothing of it.
      if (meant[key] === undefined || answer[key] === undefined || meant[key] === answer[key]) {
        continue;
      }
      throw new CommandError(
        ExitCode.Failure,
        `disk ${disk}, or a snapshot of it, is another one by now`,
        {
          hint: "it was renamed, deleted or rolled back meanwhile: begin again",
        },
      );
    }
    for (const { lengthBytes, state } of answer.extents) {
      yield { offsetBytes: at, lengthBytes, state };
      at += lengthBytes;
    }
  }
}
