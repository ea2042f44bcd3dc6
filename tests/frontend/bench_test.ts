/**
 * The load generator: its figures, and that verifying sees what is wrong.
 *
 * @module
 */
import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { RequestType } from "../../agent/frontend/virtio_blk.ts";
import { BENCH_PATTERNS, benchExitCode, type BenchOptions, runBench } from "../../cli/bench.ts";
import { LatencyHistogram } from "../../cli/bench_latency.ts";
import { VerifyTable } from "../../cli/bench_verify.ts";
import { MockBackEnd, type MockRequest } from "./mock_back_end.ts";
import { DISK_BYTES, patch, peek, withStorageDaemon } from "./storage_daemon_fixture.ts";

const MIB = 1024 * 1024;

Deno.test("quantiles are right to 1.6 %", () => {
  const random = new Prng(1);
  for (const top of [3, 100, 5000, 2e6]) {
    const histogram = new LatencyHistogram();
    const other = new LatencyHistogram();
    const samples: number[] = [];
    for (let count = 0; count < 5000; count++) {
      const us = random.fraction() ** 3 * top;
      samples.push(us);
      (count % 3 === 0 ? other : histogram).add(us);
    }
    histogram.merge(other);
    samples.sort((a, b) => a - b);
    for (const fraction of [0, 0.5, 0.99, 0.999, 1]) {
      const exact = samples[Math.min(Math.floor(fraction * 5000), 4999)];
      const error = Math.abs(histogram.quantile(fraction) - exact);
      assertEquals(error <= exact * 0.016 + 1 / 16, true, `${fraction} of ${top}: off by ${error}`);
    }
    const { count, mean, max } = histogram.summary();
    assertEquals(count, 5000);
    assertEquals(Math.abs(mean - samples.reduce((a, b) => a + b) / 5000) < 0.01, true);
    assertEquals(Math.abs(max - samples[4999]) < 0.01, true);
  }
  assertEquals(new LatencyHistogram().summary().p99, 0);
});

Deno.test("a latency beyond the histogram's range counts as its last bucket", () => {
  const histogram = new LatencyHistogram();
  histogram.add(1e12);
  assertEquals(histogram.summary().count, 1);
  assertEquals(histogram.quantile(0.5) > 1e8, true);
});

Deno.test("check() accepts the acknowledged and the issued generation, sector by sector, and no other", () => {
  const table = new VerifyTable({ seed: 3, blockBytes: 4096, offsetBytes: 2 ** 42, blockCount: 9 });
  const [old, fresh] = [new Uint32Array(1024), new Uint32Array(1024)];
  const stamp = (words: Uint32Array, block: number, generation: number) =>
    table.stamp(words, 0, block, generation);
  stamp(old, 5, 1);
  assertEquals(table.check(new Uint32Array(1024), 0, 5), -1); // nothing is known yet
  table.acknowledged[5] = table.issued[5] = 1;
  assertEquals(table.check(old, 0, 5), -1);
  for (let bit = 0; bit < 32768; bit += 7) {
    old[bit >> 5] ^= 1 << (bit & 31);
    assertEquals(table.check(old, 0, 5), bit >> 12, `bit ${bit}`);
    old[bit >> 5] ^= 1 << (bit & 31);
  }
  table.issued[5] = 2; // sent and never answered: each sector may be old or new
  stamp(fresh, 5, 2);
  const mixed = Uint32Array.from(
    old,
    (word, index) => (index >> 7) % 2 === 0 ? word : fresh[index],
  );
  assertEquals([old, fresh, mixed].map((words) => table.check(words, 0, 5)), [-1, -1, -1]);
  const torn = mixed.slice();
  torn.set(fresh.subarray(300, 384), 300); // half of sector 2 is new
  assertEquals(table.check(torn, 0, 5), 2);
  table.acknowledged[5] = 2;
  assertEquals(table.check(mixed, 0, 5), 0); // the old one is not good enough any more
  stamp(fresh, 4, 2);
  assertEquals(table.check(fresh, 0, 5), 0); // another block's
  assertEquals(table.describe(fresh, 0, 5, 0).includes("should hold generation 2"), true);
});

Deno.test("every pattern does what it says", async () => {
  await withStorageDaemon(async ({ socket }) => {
    for (const rw of BENCH_PATTERNS) {
      for (const queues of [1, 2]) {
        const options: BenchOptions = { socket, rw, queues, depth: 4, count: 500, flushEvery: 10 };
        const result = await runBench(options);
        const { read, write, flush, all } = result.latencyUs;
        assertEquals(result.failure, null);
        assertEquals([result.ioErrors, result.unsupported, result.usedLengthMismatches], [0, 0, 0]);
        assertEquals(result.operations, 500 * queues);
        assertEquals(all.count, 500 * queues);
        assertEquals(read.count + write.count, all.count);
        assertEquals(read.count > 0, rw !== "write" && rw !== "randwrite");
        assertEquals(write.count > 0, rw !== "read" && rw !== "randread");
        assertEquals(flush.count <= write.count / 10, true);
        assertEquals(flush.count >= Math.floor(write.count / 10) - 2 * queues, true);
        assertEquals(all.p50 > 0 && all.p50 <= all.p99 && all.p99 <= all.max, true);
        assertEquals(result.iops > 0 && result.backEnd !== null, true);
        assertEquals(benchExitCode(result), 0);
        assertEquals(JSON.parse(JSON.stringify(result)), result);
      }
    }
  });
});

