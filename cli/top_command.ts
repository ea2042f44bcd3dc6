/**
 * `kelpie top`: what goes on, once a second.
 *
 * On a terminal a screen of its own, which is drawn anew in place and left as it was, however it ends; elsewhere one table after the
 * other, or with `--json` one document per line. It ends by `q` or Ctrl-C, and both are good ends.
 *
 * @module
 */
import type { AdminClient } from "../agent/admin_client.ts";
import { formatSize } from "../agent/config.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { describeError, type Output } from "./output.ts";
import { Interrupted } from "./terminal.ts";
import { frameOf, type IoRates, type Sample, type TopFrame } from "./top_rates.ts";
import { formatCount, formatRate } from "./units.ts";

/** Milliseconds between two looks. */
const PERIOD_MS = 1000;

/** A screen of its own, without a cursor; and back. */
const ENTER_SCREEN = "\x1b[?1049h\x1b[?25l";
const LEAVE_SCREEN = "\x1b[?25h\x1b[?1049l";
/** To the top; what is left of a line, and of the screen, goes. */
const HOME = "\x1b[H", CLEAR_LINE = "\x1b[K", CLEAR_REST = "\x1b[J";

/** Why a user ends it. */
const QUIT = new Error("quit");

/** Adds `top`. */
export function addTopCommand(program: AnyCommand, context: CommandContext): void {
  program.command("top")
    .summary("show what disks and nodes do, live")
    .description(
      "Shows once a second what the disks that are open on this node do, and the nodes: requests, bytes, requests in flight, " +
        "and the mean time that requests took, of some of them, without what limits held them back for. q or Ctrl-C ends it.",
    )
    .option("--once", "one second only, then end")
    .option("--json", "print JSON, a document for each second")
    .addHelpText("after", examples("kelpie top", "kelpie top --once --json"))
    .action(async ({ once = false, json = false }) => {
      const { output, terminal } = context;
      using client = context.client();
      const quit = new AbortController();
      const signal = AbortSignal.any([terminal.interrupted(), quit.signal]);
      const isScreen = terminal.isOutTerminal && !once && !json;
      const give = json
        ? (frame: TopFrame) => once ? output.json(frame) : output.line(JSON.stringify(frame))
        : (frame: TopFrame) => terminal.print(`${frameLines(output, frame).join("\n")}\n`);
      try {
        if (isScreen) await watchOnScreen(context, client, { signal, quit });
        else await watch(context, client, { signal, once, give });
      } catch (error) {
        const isQuit = error === QUIT || error instanceof Interrupted && error.signal === "SIGINT";
        if (!isQuit || once) throw error;
      }
    });
}

/** Gives frames until it is interrupted; any failure ends it. */
async function watch(
  { terminal }: CommandContext,
  client: AdminClient,
  options: { signal: AbortSignal; once: boolean; give: (frame: TopFrame) => void },
): Promise<void> {
  const { signal, once, give } = options;
  let before = await look(client, terminal, signal);
  do {
    await terminal.sleep(PERIOD_MS, signal);
    const now = await look(client, terminal, signal);
    give(frameOf(before, now));
    before = now;
  } while (!once);
}

/** Draws frames on a screen of their own; an agent that is away for a while, as when it is upgraded, is waited for. */
async function watchOnScreen(
  { output, terminal }: CommandContext,
  client: AdminClient,
  { signal, quit }: { signal: AbortSignal; quit: AbortController },
): Promise<void> {
  // What fails at once fails before anything has moved.
  let before: Sample | null = await look(client, terminal, signal);
  const onKey = (text: string) => {
    // Where a terminal does not turn Ctrl-C into a signal, it is a key.
    if (["q", "Q", "\x03"].some((key) => text.includes(key))) quit.abort(QUIT);
  };
  const giveBack = terminal.isInputTerminal ? terminal.takeKeys(onKey) : () => {};
  try {
    terminal.print(ENTER_SCREEN);
    let lines = ["looking…"];
    for (;;) {
      draw(lines, terminal);
      await terminal.sleep(PERIOD_MS, signal);
      try {
        const now = await look(client, terminal, signal);
        if (before !== null) lines = frameLines(output, frameOf(before, now));
        before = now;
      } catch (error) {
        if (!(error instanceof ControlFailure)) throw error;
        const text = describeError(error)?.message ?? "";
        lines = [
          output.styled("bad", `no answer: ${text}`),
          ...lines.slice(before === null ? 1 : 0),
        ];
        before = null;
      }
    }
  } finally {
    terminal.print(LEAVE_SCREEN);
    giveBack();
  }
}

