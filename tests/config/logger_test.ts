/**
 * The log: one event is one line, in either format.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { LOG_LEVELS, type LogFormat } from "../../agent/config.ts";
import { Logger, VALUE_LENGTH_MAX } from "../../agent/logger.ts";

function logging(format: LogFormat): { log: Logger; lines: string[] } {
  const lines: string[] = [];
  const now = () => Date.UTC(2026, 0, 2, 3, 4, 5, 6);
  const log = new Logger({ level: "info", format, now, write: (line) => lines.push(line) });
  return { log, lines };
}

Deno.test("text lines have time, level, message and fields", () => {
  const { log, lines } = logging("text");
  log.info("disk opened", { disk: "web", queues: 4, error: new Error("not so"), none: undefined });
  log.error("odd", { empty: "", spaced: "a b", equal: "a=b", quote: 'a"b', list: [1, 2] });
  assertEquals(lines, [
    '2026-01-02T03:04:05.006Z info  disk opened disk=web queues=4 error="not so"\n',
    "2026-01-02T03:04:05.006Z error odd " +
    'empty="" spaced="a b" equal="a=b" quote="a\\"b" list=[1,2]\n',
  ]);
});

Deno.test("JSON lines have the same, and fields cannot replace what every line has", () => {
  const { log, lines } = logging("json");
  log.warn("disk opened", {
    disk: "web",
    queues: 4,
    level: "none",
    time: 0,
    error: new Error("e"),
  });
  assertEquals(JSON.parse(lines[0]), {
    time: "2026-01-02T03:04:05.006Z",
    level: "warn",
    message: "disk opened",
    disk: "web",
    queues: 4,
    error: "e",
  });
});

Deno.test("one event is one line, whatever its texts hold", () => {
  const circular: Record<string, unknown> = {};
  circular.self = circular;
  const values = ["a\nb", "\r", "\u2028", "\x1b[31m", "\0", 10n, circular, Symbol("s"), () => 1];
  for (const format of ["text", "json"] as const) {
    const { log, lines } = logging(format);
    for (const value of values) log.info("x\ny\x1b", { value, "k\ney": 1 });
    assertEquals(lines.length, values.length);
    for (const line of lines) {
      // deno-lint-ignore no-control-regex
      assert(/^[^\x00-\x1f\u2028]*\n$/.test(line) || format === "json", JSON.stringify(line));
      assertEquals(line.indexOf("\n"), line.length - 1);
      if (format === "json") JSON.parse(line);
    }
  }
});

Deno.test("long values are cut", () => {
  for (const format of ["text", "json"] as const) {
    const { log, lines } = logging(format);
    log.info("m".repeat(1_000_000), { value: "v".repeat(1_000_000) });
    assert(lines[0].length < 3 * VALUE_LENGTH_MAX);
  }
});

Deno.test("each level shows itself and what is worse, and changes for children too", () => {
  for (const [index, level] of LOG_LEVELS.entries()) {
    const { log, lines } = logging("text");
    const child = log.child({ part: "store" }).child({ disk: "web" });
    log.level = level;
    assertEquals(child.level, level);
    for (const each of LOG_LEVELS) child[each]("hello", { n: 1 });
    const shown = lines.map((line) => line.split(" ")[1]);
    assertEquals(shown, LOG_LEVELS.slice(index));
    for (const line of lines) assert(line.endsWith(" hello part=store disk=web n=1\n"));
  }
});

Deno.test("a field of one event is stronger than its logger's", () => {
  const { log, lines } = logging("text");
  log.child({ disk: "a", part: "b" }).info("x", { disk: "c" });
  assert(lines[0].endsWith(" x disk=c part=b\n"));
});
