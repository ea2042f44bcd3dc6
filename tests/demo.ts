/**
 * `./dev demo`: the main job, with nothing else typed. A Linux guest works on a kelpie disk, the agent below it is
 * killed in the middle of its writes and started again, and the guest does not notice.
 *
 * Says what it does in plain lines on standard output. Ends with 0 only when everything that it claims is true.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import { until } from "./guest/deadline.ts";
import { Guest, type GuestJob } from "./guest/guest.ts";
import { ensureGuestFiles, ensurePackages } from "./guest/install.ts";
import { AgentProcess, WorkDirectory } from "./tools/agent_process.ts";

const DISK = "demo";
const DISK_SIZE = "1G";
const CAPACITY = "2G";
const MIB = 1024 * 1024;

/** Files written and synced before anything goes wrong. */
const FILES = 8;
const FILE_MIB = 2;

/** Files that the writer has to finish before the agent is killed, and again after it is back. */
const WRITTEN_MIN = 5;

/** How long the writer may take for those; TCG on a busy machine is slow. */
const WRITER_TIMEOUT_MS = 60_000;

/** How long the guest is left without its disk. */
const OUTAGE_MS = 2_000;

/**
 * Writes files for as long as it is left alone, syncs each and then says its number and checksum: what it
 * has said must never be lost.
 */
const WRITER = `
n=0
while n=$((n + 1)); do
  dd if=/dev/urandom of=/mnt/written/$n bs=16k count=16 conv=fsync 2>/dev/null || exit 1
  echo "$n $(sha256sum </mnt/written/$n | cut -d ' ' -f 1)"
done`;

/** Line by line, with the time since the start. */
const startedMs = performance.now();
function say(text: string): void {
  const seconds = ((performance.now() - startedMs) / 1000).toFixed(1).padStart(5);
  console.log(`${seconds} s  ${text}`);
}

/** A claim of the demo: it holds, or the demo fails. */
function claim(isTrue: boolean, text: string): void {
  if (!isTrue) throw new Error(`NOT true: ${text}`);
  say(`✔ ${text}`);
}

async function demo(directory: string): Promise<void> {
  say("looking for QEMU, a kernel and busybox, and getting what is missing");
  await ensurePackages(["qemu-system-x86_64", "mke2fs", "e2fsck"]);
  const { kernelVersion } = await ensureGuestFiles();

  const options = {
    runDir: `${directory}/run`,
    dataDir: `${directory}/data`,
    capacity: CAPACITY,
  };
  say(`starting an agent with an empty store in ${directory}`);
  await using first = await AgentProcess.start(options);
  say(`making the disk ${DISK} of ${DISK_SIZE}: kelpie disk create ${DISK} ${DISK_SIZE}`);
  await first.check("disk", "create", DISK, DISK_SIZE);

  const accel = Deno.env.get("KELPIE_TEST_ACCEL") ?? "tcg";
  say(`booting Linux ${kernelVersion} in QEMU (${accel}) with its disk at ${first.socket(DISK)}`);
  await using guest = await Guest.boot({
    disks: [{ socket: first.socket(DISK), queues: 2 }],
    cpus: 2,
  });
  const sums = await fillDisk(guest);

  say("starting a writer in the guest: file after file, each synced, then its checksum said");
  await guest.check("mkdir /mnt/written");
  const writer = guest.start(WRITER);
  await written(writer, WRITTEN_MIN);

  say(`kill -9 ${first.pid}: the agent is gone while the guest writes`);
  await first.kill();
  const killed = await written(writer, 0);
  await new Promise((resolve) => setTimeout(resolve, OUTAGE_MS));
  const during = await written(writer, 0);
  // One may have been synced just before, and be said only now.
  claim(
    during.size <= killed.size + 1 && await guest.check("echo alive") === "alive",
    `the guest lives and its writer waits, ${during.size} files written`,
  );

  say("starting the agent again on the same data");
  await using second = await AgentProcess.start(options);
  const after = await written(writer, during.size + WRITTEN_MIN);
  claim(true, `the writer went on by itself: ${after.size} files by now`);
  // Said before the kill is kept: the last word counts, since numbers are never used twice.
  for (const [name, sum] of await stopWriter(writer)) sums.set(name, sum);

  say("emptying the guest's caches, checking the file system, mounting it again");
  await guest.check("umount /mnt && echo 3 >/proc/sys/vm/drop_caches");
  await guest.check("e2fsck -fn /dev/vda");
  await guest.check("mount -t ext4 /dev/vda /mnt");
  const bad = await changedFiles(guest, sums);
  claim(bad.length === 0, `all ${sums.size} synced files are there with their checksums${bad}`);
  const errors = await guest.ioErrors();
  claim(errors.length === 0, `the guest's kernel saw no I/O error${errors.join("\n")}`);

  say("verifying every block in the store: kelpie disk check");
  say(`  ${await second.check("disk", "check", DISK)}`);
  say("kelpie status");
  const status = await second.check("status");
  say(`  ${status}`);
  claim(status.startsWith("healthy"), "the agent is healthy");

  say("shutting the guest down, stopping the agent, cleaning up");
  await guest.shutdown();
  await second.stop();
}

