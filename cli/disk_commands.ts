/**
 * `kelpie disk create`, `list`, `info`, `delete`, `resize`, `rename`, `lock`, `release` and `check`: what the agent's admin
 * API does.
 *
 * @module
 */
import { formatSize, parseSize } from "../agent/config.ts";
import type { AdminClient, CheckOptions } from "../agent/admin_client.ts";
import type { CheckReport, ComparisonReport } from "../agent/http/backend.ts";
import type { DiskDocument, LockDocument, NodeDocument } from "../agent/http/documents.ts";
import { COPIES_MAX } from "../agent/map/model.ts";
import { inZonesText } from "../agent/map/zones.ts";
import { addAttributeCommand, hasAttributes, pairsArgument } from "./attribute_commands.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  nodeArgument,
  processName,
  sizeArgument,
  sizeText,
  zonesArgument,
} from "./context.ts";
import { flattenText } from "./flatten_command.ts";
import { copiesChangeText, warnOfFewest } from "./copies_command.ts";
import { limitsText } from "./limit_command.ts";
import { CommandError, ExitCode, type Output, printable } from "./output.ts";
import { NoRoom, preallocate, ZEROES_HINT } from "./preallocate_command.ts";
import { Progress } from "./progress.ts";
import { spaceText } from "./space.ts";
import { trashTimeMs } from "./trash_commands.ts";
import { forgetDisk } from "./unfinished_disk.ts";
import { formatCount, formatDuration, plural } from "./units.ts";

/** Damaged blocks that a check lists; `--json` has all that the agent names. */
const DAMAGE_LISTED_MAX = 100;

/** Adds the commands to `kelpie disk`. */
export function addDiskCommands(disk: AnyCommand, context: CommandContext): void {
  addCreate(disk, context);
  addList(disk, context);
  addInfo(disk, context);
  addDelete(disk, context);
  addResize(disk, context);
  addRename(disk, context);
  addAttributeCommand(disk, context);
  addRelease(disk, context);
  addLock(disk, context);
  addCheck(disk, context);
}

function addCreate(disk: AnyCommand, context: CommandContext): void {
  disk.command("create")
    .summary("make an empty disk")
    .description("Makes an empty disk. It takes space as it is written, not before.")
    .argument("<new-name>", "name of the disk", diskArgument)
    .argument("<size>", "such as 20G, 512M or 1.5T", sizeArgument)
    .option(
      "--copies <count>",
      "on so many nodes, or on all where there are fewer (default: the cluster's setting)",
      countArgument({ min: 1, max: COPIES_MAX }),
    )
    .option(
      "--copies-min <count>",
      "writes wait while there are fewer complete copies (default: a majority; 1 of 2)",
      countArgument({ min: 1, max: COPIES_MAX }),
    )
    .option(
      "--zones <zones>",
      "only on nodes of these zones, such as a,b (default: any)",
      zonesArgument,
    )
    .option("--read-only", "guests may only read")
    .option("--detect-zeroes", "blocks of zeros that guests write take no space")
    .option("--preallocate", "give every block its space now; see 'kelpie disk preallocate'")
    .option("--json", "print the disk as JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk create web 20G",
        "kelpie disk create scratch 1T --copies 1",
        "kelpie disk create db 100G --preallocate",
        "kelpie disk create log 50G --copies 2 --zones rack-1,rack-2",
      ),
    )
    .action(async (name, sizeBytes, { json, preallocate: isPreallocated = false, ...options }) => {
      if (isPreallocated) refusePreallocation(options);
      using client = context.client();
      const created = await client.createDisk({ name, sizeBytes, ...options });
      if (isPreallocated) await preallocateNew(context, name);
      if (options.copiesMin !== undefined) warnOfFewest(context, created);
      if (json) return context.output.json(isPreallocated ? await client.disk(name) : created);
      context.output.say(`disk ${name} of ${formatSize(created.sizeBytes)} at ${created.socket}`);
    });
}

/** What says the opposite of pre-allocation. */
function refusePreallocation(
  { detectZeroes, readOnly }: { readonly detectZeroes?: boolean; readonly readOnly?: boolean },
): void {
  if (detectZeroes !== true && readOnly !== true) return;
  const other = detectZeroes === true ? "--detect-zeroes" : "--read-only";
  throw new CommandError(ExitCode.Usage, `--preallocate and ${other} contradict each other`, {
    hint: detectZeroes === true ? ZEROES_HINT : "a disk that is never written needs no space",
  });
}

