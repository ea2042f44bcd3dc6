/**
 * `kelpie cluster backup` and `kelpie cluster restore`: all disks at one point in time, in a directory.
 *
 *     DIR/RUN.run          what a run has, as JSON: written when all its files are there
 *     DIR/RUN.unfinished   the same of a run that is on its way, or was interrupted
 *     DIR/DISK.ID.RUN.kb   one disk of a run: everything, or the difference to the run that the entry names
 *     DIR/kelpie-backup.lock.N   who is at work there: directory_lock.ts
 *
 * A run's name is that of its snapshots: `backup-20261126T192310Z`. Names are the order of runs.
 *
 * Invariants:
 * - a file or a run has its name when it is complete and durable, so what is in the directory can be restored whatever was interrupted;
 * - a run that was interrupted is finished first, with the snapshots that it has taken, and nothing that is there is written again;
 * - two runs are never at work in one directory: the lock is taken before anything is looked at there, and looked at again before
 *   anything gets its name there and before snapshots are taken or deleted; who has lost it stops;
 * - a run whose file is torn is named, and is an obstacle to no other one; nothing is compared with it, and its snapshots stay;
 * - a disk's newest backup snapshot stays, as what the next difference is to; older ones go only after the run that follows is complete.
 *
 * @module
 */
import { resolve } from "node:path";
import type { AdminClient } from "../agent/admin_client.ts";
import { formatSize } from "../agent/config.ts";
import type { DiskDocument, SnapshotDocument } from "../agent/http/documents.ts";
import { readText } from "../agent/platform/linux/file.ts";
import { type AnyCommand, type CommandContext, diskArgument, examples } from "./context.ts";
import { DirectoryLock } from "./directory_lock.ts";
import { temporaryParent } from "./disk_data.ts";
import { renameDurably } from "./durable.ts";
import { openFile, writeAll } from "./files.ts";
import { CommandError, describeError, ExitCode, printable } from "./output.ts";
import {
  findDisk,
  forgetDisk,
  isUnfinishedDifference,
  UNFINISHED_ATTRIBUTE,
  unfinishedName,
} from "./unfinished_disk.ts";
import { plural } from "./units.ts";

/** One disk of a run. */
interface Entry {
  readonly disk: string;
  readonly id: number;
  /** Of its snapshot. */
  readonly layer: number;
  /** The run whose file of this disk this one is the difference to; null: it has everything. */
  readonly base: string | null;
  readonly file: string;
}

/** What a run has. */
interface Run {
  readonly version: 1;
  readonly cluster: string;
  readonly run: string;
  readonly disks: readonly Entry[];
}

const RUN_NAME = /^backup-\d{8}T\d{6}Z$/;

/** Adds the commands to `kelpie cluster`. */
export function addClusterBackupCommands(cluster: AnyCommand, context: CommandContext): void {
  cluster.command("backup")
    .summary("back up all disks into a directory")
    .description(
      "Takes a snapshot of all disks at one point in time and writes them into a directory: all of a disk the first time, then " +
        "what differs from the run before. A run that was interrupted is finished first. The newest backup snapshot of each " +
        "disk stays, for the next run to compare with.",
    )
    .argument("<dir>", "the directory")
    .option("--break-lock", "though another backup seems to be at work in the directory")
    .addHelpText("after", examples("kelpie cluster backup /mnt/vault"))
    .action(async (dir, { breakLock = false }) => {
      await backupCluster(context, resolve(dir), breakLock);
    });
  cluster.command("restore")
    .summary("make all disks of a directory of backups")
    .description(
      "Makes the disks of a run that are not there, with the snapshots of the runs that lead to it. Disks that are there are left as " +
        "they are, so a restore that was interrupted can be started again. One whose files are damaged does not keep the others " +
        "from being restored; it is named, and the exit code is 1.",
    )
    .argument("<dir>", "the directory")
    .option("--run <run>", "the run; by default the newest one")
    .addHelpText("after", examples("kelpie cluster restore /mnt/vault"))
    .action(async (dir, { run }) => await restoreCluster(context, resolve(dir), run ?? null));
}

// backup --------------------------------------------------------------------------------------------

