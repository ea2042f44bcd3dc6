/**
 * The bytes of a disk, through the command line, with `qemu-storage-daemon` serving the disk's socket.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Buffer } from "node:buffer";
import { Prng } from "../../agent/base/prng.ts";
import { RequestType } from "../../agent/frontend/virtio_blk.ts";
import { MockBackEnd, type MockRequest } from "../frontend/mock_back_end.ts";
import { ensurePackages } from "../guest/install.ts";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { IDLE_DISK, sessionWith } from "../http/fake_backend.ts";
import type { Extent } from "../../agent/http/backend.ts";
import { clusterWithDisk } from "../map/cluster.ts";
import { FakeAgent, type FakeTerminal } from "./fixture.ts";

const MIB = 1024 ** 2;

/** Bytes in which no two sectors are alike. */
function randomBytes(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const random = new Prng(seed);
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let index = 0; index < words.length; index++) words[index] = random.u32();
  return new Uint8Array(words.buffer, 0, length);
}

/** A fake agent, and disks that are real. */
class Bench implements AsyncDisposable {
  readonly #daemons: StorageDaemon[] = [];

  private constructor(readonly agent: FakeAgent) {}

  static async start(): Promise<Bench> {
    const agent = await FakeAgent.start();
    await Deno.mkdir(`${agent.runDir}/ro`);
    return new Bench(agent);
  }

  /** Path of a file of the test's own. */
  path(name: string): string {
    return `${this.agent.runDir}/${name}`;
  }

  /** Path of the file behind a disk. */
  behind(name: string): string {
    return this.path(`${name}.disk`);
  }

  /** Serves a disk's sockets. The agent knows the disk only when it is added. */
  async serve(name: string, content: Uint8Array): Promise<void> {
    await Deno.writeFile(this.behind(name), content);
    const socket = this.path(`${name}.sock`);
    const options = { file: this.behind(name), socket };
    this.#daemons.push(await StorageDaemon.start(options));
    await Deno.symlink(socket, this.path(`ro/${name}.sock`));
  }

  async add(name: string, content: Uint8Array): Promise<void> {
    await this.serve(name, content);
    this.agent.backend.add(name, content.length);
  }

  /** What is on a disk. */
  content(name: string): Promise<Uint8Array<ArrayBuffer>> {
    return Deno.readFile(this.behind(name));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.#daemons) await daemon.stop();
    await this.agent[Symbol.asyncDispose]();
  }
}

/** Space that a file takes. */
function allocatedBytes(path: string): number {
  return (Deno.statSync(path).blocks ?? 0) * 512;
}

const input = (bytes: Uint8Array, readBytesMax = Infinity) => (terminal: FakeTerminal) => {
  terminal.input = bytes.slice();
  terminal.readBytesMax = readBytesMax;
};

Deno.test("read gives any range, sectors or not", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(3 * MIB, 1);
  await bench.add("web", content);
  const ranges: [options: string, from: number, to: number][] = [
    ["", 0, 3 * MIB],
    ["--offset 1M", MIB, 3 * MIB],
    ["--length 512", 0, 512],
    ["--offset 1 --length 1", 1, 2],
    ["--offset 511 --length 2", 511, 513],
    ["--offset 1000 --length 1M", 1000, 1000 + MIB],
    [`--offset ${3 * MIB - 5}`, 3 * MIB - 5, 3 * MIB],
    ["--offset 3M", 3 * MIB, 3 * MIB],
    ["--length 0", 0, 0],
  ];
  for (const [options, from, to] of ranges) {
    const { terminal, stderr } = await bench.agent.runWell(`disk read web ${options}`);
    assertEquals(stderr, "");
    assert(equal(terminal.bytes, content.subarray(from, to)), options);
  }
  for (const options of ["--offset 4M", "--length 4M", "--offset 3M --length 1"]) {
    const { code, stdout, stderr } = await bench.agent.run(`disk read web ${options}`);
    assertEquals({ options, code, stdout }, { options, code: 64, stdout: "" });
    assertMatch(stderr, /the disk of 3145728 bytes/);
  }
});

