/**
 * Sizes, and how a configuration is put together.
 *
 * @module
 */
import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  CONFIG_DEFAULT,
  type ConfigSources,
  findRunDir,
  formatSize,
  loadConfig,
  parseSize,
  suggest,
  TOML_KEYS,
} from "../../agent/config.ts";
import { type ControlError, ControlFailure } from "../../agent/map/errors.ts";

const KIB = 1024;
const MIB = KIB ** 2;
const GIB = KIB ** 3;
const TIB = KIB ** 4;

function errorOf(run: () => unknown): ControlError {
  const failure = assertThrows(run, ControlFailure) as ControlFailure;
  assertEquals(failure.error.code, "invalid");
  assertEquals(failure.error.message.includes("\n"), false);
  return failure.error;
}

Deno.test("parseSize() reads what people write", () => {
  const cases: [string, number][] = [
    ["0", 0],
    ["4096", 4096],
    ["512B", 512],
    ["512b", 512],
    ["1K", KIB],
    ["64KiB", 64 * KIB],
    ["512M", 512 * MIB],
    ["20G", 20 * GIB],
    ["20g", 20 * GIB],
    [" 20 GiB ", 20 * GIB],
    ["1.5T", 1.5 * TIB],
    [".5G", GIB / 2],
    ["2.61K", 2672],
    ["4P", 4 * KIB ** 5],
    ["0.3G", 322_121_728],
    ["1.1T", Math.floor(1.1 * TIB / 4096) * 4096],
  ];
  for (const [text, bytes] of cases) assertEquals(parseSize(text), bytes, text);
});

Deno.test("parseSize() says what is wrong with the rest", () => {
  const cases: [string, string][] = [
    ["", "is not a size"],
    ["G", "is not a size"],
    ["-1G", "is not a size"],
    ["+1G", "is not a size"],
    ["1,5T", "is not a size"],
    ["1e9", "is not a size"],
    ["0x10", "is not a size"],
    ["1.G", "is not a size"],
    ["1.2.3G", "is not a size"],
    ["20 G B", "is not a size"],
    ["20X", 'the unit "X"'],
    ["20Gi", 'the unit "Gi"'],
    ["20GB", "powers of 1000 or of 1024"],
    ["20KB", "powers of 1000 or of 1024"],
    ["0.1B", "whole number"],
    ["0.0001K", "whole number"],
    ["10x", 'the unit "x"'],
    ["8P", "too large"],
    ["9".repeat(400), "too large"],
    ["20G\u0000", "is not a size"],
    ["NaN", "is not a size"],
    ["Infinity", "is not a size"],
  ];
  for (const [text, part] of cases) {
    const error = errorOf(() => parseSize(text));
    assertStringIncludes(error.message, part, text);
  }
  assertStringIncludes(errorOf(() => parseSize("20GB")).hint!, "GiB");
  assertStringIncludes(errorOf(() => parseSize("twenty")).hint!, "20G");
});

Deno.test("formatSize() keeps the digits that count", () => {
  const cases: [number, string][] = [
    [0, "0B"],
    [1, "1B"],
    [1023, "1023B"],
    [1024, "1K"],
    [1536, "1.5K"],
    [20 * GIB, "20G"],
    [512 * MIB, "512M"],
    [1.5 * TIB, "1.5T"],
    [1.25 * GIB, "1.25G"],
    [GIB - 1, "1G"],
    [1023.4 * MIB, "1023M"],
    [12.34 * GIB, "12.3G"],
    [123.4 * GIB, "123G"],
    [4 * KIB ** 5, "4P"],
    [Infinity, "unlimited"],
  ];
  for (const [bytes, text] of cases) assertEquals(formatSize(bytes), text);
});

Deno.test("parseSize() reads what formatSize() writes, to three digits", () => {
  const random = new Prng(3);
  for (let round = 0; round < 5000; round++) {
    const bytes = Math.floor(2 ** (random.fraction() * 52));
    const back = parseSize(formatSize(bytes));
    const slack = bytes * 0.005 + (bytes < KIB ? 0 : 4096);
    assertEquals(Math.abs(back - bytes) <= slack, true, `${bytes} ${formatSize(bytes)} ${back}`);
  }
  for (let power = 0; power < 50; power++) {
    assertEquals(parseSize(formatSize(2 ** power)), 2 ** power);
  }
});

