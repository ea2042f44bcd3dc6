/**
 * What long work says of itself, on a terminal and elsewhere.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Output } from "../../cli/output.ts";
import { Progress, summary } from "../../cli/progress.ts";
import { formatCount, formatDuration, formatRate, plural } from "../../cli/units.ts";
import { FakeTerminal } from "./fixture.ts";

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** Work of one GiB per second, ten steps a second. */
function work(terminal: FakeTerminal, totalBytes: number | null, seconds: number): Progress {
  const progress = new Progress(new Output(terminal), "importing web", totalBytes);
  for (let step = 1; step <= seconds * 10; step++) {
    terminal.timeMs += 100;
    progress.update(step * GIB / 10);
  }
  return progress;
}

Deno.test("without a terminal there is one line per 10 %, with rate and time left", () => {
  const terminal = new FakeTerminal();
  work(terminal, 20 * GIB, 20).end();
  const lines = terminal.stderr.trimEnd().split("\n");
  assertEquals(lines.length, 10);
  assertEquals(lines[0], "importing web: 10 %, 2G of 20G, 1G/s, 18 s left");
  assertEquals(lines[9], "importing web: 100 %, 20G of 20G, 1G/s");
  assert(!terminal.stderr.includes("\r"));
  assert(!terminal.stderr.includes("\x1b"));
});

Deno.test("without a terminal and an end, there is a line every ten seconds", () => {
  const terminal = new FakeTerminal();
  work(terminal, null, 35).end();
  assertEquals(terminal.stderr.trimEnd().split("\n"), [
    "importing web: 10G, 1G/s",
    "importing web: 20G, 1G/s",
    "importing web: 30G, 1G/s",
  ]);
});

Deno.test("on a terminal a bar moves, fits, and is taken away", () => {
  for (const width of [20, 40, 60, 80, 200]) {
    const terminal = new FakeTerminal();
    terminal.isErrorTerminal = true;
    terminal.width = width;
    work(terminal, 20 * GIB, 10).end();
    const pictures = terminal.stderr.split("\r").slice(1).map((each) => each.replace("\x1b[K", ""));
    assertEquals(pictures.pop(), "");
    assert(pictures.every((each) => each.length < width), `wider than ${width}`);
    assert(pictures.length > 80 && pictures.length <= 100);
    if (width < 80) continue;
    assertMatch(
      pictures.at(-1)!,
      /^importing web {2}\[#+-+\] {2}50 % {2}10G of 20G {2}1G\/s {2}10 s left$/,
    );
  }
});

Deno.test("work of less than a second is silent", () => {
  for (const isErrorTerminal of [true, false]) {
    const terminal = new FakeTerminal();
    terminal.isErrorTerminal = isErrorTerminal;
    const progress = new Progress(new Output(terminal), "importing web", 10 * MIB);
    terminal.timeMs = 900;
    progress.update(10 * MIB);
    progress.end();
    assertEquals(terminal.stderr, "");
  }
});

Deno.test("the rate is that of late, not of the whole time", () => {
  const terminal = new FakeTerminal();
  const progress = work(terminal, 1000 * GIB, 20);
  let doneBytes = 20 * GIB;
  for (let step = 0; step < 400; step++) {
    terminal.timeMs += 100;
    progress.update(doneBytes += GIB);
  }
  assertMatch(terminal.stderr.trimEnd().split("\n").at(-1)!, / 10G\/s, /);
});

Deno.test("an empty piece of work has no rate that is not a number", () => {
  const terminal = new FakeTerminal();
  const progress = new Progress(new Output(terminal), "importing web", 0);
  terminal.timeMs = 2000;
  progress.update(0);
  assertEquals(terminal.stderr, "importing web: 100 %, 0B of 0B, 0B/s\n");
  assertEquals(summary(0, 0), "0B in 0 ms");
});

Deno.test("times, rates and counts are short", () => {
  const times: [number, string][] = [
    [0, "0 ms"],
    [35.4, "35 ms"],
    [440, "0.4 s"],
    [9_940, "9.9 s"],
    [9_960, "10 s"],
    [59_400, "59 s"],
    [59_600, "1 min"],
    [200_000, "3 min 20 s"],
    [3_600_000, "1 h"],
    [7_500_000, "2 h 5 min"],
    [86_400_000, "1 d"],
    [100 * 3_600_000, "4 d 4 h"],
  ];
  for (const [ms, text] of times) assertEquals(formatDuration(ms), text, String(ms));
  assertEquals(formatRate(512 * MIB), "512M/s");
  assertEquals([999, 1000, 12_345, 999_960, 2_500_000].map(formatCount), [
    "999",
    "1k",
    "12.3k",
    "1M",
    "2.5M",
  ]);
  assertEquals([plural(1, "disk"), plural(0, "disk")], ["1 disk", "0 disks"]);
});
