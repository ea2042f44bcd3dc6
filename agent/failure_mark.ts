/**
 * The marks that a failed store, or one that was torn, leaves for the next start of the agent on this machine.
 *
 * After a failed sync the kernel may have dropped what it had taken. Normally an agent that starts again on a machine that has
 * not been rebooted has lost nothing: the page cache outlives it. After such a failure that is not so, nor when a store was
 * opened of which something could not be read, or was damaged; and what the agent says of the machine's run (`bootId`) must be
 * another one. The mark lies in the runtime directory, which the
 * system empties when it starts.
 *
 * @module
 */
import { join } from "node:path";
import { toHex } from "./base/bytes.ts";

/** Name of the file that says how far data paths must have come. */
const COUNT_NAME = "data-paths";
/** Name of the mark in the runtime directory. */
const NAME = "store-failed";
/** Name of the file that says that the end of a store's log was torn. */
const TORN_NAME = "store-torn";
/** Bytes of chance in a mark. */
const MARK_BYTES = 6;

/**
 * Leaves a mark, another one each time.
 *
 * @throws what the system says when the file cannot be written
 */
export function markFailure(runDir: string): void {
  const mark = crypto.getRandomValues(new Uint8Array(MARK_BYTES));
  Deno.writeTextFileSync(join(runDir, NAME), toHex(mark));
}

/**
 * Notes that data paths were left behind: whatever is there at the next start, one of them must have come this far.
 *
 * @param nodeId whose paths they are
 * @param count of changes, see `paths/record.ts`
 * @throws what the system says when the file cannot be written
 */
export function noteLeastCount(runDir: string, nodeId: string, count: number): void {
  Deno.writeTextFileSync(join(runDir, COUNT_NAME), `${nodeId} ${count}`);
}

/** What was noted last of a node since the machine started; 0: nothing. */
export function leastCountOf(runDir: string, nodeId: string): number {
  try {
    const [whose, text] = Deno.readTextFileSync(join(runDir, COUNT_NAME)).split(" ");
    const count = Number(text);
    return whose === nodeId && Number.isSafeInteger(count) && count > 0 ? count : 0;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0;
    throw error;
  }
}

/**
 * The machine's run, as other nodes are told of it.
 *
 * @param kernelBootId of `/proc/sys/kernel/random/boot_id`
 * @returns the same, with the mark of the last failure since, if there was one
 */
export function bootIdOf(kernelBootId: string, runDir: string): string {
  let mark: string;
  try {
    mark = Deno.readTextFileSync(join(runDir, NAME));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return kernelBootId;
    throw error;
  }
  return `${kernelBootId}+${mark.slice(0, 2 * MARK_BYTES)}`;
}

/**
 * Notes that blocks at the end of a store's log did not match: once that is opened nothing there tells of it any more, and the map
 * may not have heard of it before the agent ends again.
 *
 * @throws what the system says when the file cannot be written
 */
export function markTorn(runDir: string): void {
  Deno.writeTextFileSync(join(runDir, TORN_NAME), "");
}

/** Whether that was noted, and not forgotten since. */
export function isMarkedTorn(runDir: string): boolean {
  try {
    Deno.statSync(join(runDir, TORN_NAME));
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The map knows. */
export function forgetTorn(runDir: string): void {
  try {
    Deno.removeSync(join(runDir, TORN_NAME));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
