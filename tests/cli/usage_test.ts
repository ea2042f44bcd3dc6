/**
 * What the command line says to those who mistype, who ask for help, and who are not asked.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import { CommandContext } from "../../cli/context.ts";
import { createProgram } from "../../cli/main.ts";
import { allCommands, FakeTerminal, run, runWell } from "./fixture.ts";

const NOWHERE = "--run-dir /nowhere/kelpie";

Deno.test("wrong command lines end with 64, say what is wrong, and print nothing as data", async () => {
  const cases: [words: string, message: RegExp][] = [
    ["dsk list", /unknown command 'dsk'\n +Did you mean disk\?/],
    ["frobnicate", /unknown command 'frobnicate'\n +--help lists the commands/],
    ["disk list --frobnicate", /unknown option '--frobnicate'\n +--help lists the options/],
    ["disk lst", /unknown command 'lst'\n +Did you mean (one of )?list/],
    ["disk list --nmaes", /unknown option '--nmaes'\n +Did you mean --names\?/],
    ["status --rundir /x", /unknown option '--rundir'\n +Did you mean --run-dir\?/],
    ["disk create web", /missing required argument 'size'/],
    ["disk create web 5GB", /size: "5GB" could mean powers of 1000 or of 1024\n +write G or GiB/],
    ["disk create ../web 5G", /"\.\.\/web" cannot be the name of a disk.*\n +use 1 to 63/],
    ["disk create agent 5G", /"agent" cannot be the name of a disk: Kelpie uses that name itself/],
    ["disk create web 5G 6G", /too many arguments/],
    ["disk qemu web --memory 3x", /--memory <size>: "3x" has the unit "x"/],
    ["disk qemu web --queues 0", /--queues <count> "0": it must be a whole number of 1 to 64/],
    ["agent --cache drect", /--cache <mode> "drect": allowed choices are buffered, direct/],
    ["disk create web 5G --copies 6", /--copies <count> "6": it must be a whole number of 1 to 5/],
    ["disk create web 5G --zones a,,b", /--zones <zones> "a,,b": a zone without a name/],
    ["disk set web --zones a/b", /--zones <zones>: "a\/b" cannot be the name of a zone/],
    ["agent --listen 7460", /--listen is "7460", which is not host:port/],
    ["agent --join host-1 --listen none", /an agent that does not listen cannot be reached/],
    ["node drain ../host-1", /node: "\.\.\/host-1" cannot be the name of a node/],
    ["node remove host-1 --accept-loss", /--accept-loss says nothing without --force/],
    ["node weight host-1 heavy", /weight: "heavy" is not a size/],
    ["node zone host-1 a/b", /zone: "a\/b" cannot be the name of a zone/],
    ["cluster settings copies", /copies needs a value/],
    ["cluster settings copy 2", /key "copy": allowed choices are copies, copies-min/],
    ["cluster settings out-after soon", /out-after: "soon" is no length of time/],
    ["cluster settings trusted-network maybe", /"maybe" is neither on nor off/],
    ["cluster settings copies two", /copies: "two" is no whole number/],
    ["completions tcsh", /shell "tcsh": allowed choices are bash, zsh, fish/],
    ["bench", /needs either a disk or --socket/],
    ["bench web --socket /x", /needs either a disk or --socket/],
    ["bench web --rw radnread", /allowed choices are randread/],
    ["agent --capacity lots", /--capacity/],
    ["nbd", /nbd needs --socket or --listen/],
    ["nbd --listen host:port", /--listen <address> "host:port": it must be host, host:port/],
    ["nbd --socket /s --export ../web", /--export <name> "..\/web": it must be the name of a disk/],
    ["nbd --socket /s --max-connections 0", /must be a whole number of 1 to 1000/],
    ["nbd --listen localhost --tls-key /k", /--tls-cert and --tls-key belong together/],
    ["disk import - web --format qcow2", /only raw images can come from standard input/],
    ["disk export web - --format qcow2", /only raw images can go to standard output/],
    [`${NOWHERE}${"x".repeat(200)} status`, /bytes too long/],
  ];
  for (const [words, message] of cases) {
    const { code, stdout, stderr } = await run(words);
    assertEquals({ words, code, stdout }, { words, code: 64, stdout: "" });
    assertMatch(stderr, message, words);
    assertMatch(stderr, /^kelpie: error: /, words);
  }
});

Deno.test("a command without its subcommand prints its help on standard error", async () => {
  for (const words of ["", "disk", "disk lock", "node", "cluster"]) {
    const { code, stdout, stderr } = await run(words);
    assertEquals({ code, stdout }, { code: 64, stdout: "" });
    assertStringIncludes(stderr, "Usage: kelpie");
  }
});

Deno.test("every command's --help ends well, goes to standard output and has an example", async () => {
  const program = await createProgram(new CommandContext(new FakeTerminal()));
  let count = 0;
  for (const { path } of allCommands(program)) {
    const { stdout, stderr } = await runWell([...path, "--help"]);
    assertEquals(stderr, "");
    assertMatch(stdout, new RegExp(`^Usage: ${["kelpie", ...path].join(" ")}\\b`));
    const [, example = ""] = stdout.split(/\nExamples?:\n/);
    assertMatch(example, /kelpie /, `${path.join(" ")} has no example`);
    assert(stdout.split("\n").every((line) => line.length <= 100), stdout);
    count++;
  }
  assertEquals(count, 71);
});

Deno.test("help prints the same as --help, however deep the command lies", async () => {
  const same = async (words: string, path: string) => {
    const { stdout, stderr } = await runWell(words);
    assertEquals([stdout, stderr], [(await runWell(`${path} --help`)).stdout, ""]);
  };
  await same("help", "");
  await same("help disk", "disk");
  await same("help disk create", "disk create");
  await same("help disk rm", "disk delete");
  await same("help disk snapshot create", "disk snapshot create");
  await same("disk help", "disk");
  await same("disk help snapshot rename", "disk snapshot rename");
  await same("disk snapshot help create", "disk snapshot create");
  await same("node help drain", "node drain");
  await same("cluster help settings", "cluster settings");
  const cases: [words: string, message: RegExp][] = [
    ["help dsik", /unknown command 'dsik'\n +Did you mean disk\?/],
    ["help disk creat", /unknown command 'creat'\n +Did you mean create\?/],
    ["help disk create web", /unknown command 'web'\n +--help lists/],
    ["disk help xyzzy", /unknown command 'xyzzy'/],
  ];
  for (const [words, message] of cases) {
    const { code, stdout, stderr } = await run(words);
    assertEquals({ words, code, stdout }, { words, code: 64, stdout: "" });
    assertMatch(stderr, message);
  }
});

Deno.test("examples in the help are command lines that parse", async () => {
  const program = await createProgram(new CommandContext(new FakeTerminal()));
  const examples: string[] = [];
  for (const { path } of allCommands(program)) {
    const { stdout } = await runWell([...path, "--help"]);
    examples.push(...stdout.split(/\nExamples?:\n/)[1].split("\n"));
  }
  const lines = examples.flatMap((line) => line.match(/kelpie (?!disk qemu)[^|>)]*/g) ?? [])
    .filter((line) => !line.startsWith("kelpie agent"));
  assert(lines.length > 20);
  for (const line of lines) {
    const words = line.trim().split(/\s+/).slice(1);
    if (words.some((word) => word.includes("/"))) continue; // a path, not a command
    const { code, stderr } = await run([...words, "--run-dir", "/nowhere/kelpie"]);
    assert(code !== 64, `${line}: ${stderr}`);
  }
});