/** A disk for which there is no room goes again; one that is not done stays, and can be gone on with. */
async function preallocateNew(context: CommandContext, name: string): Promise<void> {
  try {
    await preallocate(context, name);
  } catch (error) {
    if (error instanceof NoRoom) await forgetDisk(context, name);
    else {
      context.output.warn(
        `disk ${name} is there, and not all of it has space: 'kelpie disk preallocate ${name}' goes on`,
      );
    }
    throw error;
  }
}

function addList(disk: AnyCommand, context: CommandContext): void {
  disk.command("list")
    .alias("ls")
    .summary("list the disks")
    .description("Lists the disks.")
    .option(
      "--where <attribute>",
      "only those with this attribute, KEY=VALUE, or without it, KEY=; may be given more than once",
      pairsArgument,
    )
    .option("--names", "only names, one per line")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk list",
        "kelpie disk list --json",
        "kelpie disk list --where owner=anna",
      ),
    )
    .action(async ({ where = [], names, json }) => {
      const { output } = context;
      using client = context.client();
      const disks = (await client.disks()).filter((disk) => hasAttributes(disk, where));
      if (json) return output.json(disks);
      if (names) return disks.forEach(({ name }) => output.line(name));
      if (disks.length === 0 && where.length > 0) return output.say("no disk is like that");
      if (disks.length === 0) {
        return output.say("there is no disk yet; 'kelpie disk create NAME SIZE' makes one");
      }
      output.table(
        ["NAME", ">SIZE", ">DATA", ">COPIES", "OPEN ON", "IN USE BY"],
        disks.map(rowOf),
      );
    });
}

function rowOf(disk: DiskDocument): string[] {
  return [
    disk.name,
    formatSize(disk.sizeBytes),
    formatSize(disk.allocatedBytes),
    copiesCell(disk),
    disk.openOn ?? "-",
    usersOf(disk).join(", ") || "-",
  ];
}

/** `2/2`, `2/2 in a, b`; on its way to others: `2/2 → 3 (37 %)`, `2/2 in a → 2 anywhere (37 %)`. */
function copiesCell({ copiesInSync, copies, zones, copiesChange: change }: DiskDocument): string {
  const text = `${copiesInSync}/${copies} ${inZonesText(zones)}`.trimEnd();
  if (change === null) return text;
  const isAnywhere = zones.length === 0 && change.zones.length === 0;
  const where = isAnywhere ? "" : ` ${inZonesText(change.zones) || "anywhere"}`;
  return `${text} → ${change.copies}${where} (${change.percent} %)`;
}

/** `2 complete of 2 wanted; 2 → 3, 37 %, about 2 min left: data is being copied to node c`. */
function copiesText(disk: DiskDocument): string {
  const { copiesInSync, copies, copiesChange } = disk;
  const text = `${copiesInSync} complete of ${copies} wanted`;
  return copiesChange === null ? text : `${text}; ${copiesChangeText(disk, copiesChange)}`;
}

/** `any`, or `a, b`, and what is not as it should be there. */
function placeText({ zones, zonesProblem }: DiskDocument): string {
  return (zones.join(", ") || "any") + (zonesProblem === null ? "" : ` (${zonesProblem})`);
}

/** Who is connected, and how. */
function usersOf({ sessions }: DiskDocument): string[] {
  return sessions.map((session) => {
    const states = [
      session.readOnly ? "reads only" : "",
      session.broken !== null ? "stands still" : session.waitingForLease ? "waits" : "",
    ].filter((state) => state !== "");
    return processName(session) + (states.length > 0 ? ` ${states.join(", ")}` : "");
  });
}

function addInfo(disk: AnyCommand, context: CommandContext): void {
  disk.command("info")
    .summary("tell everything about a disk")
    .description("Tells everything about a disk.")
    .argument("<name>", "the disk", diskArgument)
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk info web"))
    .action(async (name, { json }) => {
      using client = context.client();
      const found = await client.disk(name);
      if (json) return context.output.json(found);
      const nodes = found.flatten === null ? [] : await client.nodes().catch(() => []);
      printInfo(context.output, found, nodes);
    });
}

