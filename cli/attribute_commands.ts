/**
 * `kelpie disk set`: what can be changed about a disk while guests use it. Attributes of disks are notes of their users: pairs of a key
 * and a value.
 *
 * @module
 */
import { InvalidArgumentError, Option } from "@commander-js/extra-typings";
import type { DiskDocument } from "../agent/http/documents.ts";
import { checkAttributes } from "../agent/map/fields.ts";
import { COPIES_MAX } from "../agent/map/model.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  zonesArgument,
} from "./context.ts";
import {
  awaitCopies,
  confirmCopies,
  copiesMinArgument,
  sayCopies,
  warnOfFewest,
} from "./copies_command.ts";
import { CommandError, ExitCode, printable } from "./output.ts";

/** An attribute as people write it: `KEY=VALUE`. */
export interface Pair {
  readonly key: string;
  /** "": it is not there, or shall go. */
  readonly value: string;
}

/** Adds `set` to `kelpie disk`. */
export function addAttributeCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("set")
    .summary("change a property of a disk, or note something about it")
    .description(
      "Sets properties of a disk, also while a guest uses it, and attributes: notes of yours, such as whose it is. KEY= takes " +
        "one away; 'kelpie disk list --where KEY=VALUE' finds disks by them.",
    )
    .argument("<name>", "the disk", diskArgument)
    .argument("[attribute...]", "KEY=VALUE, or KEY= to take it away", pairsArgument)
    .addOption(
      new Option(
        "--detect-zeroes <state>",
        "blocks of zeros that guests write are kept as holes, which take no space",
      ).choices(["on", "off"]),
    )
    .option(
      "--copies <count>",
      "on so many nodes, or on all where there are fewer: its data is copied, or dropped, while it is used",
      countArgument({ min: 1, max: COPIES_MAX }),
    )
    .option(
      "--copies-min <count>",
      "writes wait while there are fewer complete copies: a number, or auto (a majority; 1 of 2)",
      copiesMinArgument,
    )
    .option(
      "--zones <zones>",
      "only on nodes of these zones, such as a,b, or any: its data is moved while it is used",
      zonesArgument,
    )
    .option("--wait", "with --copies or --zones: until all copies are there")
    .option("--yes", "do not ask, where other disks get other copies, too")
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk set web owner=anna tier=gold",
        "kelpie disk set web tier=",
        "kelpie disk set web --detect-zeroes on",
        "kelpie disk set web --copies 3 --wait",
        "kelpie disk set db --zones rack-1,rack-2 --copies 2",
      ),
    )
    .action(async (name, attributes, options) => {
      const { json, detectZeroes, copies, copiesMin, zones, wait = false, yes = false } = options;
      // Without any, commander gives an empty list.
      const pairs: readonly Pair[] = attributes ?? [];
      const isPlaced = copies !== undefined || zones !== undefined;
      const isNothing = [detectZeroes, copiesMin].every((each) => each === undefined) && !isPlaced;
      if (pairs.length === 0 && isNothing) {
        throw new CommandError(ExitCode.Usage, "nothing is to be set", {
          hint: "name attributes as KEY=VALUE, or an option",
        });
      }
      if (wait && !isPlaced) {
        throw new CommandError(ExitCode.Usage, "--wait goes with --copies or --zones", {
          hint: "everything else is done at once",
        });
      }
      using client = context.client();
      if (isPlaced) await confirmCopies(context, client, { name, copies, zones, yes });
      const setAttributes = Object.fromEntries(
        pairs.map(({ key, value }) => [key, value === "" ? null : value]),
      );
      let changed = await client.changeDisk(name, {
        ...(copies === undefined ? {} : { copies }),
        ...(zones === undefined ? {} : { zones }),
        ...(copiesMin === undefined ? {} : { copiesMin: copiesMin === "auto" ? null : copiesMin }),
        ...(pairs.length === 0 ? {} : { setAttributes }),
        ...(detectZeroes === undefined ? {} : { detectZeroes: detectZeroes === "on" }),
      });
      if (wait) changed = await awaitCopies(context, client, changed);
      if (json) return context.output.json(changed);
      if (isPlaced) sayCopies(context, changed);
      if (copiesMin !== undefined) {
        context.output.say(`disk ${name}: writes wait with fewer than ${changed.copiesMin} copies`);
      }
      if (copiesMin !== undefined || copies !== undefined) warnOfFewest(context, changed);
      if (detectZeroes !== undefined) {
        context.output.say(`disk ${name}: detect-zeroes is ${detectZeroes}`);
      }
      if (pairs.length > 0) {
        context.output.say(`disk ${name}: ${attributesText(changed) || "no attributes"}`);
      }
    });
}

/** `owner=anna, tier=gold`, or "". */
function attributesText({ attributes }: DiskDocument): string {
  return Object.entries(attributes).map(([key, value]) => `${key}=${printable(value)}`).join(", ");
}

/** An attribute on the command line, after those before it; of two with the same key the last one counts. */
export function pairsArgument(text: string, previous: Pair[] | undefined): Pair[] {
  const at = text.indexOf("=");
  if (at < 0) {
    throw new InvalidArgumentError(
      `${JSON.stringify(text)} is no attribute\nwrite KEY=VALUE, such as owner=anna`,
    );
  }
  const [key, value] = [text.slice(0, at), text.slice(at + 1)];
  const error = checkAttributes({ [key]: value });
  if (error !== null) {
    throw new InvalidArgumentError(
      error.hint === undefined ? error.message : `${error.message}\n${error.hint}`,
    );
  }
  return [...previous ?? [], { key, value }];
}

/** Whether a disk has all of these attributes; an empty value stands for one that it has not. */
export function hasAttributes({ attributes }: DiskDocument, pairs: readonly Pair[]): boolean {
  return pairs.every(({ key, value }) => (attributes[key] ?? "") === value);
}
