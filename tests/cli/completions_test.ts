/**
 * Completion scripts, in the shells that they are for where those are installed.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { SHELLS } from "../../cli/completions.ts";
import { runWell } from "./fixture.ts";

/** Path of a program, or null. */
function find(program: string): string | null {
  const directories = (Deno.env.get("PATH") ?? "").split(":");
  return directories.map((each) => `${each}/${program}`).find((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  }) ?? null;
}

async function shell(program: string, args: string[], script: string): Promise<string> {
  const child = new Deno.Command(program, {
    args,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(script));
  await writer.close();
  const { success, stdout, stderr } = await child.output();
  const said = new TextDecoder().decode(stderr);
  assert(success, said);
  assertEquals(said, "");
  return new TextDecoder().decode(stdout);
}

Deno.test("every shell's script parses in that shell", async () => {
  for (const name of SHELLS) {
    const { stdout } = await runWell(["completions", name]);
    assertStringIncludes(stdout, "kelpie");
    // Those who have the shell test it; bash is everywhere.
    const program = find(name);
    if (program === null) assert(name !== "bash", "bash is not installed");
    else await shell(program, ["-n"], stdout);
  }
});

/** Completes a line in bash; a `kelpie` that has three disks and two nodes answers. */
async function complete(line: string): Promise<string[]> {
  const { stdout: script } = await runWell("completions bash");
  const words = line.split(" ");
  const asked = `
kelpie() {
  if [[ "$*" == 'disk list --names' ]]; then printf '%s\\n' web db-main data
  elif [[ "$*" == 'node list --names' ]]; then printf '%s\\n' host-1 host-2
  elif [[ "$*" == 'disk snapshot list --names' ]]; then printf '%s\\n' web@monday web@tuesday db-main@x
  elif [[ "$*" == 'disk trash --names' ]]; then printf '%s\\n' old older
  elif [[ "$*" == '--run-dir /x disk list --names' ]]; then printf '%s\\n' elsewhere
  else echo "asked for $*" >&2
  fi
}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")})
COMP_CWORD=${words.length - 1}
_kelpie
printf '%s\\n' "\${COMPREPLY[@]}"
`;
  const said = await shell("bash", ["--norc"], script + asked);
  return said.split("\n").filter((word) => word !== "").sort();
}

Deno.test("bash completes commands, options, choices and names of disks and nodes", async () => {
  const cases: [line: string, expected: string[]][] = [
    ["kelpie s", ["status"]],
    ["kelpie disk re", ["read", "release", "rename", "resize", "restore"]],
    ["kelpie disk backup web@m", ["web@monday"]],
    ["kelpie disk backup web@monday x --since d", ["db-main@x"]],
    ["kelpie disk backup web@monday x --compress z", ["zstd"]],
    ["kelpie disk sn", ["snapshot"]],
    ["kelpie disk snapshot p", ["protect"]],
    ["kelpie disk snapshot delete w", ["web@monday", "web@tuesday"]],
    ["kelpie disk snapshot delete web@monday db", ["db-main@x"]],
    ["kelpie disk snapshot create d", ["data@", "db-main@"]],
    ["kelpie disk snapshot list w", ["web"]],
    ["kelpie disk clone web@t", ["web@tuesday"]],
    ["kelpie disk clone web@tuesday ", []],
    ["kelpie disk read w", ["web", "web@monday", "web@tuesday"]],
    ["kelpie disk export web@m", ["web@monday"]],
    ["kelpie disk map d", ["data", "db-main", "db-main@x"]],
    ["kelpie disk object web@t", ["web@tuesday"]],
    ["kelpie disk write w", ["web"]],
    ["kelpie disk rollback d", ["db-main@x"]],
    ["kelpie disk undelete o", ["old", "older"]],
    ["kelpie disk schedule set d", ["data", "db-main"]],
    ["kelpie disk release w", ["web"]],
    ["kelpie disk lock ", ["list", "release"]],
    ["kelpie disk lock release w", ["web"]],
    ["kelpie disk lock list --j", ["--json"]],
    ["kelpie node d", ["drain"]],
    ["kelpie node drain ", ["host-1", "host-2"]],
    ["kelpie node weight host-1 ", []],
    ["kelpie node remove --force host-2", ["host-2"]],
    ["kelpie cluster settings out", ["out-after"]],
    ["kelpie cluster settings tr", ["trash", "trusted-network"]],
    ["kelpie cluster ", ["backup", "recover", "restore", "secret", "settings", "upgrade"]],
    ["kelpie disk rename ", ["data", "db-main", "web"]],
    ["kelpie disk rename d", ["data", "db-main"]],
    ["kelpie disk rename web ", []],
    ["kelpie disk create ", []],
    ["kelpie disk delete --yes w", ["web"]],
    ["kelpie disk qemu web d", ["data", "db-main"]],
    ["kelpie disk qemu web db-main w", ["web"]],
    ["kelpie disk qemu --memory 4G w", ["web"]],
    ["kelpie --run-dir /x disk info ", ["elsewhere"]],
    ["kelpie disk list --n", ["--names"]],
    ["kelpie disk resize web 1G --s", ["--shrink"]],
    ["kelpie agent --cache ", ["buffered", "direct"]],
    ["kelpie bench web --rw randr", ["randread", "randrw"]],
    ["kelpie completions ", ["bash", "fish", "zsh"]],
    ["kelpie disk check w", ["web"]],
  ];
  for (const [line, expected] of cases) {
    assertEquals({ line, words: await complete(line) }, { line, words: expected });
  }
  const all = await complete("kelpie ");
  for (const command of ["agent", "bench", "cluster", "completions", "disk", "node", "status"]) {
    assert(all.includes(command), command);
  }
  assert((await complete("kelpie disk list --")).includes("--run-dir"));
});

Deno.test("bash completes files, with spaces in their names", async () => {
  const directory = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${directory}/my image.raw`, "");
    await Deno.mkdir(`${directory}/my directory`);
    const files = await complete(`kelpie disk import ${directory}/my`);
    assertEquals(files, [`${directory}/my directory`, `${directory}/my image.raw`]);
    assertEquals(await complete(`kelpie --run-dir ${directory}/my`), [`${directory}/my directory`]);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