/** @param nodes as far as they are needed */
function printInfo(output: Output, disk: DiskDocument, nodes: readonly NodeDocument[]): void {
  const { counters } = disk;
  const used = usersOf(disk);
  const attributes = Object.entries(disk.attributes);
  output.fields([
    ["name", disk.name],
    ["size", `${formatSize(disk.sizeBytes)} (${disk.sizeBytes} bytes)`],
    ["data", formatSize(disk.allocatedBytes)],
    ["space on this node", spaceText(disk.space)],
    ["copies", copiesText(disk)],
    ["zones", placeText(disk)],
    [
      "writes wait",
      `with fewer than ${plural(disk.copiesMin, "complete copy", "complete copies")}`,
    ],
    ["open on", disk.openOn ?? "no node"],
    ["created", new Date(disk.createdMs).toISOString()],
    ["access", disk.readOnly ? "read-only" : "read-write"],
    ["limits", limitsText(disk.limits)],
    ["held back", heldText(counters)],
    ["zeros", disk.detectZeroes ? "kept as holes" : "kept as they are written"],
    ["socket", disk.socket],
    ["read-only socket", disk.readOnlySocket],
    ["clone of", disk.origin ?? (disk.isShared ? "a snapshot that was deleted" : "nothing")],
    ...(disk.flatten === null ? [] : [["flattening", flattenText(disk.flatten, nodes)] as const]),
    ["snapshots", disk.snapshots.length === 0 ? "none" : String(disk.snapshots.length)],
    ["schedules", disk.schedules.join(", ") || "none"],
    ["in use by", used.join(", ") || "nobody"],
    ["generation", String(disk.generation)],
    ["reads", `${formatCount(counters.reads)}, ${formatSize(counters.readBytes)}`],
    ["writes", `${formatCount(counters.writes)}, ${formatSize(counters.writtenBytes)}`],
    ["flushes", formatCount(counters.flushes)],
    ["discards", formatCount(counters.discards)],
    ["errors", String(counters.errors)],
    ...attributes.map(([key, value]) => [`${key} (attribute)`, printable(value)] as const),
  ]);
  for (const { broken, ...session } of disk.sessions) {
    if (broken === null) continue;
    const who = processName({ ...session, broken });
    output.line(output.styled("bad", `the device of ${who} stands still: ${printable(broken)}`));
  }
}

/** What limits did, for people. */
function heldText({ heldRequests, heldMs }: DiskDocument["counters"]): string {
  if (heldMs === 0) return "nothing";
  return `${formatCount(heldRequests)} requests, within ${formatDuration(heldMs)}`;
}

function addDelete(disk: AnyCommand, context: CommandContext): void {
  disk.command("delete")
    .alias("rm")
    .summary("delete a disk")
    .description(
      "Deletes a disk and its snapshots. It goes to the trash, and can be had back with 'kelpie disk undelete' for as long as " +
        "'kelpie cluster settings trash' says.",
    )
    .argument("<name>", "the disk", diskArgument)
    .option("--now", "for good, not into the trash: its space comes back at once")
    .option("--force", "even when it is in use: those who use it are disconnected")
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk delete web --yes", "kelpie disk delete web --now"))
    .action(async (name, { now = false, force, yes = false }) => {
      using client = context.client();
      const found = await client.disk(name);
      const used = usersOf(found);
      if (used.length > 0 && !force) throw inUse(name, used);
      const keptMs = now ? 0 : await trashTimeMs(client);
      const action = `delete disk ${name}`;
      const users = used.length > 0 ? `, which ${used.join(" and ")} uses` : "";
      const data = `${formatSize(found.allocatedBytes)} of data`;
      const backText = `can be had back for ${formatDuration(keptMs)}`;
      context.output.confirm(
        keptMs === 0
          ? { yes, action, loss: `its ${data}${users}` }
          : { yes, action, consequence: `the disk with its ${data}${users}, ${backText}` },
      );
      await client.deleteDisk(name, { force, now });
      context.output.say(
        keptMs === 0 ? `deleted disk ${name}` : `deleted disk ${name}, which ${backText}`,
      );
    });
}

function inUse(name: string, used: readonly string[]): CommandError {
  return new CommandError(
    ExitCode.Failure,
    `disk ${name} is in use by ${used.join(" and ")}`,
    { hint: "stop what uses it, or add --force to disconnect it" },
  );
}