Deno.test("a timed run ends by time, inside its part of the disk", async () => {
  await withStorageDaemon(async ({ socket, file }) => {
    const part = { offsetBytes: 8 * MIB, sizeBytes: MIB };
    const phases = new Set<string>();
    const result = await runBench({
      socket,
      rw: "randwrite",
      depth: 8,
      seconds: 0.6,
      ...part,
      onProgress: ({ phase, fraction }) => {
        phases.add(phase);
        assertEquals(fraction >= 0 && fraction <= 1, true);
      },
    });
    assertEquals(result.seconds >= 0.6, true);
    assertEquals(result.operations > 0, true);
    assertEquals(phases.has("load"), true);
    assertEquals(peek(file, 0, 8 * MIB).every((byte) => byte === 0), true);
    assertEquals(peek(file, 9 * MIB, MIB).every((byte) => byte === 0), true);
    assertEquals(peek(file, 8 * MIB, MIB).some((byte) => byte !== 0), true);
  });
});

Deno.test("verifying passes on a good back end, and a later run can go on from its table", async () => {
  await withStorageDaemon(async ({ socket }) => {
    for (const rw of ["write", "randwrite", "randrw"] as const) {
      const blockBytes = rw === "write" ? 65536 : 4096;
      const [offsetBytes, blockCount] = [MIB, 8 * MIB / blockBytes];
      const verifyTable = new VerifyTable({ seed: 7, blockBytes, offsetBytes, blockCount });
      const options = { socket, rw, verifyTable, depth: 8, queues: 2, flushEvery: 50 };
      const first = await runBench({ ...options, count: 1000 });
      assertEquals(first.failure, null);
      assertEquals(first.operations, 2000);
      assertEquals(first.verify!.wrongBlocks, 0);
      const known = verifyTable.acknowledged.filter((generation) => generation > 0).length;
      assertEquals(first.verify!.checkedBlocks >= known, true);
      const again = await runBench({ ...options, verifyOnly: true });
      assertEquals(again.verify, { checkedBlocks: known, wrongBlocks: 0 });
    }
  });
});

Deno.test("a load whose range is smaller than its depth still verifies", async () => {
  await withStorageDaemon(async ({ socket }) => {
    for (const rw of ["write", "randrw"] as const) {
      const result = await runBench({
        socket,
        rw,
        verify: true,
        depth: 16,
        count: 300,
        sizeBytes: 5 * 4096,
      });
      assertEquals(result.failure, null);
      assertEquals(result.operations, 300);
      assertEquals(result.verify!.wrongBlocks, 0);
    }
  });
});

Deno.test("verifying finds every kind of wrong sector and names it", async () => {
  await withStorageDaemon(async ({ socket, file }) => {
    const table = { seed: 5, blockBytes: 4096, offsetBytes: 0, blockCount: 256 };
    const verifyTable = new VerifyTable(table);
    const written = await runBench({ socket, rw: "write", verifyTable, depth: 8, count: 512 });
    assertEquals(written.verify!.wrongBlocks, 0);
    const stale = peek(file, 40 * 4096, 512);
    stale[16] = 1; // generation 1; the second round wrote generation 2
    patch(file, 10 * 4096 + 100, new Uint8Array([~peek(file, 10 * 4096 + 100, 1)[0]])); // filling
    patch(file, 20 * 4096 + 512, new Uint8Array(512)); // lost
    patch(file, 30 * 4096, peek(file, 31 * 4096, 4096)); // misplaced
    patch(file, 40 * 4096, stale);
    const checked = await runBench({ socket, rw: "read", verifyTable, verifyOnly: true });
    assertEquals(checked.verify, { checkedBlocks: 256, wrongBlocks: 4 });
    assertEquals(benchExitCode(checked), 1);
    const expected = [
      "sector 80 (byte 40960) should hold generation 2 and holds sector 80, generation 2, with damaged",
      "sector 161 (byte 82432) should hold generation 2 and holds no stamp (it begins with 0x00000000)",
      "sector 240 (byte 122880) should hold generation 2 and holds sector 248, generation 2",
      "sector 320 (byte 163840) should hold generation 2 and holds sector 320, generation 1",
    ];
    assertEquals(checked.messages.length, 4);
    expected.forEach((text, index) => assertStringIncludes(checked.messages[index], text));
  });
});

