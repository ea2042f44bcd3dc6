/**
 * Backups on the command line, with `qemu-storage-daemon` serving disks and snapshots, and an agent that knows what the test says.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { BackupReader } from "../../agent/backup/format.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { Extent, ExtentState } from "../../agent/http/backend.ts";
import { hasZstd } from "../../agent/platform/linux/zstd.ts";
import { RESTORED_ATTRIBUTE } from "../../cli/backup_identity.ts";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { FakeAgent, type FakeTerminal } from "./fixture.ts";

const MIB = 1024 ** 2;

// Loaded here: else the first test would look as if it leaked a library.
assert(hasZstd());

function randomBytes(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  new Prng(seed).fill(bytes);
  return bytes;
}

/** A fake agent at level 2, and sockets that are real. */
class Bench implements AsyncDisposable {
  readonly #daemons: StorageDaemon[] = [];
  /** What is told of snapshots, as `[bytes, state]`; the last of them goes on to the end. */
  extents: [lengthBytes: number, state: ExtentState][] = [[Infinity, "data"]];

  private constructor(readonly agent: FakeAgent) {}

  static async start(): Promise<Bench> {
    const agent = await FakeAgent.start();
    await Deno.mkdir(`${agent.runDir}/ro`);
    agent.backend.clusterMap = { ...agent.backend.clusterMap, level: 2 };
    const bench = new Bench(agent);
    agent.backend.onExtents = (_, { offsetBytes, lengthBytes }) =>
      Promise.resolve(bench.#extentsOf(offsetBytes, offsetBytes + lengthBytes));
    return bench;
  }

  #extentsOf(start: number, end: number): Extent[] {
    const found: Extent[] = [];
    let at = 0;
    for (const [lengthBytes, state] of this.extents) {
      const bytes = Math.min(end, at + lengthBytes) - Math.max(start, at);
      if (bytes > 0) found.push({ lengthBytes: bytes, state });
      at += lengthBytes;
    }
    return found.slice(0, 2); // one answer is never all
  }

  path(name: string): string {
    return `${this.agent.runDir}/${name}`;
  }

  /** Serves a socket with a file behind it. */
  async serve(name: string, content: Uint8Array): Promise<void> {
    await Deno.writeFile(this.path(`${name}.disk`), content);
    const socket = this.path(`${name}.sock`);
    this.#daemons.push(await StorageDaemon.start({ file: this.path(`${name}.disk`), socket }));
    await Deno.symlink(socket, this.path(`ro/${name}.sock`));
  }

  /** A disk with a snapshot that holds something. */
  async snapshot(disk: string, name: string, content: Uint8Array): Promise<void> {
    const { backend } = this.agent;
    if (!backend.clusterMap.disks.some((each) => each.name === disk)) {
      backend.add(disk, content.length);
    }
    await this.agent.runWell(`disk snapshot ${disk}@${name}`);
    await this.serve(`${disk}@${name}`, content);
  }

  content(name: string): Promise<Uint8Array<ArrayBuffer>> {
    return Deno.readFile(this.path(`${name}.disk`));
  }

