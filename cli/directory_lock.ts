/**
 * A lock on a directory, so that two programs, perhaps on two hosts, do not work in it at once. For file systems that several hosts
 * have, NFS among them: nothing but creating a name that is not there, or failing, has to be atomic.
 *
 *     DIR/kelpie-backup.lock.1    taken, and given back
 *     DIR/kelpie-backup.lock.2    taken by a process that has died
 *     DIR/kelpie-backup.lock.3    taken: the highest number counts
 *
 * Whoever takes the lock creates the number that follows the highest; only one can. Numbers never fall: who gives the lock back says so
 * in its file and leaves it there, and only files below it go. So however late somebody comes with an old look at the directory, what it
 * creates is there already, or is not the highest; and taking over from the dead needs no moment without a lock.
 *
 * Invariants:
 * - of all who hold the lock, only one has the highest number; the others were taken for dead, or broken, and {@linkcode check} tells
 *   them before they do anything that would harm;
 * - a lock is taken over only from an owner that is certainly dead ({@linkcode deathOf}): one of this very run of this kernel whose
 *   process is not there any more, seen from the same process namespace, or one of this machine before it was started again. A number is
 *   reused by another process: its time of start tells. Of anybody else nothing is known, and only {@linkcode LockOptions.isBroken} helps.
 *
 * @module
 */
import { readText } from "../agent/platform/linux/file.ts";
import { readProc, readProcLink } from "../agent/platform/linux/proc.ts";
import { openFile, writeAll } from "./files.ts";
import { CommandError, ExitCode, printable } from "./output.ts";

/** Names of locks. */
const LOCK_NAME = /^kelpie-backup\.lock\.([1-9]\d{0,14})$/;
/** Times that another one was faster, after which something is wrong with the directory. */
const TRIES_MAX = 100;

/** Who holds it: what is in the file. */
export interface Owner {
  readonly version: 1;
  /** For people. */
  readonly host: string;
  /** Of the machine, its kernel's run, and the namespace in which the number of the process counts; "": not known. */
  readonly machine: string;
  readonly boot: string;
  readonly namespace: string;
  readonly pid: number;
  /** When the process was started, in ticks since the kernel was. */
  readonly processStart: string;
  readonly takenMs: number;
  /** Drawn for each lock. */
  readonly token: string;
  readonly isReleased: boolean;
}

/** How a lock is taken. */
export interface LockOptions {
  /** Take it whoever has it. */
  readonly isBroken?: boolean;
  /** Told, in words, when it is taken over. */
  readonly onTakeOver?: (text: string) => void;
}

/** A lock that is held, until it is disposed of. */
export class DirectoryLock implements AsyncDisposable {
  private constructor(readonly dir: string, readonly number: number, readonly owner: Owner) {}

  /**
   * Takes the lock of a directory.
   *
   * @throws {CommandError} that says who has it
   */
  static async take(dir: string, options: LockOptions = {}): Promise<DirectoryLock> {
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      const highest = Math.max(0, ...await numbersOf(dir));
      if (highest > 0) {
        const before = read(dir, highest);
        if (before === "gone") continue;
        refuseHeld(dir, before, pathOf(dir, highest), options);
      }
      const owner = thisProcess();
      if (!await create(dir, highest + 1, owner)) continue;
      const lock = new DirectoryLock(dir, highest + 1, owner);
      // It may have been made from an old look at the directory.
      if (!await lock.#isHighest()) {
        await Deno.remove(pathOf(dir, lock.number)).catch(() => {});
        continue;
      }
      for (const number of await numbersOf(dir)) {
        if (number < lock.number) await Deno.remove(pathOf(dir, number)).catch(() => {});
      }
      return lock;
    }
    throw new CommandError(ExitCode.System, `the lock of ${dir} cannot be taken`, {
      hint: "others take it all the time, or its file system does not do what it should",
    });
  }

  /** Makes sure that nobody has taken the lock meanwhile. @throws {CommandError} when somebody has */
  async check(): Promise<void> {
    const now = read(this.dir, this.number);
    const isOwn = typeof now === "object" && now?.token === this.owner.token;
    if (isOwn && await this.#isHighest()) return;
    throw new CommandError(
      ExitCode.Failure,
      `somebody else has broken the lock of ${this.dir} meanwhile: nothing more is done there`,
    );
  }

  async #isHighest(): Promise<boolean> {
    return Math.max(...await numbersOf(this.dir)) === this.number;
  }

  /** Gives the lock back. Where that cannot be written, the end of the process says it. */
  async [Symbol.asyncDispose](): Promise<void> {
    const path = pathOf(this.dir, this.number);
    const partial = `${path}.${this.owner.token}`;
    try {
      const now = read(this.dir, this.number);
      if (typeof now !== "object" || now?.token !== this.owner.token) return;
      await write(partial, { ...this.owner, isReleased: true });
      await Deno.rename(partial, path);
    } catch {
      await Deno.remove(partial).catch(() => {});
    }
  }
}

