/**
 * `kelpie top`: rates from counters, and a screen that is drawn and given back, against a fake data plane.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import type { DiskStatus } from "../../agent/http/backend.ts";
import type { DiskDocument } from "../../agent/http/documents.ts";
import { ControlFailure } from "../../agent/map/errors.ts";
import { clipped } from "../../cli/top_command.ts";
import { frameOf, type Sample } from "../../cli/top_rates.ts";
import { clusterOf } from "../map/cluster.ts";
import { IDLE_DISK, sessionWith } from "../http/fake_backend.ts";
import { FakeAgent } from "./fixture.ts";

const MIB = 1024 ** 2;

const AWAY = { code: "unavailable", message: "the data plane is away" } as const;

type Counters = Partial<DiskStatus["counters"]>;

function diskWith(id: number, counters: Counters, inFlight = 0): DiskDocument {
  return {
    name: `d${id}`,
    id,
    sessions: inFlight > 0 ? [sessionWith({ inFlight })] : [],
    counters: { ...IDLE_DISK.counters, ...counters },
  } as unknown as DiskDocument;
}

const sample = (atMs: number, ...disks: DiskDocument[]): Sample => ({ atMs, disks, nodes: [] });

Deno.test("rates are differences by the time between; only what is open or does something is shown", () => {
  const before = sample(
    1000,
    diskWith(1, { reads: 100, timedRequests: 10, timedMs: 50, flushes: 1 }, 3),
    diskWith(2, { writes: 5 }),
    diskWith(3, { writes: 5 }),
  );
  const now = sample(
    3000,
    diskWith(1, { reads: 300, readBytes: MIB, timedRequests: 14, timedMs: 58, flushes: 7 }, 3),
    diskWith(2, { writes: 5 }),
    diskWith(3, { writes: 6, errors: 1 }),
  );
  const { seconds, disks } = frameOf(before, now);
  assertEquals(seconds, 2);
  assertEquals(disks.map(({ name }) => name), ["d1", "d3"], "the busiest first");
  assertEquals(disks[0], {
    name: "d1",
    readsPerSecond: 100,
    writesPerSecond: 0,
    readBytesPerSecond: MIB / 2,
    writtenBytesPerSecond: 0,
    inFlight: 3,
    latencyMs: 2,
    othersPerSecond: 3,
    errorsPerSecond: 0,
  });
  assertEquals([disks[1].latencyMs, disks[1].errorsPerSecond], [null, 0.5]);
});

Deno.test("after a new start of the agent, and of a disk of the same name, all is new", () => {
  const before = sample(0, diskWith(1, { reads: 1000, writes: 10 }, 1), diskWith(2, { reads: 7 }));
  const now = sample(1000, diskWith(1, { reads: 5, writes: 20 }, 1), diskWith(9, { reads: 3 }, 1));
  const { disks } = frameOf(before, now);
  const rates = disks.map(({ name, readsPerSecond, writesPerSecond }) => ({
    name,
    readsPerSecond,
    writesPerSecond,
  }));
  assertEquals(rates, [
    { name: "d1", readsPerSecond: 5, writesPerSecond: 20 },
    { name: "d9", readsPerSecond: 3, writesPerSecond: 0 },
  ]);
});

Deno.test("lines are cut at the terminal's width, colours are not", () => {
  assertEquals(clipped("\x1b[1mNAME\x1b[22m µs", 6), "\x1b[1mNAME\x1b[22m µ");
  assertEquals(clipped("abc", 3), "abc");
  assertEquals(clipped("a𝄞b", 2), "a𝄞");
});

/** Two nodes, and a disk that is read a thousand times and written 4 MiB in each second that passes. */
async function start(): Promise<{ agent: FakeAgent; pass: () => void }> {
  const agent = await FakeAgent.start();
  agent.backend.clusterMap = clusterOf(2);
  agent.backend.add("idle");
  agent.backend.add("web");
  let passed = 0;
  const pass = () => {
    passed++;
    agent.backend.statuses.set("web", {
      ...IDLE_DISK,
      sessions: [sessionWith({ inFlight: 7 })],
      counters: {
        ...IDLE_DISK.counters,
        reads: 1000 * passed,
        writes: 4 * passed,
        writtenBytes: 4 * MIB * passed,
        timedRequests: 10 * passed,
        timedMs: 2.5 * passed,
      },
    });
  };
  pass();
  agent.backend.nodeParts.set(2, {
    copyBytesPerSecond: 3 * MIB,
    io: {
      readsPerSecond: 20,
      writesPerSecond: 5,
      readBytesPerSecond: 4096,
      writtenBytesPerSecond: 0,
      inFlight: 1,
      latencyMs: 1.25,
    },
  });
  return { agent, pass };
}