Deno.test("write changes exactly the bytes that it is given", async () => {
  await using bench = await Bench.start();
  const expected = randomBytes(2 * MIB, 2);
  await bench.add("web", expected);
  const cases: [offset: number, length: number, readBytesMax: number][] = [
    [0, 512, Infinity],
    [4096, 4096, 100],
    [1, 1, Infinity],
    [511, 2, Infinity],
    [1000, 24, Infinity], // up to the end of a sector
    [700_001, 600_001, 7777],
    [2 * MIB - 3, 3, Infinity],
    [100, 0, Infinity],
  ];
  let seed = 100;
  for (const [offset, length, readBytesMax] of cases) {
    const data = randomBytes(length, seed++);
    expected.set(data, offset);
    const words = `disk write web --offset ${offset}`;
    const { stdout, stderr } = await bench.agent.runWell(words, input(data, readBytesMax));
    assertEquals(stdout, "");
    assertMatch(stderr, /^wrote \S+ in .* to disk web\n$/);
    assert(equal(await bench.content("web"), expected), words);
  }
  const file = bench.path("data");
  const data = randomBytes(5000, 3);
  await Deno.writeFile(file, data);
  expected.set(data, 0);
  await bench.agent.runWell(["disk", "write", "web", file]);
  assert(equal(await bench.content("web"), expected));
});

Deno.test("write refuses what does not fit", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(MIB, 4);
  await bench.add("web", content);
  const file = bench.path("data");
  await Deno.writeFile(file, new Uint8Array(MIB));
  const known = await bench.agent.run(["disk", "write", "web", file, "--offset", "1"]);
  assertEquals(known.code, 64);
  assert(equal(await bench.content("web"), content)); // known before anything was written
  const unknown = await bench.agent.run("disk write web", input(new Uint8Array(MIB + 1)));
  assertEquals(unknown.code, 1);
  assertMatch(unknown.stderr, /too small: 1048576 bytes were written, and there are more/);
  assertEquals((await bench.agent.run("disk write web /no/file")).code, 5);
});

Deno.test("import of a raw image makes the disk, sized up to whole sectors", async () => {
  await using bench = await Bench.start();
  await bench.serve("web.importing", new Uint8Array(2 * MIB));
  const image = randomBytes(2 * MIB - 100, 5);
  await Deno.writeFile(bench.path("image"), image);
  const { stderr } = await bench.agent.runWell(["disk", "import", bench.path("image"), "web"]);
  assertMatch(stderr, /^imported 2M in .* into disk web\n$/);
  assertEquals(bench.agent.backend.clusterMap.disks[0].sizeBytes, 2 * MIB);
  const content = await bench.content("web.importing");
  assert(equal(content.subarray(0, image.length), image));
  assert(content.subarray(image.length).every((byte) => byte === 0));
});

Deno.test("import finds data between holes, and leaves zeros out", async () => {
  await using bench = await Bench.start();
  const content = new Uint8Array(8 * MIB);
  for (const [offset, length, seed] of [[0, 512, 20], [5 * MIB - 1, 5000, 21], [7 * MIB, 9, 22]]) {
    content.set(randomBytes(length, seed), offset);
  }
  const image = bench.path("image");
  await Deno.writeFile(image, content); // zeros that are written out
  await bench.serve("web.importing", new Uint8Array(8 * MIB));
  await Deno.truncate(bench.behind("web.importing"), 0);
  await Deno.truncate(bench.behind("web.importing"), 8 * MIB);
  await bench.agent.runWell(["disk", "import", image, "web"]);
  assert(equal(await bench.content("web.importing"), content));
  const allocated = allocatedBytes(bench.behind("web.importing"));
  assert(allocated <= MIB, `${allocated} bytes are allocated`);

  const { RawTarget } = await import("../../cli/raw_file.ts");
  const sparse = bench.path("sparse");
  {
    using target = await RawTarget.open({
      file: { path: sparse, kind: "file" },
      shown: sparse,
      sizeBytes: content.length,
    });
    target.writeAt(content, 0);
  }
  assert(allocatedBytes(sparse) < MIB);
  await bench.serve("db.importing", new Uint8Array(8 * MIB));
  await bench.agent.runWell(["disk", "import", sparse, "db"]);
  assert(equal(await bench.content("db.importing"), content));
});

