import assert from "node:assert/strict";
import { countGate, countReport, failuresOf, parseGates, sentence } from "./count.ts";

/** A report as Deno 2.6 writes it, with a test's steps at the end of its suite. */
const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="8" failures="3" errors="1" time="0.208">
    <testsuite name="./a_test.ts" tests="7" disabled="1" errors="0" failures="3">
        <testcase name="one" classname="./a_test.ts" time="0.000" line="1" col="6">
        </testcase>
        <testcase name="left out &lt;&amp;&gt;" classname="./a_test.ts" time="0.000" line="2" col="6">
            <skipped/>
        </testcase>
        <testcase name="bad" classname="./a_test.ts" time="0.000" line="3" col="6">
            <failure message="Error">Error: &lt;skipped/&gt;</failure>
        </testcase>
        <testcase name="steps" classname="./a_test.ts" time="0.003" line="4" col="6">
            <failure message="1 test step failed">1 test step failed.</failure>
        </testcase>
        <testcase name="a &gt; b holds" classname="./a_test.ts" time="0.000" line="5" col="6">
        </testcase>
        <testcase name="steps &gt; first" classname="./a_test.ts" time="0.000" line="4" col="43">
        </testcase>
        <testcase name="steps &gt; second &gt; deep" classname="./a_test.ts" time="0.0" line="4" col="71">
            <failure message="Error">Error: no</failure>
        </testcase>
    </testsuite>
    <testsuite name="./c_test.ts" tests="1" disabled="0" errors="1" failures="0">
        <testcase name="c" classname="./c_test.ts" time="0.000" line="1" col="6">
            <error message="Cancelled"/>
        </testcase>
    </testsuite>
</testsuites>`;

Deno.test("countReport() counts tests, and their steps with them", () => {
  assert.deepEqual(countReport(REPORT), { passed: 2, failed: 3, skipped: 1 });
});

Deno.test("failuresOf() says why tests and steps have failed, readable and not without end", () => {
  assert.deepEqual(failuresOf(REPORT), [
    { name: "bad", reason: "Error: <skipped/>" },
    { name: "steps > second > deep", reason: "Error: no" },
    { name: "c", reason: "Cancelled" },
  ]);
  const long = `<testcase name="x"><failure message="">&quot;${
    "a".repeat(1e5)
  }</failure></testcase>`;
  const [{ reason }] = failuresOf(long);
  assert.equal(reason.slice(0, 3), '"aa');
  assert.equal(reason.length, 1500);
});

Deno.test("countGate() takes nothing for granted", () => {
  const clean = '<testsuite name="x"><testcase name="one"></testcase></testsuite>';
  const cases: [Parameters<typeof countGate>[0], ReturnType<typeof countGate>][] = [
    [{ name: "lint", status: 0 }, { passed: 1, failed: 0, skipped: 0 }],
    [{ name: "lint", status: 1 }, { passed: 0, failed: 1, skipped: 0 }],
    [{ name: "lint", status: undefined }, { passed: 0, failed: 0, skipped: 1 }],
    [{ name: "test", status: 0, report: clean }, { passed: 1, failed: 0, skipped: 0 }],
    [{ name: "test", status: 1, report: clean }, { passed: 1, failed: 1, skipped: 0 }],
    [{ name: "test", status: 1, report: REPORT }, { passed: 2, failed: 3, skipped: 1 }],
    [{ name: "test", status: 0, report: "" }, { passed: 0, failed: 1, skipped: 0 }],
    [{ name: "test", status: 124, report: "" }, { passed: 0, failed: 1, skipped: 0 }],
  ];
  for (const [gate, count] of cases) assert.deepEqual(countGate(gate), count, gate.name);
});

Deno.test("parseGates() pairs gates with their reports", () => {
  const reports: Record<string, string> = { test: REPORT };
  assert.deepEqual(parseGates("lint\t0\t3\ntest\t1\t60\ndoc\tskipped\t0\n", (n) => reports[n]), [
    { name: "lint", status: 0, report: undefined },
    { name: "test", status: 1, report: REPORT },
    { name: "doc", status: undefined, report: undefined },
  ]);
});

Deno.test("sentence() names what was skipped only when something was", () => {
  assert.equal(sentence({ passed: 3, failed: 0, skipped: 0 }), "3 passed, 0 failed");
  assert.equal(sentence({ passed: 3, failed: 1, skipped: 2 }), "3 passed, 1 failed, 2 skipped");
});
