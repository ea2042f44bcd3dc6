/**
 * Linux guests in QEMU on disks of a real agent: what a user of Kelpie runs.
 *
 * A boot under TCG takes up to ten seconds, so one guest serves several checks.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { until } from "../guest/deadline.ts";
import { checkFiles, writeFiles, writerScript } from "../guest/files.ts";
import { Guest } from "../guest/guest.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import { bootSector } from "./boot_sector.ts";

const MIB = 1024 * 1024;

/** Bytes of data that a disk holds in the store. */
async function allocatedBytes(agent: AgentProcess, name: string): Promise<number> {
  using client = agent.client();
  return (await client.disk(name)).allocatedBytes;
}

/** All is well: in the guest's kernel, in the store, and with the agent. */
async function assertNoErrors(guest: Guest, agent: AgentProcess): Promise<void> {
  assertEquals(await guest.ioErrors(), []);
  assertEquals(agent.log.match(/^.* (?:warn|error) .*$/gm), null);
  using client = agent.client();
  const status = await client.status();
  assert(status.healthy, status.summary);
  for (const disk of status.disks) assertEquals(disk.counters.errors, 0, disk.name);
}

Deno.test("a guest uses all that its disks can do", async (test) => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "2G",
  });
  for (const name of ["web", "extra", "frozen"]) await agent.check("disk", "create", name, "256M");
  await using guest = await Guest.boot({
    disks: [
      { socket: agent.socket("web"), queues: 2 },
      { socket: agent.socket("extra") },
      { socket: agent.readOnlySocket("frozen") },
    ],
    cpus: 2,
    memoryAddableMiB: 512,
  });

  await test.step("it sees size, queues, blocks, cache and who may write", async () => {
    const facts: [command: string, output: string][] = [
      ["blockdev --getsize64 /dev/vda", `${256 * MIB}`],
      ["ls /sys/block/vda/mq | wc -l", "2"],
      ["cat /sys/block/vda/queue/logical_block_size", "512"],
      ["cat /sys/block/vda/queue/physical_block_size", "4096"],
      ["cat /sys/block/vda/cache_type", "write back"],
      ["cat /sys/block/vda/ro /sys/block/vdc/ro", "0\n1"],
      ["cat /sys/block/vda/serial", "kelpie-1"],
    ];
    for (const [command, output] of facts) assertEquals(await guest.check(command), output);
    assertEquals((await guest.run("dd if=/dev/zero of=/dev/vdc count=1 2>&1")).status, 1);
  });

  await test.step("it makes a file system, writes, syncs and reads back after a remount", async () => {
    await guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
    await writeFiles(guest, "a", 8);
    await checkFiles(guest, "a");
    const { stdout } = await agent.run("disk", "info", "web");
    assertMatch(new TextDecoder().decode(stdout), /in use by: +qemu-system-x86/);
  });

  await test.step("a write-through cache and requests of single sectors work", async () => {
    await guest.check("echo 'write through' >/sys/block/vda/cache_type");
    assertEquals(await guest.check("cat /sys/block/vda/cache_type"), "write through");
    await writeFiles(guest, "b", 2);
    await guest.check("echo 'write back' >/sys/block/vda/cache_type");
    await guest.check(`
      dd if=/dev/urandom of=/tmp/odd bs=512 count=1001 2>/dev/null
      dd if=/tmp/odd of=/dev/vdb bs=512 seek=3 oflag=direct 2>/dev/null && sync
      echo 3 >/proc/sys/vm/drop_caches
      dd if=/dev/vdb bs=512 skip=3 count=1001 iflag=direct 2>/dev/null | cmp - /tmp/odd`);
  });

  await test.step("discard gives the space back", async () => {
    const before = await allocatedBytes(agent, "web");
    await guest.check("rm -r /mnt/a /mnt/a.sums && sync && fstrim /mnt");
    const after = await allocatedBytes(agent, "web");
    assert(before - after >= 6 * MIB, `${before} bytes before, ${after} after`);
    await checkFiles(guest, "b");
  });

  await test.step("it sees at once that its disk has grown", async () => {
    await agent.check("disk", "resize", "web", "512M");
    await until(async () => await guest.check("blockdev --getsize64 /dev/vda") === `${512 * MIB}`, {
      timeoutMs: 20_000,
      what: () => "the new size in the guest",
    });
    await guest.check("dd if=/dev/urandom of=/dev/vda bs=1M seek=511 count=1 oflag=direct 2>&1");
    // Whoever only reads is told as well.
    await agent.check("disk", "resize", "frozen", "512M");
    await until(async () => await guest.check("blockdev --getsize64 /dev/vdc") === `${512 * MIB}`, {
      timeoutMs: 20_000,
      what: () => "the new size of the disk that is only read",
    });
  });

  await test.step("it sees that its disk has grown while it stood still", async () => {
    await guest.qmp("stop");
    await agent.check("disk", "resize", "web", "768M");
    await guest.qmp("cont");
    await until(async () => await guest.check("blockdev --getsize64 /dev/vda") === `${768 * MIB}`, {
      timeoutMs: 20_000,
      what: () => "the new size in the guest",
    });
    await guest.check("dd if=/dev/urandom of=/dev/vda bs=1M seek=767 count=1 oflag=direct 2>&1");
  });

  await test.step("memory is added while it writes, and is used", async () => {
    const copy = guest.start("while dd if=/dev/vda of=/dev/vdb bs=64k count=512 2>&1; do :; done");
    await guest.qmp("object-add", {
      "qom-type": "memory-backend-memfd",
      id: "more",
      size: 512 * MIB,
      share: true,
    });
    await guest.qmp("device_add", { driver: "pc-dimm", id: "dimm", memdev: "more" });
    const total = "awk '/MemTotal/ { print $2 }' /proc/meminfo";
    await until(async () => {
      await guest.run(
        "for m in /sys/devices/system/memory/memory*/state; do echo online >$m; done 2>/dev/null",
      );
      return Number(await guest.check(total)) > 512 * 1024;
    }, { timeoutMs: 30_000, what: () => "more memory in the guest" });
    await copy.kill();
    // New memory is taken before the old: it lies higher.
    await guest.check(`
      dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null
      dd if=/tmp/data of=/dev/vdb bs=1M oflag=direct 2>/dev/null
      [ "$(dd if=/dev/vdb bs=1M count=24 iflag=direct 2>/dev/null | md5sum)" = "$(md5sum </tmp/data)" ]`);
  });

  await test.step("a disk is unplugged and plugged in again", async () => {
    const sum = "dd if=/dev/vdb bs=1M count=16 iflag=direct 2>/dev/null | md5sum";
    const before = await guest.check(sum);
    await guest.qmp("device_del", { id: "disk1" });
    await guest.qmpEvent("DEVICE_DELETED", { matches: ({ data }) => data?.device === "disk1" });
    assertEquals((await guest.run("test -e /sys/block/vdb")).status, 1);
    using client = agent.client();
    await until(async () => !(await client.disk("extra")).sessions.some((one) => one.active), {
      timeoutMs: 20_000,
      what: () => "the disk is let go of",
    });
    await guest.qmp("device_add", {
      driver: "vhost-user-blk-pci",
      id: "disk1",
      chardev: "disk1-socket",
    });
    await until(async () => (await guest.run("test -e /sys/block/vdb/size")).status === 0, {
      timeoutMs: 20_000,
      what: () => "the disk in the guest",
    });
    assertEquals(await guest.check(sum), before);
  });

  await test.step("a reset in the middle of a write is survived", async () => {
    await assertNoErrors(guest, agent);
    guest.start("while dd if=/dev/urandom of=/mnt/junk bs=64k count=64; do :; done");
    await guest.reset();
    await guest.check("mount -t ext4 /dev/vda /mnt && rm -f /mnt/junk");
    await checkFiles(guest, "b");
  });

  await test.step("it shuts down, and the disks are free and whole", async () => {
    await assertNoErrors(guest, agent);
    await guest.shutdown();
    using client = agent.client();
    await until(async () => (await client.disks()).every((disk) => disk.sessions.length === 0), {
      timeoutMs: 20_000,
      what: () => "the disks are let go of",
    });
    assertMatch(await agent.check("disk", "check"), /^everything is good$/m);
    await agent.stop();
  });
});