Deno.test("the extents of a sparse file cover its data and little else", async () => {
  const { RawSource } = await import("../../cli/raw_file.ts");
  const path = await Deno.makeTempFile();
  try {
    const write = async (offset: number, length: number) => {
      using file = await Deno.open(path, { write: true });
      await file.seek(offset, Deno.SeekMode.Start);
      await file.write(randomBytes(length, offset + 1));
    };
    const extents = () => {
      using source = new RawSource(path);
      return [...source.extents()].map((
        { offsetBytes, lengthBytes },
      ) => [offsetBytes, lengthBytes]);
    };
    assertEquals(extents(), []); // empty
    await Deno.truncate(path, 100 * MIB);
    assertEquals(extents(), []); // one hole
    await write(10 * MIB, 4096);
    await write(50 * MIB, 1);
    assertEquals(extents(), [[10 * MIB, 4096], [50 * MIB, 4096]]);
    await write(100 * MIB, 100);
    assertEquals(extents().at(-1), [100 * MIB, 100]); // up to the end, which is in no whole block
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("import from standard input needs a size for a disk that is not there", async () => {
  await using bench = await Bench.start();
  await bench.serve("web.importing", new Uint8Array(MIB));
  const refused = await bench.agent.run("disk import - web", input(new Uint8Array(512)));
  assertEquals(refused.code, 64);
  assertMatch(refused.stderr, /--size/);
  const image = randomBytes(300_000, 6);
  await bench.agent.runWell("disk import - web --size 1M", input(image, 4321));
  assert(equal((await bench.content("web.importing")).subarray(0, image.length), image));
});

Deno.test("import asks before it replaces a disk that holds data, and then replaces all of it", async () => {
  await using bench = await Bench.start();
  await bench.add("web", randomBytes(2 * MIB, 7));
  bench.agent.backend.statuses.set("web", { ...IDLE_DISK, allocatedBytes: 2 * MIB });
  const image = new Uint8Array(MIB);
  image.set(randomBytes(4096, 8), 512 * 1024);
  await Deno.writeFile(bench.path("image"), image);
  const words = ["disk", "import", bench.path("image"), "web"];
  const refused = await bench.agent.run(words);
  assertEquals(refused.code, 3);
  assertMatch(refused.stderr, /will not replace disk web .*2M of data\n +add --yes/);
  const asked = await bench.agent.run(words, (terminal) => {
    terminal.isInputTerminal = terminal.isErrorTerminal = true;
    terminal.answers = ["no"];
  });
  assertEquals(asked.code, 1);
  assert(equal(await bench.content("web"), randomBytes(2 * MIB, 7)));
  await bench.agent.runWell([...words, "--yes"]);
  const expected = new Uint8Array(2 * MIB);
  expected.set(image);
  assert(equal(await bench.content("web"), expected));
});

Deno.test("import refuses an image that is larger than the disk", async () => {
  await using bench = await Bench.start();
  await bench.add("web", new Uint8Array(MIB));
  await Deno.writeFile(bench.path("image"), new Uint8Array(2 * MIB));
  const { code, stderr } = await bench.agent.run(["disk", "import", bench.path("image"), "web"]);
  assertEquals(code, 1);
  assertMatch(stderr, /2M .*more than disk web with 1M\n +kelpie disk resize web/);
  const piped = await bench.agent.run("disk import - web --yes", input(randomBytes(MIB + 1, 9)));
  assertEquals(piped.code, 1);
  assertMatch(piped.stderr, /the image is larger than disk web with 1M/);
});

Deno.test("an import that fails takes the disk away again that it has made", async () => {
  await using bench = await Bench.start();
  await Deno.writeFile(bench.path("image"), randomBytes(MIB, 10));
  // Nobody serves the new disk's socket.
  const { code } = await bench.agent.run(["disk", "import", bench.path("image"), "web"]);
  assertEquals(code, 2);
  assertEquals(bench.agent.backend.clusterMap.disks, []);

  await bench.serve("db.importing", new Uint8Array(MIB));
  const interrupted = await bench.agent.run("disk import - db --size 1M", (terminal) => {
    terminal.input = randomBytes(MIB, 11);
    terminal.interrupt();
  });
  assertEquals(interrupted.code, 130);
  assertEquals(bench.agent.backend.clusterMap.disks, []);
});

Deno.test("export writes a raw file with holes, and only a complete one", async () => {
  await using bench = await Bench.start();
  const content = new Uint8Array(16 * MIB);
  content.set(randomBytes(5000, 12), 3 * MIB);
  content.set(randomBytes(512, 13), 16 * MIB - 512);
  await bench.add("web", content);
  const file = bench.path("web.raw");
  const { stdout, stderr } = await bench.agent.runWell(["disk", "export", "web", file]);
  assertEquals(stdout, "");
  assertMatch(stderr, /^exported 16M in .* from disk web to /);
  assert(equal(await Deno.readFile(file), content));
  assert(allocatedBytes(file) < MIB, `${allocatedBytes(file)} bytes are allocated`);

  const refused = await bench.agent.run(["disk", "export", "web", file]);
  assertEquals(refused.code, 3);
  assertMatch(refused.stderr, /--yes/);
  await Deno.writeTextFile(file, "old");
  await bench.agent.runWell(["disk", "export", "web", file, "--yes"]);
  assert(equal(await Deno.readFile(file), content));

  await Deno.writeTextFile(file, "old");
  const interrupted = await bench.agent.run(
    ["disk", "export", "web", file, "--yes"],
    (terminal) => terminal.interrupt(),
  );
  assertEquals(interrupted.code, 130);
  assertEquals(await Deno.readTextFile(file), "old");
  const left = [...Deno.readDirSync(bench.agent.runDir)].map(({ name }) => name);
  assertEquals(left.filter((name) => name.includes("partial")), []);
});

Deno.test("a snapshot is read and exported beside the disk, which holds something else by now", async () => {
  await using bench = await Bench.start();
  const before = randomBytes(MIB, 21);
  await bench.add("web", randomBytes(2 * MIB, 22));
  await bench.serve("web@monday", before);
  const { backend } = bench.agent;
  await backend.propose({ kind: "resize-disk", name: "web", sizeBytes: MIB, shrink: true });
  await backend.propose({ kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 });
  await backend.propose({ kind: "resize-disk", name: "web", sizeBytes: 2 * MIB });
  backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  const piece = await bench.agent.runWell("disk read web@monday --offset 1000 --length 5000");
  assert(equal(piece.terminal.bytes, before.subarray(1000, 6000)));
  const file = bench.path("monday.raw");
  const { stderr } = await bench.agent.runWell(["disk", "export", "web@monday", file]);
  // Whoever uses the disk changes nothing about the snapshot: there is nothing to warn of.
  assertMatch(stderr, /^exported 1M in .* from snapshot web@monday to /);
  assert(equal(await Deno.readFile(file), before));
  const piped = await bench.agent.runWell("disk export web@monday -");
  assert(equal(piped.terminal.bytes, before));
  const missing = await bench.agent.run("disk read web@friday");
  assertEquals(missing.code, 5);
  assertMatch(missing.stderr, /disk web has no snapshot named "friday"/);
  const wrong = await bench.agent.run("disk read web@");
  assertEquals(wrong.code, 64);
});

Deno.test("export to standard output is the whole disk", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(MIB, 14);
  await bench.add("web", content);
  bench.agent.backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  const { terminal, stderr } = await bench.agent.runWell("disk export web -");
  assert(equal(terminal.bytes, content));
  assertMatch(stderr, /warning: disk web is in use by .*4711.*no single moment/);
});

Deno.test("qcow2 comes back as it went out", async () => {
  await ensurePackages(["qemu-img"]);
  await using bench = await Bench.start();
  const content = new Uint8Array(4 * MIB);
  content.set(randomBytes(100_000, 15), MIB + 512);
  await bench.add("web", content);
  const file = bench.path("web.qcow2");
  const temporary = (terminal: FakeTerminal) => terminal.variables.TMPDIR = bench.agent.runDir;
  const words = ["disk", "export", "web", file, "--format", "qcow2"];
  await bench.agent.runWell(words, temporary);
  assertEquals(new TextDecoder().decode((await Deno.readFile(file)).subarray(0, 3)), "QFI");
  assert(Deno.statSync(file).size < 2 * MIB);

  await bench.serve("copy.importing", new Uint8Array(8 * MIB));
  const into = ["disk", "import", file, "copy", "--size", "8M"];
  await bench.agent.runWell(into, temporary);
  assert(equal((await bench.content("copy.importing")).subarray(0, content.length), content));
  const left = [...Deno.readDirSync(bench.agent.runDir)].map(({ name }) => name);
  assertEquals(left.filter((name) => name.startsWith("kelpie-")), []);

  const wrong = await bench.agent.run(["disk", "import", file, "x", "--format", "vmdk"], temporary);
  assertEquals(wrong.code, 1);
  assertMatch(wrong.stderr, /qemu-img info failed/);
  const unknown = await bench.agent.run(
    ["disk", "export", "web", bench.path("y"), "--format", "qcow9"],
    temporary,
  );
  assertEquals(unknown.code, 1);
  assertMatch(unknown.stderr, /qemu-img convert failed/);
});

Deno.test("import asks once, before it converts", async () => {
  await ensurePackages(["qemu-img"]);
  await using bench = await Bench.start();
  const content = randomBytes(MIB, 23);
  await bench.add("web", content);
  bench.agent.backend.statuses.set("web", { ...IDLE_DISK, allocatedBytes: MIB });
  const file = bench.path("web.qcow2");
  await bench.agent.runWell(["disk", "export", "web", file, "--format", "qcow2"]);
  const { terminal } = await bench.agent.runWell(["disk", "import", file, "web"], (terminal) => {
    terminal.isInputTerminal = terminal.isErrorTerminal = true;
    terminal.answers = ["yes"];
  });
  assertEquals(terminal.questions.length, 1);
  assert(equal(await bench.content("web"), content));
});

Deno.test("import reads no file that an image names, unless it is told to", async () => {
  await ensurePackages(["qemu-img"]);
  await using bench = await Bench.start();
  const content = randomBytes(MIB, 24);
  await Deno.writeFile(bench.path("secret"), content);
  const cases: readonly (readonly string[])[] = [
    ["create", "-q", "-f", "qcow2", "-b", "secret", "-F", "raw", "overlay"],
    ["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "secret", "flat.vmdk"],
    ["convert", "-O", "qcow2", "-o", `data_file=${bench.path("data")}`, "secret", "outside"],
  ];
  for (const [index, args] of cases.entries()) {
    const made = new Deno.Command("qemu-img", { args: [...args], cwd: bench.agent.runDir });
    assert((await made.output()).success);
    const name = `disk${index}`;
    const words = ["disk", "import", bench.path(args.at(-1)!), name];
    const { code, stderr } = await bench.agent.run(words);
    assertEquals(code, 1);
    assertMatch(stderr, /wants other files to be read: \S+\n +add --follow/);
    await bench.serve(`${name}.importing`, new Uint8Array(MIB));
    await bench.agent.runWell([...words, "--follow"]);
    assert(equal(await bench.content(`${name}.importing`), content), args.join(" "));
  }
});

Deno.test("import refuses an image that is cut short, by itself or in what it goes on from", async () => {
  await ensurePackages(["qemu-img"]);
  await using bench = await Bench.start();
  await Deno.writeFile(bench.path("raw"), randomBytes(MIB, 25).map((byte) => byte | 1));
  const qemuImg = async (...args: string[]) => {
    const made = new Deno.Command("qemu-img", { args, cwd: bench.agent.runDir });
    assert((await made.output()).success);
  };
  await qemuImg("convert", "-O", "qcow2", "raw", "base");
  await qemuImg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "overlay");
  const { size } = await Deno.stat(bench.path("base"));
  const cases: [image: string, ...options: string[]][] = [["base"], ["overlay", "--follow"]];
  await Deno.truncate(bench.path("base"), size - 1000);
  for (const [image, ...options] of cases) {
    const { code, stderr } = await bench.agent.run(
      ["disk", "import", bench.path(image), "web", ...options],
    );
    assertEquals(code, 1, stderr);
    assertMatch(
      stderr,
      new RegExp(
        `/base is cut short at byte ${size - 1000}: what byte ${MIB - 1000} of the disk`,
      ),
    );
    assertEquals(bench.agent.backend.clusterMap.disks, []);
  }
  // Whole again, both are taken.
  await qemuImg("convert", "-O", "qcow2", "raw", "base");
  for (const [image, ...options] of cases) {
    await bench.serve(`${image}.importing`, new Uint8Array(MIB));
    await bench.agent.runWell(["disk", "import", bench.path(image), image, ...options]);
    const content = await bench.content(`${image}.importing`);
    assert(equal(content, await Deno.readFile(bench.path("raw"))), image);
  }
});

Deno.test("discard forgets a range, and asks first", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(4 * MIB, 16);
  await bench.add("web", content);
  assertEquals((await bench.agent.run("disk discard web --offset 1M --length 1M")).code, 64);
  assertEquals((await bench.agent.run("disk discard web --offset 100 --yes")).code, 64);
  assert(equal(await bench.content("web"), content));
  await bench.agent.runWell("disk discard web --offset 1M --length 1M --yes");
  content.fill(0, MIB, 2 * MIB);
  assert(equal(await bench.content("web"), content));
});

/** Commands that write to disk "web", and `--yes` where they ask. */
const WRITING = [
  "disk write web",
  "disk discard web --yes",
  "disk import - web --yes",
  "disk preallocate web",
  "bench web --rw write --yes",
];

Deno.test("commands that write refuse a disk that is open on another node, and say what to do", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(MIB, 41);
  await bench.add("web", content);
  const { backend } = bench.agent;
  const [web] = backend.clusterMap.disks;
  const { nodes } = clusterWithDisk(2, 2);
  const open = (node: number) => {
    const disks = [{ ...web, lease: { node, incarnation: 1 } }];
    backend.clusterMap = { ...backend.clusterMap, nodes, disks };
  };
  open(2);
  for (const words of WRITING) {
    const { code, stderr } = await bench.agent.run(words, input(new Uint8Array(4096)));
    assertEquals({ words, code }, { words, code: 1 }, stderr);
    assertMatch(
      stderr,
      /disk web is open on node host-2\n +stop its guest .*'kelpie disk lock release web'/,
    );
  }
  assert(equal(await bench.content("web"), content));
  // Both are about to be over.
  for (const [node, part] of [[1, { isSelf: true }], [2, { state: "down" }]] as const) {
    open(node);
    backend.nodeParts.set(node, part);
    await bench.agent.runWell("disk write web", input(new Uint8Array(4096)));
  }
});

