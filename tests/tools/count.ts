/**
 * Adds up what `.ci/run` has collected, says why tests have failed, and prints the sum as the last line of the run:
 *
 *     N passed, N failed            or, when there are any,            N passed, N failed, N skipped
 *
 * It reads a directory with two kinds of files:
 *
 *     gates.tsv   a line for each gate: NAME TAB STATUS TAB SECONDS LF, where STATUS is the exit status
 *                 of the command, or "skipped"
 *     NAME.xml    the JUnit report of a gate that runs tests, as `deno test --junit-path` writes it
 *
 * A gate without tests counts as one test. A gate with a report counts as the tests in it, steps of a
 * test not counted apart. Whatever goes wrong counts as a failure, never as nothing: a report that is
 * missing, unreadable or empty, and a command that failed though its report is clean (Deno leaves a
 * file that cannot even be loaded out of the report).
 *
 * @module
 */

/** How many tests had which result. */
export interface Count {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** A gate of `.ci/run`, as far as it is known when it has ended. */
export interface Gate {
  readonly name: string;
  /** Exit status of its command; undefined when it was skipped. */
  readonly status: number | undefined;
  /** Text of its JUnit report; undefined when the gate runs no tests. */
  readonly report?: string;
}

/** Why a test, or a step of one, has failed. */
export interface Failure {
  /** `TEST > STEP` for a step. */
  readonly name: string;
  /** What it threw, cut to {@linkcode FAILURE_CHARS_MAX} characters. */
  readonly reason: string;
}

/** Of one failure: the message is at the beginning, logs that come with it may have no end. */
const FAILURE_CHARS_MAX = 1500;
/** Where more than these fail, one thing has broken all. */
const FAILURES_SHOWN_MAX = 10;

const NONE: Count = { passed: 0, failed: 0, skipped: 0 };

/** `timeout` ends with these when it had to stop a command: by SIGTERM, or by SIGKILL after that. */
const TIMEOUT_STATUSES: readonly number[] = [124, 137];

/**
 * Counts the tests of one gate.
 *
 * ```ts
 * import { countGate } from "./count.ts";
 * import assert from "node:assert/strict";
 *
 * assert.deepEqual(countGate({ name: "lint", status: 0 }), { passed: 1, failed: 0, skipped: 0 });
 * ```
 */
export function countGate(gate: Gate): Count {
  if (gate.status === undefined) return { ...NONE, skipped: 1 };
  if (gate.report === undefined) {
    return gate.status === 0 ? { ...NONE, passed: 1 } : { ...NONE, failed: 1 };
  }
  const count = countReport(gate.report);
  const wentWrong = gate.status !== 0 || count.passed + count.failed + count.skipped === 0;
  return wentWrong && count.failed === 0 ? { ...count, failed: 1 } : count;
}

/**
 * Counts the tests in a JUnit report. Deno lists the steps of a test beside it, as `TEST > STEP`; a
 * test fails when a step of it does.
 */
export function countReport(report: string): Count {
  let count = NONE;
  for (const suite of report.split("<testsuite ").slice(1)) {
    const cases = suite.split("<testcase ").slice(1)
      .map((text) => ({ name: /\bname="([^"]*)"/.exec(text)?.[1] ?? "", result: resultOf(text) }));
    const names = new Set(cases.map(({ name }) => name));
    for (const { name, result } of cases) {
      if (!isStep(name, names)) count = { ...count, [result]: count[result] + 1 };
    }
  }
  return count;
}

/** In the text between two test cases; what a test printed is escaped there, so tags are tags. */
function resultOf(text: string): keyof Count {
  if (/<(failure|error)\b/.test(text)) return "failed";
  return /<skipped\b/.test(text) ? "skipped" : "passed";
}

/**
 * Says why tests in a JUnit report have failed. What only says that a step did is left out.
 */
export function failuresOf(report: string): Failure[] {
  const failures: Failure[] = [];
  for (const text of report.split("<testcase ").slice(1)) {
    if (resultOf(text) !== "failed") continue;
    const reason = />([^<]*)<\/(?:failure|error)>/.exec(text)?.[1] ??
      /<(?:failure|error) message="([^"]*)"/.exec(text)?.[1] ?? "";
    if (/^\d+ test steps? failed/.test(reason)) continue;
    const name = /\bname="([^"]*)"/.exec(text)?.[1] ?? "";
    failures.push({
      name: unescape(name),
      reason: unescape(reason).slice(0, FAILURE_CHARS_MAX).trimEnd(),
    });
  }
  return failures;
}

function unescape(text: string): string {
  const characters: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return text.replace(/&(lt|gt|quot|apos|amp);/g, (_, name) => characters[name]);
}

/** A name may contain the separator by itself: it is a step's only when it begins with a test's name. */
function isStep(name: string, names: ReadonlySet<string>): boolean {
  const separator = " &gt; ";
  for (let at = name.indexOf(separator); at >= 0; at = name.indexOf(separator, at + 1)) {
    if (names.has(name.slice(0, at))) return true;
  }
  return false;
}

/** Parses gates.tsv. `report` answers the report of a gate that has one. */
export function parseGates(text: string, report: (name: string) => string | undefined): Gate[] {
  return text.split("\n").filter((line) => line !== "").map((line) => {
    const [name, status] = line.split("\t");
    return {
      name,
      status: status === "skipped" ? undefined : Number(status),
      report: report(name),
    };
  });
}

/** Writes the last line. */
export function sentence({ passed, failed, skipped }: Count): string {
  return `${passed} passed, ${failed} failed` + (skipped === 0 ? "" : `, ${skipped} skipped`);
}

function describe(gate: Gate, count: Count): string {
  if (gate.status === undefined) return "skipped";
  if (TIMEOUT_STATUSES.includes(gate.status)) return "stopped: it took too long";
  if (gate.status !== 0) return `failed with status ${gate.status}`;
  return count.failed === 0 ? "ok" : "failed: its report is missing or lists no tests";
}

function readIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

if (import.meta.main) {
  const dir = Deno.args[0];
  const gates = parseGates(
    Deno.readTextFileSync(`${dir}/gates.tsv`),
    (name) => readIfThere(`${dir}/${name}.xml`),
  );
  const counts = gates.map(countGate);
  gates.forEach((gate, i) => {
    console.log(`${gate.name}: ${describe(gate, counts[i])} (${sentence(counts[i])})`);
  });
  // Among all that the parts have printed it is hard to find, and whoever looks at a run begins at its end.
  const failures = gates.flatMap(({ report }) => report === undefined ? [] : failuresOf(report));
  for (const { name, reason } of failures.slice(0, FAILURES_SHOWN_MAX)) {
    console.log(`\nfailed: ${name}\n${reason}\n`);
  }
  const total = counts.reduce((sum, count) => ({
    passed: sum.passed + count.passed,
    failed: sum.failed + count.failed,
    skipped: sum.skipped + count.skipped,
  }), NONE);
  console.log(sentence(total));
  Deno.exit(total.failed > 0 || total.passed === 0 ? 1 : 0);
}
