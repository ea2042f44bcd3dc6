/**
 * What every command is given, and the small things that all of them share.
 *
 * @module
 */
import { type CommandUnknownOpts, InvalidArgumentError } from "@commander-js/extra-typings";
import { AdminClient } from "../agent/admin_client.ts";
import { findRunDir, parseSize, RUN_DIR_VARIABLE, SECRET_FILE_VARIABLE } from "../agent/config.ts";
import type { SessionStatus } from "../agent/http/backend.ts";
import { ControlFailure } from "../agent/map/errors.ts";
import { checkNodeName, checkZone } from "../agent/map/fields.ts";
import { checkDiskName, checkSnapshotName } from "../agent/map/names.ts";
import { checkZoneNames, sortedZones } from "../agent/map/zones.ts";
import { Output, printable } from "./output.ts";
import type { Terminal } from "./terminal.ts";

/** What a command works with. */
export class CommandContext {
  readonly output: Output;
  /** What the process ends with when nothing is thrown. */
  exitCode = 0;
  #runDirFlag: () => string | undefined = () => undefined;

  constructor(readonly terminal: Terminal) {
    this.output = new Output(terminal);
  }

  /** Says where `--run-dir` can be found once it is parsed. */
  setRunDirFlag(flag: () => string | undefined): void {
    this.#runDirFlag = flag;
  }

  /** `--run-dir` as it was given. */
  get runDirFlag(): string | undefined {
    return this.#runDirFlag();
  }

  /** The variables that Kelpie looks at. */
  get environment(): Record<string, string | undefined> {
    const variables = [RUN_DIR_VARIABLE, SECRET_FILE_VARIABLE];
    return Object.fromEntries(variables.map((name) => [name, this.terminal.environment(name)]));
  }

  /** Absolute directory of the agent's sockets. */
  get runDir(): string {
    const flags = { runDir: this.runDirFlag };
    return findRunDir({ flags, env: this.environment, cwd: Deno.cwd() });
  }

  /** A client of the agent, to be closed; whether an agent is there shows with the first request. */
  client(): AdminClient {
    return new AdminClient({ runDir: this.runDir });
  }
}

/** A command that can be added to. */
export type AnyCommand = CommandUnknownOpts;

/** Text with examples for the end of a command's `--help`. */
export function examples(...lines: readonly string[]): string {
  const title = lines.length === 1 ? "Example" : "Examples";
  return `\n${title}:\n${lines.map((line) => `  ${line}\n`).join("")}`.trimEnd();
}

/** Checks a size on the command line; `parseSize` turns it into bytes. */
export function sizeText(text: string): string {
  checked(() => parseSize(text));
  return text;
}

/** A size on the command line, in bytes. */
export function sizeArgument(text: string): number {
  return checked(() => parseSize(text));
}

/** A disk's name on the command line: checked here, since it becomes part of a path. */
export function diskArgument(name: string): string {
  return checked(() => {
    const error = checkDiskName(name);
    if (error !== null) throw new ControlFailure(error);
    return name;
  });
}

/** A snapshot as people write it: `DISK@NAME`. */
export interface SnapshotName {
  readonly disk: string;
  readonly name: string;
}

/** A snapshot on the command line: `DISK@NAME`. */
export function snapshotArgument(text: string): SnapshotName {
  const at = text.indexOf("@");
  if (at < 0) {
    throw new InvalidArgumentError(
      `${JSON.stringify(text)} is no snapshot\nwrite DISK@NAME, such as web@monday`,
    );
  }
  const disk = diskArgument(text.slice(0, at));
  return { disk, name: snapshotNameArgument(text.slice(at + 1)) };
}

/** A disk as it is now, or a snapshot of it. */
export interface SourceName {
  readonly disk: string;
  /** Without the disk's; null: the disk as it is now. */
  readonly snapshot: string | null;
  /** `DISK` or `DISK@NAME`, as it was typed. */
  readonly text: string;
}

/** A disk or a snapshot on the command line: `DISK` or `DISK@NAME`. */
export function sourceArgument(text: string): SourceName {
  if (!text.includes("@")) return { disk: diskArgument(text), snapshot: null, text };
  const { disk, name } = snapshotArgument(text);
  return { disk, snapshot: name, text };
}

/** For people: `disk web`, `snapshot web@monday`. */
export function sourceTitle({ snapshot, text }: SourceName): string {
  return `${snapshot === null ? "disk" : "snapshot"} ${text}`;
}

/** Several of them, each once. */
export function snapshotsArgument(
  text: string,
  previous: SnapshotName[] | undefined,
): SnapshotName[] {
  const next = snapshotArgument(text);
  const others = previous ?? [];
  const isThere = others.some(({ disk, name }) => disk === next.disk && name === next.name);
  return isThere ? others : [...others, next];
}

/** The name of a snapshot or a schedule on the command line, without its disk's. */
export function snapshotNameArgument(name: string): string {
  return checked(() => {
    const error = checkSnapshotName(name);
    if (error !== null) throw new ControlFailure(error);
    return name;
  });
}

/** A disk in the trash on the command line: its name or its id, which is of the same form. */
export const deletedArgument = diskArgument;

/** A node's name or id on the command line: checked here, since it becomes part of a path. */
export function nodeArgument(name: string): string {
  return checked(() => {
    const error = checkNodeName(name);
    if (error !== null) throw new ControlFailure(error);
    return name;
  });
}

/** A zone's name on the command line; `none` is a zone of its own. */
export function zoneArgument(name: string): string {
  if (name === "none") return "";
  return checked(() => {
    const error = checkZone(name);
    if (error !== null) throw new ControlFailure(error);
    return name;
  });
}

/** Zones that copies are kept in, on the command line: `a,b`, or `any`, which is none of them. */
export function zonesArgument(text: string): readonly string[] {
  if (text === "any") return [];
  return checked(() => {
    const zones = text.split(",");
    const error = checkZoneNames(zones);
    if (error !== null) throw new ControlFailure(error);
    return sortedZones(zones);
  });
}

/** A whole number of an option. */
export function countArgument(options: { readonly min: number; readonly max: number }) {
  const { min, max } = options;
  return (text: string): number => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number of ${min} to ${max}`);
  };
}

/** Gives a refusal to whoever parses the command line, who adds which option it is about. */
function checked<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof ControlFailure)) throw error;
    const { message, hint } = error.error;
    throw new InvalidArgumentError(hint === undefined ? message : `${message}\n${hint}`);
  }
}

/** A front end as people know it: `qemu-system-x86 (pid 4711)`. */
export function processName({ pid, command }: SessionStatus): string {
  const name = printable(command);
  if (pid === 0) return name === "" ? "a program" : name;
  return name === "" ? `pid ${pid}` : `${name} (pid ${pid})`;
}