/** A disk "web" whose back end keeps every request, as an agent does that has not got the disk; told of each. */
async function withHeldDisk(
  onRequest: (bench: Bench, request: MockRequest) => void,
  test: (bench: Bench, requests: readonly MockRequest[]) => Promise<void>,
): Promise<void> {
  await using bench = await Bench.start();
  bench.agent.backend.add("web", 64 * MIB);
  const requests: MockRequest[] = [];
  await using _mock = new MockBackEnd(bench.path("web.sock"), {
    handle(request) {
      requests.push(request);
      onRequest(bench, request);
      return false;
    },
  });
  await test(bench, requests);
}

Deno.test("a command that waits for its disk gives up when another node gets it, and has asked nothing of it", async () => {
  for (const words of WRITING.filter((words) => !words.startsWith("bench"))) {
    await withHeldDisk(({ agent: { backend } }) => {
      const [web] = backend.clusterMap.disks;
      const disks = [{ ...web, lease: { node: 2, incarnation: 1 } }];
      backend.clusterMap = { ...backend.clusterMap, disks };
    }, async (bench, requests) => {
      const { code, stderr } = await bench.agent.run(words, input(new Uint8Array(4096)));
      assertEquals({ words, code }, { words, code: 1 }, stderr);
      assertMatch(stderr, /disk web is open on node/);
      assertEquals(requests.map(({ type }) => type), [RequestType.GetId]);
    });
  }
});