async function backupCluster(
  context: CommandContext,
  dir: string,
  isBroken: boolean,
): Promise<void> {
  using client = context.client();
  const cluster = (await client.status()).agent.clusterId;
  context.terminal.interrupted(); // signals end the work between files, and half a file goes
  await Deno.mkdir(dir, { recursive: true, mode: 0o700 });
  const onTakeOver = (text: string) => context.output.warn(text);
  await using lock = await DirectoryLock.take(dir, { isBroken, onTakeOver });
  const unfinished = await readRuns(dir, ".unfinished");
  warnOfTorn(context, unfinished);
  for (const each of unfinished.runs) {
    await finish(context, client, lock, checked(each, cluster, dir));
  }
  const complete = await readRuns(dir, ".run");
  warnOfTorn(context, complete);
  const { runs } = complete;
  const before = [
    ...runs.map((each) => each.run),
    ...complete.torn.keys(),
    ...unfinished.torn.keys(),
  ];
  const run = nextName(context, before.sort().at(-1), new Date());
  for (const each of runs) checked(each, cluster, dir);
  const disks = completeOf(context, await client.disks());
  if (disks.length === 0) return context.output.say("there are no disks");
  const snapshots = await client.snapshots({ isBrief: true });
  const entries = disks.map((disk) => ({
    name: disk.name,
    id: disk.id,
    base: newestBase(runs, snapshots, disk),
  }));
  await lock.check();
  const taken = await client.createSnapshots({ disks: disks.map(({ name }) => name), name: run });
  const plan: Run = {
    version: 1,
    cluster,
    run,
    disks: entries.map(({ name, id, base }) => ({
      disk: name,
      id,
      layer: taken.find(({ disk }) => disk === name)!.layer,
      base,
      file: `${name}.${id}.${run}.kb`,
    })),
  };
  await writeDurably(`${dir}/${run}.unfinished`, plan);
  await finish(context, client, lock, plan);
}

/** What is a disk: not what a command is at work on, or has left when it was killed. */
function completeOf(context: CommandContext, disks: readonly DiskDocument[]): DiskDocument[] {
  return disks.filter(({ name, attributes, snapshots }) => {
    const unfinished = attributes[UNFINISHED_ATTRIBUTE];
    if (unfinished === undefined) return true;
    context.output.warn(
      `disk ${name} is left out, since it is not complete (${
        printable(unfinished)
      }): if nothing is at work on it, ` +
        (isUnfinishedDifference(unfinished) && snapshots.length > 0
          ? `'kelpie disk rollback ${name}@${snapshots.at(-1)}' makes it whole`
          : `'kelpie disk delete ${name}' takes it away`),
    );
    return false;
  });
}

/** Writes what is missing of a run, and then forgets the snapshots of those before. */
async function finish(
  context: CommandContext,
  client: AdminClient,
  lock: DirectoryLock,
  run: Run,
): Promise<void> {
  const { dir } = lock;
  const { writeBackupFile } = await import("./backup_write.ts");
  let fileBytes = 0;
  for (const { disk, layer, base, file } of run.disks) {
    context.terminal.interrupted().throwIfAborted();
    const path = `${dir}/${file}`;
    if (await isThere(path)) continue;
    await lock.check();
    const snapshots = await client.snapshots({ disk, isBrief: true });
    const snapshot = snapshots.find((each) => each.layer === layer);
    if (snapshot === undefined) {
      throw new CommandError(
        ExitCode.Failure,
        `run ${run.run} cannot be finished: snapshot ${disk}@${run.run} is gone`,
        { hint: `remove ${dir}/${run.run}.unfinished to begin a new run` },
      );
    }
    const { totals } = await writeBackupFile(
      context,
      {
        snapshot: { disk, name: snapshot.name },
        since: base === null ? null : { disk, name: base },
        compression: "zstd",
      },
      { path, kind: "file" },
      path,
    );
    await lock.check();
    fileBytes += totals.fileBytes;
  }
  await lock.check();
  await renameDurably(`${dir}/${run.run}.unfinished`, `${dir}/${run.run}.run`);
  await prune(context, client, dir, run);
  context.output.say(
    `run ${run.run}: ${plural(run.disks.length, "disk")}, ${formatSize(fileBytes)} in ${dir}`,
  );
}

/** Deletes the snapshots of earlier runs; a run's own names and layers tell which these are. */
async function prune(
  context: CommandContext,
  client: AdminClient,
  dir: string,
  newest: Run,
): Promise<void> {
  const snapshots = await client.snapshots({ isBrief: true });
  for (const run of (await readRuns(dir, ".run")).runs) {
    if (run.run >= newest.run || run.cluster !== newest.cluster) continue;
    for (const { disk, layer } of run.disks) {
      const found = snapshots.find((each) =>
        each.disk === disk && each.layer === layer && each.name === run.run
      );
      const isFollowed = newest.disks.some((entry) => entry.disk === disk);
      if (found === undefined || !isFollowed || found.isProtected) continue;
      await client.deleteSnapshot(disk, run.run).catch((error) => {
        context.output.warn(`snapshot ${disk}@${run.run} is left: ${error.message}`);
      });
    }
  }
}

