/**
 * A disk of three agents of which one's store has rotted, or holds whole blocks that are not what the others have: the command finds it,
 * has it put right, and afterwards the stores are the same.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import type { ComparisonReport } from "../../agent/http/backend.ts";
import { until } from "../guest/deadline.ts";
import { Hosts } from "./hosts.ts";
import { compareReplicas, forgetWrite, overwriteBlocks } from "./replicas.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
const DISK = "web";
const SIZE_BYTES = 64 * MIB;
const BLOCKS = 2048;
/** Blocks that rot. */
const ROTTEN = [17, 18, 19, 900, 1500, 2047];

/** A block with a number that is in no other one. */
function block(number: number): Uint8Array {
  const words = new Uint32Array(BLOCK / 4);
  for (let i = 0; i < words.length; i++) words[i] = number * 0x9e3779b1 + i;
  words[1] = 0x6b656c70;
  words[2] = number;
  return new Uint8Array(words.buffer);
}

/** Writes every block of the disk once. */
async function fill(guest: FrontEnd): Promise<void> {
  for (let i = 0; i < BLOCKS; i += 128) {
    const piece = new Uint8Array(128 * BLOCK);
    for (let k = 0; k < 128; k++) piece.set(block(i + k), k * BLOCK);
    await guest.write(i * BLOCK, piece);
  }
  await guest.flush();
}

/** Alters a byte of some blocks where they lie in a file; returns how many places were found. */
async function rot(path: string, numbers: readonly number[]): Promise<number> {
  using file = await Deno.open(path, { read: true, write: true });
  const piece = new Uint8Array(4 * MIB);
  let found = 0;
  for (let at = 0;; at += piece.length) {
    await file.seek(at, Deno.SeekMode.Start);
    const count = await file.read(piece);
    if (count === null) return found;
    for (let offset = 0; offset + BLOCK <= count; offset += BLOCK) {
      const words = new Uint32Array(piece.buffer, offset, 3);
      if (words[1] !== 0x6b656c70 || !numbers.includes(words[2])) continue;
      await file.seek(at + offset + 100, Deno.SeekMode.Start);
      await file.write(Uint8Array.of(piece[offset + 100] ^ 0x40));
      found++;
    }
    if (count < piece.length) return found;
  }
}

