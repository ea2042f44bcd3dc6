/**
 * `kelpie disk map` and `kelpie disk object`: where any byte of a disk lives.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { ChunkDocument, ObjectDocument, PlaceDocument } from "../agent/http/documents.ts";
import {
  type AnyCommand,
  type CommandContext,
  examples,
  sizeArgument,
  sourceArgument,
  type SourceName,
  sourceTitle,
} from "./context.ts";
import { CommandError, ExitCode, type Output, printable } from "./output.ts";
import { plural } from "./units.ts";

/** Chunks that are listed at once: 64 GiB. More is nothing for people; programs have the API, which gives pages. */
const CHUNKS_LISTED_MAX = 16384;

/** Adds `map` and `object` to `kelpie disk`. */
export function addMapCommands(disk: AnyCommand, context: CommandContext): void {
  addMap(disk, context);
  addObject(disk, context);
}

function addMap(disk: AnyCommand, context: CommandContext): void {
  disk.command("map")
    .summary("show on which nodes a disk or a snapshot is")
    .description(
      "Shows on which nodes a disk or a snapshot is: all of it, counted by sets of nodes, or with --offset or --length each chunk of that " +
        "part. IN SYNC have everything, JOINING still copy, WANTED is where it shall be, READ FROM is whom this node reads from.",
    )
    .argument("<source>", "DISK or DISK@NAME", sourceArgument)
    .option("--offset <bytes>", "from this byte on, such as 3G (default: 0)", sizeArgument)
    .option("--length <bytes>", "so much of it (default: the chunk of the offset)", sizeArgument)
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk map web",
        "kelpie disk map web --offset 3G --length 64M",
        "kelpie disk map web@monday",
      ),
    )
    .action(async (source, { offset, length, json }) => {
      const { output } = context;
      using client = context.client();
      if (offset === undefined && length === undefined) {
        const found = await client.diskPlaces(source.disk, source.snapshot ?? undefined);
        if (json) return output.json(found);
        output.table(
          [...PLACE_COLUMNS, ">GROUPS", ">CHUNKS", ">SIZE"],
          found.places.map((place) => [
            ...placeCells(place),
            String(place.groups),
            String(place.chunks),
            formatSize(place.sizeBytes),
          ]),
        );
        return printProblems(output, found.places);
      }
      const chunks = await listChunks(context, source, offset ?? 0, length ?? 1);
      if (json) return output.json(chunks);
      output.table(
        [">CHUNK", ">OFFSET", ">GROUP", ...PLACE_COLUMNS],
        chunks.map((chunk) => [
          String(chunk.chunk),
          formatSize(chunk.offsetBytes),
          String(chunk.group),
          ...placeCells(chunk),
        ]),
      );
      printProblems(output, chunks);
    });
}

/** All chunks of a range, whatever one answer holds. */
async function listChunks(
  context: CommandContext,
  source: SourceName,
  offsetBytes: number,
  lengthBytes: number,
): Promise<ChunkDocument[]> {
  using client = context.client();
  const end = offsetBytes + lengthBytes;
  const chunks: ChunkDocument[] = [];
  for (let at = offsetBytes; at < end;) {
    const answer = await client.diskChunks(source.disk, {
      offsetBytes: at,
      lengthBytes: end - at,
      snapshot: source.snapshot ?? undefined,
    });
    chunks.push(...answer.chunks);
    const last = answer.chunks[answer.chunks.length - 1];
    at = last.offsetBytes + last.lengthBytes;
    if (at < end && chunks.length > CHUNKS_LISTED_MAX) {
      throw new CommandError(
        ExitCode.Usage,
        `${formatSize(lengthBytes)} of ${
          sourceTitle(source)
        } is more than ${CHUNKS_LISTED_MAX} chunks`,
        { hint: "give a smaller --length, or leave both out for a summary" },
      );
    }
  }
  return chunks;
}

const PLACE_COLUMNS = ["IN SYNC", "JOINING", "WANTED", "READ FROM"] as const;

function placeCells({ inSync, joining, target, readFrom }: PlaceDocument): string[] {
  return [namesText(inSync), namesText(joining), namesText(target), readFrom ?? "-"];
}

function namesText(names: readonly string[]): string {
  return names.join(", ") || "-";
}

/** Each reason once, below the table. */
function printProblems(output: Output, places: readonly PlaceDocument[]): void {
  const problems = new Set(places.flatMap(({ problem }) => problem === null ? [] : [problem]));
  for (const problem of problems) {
    output.line(output.styled("bad", `cannot be written: ${printable(problem)}`));
  }
}

function addObject(disk: AnyCommand, context: CommandContext): void {
  disk.command("object")
    .summary("show where one byte of a disk or a snapshot lives")
    .description(
      "Shows where one byte of a disk or a snapshot lives: its chunk and placement group, the nodes that have it, and, where this node has " +
        "a copy that may be read, the layer that holds the block and its place in the store, until cleaning moves it.",
    )
    .argument("<source>", "DISK or DISK@NAME", sourceArgument)
    .argument("<offset>", "the byte, such as 3G or 1536", sizeArgument)
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples("kelpie disk object web 3G", "kelpie disk object web@monday 1536"),
    )
    .action(async (source, offset, { json }) => {
      const { output } = context;
      using client = context.client();
      const found = await client.diskObject(source.disk, {
        offsetBytes: offset,
        snapshot: source.snapshot ?? undefined,
      });
      if (json) return output.json(found);
      output.fields([
        ["block", `4096 bytes at ${found.blockOffsetBytes}`],
        ["chunk", `${found.chunk}, ${formatSize(found.lengthBytes)} at ${found.offsetBytes}`],
        ["group", String(found.group)],
        ["in sync", namesText(found.inSync)],
        ["joining", namesText(found.joining)],
        ["wanted", namesText(found.target)],
        ["read from", found.readFrom ?? "no node"],
        ["content", STATE_TEXTS[found.state]],
        ["layer", layerText(found)],
        ["on this node", placeText(found)],
      ]);
      printProblems(output, [found]);
    });
}

const STATE_TEXTS: Readonly<Record<ObjectDocument["state"], string>> = {
  data: "data",
  zero: "zeros that were put there",
  hole: "nothing: it reads as zeros",
  unknown: "not known: this node has no copy that may be read now",
  same: "the same as in an older snapshot",
  damaged: "data that could not be verified here",
};

function layerText({ layer, layerOf }: ObjectDocument): string {
  if (layer === null) return "-";
  return `${layer}, ${layerOf === null ? "of a snapshot that was deleted" : `of ${layerOf}`}`;
}

function placeText({ path, storeOffsetBytes, state }: ObjectDocument): string {
  if (path !== null) return `${path}, ${plural(storeOffsetBytes ?? 0, "byte")} into the store`;
  return state === "unknown" ? "-" : "no data";
}
