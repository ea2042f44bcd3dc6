/**
 * `./dev demo`: the main job, with nothing else typed. Three hosts become a cluster; a Linux guest on one of them works on a disk of
 * which every host keeps a copy; the agent of another host is killed in the middle of its writes, and the guest does not
 * notice; it comes back, and all copies are there again. Then the guest moves to another host while it writes, and the
 * host that it has left is replaced by a new one.
 *
 * As root the hosts have networks of their own (namespaces), else they are three loopback addresses. Says what it does in
 * plain lines on standard output, with what `kelpie status` says at each point. Ends with 0 only when everything that it
 * claims is true, and leaves nothing behind.
 *
 * @module
 */
import { formatSize } from "../agent/config.ts";
import { type Host, Hosts } from "./cluster/hosts.ts";
import { until } from "./guest/deadline.ts";
import { writerScript } from "./guest/files.ts";
import { Guest, type GuestJob } from "./guest/guest.ts";
import { ensureGuestFiles, ensurePackages } from "./guest/install.ts";

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

/**
 * How long the demo waits for what takes five seconds at most where the machine keeps up, as `tests/cluster` holds it to: here the guest
 * that has to write two files is emulated, and may have a third of a core. How long it took is said.
 */
const PAUSE_MS_MAX = 20_000;

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

