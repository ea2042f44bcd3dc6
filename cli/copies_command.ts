/**
 * `kelpie disk set --copies` and `--zones`: another number of copies for a disk that is in use, or copies in other zones. They change for
 * all disks of a family at once: they share data and places, so somebody is asked before others than the one named change, too.
 *
 * @module
 */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import type { AdminClient } from "../agent/admin_client.ts";
import type { CopiesChangeDocument, DiskDocument } from "../agent/http/documents.ts";
import { COPIES_MAX } from "../agent/map/model.ts";
import { inZonesText, moveText, type Place, zonesText } from "../agent/map/zones.ts";
import type { CommandContext } from "./context.ts";
import { printable } from "./output.ts";
import { Progress } from "./progress.ts";
import { formatDuration, plural } from "./units.ts";

/** How often is looked while something is waited for, in milliseconds. */
const LOOK_MS = 500;

/** Relatives that are named before somebody is asked; more are counted. */
const NAMED_MAX = 10;

/** The fewest copies to write with, as they stand on the command line: a number, or `auto`. */
export function copiesMinArgument(text: string): number | "auto" {
  if (text === "auto") return text;
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= COPIES_MAX) return value;
  throw new InvalidArgumentError(`It must be a whole number of 1 to ${COPIES_MAX}, or auto`);
}

/** Warns where the loss of any one node with a copy would make writes wait. */
export function warnOfFewest(
  { output }: CommandContext,
  { name, copies, copiesMin, copiesChange }: DiskDocument,
): void {
  if (copies === 1 || copiesMin < copies || copiesChange !== null) return;
  output.warn(
    `disk ${name} is written with all of its ${copies} copies or not at all: its writes wait while any of their nodes is down`,
  );
}

/** What is to become of a disk's copies; what is left out stays. */
interface WantedCopies extends Partial<Place> {
  readonly name: string;
  readonly yes: boolean;
}

/** Asks whether relatives may get the same copies, too; throws where they may not. */
export async function confirmCopies(
  { output }: CommandContext,
  client: AdminClient,
  { name, copies, zones, yes }: WantedCopies,
): Promise<void> {
  const disks = await client.disks();
  const family = disks.find((disk) => disk.name === name)?.family;
  const others = disks.filter((disk) => disk.family === family && disk.name !== name);
  if (others.length === 0) return;
  const named = others.slice(0, NAMED_MAX).map((disk) => disk.name).join(", ");
  const more = others.length > NAMED_MAX ? ` and ${others.length - NAMED_MAX} more` : "";
  const where = zones === undefined
    ? ""
    : ` ${zones.length === 0 ? "in any zone" : `in ${zonesText(zones)}`}`;
  output.confirm({
    yes,
    action: copies === undefined
      ? `keep disk ${name}${where}`
      : `give disk ${name} ${plural(copies, "copy", "copies")}${where}`,
    consequence: copies === undefined
      ? `its relatives share its data and go there, too: ${named}${more}`
      : `its relatives share its data and get as many: ${named}${more}`,
  });
}

/** Says what has come of it. */
export function sayCopies({ output }: CommandContext, disk: DiskDocument): void {
  const { name, copies, zones, zonesProblem, copiesChange } = disk;
  if (copiesChange !== null) {
    return output.say(
      `disk ${name}: ${copiesChangeText(disk, copiesChange)}; it goes on by itself, and ` +
        "'kelpie disk info' tells how far it is",
    );
  }
  const where = zones.length === 0 ? "" : ` in ${zonesText(zones)}`;
  output.say(`disk ${name} has ${plural(copies, "copy", "copies")}${where}`);
  if (zonesProblem !== null) output.warn(zonesProblem);
}

/**
 * How far a disk is on its way to other copies: `2 → 3, 37 %, about 2 min left (data is being copied to node c)`, or
 * `2 anywhere → 2 in a, b, 37 %`.
 */
export function copiesChangeText(from: Place, change: CopiesChangeDocument): string {
  const { isBack, percent, secondsLeft, waitsFor } = change;
  const back = `back to ${from.copies} ${inZonesText(from.zones)}`.trimEnd();
  return (isBack ? back : moveText(from, change)) + `, ${percent} %` +
    (secondsLeft === null ? "" : `, about ${formatDuration(secondsLeft * 1000)} left`) +
    (waitsFor === null ? "" : ` (${printable(waitsFor)})`);
}

/**
 * Waits until a disk has the copies that it is to have. A signal ends the waiting, and nothing else.
 *
 * @returns the disk then
 */
export async function awaitCopies(
  context: CommandContext,
  client: AdminClient,
  disk: DiskDocument,
): Promise<DiskDocument> {
  const { output, terminal } = context;
  const signal = terminal.interrupted();
  let found = disk;
  let progress: Progress | null = null;
  try {
    while (found.copiesChange !== null) {
      progress ??= new Progress(output, `copying ${disk.name}`, 100, "%");
      progress.update(found.copiesChange.percent);
      await terminal.sleep(LOOK_MS, signal);
      signal.throwIfAborted();
      found = await client.disk(disk.name);
    }
    return found;
  } finally {
    progress?.end();
  }
}
