/**
 * `kelpie disk clone`: a disk that begins as a snapshot is. It shares the snapshot's data, or with `--full` gets a copy of its own,
 * which is read from the snapshot's socket and written through the new disk's.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import type { FrontEnd } from "../agent/frontend/front_end.ts";
import {
  type AnyCommand,
  type CommandContext,
  diskArgument,
  examples,
  snapshotArgument,
  type SnapshotName,
} from "./context.ts";
import { COPYING, socketOf, withDisk, withFrontEnd } from "./disk_data.ts";
import { CommandError, ExitCode } from "./output.ts";
import { Progress, summary } from "./progress.ts";
import { findDisk, makeDisk } from "./unfinished_disk.ts";

/** Adds `clone` to `kelpie disk`. */
export function addCloneCommand(disk: AnyCommand, context: CommandContext): void {
  disk.command("clone")
    .summary("make a disk that begins as a snapshot is")
    .description(
      "Makes a disk that begins as a snapshot is, at once and whatever its size. The two share what neither has written " +
        "since; the snapshot may be deleted all the same. With --full everything is copied: the new disk may have other " +
        "places, and shares nothing. It is called NEW.cloning until it is complete.",
    )
    .argument("<snapshot>", "DISK@NAME", snapshotArgument)
    .argument("<new>", "name of the new disk", diskArgument)
    .option("--full", "an independent copy")
    .option("--read-only", "guests may only read")
    .option("--json", "print the new disk as JSON")
    .addHelpText(
      "after",
      examples("kelpie disk clone web@monday web-test", "kelpie disk clone web@monday db --full"),
    )
    .action(async (snapshot, name, { full = false, readOnly = false, json }) => {
      using client = context.client();
      const said = full
        ? await copySnapshot(context, snapshot, { name, readOnly })
        : await client.cloneDisk(snapshot.disk, snapshot.name, { name, readOnly })
          .then(({ sizeBytes }) => formatSize(sizeBytes));
      const made = await client.disk(name);
      if (json) return context.output.json(made);
      const from = `${snapshot.disk}@${snapshot.name}`;
      context.output.say(
        full
          ? `copied ${from} to disk ${name}: ${said}`
          : `disk ${name} of ${said} goes on from ${from}, at ${made.socket}`,
      );
    });
}

/** Makes a disk and copies a snapshot into it; whatever goes wrong, no half of a disk has the name. */
async function copySnapshot(
  context: CommandContext,
  { disk, name: snapshotName }: SnapshotName,
  { name, readOnly }: { readonly name: string; readonly readOnly: boolean },
): Promise<string> {
  using client = context.client();
  const snapshot = await client.snapshot(disk, snapshotName);
  const socket = socketOf(snapshot);
  const { copies, zones } = await client.disk(disk);
  if (await findDisk(client, name) !== null) {
    throw new CommandError(
      ExitCode.Exists,
      `there is already a disk named ${JSON.stringify(name)}`,
    );
  }
  context.terminal.interrupted(); // no signal may end the process with half a disk left behind
  const { sizeBytes } = snapshot;
  const wanted = { work: "cloning", name, sizeBytes, copies, zones, readOnly } as const;
  return await makeDisk(
    context,
    client,
    wanted,
    (unfinished) => copyTo(context, { socket, unfinished, name }),
  );
}

/** Copies what a snapshot's socket reads into a disk that is to get a name. */
async function copyTo(
  context: CommandContext,
  { socket, unfinished, name }: {
    readonly socket: string;
    readonly unfinished: string;
    readonly name: string;
  },
): Promise<string> {
  return await withDisk(context, unfinished, "write", async (target) =>
    await withFrontEnd(
      context,
      { socket, ...COPYING },
      (source) => copyBetween(context, { source, target, name }),
    ));
}

/** Copies all of one disk to another of the same size, which reads as zeros. Both have many requests under way. */
async function copyBetween(
  context: CommandContext,
  { source, target, name }: {
    readonly source: FrontEnd;
    readonly target: FrontEnd;
    readonly name: string;
  },
): Promise<string> {
  if (source.capacityBytes !== target.capacityBytes) {
    throw new CommandError(
      ExitCode.Failure,
      `the snapshot has ${source.capacityBytes} bytes, and disk ${name} ${target.capacityBytes}`,
    );
  }
  const { copyFromDisk, copyToDisk } = await import("../agent/frontend/copy.ts");
  const progress = new Progress(context.output, `copying ${name}`, target.capacityBytes);
  const signal = context.terminal.interrupted();
  const relay = new Relay();
  const end = <T>(work: Promise<T>): Promise<T> =>
    work.catch((error) => {
      relay.fail(error);
      throw error;
    });
  try {
    // Both are waited for, however they end: what is under way uses their memory.
    const ends = await Promise.allSettled([
      end(copyFromDisk(source, (bytes) => relay.give(bytes), { signal })),
      end(copyToDisk(target, (bytes) => relay.take(bytes), {
        zeroes: "skip",
        onProgress: (doneBytes) => progress.update(doneBytes),
        signal,
      })),
    ]);
    for (const each of ends) if (each.status === "rejected") throw relay.error ?? each.reason;
    await target.flush();
  } finally {
    progress.end();
  }
  return summary(target.capacityBytes, progress.elapsedMs);
}

/** Hands pieces of equal length from who reads to who writes, one at a time; when one of the two fails, so does the other. */
class Relay {
  /** What failed first. */
  error: unknown;
  #hasFailed = false;
  #given = Promise.withResolvers<Uint8Array>();
  #taken = Promise.withResolvers<void>();

  /** Resolves when the bytes have been taken. */
  async give(bytes: Uint8Array): Promise<void> {
    if (this.#hasFailed) throw this.error;
    const { promise } = this.#taken;
    this.#given.resolve(bytes);
    await promise;
  }

  /** Resolves with the length of what was given, when it is there. */
  async take(into: Uint8Array): Promise<number> {
    const bytes = await this.#given.promise;
    if (this.#hasFailed) throw this.error;
    into.set(bytes);
    const taken = this.#taken;
    this.#given = Promise.withResolvers();
    this.#taken = Promise.withResolvers();
    taken.resolve();
    return bytes.length;
  }

  fail(error: unknown): void {
    if (this.#hasFailed) return;
    this.#hasFailed = true;
    this.error = error;
    for (const each of [this.#given, this.#taken]) {
      each.promise.catch(() => {}); // nobody may be waiting
      each.reject(error);
    }
  }
}
