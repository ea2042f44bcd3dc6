/**
 * Holds the architecture against the code: which folder may import which, and that the pure parts name
 * neither the runtime nor time nor chance.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";

const root = new URL("../agent/", import.meta.url);

/** What the files of each folder of `agent/` may import, besides their own folder. */
const ALLOWED: Record<string, string[]> = {
  "base": ["platform/platform.ts"],
  "platform": ["base", "platform", "wire"],
  "wire": ["base", "platform/platform.ts", "platform/network.ts", "node:crypto", "node:buffer"],
  "gossip": ["base", "platform/platform.ts"],
  "consensus": ["base", "map/errors.ts", "msgpackr", "platform/platform.ts"],
  "control": [
    "base",
    "consensus",
    "gossip",
    "map",
    "msgpackr",
    "platform/network.ts",
    "platform/platform.ts",
  ],
  "replication": [
    "base",
    "map",
    "platform/network.ts",
    "platform/platform.ts",
    "store/operation.ts",
    "store/operation_list.ts",
    "volume/transfer_pool.ts",
  ],
  "map": ["base", "msgpackr"],
  "store": ["base", "platform/platform.ts"],
  "paths": ["base", "map", "platform/platform.ts", "replication/local_store.ts", "store"],
  "volume": ["base", "platform/platform.ts", "blk/target.ts", "store/operation.ts"],
  "blk": ["base", "platform/platform.ts", "vhost"],
  "vhost": ["base", "platform/platform.ts"],
  "http": [
    "base",
    "map",
    "config.ts",
    "deadline.ts",
    "problems.ts",
    "platform/platform.ts",
    "replication/check_report.ts",
  ],
  "nbd": ["base"],
  "backup": ["base", "msgpackr", "node:zlib"],
  "frontend": ["base", "platform/linux", "platform/platform.ts"],
};

/** Folders whose code is a pure function of its inputs. */
const PURE = [
  "base",
  "wire",
  "gossip",
  "consensus",
  "map",
  "control",
  "store",
  "paths",
  "replication",
  "volume",
  "blk",
  "vhost",
  "nbd",
  "backup",
];

/** What a pure part must not name: the runtime, timers, the clock, unseeded chance, promises. */
const FORBIDDEN =
  /\bDeno\.|\bsetTimeout\b|\bsetInterval\b|\bDate\.now\b|\bnew Date\b|\bperformance\.|Math\.random|\bcrypto\.|\bawait\b|\basync\b|\bPromise\b/;

interface Source {
  folder: string;
  path: string;
  text: string;
}

function sources(directory = root, prefix = ""): Source[] {
  const found: Source[] = [];
  for (const entry of Deno.readDirSync(directory)) {
    const path = prefix + entry.name;
    if (entry.isDirectory) {
      found.push(...sources(new URL(`${entry.name}/`, directory), `${path}/`));
    } else if (entry.name.endsWith(".ts")) {
      const text = Deno.readTextFileSync(new URL(entry.name, directory));
      found.push({ folder: path.includes("/") ? path.split("/")[0] : "", path, text });
    }
  }
  return found;
}

/** Imported modules of a file, relative ones as paths below `agent/`. */
function importsOf(source: Source): string[] {
  const pattern = /^(?:import|export)\s(?:[^"';]*?\sfrom\s+)?"([^"]+)"/gm;
  return [...source.text.matchAll(pattern)].map((match) => {
    if (!match[1].startsWith(".")) return match[1];
    const url = new URL(match[1], new URL(source.path, root));
    return url.href.startsWith(root.href) ? url.href.slice(root.href.length) : url.href;
  });
}

/** The code without comments and strings, so that prose may name what code may not. */
function codeOf(text: string): string {
  return text
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/`(?:\\.|[^`\\])*`|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/g, '""')
    .replace(/\/\/.*$/gm, "");
}

Deno.test("every folder of agent/ imports only what the architecture allows", () => {
  const all = sources();
  assertEquals(all.length > 20, true, "the sources were not found");
  const wrong: string[] = [];
  for (const source of all) {
    if (source.folder === "") continue;
    const allowed = ALLOWED[source.folder];
    if (allowed === undefined) {
      wrong.push(`${source.path}: folder ${source.folder} has no rule`);
      continue;
    }
    for (const imported of importsOf(source)) {
      const isAllowed = imported.startsWith(`${source.folder}/`) ||
        allowed.some((rule) => imported === rule || imported.startsWith(`${rule}/`)) ||
        imported.startsWith("@std/") ||
        imported.startsWith("node:") && !PURE.includes(source.folder) ||
        (!PURE.includes(source.folder) && imported === "msgpackr");
      if (!isAllowed) wrong.push(`${source.path} imports ${imported}`);
    }
  }
  assertEquals(wrong, []);
});

Deno.test("the pure parts name no runtime, time, chance or promise", () => {
  const wrong: string[] = [];
  for (const source of sources()) {
    if (!PURE.includes(source.folder)) continue;
    const match = codeOf(source.text).match(FORBIDDEN);
    if (match !== null) wrong.push(`${source.path}: ${match[0]}`);
  }
  assertEquals(wrong, []);
});
