/**
 * Images and backups on block devices, in /dev/shm, and behind descriptors that a shell has opened, with the permissions that the
 * program has.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { DescriptorFile } from "../../agent/platform/linux/file.ts";
import { find } from "../guest/install.ts";
import { AgentProcess, type Ended, kelpie, WorkDirectory } from "../tools/agent_process.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 4 * MIB;

/** What the test's disk holds: data, and zeros that are longer than what a file would have as a hole. */
function content(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(DISK_BYTES);
  new Prng(71).fill(bytes);
  return bytes.fill(0, MIB, 3 * MIB);
}

/** A block device over a file. */
class LoopDevice implements AsyncDisposable {
  private constructor(readonly path: string) {}

  /** @returns null where nobody may make one */
  static async make(file: string, bytes: Uint8Array): Promise<LoopDevice | null> {
    await Deno.writeFile(file, bytes);
    const losetup = find("losetup");
    if (losetup === undefined) return null;
    const made = await new Deno.Command(losetup, { args: ["--find", "--show", file] }).output();
    return made.success ? new LoopDevice(new TextDecoder().decode(made.stdout).trim()) : null;
  }

  /** What is on it. */
  content(): Uint8Array {
    return contentOf(this.path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Deno.Command(find("losetup")!, { args: ["--detach", this.path] }).output();
  }
}

/** What is in a file or on a block device, for a test that may do no more than the program. */
function contentOf(path: string): Uint8Array {
  using file = new DescriptorFile(path);
  const bytes = new Uint8Array(file.sizeBytes);
  file.seekSync(0, Deno.SeekMode.Start);
  for (let at = 0; at < bytes.length;) at += file.readSync(bytes.subarray(at))!;
  return bytes;
}

/** An agent, with a disk "web" that has a snapshot "one". */
class Bench implements AsyncDisposable {
  private constructor(readonly work: WorkDirectory, readonly agent: AgentProcess) {}

  static async start(): Promise<Bench> {
    const work = await WorkDirectory.make();
    const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "1G" };
    const bench = new Bench(work, await AgentProcess.start(options));
    await Deno.writeFile(bench.path("image"), content());
    await bench.well("disk", "import", bench.path("image"), "web");
    await bench.well("disk", "snapshot", "web@one");
    return bench;
  }

  path(name: string): string {
    return `${this.work.path}/${name}`;
  }

  async well(...args: readonly string[]): Promise<Ended> {
    const ended = await this.agent.run(...args);
    assertEquals({ args, code: ended.code }, { args, code: 0 }, ended.stderr);
    return ended;
  }

  /** Runs a command with what a shell has opened for it: `3<"$IMAGE"`. */
  async redirected(redirections: string, ...args: readonly string[]): Promise<Ended> {
    const prefix = ["bash", "-c", `exec "$@" ${redirections}`, "bash"];
    const env = { KELPIE_RUN_DIR: this.agent.runDir, WORK: this.work.path };
    const ended = await kelpie(args, { prefix, env });
    assertEquals({ args, code: ended.code }, { args, code: 0 }, ended.stderr);
    return ended;
  }

  /** What a disk holds. */
  async disk(name: string): Promise<Uint8Array> {
    return (await this.well("disk", "read", name)).stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent.kill();
    await this.work[Symbol.asyncDispose]();
  }
}

const same = (a: Uint8Array, b: Uint8Array) =>
  a.length === b.length && a.every((byte, index) => byte === b[index]);

