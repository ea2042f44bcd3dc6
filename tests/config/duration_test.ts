/**
 * Lengths of time, read as people write them.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { formatDuration, parseDuration } from "../../agent/duration.ts";

Deno.test("parseDuration() reads numbers with units, and refuses the rest", () => {
  const cases: [string, number | null][] = [
    ["90s", 90_000],
    ["10m", 600_000],
    ["10 min", 600_000],
    ["1.5H", 5_400_000],
    ["2d", 172_800_000],
    ["250ms", 250],
    ["10", null],
    ["m", null],
    ["-1m", null],
    ["1 year", null],
    ["9".repeat(30) + "d", null],
    ["", null],
  ];
  for (const [text, expected] of cases) {
    const result = parseDuration(text);
    assertEquals(result.ok ? result.value : null, expected, text);
  }
  for (const text of ["12 s", "10 min", "2 h", "3 d"]) {
    const result = parseDuration(text);
    assertEquals(formatDuration(result.ok ? result.value : 0), text);
  }
});
