/**
 * What an agent is told about itself: defaults, then a TOML file, then the environment, then flags.
 *
 *     default  <  file.toml        <  KELPIE_RUN_DIR, KELPIE_SECRET_FILE  <  --flag
 *                 data = "/data"                                              --data /data
 *                 capacity = "500G"                                           --capacity 500G
 *
 * Text in, configuration out: nothing here reads files or the environment, so that all of it can be
 * tested and the same code serves the agent, the command line and those who embed the agent.
 *
 * Invariants: a configuration that {@linkcode loadConfig} returns needs no further checks of form; a
 * key, value or word that is not known is refused, never ignored, and the message names where it
 * stands and what was probably meant.
 *
 * @module
 */

import { levenshteinDistance } from "@std/text/levenshtein_distance.js";
import { parse } from "@std/toml/parse.js";
import { posix } from "node:path";
import { LOCATION_BYTES_MAX, PATHS_MAX } from "./base/limits.ts";
import { type ControlError, ControlFailure } from "./map/errors.ts";
import { checkAddress, checkNodeName, checkZone } from "./map/fields.ts";
import { agentSocket, SOCKET_PATH_BYTES_MAX } from "./map/names.ts";

/** How much is logged: the named level and all to its right. */
export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
/** One of {@linkcode LOG_LEVELS}. */
export type LogLevel = typeof LOG_LEVELS[number];

/** How a line of the log looks. */
export const LOG_FORMATS = ["text", "json"] as const;
/** One of {@linkcode LOG_FORMATS}. */
export type LogFormat = typeof LOG_FORMATS[number];

/** How the store reaches its file: through the page cache, or past it (O_DIRECT). */
export const CACHE_MODES = ["buffered", "direct"] as const;
/** One of {@linkcode CACHE_MODES}. */
export type CacheMode = typeof CACHE_MODES[number];

/** Where data goes unless told otherwise. */
export const DATA_PATH_DEFAULT = "/var/lib/kelpie";

/** Where sockets go unless told otherwise. */
export const RUN_DIR_DEFAULT = "/run/kelpie";

/** The variable that names the run directory for agent and command line alike. */
export const RUN_DIR_VARIABLE = "KELPIE_RUN_DIR";

/**
 * The variable that names the file with the cluster secret. The secret itself never stands in an argument or a
 * variable, where other processes could read it.
 */
export const SECRET_FILE_VARIABLE = "KELPIE_SECRET_FILE";

/** Port of the cluster unless told otherwise; the one after it is used as well. */
export const PORT_DEFAULT = 7460;

/** Where an agent listens for others unless told otherwise: a cluster of one can be joined with no set-up. */
export const LISTEN_DEFAULT = `0.0.0.0:${PORT_DEFAULT}`;

/** Addresses of other nodes that may be named to join: one that is up is enough. */
export const JOIN_MAX = 16;

/**
 * Bytes per second that the background scrub reads: 1 TiB takes a day and a half, a guest does not
 * notice, and an idle agent stays below 1 % of a core.
 */
export const SCRUB_RATE_BYTES_DEFAULT = 8 * 1024 * 1024;

/** Longest TOML text that is parsed, in UTF-16 code units: a configuration has ten lines. */
const TOML_LENGTH_MAX = 1024 * 1024;