async function demo(hosts: Hosts): Promise<void> {
  say("looking for QEMU, a kernel and busybox, and getting what is missing");
  await ensurePackages(["qemu-system-x86_64", "mke2fs", "e2fsck"]);
  const { kernelVersion } = await ensureGuestFiles();

  const [here, other, third, fourth] = hosts.list;
  say(
    hosts.network === "namespaces"
      ? `three hosts, each a network namespace on one bridge, with their files in ${hosts.work.path}`
      : `three hosts, each a loopback address, with their files in ${hosts.work.path}`,
  );
  say(`${here.name}: kelpie agent --listen ${here.address}`);
  await here.start();
  await showStatus(here);
  for (const host of [other, third]) {
    say(`${host.name}: kelpie agent --join ${here.address} --secret-file …`);
  }
  await Promise.all([other.start(), third.start()]);
  await hosts.untilWhole({ nodes: 3 });
  say(`${here.name}: kelpie disk create ${DISK} ${DISK_SIZE}`);
  await here.running.check("disk", "create", DISK, DISK_SIZE);
  await hosts.untilWhole({ nodes: 3 });
  await showStatus(here);
  const { nodes } = await here.cluster();
  claim(nodes.length === 3, "three nodes are one cluster, and every one of them keeps a copy");

  const accel = Deno.env.get("KELPIE_TEST_ACCEL") ?? "tcg";
  say(`booting Linux ${kernelVersion} in QEMU (${accel}) on ${here.name}: ${here.socket(DISK)}`);
  await using guest = await Guest.boot({
    disks: [{ socket: here.socket(DISK), queues: 2 }],
    cpus: 2,
  });
  const sums = await fillDisk(guest);

  say("starting a writer in the guest: file after file, each synced, then its checksum said");
  await guest.check("mkdir /mnt/written");
  const writer = guest.start(WRITER);
  await written(writer, WRITTEN_MIN);

  say(`${other.name}: kill -9 ${other.running.pid} while the guest writes`);
  const killedMs = performance.now();
  await other.kill();
  const before = (await written(writer, 0)).size;
  // Two files: the first may have been with all copies already.
  await written(writer, before + 2, 50);
  const pauseMs = performance.now() - killedMs;
  claim(
    pauseMs <= PAUSE_MS_MAX,
    `the guest writes on with two copies: two more files ${
      (pauseMs / 1000).toFixed(1)
    } s after the kill`,
  );
  await until(async () => (await here.cluster()).nodes.some(({ state }) => state === "down"), {
    timeoutMs: PAUSE_MS_MAX,
    what: () => "the map does not say that a node is down",
  });
  const degraded = await showStatus(here);
  claim(!degraded.startsWith("healthy"), "kelpie status does not call that healthy");
  const during = await written(writer, before + WRITTEN_MIN);

  say(`${other.name}: starting the agent again, on the same data`);
  await other.start();
  const startedMs = performance.now();
  await hosts.untilWhole({ nodes: 3 });
  const wholeMs = performance.now() - startedMs;
  claim(true, `its copy is complete again, ${(wholeMs / 1000).toFixed(1)} s later`);
  await until(async () => (await statusOf(here)).startsWith("healthy"), {
    timeoutMs: PAUSE_MS_MAX,
    intervalMs: 200,
    what: () => "kelpie status does not get healthy",
  });
  await showStatus(here);

  const after = await written(writer, during.size + WRITTEN_MIN);
  claim(true, `the writer never stopped: ${after.size} files by now`);
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

  await using moved = await moveGuest(hosts, guest, here, third);
  say(`${fourth.name}: kelpie agent --join ${here.address} --secret-file …`);
  await fourth.start();
  say(`${third.name}: kelpie node drain ${here.name} --wait; kelpie node remove ${here.name}`);
  await third.running.check("node", "drain", here.name, "--wait", "--yes");
  await here.stop();
  await third.running.check("node", "remove", here.name, "--yes");
  await hosts.untilWhole({ nodes: 3 });
  await showStatus(third);
  await saysMore(moved, WRITTEN_MIN);
  claim(true, `${here.name} is gone, ${fourth.name} has its copies, and the writer never stopped`);
  await moved.check("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
  await moved.check("umount /mnt && echo 3 >/proc/sys/vm/drop_caches");
  await moved.check("e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt");
  const checked = await moved.run("cd /mnt && sha256sum -c -s /tmp/said");
  const count = await moved.check("wc -l </tmp/said");
  claim(
    checked.status === 0,
    `all ${count} files that it has synced since are there with their checksums`,
  );
  const more = await moved.ioErrors();
  claim(more.length === 0, `the guest's kernel saw no I/O error${more.join("\n")}`);
  await moved.shutdown();

  for (const host of [other, third, fourth]) {
    say(`${host.name}: kelpie disk check ${DISK}`);
    say(`  ${await host.running.check("disk", "check", DISK)}`);
  }
  await Promise.all([other, third, fourth].map((host) => host.stop()));
}

/**
 * Moves the guest to another host while it writes.
 *
 * @returns the guest, where it is now
 */
async function moveGuest(hosts: Hosts, guest: Guest, from: Host, to: Host): Promise<Guest> {
  say("starting another writer in the guest, which goes wherever the guest goes");
  await guest.check("mkdir /mnt/w");
  guest.start(`( ${writerScript(1)} ) >/tmp/said; touch /tmp/ended`);
  await saysMore(guest, 2);
  const uri = `unix:${hosts.work.path}/migration`;
  say(`${to.name}: qemu-system-x86_64 … -incoming ${uri}`);
  const target = await Guest.boot({
    disks: [{ socket: to.socket(DISK), queues: 2 }],
    cpus: 2,
    boot: "incoming",
    qemuArguments: ["-S", "-incoming", uri],
  });
  try {
    say(`${from.name}: (qemu) migrate ${uri}`);
    await guest.migrate(target, uri);
    await saysMore(target, 2);
    say(`${to.name}: kelpie disk lock list`);
    const locks = await to.running.check("disk", "lock", "list");
    for (const line of locks.split("\n")) say(`  │ ${line}`);
    claim(locks.includes(to.name), `the guest writes on ${to.name} now, and its disk came with it`);
    return target;
  } catch (error) {
    await target.kill();
    throw error;
  }
}

/** Waits until the second writer has said so many files more. */
async function saysMore(guest: Guest, files: number): Promise<void> {
  const count = async () => Number(await guest.check("touch /tmp/said; wc -l </tmp/said"));
  const before = await count();
  let now = before;
  await until(async () => (now = await count()) >= before + files, {
    timeoutMs: WRITER_TIMEOUT_MS,
    what: () => `the writer has said ${now - before} files, not ${files}`,
  });
}

/** What `kelpie status` says on a host, well or not. */
async function statusOf(host: Host): Promise<string> {
  return new TextDecoder().decode((await host.running.run("status")).stdout).trim();
}

/** Shows that. */
async function showStatus(host: Host): Promise<string> {
  const status = await statusOf(host);
  say(`${host.name}: kelpie status`);
  for (const line of status.split("\n")) say(`  │ ${line}`);
  return status;
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
async function written(
  writer: GuestJob,
  count: number,
  intervalMs = 200,
): Promise<Map<string, string>> {
  let said = new Map<string, string>();
  await until(async () => {
    said = parseWritten(await writer.output());
    return said.size >= count;
  }, {
    timeoutMs: WRITER_TIMEOUT_MS,
    intervalMs,
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
  await using hosts = await Hosts.make({ count: 4, capacity: CAPACITY });
  try {
    await Promise.race([demo(hosts), interrupted()]);
    say("the demo has shown what it claims");
    return 0;
  } catch (error) {
    console.error(`the demo FAILED: ${error instanceof Error ? error.message : error}`);
    return 1;
  }
}

if (import.meta.main) Deno.exit(await main());