Deno.test("a signal ends a command that waits for its disk", async () => {
  for (const words of WRITING) {
    let terminal: FakeTerminal;
    await withHeldDisk(() => terminal.interrupt("SIGTERM"), async (bench, requests) => {
      const ran = await bench.agent.run(words, (its) => {
        terminal = its;
        its.input = new Uint8Array(4096);
      });
      const isBench = words.startsWith("bench"); // what it has measured is told all the same
      assertEquals({ words, code: ran.code }, { words, code: isBench ? 0 : 143 }, ran.stderr);
      if (!isBench) assertEquals(requests.map(({ type }) => type), [RequestType.GetId]);
    });
  }
});

/** A disk "web" with a snapshot "monday" of this content, whose socket is served, and one for a disk "copy" that is to be made. */
async function withSnapshot(bench: Bench, content: Uint8Array): Promise<void> {
  const { backend } = bench.agent;
  backend.clusterMap = { ...backend.clusterMap, level: 2 };
  backend.add("web", content.length);
  await bench.agent.runWell("disk snapshot web@monday");
  await bench.serve("web@monday", content);
  await bench.serve("copy.cloning", new Uint8Array(content.length));
}

/** Three MiB: data, nothing, and zeros between data. */
function patchy(): Uint8Array<ArrayBuffer> {
  const content = randomBytes(3 * MIB, 31);
  content.fill(0, MIB, 2 * MIB);
  for (let at = 2 * MIB; at < 3 * MIB; at += 5 * 4096) content.fill(0, at, at + 4096);
  return content;
}