  names(): string[] {
    return this.agent.backend.clusterMap.disks.map(({ name }) => name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.#daemons) await daemon.stop();
    await this.agent[Symbol.asyncDispose]();
  }
}

const equal = (a: Uint8Array, b: Uint8Array) =>
  a.length === b.length && a.every((byte, at) => byte === b[at]);

/** Kinds of the frames of a file, and the runs in all that is not compressed. */
function framesOf(file: Uint8Array): string[] {
  const reader = new BackupReader();
  const found: string[] = [];
  for (let at = 0; reader.wanted > 0;) {
    const event = reader.take(file.subarray(at, at += reader.wanted));
    if (event === null || event.kind === "header" || event.kind === "end") continue;
    const { kind, offsetBytes, lengthBytes } = event;
    const how = event.kind === "data" ? `${event.isCompressed ? "zstd " : ""}${event.runs}× ` : "";
    found.push(`${kind} ${how}${lengthBytes}@${offsetBytes}`);
  }
  return found;
}

Deno.test("a backup has what may hold data, in frames, and nothing of holes and zeros", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(8 * MIB, 1);
  content.fill(0, 4 * MIB, 5 * MIB); // data that is zeros
  content.fill(7, 6 * MIB, 7 * MIB);
  await bench.snapshot("web", "a", content);
  bench.extents = [
    [4096, "data"],
    [4096, "hole"],
    [8192, "data"],
    [MIB - 16384, "zero"],
    [2 * MIB, "hole"],
    [3 * MIB, "unknown"],
    [Infinity, "data"],
  ];
  const file = bench.path("a.kb");
  const { stderr, stdout } = await bench.agent.runWell(["disk", "backup", "web@a", file]);
  assertEquals(stdout, "");
  assertMatch(stderr, /^backup of web@a: 4\.\S+M of data in 3\.\S+M, in /);
  const frames = framesOf(await Deno.readFile(file));
  assert(frames.every((frame) => frame.startsWith("data")), frames.join());
  assert(frames.some((frame) => frame.startsWith("data zstd")), frames.join());
  await bench.agent.runWell(["disk", "backup", "web@a", bench.path("n.kb"), "--compress", "none"]);
  const plain = framesOf(await Deno.readFile(bench.path("n.kb")));
  assert(!plain.join().includes("zstd"));
  const piped = await bench.agent.runWell("disk backup web@a --compress none");
  assert(equal(piped.terminal.bytes, await Deno.readFile(bench.path("n.kb"))));

  // It makes a disk with the snapshot.
  await bench.serve("copy.restoring", new Uint8Array(8 * MIB));
  const restored = await bench.agent.runWell(["disk", "restore", file, "copy"]);
  assertMatch(restored.stderr, /^restored web@a to disk copy: 4\.\S+M of data in/);
  const expected = content.slice();
  expected.fill(0, 4096, 8192);
  expected.fill(0, 16384, 3 * MIB);
  assert(equal(await bench.content("copy.restoring"), expected));
  assertEquals(bench.names(), ["copy", "web"]);
  const [copy, web] = bench.agent.backend.clusterMap.disks;
  assertEquals(copy.snapshots.map(({ name }) => name), ["a"]);
  assertEquals(
    copy.attributes[RESTORED_ATTRIBUTE],
    `fedcba9876543210/${web.family}/${web.id}/${web.snapshots[0].layer}=${copy.snapshots[0].layer}`,
  );
});

Deno.test("a difference has zeros too, and nothing of what is the same", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(4 * MIB, 2);
  await bench.snapshot("web", "a", content);
  await bench.snapshot("web", "b", content);
  bench.extents = [[MIB, "same"], [8192, "data"], [4096, "zero"], [4096, "data"], [MIB, "same"], [
    12288,
    "zero",
  ], [Infinity, "same"]];
  const file = bench.path("b.kb");
  const words = ["disk", "backup", "web@b", file, "--compress", "none"];
  for (const since of ["a", "web@a"]) {
    const { stderr } = await bench.agent.runWell([...words, "--since", since, "--yes"]);
    assertMatch(stderr, /^difference to web@a of web@b: 12K of data in /);
    assertEquals(framesOf(await Deno.readFile(file)), [
      `data 1× 8192@${MIB}`,
      `zero 4096@${MIB + 8192}`,
      `data 1× 4096@${MIB + 12288}`,
      `zero 12288@${2 * MIB + 16384}`,
    ]);
  }
  const [first, second] = bench.agent.backend.clusterMap.disks[0].snapshots;
  assertEquals(bench.agent.backend.asked.at(-1)!.layer, second.layer);
  assertEquals(bench.agent.backend.asked.at(-1)!.since, first.layer);
});