Deno.test("loadConfig() gives the defaults when it is told nothing", () => {
  assertEquals(loadConfig({}), CONFIG_DEFAULT);
  assertEquals(loadConfig({ env: {}, flags: {}, tomlText: "" }), CONFIG_DEFAULT);
  assertEquals(CONFIG_DEFAULT.dataPaths, ["/var/lib/kelpie"]);
  assertEquals(CONFIG_DEFAULT.runDir, "/run/kelpie");
  assertEquals(CONFIG_DEFAULT.scrubRateBytes, 8 * MIB);
});

const TOML = `
data = "/srv/blocks"
capacity = "1.5T"
run-dir = "/run/k2/"
cache = "direct"
log-level = "debug"
log-format = "json"
scrub-rate = "off"
join = ["host-1", "10.0.0.2:7500", "[fd00::1]"]
listen = "[::]:7411"
address = "10.0.0.1:7411"
name = "host-9"
zone = "rack-2"
weight = "2T"
witness = false
secret-file = "/etc/kelpie/secret"
`;

Deno.test("loadConfig() reads every key of the file and every flag of the same name", () => {
  const expected = {
    dataPaths: ["/srv/blocks"],
    capacityBytes: 1.5 * TIB,
    runDir: "/run/k2",
    cache: "direct",
    logLevel: "debug",
    logFormat: "json",
    scrubRateBytes: 0,
    adopt: false,
    acceptDamage: false,
    join: ["host-1:7460", "10.0.0.2:7500", "[fd00::1]:7460"],
    listen: "[::]:7411",
    address: "10.0.0.1:7411",
    name: "host-9",
    zone: "rack-2",
    weightBytes: 2 * TIB,
    witness: false,
    secretFile: "/etc/kelpie/secret",
  } as const;
  assertEquals(loadConfig({ tomlText: TOML }), expected);
  const flags = {
    data: "/srv/blocks",
    capacity: "1.5T",
    runDir: "/run/k2/",
    cache: "direct",
    logLevel: "debug",
    logFormat: "json",
    scrubRate: "0",
    join: ["host-1", "10.0.0.2:7500", "[fd00::1]"],
    listen: "[::]:7411",
    address: "10.0.0.1:7411",
    name: "host-9",
    zone: "rack-2",
    weight: "2T",
    witness: false,
    secretFile: "/etc/kelpie/secret",
  };
  assertEquals(loadConfig({ flags }), expected);
  assertEquals(TOML_KEYS.filter((key) => !TOML.includes(`${key} =`)), []);
  const own = { adopt: true, acceptDamage: true };
  assertEquals(loadConfig({ flags: own }), { ...CONFIG_DEFAULT, ...own });
});

Deno.test("flags are stronger than the environment, that is stronger than the file", () => {
  const tomlText = 'run-dir = "/file"';
  const env = { KELPIE_RUN_DIR: "/env" };
  const flags = { runDir: "/flag" };
  const cases: [ConfigSources, string][] = [
    [{ tomlText }, "/file"],
    [{ tomlText, env }, "/env"],
    [{ tomlText, env: { KELPIE_RUN_DIR: "" } }, "/file"],
    [{ tomlText, env, flags }, "/flag"],
    [{ env, flags }, "/flag"],
    [{ env: { KELPIE_DATA: "/x" } }, "/run/kelpie"],
  ];
  for (const [sources, runDir] of cases) assertEquals(loadConfig(sources).runDir, runDir);
  assertEquals(findRunDir({ env, flags }), "/flag");
  assertEquals(findRunDir({ env }), "/env");
  assertEquals(findRunDir({}), "/run/kelpie");
});