Deno.test("preallocate writes zeros where nothing is, and nowhere else", async () => {
  for (const [isKnown, kind] of [[true, "hole"], [true, "zero"], [false, "hole"]] as const) {
    await using bench = await Bench.start();
    const content = patchy();
    await bench.add("web", content);
    // The file behind the disk is sparse where it is zeros.
    const sparse = await Deno.open(bench.behind("web"), { write: true });
    await sparse.truncate(0);
    await sparse.truncate(content.length);
    for (let at = 0; at < content.length; at += 4096) {
      const block = content.subarray(at, at + 4096);
      if (block.every((byte) => byte === 0)) continue;
      await sparse.seek(at, Deno.SeekMode.Start);
      await sparse.write(block);
    }
    sparse.close();
    assert(allocatedBytes(bench.behind("web")) < 2 * MIB);
    const stateOf = (at: number) =>
      content.subarray(at, at + 4096).every((byte) => byte === 0) ? kind : "data" as const;
    bench.agent.backend.onExtents = (_name, { offsetBytes, lengthBytes }) => {
      if (!isKnown) return Promise.resolve([{ lengthBytes, state: "unknown" }]);
      const extents: Extent[] = [];
      const end = Math.min(offsetBytes + lengthBytes, offsetBytes + 200 * 4096);
      for (let at = offsetBytes; at < end; at += 4096) {
        extents.push({ lengthBytes: 4096, state: stateOf(at) });
      }
      return Promise.resolve(extents);
    };
    const { stderr } = await bench.agent.runWell("disk preallocate web");
    assertMatch(stderr, /^all of disk web has space now: wrote 1\.2M in /m);
    assert(equal(await bench.content("web"), content), "the disk has changed");
    assert(allocatedBytes(bench.behind("web")) >= 3 * MIB);
    bench.agent.backend.onExtents = (_name, { lengthBytes }) =>
      Promise.resolve([{ lengthBytes, state: "data" }]);
    const again = await bench.agent.runWell("disk preallocate web");
    assertMatch(again.stderr, /^all of disk web has space already$/m);
  }
});