/** The newest run with a snapshot of a disk that is still there under its name, and that the disk goes on from. */
function newestBase(
  runs: readonly Run[],
  snapshots: readonly SnapshotDocument[],
  disk: Pick<DiskDocument, "name" | "id" | "layers">,
): string | null {
  const found = runs.findLast(({ run, disks }) =>
    disks.some((entry) =>
      // A disk that was rolled back keeps the snapshots that it does not go on from any more.
      entry.disk === disk.name && entry.id === disk.id && disk.layers.includes(entry.layer) &&
      snapshots.some((each) =>
        each.disk === disk.name && each.name === run && each.layer === entry.layer
      )
    )
  );
  return found?.run ?? null;
}

// restore -------------------------------------------------------------------------------------------

async function restoreCluster(
  context: CommandContext,
  dir: string,
  wanted: string | null,
): Promise<void> {
  const { runs, torn } = await readRuns(dir, ".run");
  const run = runToRestore(dir, { runs, torn }, wanted);
  warnOfTorn(context, { runs, torn });
  using client = context.client();
  const there = new Set((await client.disks()).map(({ name }) => name));
  const failed: string[] = [];
  for (const entry of run.disks) {
    context.terminal.interrupted().throwIfAborted();
    if (there.has(entry.disk)) {
      context.output.warn(`disk ${entry.disk} is there already, and is left as it is`);
      continue;
    }
    try {
      await restoreDisk(context, client, { dir, files: filesTo(runs, run, entry), entry });
    } catch (error) {
      const description = describeError(error);
      // A file that is bad says nothing about the others; a store that is full does.
      if (context.terminal.interrupted().aborted || description === null) throw error;
      if (description.exitCode === ExitCode.Full) throw error;
      const { message, hint } = description;
      context.output.error({ message: `disk ${entry.disk} is not restored: ${message}`, hint });
      failed.push(entry.disk);
    }
  }
  if (failed.length === 0) return;
  const earlier = runs.filter((each) => each.run < run.run).map((each) => each.run);
  throw new CommandError(
    ExitCode.Failure,
    `${failed.length} of ${plural(run.disks.length, "disk")} not restored: ${failed.join(", ")}`,
    {
      hint: earlier.length === 0
        ? undefined
        : `as they were in an earlier run: kelpie cluster restore ${dir} --run ${earlier.at(-1)}`,
    },
  );
}

/** The run that was asked for, or the newest one: where that one cannot be used, an older one has to be asked for. */
function runToRestore(dir: string, { runs, torn }: Runs, wanted: string | null): Run {
  const names = runs.map((each) => each.run);
  const name = wanted ?? [...names, ...torn.keys()].sort().at(-1);
  const run = runs.find((each) => each.run === name);
  if (run !== undefined) return run;
  const why = torn.get(name ?? "");
  if (why !== undefined) {
    throw new CommandError(ExitCode.Failure, why, {
      hint: names.length === 0
        ? undefined
        : `another run: kelpie cluster restore ${dir} --run ${names.at(-1)}`,
    });
  }
  throw new CommandError(ExitCode.Missing, `${dir} has no complete run ${name ?? ""}`.trimEnd(), {
    hint: names.length === 0 ? undefined : `it has ${names.join(", ")}`,
  });
}

/** Makes one disk of a run. It gets its name when all of its files are in it, and nothing is left of it before. */
async function restoreDisk(
  context: CommandContext,
  client: AdminClient,
  wanted: {
    readonly dir: string;
    readonly files: readonly string[];
    readonly entry: Entry;
  },
): Promise<void> {
  const { dir, files, entry } = wanted;
  const { restore } = await import("./backup_restore.ts");
  const tempDir = temporaryParent(context, undefined);
  const name = `${entry.disk.slice(0, 50)}.restored`;
  for (const left of [name, unfinishedName(name, "restoring")]) {
    const disk = await findDisk(client, left);
    if (disk === null) continue;
    // Only what an interrupted restore has left is taken away, and the agent refuses it where one is at work.
    if (!(UNFINISHED_ATTRIBUTE in disk.attributes)) {
      throw new CommandError(ExitCode.Exists, `there is a disk ${left}, which is in the way`, {
        hint: `kelpie disk rename ${left} NEW`,
      });
    }
    await client.deleteDisk(left);
  }
  let restored = 0;
  try {
    for (const file of files) {
      await restore(context, {
        file: `${dir}/${file}`,
        name,
        yes: false,
        isPart: true,
        tempDir,
      });
      restored++;
    }
    const setAttributes = { [UNFINISHED_ATTRIBUTE]: null };
    await client.changeDisk(name, { name: entry.disk, setAttributes });
  } catch (error) {
    if (restored > 0) await forgetDisk(context, name);
    throw error;
  }
  context.output.say(`restored disk ${entry.disk} from ${plural(files.length, "file")}`);
}