/** The whole configuration of an agent. */
export interface AgentConfig {
  /**
   * Where the data goes, each a directory, which gets the file `kelpie.store`, or a block device, which is used as it is. One
   * to `PATHS_MAX`; each may fail by itself.
   */
  readonly dataPaths: readonly string[];
  /** Bytes that each of them may use; null leaves it to the agent. */
  readonly capacityBytes: number | null;
  /** Directory of the sockets, without a slash at its end. */
  readonly runDir: string;
  readonly cache: CacheMode;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
  /** Bytes per second of the background scrub; 0 turns it off. */
  readonly scrubRateBytes: number;
  /** Take over data that another node or host has written. For one start. */
  readonly adopt: boolean;
  /** Open the store though parts of its log are damaged. For one start. */
  readonly acceptDamage: boolean;
  /**
   * Nodes of the cluster to join, each `host:port`; empty: a node without a cluster founds one. Without meaning for a
   * node that belongs to a cluster already.
   */
  readonly join: readonly string[];
  /** `host:port` to listen on for other nodes, at that port and the next; null: there shall be none. */
  readonly listen: string | null;
  /** `host:port` at which other nodes reach this one; null: found from `listen` (`advertise.ts`). */
  readonly address: string | null;
  /** The node's name; null: it keeps its own, at first the host's. */
  readonly name: string | null;
  /** Its zone when it first joins; "": a zone of its own. Later `kelpie node zone` changes it. */
  readonly zone: string;
  /** Its weight when it first joins, in bytes; null: from capacity. Later `kelpie node weight` changes it. */
  readonly weightBytes: number | null;
  /** It votes, and stores nothing. Decided when it first joins. */
  readonly witness: boolean;
  /** File with the cluster secret, as `kelpie cluster secret` prints it; needed to join. */
  readonly secretFile: string | null;
}

/** What an agent does when it is told nothing. */
export const CONFIG_DEFAULT: AgentConfig = {
  dataPaths: [DATA_PATH_DEFAULT],
  capacityBytes: null,
  runDir: RUN_DIR_DEFAULT,
  cache: "buffered",
  logLevel: "info",
  logFormat: "text",
  scrubRateBytes: SCRUB_RATE_BYTES_DEFAULT,
  adopt: false,
  acceptDamage: false,
  join: [],
  listen: LISTEN_DEFAULT,
  address: null,
  name: null,
  zone: "",
  weightBytes: null,
  witness: false,
  secretFile: null,
};

/** Flags of `kelpie agent` as the command line parsed them; what is undefined was not given. */
export interface ConfigFlags {
  readonly data?: string | readonly string[];
  readonly capacity?: string;
  readonly runDir?: string;
  readonly cache?: string;
  readonly logLevel?: string;
  readonly logFormat?: string;
  readonly scrubRate?: string;
  readonly join?: string | readonly string[];
  readonly listen?: string;
  readonly address?: string;
  readonly name?: string;
  readonly zone?: string;
  readonly weight?: string;
  readonly witness?: boolean;
  readonly secretFile?: string;
  readonly adopt?: boolean;
  readonly acceptDamage?: boolean;
}

/** Where a configuration comes from. Everything may be left out. */
export interface ConfigSources {
  /** Flags, the strongest. */
  readonly flags?: ConfigFlags;
  /** The environment; only {@linkcode RUN_DIR_VARIABLE} and {@linkcode SECRET_FILE_VARIABLE} count; empty ones do not. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Content of the configuration file. */
  readonly tomlText?: string;
  /** Path of that file, for messages and for the relative paths in it. */
  readonly tomlPath?: string;
  /** Absolute directory to which relative paths of flags and environment refer; else they stay. */
  readonly cwd?: string;
}

/** Reads one key's value into the configuration. `where` is for messages. */
type Reader = (value: unknown, where: string, base: string | undefined) => Partial<AgentConfig>;

/** Every key, by the name that it has in the file; flags are the same with two dashes before. */
const READERS: Readonly<Record<string, Reader>> = {
  "data": (value, where, base) => ({ dataPaths: readPaths(value, where, base) }),
  "capacity": (value, where) => ({ capacityBytes: readCapacity(value, where) }),
  "run-dir": (value, where, base) => ({ runDir: readRunDir(value, where, base) }),
  "cache": (value, where) => ({ cache: readWord(value, where, CACHE_MODES) }),
  "log-level": (value, where) => ({ logLevel: readWord(value, where, LOG_LEVELS) }),
  "log-format": (value, where) => ({ logFormat: readWord(value, where, LOG_FORMATS) }),
  "scrub-rate": (value, where) => ({ scrubRateBytes: readRate(value, where) }),
  "join": (value, where) => ({ join: readJoin(value, where) }),
  "listen": (value, where) => ({ listen: value === "none" ? null : readAddress(value, where) }),
  "address": (value, where) => ({ address: readReachable(value, where) }),
  "name": (value, where) => ({ name: readText(value, where, checkNodeName) }),
  "zone": (value, where) => ({ zone: readText(value, where, checkZone) }),
  "weight": (value, where) => ({ weightBytes: value === "auto" ? null : readSize(value, where) }),
  "witness": (value, where) => ({ witness: readFlag(value, where) }),
  "secret-file": (value, where, base) => ({ secretFile: readPath(value, where, base) }),
};

