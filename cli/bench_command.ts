/**
 * `kelpie bench`: the load generator of `bench.ts` on the command line.
 *
 * @module
 */
import { InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { resolve } from "node:path";
import { formatSize } from "../agent/config.ts";
import { diskSockets } from "../agent/map/names.ts";
import type { BenchOptions, BenchPattern, BenchResult } from "./bench.ts";
import type { Latency } from "./bench_latency.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  sizeArgument,
} from "./context.ts";
import { dataText, holdsData, refuseWriting } from "./disk_data.ts";
import { CommandError, ExitCode, type Output } from "./output.ts";
import { formatCount } from "./units.ts";

/** The patterns, the first being the default; `bench.ts` is loaded when it is needed. */
const PATTERNS: readonly BenchPattern[] = ["randread", "read", "write", "randwrite", "randrw"];

/** Patterns that write. */
const WRITING: readonly BenchPattern[] = ["write", "randwrite", "randrw"];

/** Adds `bench`. */
export function addBenchCommand(program: AnyCommand, context: CommandContext): void {
  program.command("bench")
    .summary("measure a disk")
    .description(
      "Measures a disk, or whatever listens on a vhost-user-blk socket. Patterns that write, and " +
        "--verify, destroy what is on the disk.",
    )
    .argument("[disk]", "the disk", diskArgument)
    .option("--socket <path>", "socket of any vhost-user-blk back end, in place of a disk")
    .addOption(
      new Option("--rw <pattern>", "what to do").choices(PATTERNS).default(PATTERNS[0]),
    )
    .option("--read-percent <count>", "share of reads in randrw", percent, 70)
    .addOption(sizeOption("--block-size <size>", "bytes of a request", "4K"))
    .option("--depth <count>", "requests under way per queue", positive, 1)
    .option("--queues <count>", "queues", positive, 1)
    .option("--seconds <time>", "how long", secondsArgument, 5)
    .option("--count <count>", "requests per queue, in place of a time", positive)
    .option("--flush-every <count>", "flush after so many writes of a queue", notNegative, 0)
    .addOption(sizeOption("--offset <size>", "where to begin", "0"))
    .option("--size <size>", "how much of the disk to use (default: all)", sizeArgument)
    .option("--verify", "stamp what is written and check what is read")
    .option("--seed <number>", "decides addresses and data", notNegative, 1)
    .option("--segments <count>", "descriptors per request", positive)
    .option("--indirect", "use indirect descriptors")
    .option("--stall-timeout <time>", "seconds without an answer to give up after", secondsArgument)
    .option("--yes", "do not ask before writing")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie bench web --rw randread --depth 32",
        "kelpie bench --socket /run/vhost.sock --rw randwrite --flush-every 32 --yes --json",
      ),
    )
    .action(async (disk, { socket, json, yes = false, stallTimeout, ...options }) => {
      const writes = WRITING.includes(options.rw) || options.verify === true;
      const path = await findSocket(context, { disk, socket, writes, yes });
      const { runBench, benchExitCode } = await import("./bench.ts");
      const { blockSize, offset, size, ...rest } = options;
      const result = await runBench(
        {
          ...rest,
          socket: path,
          blockBytes: blockSize,
          offsetBytes: offset,
          sizeBytes: size,
          stallTimeoutMs: stallTimeout === undefined ? undefined : stallTimeout * 1000,
          signal: context.terminal.interrupted(),
          onProgress: progressOf(context.output),
        } satisfies BenchOptions,
      );
      if (context.output.isErrorFancy) context.terminal.printError("\r\x1b[K");
      context.exitCode = benchExitCode(result);
      if (json) return context.output.json(result);
      printResult(context.output, result);
    });
}

function sizeOption<Flags extends string>(flags: Flags, description: string, usual: string) {
  return new Option(flags, description).argParser(sizeArgument).default(sizeArgument(usual), usual);
}

const percent = countArgument({ min: 0, max: 100 });
const positive = countArgument({ min: 1, max: 2 ** 31 });
const notNegative = countArgument({ min: 0, max: 2 ** 31 });

function secondsArgument(text: string): number {
  const value = Number(text.replace(/s$/, ""));
  if (value > 0 && value <= 86_400 * 7) return value;
  throw new InvalidArgumentError("It must be a number of seconds, up to a week");
}

/** The socket to use, once it is clear that it may be used. */
async function findSocket(
  context: CommandContext,
  options: {
    readonly disk?: string;
    readonly socket?: string;
    readonly writes: boolean;
    readonly yes: boolean;
  },
): Promise<string> {
  const { disk, socket, writes, yes } = options;
  if ((disk === undefined) === (socket === undefined)) {
    throw new CommandError(ExitCode.Usage, "bench needs either a disk or --socket");
  }
  if (socket !== undefined) {
    if (writes) confirm(context.output, yes, socket, "what is on the disk behind it");
    return resolve(socket);
  }
  using client = context.client();
  const found = await client.disk(disk!);
  const sockets = diskSockets(context.runDir, found.name);
  if (!writes) return sockets.readOnly;
  await refuseWriting(client, found);
  // There is nothing to lose on a new disk.
  if (!yes && await holdsData(context, client, found)) {
    confirm(context.output, yes, `disk ${found.name}`, dataText(found));
  }
  return sockets.readWrite;
}

function confirm(output: Output, yes: boolean, what: string, loss: string): void {
  output.confirm({ yes, action: `write test data to ${what}`, loss });
}

function progressOf(output: Output): BenchOptions["onProgress"] {
  if (!output.isErrorFancy) return undefined;
  return ({ phase, operations, fraction }) => {
    const text = `${phase}  ${Math.floor(fraction * 100)} %  ${formatCount(operations)} requests`;
    output.terminal.printError(`\r${text}\x1b[K`);
  };
}

function printResult(output: Output, result: BenchResult): void {
  const { latencyUs, verify, backEnd } = result;
  output.line(
    `${result.rw} ${formatSize(result.blockBytes)}, depth ${result.depth}, ` +
      `${result.queues === 1 ? "1 queue" : `${result.queues} queues`}: ` +
      output.styled("bold", `${Math.round(result.iops)} IOPS, ${rate(result)}`),
  );
  const kinds = (["read", "write", "flush"] as const).filter((kind) => latencyUs[kind].count > 0);
  output.table(
    ["µs", ">COUNT", ">MEAN", ">P50", ">P99", ">P99.9", ">MAX"],
    kinds.map((kind) => [kind, ...latencyCells(latencyUs[kind])]),
  );
  if (backEnd !== null) {
    output.line(
      `back end: ${backEnd.cpuPercent.toFixed(0)} % CPU, ` +
        `${backEnd.cpuUsPerOperation.toFixed(1)} µs per request`,
    );
  }
  if (verify !== null) {
    const text = `verified ${verify.checkedBlocks} blocks, ${verify.wrongBlocks} wrong`;
    output.line(output.styled(verify.wrongBlocks > 0 ? "bad" : "good", text));
  }
  if (result.ioErrors > 0) output.line(output.styled("bad", `I/O errors: ${result.ioErrors}`));
  if (result.unsupported > 0) output.line(`requests not supported: ${result.unsupported}`);
  result.messages.forEach((message) => output.say(message));
  if (result.failure !== null) output.error(result.failure);
}

function rate({ megabytesPerSecond }: BenchResult): string {
  return `${megabytesPerSecond.toFixed(1)} MB/s`;
}

function latencyCells({ count, mean, p50, p99, p999, max }: Latency): string[] {
  return [String(count), ...[mean, p50, p99, p999, max].map((us) => us.toFixed(us < 100 ? 1 : 0))];
}