function addResize(disk: AnyCommand, context: CommandContext): void {
  disk.command("resize")
    .summary("change the size of a disk")
    .description(
      "Changes the size of a disk. A guest that runs sees the new size at once; enlarging a partition " +
        "and file system is up to the guest.",
    )
    .argument("<name>", "the disk", diskArgument)
    .argument("<size>", "the new size, or +SIZE for what is added", resizeText)
    .option("--shrink", "the new size may be smaller: what lies beyond it is lost")
    .option("--yes", "do not ask before shrinking")
    .addHelpText(
      "after",
      examples(
        "kelpie disk resize web 40G",
        "kelpie disk resize web +10G",
        "kelpie disk resize web 10G --shrink --yes",
      ),
    )
    .action(async (name, size, { shrink = false, yes = false }) => {
      using client = context.client();
      const found = await client.disk(name);
      const base = size.startsWith("+") ? found.sizeBytes : 0;
      const sizeBytes = base + parseSize(size.replace(/^\+/, ""));
      if (sizeBytes < found.sizeBytes) {
        confirmShrink(context.output, { found, sizeBytes, shrink, yes });
      }
      const changed = await client.changeDisk(name, { sizeBytes, shrink });
      const [from, to] = [found.sizeBytes, changed.sizeBytes].map(formatSize);
      context.output.say(
        from === to ? `disk ${name} has ${to}` : `disk ${name} has ${to} now, after ${from}`,
      );
    });
}

function resizeText(text: string): string {
  return text.startsWith("+") ? `+${sizeText(text.slice(1))}` : sizeText(text);
}

function confirmShrink(
  output: Output,
  options: { found: DiskDocument; sizeBytes: number; shrink: boolean; yes: boolean },
): void {
  const { found, sizeBytes, shrink, yes } = options;
  const [from, to] = [found.sizeBytes, sizeBytes].map(formatSize);
  if (!shrink) {
    throw new CommandError(
      ExitCode.Usage,
      `${to} is less than the ${from} that disk ${found.name} has: what lies beyond would be lost`,
      { hint: "add --shrink if that is what you want" },
    );
  }
  output.confirm({
    yes,
    action: `shrink disk ${found.name} from ${from} to ${to}`,
    loss: `what lies beyond ${to}`,
  });
}

function addRename(disk: AnyCommand, context: CommandContext): void {
  disk.command("rename")
    .alias("mv")
    .summary("rename a disk")
    .description(
      "Gives a disk another name. Its sockets move; a guest that runs keeps the disk. But its QEMU goes on looking for it " +
        "under the old name: once the agent there is restarted, the guest waits until the disk has that name again, so move " +
        "the guest, or restart its QEMU, before that, with what 'kelpie disk qemu' prints for the new name.",
    )
    .argument("<name>", "the disk", diskArgument)
    .argument("<new-name>", "its new name", diskArgument)
    .addHelpText("after", examples("kelpie disk rename web web-old"))
    .action(async (name, newName) => {
      using client = context.client();
      const changed = await client.changeDisk(name, { name: newName });
      context.output.say(`disk ${name} is ${changed.name} now, at ${changed.socket}`);
    });
}

function addLock(disk: AnyCommand, context: CommandContext): void {
  const lock = disk.command("lock")
    .summary("who has which disk open")
    .description(
      "Tells on which node disks are open, and settles it. A disk is open for writing on one node at a time: that node " +
        "holds its lease.",
    )
    .addHelpText(
      "after",
      examples("kelpie disk lock list", "kelpie disk lock release web --yes"),
    );
  lock.command("list")
    .alias("ls")
    .summary("list the disks that are open, and where")
    .description(
      "Lists the disks that are open for writing: on which node, under which generation, and since when. 'serving' is as it " +
        "should be; 'waiting' says that requests wait there, 'suspect' that the node does not answer, and 'down' that it is " +
        "off the map: then the disk can be opened elsewhere within seconds, without doing anything.",
    )
    .option("--json", "print JSON")
    .addHelpText("after", examples("kelpie disk lock list", "kelpie disk lock list --json"))
    .action(async ({ json }) => {
      const { output } = context;
      using client = context.client();
      const locks = await client.locks();
      if (json) return output.json(locks);
      if (locks.length === 0) return output.say("no disk is open");
      output.table(["DISK", "NODE", ">GENERATION", "SINCE", "STATE"], locks.map(lockRow));
      for (const { disk, state, reason } of locks) {
        if (reason !== null && state !== "down") output.line(`${disk}: ${printable(reason)}`);
      }
    });
  addRelease(lock, context);
}

function lockRow({ disk, node, generation, sinceMs, isSinceExact, state }: LockDocument): string[] {
  const time = sinceMs === null ? "?" : new Date(sinceMs).toISOString();
  // What was open before the agent that was asked came to see it.
  const since = sinceMs === null || isSinceExact ? time : `before ${time}`;
  return [disk, node, String(generation), since, state];
}