/** Keys that a configuration file may have. */
export const TOML_KEYS: readonly string[] = Object.keys(READERS);

/** Flags that decide about one start and therefore have no place in a file. */
const FLAGS_ONLY: readonly string[] = ["adopt", "accept-damage"];

/**
 * Puts a configuration together.
 *
 * @param sources the weakest first: defaults, `tomlText`, `env`, `flags`
 * @throws {ControlFailure} with code `invalid`; the message names the flag, key or variable
 *
 * @example
 * ```ts
 * import { loadConfig } from "./config.ts";
 *
 * const config = loadConfig({
 *   tomlText: 'capacity = "500G"\ncache = "direct"',
 *   tomlPath: "/etc/kelpie/kelpie.toml",
 *   flags: { cache: "buffered" },
 * });
 * if (config.capacityBytes !== 500 * 1024 ** 3) throw new Error("the file says 500G");
 * if (config.cache !== "buffered") throw new Error("a flag is stronger than the file");
 * ```
 */
export function loadConfig(sources: ConfigSources): AgentConfig {
  const { flags = {}, env = {}, cwd } = sources;
  const config = {
    ...CONFIG_DEFAULT,
    ...readToml(sources),
    ...readEnvironment(env, cwd),
    ...readFlags(flags, cwd),
  };
  checkAgentSocket(config.runDir);
  checkNetwork(config);
  return config;
}

/**
 * The run directory alone, for the command line that looks for its agent.
 *
 * @param sources the flag, the environment, or neither for the default
 * @throws {ControlFailure} with code `invalid`
 */
export function findRunDir(sources: Pick<ConfigSources, "flags" | "env" | "cwd">): string {
  const { flags = {}, env, cwd } = sources;
  return loadConfig({ flags: { runDir: flags.runDir }, env, cwd }).runDir;
}

function readToml({ tomlText, tomlPath = "the configuration file" }: ConfigSources) {
  if (tomlText === undefined) return {};
  if (tomlText.length > TOML_LENGTH_MAX) {
    throw invalid(`${tomlPath} has ${tomlText.length} characters: ${TOML_LENGTH_MAX} is the most`);
  }
  const base = posix.isAbsolute(tomlPath) ? posix.dirname(tomlPath) : undefined;
  let config: Partial<AgentConfig> = {};
  for (const [key, value] of Object.entries(parseToml(tomlText, tomlPath))) {
    if (!Object.hasOwn(READERS, key)) throw unknownKey(key, tomlPath);
    config = { ...config, ...READERS[key](value, `'${key}' in ${tomlPath}`, base) };
  }
  return config;
}

function parseToml(text: string, path: string): Record<string, unknown> {
  try {
    return parse(text);
  } catch (error) {
    const reason = error instanceof Error ? error.message.replaceAll(/\s+/g, " ") : "not TOML";
    throw invalid(`${path} cannot be read: ${reason}`);
  }
}

function unknownKey(key: string, path: string): ControlFailure {
  if (FLAGS_ONLY.includes(key)) {
    return invalid(
      `'${key}' cannot stand in ${path}: it decides about one start`,
      `give --${key} to 'kelpie agent'`,
    );
  }
  const meant = suggest(key, TOML_KEYS);
  return invalid(
    `${path} has the key ${quote(key)}, which is not known`,
    meant === null ? `the keys are ${TOML_KEYS.join(", ")}` : `did you mean '${meant}'?`,
  );
}