Deno.test("without an agent, commands end with 2 and say how to start one", async () => {
  for (
    const words of [
      "status",
      "disk list",
      "disk info web",
      "disk check",
      "disk qemu web",
      "node list",
      "node drain host-1",
      "cluster secret",
      "cluster settings copies 2",
    ]
  ) {
    const { code, stdout, stderr } = await run(`${words} ${NOWHERE}`);
    assertEquals({ words, code, stdout }, { words, code: 2, stdout: "" });
    assertMatch(stderr, /no agent answers at \/nowhere\/kelpie\/agent\.sock/);
    assertMatch(stderr, /kelpie agent/);
  }
});

Deno.test("version does not need an agent", async () => {
  const { stdout } = await runWell(`version ${NOWHERE}`);
  assertMatch(stdout, /^kelpie \d+\.\d+\.\d+\n$/);
  const { stdout: json } = await runWell(`version --json ${NOWHERE}`);
  assertEquals(JSON.parse(json).agent, null);
  assertMatch((await runWell("--version")).stdout, /^\d+\.\d+\.\d+\n$/);
});

Deno.test("agent refuses a bad configuration file before it does anything", async () => {
  const file = await Deno.makeTempFile({ suffix: ".toml" });
  try {
    await Deno.writeTextFile(file, 'capcity = "5G"\n');
    const { code, stderr } = await run(["agent", "--config", file]);
    assertEquals(code, 64);
    assertMatch(stderr, /capcity.*\n +did you mean 'capacity'\?/);
    const missing = await run(["agent", "--config", `${file}.not`]);
    assertEquals(missing.code, 5);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("NO_COLOR, a dumb terminal and no terminal at all have no colours", async () => {
  const escapes = async (prepare: (terminal: FakeTerminal) => void) =>
    (await run("dsk", prepare)).stderr.includes("\x1b[");
  const terminal = (variables: Record<string, string>) => (each: FakeTerminal) => {
    each.isErrorTerminal = true;
    each.variables = variables;
  };
  assertEquals(await escapes(terminal({})), true);
  assertEquals(await escapes(terminal({ NO_COLOR: "" })), true);
  assertEquals(await escapes(terminal({ NO_COLOR: "1" })), false);
  assertEquals(await escapes(terminal({ TERM: "dumb" })), false);
  assertEquals(await escapes(() => {}), false);
});

Deno.test("data is not printed to a terminal", async () => {
  for (const words of ["disk read web", "disk export web -"]) {
    const { code, stdout, stderr } = await run(words, (each) => each.isOutTerminal = true);
    assertEquals({ code, stdout }, { code: 64, stdout: "" });
    assertMatch(stderr, /will not print a disk's data to a terminal/);
  }
});