Deno.test("reads are checked while the load runs", async () => {
  const directory = await Deno.makeTempDir();
  const content = new Uint8Array(DISK_BYTES);
  let reads = 0;
  const handle = (request: MockRequest) => {
    const at = request.sector * 512;
    const [bytes] = request.data;
    if (request.type === RequestType.Out) content.set(bytes, at);
    if (request.type === RequestType.In) {
      bytes.set(content.subarray(at, at + bytes.length));
      if (++reads % 10 === 0) bytes[2000] ^= 4; // the wire is bad
    }
    return true;
  };
  {
    await using _mock = new MockBackEnd(`${directory}/s`, { handle });
    const result = await runBench({
      socket: `${directory}/s`,
      rw: "randrw",
      readPercent: 50,
      verify: true,
      count: 200,
      depth: 4,
      sizeBytes: 16 * 4096,
    });
    assertEquals(result.operations, 200);
    assertEquals(result.verify!.wrongBlocks > 3, true);
    assertStringIncludes(result.messages[0], "with damaged filling");
  }
  await Deno.remove(directory);
});

Deno.test("failed requests are counted, named and make the exit code", async () => {
  const directory = await Deno.makeTempDir();
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    mock.complete(request, { status: request.sector % 16 === 0 ? 1 : 0 });
    return false;
  };
  {
    await using _mock = new MockBackEnd(`${directory}/s`, { handle });
    const result = await runBench({ socket: `${directory}/s`, rw: "read", count: 10 });
    assertEquals([result.ioErrors, result.operations], [5, 5]);
    assertEquals(result.messages[0], "queue 0: read of sector 0 failed with status 1");
    assertEquals(benchExitCode(result), 1);
  }
  await Deno.remove(directory);
});

Deno.test("a back end that is killed ends the run with what was measured until then", async () => {
  await withStorageDaemon(async ({ socket, daemon }) => {
    const result = await runBench({
      socket,
      rw: "randread",
      depth: 4,
      seconds: 3600,
      stallTimeoutMs: 600_000,
      onProgress: ({ operations }) => void (operations > 0 && daemon.stop("SIGKILL")),
    });
    assertEquals(result.failure!.kind, "disconnected");
    assertStringIncludes(result.failure!.message, "requests in flight");
    assertEquals(result.operations > 0, true);
    assertEquals(benchExitCode(result), 2);
  });
});

Deno.test("a back end that hangs is named with the state of its rings", async () => {
  await withStorageDaemon(async ({ socket, daemon }) => {
    const result = await runBench({
      socket,
      rw: "randread",
      depth: 4,
      seconds: 3600,
      stallTimeoutMs: 300,
      onProgress: () => Deno.kill(daemon.pid, "SIGSTOP"),
    });
    assertEquals(result.failure!.kind, "stalled");
    assertStringIncludes(result.failure!.message, "queue 0: 4 in flight, available index");
  });
});

Deno.test("a run can be stopped, and says so", async () => {
  await withStorageDaemon(async ({ socket }) => {
    const controller = new AbortController();
    const result = await runBench({
      socket,
      rw: "randwrite",
      verify: true,
      seconds: 3600,
      sizeBytes: MIB,
      signal: controller.signal,
      onProgress: ({ operations }) => operations > 0 && controller.abort(),
    });
    assertEquals(result.failure!.kind, "aborted");
    assertEquals(result.operations > 0, true);
    assertEquals(benchExitCode(result), 0);
    // The back end was left in order: it serves the next one.
    assertEquals((await runBench({ socket, rw: "read", count: 1 })).operations, 1);
  });
});

Deno.test("options that do not fit are refused before the load", async () => {
  await withStorageDaemon(async ({ socket }) => {
    const refused: [Partial<BenchOptions>, string][] = [
      [{ blockBytes: 1000 }, "block size 1000"],
      [{ depth: 0 }, "depth 0"],
      [{ queues: 3 }, "the back end has 2"],
      [{ readPercent: 101 }, "read percentage"],
      [{ seconds: 0 }, "no time to run"],
      [{ offsetBytes: 512 }, "offset 512 is not a multiple"],
      [{ offsetBytes: DISK_BYTES }, `past the end of the disk, which has ${DISK_BYTES} bytes (`],
      [{ sizeBytes: DISK_BYTES + 4096 }, "from offset 0 bytes (0B) on are more than the disk has"],
      [{ sizeBytes: 4096, queues: 2 }, "too few for 2 queues"],
    ];
    for (const [options, text] of refused) {
      const run = () => runBench({ socket, rw: "read", ...options });
      await assertRejects(run, RangeError, text);
    }
    const table = { seed: 1, blockBytes: 4096, offsetBytes: 0, blockCount: 16 };
    const verifyTable = new VerifyTable(table);
    await assertRejects(
      () => runBench({ socket, rw: "read", verifyTable, sizeBytes: 4096 * 17 }),
      RangeError,
      "another block size, offset or size",
    );
  });
});