function readEnvironment(
  env: Readonly<Record<string, string | undefined>>,
  cwd: string | undefined,
): Partial<AgentConfig> {
  let config: Partial<AgentConfig> = {};
  for (
    const [variable, key] of [
      [RUN_DIR_VARIABLE, "run-dir"],
      [SECRET_FILE_VARIABLE, "secret-file"],
    ] as const
  ) {
    const value = env[variable];
    if (value === undefined || value === "") continue;
    config = { ...config, ...READERS[key](value, variable, cwd) };
  }
  return config;
}

function readFlags(flags: ConfigFlags, cwd: string | undefined): Partial<AgentConfig> {
  let config: Partial<AgentConfig> = {};
  for (const key of TOML_KEYS) {
    const value = flags[camelCase(key) as keyof ConfigFlags];
    if (value === undefined) continue;
    config = { ...config, ...READERS[key](value, `--${key}`, cwd) };
  }
  if (flags.adopt !== undefined) config = { ...config, adopt: flags.adopt };
  if (flags.acceptDamage !== undefined) config = { ...config, acceptDamage: flags.acceptDamage };
  return config;
}

function camelCase(key: string): string {
  return key.replaceAll(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function readPath(value: unknown, where: string, base: string | undefined): string {
  if (typeof value !== "string") throw invalid(`${where} must be a path, not ${show(value)}`);
  if (value === "") throw invalid(`${where} is empty; it must be a path`);
  if (value.includes("\0")) throw invalid(`${where} holds a zero character; no path can`);
  const path = posix.isAbsolute(value) || base === undefined ? value : `${base}/${value}`;
  const normal = posix.normalize(path);
  return normal.length > 1 && normal.endsWith("/") ? normal.slice(0, -1) : normal;
}

/** One path, or a list of them. */
function readPaths(value: unknown, where: string, base: string | undefined): readonly string[] {
  if (!Array.isArray(value)) return [readDataPath(value, where, base)];
  if (value.length === 0) throw invalid(`${where} is an empty list; it must name a path`);
  if (value.length > PATHS_MAX) {
    throw invalid(`${where} has ${value.length} paths: ${PATHS_MAX} is the most`);
  }
  const paths = value.map((each) => readDataPath(each, where, base));
  const twin = paths.find((path, index) => paths.indexOf(path) < index);
  if (twin !== undefined) throw invalid(`${where} names ${twin} twice`);
  return paths;
}

function readDataPath(value: unknown, where: string, base: string | undefined): string {
  const path = readPath(value, where, base);
  const length = new TextEncoder().encode(path).length;
  if (length <= LOCATION_BYTES_MAX) return path;
  throw invalid(`${where} has ${length} bytes: ${LOCATION_BYTES_MAX} is the most`);
}

function readRunDir(value: unknown, where: string, base: string | undefined): string {
  const path = readPath(value, where, base);
  if (path === "/") throw invalid(`${where} is '/', which cannot be a run directory`);
  return path;
}

function checkAgentSocket(runDir: string): void {
  const path = agentSocket(runDir);
  const excess = new TextEncoder().encode(path).length - SOCKET_PATH_BYTES_MAX;
  if (excess <= 0) return;
  throw invalid(
    `the run directory ${runDir} is ${excess} bytes too long: Linux allows a socket path of ` +
      `${SOCKET_PATH_BYTES_MAX} bytes`,
    "choose a shorter --run-dir",
  );
}

function readCapacity(value: unknown, where: string): number {
  const bytes = readSize(value, where);
  if (bytes === 0) throw invalid(`${where} is 0; leave it out to let the agent decide`);
  return bytes;
}

function readRate(value: unknown, where: string): number {
  return value === "off" ? 0 : readSize(value, where);
}

function readSize(value: unknown, where: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  if (typeof value !== "string") {
    throw invalid(`${where} must be a size such as "20G", not ${show(value)}`);
  }
  try {
    return parseSize(value);
  } catch (error) {
    if (!(error instanceof ControlFailure)) throw error;
    throw invalid(`${where}: ${error.error.message}`, error.error.hint);
  }
}

function readWord<T extends string>(value: unknown, where: string, words: readonly T[]): T {
  const found = words.find((each) => each === value);
  if (found !== undefined) return found;
  const meant = typeof value === "string" ? suggest(value, words) : null;
  throw invalid(
    `${where} is ${show(value)}; it can be ${words.join(", ")}`,
    meant === null ? undefined : `did you mean '${meant}'?`,
  );
}

/** What does not fit together, though each part is well. */
function checkNetwork({ listen, address, join, witness, weightBytes }: AgentConfig): void {
  if (listen === null && (join.length > 0 || address !== null)) {
    throw invalid(
      `an agent that does not listen cannot be reached: 'listen' is none, and ` +
        (join.length > 0 ? `'join' is ${join[0]}` : `'address' is ${address}`),
      "leave 'listen' out, or give it host:port",
    );
  }
  if (witness && weightBytes !== null) {
    throw invalid("a witness stores nothing: 'weight' and 'witness' exclude each other");
  }
}

/** Addresses, with the usual port where none is given. */
function readJoin(value: unknown, where: string): readonly string[] {
  const list = typeof value === "string" ? value.split(",") : value;
  if (!Array.isArray(list)) throw invalid(`${where} must be host or host:port, not ${show(value)}`);
  if (list.length > JOIN_MAX) {
    throw invalid(`${where} has ${list.length} addresses: ${JOIN_MAX} is the most`);
  }
  return list.map((each) => {
    const text = typeof each === "string" ? each.trim() : each;
    const isBare = typeof text === "string" && HOST.test(text);
    return readReachable(isBare ? `${text}:${PORT_DEFAULT}` : text, where);
  });
}

/** An address that somebody else can connect to. */
function readReachable(value: unknown, where: string): string {
  const address = readAddress(value, where);
  if (!WILDCARD.test(address)) return address;
  throw invalid(
    `${where} is ${address}, which names no host`,
    "write the address at which other nodes reach it",
  );
}

/** `name:port`, `1.2.3.4:port` or `[::1]:port`. */
function readAddress(value: unknown, where: string): string {
  const address = typeof value === "string" ? value.trim() : "";
  const port = Number(/:(\d{1,6})$/.exec(address)?.[1] ?? NaN);
  if (port < 1 || port > 65534) {
    throw invalid(`${where} has port ${port}: ports are 1 to 65534, and the next one is used too`);
  }
  if (checkAddress(address) !== null) {
    throw invalid(
      `${where} is ${show(value)}, which is not host:port`,
      "write 10.0.0.1:7460, [fd00::1]:7460 or host.example:7460",
    );
  }
  return address;
}

/** A host without a port. */
const HOST = /^(?:\[[0-9a-fA-F:.%\w-]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?)$/;

const WILDCARD = /^(?:0\.0\.0\.0|\[[0:]+\]):/;

function readText(
  value: unknown,
  where: string,
  check: (text: string) => ControlError | null,
): string {
  if (typeof value !== "string") throw invalid(`${where} must be text, not ${show(value)}`);
  const error = check(value);
  if (error !== null) throw invalid(`${where}: ${error.message}`, error.hint);
  return value;
}

function readFlag(value: unknown, where: string): boolean {
  if (typeof value === "boolean") return value;
  throw invalid(`${where} must be true or false, not ${show(value)}`);
}

/** Binary units by their letter. */
const UNITS = ["", "K", "M", "G", "T", "P", "E"];

/** Bytes to which a size with a fraction is rounded down: the store's block. */
const FRACTION_BYTES = 4096;

const SIZE_HINT = "write 20G, 512M or 1.5T; K, M, G, T and P are powers of 1024";

/**
 * Reads a size.
 *
 * @param text a number with an optional unit: `20G`, `512M`, `1.5T`, `64KiB`, `4096`, `512B`; units
 * are powers of 1024 in either case; `GB` and its like are refused because they mean two things. What
 * is no whole number of bytes is rounded down to whole blocks of 4 KiB, or to bytes below that
 * @returns whole bytes
 * @throws {ControlFailure} with code `invalid`
 *
 * @example
 * ```ts
 * import { formatSize, parseSize } from "./config.ts";
 *
 * if (parseSize("1.5T") !== 1.5 * 1024 ** 4) throw new Error("1.5T is binary");
 * if (formatSize(20 * 1024 ** 3) !== "20G") throw new Error("20G comes back as it went in");
 * ```
 */
export function parseSize(text: string): number {
  const match = text.trim().match(/^(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)$/);
  if (match === null) throw invalid(`${quote(text)} is not a size`, SIZE_HINT);
  const [, digits, unit] = match;
  const exact = Number(digits) * 1024 ** unitPower(unit, text);
  if (!Number.isFinite(exact) || exact > Number.MAX_SAFE_INTEGER) {
    throw invalid(`${quote(text)} is too large a size: below 8P is possible`);
  }
  if (Number.isInteger(exact)) return exact;
  const bytes = exact < FRACTION_BYTES ? Math.floor(exact) : exact - exact % FRACTION_BYTES;
  if (bytes === 0) throw invalid(`${quote(text)} is not a whole number of bytes`, SIZE_HINT);
  return bytes;
}

function unitPower(unit: string, text: string): number {
  const upper = unit.toUpperCase();
  if (upper === "" || upper === "B") return 0;
  const power = UNITS.indexOf(upper[0]);
  if (power > 0 && (upper.length === 1 || upper.slice(1) === "IB")) return power;
  if (power > 0 && upper.slice(1) === "B") {
    throw invalid(
      `${quote(text)} could mean powers of 1000 or of 1024`,
      `write ${upper[0]} or ${upper[0]}iB for powers of 1024`,
    );
  }
  throw invalid(`${quote(text)} has the unit ${quote(unit)}, which is not known`, SIZE_HINT);
}

/**
 * Writes a size for people: three digits that count, binary units. `parseSize` reads it back.
 *
 * @param bytes 0 or more; Infinity gives "unlimited"
 * @returns `20G`, `1.5T`, `512M`, `100B`, `0B`
 */
export function formatSize(bytes: number): string {
  if (!Number.isFinite(bytes)) return "unlimited";
  let power = 0;
  let value = bytes;
  while (value >= 1024 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  let rounded = roundForPeople(value);
  if (rounded >= 1024 && power < UNITS.length - 1) {
    rounded /= 1024;
    power++;
  }
  return `${rounded}${UNITS[power] || "B"}`;
}

function roundForPeople(value: number): number {
  const decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
  return Number(value.toFixed(decimals));
}

/**
 * Finds the word that somebody probably meant.
 *
 * @param word what was written
 * @param words what is known
 * @returns the closest of `words`, or null when none is close
 */
export function suggest<T extends string>(word: string, words: readonly T[]): T | null {
  if (word.length > 64) return null;
  const lower = word.toLowerCase().replaceAll("_", "-");
  let best: T | null = null;
  let distanceMin = Math.max(2, Math.floor(word.length / 3)) + 1;
  for (const each of words) {
    const known = each.toLowerCase();
    if (known.length > 2 && lower.startsWith(known)) return each;
    const distance: number = levenshteinDistance(lower, known);
    if (distance < distanceMin) {
      distanceMin = distance;
      best = each;
    }
  }
  return best;
}

function invalid(message: string, hint?: string): ControlFailure {
  return new ControlFailure({ code: "invalid", message, ...(hint === undefined ? {} : { hint }) });
}

/** A string as it is safe to print in one line. */
function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

function show(value: unknown): string {
  if (typeof value === "string") return quote(value);
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return Array.isArray(value) ? "a list" : value instanceof Date ? "a date" : "a table";
}
