/**
 * The harness' own test: a guest on `qemu-storage-daemon`, with nothing of Kelpie in it. Where it
 * fails, the machine or the harness is at fault, and no other guest test means anything.
 *
 * @module
 */

import assert from "node:assert/strict";
import { until, within } from "./deadline.ts";
import { Guest } from "./guest.ts";
import { StorageDaemon } from "./storage_daemon.ts";

const MIB = 1024 * 1024;

/** Runs `test` with a directory of its own, removed afterwards. */
async function inTempDir(test: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "kelpie-test-" });
  try {
    await test(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** A raw image with a daemon that serves it; paths in `dir`. */
async function serveImage(dir: string, sizeBytes: number, queues = 1): Promise<{
  daemon: StorageDaemon;
  socket: string;
}> {
  const [file, socket] = [`${dir}/disk.raw`, `${dir}/disk.sock`];
  await Deno.writeFile(file, new Uint8Array());
  await Deno.truncate(file, sizeBytes);
  return { daemon: await StorageDaemon.start({ file, socket, queues }), socket };
}

Deno.test("a guest makes a file system, writes, syncs and reads back after a remount", async () => {
  await inTempDir(async (dir) => {
    const { daemon, socket } = await serveImage(dir, 64 * MIB, 2);
    await using _daemon = daemon;
    await using guest = await Guest.boot({ disks: [{ socket, queues: 2 }], cpus: 2 });

    assert.equal(await guest.check("blockdev --getsize64 /dev/vda"), `${64 * MIB}`);
    assert.equal(await guest.check("ls /sys/block/vda/mq | wc -l"), "2");
    await guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
    await guest.check("dd if=/dev/urandom of=/mnt/data bs=64k count=64 2>&1 && sync");
    const written = await guest.check("md5sum </mnt/data");

    await guest.check("umount /mnt && echo 3 >/proc/sys/vm/drop_caches");
    await guest.check("e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt");
    assert.equal(await guest.check("md5sum </mnt/data"), written);
    await guest.check("fstrim /mnt");

    assert.deepEqual(await guest.ioErrors(), []);
    await guest.shutdown();
    assert.match(guest.console, /Power down/);
  });
});

Deno.test("a guest runs commands side by side, tells how they end, and survives a reset", async () => {
  await using guest = await Guest.boot();
  const job = guest.start("echo begun; sleep 1000");
  assert.deepEqual(await guest.run("echo out; echo err >&2; exit 3"), {
    status: 3,
    output: "out\nerr\n",
  });
  let said = "";
  await until(async () => (said = await job.output()) === "begun", {
    timeoutMs: 10_000,
    what: () => `it has said "${said}"`,
  });
  await job.kill();
  assert.equal((await job.done).status, 128 + 9);

  const big = await guest.run("seq 1 5000; printf '\\036x 0 3\\n'");
  assert.equal(big.output.split("\n").length, 5002);
  await assert.rejects(guest.run("sleep 1000", { timeoutMs: 100 }), /sleep 1000.*no result/);
  await assert.rejects(guest.check("ls /none"), /status 1[^]*No such file/);
  await assert.rejects(guest.qmp("no-such-command"), /QMP no-such-command/);

  await guest.run("touch /tmp/before");
  const mark = guest.console.length;
  await guest.reset();
  assert.equal(await guest.check("ls /tmp"), "");
  await guest.check("echo '<3>hello from the guest' >/dev/kmsg");
  await guest.waitConsole(/hello from the guest/, { from: mark, timeoutMs: 5000 });
});

Deno.test("a command arrives whole in a guest while others end there", async () => {
  await using guest = await Guest.boot();
  // The guest's shell reads byte by byte: a long line takes long, and something ends in every part of it.
  const padding = `# ${"x".repeat(2000)}`;
  for (let round = 0; round < 5; round++) {
    const ending = Array.from({ length: 20 }, (_, i) => guest.start(`sleep 0.0${i % 10}`).done);
    for (let i = 0; i < 4; i++) {
      assert.equal(await guest.check(`echo ${i} ${padding}`, { timeoutMs: 60_000 }), `${i}`);
    }
    const ended = await within(Promise.all(ending), 60_000, () => "a command has not arrived");
    for (const { status } of ended) assert.equal(status, 0);
  }
});

Deno.test("disk errors in the kernel's log are found", async () => {
  await inTempDir(async (dir) => {
    const { daemon, socket } = await serveImage(dir, MIB);
    await using _daemon = daemon;
    await using guest = await Guest.boot({ disks: [{ socket }] });
    await guest.check(
      "echo '<3>Buffer I/O error on dev vda, logical block 0, lost async page write' >/dev/kmsg",
    );
    assert.equal((await guest.ioErrors()).length, 1);
  });
});

Deno.test("SeaBIOS boots a guest from its disk", async () => {
  await inTempDir(async (dir) => {
    const { daemon, socket } = await serveImage(dir, MIB);
    await using _daemon = daemon;
    await Deno.writeFile(`${dir}/disk.raw`, bootSector("booted from the disk\n"));
    await Deno.truncate(`${dir}/disk.raw`, MIB);
    await using guest = await Guest.boot({
      boot: "disk",
      disks: [{ socket, properties: "bootindex=1" }],
    });
    await guest.waitConsole(/booted from the disk/, { timeoutMs: 30_000 });
    await guest.shutdown();
  });
});

Deno.test("a guest that cannot start says why and leaves nothing behind", async () => {
  const before = guestDirs();
  await assert.rejects(Guest.boot({ qemuArguments: ["-no-such-option"] }), /no-such-option/);
  // Other guests come and go meanwhile; what stays is this one's.
  await until(() => guestDirs().every((name) => before.includes(name)), {
    timeoutMs: 60_000,
    what: () => `${guestDirs()} is left, ${before} was there before`,
  });
});

Deno.test("the end of a guest fails what waits for it", async () => {
  const guest = await Guest.boot();
  const job = guest.start("sleep 1000");
  const waiting = assert.rejects(guest.waitConsole(/never/), /QEMU has ended/);
  await guest.kill();
  await waiting;
  await assert.rejects(job.done, /ended/);
  await assert.rejects(guest.run("true"), /ended/);
});

/** Temporary directories of guests of this process and others. */
function guestDirs(): string[] {
  const tmp = Deno.env.get("TMPDIR") ?? "/tmp";
  return [...Deno.readDirSync(tmp)].map((entry) => entry.name)
    .filter((name) => name.startsWith("kelpie-guest-"));
}

/** A boot sector that writes `text` to the first serial port and halts. */
function bootSector(text: string): Uint8Array {
  const code = [
    ...[0x31, 0xc0, 0x8e, 0xd8], //       xor ax, ax; mov ds, ax
    ...[0xbe, 0x15, 0x7c], //             mov si, text
    ...[0xba, 0xf8, 0x03], //             mov dx, 0x3f8
    ...[0xac, 0x84, 0xc0, 0x74, 0x03], // next: lodsb; test al, al; jz halt
    ...[0xee, 0xeb, 0xf8], //             out dx, al; jmp next
    ...[0xf4, 0xeb, 0xfd], //             halt: hlt; jmp halt
  ]; //                                   text:
  const sector = new Uint8Array(512);
  sector.set(code);
  sector.set(new TextEncoder().encode(text), code.length);
  sector.set([0x55, 0xaa], 510);
  return sector;
}