Deno.test("relative paths refer to the caller's directory, or to the file's", () => {
  const tomlText = 'data = "blocks"';
  const tomlPath = "/etc/kelpie/kelpie.toml";
  const paths = (sources: ConfigSources) => loadConfig(sources).dataPaths;
  assertEquals(paths({ tomlText, tomlPath, cwd: "/home" }), ["/etc/kelpie/blocks"]);
  assertEquals(paths({ flags: { data: "../b/" }, cwd: "/home/a" }), ["/home/b"]);
  assertEquals(loadConfig({ env: { KELPIE_RUN_DIR: "./r" }, cwd: "/t" }).runDir, "/t/r");
  assertEquals(paths({ flags: { data: "b" } }), ["b"]);
  assertEquals(paths({ flags: { data: "/a//b/../c/" } }), ["/a/c"]);
  // Several: a list in the file, the flag again and again.
  const several = 'data = ["one", "/dev/vdb"]';
  assertEquals(paths({ tomlText: several, tomlPath }), ["/etc/kelpie/one", "/dev/vdb"]);
  assertEquals(paths({ tomlText: several, flags: { data: ["/a", "/b"] } }), ["/a", "/b"]);
});

Deno.test("whatever is wrong is named with the place where it stands", () => {
  const tomlPath = "/etc/k.toml";
  const cases: [ConfigSources, string, string?][] = [
    [{ tomlText: "dta = 1", tomlPath }, '/etc/k.toml has the key "dta"', "did you mean 'data'?"],
    [{ tomlText: "log_level = 1", tomlPath }, '"log_level"', "did you mean 'log-level'?"],
    [{ tomlText: "zzzzzzzz = 1", tomlPath }, '"zzzzzzzz"', "the keys are data, capacity"],
    [{ tomlText: "[data]\nx = 1", tomlPath }, "'data' in /etc/k.toml must be a path"],
    [{ tomlText: "adopt = true", tomlPath }, "decides about one start", "--adopt"],
    [{ tomlText: "accept-damage = true", tomlPath }, "one start", "--accept-damage"],
    [{ tomlText: "constructor = 1", tomlPath }, "constructor"],
    [{ tomlText: "toString = 1", tomlPath }, "toString"],
    [{ tomlText: "a = = 1", tomlPath }, "/etc/k.toml cannot be read"],
    [{ tomlText: 'cache = "drect"', tomlPath }, "'cache' in /etc/k.toml is \"drect\"", "'direct'"],
    [{ tomlText: "cache = true" }, "true; it can be buffered, direct"],
    [{ tomlText: "capacity = 1.5", tomlPath }, "'capacity' in /etc/k.toml must be a size"],
    [{ tomlText: "capacity = -1" }, "must be a size"],
    [{ tomlText: "capacity = 0" }, "leave it out"],
    [{ flags: { capacity: "lots" } }, '--capacity: "lots" is not a size'],
    [{ flags: { scrubRate: "20GB" } }, "--scrub-rate", "GiB"],
    [{ flags: { logLevel: "verbose" } }, '--log-level is "verbose"'],
    [{ flags: { logLevel: "warning" } }, "--log-level", "did you mean 'warn'?"],
    [{ flags: { logFormat: "JSON" } }, "--log-format", "did you mean 'json'?"],
    [{ flags: { data: "" } }, "--data is empty"],
    [{ flags: { data: "a\0b" } }, "zero character"],
    [{ flags: { data: ["/a", "/b/../a/"] } }, "--data names /a twice"],
    [{ flags: { data: Array.from({ length: 17 }, (_, i) => `/d${i}`) } }, "16 is the most"],
    [{ flags: { data: `/${"d".repeat(512)}` } }, "--data has 513 bytes: 512 is the most"],
    [{ tomlText: "data = []", tomlPath }, "'data' in /etc/k.toml is an empty list"],
    [{ tomlText: 'data = ["/a", 1]', tomlPath }, "'data' in /etc/k.toml must be a path"],
    [{ flags: { runDir: "/" } }, "--run-dir is '/'"],
    [{ env: { KELPIE_RUN_DIR: `/${"r".repeat(100)}` } }, "5 bytes too long"],
    [{ flags: { listen: "10.0.0.1" } }, "--listen", "10.0.0.1:7460"],
    [{ flags: { listen: "10.0.0.1:0" } }, "ports are 1 to 65534"],
    [{ flags: { listen: "10.0.0.1:65535" } }, "and the next one is used too"],
    [{ flags: { listen: "fd00::1:7411" } }, "not host:port"],
    [{ flags: { listen: "a b:1" } }, "not host:port"],
    [{ tomlText: "listen = 7411" }, "not host:port"],
    [{ tomlText: 'listen = ["a:1"]' }, "not host:port"],
    [{ flags: { join: Array(17).fill("a:1") } }, "16 is the most"],
    [{ flags: { join: "host-1:" } }, "--join"],
    [{ flags: { join: "https://host-1" } }, "not host:port"],
    [{ tomlText: "join = 7" }, "must be host or host:port"],
    [{ tomlText: "join = [7]" }, "not host:port"],
    [{ flags: { join: "0.0.0.0" } }, "names no host"],
    [{ flags: { address: "[::]:7460" } }, "names no host"],
    [{ flags: { join: "a", listen: "none" } }, "'join' is a:7460", "leave 'listen' out"],
    [{ flags: { address: "a:1", listen: "none" } }, "cannot be reached"],
    [{ flags: { name: "" } }, "--name", "1 to 63 letters"],
    [{ flags: { name: "a b" } }, "cannot be the name of a node"],
    [{ flags: { zone: "rack/2" } }, "cannot be the name of a zone"],
    [{ tomlText: "zone = 2" }, "must be text"],
    [{ flags: { weight: "heavy" } }, '--weight: "heavy" is not a size'],
    [{ tomlText: 'witness = "yes"', tomlPath }, "'witness' in /etc/k.toml must be true or false"],
    [{ flags: { witness: true, weight: "1T" } }, "a witness stores nothing"],
    [{ flags: { secretFile: "" } }, "--secret-file is empty"],
    [{ tomlText: "#".repeat(2 ** 20 + 1), tomlPath }, "is the most"],
  ];
  for (const [sources, part, hint] of cases) {
    const error = errorOf(() => loadConfig(sources));
    assertStringIncludes(error.message, part);
    if (hint !== undefined) assertStringIncludes(error.hint ?? "", hint);
  }
});