Deno.test("preallocate says that a disk shares data, also where the snapshot that it was cloned from is gone", async () => {
  await using bench = await Bench.start();
  await bench.add("web", new Uint8Array(MIB));
  await bench.serve("clone", new Uint8Array(MIB));
  bench.agent.backend.onExtents = (_name, { lengthBytes }) =>
    Promise.resolve([{ lengthBytes, state: "data" }]);
  const { backend } = bench.agent;
  const nowMs = 1;
  const snapshot = { disk: "web", snapshot: "s", nowMs } as const;
  await backend.propose({ kind: "create-snapshots", disks: [1], name: "s", nowMs });
  await backend.propose({ kind: "clone-disk", ...snapshot, name: "clone" });
  const warning = async () => (await bench.agent.runWell("disk preallocate clone")).stderr;
  assertMatch(await warning(), /shares data with snapshots/);
  await backend.propose({ kind: "clone-disk", ...snapshot, name: "other" });
  await backend.propose({ kind: "delete-disk", name: "web" });
  assertMatch(await warning(), /shares data with other disks: what is written over that needs/);
  await backend.propose({ kind: "delete-disk", name: "other" });
  assert(!/shares/.test(await warning()));
});

Deno.test("preallocate goes on where it was interrupted, and a disk that was made for it stays", async () => {
  await using bench = await Bench.start();
  await bench.serve("db", new Uint8Array(MIB));
  const words = "disk create db 1M --preallocate";
  const interrupted = await bench.agent.run(words, (terminal) => terminal.interrupt());
  assertEquals(interrupted.code, 130);
  assertMatch(interrupted.stderr, /'kelpie disk preallocate db' goes on/);
  assertEquals(bench.agent.backend.clusterMap.disks.map(({ name }) => name), ["db"]);
  const { stderr } = await bench.agent.runWell("disk preallocate db");
  assertMatch(stderr, /all of disk db has space now/);
  assert(allocatedBytes(bench.behind("db")) >= MIB);
});

