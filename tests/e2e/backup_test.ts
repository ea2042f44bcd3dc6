/**
 * Backups against a real agent: a full one, differences to it while a guest writes, and both restored.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { UNFINISHED_ATTRIBUTE } from "../../cli/unfinished_disk.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, spawnKelpie, WorkDirectory } from "../tools/agent_process.ts";

const KIB = 1024, MIB = 1024 * KIB;
const SIZE = 64 * MIB;

/** A disk, and what it should hold. */
class Model {
  readonly bytes = new Uint8Array(SIZE);
  readonly #random: Prng;

  constructor(readonly disk: FrontEnd, seed: number) {
    this.#random = new Prng(seed);
  }

  /** Some writes, zeros and discards of every size. */
  async change(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const random = this.#random;
      const lengthBytes = 512 * random.between(1, random.chance(0.2) ? 3000 : 40);
      const offset = 512 * random.below((SIZE - lengthBytes) / 512);
      const part = this.bytes.subarray(offset, offset + lengthBytes);
      const kind = random.below(5);
      if (kind === 0) {
        await this.disk.writeZeroes(offset, lengthBytes);
        part.fill(0);
      } else if (kind === 1 && offset % 4096 === 0 && lengthBytes % 4096 === 0) {
        await this.disk.discard(offset, lengthBytes);
        part.fill(0);
      } else {
        if (kind === 2) part.fill(i); // easily compressed
        else random.fill(part);
        await this.disk.write(offset, part);
      }
    }
    await this.disk.flush();
  }
}

/** What a socket reads, all of it. */
async function contentOf(socket: string): Promise<Uint8Array> {
  const disk = await FrontEnd.connect({ socket });
  const bytes = new Uint8Array(disk.capacityBytes);
  await disk.read(0, bytes);
  await disk.close();
  return bytes;
}