Deno.test("a backup replaces no file unasked, and leaves none that is not complete", async () => {
  await using bench = await Bench.start();
  await bench.snapshot("web", "a", randomBytes(MIB, 3));
  await bench.agent.runWell("disk snapshot web@b"); // nobody serves it
  const file = bench.path("a.kb");
  await Deno.writeTextFile(file, "mine");
  const refused = await bench.agent.run(["disk", "backup", "web@a", file]);
  assertEquals(refused.code, 3);
  assertMatch(refused.stderr, /will not write over .*a\.kb unasked/);
  const failed = await bench.agent.run(["disk", "backup", "web@b", file, "--yes"]);
  assertEquals(failed.code, 2);
  const interrupted = await bench.agent.run(
    ["disk", "backup", "web@a", file, "--yes"],
    (terminal: FakeTerminal) => terminal.interrupt(),
  );
  assertEquals(interrupted.code, 130);
  assertEquals(await Deno.readTextFile(file), "mine");
  const left = [...Deno.readDirSync(bench.agent.runDir)].map(({ name }) => name);
  assertEquals(left.filter((name) => name.includes("partial")), []);
  const cases: [words: string, code: number, message: RegExp][] = [
    ["disk backup web", 64, /"web" is no snapshot/],
    ["disk backup web@c", 5, /no snapshot named "c"/],
    ["disk backup web@a --since c", 5, /no snapshot named "c"/],
    ["disk backup web@a --since b", 64, /web@b is no older snapshot that this goes on from/],
    ["disk backup web@a --since a/b", 64, /--since <snapshot>: .*cannot be the name/],
    ["disk backup web@a --compress gzip", 64, /--compress <how> "gzip": allowed choices are/],
    ["disk backup web@a --json", 64, /--json needs a file/],
    ["disk restore /no/such/file web2", 5, /./],
    ["disk restore - ../web", 64, /cannot be the name of a disk/],
  ];
  for (const [words, code, message] of cases) {
    const ran = await bench.agent.run(words);
    assertEquals([words, ran.code], [words, code], ran.stderr);
    assertMatch(ran.stderr, message);
  }
  const terminal = await bench.agent.run("disk backup web@a", (each) => {
    each.isOutTerminal = true;
  });
  assertMatch(terminal.stderr, /will not print a backup to a terminal/);
});

Deno.test("a file that is torn or altered makes no disk, and takes none away", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(3 * MIB, 4);
  await bench.snapshot("web", "a", content);
  const file = bench.path("a.kb");
  await bench.agent.runWell(["disk", "backup", "web@a", file]);
  const good = await Deno.readFile(file);
  await bench.serve("web.restoring", new Uint8Array(3 * MIB));
  const damage: [what: string, bytes: Uint8Array, at: string][] = [
    ["torn", good.subarray(0, 2 * MIB), `byte ${2 * MIB}: the file ends here`],
    ["empty", new Uint8Array(0), "byte 0: the file ends here"],
    ["altered", good.with(2 * MIB + 5, good[2 * MIB + 5] ^ 4), "byte \\d+: \\d+ bytes of data"],
    ["more", new Uint8Array([...good, 0]), `byte ${good.length}: something comes behind`],
    ["another thing", randomBytes(5000, 5), "byte 0: this is no backup of Kelpie"],
  ];
  for (const [what, bytes, message] of damage) {
    for (const source of [file, "-"]) {
      await Deno.writeFile(file, bytes);
      const { code, stderr } = await bench.agent.run(
        ["disk", "restore", source, "web", "--yes"],
        (terminal) => {
          terminal.input = bytes.slice();
          terminal.readBytesMax = 100_000;
        },
      );
      assertEquals(code, 1, `${what}: ${stderr}`);
      assertMatch(stderr, new RegExp(`refused at ${message}`), what);
      assertEquals(bench.names(), ["web"], what);
    }
  }
  // The good one replaces, but not unasked.
  await Deno.writeFile(file, good);
  const unasked = await bench.agent.run(["disk", "restore", file, "web"]);
  assertEquals(unasked.code, 3);
  const old = bench.agent.backend.clusterMap.disks[0].id;
  await bench.agent.runWell(["disk", "restore", file, "web", "--yes"]);
  assert(equal(await bench.content("web.restoring"), content));
  assertEquals(bench.names(), ["web"]);
  assertEquals(bench.agent.backend.clusterMap.trash.map(({ disk }) => disk.id), [old]);
});

Deno.test("a restore that is not the only one says so, and leaves the other one alone", async () => {
  await using bench = await Bench.start();
  await bench.snapshot("web", "a", randomBytes(MIB, 6));
  const file = bench.path("a.kb");
  await bench.agent.runWell(["disk", "backup", "web@a", file]);
  bench.agent.backend.add("copy.restoring");
  const { code, stderr } = await bench.agent.run(["disk", "restore", file, "copy"]);
  assertEquals(code, 3);
  assertMatch(
    stderr,
    /another restore to disk copy has begun\n +if it has ended badly: kelpie disk/,
  );
  assertEquals(bench.names(), ["copy.restoring", "web"]);
});