Deno.test("kelpie disk check finds what has rotted in one store, and has it healed", async (t) => {
  await using hosts = await Hosts.make({ scrubRate: "0" });
  await hosts.startAll();
  const [here, there, rotten] = hosts.list;
  using client = here.running.client();
  await client.createDisk({ name: DISK, sizeBytes: SIZE_BYTES });
  await hosts.untilWhole();
  await until(() => Deno.stat(there.socket(DISK)).then(() => true, () => false), {
    timeoutMs: 60_000,
    what: () => "the other host has no socket for the disk",
  });
  const guest = await FrontEnd.connect({ socket: there.socket(DISK) });
  const store = `${rotten.dataDir}/kelpie.store`;
  const report = async (...words: string[]): Promise<ComparisonReport & { code: number }> => {
    const { code, stdout } = await here.running.run("disk", "check", "--json", ...words);
    return { code, ...JSON.parse(new TextDecoder().decode(stdout)) };
  };
  try {
    await fill(guest);

    await t.step("all is good", async () => {
      const startMs = performance.now();
      const { code, good, disks: [disk] } = await report(DISK);
      const seconds = (performance.now() - startMs) / 1000;
      assertEquals([code, good], [0, true]);
      assertEquals([disk.verifiedBlocks, disk.comparedChunks], [3 * BLOCKS, disk.chunks]);
      const mib = 3 * BLOCKS * BLOCK / MIB;
      console.log(`      ${mib} MiB of three replicas in ${seconds.toFixed(2)} s`);
      assertMatch(await here.running.check("disk", "check"), /^everything is good$/m);
    });

    await t.step("what has rotted is reported, and left alone if that is asked for", async () => {
      assertEquals(await rot(store, ROTTEN), ROTTEN.length);
      const { code, disks: [disk], blocks, unchecked } = await report("--no-repair");
      assertEquals([code, disk.damagedBlocks, disk.repairedBlocks], [1, ROTTEN.length, 0]);
      assertEquals(unchecked, []);
      assertEquals(
        blocks.map(({ kind, offsetBytes, nodes }) => [kind, offsetBytes / BLOCK, ...nodes])
          .sort(([, a], [, b]) => Number(a) - Number(b)),
        ROTTEN.map((number) => ["damaged", number, rotten.name]),
      );
      using other = rotten.running.client();
      const { damage } = await other.store();
      assertEquals(damage.length, ROTTEN.length, "nothing was healed");
    });

    await t.step("it is healed", async () => {
      const { code, good, disks: [disk] } = await report(DISK);
      assertEquals([code, good, disk.damagedBlocks], [0, true, ROTTEN.length]);
      assertEquals(disk.repairedBlocks, ROTTEN.length);
      using other = rotten.running.client();
      assertEquals((await other.store()).damage, []);
    });

    await t.step("it is healed, while a guest writes", async () => {
      assertEquals(await rot(store, [70, 901, 1501]), 3);
      let isOver = false;
      const writing = (async () => {
        for (let i = 0; !isOver; i++) await guest.write((i % 64) * BLOCK, block(i % 64));
      })();
      const { code, good, disks: [disk] } = await report(DISK);
      isOver = true;
      await writing;
      // The cleaner, which the guest keeps busy, may have come upon them first.
      assertEquals([code, good, disk.damagedBlocks], [0, true, disk.repairedBlocks]);
    });

    await t.step("a host that is away is named", async () => {
      await rotten.kill();
      await until(
        async () => (await client.nodes()).some(({ state }) => state === "down"),
        { timeoutMs: 60_000, what: () => "nobody notices that a host is dead" },
      );
      const { code, disks: [disk], unchecked } = await report(DISK);
      assertEquals([code, disk.uncheckedChunks], [1, disk.chunks]);
      assertEquals(unchecked.map(({ reason }) => reason), ["it is not up"]);
      await rotten.start();
      await hosts.untilWhole();
      assertEquals((await report(DISK)).code, 0);
    });

    await t.step("the stores are the same", async () => {
      await guest.close();
      for (const host of hosts.list) await host.stop();
      const paths = hosts.list.map((host) => `${host.dataDir}/kelpie.store`);
      const compared = compareReplicas(paths);
      assertEquals(compared.blocks, BLOCKS);
    });
  } finally {
    guest.abort();
  }
});

