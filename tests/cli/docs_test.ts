/**
 * The README and the pages below docs/ say what the command line knows: each command that they give is one, with options that it has,
 * and no command is left out.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { CommandContext } from "../../cli/context.ts";
import { childOf, HELP } from "../../cli/help_command.ts";
import { createProgram } from "../../cli/main.ts";
import { allCommands, FakeTerminal } from "./fixture.ts";

const ROOT = new URL("../../", import.meta.url);

/** What ends a command in a line of shell. */
const SHELL_ENDS = /^(?:[|>&#;]|\d?>|<$)/;

interface Page {
  readonly name: string;
  readonly text: string;
}

function pages(): Page[] {
  const names = [...Deno.readDirSync(new URL("docs/", ROOT))].map(({ name }) => `docs/${name}`);
  return ["README.md", ...names.toSorted()].map((name) => ({
    name,
    text: Deno.readTextFileSync(new URL(name, ROOT)),
  }));
}

/** The words behind each `kelpie` of a page: of its blocks for the shell, and of the code in its sentences. */
function commandLines({ text }: Page): string[][] {
  const lines: string[] = [];
  const prose = text.replaceAll(
    /^( *)```(\w*)\n([^]*?)^ *```$/gm,
    (_, _indent, language, block) => {
      if (language === "sh") lines.push(...block.replaceAll(/\\\n/g, " ").split("\n"));
      return "";
    },
  );
  for (const [, code] of prose.matchAll(/`([^`]+)`/g)) lines.push(code.replaceAll(/\s+/g, " "));
  return lines.flatMap((line) => {
    const words = line.trim().split(/ +/);
    return words.flatMap((word, at) => {
      const isStart = at === 0 || /^(?:\||&&|sudo)$/.test(words[at - 1]);
      if (word !== "kelpie" || !isStart) return [];
      const rest = words.slice(at + 1);
      const end = rest.findIndex((each) => SHELL_ENDS.test(each));
      return [end < 0 ? rest : rest.slice(0, end)];
    });
  });
}

/** The command that some words name, and the words behind its name. */
function find(
  program: CommandUnknownOpts,
  words: readonly string[],
): { command: CommandUnknownOpts; rest: readonly string[] } {
  let command = program;
  for (let at = 0; at < words.length; at++) {
    // `kelpie disk snapshot web@monday` makes one.
    const isShort = command.name() === "snapshot" && words[at].includes("@");
    const name = isShort ? "create" : words[at];
    const next = childOf(command, name);
    if (next === undefined) return { command, rest: words.slice(at) };
    command = next;
    if (isShort) at--;
  }
  return { command, rest: [] };
}

function isGroup(command: CommandUnknownOpts): boolean {
  return command.commands.some((each) => each.name() !== HELP);
}

/** Those options that a command, or one that it belongs to, does not have. */
function unknownOptions(command: CommandUnknownOpts, words: readonly string[]): string[] {
  const known = new Set(["--help"]);
  // `kelpie node … --dry-run`: an option of the commands in there.
  const all = [...command.commands];
  for (let at: CommandUnknownOpts | null = command; at !== null; at = at.parent) all.push(at);
  for (const { options } of all) for (const { long } of options) if (long) known.add(long);
  return words.filter((word) => word.startsWith("--")).map((word) => word.replace(/=.*/, ""))
    .filter((word) => !known.has(word));
}

Deno.test("every command line in the README and in docs/ is one, with options that it has", async () => {
  const program = await createProgram(new CommandContext(new FakeTerminal()));
  let count = 0;
  for (const page of pages()) {
    for (const words of commandLines(page)) {
      const shown = `${page.name}: kelpie ${words.join(" ")}`;
      const { command, rest } = find(program, words);
      const [first = ""] = rest;
      const isNamed = !isGroup(command) || first === "" || /^(?:…|-|[A-Z]+$)/.test(first);
      assert(isNamed, `${shown}: there is no such command`);
      assertEquals(unknownOptions(command, rest), [], shown);
      count++;
    }
  }
  assert(count > 150, `only ${count} were found`);
});

Deno.test("every command has its place in the README's table or on a page of docs/", async () => {
  const program = await createProgram(new CommandContext(new FakeTerminal()));
  const named = new Set<CommandUnknownOpts>();
  for (const page of pages()) {
    for (const words of commandLines(page)) named.add(find(program, words).command);
    // In a table "`kelpie disk list`, `info NAME`" stands for two.
    for (const row of page.text.split("\n").filter((line) => line.startsWith("| `kelpie "))) {
      const [first, ...others] = [...row.split(/(?<!\\)\|/)[1].matchAll(/`([^`]+)`/g)]
        .map(([, code]) => code.split(/ +/));
      const { command } = find(program, first.slice(1));
      const group = command.parent ?? program;
      for (const words of others) named.add(find(group, words).command);
    }
  }
  const missing = allCommands(program)
    .filter(({ command }) => command.name() !== HELP && !isGroup(command) && !named.has(command));
  assertEquals(missing.map(({ path }) => path.join(" ")), []);
});