/** The files that lead to one of a run: everything first. */
function filesTo(runs: readonly Run[], run: Run, entry: Entry): string[] {
  const files = [entry.file];
  for (let at = entry; at.base !== null;) {
    const before = runs.find((each) => each.run === at.base);
    const found = before?.disks.find(({ disk, id }) => disk === entry.disk && id === entry.id);
    if (found === undefined || before!.run >= run.run || files.includes(found.file)) {
      throw new CommandError(
        ExitCode.Missing,
        `${at.file} is the difference to run ${at.base}, which is not there or cannot be used`,
        { hint: "restore a run that is whole, with --run" },
      );
    }
    files.unshift(found.file);
    at = found;
  }
  return files;
}

// The directory -------------------------------------------------------------------------------------

async function namesOf(dir: string, ending: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(dir)) {
    const run = name.slice(0, -ending.length);
    if (name.endsWith(ending) && RUN_NAME.test(run)) names.push(run);
  }
  return names.sort();
}

/** The runs of a directory. */
interface Runs {
  /** Oldest first. */
  readonly runs: readonly Run[];
  /** Those whose file cannot be used: name → why, with the path. They stand in the way of no other. */
  readonly torn: ReadonlyMap<string, string>;
}

async function readRuns(dir: string, ending: ".run" | ".unfinished"): Promise<Runs> {
  const runs: Run[] = [];
  const torn = new Map<string, string>();
  for (const name of await namesOf(dir, ending)) {
    const path = `${dir}/${name}${ending}`;
    try {
      runs.push(runOf(readText(path), name));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      torn.set(name, `${path} cannot be used: ${printable(why)}`);
    }
  }
  return { runs, torn };
}

function warnOfTorn(context: CommandContext, { torn }: Runs): void {
  for (const why of torn.values()) context.output.warn(`a run is left out: ${why}`);
}

function runOf(text: string, name: string): Run {
  const run: Run = JSON.parse(text);
  if (run.version !== 1 || run.run !== name) throw new Error("it is of another version or name");
  for (const { disk, base, file, id, layer } of run.disks) {
    diskArgument(disk);
    const isSound = Number.isSafeInteger(id) && Number.isSafeInteger(layer) &&
      file === `${disk}.${id}.${name}.kb` && (base === null || RUN_NAME.test(base));
    if (!isSound) throw new Error(`its entry of disk ${disk} makes no sense`);
  }
  return run;
}

/** Refuses to mix clusters: disks of the same name would be taken for one another. */
function checked(run: Run, cluster: string, dir: string): Run {
  if (run.cluster === cluster) return run;
  throw new CommandError(ExitCode.Failure, `${dir} has backups of another cluster`, {
    hint: "choose a directory of its own for each cluster",
  });
}

async function writeDurably(path: string, run: Run): Promise<void> {
  const partial = `${path}.partial`;
  {
    using file = await openFile(partial, { write: true, create: true, truncate: true });
    await writeAll(file, new TextEncoder().encode(`${JSON.stringify(run, null, 2)}\n`));
    await file.sync();
  }
  await renameDurably(partial, path);
}

async function isThere(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, (error) => {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  });
}

/** The name of a new run. Names are the order of runs, so it comes behind those that there are, whatever the clock was when they were made. */
function nextName(context: CommandContext, newest: string | undefined, now: Date): string {
  const name = runName(now);
  if (newest === undefined || name > newest) return name;
  const [, date, time] = /^backup-(\d{8})T(\d{6})Z$/.exec(newest)!;
  const iso = `${date.replace(/(....)(..)(..)/, "$1-$2-$3")}T${
    time.replace(/(..)(..)(..)/, "$1:$2:$3")
  }Z`;
  const next = runName(new Date(Date.parse(iso) + 1000));
  context.output.warn(
    `the clock is behind run ${newest}, or was ahead then: this one is called ${next}, not ${name}`,
  );
  return next;
}

/** `backup-20261126T192310Z`: sorts as time does. */
function runName(now: Date): string {
  return `backup-${now.toISOString().replaceAll(/[-:]|\.\d+/g, "")}`;
}