function draw(
  lines: readonly string[],
  terminal: { columns(): number; rows(): number; print(text: string): void },
): void {
  // The last line stays free: a line break there would scroll.
  const shown = lines.slice(0, Math.max(1, terminal.rows() - 1));
  const text = shown.map((line) => `${clipped(line, terminal.columns())}${CLEAR_LINE}\r\n`);
  terminal.print(`${HOME}${text.join("")}${CLEAR_REST}`);
}

/** As much of a line as fits; colours take no room. */
export function clipped(line: string, columns: number): string {
  let left = columns;
  // deno-lint-ignore no-control-regex
  return line.replace(/(\x1b\[\d+m)|[^]/gu, (part, colour) => {
    return colour !== undefined || left-- > 0 ? part : "";
  });
}

/** One look; rejects with the signal's reason as soon as it aborts, however long the agent takes. */
async function look(
  client: AdminClient,
  terminal: { nowMs(): number },
  signal: AbortSignal,
): Promise<Sample> {
  signal.throwIfAborted();
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    const asked = Promise.all([client.disks(), client.nodes()]);
    asked.catch(() => {}); // nobody may be waiting any more
    const [disks, nodes] = await Promise.race([asked, promise]);
    return { atMs: terminal.nowMs(), disks, nodes };
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** What people see of a frame. */
function frameLines(output: Output, frame: TopFrame): string[] {
  const disks = frame.disks.map((disk) => [
    disk.name,
    ...ioCells(disk),
    formatCount(disk.othersPerSecond),
    formatCount(disk.errorsPerSecond),
  ]);
  const nodes = frame.nodes.map((node) => [
    `${node.name}${node.isSelf ? " *" : ""}`,
    node.state,
    ...(node.io === null ? IO_COLUMNS.map(() => "-") : ioCells(node.io)),
    node.usedBytes === null ? "-" : formatSize(node.usedBytes),
    node.copyBytesPerSecond === null ? "-" : formatRate(node.copyBytesPerSecond),
    String(node.openDisks),
  ]);
  const nodeText = output.tableText(
    ["NODE", "STATE", ...IO_COLUMNS, ">USED", ">COPYING", ">OPEN"],
    nodes,
  );
  const diskText = disks.length === 0
    ? "no disk is open here\n"
    : output.tableText(["DISK", ...IO_COLUMNS, ">OTHER/s", ">ERRORS/s"], disks);
  return `${nodeText}\n${diskText}`.trimEnd().split("\n");
}

const IO_COLUMNS = [
  ">READS/s",
  ">WRITES/s",
  ">READ",
  ">WRITTEN",
  ">IN FLIGHT",
  ">LATENCY",
] as const;

function ioCells(rates: IoRates): string[] {
  return [
    formatCount(rates.readsPerSecond),
    formatCount(rates.writesPerSecond),
    formatRate(Math.round(rates.readBytesPerSecond)),
    formatRate(Math.round(rates.writtenBytesPerSecond)),
    formatCount(rates.inFlight),
    rates.latencyMs === null ? "-" : latencyText(rates.latencyMs),
  ];
}

function latencyText(ms: number): string {
  if (ms < 0.9995) return `${Math.round(ms * 1000)} µs`;
  return ms < 99.95 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}