Deno.test("kelpie disk check settles what differs by more than half, or by who is preferred, under a writing guest", async (t) => {
  await using hosts = await Hosts.make({ scrubRate: "0" });
  await hosts.startAll();
  const [here, there, third] = hosts.list;
  using client = here.running.client();
  await client.createDisk({ name: DISK, sizeBytes: SIZE_BYTES });
  await hosts.untilWhole();
  const guest = await FrontEnd.connect({ socket: here.socket(DISK) });
  const report = async (...words: string[]): Promise<ComparisonReport & { code: number }> => {
    const { code, stdout } = await here.running.run("disk", "check", "--json", DISK, ...words);
    return { code, ...JSON.parse(new TextDecoder().decode(stdout)) };
  };
  /** Its agent ends, its blocks get other numbers, and it is back in sync: by the stamps nothing has changed. */
  const overwrite = async (host: typeof here, numbers: readonly number[], by: number) => {
    await host.stop();
    const blocks = new Map(numbers.map((number) => [number, block(number + by)]));
    await overwriteBlocks(host.dataDir, blocks);
    await host.start();
    await hosts.untilWhole();
  };
  const counts = ({ disks: [disk], blocks, unchecked }: ComparisonReport) => {
    assertEquals([disk.damagedBlocks, disk.laggingChunks, unchecked], [0, 0, []]);
    return [disk.differingBlocks, disk.settledBlocks, blocks.length];
  };
  const odd = [3, 17, 18, 500, 1023];
  try {
    await fill(guest);

    await t.step("two of three are right", async () => {
      await overwrite(third, odd, BLOCKS);
      const found = await report("--no-repair");
      assertEquals([found.code, ...counts(found)], [1, odd.length, 0, odd.length]);
      const places = found.blocks.map(({ offsetBytes }) => offsetBytes / BLOCK);
      assertEquals(places.sort((a, b) => a - b), odd);
      for (const { nodes, contents } of found.blocks) {
        const of = (host: typeof here) => contents[nodes.indexOf(host.name)];
        assertEquals([of(here) === of(there), of(here) === of(third)], [true, false]);
      }
      let isOver = false;
      const writing = (async () => {
        // One of the odd ones among others, again and again.
        for (let i = 0; !isOver; i++) {
          await guest.write((3 + i % 9) * BLOCK, block(3 + i % 9));
        }
      })();
      const settled = await report();
      isOver = true;
      await writing;
      const [differing, same, left] = counts(settled);
      assertEquals([settled.code, settled.good, left, same], [0, true, 0, differing]);
      assertEquals(counts(await report()), [0, 0, 0]);
      assertMatch(third.log, /a block that differed from what counts was replaced/);
    });

    await t.step("all three differ, and one is preferred", async () => {
      await overwrite(third, odd, BLOCKS);
      await overwrite(there, odd, 2 * BLOCKS);
      for (let i = 0; i < 2; i++) {
        const found = await report();
        assertEquals([found.code, ...counts(found)], [1, odd.length, 0, odd.length]);
        assertMatch(found.blocks[0].reason, /no content is on more than half/);
      }
      const { code, stderr } = await here.running.run("disk", "check", DISK, "--prefer", here.name);
      assertEquals(code, 64);
      assertMatch(
        stderr,
        /will not overwrite replicas of disk web by what node host1 has/,
      );
      const settled = await report("--prefer", here.name, "--yes");
      assertEquals([settled.code, ...counts(settled)], [0, odd.length, odd.length, 0]);
    });

    await t.step("one is in sync and lacks a write", async () => {
      await guest.write(odd[1] * BLOCK, block(7777));
      await guest.write(odd[1] * BLOCK, block(odd[1]));
      // It is back before anybody notices that it was away: so it stays in sync, with the page cache that it had.
      for (const host of [here, there]) host.freeze();
      await third.kill();
      await forgetWrite(third.dataDir, odd[1], block(7777));
      const started = third.start();
      // However long a program takes to start here: the others see no time in which nobody is there.
      await until(() => third.cluster().then(() => true, () => false), {
        timeoutMs: 60_000,
        what: () => `${third.name} does not begin:\n${third.log}`,
      });
      for (const host of [here, there]) host.thaw();
      await started;
      await hosts.untilWhole();
      const found = await report("--no-repair");
      assertEquals([found.code, found.disks[0].laggingChunks, found.blocks], [1, 1, []]);
      const [{ reason, nodes }] = found.unchecked;
      assertEquals([reason, nodes], ["it lacks writes that others have", [third.name]]);
      const { code, good, disks: [disk] } = await report();
      assertEquals([code, good, disk.laggingChunks, disk.caughtUpChunks], [0, true, 1, 1]);
      assertMatch(third.log, /a chunk that lacked writes was copied from another replica/);
      assertEquals(counts(await report()), [0, 0, 0]);
    });

    await t.step("what guests read is what was written, and the stores are the same", async () => {
      const bytes = new Uint8Array(BLOCK);
      for (const number of odd) {
        await guest.read(number * BLOCK, bytes);
        assertEquals(bytes, block(number));
      }
      await guest.close();
      for (const host of hosts.list) await host.stop();
      const paths = hosts.list.map((host) => `${host.dataDir}/kelpie.store`);
      assertEquals(compareReplicas(paths).blocks, BLOCKS);
    });
  } finally {
    guest.abort();
  }
});
