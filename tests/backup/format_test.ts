/**
 * The file of a backup: what is written is read, and nothing else is.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert/mod.js";
import { crc32 } from "node:zlib";
import {
  BackupError,
  type BackupEvent,
  type BackupHeader,
  BackupReader,
  BackupWriter,
  fits,
  FRAME_BYTES,
  type Run,
  RUN_BYTES,
  RunReader,
  RUNS_MAX,
  writeTable,
} from "../../agent/backup/format.ts";
import { Prng } from "../../agent/base/prng.ts";
import { concatenated } from "../../agent/base/bytes.ts";

const HEADER: BackupHeader = {
  disk: "web",
  snapshot: "monday",
  sizeBytes: 1024 ** 3,
  createdMs: 1_700_000_000_000,
  identity: { cluster: "fedcba9876543210", disk: 3, family: 3, layer: 9 },
  base: null,
  compression: "none",
};
const DIFFERENCE: BackupHeader = {
  ...HEADER,
  base: { cluster: "fedcba9876543210", disk: 3, family: 3, layer: 4, snapshot: "web@sunday" },
};

/** Runs with data in which every byte is one more than the one before. */
type Part = { readonly runs: readonly Run[] } | { readonly zero: Run };

function contentOf(runs: readonly Run[]): Uint8Array<ArrayBuffer> {
  const bytes = runs.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const content = new Uint8Array(runs.length * RUN_BYTES + bytes).map((_, at) => at);
  writeTable(content, runs);
  return content;
}

function write(header: BackupHeader, parts: readonly Part[]): Uint8Array<ArrayBuffer> {
  const writer = new BackupWriter(header);
  let file = writer.begin();
  for (const part of parts) {
    if ("zero" in part) file = concatenated(file, writer.zero(part.zero));
    else {
      const content = contentOf(part.runs);
      const head = writer.data(part.runs, content, false);
      file = concatenated(concatenated(file, head), content);
    }
  }
  return concatenated(file, writer.end());
}

/** All of a file, as `pipeIn` reads it. */
function read(file: Uint8Array): { events: BackupEvent[]; runs: Run[] } {
  const reader = new BackupReader();
  const events: BackupEvent[] = [];
  const runs: Run[] = [];
  let places: RunReader | undefined;
  for (let at = 0; reader.wanted > 0;) {
    const event = reader.take(file.subarray(at, at += reader.wanted));
    if (event === null) continue;
    events.push(event);
    if (event.kind === "header") places = new RunReader(event.header.sizeBytes);
    if (event.kind === "zero") places!.zero(event);
    if (event.kind === "data" && !event.isCompressed) {
      runs.push(...places!.content(event, event.stored));
    }
  }
  const rest = file.subarray(reader.offsetBytes);
  if (rest.length > 0) reader.take(rest);
  return { events, runs };
}

const run = (offsetBytes: number, lengthBytes: number): Run => ({ offsetBytes, lengthBytes });

const PARTS: readonly Part[] = [
  { runs: [run(0, 4096), run(8192, 512)] },
  { zero: run(16384, 1024 ** 2) },
  { runs: [run(1024 ** 3 - 4096, 4096)] },
];

Deno.test("a reader finds what a writer was given", () => {
  for (const header of [HEADER, DIFFERENCE]) {
    const { events, runs } = read(write(header, PARTS));
    assertEquals(events.map(({ kind }) => kind), ["header", "data", "zero", "data", "end"]);
    assertEquals(events[0], { kind: "header", header });
    assertEquals(runs, [run(0, 4096), run(8192, 512), run(1024 ** 3 - 4096, 4096)]);
    const [, data, zero, , end] = events;
    if (data.kind !== "data" || zero.kind !== "zero") throw new Error("other kinds");
    assertEquals(data.stored, contentOf([run(0, 4096), run(8192, 512)]));
    assertEquals([zero.offsetBytes, zero.lengthBytes], [16384, 1024 ** 2]);
    assertEquals(end, { kind: "end", frames: 3, dataBytes: 8704 });
  }
  assertEquals(read(write(HEADER, [])).events.length, 2);
});

Deno.test("files of version 1 stay what they are", () => {
  const golden = new URL("golden/", import.meta.url);
  for (const [name, header] of [["full", HEADER], ["difference", DIFFERENCE]] as const) {
    const text = Deno.readTextFileSync(new URL(`v1_${name}.hex`, golden));
    const kept = Uint8Array.fromHex(text.replaceAll("\n", ""));
    assertEquals(read(kept).runs.length, 3);
    assertEquals(kept, write(header, PARTS));
  }
});

Deno.test("a file of a later version is told from an altered one", () => {
  const file = write(HEADER, []);
  const view = new DataView(file.buffer);
  view.setUint32(8, 2, true);
  assertThrows(() => read(file), BackupError, "the preamble is altered");
  view.setUint32(28, crc32(file.subarray(0, 28)), true);
  assertThrows(() => read(file), BackupError, "byte 8: the file is of version 2");
});