Deno.test("preallocate refuses what is open, cannot be written, or keeps zeros as holes", async () => {
  await using bench = await Bench.start();
  await bench.add("web", new Uint8Array(MIB));
  const { backend } = bench.agent;
  const refused = async (words: string, code: number, message: RegExp) => {
    const ran = await bench.agent.run(words);
    assertEquals(ran.code, code, ran.stderr);
    assertMatch(ran.stderr, message);
    assertEquals(allocatedBytes(bench.behind("web")), before);
  };
  const before = allocatedBytes(bench.behind("web"));
  const disks = backend.clusterMap.disks.length;
  await refused(
    "disk create db 1M --preallocate --detect-zeroes",
    64,
    /contradict each other\n +with it blocks of zeros take no space/,
  );
  await refused("disk create db 1M --preallocate --read-only", 64, /contradict each other/);
  assertEquals(backend.clusterMap.disks.length, disks, "nothing is made");
  backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  await refused("disk preallocate web", 1, /disk web is in use by .*4711/);
  backend.statuses.delete("web");
  const [web] = backend.clusterMap.disks;
  const change = (part: Partial<typeof web>) =>
    backend.clusterMap = { ...backend.clusterMap, disks: [{ ...web, ...part }] };
  change({ lease: { node: 3, incarnation: 1 } });
  await refused("disk preallocate web", 1, /disk web is open on node/);
  change({ readOnly: true });
  await refused("disk preallocate web", 1, /disk web is read-only/);
  change({ detectZeroes: true });
  await refused("disk preallocate web", 1, /detect-zeroes on\n.*--detect-zeroes off' first/);
});

Deno.test("preallocate says which node lacks how much, and a disk that was made for it goes again", async () => {
  await using bench = await Bench.start();
  const { backend } = bench.agent;
  backend.clusterMap = clusterWithDisk(2, 2);
  const capacityBytes = backend.clusterMap.nodes[0].capacityBytes;
  const pools = backend.clusterMap.pools.map((pool) => ({
    ...pool,
    pgs: pool.pgs.map((pg) => ({ ...pg, target: [1, 2], inSync: [1, 2] })),
  }));
  backend.clusterMap = { ...backend.clusterMap, pools };
  backend.nodeParts.set(2, { usedBytes: capacityBytes - 256 * MIB });
  const { code, stderr } = await bench.agent.run("disk create db 1G --copies 2 --preallocate");
  assertEquals(code, 4, stderr);
  assertMatch(stderr, /too little space for all of disk db: 768M on node host-2 is missing/);
  assertEquals(backend.clusterMap.disks.map(({ name }) => name), ["web"]);
});

Deno.test("clone --full copies a snapshot into a disk of its own, and leaves holes", async () => {
  await using bench = await Bench.start();
  const content = randomBytes(9 * MIB + 512, 20);
  content.fill(0, MIB, 5 * MIB);
  await withSnapshot(bench, content);
  await Deno.truncate(bench.behind("copy.cloning"), 0);
  await Deno.truncate(bench.behind("copy.cloning"), content.length);
  const { stdout, stderr } = await bench.agent.runWell(
    "disk clone web@monday copy --full --read-only",
  );
  assertEquals(stdout, "");
  assertMatch(stderr, /^copied web@monday to disk copy: 9M in /);
  assert(equal(await bench.content("copy.cloning"), content));
  assert(allocatedBytes(bench.behind("copy.cloning")) < 6 * MIB);
  const made = bench.agent.backend.clusterMap.disks.find(({ name }) => name === "copy")!;
  assertEquals([made.family, made.readOnly, made.sizeBytes], [made.id, true, content.length]);
});

Deno.test("clone --full that fails or is interrupted leaves no disk behind", async () => {
  const names = (bench: Bench) => bench.agent.backend.clusterMap.disks.map(({ name }) => name);
  const cases: [why: string, code: number, spoil: (bench: Bench) => Promise<void>][] = [
    ["the snapshot cannot be read", 2, (bench) => Deno.remove(bench.path("web@monday.sock"))],
    ["the new disk cannot be written", 2, (bench) => Deno.remove(bench.path("copy.cloning.sock"))],
    ["sizes differ", 1, async (bench) => {
      await bench.serve("other", new Uint8Array(MIB));
      await Deno.rename(bench.path("other.sock"), bench.path("copy.cloning.sock"));
    }],
  ];
  for (const [why, code, spoil] of cases) {
    await using bench = await Bench.start();
    await withSnapshot(bench, randomBytes(2 * MIB, 21));
    await spoil(bench);
    const ran = await bench.agent.run("disk clone web@monday copy --full");
    assertEquals({ why, code: ran.code }, { why, code }, ran.stderr);
    assertEquals({ why, names: names(bench) }, { why, names: ["web"] });
    assertEquals(bench.agent.backend.clusterMap.trash, []);
  }
  await using bench = await Bench.start();
  await withSnapshot(bench, randomBytes(2 * MIB, 22));
  const ran = await bench.agent.run(
    "disk clone web@monday copy --full",
    (terminal) => terminal.interrupt(),
  );
  assertEquals(ran.code, 130, ran.stderr);
  assertEquals(names(bench), ["web"]);
});

Deno.test("bench measures whatever listens", async () => {
  await using bench = await Bench.start();
  await bench.add("web", randomBytes(4 * MIB, 17));
  const socket = bench.path("web.sock");
  const words = ["bench", "--socket", socket, "--rw", "randrw", "--count", "64", "--depth", "4"];
  const { stdout } = await bench.agent.runWell([...words, "--flush-every", "8", "--yes"]);
  assertMatch(stdout, /^randrw 4K, depth 4, 1 queue: \d+ IOPS, [\d.]+ MB\/s$/m);
  assertMatch(stdout, /^read +\d+/m);
  assertMatch(stdout, /^flush +\d+/m);
  const json = await bench.agent.runWell("bench web --rw read --block-size 64K --count 16 --json");
  assertEquals(JSON.parse(json.stdout).operations, 16);
  const verified = await bench.agent.runWell(
    "bench web --rw randwrite --count 32 --size 1M --verify --yes",
  );
  assertMatch(verified.stdout, /^verified \d+ blocks, 0 wrong$/m);
});

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