Deno.test("images and backups go to block devices and come back", async (t) => {
  await using bench = await Bench.start();
  // What was there before shows through nowhere, and what lies behind the image stays.
  const old = new Uint8Array(DISK_BYTES + MIB).fill(0xee);
  await using device = await LoopDevice.make(bench.path("device"), old);
  await using small = await LoopDevice.make(bench.path("small"), new Uint8Array(MIB));
  if (device === null || small === null) {
    const name = "left out: no loop devices can be made here";
    await t.step({ name, ignore: true, fn: () => {} });
    return;
  }
  const expected = old.slice();
  expected.set(content());
  const asked = await bench.agent.run("disk", "export", "web", device.path);
  assertEquals(asked.code, 3);
  assertMatch(asked.stderr, /will not write over \/dev\/loop\d+ unasked/);
  await bench.well("disk", "export", "web", device.path, "--yes");
  assert(same(device.content(), expected), "the device holds something else");

  const narrow = await bench.agent.run("disk", "export", "web", small.path, "--yes");
  assertEquals(narrow.code, 1);
  assertMatch(narrow.stderr, /loop\d+ is too small: it has 1M \(1048576 bytes\), and 4M/);
  assert(same(small.content(), new Uint8Array(MIB)), "something was written");

  {
    using _ = new DescriptorFile(device.path, { write: true, isExclusive: true }); // as by mounting it
    for (const words of [["export", "web"], ["backup", "web@one"]]) {
      const busy = await bench.agent.run("disk", ...words, device.path, "--yes");
      assertEquals(busy.code, 1);
      assertMatch(busy.stderr, /loop\d+ is in use\n +it is mounted, or part of an array/);
    }
  }

  // The size of a block device is in no status of it.
  await bench.well("disk", "import", device.path, "again");
  assert(same(await bench.disk("again"), expected), "the disk holds something else");
  await bench.well("disk", "create", "written", "8M");
  const wide = await bench.agent.run("disk", "write", "written", device.path, "--offset", "4M");
  assertEquals(wide.code, 64, wide.stderr);
  await bench.well("disk", "write", "written", device.path, "--offset", "2M");
  const written = (await bench.disk("written")).subarray(2 * MIB, 2 * MIB + old.length);
  assert(same(written, expected), "the disk holds something else");

  await bench.well("disk", "backup", "web@one", device.path, "--yes");
  await bench.well("disk", "restore", device.path, "restored");
  assert(same(await bench.disk("restored"), content()), "the restored disk holds something else");
  // What comes after the backup is no part of it; what should come and does not is missed.
  {
    using file = new DescriptorFile(device.path, { write: true });
    file.writeSync(new Uint8Array(1));
  }
  const torn = await bench.agent.run("disk", "restore", device.path, "torn");
  assertEquals(torn.code, 1);
  assertMatch(torn.stderr, /loop\d+ is refused at byte 0/);
});

Deno.test("images and backups go to /dev/shm and come back", async () => {
  await using bench = await Bench.start();
  const dir = await Deno.makeTempDir({ dir: "/dev/shm", prefix: "kelpie-e2e-" });
  try {
    await bench.well("disk", "export", "web", `${dir}/image`);
    assert(same(contentOf(`${dir}/image`), content()), "the file holds something else");
    await bench.well("disk", "import", `${dir}/image`, "again");
    assert(same(await bench.disk("again"), content()), "the disk holds something else");
    await bench.well("disk", "write", "again", `${dir}/image`);
    await bench.well("disk", "backup", "web@one", `${dir}/backup`);
    await bench.well("disk", "restore", `${dir}/backup`, "restored");
    assert(same(await bench.disk("restored"), content()), "the disk holds something else");
    await bench.well("cluster", "backup", `${dir}/vault`);
    await bench.well("disk", "delete", "web", "--yes");
    await bench.well("cluster", "restore", `${dir}/vault`);
    assert(same(await bench.disk("web"), content()), "the disk holds something else");
    const left = [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
    assertEquals(left, ["backup", "image", "vault"]);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("images and backups go through what a shell has opened", async () => {
  await using bench = await Bench.start();
  const file = bench.path("file");
  const cases: [redirections: string, name: string][] = [
    [`< "$WORK/image"`, "/dev/stdin"],
    [`< <(cat "$WORK/image")`, "/dev/fd/0"],
    [`3< "$WORK/image"`, "/dev/fd/3"],
    [`3< <(cat "$WORK/image")`, "/proc/self/fd/3"],
  ];
  for (const [index, [redirections, name]] of cases.entries()) {
    const disk = `disk${index}`;
    await bench.redirected(redirections, "disk", "import", name, disk, "--size", "4M");
    assert(same(await bench.disk(disk), content()), `${name} ${redirections}`);
    await bench.redirected(redirections, "disk", "write", disk, name);
  }
  const config = new TextEncoder().encode('log-level = "loud"');
  const refused = await kelpie(["agent", "--config", "/dev/stdin"], { stdin: config });
  assertMatch(refused.stderr, /log-level/);

  const targets: [redirections: string, name: string][] = [
    [`> "$WORK/file"`, "/dev/stdout"],
    [`3> "$WORK/file"`, "/dev/fd/3"],
    [`3> >(cat > "$WORK/file"; touch "$WORK/done")`, "/dev/fd/3"],
  ];
  for (const [index, [redirections, name]] of targets.entries()) {
    for (const [kind, source] of [["export", "web"], ["backup", "web@one"]]) {
      await Deno.writeFile(file, new Uint8Array(2 * DISK_BYTES));
      await Deno.remove(bench.path("done")).catch(() => {});
      await bench.redirected(redirections, "disk", kind, source, name);
      if (redirections.includes("done")) await appears(bench.path("done"));
      const disk = `${kind}ed${index}`;
      await bench.redirected(
        `3< <(cat "$WORK/file")`,
        "disk",
        ...(kind === "export"
          ? ["import", "/dev/fd/3", disk, "--size", "4M"]
          : ["restore", "/dev/fd/3", disk]),
      );
      assert(same(await bench.disk(disk), content()), `${kind} ${redirections}`);
    }
  }
});

async function appears(path: string): Promise<void> {
  while (!await Deno.stat(path).then(() => true, () => false)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
