import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { Window } from "../../agent/platform/platform.ts";
import {
  InflightArea,
  inflightBytes,
  InflightQueue,
  regionBytes,
} from "../../agent/vhost/inflight.ts";

function window(sizeBytes: number): Window {
  const buffer = new ArrayBuffer(sizeBytes);
  return {
    index: 0,
    bytes: new Uint8Array(buffer),
    u16: new Uint16Array(buffer),
    u32: new Uint32Array(buffer),
    kernel: null!,
  };
}

function hex(data: Uint8Array): string {
  return [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

Deno.test("the area is laid out as the specification draws it", () => {
  assertEquals(regionBytes(128), 2112, "16 + 128 × 16 = 2064, rounded up to 64");
  assertEquals(inflightBytes(2, 4), 2 * 128 + 64);
  const memory = window(1024);
  const area = new InflightArea(
    memory,
    { window: 0, offset: 64, length: inflightBytes(2, 4) },
    2,
    4,
  );
  const queue = area.queue(1, 4)!;
  assertEquals(queue.recover(0x1234, 4, new Uint16Array(4)), 0);
  queue.taken(2);
  queue.taken(0);
  queue.used(2);
  const at = 64 + 128;
  assertEquals(
    hex(memory.bytes.subarray(at, at + 80)),
    // features, version, descriptors, last batch head, used idx
    "0000000000000000" + "0100" + "0400" + "0200" + "3412" +
      // 0: in flight, second
      "01" + "0000000000" + "0000" + "0100000000000000" +
      "00".repeat(16) +
      // 2: in flight still, first, alone in the batch (next is what last batch head was)
      "01" + "0000000000" + "0000" + "0000000000000000" +
      "00".repeat(16),
  );
  queue.published(Uint16Array.of(2), 1, 0x1235);
  assertEquals(hex(memory.bytes.subarray(at + 8, at + 16)), "01000400" + "0200" + "3512");
  assertEquals(memory.bytes[at + 16 + 2 * 16], 0);
  assertEquals(hex(memory.bytes.subarray(64, 128)), "00".repeat(64), "the other queue's region");
});

Deno.test("an area has no region for a queue it was not made for", () => {
  const area = new InflightArea(window(1024), { window: 0, offset: 0, length: 512 }, 2, 4);
  assert(area.queue(1, 4) !== null);
  assertEquals(area.queue(2, 4), null);
  assertEquals(area.queue(0, 8), null);
});

Deno.test("device state survives; rubbish in its place is no state", () => {
  const memory = window(1024);
  const piece = { window: 0, offset: 0, length: inflightBytes(1, 8) };
  const area = new InflightArea(memory, piece, 1, 8);
  assertEquals(area.loadState(), -1);
  for (const value of [0, 1, 0xffff_ffff]) {
    area.saveState(value);
    assertEquals(new InflightArea(memory, piece, 1, 8).loadState(), value);
  }
  memory.bytes[regionBytes(8) + 12] ^= 1;
  assertEquals(area.loadState(), -1);
  // An area of another back end may have no room for it.
  const small = new InflightArea(memory, { ...piece, length: regionBytes(8) }, 1, 8);
  small.saveState(1);
  assertEquals(small.loadState(), -1);
});

/** Thrown at the store before which the process dies. */
class Killed extends Error {}

/** Views that let only so many stores through. */
function mortal(memory: Window, stores: number): Window {
  let left = stores;
  const guard = <T extends Uint8Array | Uint16Array | Uint32Array>(view: T): T =>
    new Proxy(view, {
      get: (target, key) => {
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
      set: (target, key, value) => {
        if (left-- <= 0) throw new Killed();
        return Reflect.set(target, key, value, target);
      },
    });
  return {
    ...memory,
    bytes: guard(memory.bytes),
    u16: guard(memory.u16),
    u32: guard(memory.u32),
  };
}

Deno.test("killed between any two stores, nothing is lost and nothing used is done again", () => {
  const size = 8;
  let kills = 0;
  for (let seed = 0; seed < 25; seed++) {
    for (let stores = 0;; stores++) {
      const random = new Prng(seed);
      const memory = window(4096);
      const heads = new Uint16Array(size);
      new InflightQueue(memory, 0, size).recover(0xfffa, size, heads);
      const queue = new InflightQueue(mortal(memory, stores), 0, size);
      /** The used ring, as the driver sees it. */
      let usedIdx = 0xfffa;
      const taken: number[] = [];
      const free = random.shuffle([...Array(size).keys()]);
      /** Taken, but the entry was not marked: the driver's entry in the available ring still counts. */
      let unmarked = -1;
      let isKilled = false;
      try {
        // The same start as after a first recovery, through the views that may die.
        queue.recover(0xfffa, size, heads);
        for (let step = 0; step < 12; step++) {
          for (let i = random.below(4); i > 0 && free.length > 0; i--) {
            const head = free.shift()!;
            unmarked = head;
            queue.taken(head);
            unmarked = -1;
            taken.push(head);
          }
          const batch: number[] = [];
          for (let i = random.below(4); i > 0 && taken.length > batch.length; i--) {
            const head = random.pick(taken.filter((candidate) => !batch.includes(candidate)));
            queue.used(head);
            batch.push(head);
          }
          if (batch.length === 0) continue;
          usedIdx = (usedIdx + batch.length) & 0xffff;
          for (const head of batch) taken.splice(taken.indexOf(head), 1);
          queue.published(Uint16Array.from(batch), batch.length, usedIdx);
          free.push(...batch);
        }
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
        isKilled = true;
      }
      const next = new InflightQueue(memory, 0, size);
      const count = next.recover(usedIdx, size, heads);
      const found = [...heads.subarray(0, count)];
      // The mark is the last store of `taken`: either it was made, or the entry is still to be taken.
      const expected = found.includes(unmarked) ? [...taken, unmarked] : taken;
      assertEquals(found, expected, `seed ${seed}, killed before store ${stores}`);
      // A second death right after the recovery changes nothing.
      const again = new InflightQueue(memory, 0, size).recover(usedIdx, size, heads);
      assertEquals([...heads.subarray(0, again)], expected);
      if (!isKilled) break;
      kills++;
    }
  }
  assert(kills > 1000, `${kills} kills`);
});

Deno.test("whatever the area holds, recovery stays within it and within the queue", () => {
  const random = new Prng(11);
  for (let round = 0; round < 300; round++) {
    const memory = window(regionBytes(16) + 128);
    random.fill(memory.bytes);
    const guard = memory.bytes.slice(0, 64);
    const tail = memory.bytes.slice(64 + regionBytes(16));
    if (random.chance(0.7)) memory.u16[32 + 4] = 1;
    const heads = new Uint16Array(16);
    const queue = new InflightQueue(memory, 64, 16);
    const count = queue.recover(random.below(65536), 8, heads);
    const found = [...heads.subarray(0, count)];
    assert(count <= 8);
    assertEquals(new Set(found).size, count);
    for (const head of found) assert(head < 8);
    for (let i = 0; i < 8; i++) queue.taken(i);
    assertEquals(memory.bytes.slice(0, 64), guard);
    assertEquals(memory.bytes.slice(64 + regionBytes(16)), tail);
  }
});