Deno.test("an agent that is killed again and again under a writing guest costs it nothing but time", async () => {
  await using work = await WorkDirectory.make();
  const options = {
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "2G",
    // Past the page cache, writes take their time: more of them are under way when the agent dies.
    cache: "direct",
  } as const;
  let agent = await AgentProcess.start(options);
  try {
    await agent.check("disk", "create", "web", "512M");
    await using guest = await Guest.boot({
      disks: [{ socket: agent.socket("web"), queues: 2 }],
      cpus: 2,
    });
    await guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir /mnt/w");
    const writers = [1, 2, 3].map((writer) => guest.start(writerScript(writer)));
    // Requests of unlike sizes, many at a time and past the guest's own cache: they end in another order than they began.
    const others = [
      "dd if=/dev/zero of=/mnt/big bs=1M count=24 oflag=direct conv=notrunc",
      "dd if=/dev/vda of=/dev/null bs=4k count=500 iflag=direct",
      "dd if=/dev/vda of=/dev/null bs=256k count=50 skip=100 iflag=direct",
    ].map((command) => guest.start(`while ${command} 2>&1; do :; done; exit 77`));
    const spoken = async () =>
      (await Promise.all(writers.map((writer) => writer.output()))).join("");
    const count = async () => (await spoken()).split("\n").length;
    for (let kill = 0; kill < 2; kill++) {
      const before = await count();
      await until(async () => await count() > before + 6, {
        timeoutMs: 60_000,
        what: () => `the writers do not go on after kill ${kill}:\n${agent.log}`,
      });
      // A clean stop is for upgrades; the guest must not notice that one either.
      if (kill === 1) await agent.stop();
      else await agent.kill();
      await guest.check("echo alive");
      agent = await AgentProcess.start(options);
    }
    const before = await count();
    await until(async () => await count() > before + 6, {
      timeoutMs: 60_000,
      what: () => `the writers do not go on at the end:\n${agent.log}`,
    });
    await Promise.all([...writers, ...others].map((job) => job.kill()));
    for (const { done } of others) assertEquals((await done).status, 128 + 9);
    const sums = (await Promise.all(writers.map((writer) => writer.done)))
      .flatMap(({ output }) =>
        [...output.matchAll(/^[0-9a-f]{64} {2}w\/\S+$/gm)].map(([line]) => line)
      );
    assert(sums.length >= 30, `${sums.length} files`);
    await checkFiles(guest);
    await guest.check(`cd /mnt && sha256sum -c -s - <<'END'\n${sums.join("\n")}\nEND`);
    await assertNoErrors(guest, agent);
    await guest.shutdown();
    assertMatch(await agent.check("disk", "check"), /^everything is good$/m);
    await agent.stop();
  } finally {
    await agent.kill();
  }
});