/** A comparison of megabytes takes minutes to print. */
function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assertEquals(actual.length, expected.length, what);
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  assert(at < 0, `${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
}

Deno.test("a full backup and differences, taken while a guest writes, are restored with their snapshots", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "2G" });
  const file = (name: string) => `${work.path}/${name}.kb`;
  const snapshots: Record<string, Uint8Array> = {};
  await agent.check("disk", "create", "web", `${SIZE}`);
  const guest = await FrontEnd.connect({ socket: agent.socket("web") });
  try {
    const model = new Model(guest, 1);
    const names = ["a", "b", "c"];
    for (const [at, name] of names.entries()) {
      await model.change(40);
      await agent.check("disk", "snapshot", `web@${name}`);
      snapshots[name] = model.bytes.slice();
      // What comes after the snapshot is in none of its backups.
      const writing = model.change(20);
      const since = at === 0 ? [] : ["--since", names[at - 1]];
      await agent.check("disk", "backup", `web@${name}`, file(name), ...since);
      await writing;
    }
    await agent.check("disk", "snapshot", "web@d");
    await agent.check("disk", "snapshot", "web@e");
    snapshots.d = snapshots.e = model.bytes.slice();
    await agent.check("disk", "backup", "web@d", file("d"), "--since", "c", "--compress", "none");
    const idle = await agent.run("disk", "backup", "web@e", file("e"), "--since", "d");
    assertEquals(idle.code, 0, idle.stderr);
    assertMatch(idle.stderr, /^difference to web@d of web@e: 0B of data in/);
  } finally {
    guest.abort();
  }
  assert((await Deno.stat(file("e"))).size < KIB);
  await agent.check("disk", "restore", file("a"), "again");
  const early = await agent.run("disk", "restore", file("c"), "again");
  assertEquals(early.code, 1);
  assertMatch(
    early.stderr,
    /difference to web@b \(layer \d+\), and disk again has a as its newest/,
  );
  for (const name of ["b", "c", "d", "e"]) {
    await agent.check("disk", "restore", file(name), "again");
  }
  for (const [name, expected] of Object.entries(snapshots)) {
    assertSame(await contentOf(`${runDir}/again@${name}.sock`), expected, `again@${name}`);
  }
  assertSame(await contentOf(agent.readOnlySocket("again")), snapshots.e, "again");

  // Another snapshot is another base, whatever it holds.
  await agent.check("disk", "snapshot", "again@x");
  const wrong = await agent.run("disk", "restore", file("b"), "again");
  assertMatch(wrong.stderr, /has x as its newest/);
});

Deno.test("a disk that was written to takes no difference, and a damaged file leaves everything as it was", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const file = (name: string) => `${work.path}/${name}.kb`;
  const data = new Uint8Array(300_000);
  new Prng(7).fill(data);
  const write = async (disk: string, offset: string) => {
    const { code, stderr } = await agent.runWith(
      { stdin: data },
      "disk",
      "write",
      disk,
      "--offset",
      offset,
    );
    assertEquals(code, 0, stderr);
  };
  await agent.check("disk", "create", "web", "16M");
  await write("web", "1M");
  await agent.check("disk", "snapshot", "web@a");
  await write("web", "5M");
  await agent.check("disk", "snapshot", "web@b");
  await agent.check("disk", "backup", "web@a", file("a"));
  await agent.check("disk", "backup", "web@b", file("b"), "--since", "web@a");
  await agent.check("disk", "restore", file("a"), "copy");

  const damaged = await Deno.readFile(file("b"));
  damaged[damaged.length - 200] ^= 1;
  await Deno.writeFile(file("damaged"), damaged);
  const before = await contentOf(agent.readOnlySocket("copy"));
  const refused = await agent.run("disk", "restore", file("damaged"), "copy");
  assertEquals(refused.code, 1);
  assertMatch(
    refused.stderr,
    /damaged\.kb is refused at byte \d+: \d+ bytes of data from here on are altered/,
  );
  assertSame(await contentOf(agent.readOnlySocket("copy")), before, "copy");
  const full = await Deno.readFile(file("a"));
  await Deno.writeFile(file("torn"), full.subarray(0, full.length - 1));
  const torn = await agent.run("disk", "restore", file("torn"), "other");
  assertMatch(
    torn.stderr,
    new RegExp(`torn\\.kb is refused at byte ${full.length - 1}: the file ends`),
  );
  // A difference makes no disk of its own, and says what it goes onto.
  const alone = await agent.run("disk", "restore", file("b"), "fresh");
  assertEquals(alone.code, 5);
  assertMatch(
    alone.stderr,
    /this is the difference to web@a \(layer \d+\), and there is no disk fresh that has it\n +restore the full backup to fresh,/,
  );
  using client = agent.client();
  assertEquals((await client.disks()).map(({ name }) => name), ["copy", "web"]);

  // The same bytes again are no change; others are.
  await write("copy", "1M");
  await agent.check("disk", "restore", file("b"), "copy");
  await agent.check("disk", "restore", file("a"), "copy", "--yes");
  await write("copy", "9M");
  const changed = await agent.run("disk", "restore", file("b"), "copy");
  assertEquals(changed.code, 1);
  assertMatch(
    changed.stderr,
    /disk copy is no longer what copy@a holds\n +'kelpie disk rollback copy@a'/,
  );
  await agent.check("disk", "rollback", "copy@a", "--yes");
  const piped = await agent.runWith(
    { stdin: await Deno.readFile(file("b")) },
    ...["disk", "restore", "-", "copy", "--temp-dir", work.path],
  );
  assertEquals(piped.code, 0, piped.stderr);
  assertSame(
    await contentOf(agent.readOnlySocket("copy")),
    await contentOf(agent.readOnlySocket("web")),
    "copy",
  );
});

Deno.test("what a restore was killed over is no disk to a backup of all", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const [file, vault] = [`${work.path}/a.kb`, `${work.path}/vault`];
  await agent.check("disk", "create", "web", "8M");
  await agent.check("disk", "snapshot", "web@a");
  await agent.check("disk", "backup", "web@a", file);
  using client = agent.client();
  const names = async () => (await client.disks()).map(({ name }) => name);
  const args = ["--run-dir", runDir, "disk", "restore", "-", "copy"];
  const restore = spawnKelpie(args, { stdin: "piped", stdout: "null" });
  const said = new Response(restore.stderr).text();
  const input = restore.stdin.getWriter();
  const bytes = await Deno.readFile(file);
  await input.write(bytes.subarray(0, bytes.length - 1)); // it waits for the last one
  await until(async () => (await names()).length > 1, {
    timeoutMs: 20_000,
    what: () => "the restore makes no disk",
  });
  restore.kill("SIGKILL");
  await restore.status;
  await input.close().catch(() => {});
  assertEquals(await names(), ["copy.restoring", "web"], await said);
  const ran = await agent.run("cluster", "backup", vault);
  assertEquals(ran.code, 0, ran.stderr);
  assertMatch(
    ran.stderr,
    /disk copy\.restoring is left out, .*not complete \(restoring copy\): .*'kelpie disk delete copy\.rest/,
  );
  assertMatch(ran.stderr, /: 1 disk, /);
  assertEquals([...Deno.readDirSync(vault)].filter(({ name }) => name.startsWith("copy")), []);
});

Deno.test("all disks go into a directory, run after run, and come back from it", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const vault = `${work.path}/vault`;
  const data = new Uint8Array(200_000);
  new Prng(9).fill(data);
  const write = async (disk: string, offset: string) => {
    const words = ["disk", "write", disk, "--offset", offset];
    const { code, stderr } = await agent.runWith({ stdin: data }, ...words);
    assertEquals(code, 0, stderr);
  };
  const files = (ending: string) =>
    [...Deno.readDirSync(vault)].map(({ name }) => name).filter((name) => name.endsWith(ending))
      .sort();
  for (const disk of ["a", "b"]) {
    await agent.check("disk", "create", disk, "8M");
    await write(disk, "1M");
  }
  await agent.check("cluster", "backup", vault);
  await write("a", "4M");
  await agent.check("cluster", "backup", vault);
  assertEquals([files(".run").length, files(".kb").length], [2, 4]);
  const [first, second] = files(".run").map((name) => name.slice(0, -4));
  const sizeOf = (name: string) => Deno.statSync(`${vault}/${name}`).size;
  const [, idle] = files(".kb").filter((name) => name.startsWith("b."));
  assert(sizeOf(idle) < KIB, `${sizeOf(idle)} bytes of nothing new`);
  using client = agent.client();
  assertEquals((await client.snapshots()).map(({ name }) => name), [second, second]);

  // A run that was interrupted goes on where it was, and then there is a new one.
  const last = files(".kb").find((name) => name.includes(second) && name.startsWith("b."))!;
  await Deno.rename(`${vault}/${second}.run`, `${vault}/${second}.unfinished`);
  await Deno.remove(`${vault}/${last}`);
  await agent.check("disk", "snapshot", "a@mine");
  const missing = await agent.run("cluster", "backup", vault);
  assertEquals(missing.code, 5);
  assertMatch(missing.stderr, new RegExp(`no snapshot named "${first}"`));
  assertEquals(files(".unfinished"), [`${second}.unfinished`]);
  await Deno.remove(`${vault}/${second}.unfinished`);
  await agent.check("cluster", "backup", vault);
  const third = files(".run").at(-1)!.slice(0, -4);
  await Deno.rename(`${vault}/${third}.run`, `${vault}/${third}.unfinished`);
  const again = files(".kb").find((name) => name.includes(third) && name.startsWith("a."))!;
  await Deno.remove(`${vault}/${again}`);
  await write("a", "6M");
  await agent.check("cluster", "backup", vault);
  assertEquals(files(".unfinished"), []);
  const runs = files(".run").map((name) => name.slice(0, -4));
  assertEquals([runs.length, runs[0], runs[1]], [3, first, third]);

  const expected = await Promise.all(
    ["a", "b"].map((disk) => contentOf(agent.readOnlySocket(disk))),
  );
  for (const disk of ["a", "b"]) await agent.check("disk", "delete", disk, "--now", "--yes");
  await agent.check("cluster", "restore", vault);
  for (const [at, disk] of ["a", "b"].entries()) {
    assertSame(await contentOf(agent.readOnlySocket(disk)), expected[at], disk);
  }
  const left = await agent.run("cluster", "restore", vault);
  assertMatch(left.stderr, /disk a is there already, and is left as it is/);
});

Deno.test("a restore of all disks makes those whose files are good, and says which are not", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const vault = `${work.path}/vault`;
  const names = ["a", "b", "c"];
  const write = async (disk: string, value: number) => {
    const stdin = new Uint8Array(4096).fill(value);
    assertEquals((await agent.runWith({ stdin }, "disk", "write", disk)).code, 0);
  };
  const readOf = async (disk: string) =>
    (await agent.run("disk", "read", disk, "--length", "1")).stdout[0];
  for (const disk of names) {
    await agent.check("disk", "create", disk, "4M");
    await write(disk, 1);
  }
  await agent.check("cluster", "backup", vault);
  for (const disk of names) await write(disk, 2);
  await agent.check("cluster", "backup", vault);
  const files = (start: string, end: string) =>
    [...Deno.readDirSync(vault)].map(({ name }) => name).filter((name) =>
      name.startsWith(start) && name.endsWith(end)
    ).sort();
  for (const disk of names) await agent.check("disk", "delete", disk, "--now", "--yes");
  // The newest file of the first disk is torn, the oldest one of the second is gone.
  const torn = `${vault}/${files("a.", ".kb")[1]}`;
  const whole = await Deno.readFile(torn);
  await Deno.writeFile(torn, whole.subarray(0, whole.length - 10));
  const [lost] = files("b.", ".kb");
  await Deno.rename(`${vault}/${lost}`, `${work.path}/${lost}`);
  using client = agent.client();
  const there = async () => (await client.disks()).map(({ name }) => name);

  const bad = await agent.run("cluster", "restore", vault);
  assertEquals(bad.code, 1, bad.stderr);
  assertMatch(
    bad.stderr,
    /disk a is not restored: .*a\.1\.backup.*\.kb is refused at byte \d+: the/,
  );
  assertMatch(bad.stderr, new RegExp(`disk b is not restored: .*${lost}`));
  assertMatch(bad.stderr, /^restored disk c from 2 files$/m);
  const [first] = files("backup-", ".run").map((name) => name.slice(0, -4));
  assertMatch(bad.stderr, new RegExp(`error: 2 of 3 disks not restored: a, b\n.*--run ${first}`));
  assertEquals(await there(), ["c"], "nothing is left of the others");
  assertEquals(await readOf("c"), 2);

  // As it was before, what can be had; and what an interrupted restore has left is in nobody's way.
  for (const name of ["a.restored", "a.restored.restoring"]) {
    const attributes = { [UNFINISHED_ATTRIBUTE]: "restoring a.restored" };
    await client.createDisk({ name, sizeBytes: MIB, attributes });
  }
  const older = await agent.run("cluster", "restore", vault, "--run", first);
  assertEquals(older.code, 1);
  assertMatch(older.stderr, /error: 1 of 3 disks not restored: b\n/);
  assertEquals(await there(), ["a", "c"]);
  assertEquals(await readOf("a"), 1);

  // A disk of that name which is none of a restore's is left alone, and said to be in the way.
  await Deno.rename(`${work.path}/${lost}`, `${vault}/${lost}`);
  await agent.check("disk", "create", "b.restored", "1M");
  const inTheWay = await agent.run("cluster", "restore", vault);
  assertEquals(inTheWay.code, 1);
  assertMatch(inTheWay.stderr, /there is a disk b\.restored, which is in the way/);
  await agent.check("disk", "delete", "b.restored", "--yes");
  await agent.check("cluster", "restore", vault);
  assertEquals(await there(), ["a", "b", "c"]);
  assertEquals(await readOf("b"), 2);
});

Deno.test("a run whose list is torn is named, and is no obstacle to the others", async () => {
  await using work = await WorkDirectory.make();
  const [runDir, dataDir] = [`${work.path}/run`, `${work.path}/data`];
  await using agent = await AgentProcess.start({ runDir, dataDir, capacity: "1G" });
  const vault = `${work.path}/vault`;
  const write = async (value: number) => {
    const stdin = new Uint8Array(4096).fill(value);
    assertEquals((await agent.runWith({ stdin }, "disk", "write", "web")).code, 0);
  };
  const readOf = async () => (await agent.run("disk", "read", "web", "--length", "1")).stdout[0];
  const runs = () =>
    [...Deno.readDirSync(vault)].map(({ name }) => name).filter((name) => name.endsWith(".run"))
      .sort().map((name) => name.slice(0, -4));
  const deleted = () => agent.check("disk", "delete", "web", "--now", "--yes");
  await agent.check("disk", "create", "web", "4M");
  await write(1);
  await agent.check("cluster", "backup", vault);
  await write(2);
  await agent.check("cluster", "backup", vault);
  const [first, second] = runs();
  const list = `${vault}/${second}.run`;
  await Deno.truncate(list, (await Deno.stat(list)).size / 2 | 0);
  // What was to be the next one, of which nothing can be read either.
  await Deno.writeTextFile(`${vault}/backup-20200101T000000Z.unfinished`, "");

  await write(3);
  const third = await agent.run("cluster", "backup", vault);
  assertEquals(third.code, 0, third.stderr);
  const torn = new RegExp(`warning: a run is left out: ${list} cannot be used`);
  assertEquals(third.stderr.match(new RegExp(torn, "g"))?.length, 1, third.stderr);
  assertMatch(third.stderr, /left out: .*20200101T000000Z\.unfinished cannot be used/);
  assertMatch(third.stderr, /^run backup-\S+: 1 disk, /m);
  const last = runs().at(-1)!;
  assert(last > second);

  // The newest one, one that is older than the torn one, and the torn one itself.
  await deleted();
  const newest = await agent.run("cluster", "restore", vault);
  assertEquals(newest.code, 0, newest.stderr);
  assertMatch(newest.stderr, torn);
  assertEquals(await readOf(), 3);
  await deleted();
  await agent.check("cluster", "restore", vault, "--run", first);
  assertEquals(await readOf(), 1);
  await deleted();
  const itself = await agent.run("cluster", "restore", vault, "--run", second);
  assertEquals(itself.code, 1);
  assertMatch(
    itself.stderr,
    new RegExp(`error: ${list} cannot be used: .*\n +another run: .*${last}`),
  );
  // Where it is the newest, an older one is not taken for it.
  await Deno.remove(`${vault}/${last}.run`);
  const refused = await agent.run("cluster", "restore", vault);
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, new RegExp(`error: ${list} cannot be used: .*\n.*--run ${first}`));
  assertEquals((await agent.run("disk", "info", "web")).code, 5, "nothing was made");
});