/** Makes a file system with synced files on it. */
async function fillDisk(guest: Guest): Promise<Map<string, string>> {
  say("in the guest: mkfs.ext4 /dev/vda, mount");
  await guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
  say(`in the guest: writing ${FILES} files, ${formatSize(FILES * FILE_MIB * MIB)}, and syncing`);
  const output = await guest.check(`
    for n in $(seq ${FILES}); do
      dd if=/dev/urandom of=/mnt/first$n bs=64k count=${FILE_MIB * 16} 2>/dev/null || exit 1
    done
    sync
    cd /mnt && sha256sum first*`);
  const sums = new Map<string, string>();
  for (const line of output.split("\n")) {
    const [sum, name] = line.split(/\s+/);
    sums.set(name, sum);
  }
  if (sums.size !== FILES) throw new Error(`the guest wrote:\n${output}`);
  return sums;
}

/** What the writer says that it has written, once that are more than `count` files: path to checksum. */
async function written(writer: GuestJob, count: number): Promise<Map<string, string>> {
  let said = new Map<string, string>();
  await until(async () => {
    said = parseWritten(await writer.output());
    return said.size >= count;
  }, {
    timeoutMs: WRITER_TIMEOUT_MS,
    intervalMs: 200,
    what: () => `the writer has written ${said.size} files, not ${count}`,
  });
  return said;
}

function parseWritten(output: string): Map<string, string> {
  const lines = [...output.matchAll(/^(\d+) ([0-9a-f]{64})$/gm)];
  return new Map(lines.map(([, number, sum]) => [`written/${number}`, sum]));
}

/** Ends the writer and returns the last it had to say. */
async function stopWriter(writer: GuestJob): Promise<Map<string, string>> {
  await writer.kill();
  const { output } = await writer.done;
  return parseWritten(output);
}

/** Names of the files that do not have their checksum. */
async function changedFiles(guest: Guest, sums: Map<string, string>): Promise<string[]> {
  const list = [...sums].map(([name, sum]) => `${sum}  ${name}`).join("\n");
  const { output } = await guest.run(`cd /mnt && sha256sum -c - <<'END'\n${list}\nEND`);
  const good = new Set([...output.matchAll(/^(\S+): OK$/gm)].map(([, name]) => name));
  return [...sums.keys()].filter((name) => !good.has(name));
}

/** A signal ends the demo as an error does, so that it cleans up. */
function interrupted(): Promise<never> {
  return new Promise((_, reject) => {
    for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      Deno.addSignalListener(name, () => reject(new Error(`interrupted by ${name}`)));
    }
  });
}

/** Whatever still runs when the demo is interrupted ends with this process. */
async function main(): Promise<number> {
  await using work = await WorkDirectory.make("kelpie-demo-");
  try {
    await Promise.race([demo(work.path), interrupted()]);
    say("the demo has shown what it claims");
    return 0;
  } catch (error) {
    console.error(`the demo FAILED: ${error instanceof Error ? error.message : error}`);
    return 1;
  }
}

if (import.meta.main) Deno.exit(await main());