Deno.test("a second QEMU on a disk waits until the first is gone, and finds what that one synced", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
  });
  await agent.check("disk", "create", "web", "128M");
  const disks = [{ socket: agent.socket("web") }];
  await using first = await Guest.boot({ disks });
  await first.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt");
  await writeFiles(first, "a", 4);

  const booting = Guest.boot({ disks, bootTimeoutMs: 90_000 });
  booting.catch(() => {}); // asked for below
  try {
    using client = agent.client();
    await until(
      async () => (await client.disk("web")).sessions.some((one) => one.waitingForLease),
      {
        timeoutMs: 60_000,
        what: () => "a QEMU that waits",
      },
    );
    await writeFiles(first, "b", 4);
    assertEquals(await first.ioErrors(), []);
    const { stdout, code } = await agent.run("status");
    assertEquals(code, 1);
    assertMatch(
      new TextDecoder().decode(stdout),
      /qemu-system-x86 \(pid \d+\) waits for the lease/,
    );
    // The plug is pulled under the first: as good a hand-over as any.
    first.start("dd if=/dev/urandom of=/mnt/junk bs=64k");
    await first.kill();
    await using second = await booting;
    await second.check("mount -t ext4 /dev/vda /mnt");
    await checkFiles(second, "a", "b");
    await assertNoErrors(second, agent);
    await second.shutdown();
  } finally {
    await booting.then((guest) => guest.kill(), () => {});
  }
  await agent.stop();
});

Deno.test("a guest that writes moves to another QEMU, and its disk goes with it", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
  });
  await agent.check("disk", "create", "web", "256M");
  const hardware = { disks: [{ socket: agent.socket("web"), queues: 2 }], cpus: 2 };
  await using source = await Guest.boot(hardware);
  await source.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir /mnt/w");
  source.start(`( ${writerScript(1)} ) >/tmp/said; touch /tmp/ended`);
  const linesAfter = async (guest: Guest, count: number) => {
    let lines = 0;
    await until(
      async () => (lines = Number(await guest.check("touch /tmp/said; wc -l </tmp/said"))) > count,
      {
        timeoutMs: 60_000,
        what: () => `${lines} files written, not ${count}`,
      },
    );
    return lines;
  };
  await linesAfter(source, 5);

  const uri = `unix:${work.path}/migration`;
  await using target = await Guest.boot({
    ...hardware,
    boot: "incoming",
    qemuArguments: ["-S", "-incoming", uri],
  });
  await source.migrate(target, uri);
  await source.kill();

  const moved = await linesAfter(target, 0);
  await linesAfter(target, moved + 5);
  await target.check("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
  await checkFiles(target);
  await target.check("cd /mnt && sha256sum -c -s /tmp/said");
  await assertNoErrors(target, agent);
  await target.shutdown();
  await agent.stop();
});

Deno.test("SeaBIOS boots a guest from its disk", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start({
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
  });
  await agent.check("disk", "create", "web", "1M");
  const said = "booted from a kelpie disk\n";
  const { code, stderr } = await agent.runWith({ stdin: bootSector(said) }, "disk", "write", "web");
  assertEquals(code, 0, stderr);
  await using guest = await Guest.boot({
    boot: "disk",
    disks: [{ socket: agent.socket("web"), properties: "bootindex=1" }],
  });
  await guest.waitConsole(/booted from a kelpie disk/, { timeoutMs: 30_000 });
  await guest.shutdown();
  await agent.stop();
});