Deno.test("a node listens by default, and may be told not to", () => {
  assertEquals(loadConfig({}).listen, "0.0.0.0:7460");
  assertEquals(loadConfig({ flags: { listen: "none" } }).listen, null);
  assertEquals(loadConfig({ tomlText: 'listen = "127.0.0.1:7500"' }).listen, "127.0.0.1:7500");
  assertEquals(loadConfig({ flags: { join: ["b", "c:1"] }, tomlText: 'join = "a"' }).join, [
    "b:7460",
    "c:1",
  ]);
  assertEquals(loadConfig({ flags: { weight: "auto" }, tomlText: "weight = 7" }).weightBytes, null);
  assertEquals(loadConfig({ flags: { witness: true } }).witness, true);
});

Deno.test("the secret's file comes from the file, the environment or a flag, the secret from none of them", () => {
  const tomlText = 'secret-file = "secret"';
  const tomlPath = "/etc/kelpie/kelpie.toml";
  const env = { KELPIE_SECRET_FILE: "env" };
  const flags = { secretFile: "flag" };
  const cases: [ConfigSources, string | null][] = [
    [{}, null],
    [{ tomlText, tomlPath, cwd: "/c" }, "/etc/kelpie/secret"],
    [{ tomlText, tomlPath, env, cwd: "/c" }, "/c/env"],
    [{ tomlText, tomlPath, env, flags, cwd: "/c" }, "/c/flag"],
    [{ env: { KELPIE_SECRET_FILE: "" } }, null],
  ];
  for (const [sources, file] of cases) assertEquals(loadConfig(sources).secretFile, file);
  const error = errorOf(() => loadConfig({ tomlText: 'secret = "kelpie1-x"', tomlPath }));
  assertStringIncludes(error.hint ?? "", "secret-file");
});

Deno.test("the longest run directory that fits is taken", () => {
  const runDir = `/${"r".repeat(95)}`;
  assertEquals(loadConfig({ flags: { runDir } }).runDir, runDir);
  errorOf(() => loadConfig({ flags: { runDir: `${runDir}r` } }));
});

Deno.test("suggest() finds what is near and nothing else", () => {
  const words = ["cache", "capacity", "data", "listen"];
  const cases: [string, string | null][] = [
    ["cahce", "cache"],
    ["Cache", "cache"],
    ["capcity", "capacity"],
    ["dat", "data"],
    ["listening", "listen"],
    ["xyzzy", null],
    ["", null],
    ["d".repeat(1_000_000), null],
  ];
  for (const [word, expected] of cases) assertEquals(suggest(word, words), expected, word);
});
