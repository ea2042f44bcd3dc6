/**
 * The next version of Kelpie: a copy of this source that speaks one level more, for tests of upgrades.
 *
 * It is made as a release would be made (`agent/base/levels.ts` says how), by changing lines of the copy; the product has no switch for
 * it. Where a line is not there any more the test fails and says which: then it is changed here as well.
 *
 * What is new in it:
 *
 * | what                                                          | when            |
 * | ------------------------------------------------------------- | --------------- |
 * | a key of gossip's meta, a field of reports, a feature of      | always: older   |
 * | connections, a kind of control message                        | ones pass over  |
 * | a command, `set-motto`, which the leader gives once           | at level 2 only |
 * | a field of the map, in version 4 of its encoding              | at level 2 only |
 *
 * `motto` shows that level 2 is in use: it is among the notes of `GET /v1/cluster`, and in the map of a `Control` of this version.
 *
 * @module
 */
import type { Control } from "../../agent/control/control.ts";
import type { ClusterMap } from "../../agent/map/map.ts";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

/** Of its program. */
export const NEXT_VERSION = "0.2.0";
/** The newest level that it speaks. */
export const NEXT_LEVEL = 2;
/** What its leader says, once it may. */
export const NEXT_MOTTO = "all together";

/** What is copied. */
const FOLDERS = ["agent", "cli"];
const FILES = ["deno.json", "deno.lock"];

/** By file: lines, and what they become. Each must be there exactly once. */
export type Changes = Readonly<
  Record<string, readonly (readonly [before: string, after: string])[]>
>;

const CHANGES: Changes = {
  "agent/base/levels.ts": [
    ["export const LEVEL_MAX = 1;", `export const LEVEL_MAX = ${NEXT_LEVEL};`],
  ],
  "agent/version.ts": [
    ['export const VERSION = "0.1.0";', `export const VERSION = "${NEXT_VERSION}";`],
  ],
  // A command.
  "agent/map/levels.ts": [
    [
      "const LEVELS: Readonly<Record<string, number>> = {};",
      `const LEVELS: Readonly<Record<string, number>> = { "set-motto": ${NEXT_LEVEL} };`,
    ],
  ],
  "agent/map/proposal_codec.ts": [
    ['  "raise-level": {', '  "set-motto": { motto: "text" },\n  "raise-level": {'],
  ],
  "agent/map/map.ts": [
    [
      "  switch (command.kind) {",
      '  if (command.kind === "set-motto") {\n' +
      "    const next = { ...map, motto: command.motto, epoch: map.epoch + 1 };\n" +
      "    return { ok: true, value: { map: next, effects: [] } };\n" +
      "  }\n" +
      "  switch (command.kind) {",
    ],
  ],
  "agent/control/leader.ts": [
    [
      "    const level = commonLevel(map);",
      '    if (map.level >= 2 && (map.motto ?? "") === "") {\n' +
      `      commands.push({ kind: "set-motto", motto: "${NEXT_MOTTO}" });\n` +
      "    }\n" +
      "    const level = commonLevel(map);",
    ],
  ],
  // A field of the map, and a version of its encoding.
  "agent/map/map_codec.ts": [
    ["export const MAP_VERSION = 3;", "export const MAP_VERSION = 4;"],
    [
      "    ...(version === 2 ? [] : [map.level]),",
      '    ...(version === 2 ? [] : [map.level]),\n    ...(version === 4 ? [map.motto ?? ""] : []),',
    ],
    [
      "  const map = version === 1",
      "  const motto = version === 4 && Array.isArray(decoded[2]) ? decoded[2].pop() : undefined;\n" +
      "  const map = version === 1",
    ],
    [
      '  if (map === null) return corrupt("a field has the wrong type");',
      '  if (map === null) return corrupt("a field has the wrong type");\n' +
      "  if (motto !== undefined) map.motto = motto;",
    ],
  ],
  "agent/agent.ts": [
    [
      "    const notes: string[] = [];",
      "    const notes: string[] = map.motto === undefined ? [] : [`the motto is: ${map.motto}`];",
    ],
  ],
  // What older ones pass over, always.
  "agent/gossip/meta.ts": [
    [
      '    ["protocol", meta.protocol],',
      '    ["protocol", meta.protocol],\n    ["pulse", 7],',
    ],
  ],
  "agent/control/messages.ts": [
    ["  if (!isMore) return [];\n", ""],
    [
      "    ...(hasOtherLog ? [hasOtherLog] : []),\n  ];",
      '    hasOtherLog,\n    "a field that is new",\n  ];',
    ],
    [
      "  switch (message.kind) {\n    case ControlKind.Raft:\n      return [message.kind, message.bytes];",
      "  switch (message.kind) {\n    case 99:\n      return [99, { what: 1 }];\n" +
      "    case ControlKind.Raft:\n      return [message.kind, message.bytes];",
    ],
  ],
  "agent/control/control.ts": [
    [
      "      this.#sendToLeader({ kind: ControlKind.Renew,",
      "      this.#sendToLeader({ kind: 99 });\n" +
      "      this.#sendToLeader({ kind: ControlKind.Renew,",
    ],
  ],
  "agent/cluster_node.ts": [
    [
      "    features: seals ? FEATURE.sealBulk : 0,",
      "    features: (seals ? FEATURE.sealBulk : 0) | 0x4000,",
    ],
  ],
};

/** The next version, on disk until it is disposed of. */
export class NextVersion implements AsyncDisposable {
  private constructor(readonly path: string) {}

  /**
   * Copies and changes the source.
   *
   * @param mistake what else is changed, to show that it is noticed
   */
  static async make(mistake: Changes = {}): Promise<NextVersion> {
    const path = await Deno.makeTempDir({ prefix: "kelpie-next-" });
    const next = new NextVersion(path);
    try {
      for (const folder of FOLDERS) await copyFolder(`${ROOT}${folder}`, `${path}/${folder}`);
      for (const file of FILES) await Deno.copyFile(`${ROOT}${file}`, `${path}/${file}`);
      for (const [file, changes] of [...Object.entries(CHANGES), ...Object.entries(mistake)]) {
        await change(`${path}/${file}`, changes);
      }
      await next.#writeProgram();
      return next;
    } catch (error) {
      await next[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Its command line and agent, as a file that can be run. */
  get program(): string {
    return `${this.path}/kelpie`;
  }

  async #writeProgram(): Promise<void> {
    const { tasks } = JSON.parse(await Deno.readTextFile(`${this.path}/deno.json`));
    const flags = tasks.kelpie.command.match(/--(?:no-prompt|allow-\S+)/g).join(" ");
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

/** What a map of the next version says, "" while it may not. */
export function mottoOf(map: ClusterMap): string {
  return (map as ClusterMap & { readonly motto?: string }).motto ?? "";
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
        `the next version changes a line of ${path} that is there ${count} times, and not once:\n${before}`,
      );
    }
    text = text.replace(before, () => after);
  }
  await Deno.writeTextFile(path, text);
}