Deno.test("every bit that is altered is noticed, where it is or at the head of what it is in", () => {
  const file = write(DIFFERENCE, PARTS);
  for (let at = 0; at < file.length; at++) {
    for (const bit of at < 400 || at % 97 === 0 ? [0, 1, 2, 3, 4, 5, 6, 7] : [at % 8]) {
      const altered = file.slice();
      altered[at] ^= 1 << bit;
      const error = assertThrows(() => read(altered), BackupError);
      assert(error.offsetBytes <= at, `byte ${at}: said to be at ${error.offsetBytes}`);
      assert(error.offsetBytes > at - 5000, `byte ${at}: said to be at ${error.offsetBytes}`);
      assertMatch(error.message, /^byte \d+: /);
    }
  }
});

Deno.test("a file that is torn anywhere is refused there, and so is one that goes on", () => {
  const file = write(HEADER, PARTS);
  for (let length = 0; length < file.length; length++) {
    const error = assertThrows(() => read(file.subarray(0, length)), BackupError, "torn");
    assertEquals(error.offsetBytes, length);
  }
  const longer = assertThrows(() => read(concatenated(file, [0])), BackupError, "behind the end");
  assertEquals(longer.offsetBytes, file.length);
  assertThrows(() => read(concatenated(file, file)), BackupError, "behind the end");
});

Deno.test("frames that are left out, doubled, swapped or another file's are noticed", () => {
  const zeros = [0, 1, 2].map((i) => ({ zero: run(i * 4096, 4096) }));
  const file = write(HEADER, zeros);
  const start = file.length - 4 * FRAME_BYTES;
  const [a, b, c, end] = [0, 1, 2, 3].map((i) =>
    file.subarray(start + i * FRAME_BYTES, start + (i + 1) * FRAME_BYTES)
  );
  const other = write(DIFFERENCE, zeros);
  const foreign = other.subarray(other.length - 3 * FRAME_BYTES, other.length - 2 * FRAME_BYTES);
  const cases: [Uint8Array[], number][] = [
    [[b, c, end], 0],
    [[a, c, end], 1],
    [[a, b, end], 2],
    [[a, a, b, c, end], 1],
    [[b, a, c, end], 0],
    [[a, foreign, c, end], 1],
  ];
  for (const [frames, at] of cases) {
    const made = frames.reduce((all, frame) => concatenated(all, frame), file.slice(0, start));
    const error = assertThrows(() => read(made), BackupError, "not the one that belongs here");
    assertEquals(error.offsetBytes, start + at * FRAME_BYTES);
  }
});

Deno.test("a writer takes only what comes next on the disk, and a frame has its bounds", () => {
  const wrong: Part[][] = [
    [{ zero: run(4096, 0) }],
    [{ zero: run(100, 512) }],
    [{ zero: run(0, 100) }],
    [{ zero: run(HEADER.sizeBytes - 512, 1024) }],
    [{ zero: run(4096, 4096) }, { zero: run(0, 512) }],
    [{ runs: [run(0, 4096), run(2048, 4096)] }],
    [{ runs: [run(0, 1024 ** 2), run(1024 ** 2, 512)] }],
    [{ runs: Array.from({ length: RUNS_MAX + 1 }, (_, i) => run(i * 1024, 512)) }],
  ];
  for (const parts of wrong) assertThrows(() => write(HEADER, parts), RangeError);
  assert(fits([], run(0, 512)));
  assert(fits([run(0, 512)], run(512 + 0xffff_ffff * 512, 512)));
  assert(!fits([run(0, 512)], run(512 + 2 ** 32 * 512, 512)));
  assert(!fits(Array.from({ length: RUNS_MAX }, (_, i) => run(i * 1024, 512)), run(2 ** 30, 512)));
});

Deno.test("a frame whose table does not fit its head is refused, whatever its checksums say", () => {
  const good = contentOf([run(4096, 4096), run(16384, 4096)]);
  const frame = {
    kind: "data",
    offsetBytes: 4096,
    lengthBytes: 8192,
    runs: 2,
    isCompressed: true,
    stored: new Uint8Array(1),
    fileOffset: 77,
  } as const;
  const places = () => new RunReader(20480);
  assertEquals(places().content(frame, good), [run(4096, 4096), run(16384, 4096)]);
  const twice = places();
  twice.content(frame, good);
  assertThrows(() => twice.content(frame, good), BackupError, "byte 77");
  assertThrows(() => twice.zero({ ...frame, kind: "zero" }), BackupError, "zeros where data was");
  const change = (at: number, value: number) => {
    const content = good.slice();
    new DataView(content.buffer).setUint32(at, value, true);
    return content;
  };
  const cases = [
    good.subarray(1),
    change(0, 1), // does not begin where the head says
    change(4, 0), // an empty run
    change(4, 9), // another sum
    change(8, 100), // beyond the disk
    change(12, 0xffff_ffff),
  ];
  for (const content of cases) {
    assertThrows(() => places().content(frame, content), BackupError, "table of runs");
  }
});

Deno.test("rubbish of any kind is refused with an error of its own, and no length is believed", () => {
  const random = new Prng(5);
  const file = write(HEADER, PARTS);
  for (let round = 0; round < 3000; round++) {
    const mad = file.slice();
    for (let i = random.between(1, 20); i > 0; i--) {
      mad[random.below(mad.length)] = random.below(256);
    }
    const reader = new BackupReader();
    try {
      for (let at = 0; reader.wanted > 0;) {
        assert(reader.wanted < 2 * 1024 ** 2);
        reader.take(mad.subarray(at, at += reader.wanted));
      }
    } catch (error) {
      if (!(error instanceof BackupError)) throw error;
    }
  }
});
