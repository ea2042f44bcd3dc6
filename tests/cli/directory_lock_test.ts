/**
 * The lock of a directory of backups: who may take it, and from whom.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import { hasZstd } from "../../agent/platform/linux/zstd.ts";
import { CommandError } from "../../cli/output.ts";
import { deathOf, DirectoryLock, type Owner } from "../../cli/directory_lock.ts";
import { CONFIG, programPermissions } from "../tools/permissions.ts";
import { FakeAgent } from "./fixture.ts";

// Loaded here, since a backup that loads it late would look as if it leaked a library.
hasZstd();

const SELF: Owner = {
  version: 1,
  host: "host-1",
  machine: "m1",
  boot: "b1",
  namespace: "pid:[4026531836]",
  pid: 100,
  processStart: "5000",
  takenMs: 1_700_000_000_000,
  token: "t",
  isReleased: false,
};

async function withDirectory(work: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "kelpie-lock-" });
  try {
    await work(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** What is in the directory. */
function filesOf(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
}

/** Makes the owner of a lock another one. */
async function alter(dir: string, number: number, change: Partial<Owner>): Promise<void> {
  const path = `${dir}/kelpie-backup.lock.${number}`;
  const owner: Owner = { ...JSON.parse(await Deno.readTextFile(path)), ...change };
  await Deno.writeTextFile(`${dir}/altered`, JSON.stringify(owner));
  await Deno.rename(`${dir}/altered`, path);
}

/** A process that has ended, as the lock would know it. */
async function deadProcess(): Promise<number> {
  const child = new Deno.Command("true", { stdout: "null", stderr: "null" }).spawn();
  await child.status;
  return child.pid;
}

Deno.test("an owner is dead only where that is certain", () => {
  const starts = new Map([[1, "1"], [100, "5000"], [200, "6000"]]);
  const startOf = (pid: number) => starts.get(pid) ?? "";
  const container = { namespace: "pid:[4026532000]" };
  const cases: [isDead: boolean, owner: Partial<Owner>, self?: Partial<Owner>, hidden?: boolean][] =
    [
      [false, {}],
      [true, { pid: 300 }],
      [true, { pid: 200 }], // its number was given to another process
      [false, { pid: 200, processStart: "6000" }],
      [false, { pid: 300 }, {}, true], // nobody can be seen here
      [false, { pid: 300, processStart: "" }],
      [false, { pid: 300, boot: "" }],
      [false, { pid: 300, namespace: "" }, { namespace: "" }],
      [false, { pid: 300, ...container }], // its number says nothing here
      [true, { pid: 300, ...container }, container],
      [true, { boot: "b0" }], // started again
      [false, { boot: "b0", host: "host-2" }],
      [false, { boot: "b0", machine: "m2" }],
      [false, { boot: "b0", machine: "" }, { machine: "" }],
      [false, { boot: "b0", ...container }, container], // the same name elsewhere, perhaps
    ];
  for (const [isDead, owner, self = {}, hidden = false] of cases) {
    const death = deathOf({ ...SELF, ...owner }, { ...SELF, ...self }, hidden ? () => "" : startOf);
    assertEquals(death !== null, isDead, JSON.stringify([owner, self, hidden]));
  }
});

Deno.test("a lock is held by one, given back, and refused with who has it", async () => {
  await withDirectory(async (dir) => {
    {
      await using lock = await DirectoryLock.take(dir);
      assertEquals(filesOf(dir), ["kelpie-backup.lock.1"]);
      const error = await assertRejects(() => DirectoryLock.take(dir), CommandError);
      assertMatch(error.message, /in use by another backup: process \d+ on host \S+ since 2\d{3}-/);
      assert(error.message.includes(`process ${Deno.pid} `));
      await lock.check();
    }
    const said: string[] = [];
    await using again = await DirectoryLock.take(dir, { onTakeOver: (text) => said.push(text) });
    assertEquals([again.number, said], [2, []], "what was given back is not taken over");
    assertEquals(filesOf(dir), ["kelpie-backup.lock.2"]);
  });
});