/** `kelpie disk lock release`, and `kelpie disk release`, which is the same. */
function addRelease(parent: AnyCommand, context: CommandContext): void {
  parent.command("release")
    .summary("take a disk away from the node where it is open")
    .description(
      "Takes a disk away from the node where it is open, whatever goes on there, so that it can be opened on " +
        "another. Copies refuse what that node still sends, and its guest is cut off for good once another has had the " +
        "disk. It is needed only where a node neither lets go of a disk nor goes down: leases of nodes that are down end " +
        "by themselves.",
    )
    .argument("<name>", "the disk", diskArgument)
    .option("--yes", "do not ask")
    .addHelpText("after", examples("kelpie disk lock release web --yes"))
    .action(async (name, { yes = false }) => {
      using client = context.client();
      const { openOn } = await client.disk(name);
      if (openOn === null) return context.output.say(`disk ${name} is not open`);
      const lock = (await client.locks()).find(({ disk }) => disk === name);
      context.output.confirm({
        yes,
        action: `take disk ${name} away from node ${openOn}`,
        consequence: consequenceOf(lock?.state),
      });
      await client.releaseDisk(name);
      context.output.say(`disk ${name} can be opened elsewhere in a few seconds`);
    });
}

function consequenceOf(state: LockDocument["state"] | undefined): string {
  const guest = "a guest that still uses it there waits from then on";
  if (state === "down") return `${guest}; its node is down, and the lease ends by itself`;
  if (state === "suspect") return `${guest}; its node does not answer`;
  return `${guest}; its node is alive, and can move or stop that guest in good order instead`;
}

function addCheck(disk: AnyCommand, context: CommandContext): void {
  disk.command("check")
    .summary("verify and compare all replicas, and repair them")
    .description(
      "Reads every block of every replica of a disk (or of all disks, also in the trash), verifies its checksum, " +
        "and compares the replicas. What is damaged is healed from a replica that is not; what differs is made what " +
        "more than half of the replicas have; a replica that lacks writes copies them. Guests go on meanwhile. " +
        "Ends with 0 only if all was checked, and is good or was repaired.",
    )
    .argument("[name]", "the disk; all disks without it", diskArgument)
    .option("--no-repair", "only report")
    .option(
      "--prefer <node>",
      "where replicas of the disk differ, this node's content counts; others' is overwritten",
      nodeArgument,
    )
    .option("--yes", "with --prefer: do not ask")
    .option("--local", "verify the checksums of this node's store only, compare nothing")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      examples(
        "kelpie disk check",
        "kelpie disk check web --no-repair",
        "kelpie disk check web --prefer host-1",
        "kelpie disk check --local --json",
      ),
    )
    .action(async (name, { json, local, repair, prefer, yes }) => {
      if (local && !repair) {
        throw new CommandError(
          ExitCode.Usage,
          "--no-repair does not go with --local: what a node finds damaged in its store is healed",
        );
      }
      if (prefer !== undefined) {
        if (name === undefined || local || !repair) {
          throw new CommandError(
            ExitCode.Usage,
            "--prefer is for one disk, and goes neither with --no-repair nor with --local",
            { hint: "'kelpie disk check DISK --no-repair' says what differs, and where" },
          );
        }
        return await settle(context, { name, node: prefer, json, yes: yes === true });
      }
      if (!local) return await compare(context, name ?? null, { json, repair });
      const report = await follow(
        context,
        name ?? "the store",
        (client, options) => client.check(name ?? null, options),
      );
      if (report.damagedBlocks > 0) context.exitCode = ExitCode.Failure;
      if (json) return context.output.json(report);
      printReport(context.output, name ?? "the store", report);
    });
}

async function compare(
  context: CommandContext,
  name: string | null,
  { json, repair }: { readonly json?: boolean; readonly repair: boolean },
): Promise<void> {
  const report = await follow(
    context,
    name ?? "all disks",
    (client, options) => client.compare(name, { ...options, repair }),
  );
  if (!report.good) context.exitCode = ExitCode.Failure;
  if (json) return context.output.json(report);
  printComparison(context.output, report, repair);
}

