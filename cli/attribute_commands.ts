/**
 * `kelpie disk set`: attributes of disks, which are notes of their users: pairs of a key and a value.
 *
 * @module
 */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import type { DiskDocument } from "../agent/http/documents.ts";
import { checkAttributes } from "../agent/map/fields.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
import { printable } from "./output.ts";

/** An attribute as people write it: `KEY=VALUE`. */
export interface Pair {
  readonly key: string;
  /** "": it is not there, or shall go. */
  readonly value: string;
}

/** Adds `set` to `kelpie disk`. */
export function addAttributeCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("set")
    .summary("note something about a disk")
    .description(
      "Sets attributes of a disk: notes of yours, such as whose it is. KEY= takes one away. 'kelpie disk list --where " +
        "KEY=VALUE' finds disks by them.",
    )
    .argument("<name>", "the disk", diskArgument)
    .argument("<attribute...>", "KEY=VALUE, or KEY= to take it away", pairsArgument)
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples("kelpie disk set web owner=anna tier=gold", "kelpie disk set web tier="),
    )
    .action(async (name, pairs, { json }) => {
      using client = context.client();
      const setAttributes = Object.fromEntries(
        pairs.map(({ key, value }) => [key, value === "" ? null : value]),
      );
      const changed = await client.changeDisk(name, { setAttributes });
      if (json) return context.output.json(changed);
      context.output.say(`disk ${name}: ${attributesText(changed) || "no attributes"}`);
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