Deno.test("the dead are taken over, others only when their lock is broken, and they notice", async () => {
  await withDirectory(async (dir) => {
    const first = await DirectoryLock.take(dir);
    await alter(dir, first.number, { pid: await deadProcess() });
    const said: string[] = [];
    const onTakeOver = (text: string) => said.push(text);
    const second = await DirectoryLock.take(dir, { onTakeOver });
    assertMatch(said[0], /^taking over the lock of .* since .*, and that process is not there/);
    await assertRejects(() => first.check(), CommandError, "has broken the lock");
    await first[Symbol.asyncDispose]();
    await second.check();

    await alter(dir, second.number, { host: "elsewhere", boot: "another" });
    const error = await assertRejects(() => DirectoryLock.take(dir), CommandError);
    assertMatch(error.message, /on host elsewhere/);
    assertMatch(error.options.hint!, /--break-lock/);
    const third = await DirectoryLock.take(dir, { isBroken: true, onTakeOver });
    assertMatch(said[1], /^breaking the lock of .* on host elsewhere/);
    await assertRejects(() => second.check(), CommandError);
    await second[Symbol.asyncDispose]();
    await third.check();

    // A file that says nothing: who wrote it may be about to write more.
    await Deno.writeTextFile(`${dir}/kelpie-backup.lock.${third.number}`, "");
    const unknown = await assertRejects(() => DirectoryLock.take(dir), CommandError);
    assertMatch(unknown.message, /says nothing of its owner/);
    await using last = await DirectoryLock.take(dir, { isBroken: true, onTakeOver });
    assertEquals(last.number, third.number + 1);
  });
});

Deno.test("of many who take a lock over at once, one has it, time after time", async () => {
  await withDirectory(async (dir) => {
    let holders = 0, taken = 0, refused = 0;
    const dead = await deadProcess();
    const worker = async (rounds: number) => {
      for (let round = 0; round < rounds; round++) {
        try {
          const lock = await DirectoryLock.take(dir);
          assertEquals(++holders, 1, "two at once");
          taken++;
          await new Promise((resolve) => setTimeout(resolve, Math.random() * 4));
          await lock.check();
          // It gives it back, or dies.
          if (round % 2 === 0) {
            holders--;
            await lock[Symbol.asyncDispose]();
          } else {
            await alter(dir, lock.number, { pid: dead });
            holders--;
          }
        } catch (error) {
          if (!(error instanceof CommandError)) throw error;
          refused++;
          await new Promise((resolve) => setTimeout(resolve, Math.random() * 8));
        }
      }
    };
    await Promise.all(Array.from({ length: 8 }, () => worker(30)));
    assert(taken >= 8 && refused > 20, `${taken} taken, ${refused} refused`);
  });
});

Deno.test("a second backup into a directory does nothing there, until the lock is broken", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  await withDirectory(async (dir) => {
    const first = await DirectoryLock.take(dir);
    await alter(dir, first.number, { host: "elsewhere", boot: "another" });
    const before = filesOf(dir);
    const { code, stderr } = await agent.run(["cluster", "backup", dir]);
    assertEquals(code, 1);
    assertMatch(stderr, /in use by another backup: process \d+ on host elsewhere since/);
    assertMatch(stderr, /--break-lock/);
    assertEquals(agent.backend.proposed, []);
    assertEquals(filesOf(dir), before);
    const broken = await agent.run(["cluster", "backup", dir, "--break-lock"]);
    assertMatch(broken.stderr, /warning: breaking the lock of/);
    // Nothing serves the disk here, so that is as far as it comes.
    assertEquals(agent.backend.proposed.map(({ kind }) => kind), ["create-snapshots"]);
    await assertRejects(() => first.check(), CommandError);
    const left = filesOf(dir).filter((name) => name.includes("lock"));
    assertEquals(left, ["kelpie-backup.lock.2"], "given back");
    const { isReleased } = JSON.parse(await Deno.readTextFile(`${dir}/${left[0]}`));
    assertEquals(isReleased, true);
  });
});

Deno.test("a lock says who has it, with the permissions that the program has, and is taken over when that one is dead", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const module = new URL("../../cli/directory_lock.ts", import.meta.url).href;
    const script = `${dir}/take.ts`;
    await Deno.writeTextFile(
      script,
      `import { DirectoryLock } from "${module}"; await DirectoryLock.take("${dir}"); Deno.exit(0);`,
    );
    // It ends without giving the lock back, as if it had been killed.
    const run = async () => {
      const args = ["run", "--quiet", "--config", CONFIG, ...programPermissions(), script];
      const { success, stderr } = await new Deno.Command(Deno.execPath(), { args }).output();
      assert(success, new TextDecoder().decode(stderr));
    };
    await run();
    const owner = JSON.parse(await Deno.readTextFile(`${dir}/kelpie-backup.lock.1`));
    for (const name of ["host", "boot", "namespace", "processStart"]) {
      assert(owner[name].length > 0, `${name} is not known`);
    }
    await run();
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
