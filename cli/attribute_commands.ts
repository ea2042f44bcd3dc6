/**
 * `kelpie disk set`: what can be changed about a disk while guests use it. Attributes of disks are notes of their users: pairs of a key
 * and a value.
 *
 * @module
 */
import { InvalidArgumentError, Option } from "@commander-js/extra-typings";
import type { DiskDocument } from "../agent/http/documents.ts";
import { checkAttributes } from "../agent/map/fields.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
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
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk set web owner=anna tier=gold",
        "kelpie disk set web tier=",
        "kelpie disk set web --detect-zeroes on",
      ),
    )
    .action(async (name, attributes, { json, detectZeroes }) => {
      // Without any, commander gives an empty list.
      const pairs: readonly Pair[] = attributes ?? [];
      if (pairs.length === 0 && detectZeroes === undefined) {
        throw new CommandError(ExitCode.Usage, "nothing is to be set", {
          hint: "name attributes as KEY=VALUE, or an option",
        });
      }
      using client = context.client();
      const setAttributes = Object.fromEntries(
        pairs.map(({ key, value }) => [key, value === "" ? null : value]),
      );
      const changed = await client.changeDisk(name, {
        ...(pairs.length === 0 ? {} : { setAttributes }),
        ...(detectZeroes === undefined ? {} : { detectZeroes: detectZeroes === "on" }),
      });
      if (json) return context.output.json(changed);
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
