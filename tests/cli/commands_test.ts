/**
 * The table of commands: what it says of each is so, only what is called is loaded, and nothing else can be told by that.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { COMMANDS, type Part } from "../../cli/commands.ts";
import { CommandContext } from "../../cli/context.ts";
import { createProgram } from "../../cli/main.ts";
import { allCommands, FakeTerminal, run } from "./fixture.ts";

const root = new URL("../../", import.meta.url);

function namesOf(command: CommandUnknownOpts): string[] {
  return command.commands.flatMap((child) => [child.name(), ...child.aliases()]);
}

/** Paths of all commands below one. */
function pathsOf(command: CommandUnknownOpts): (readonly string[])[] {
  return allCommands(command).slice(1).map(({ path }) => path);
}

function at(program: CommandUnknownOpts, path: readonly string[]): CommandUnknownOpts {
  let command = program;
  for (const name of path) {
    const child = command.commands.find((each) => each.name() === name);
    if (child === undefined) throw new Error(`there is no ${path.join(" ")}`);
    command = child;
  }
  return command;
}

const program = (words?: readonly string[]) =>
  createProgram(new CommandContext(new FakeTerminal()), words);

Deno.test("the table has the names of all commands that a part adds", async () => {
  const parts: readonly Part[] = COMMANDS.flatMap((entry) =>
    "parts" in entry ? entry.parts : [entry]
  );
  for (const { names, load } of parts) {
    const parent = new Command() as unknown as CommandUnknownOpts;
    (await load())(parent, new CommandContext(new FakeTerminal()));
    assertEquals(namesOf(parent).sort(), [...names].sort());
  }
});

Deno.test("what is called is there, and looks as it does beside all others", async () => {
  const all = await program();
  const paths = pathsOf(all);
  assert(paths.length > 60);
  for (const path of paths) {
    const alone = at(await program([...path, "web"]), path);
    assertEquals(alone.helpInformation(), at(all, path).helpInformation(), path.join(" "));
  }
});

Deno.test("only what is called is loaded, and everything where that is not known", async () => {
  const count = async (...words: string[]) => pathsOf(await program(words)).length;
  const all = pathsOf(await program()).length;
  assertEquals((await program(["disk", "tree"])).commands.map((each) => each.name()), [
    "disk",
    "help",
  ]);
  assertEquals(namesOf(at(await program(["disk", "tree"]), ["disk"])), ["tree", "help"]);
  assertEquals(await count("status"), 2);
  assertEquals(namesOf(at(await program(["disk"]), ["disk"])).includes("tree"), true);
  assertEquals([await count("help", "disk"), await count("completions"), await count("dsik")], [
    all,
    all,
    all,
  ]);
});

Deno.test("wherever options stand, the same is said", async () => {
  const cases: [words: string, code: number, said: RegExp][] = [
    ["--run-dir /nowhere/x disk list", 2, /no agent answers at \/nowhere\/x/],
    ["disk --run-dir /nowhere/x list", 2, /no agent answers at \/nowhere\/x/],
    ["disk list --run-dir=/nowhere/x", 2, /no agent answers at \/nowhere\/x/],
    ["-- disk list --run-dir=/nowhere/x", 64, /too many arguments/],
    ["--run-dir disk status", 2, /no agent answers at .*\/disk\/agent\.sock/],
    ["disk --help tree", 0, /preallocate/],
    ["--help disk", 0, /completions/],
    ["disk --json list", 64, /unknown option '--json'/],
    ["disk lsit", 64, /Did you mean list\?/],
    ["dsik list", 64, /Did you mean disk\?/],
    ["disk tree --jsno", 64, /Did you mean --json\?/],
  ];
  for (const [words, expected, said] of cases) {
    const { code, stdout, stderr } = await run(words);
    assertEquals({ words, code }, { words, code: expected }, stderr);
    assert(said.test(stdout + stderr), `${words}: ${stdout}${stderr}`);
  }
});

/** Modules that are loaded with one: the files below the checkout, and the packages. */
function loadedWith(path: string, found = new Set<string>()): Set<string> {
  if (found.has(path)) return found;
  found.add(path);
  if (!path.endsWith(".ts")) return found;
  const text = Deno.readTextFileSync(new URL(path, root));
  const pattern = /^(?:import|export) (?!type )(?:(?<names>[^"';]*?) from )?"(?<from>[^"]+)";/gm;
  for (const { groups } of text.matchAll(pattern)) {
    const { names = "", from } = groups!;
    const words = names.replace(/[{}]/g, "").split(",").map((name) => name.trim());
    if (names !== "" && words.every((word) => word === "" || word.startsWith("type "))) continue;
    const url = from.startsWith(".") ? new URL(from, new URL(path, root)).href : from;
    loadedWith(url.startsWith(root.href) ? url.slice(root.href.length) : url, found);
  }
  return found;
}

Deno.test("no command loads what only others need: other commands, the map's commands, codecs", () => {
  const program = loadedWith("cli/main.ts");
  assert(program.has("cli/output.ts") && program.has("commander"), [...program].join(" "));
  const modules = [
    ...Deno.readTextFileSync(new URL("cli/commands.ts", root)).matchAll(/import\("\.\/(.*?)"\)/g),
  ].map((match) => `cli/${match[1]}`);
  assert(modules.length > 20);
  assertEquals(modules.filter((each) => program.has(each)), []);
  for (const module of ["cli/main.ts", ...modules]) {
    const loaded = [...loadedWith(module)];
    const costly = loaded.filter((each) => ["msgpackr", "agent/map/map.ts"].includes(each));
    assertEquals({ module, costly }, { module, costly: [] });
  }
});
