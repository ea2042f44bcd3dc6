/**
 * What the agent knows of where a disk or a snapshot holds data.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { CommandError, ExitCode } from "./output.ts";

/** All extents of a disk or a snapshot, one answer after the other. */
export async function* extents(
  client: AdminClient,
  disk: string,
  question: { readonly snapshot?: string; readonly since?: string },
  sizeBytes: number,
) {
  for (let at = 0; at < sizeBytes;) {
    const range = { offsetBytes: at, lengthBytes: sizeBytes - at, ...question };
    const answer = await client.diskExtents(disk, range);
    if (answer.extents.length === 0) {
      throw new CommandError(ExitCode.System, `the agent does not serve disk ${disk}`, {
        hint: "try again in a moment",
      });
    }
    for (const { lengthBytes, state } of answer.extents) {
      yield { offsetBytes: at, lengthBytes, state };
      at += lengthBytes;
    }
  }
}