async function settle(
  context: CommandContext,
  { name, node, json, yes }: {
    readonly name: string;
    readonly node: string;
    readonly json?: boolean;
    readonly yes: boolean;
  },
): Promise<void> {
  using client = context.client();
  const [, { name: preferred }] = await Promise.all([client.disk(name), client.node(node)]);
  context.output.confirm({
    yes,
    action: `overwrite replicas of disk ${name} by what node ${preferred} has`,
    loss: "what other nodes have where they differ from it, also where most of them agree",
  });
  const report = await follow(
    context,
    name,
    (client, options) => client.settle(name, { node }, options),
  );
  if (!report.good) context.exitCode = ExitCode.Failure;
  if (json) return context.output.json(report);
  printComparison(context.output, report, true);
}

async function follow<Report>(
  context: CommandContext,
  what: string,
  begin: (client: AdminClient, options: CheckOptions) => Promise<Report>,
): Promise<Report> {
  using client = context.client();
  const signal = context.terminal.interrupted();
  let progress: Progress | null = null;
  try {
    return await begin(client, {
      signal,
      onProgress(checkedBytes, totalBytes) {
        progress ??= new Progress(context.output, `checking ${what}`, totalBytes);
        progress.update(checkedBytes);
      },
    });
  } catch (error) {
    // However the connection ended then, it was because of the signal.
    signal.throwIfAborted();
    throw error;
  } finally {
    (progress as Progress | null)?.end();
  }
}

function printComparison(output: Output, report: ComparisonReport, repair: boolean): void {
  if (report.disks.length === 0) return output.line("there are no disks");
  output.table(
    [
      "DISK",
      ">CHUNKS",
      ">COMPARED",
      ">SINGLE",
      ">VERIFIED",
      ">DAMAGED",
      ">REPAIRED",
      ">DIFFERING",
      ">SETTLED",
      ">LAGGING",
      ">CAUGHT UP",
      ">UNCHECKED",
    ],
    report.disks.map((disk) =>
      [
        disk.inTrash ? `${disk.disk} (trash)` : disk.disk,
        ...[disk.chunks, disk.comparedChunks, disk.singleChunks].map(String),
        formatSize(disk.verifiedBlocks * 4096),
        ...[disk.damagedBlocks, disk.repairedBlocks, disk.differingBlocks, disk.settledBlocks],
        ...[disk.laggingChunks, disk.caughtUpChunks, disk.uncheckedChunks],
      ].map(String)
    ),
  );
  for (const { kind, disk, offsetBytes, nodes, contents, reason } of report.blocks) {
    const where = `${disk} at ${offsetBytes}`;
    const who = kind === "damaged"
      ? `damaged on ${nodes.join(", ")}`
      : `differs: ${nodes.map((node, i) => `${node} has content ${contents[i] + 1}`).join(", ")}`;
    output.line(output.styled("bad", `${where}: ${who}; ${reason}`));
  }
  for (const { disk, reason, nodes, chunks } of report.unchecked) {
    const who = nodes.length === 0 ? "" : `${nodes.join(", ")}: `;
    output.line(
      output.styled("warning", `${disk}: ${plural(chunks, "chunk")} not checked: ${who}${reason}`),
    );
  }
  if (report.good) return output.line("everything is good");
  const { disks } = report;
  if (!repair && disks.some((disk) => disk.damagedBlocks + disk.laggingChunks > 0)) {
    output.say(
      "without --no-repair what is damaged or lacks writes is copied from a replica that is not",
    );
  }
  const differing = disks.find((disk) => disk.differingBlocks > disk.settledBlocks);
  if (differing === undefined) return;
  output.say(
    repair
      ? "what differs is as it was; once you know which node is right: " +
        `kelpie disk check ${differing.disk} --prefer NODE (see docs/check.md)`
      : "without --no-repair what differs is made what more than half of the replicas have",
  );
}

function printReport(output: Output, what: string, report: CheckReport): void {
  const checked = formatSize(report.checkedBytes);
  if (report.damagedBlocks === 0) {
    return output.line(`${what}: ${checked} checked, no damage`);
  }
  output.line(
    output.styled("bad", `${what}: ${checked} checked, ${damagedText(report.damagedBlocks)}`),
  );
  const listed = report.damage.slice(0, DAMAGE_LISTED_MAX);
  if (listed.length > 0) {
    output.table(
      ["DISK", ">OFFSET"],
      listed.map(({ disk, offsetBytes }) => [disk || "(deleted)", String(offsetBytes)]),
    );
  }
  const rest = report.damagedBlocks - listed.length;
  if (rest > 0) output.line(`and ${rest} more`);
  output.say("writing the blocks again, or discarding them, repairs them");
}

function damagedText(count: number): string {
  return `${plural(count, "block")} cannot be read`;
}