function pathOf(dir: string, number: number): string {
  return `${dir}/kelpie-backup.lock.${number}`;
}

async function numbersOf(dir: string): Promise<number[]> {
  const numbers: number[] = [];
  for await (const { name } of Deno.readDir(dir)) {
    const number = LOCK_NAME.exec(name)?.[1];
    if (number !== undefined) numbers.push(Number(number));
  }
  return numbers;
}

/** @returns null: it says nothing that makes sense */
function read(dir: string, number: number): Owner | null | "gone" {
  try {
    const owner: Owner = JSON.parse(readText(pathOf(dir, number)));
    const isSound = owner?.version === 1 && Number.isSafeInteger(owner.pid) &&
      Number.isSafeInteger(owner.takenMs) && typeof owner.isReleased === "boolean" &&
      [owner.host, owner.machine, owner.boot, owner.namespace, owner.processStart, owner.token]
        .every((text) => typeof text === "string");
    return isSound ? owner : null;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "gone";
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

function refuseHeld(
  dir: string,
  owner: Owner | null,
  path: string,
  { isBroken = false, onTakeOver = () => {} }: LockOptions,
): void {
  if (owner?.isReleased === true) return;
  const who = owner === null ? `${path}, which says nothing of its owner` : describe(owner);
  if (isBroken) return onTakeOver(`breaking the lock of ${dir}: ${who}`);
  const death = owner === null ? null : deathOf(owner, thisProcess(), processStart);
  if (death !== null) return onTakeOver(`taking over the lock of ${dir}: ${who}, and ${death}`);
  throw new CommandError(ExitCode.Failure, `${dir} is in use by another backup: ${who}`, {
    hint: "wait for it; only if you know that it does not run any more, add --break-lock",
  });
}

function describe({ host, pid, takenMs }: Owner): string {
  const since = new Date(Math.min(Math.max(takenMs, 0), 8e15)).toISOString();
  return `process ${pid} on host ${printable(host)} since ${since}`;
}

/** The process namespace that a kernel begins with: who is in it is in no container. */
const NAMESPACE_FIRST = "pid:[4026531836]";

/**
 * Why an owner is certainly dead; null: it may live.
 *
 * @param self who asks
 * @param startOf when a process was started, by its number; "": it is not there, or cannot be seen
 */
export function deathOf(
  owner: Owner,
  self: Owner,
  startOf: (pid: number) => string,
): string | null {
  if (owner.boot === "" || self.boot === "" || owner.namespace === "") return null;
  if (owner.namespace !== self.namespace) return null;
  if (owner.boot !== self.boot) {
    // A container's machine and host are whatever its image and its manager say.
    const isSame = owner.machine !== "" && owner.machine === self.machine &&
      owner.host === self.host && self.namespace === NAMESPACE_FIRST;
    return isSame ? "the host has been started again since" : null;
  }
  // One run of one kernel. Where other users' processes are hidden, so is the first.
  if (startOf(1) === "" || owner.processStart === "") return null;
  return startOf(owner.pid) === owner.processStart ? null : "that process is not there any more";
}

function thisProcess(): Owner {
  return {
    version: 1,
    host: readProc("/proc/sys/kernel/hostname"),
    machine: readProc("/etc/machine-id"),
    boot: readProc("/proc/sys/kernel/random/boot_id"),
    namespace: readProcLink("/proc/self/ns/pid"),
    pid: Deno.pid,
    processStart: processStart(Deno.pid),
    takenMs: Date.now(),
    token: crypto.randomUUID(),
    isReleased: false,
  };
}

/** The 22nd field of `/proc/PID/stat`; "": there is no such process. See proc(5): the name before it may hold anything. */
function processStart(pid: number): string {
  const text = readProc(`/proc/${pid}/stat`);
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

async function write(path: string, owner: Owner): Promise<void> {
  using file = await openFile(path, { write: true, createNew: true, mode: 0o644 });
  await writeAll(file, new TextEncoder().encode(`${JSON.stringify(owner, null, 2)}\n`));
  await file.sync();
}

/**
 * Creates a lock with all that is in it at once, by a second name for a file that is complete. Where the file system has no such
 * names, it is created and then written: who reads it in between learns nothing of its owner, and is refused.
 *
 * @returns whether it was this one who has created it
 */
async function create(dir: string, number: number, owner: Owner): Promise<boolean> {
  const path = pathOf(dir, number);
  const partial = `${path}.${owner.token}`;
  await write(partial, owner);
  try {
    try {
      await Deno.link(partial, path);
      return true;
    } catch {
      // Over NFS the answer may be lost when it has happened: the number of names knows.
      if ((await Deno.stat(partial)).nlink === 2) return true;
      if (await Deno.stat(path).then(() => true, () => false)) return false;
    }
    try {
      await write(path, owner);
      return true;
    } catch (error) {
      if (error instanceof Deno.errors.AlreadyExists) return false;
      throw error;
    }
  } finally {
    await Deno.remove(partial).catch(() => {});
  }
}
