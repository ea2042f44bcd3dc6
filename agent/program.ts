/**
 * Whether the program that is installed is still the one that runs: an upgrade puts another file in its place, and what runs stays
 * until it is started anew.
 *
 * @module
 */

/** Looks at the program's file at most this often, in milliseconds. */
const LOOK_MS = 2000;

/** What tells one file from another that has taken its place. */
type FileMark = string | null;

/** Watches one file. */
export class ProgramWatch {
  readonly #path: string | null;
  readonly #before: FileMark;
  #isNew: boolean | null = null;
  #lookedMs = -Infinity;

  /** @param path of the program's file as it is now; null: nobody can say what is installed */
  constructor(path: string | null) {
    this.#path = path;
    this.#before = markOf(path);
  }

  /** The program of this process. From source there is none: what runs is the runtime. */
  static ofThisProcess(): ProgramWatch {
    if (!Deno.build.standalone) return new ProgramWatch(null);
    try {
      return new ProgramWatch(Deno.execPath());
    } catch {
      return new ProgramWatch(null);
    }
  }

  /**
   * Whether another program is installed by now.
   *
   * @param nowMs of a clock that never goes back
   * @returns null: cannot be said, also while there is no file
   */
  isNew(nowMs: number): boolean | null {
    if (this.#before === null || nowMs - this.#lookedMs < LOOK_MS) return this.#isNew;
    this.#lookedMs = nowMs;
    const mark = markOf(this.#path);
    return this.#isNew = mark === null ? null : mark !== this.#before;
  }
}

function markOf(path: string | null): FileMark {
  if (path === null) return null;
  try {
    const { dev, ino, size, mtime } = Deno.statSync(path);
    return `${dev} ${ino} ${size} ${mtime?.getTime()}`;
  } catch {
    return null;
  }
}