Deno.test("top --once gives one second, as a table or as JSON", async () => {
  const { agent, pass } = await start();
  await using _ = agent;
  const table = await agent.runWell("top --once", (terminal) => terminal.onSleep = pass);
  const lines = table.stdout.split("\n");
  assertMatch(
    lines[0],
    /^NODE +STATE +READS\/s +WRITES\/s +READ +WRITTEN +IN FLIGHT +LATENCY +USED +COPYING +OPEN$/,
  );
  assertMatch(lines[1], /^host-1 \* +up +1k +4 +0B\/s +4M\/s +7 +250 µs +1G +- +0$/);
  assertMatch(lines[2], /^host-2 +up +20 +5 +4K\/s +0B\/s +1 +1\.3 ms +1G +3M\/s +0$/);
  assertMatch(lines[5], /^web +1k +4 +0B\/s +4M\/s +7 +250 µs +0 +0$/);
  assertEquals(lines.slice(6), [""], "a disk that nobody uses is not shown");
  assert(!table.stdout.includes("\x1b"), "what is no terminal gets plain text");
  const json = await agent.runWell("top --once --json", (terminal) => terminal.onSleep = pass);
  const frame = JSON.parse(json.stdout);
  assertEquals([frame.seconds, frame.disks[0].readsPerSecond, frame.nodes.length], [1, 1000, 2]);
});

Deno.test("top without a terminal goes on, one table or document after the other, until Ctrl-C", async () => {
  const { agent, pass } = await start();
  await using _ = agent;
  for (const words of ["top", "top --json"]) {
    let sleeps = 0;
    const { stdout } = await agent.runWell(words, (terminal) => {
      terminal.onSleep = () => {
        pass();
        if (++sleeps === 4) terminal.interrupt();
      };
    });
    const count = words === "top"
      ? stdout.split("\n").filter((line) => line.startsWith("NODE")).length
      : stdout.trimEnd().split("\n").filter((line) => JSON.parse(line).seconds === 1).length;
    assertEquals(count, 3);
  }
});

Deno.test("on a terminal top draws in place, takes keys, and gives everything back at q", async () => {
  const { agent, pass } = await start();
  await using _ = agent;
  for (const key of ["q", "\x03"]) {
    let sleeps = 0;
    const { stdout, terminal } = await agent.runWell("top", (terminal) => {
      terminal.isOutTerminal = terminal.isInputTerminal = true;
      terminal.variables.NO_COLOR = "1";
      terminal.width = 30;
      terminal.height = 4;
      terminal.onSleep = () => {
        pass();
        if (++sleeps === 3) terminal.onKey!(key);
      };
    });
    assert(stdout.startsWith("\x1b[?1049h\x1b[?25l"));
    assert(stdout.endsWith("\x1b[?25h\x1b[?1049l"));
    assertEquals(terminal.onKey, null, "keys are given back");
    const [, ...screens] = stdout.split("\x1b[H");
    assertEquals(screens.length, 3);
    const lines = screens[2].split("\r\n");
    // Four lines of the terminal, of which the last stays free.
    assertEquals(lines.length, 4);
    assertMatch(lines[1], /^host-1 \* +up +1k/);
    for (const line of lines.slice(0, 3)) {
      assert(line.replace("\x1b[K", "").length <= 30, line);
    }
  }
});

Deno.test("on a terminal top waits for an agent that is away, and ends when it was never there", async () => {
  const { agent, pass } = await start();
  await using _ = agent;
  const { cluster } = agent.backend;
  let sleeps = 0;
  const { stdout } = await agent.runWell("top", (terminal) => {
    terminal.isOutTerminal = true;
    terminal.onSleep = () => {
      sleeps++;
      pass();
      if (sleeps === 2) agent.backend.cluster = () => Promise.reject(new ControlFailure(AWAY));
      else agent.backend.cluster = cluster;
      if (sleeps === 6) terminal.interrupt();
    };
  });
  const [, ...screens] = stdout.split("\x1b[H");
  assertStringIncludes(screens[2], "no answer: the data plane is away");
  assertMatch(screens[2], /web/, "what was seen last stays");
  assertStringIncludes(screens[5], "\x1b[1mNODE");
  const { code, stdout: nothing } = await agent.run("top --run-dir /nowhere/kelpie", (terminal) => {
    terminal.isOutTerminal = true;
  });
  assertEquals([code, nothing], [2, ""]);
});

Deno.test("SIGTERM is no good end, and the screen is given back all the same", async () => {
  const { agent } = await start();
  await using _ = agent;
  const { code, stdout } = await agent.run("top", (terminal) => {
    terminal.isOutTerminal = true;
    terminal.onSleep = () => terminal.interrupt("SIGTERM");
  });
  assertEquals(code, 143);
  assert(stdout.endsWith("\x1b[?1049l"));
});
