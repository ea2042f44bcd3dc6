/**
 * Copies of this source with some lines changed, as other versions of Kelpie are made of it for tests of upgrades.
 *
 * Where a line is not there any more the test fails and says which: then it is changed in the list of changes as well.
 *
 * @module
 */
import type { Control } from "../../agent/control/control.ts";
import { programPermissions } from "../tools/permissions.ts";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

/** What is copied. */
const FOLDERS = ["agent", "cli"];
const FILES = ["deno.json", "deno.lock"];

/** By file: lines, and what they become. Each must be there exactly once. */
export type Changes = Readonly<
  Record<string, readonly (readonly [before: string, after: string])[]>
>;

/** A copy, on disk until it is disposed of. */
export class SourceCopy implements AsyncDisposable {
  private constructor(readonly path: string) {}

  /**
   * Copies and changes the source.
   *
   * @param name of the version, for the directory
   * @param lists what is changed, one list after the other
   */
  static async make(name: string, ...lists: readonly Changes[]): Promise<SourceCopy> {
    const path = await Deno.makeTempDir({ prefix: `kelpie-${name}-` });
    const copy = new SourceCopy(path);
    try {
      for (const folder of FOLDERS) await copyFolder(`${ROOT}${folder}`, `${path}/${folder}`);
      for (const file of FILES) await Deno.copyFile(`${ROOT}${file}`, `${path}/${file}`);
      for (const [file, changes] of lists.flatMap((list) => Object.entries(list))) {
        await change(`${path}/${file}`, changes);
      }
      await copy.#writeProgram();
      return copy;
    } catch (error) {
      await copy[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Its command line and agent, as a file that can be run. */
  get program(): string {
    return `${this.path}/kelpie`;
  }

  async #writeProgram(): Promise<void> {
    const flags = programPermissions(`${this.path}/deno.json`).join(" ");
    await Deno.writeTextFile(
      this.program,
      `#!/bin/sh\nexec '${Deno.execPath()}' run --quiet --no-check ${flags} '${this.path}/cli/main.ts' "$@"\n`,
      { mode: 0o700 },
    );
  }

  /** Its control, to run in this process beside that of this version. */
  async control(): Promise<typeof Control> {
    return (await import(`file://${this.path}/agent/control/control.ts`)).Control;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

async function copyFolder(from: string, to: string): Promise<void> {
  await Deno.mkdir(to, { recursive: true });
  for await (const { name, isDirectory } of Deno.readDir(from)) {
    if (isDirectory) await copyFolder(`${from}/${name}`, `${to}/${name}`);
    else await Deno.copyFile(`${from}/${name}`, `${to}/${name}`);
  }
}

async function change(
  path: string,
  changes: readonly (readonly [string, string])[],
): Promise<void> {
  let text = await Deno.readTextFile(path);
  for (const [before, after] of changes) {
    const count = text.split(before).length - 1;
    if (count !== 1) {
      throw new Error(
        `another version changes a line of ${path} that is there ${count} times, and not once:\n${before}`,
      );
    }
    text = text.replace(before, () => after);
  }
  await Deno.writeTextFile(path, text);
}
