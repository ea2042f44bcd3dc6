/**
 * Device and driver on two threads, as they are in life: between asking for a kick and looking once more, and between offering
 * and looking whether a kick is wanted, lies a full fence on both sides, or both go to sleep.
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { DirtyLog } from "../../agent/vhost/dirty_log.ts";
import { GuestMemory } from "../../agent/vhost/guest_memory.ts";
import { DescriptorChain, Pop, VirtQueue } from "../../agent/vhost/queue.ts";
import type { Window } from "../../agent/platform/platform.ts";
import { MockHost } from "./mock_host.ts";
import type { Race } from "./queue_race_driver.ts";

const SIZE = 64;
/** With a plain store in place of the fence, one kick is lost in 30 000 rounds or so. */
const ROUNDS = 60_000;
/** A sleep of this many milliseconds with an entry in the ring means that the kick for it never came. */
const LOST_MS = 1000;

/** @returns how often the device slept */
async function race(eventIndex: boolean): Promise<number> {
  const memory = new SharedArrayBuffer(8192), control = new SharedArrayBuffer(16);
  // The types say that a window is not shared; guest memory is, whatever they say.
  const buffer = memory as unknown as ArrayBuffer;
  const window = {
    bytes: new Uint8Array(buffer),
    u16: new Uint16Array(buffer),
    u32: new Uint32Array(buffer),
  } as unknown as Window;
  const places = {
    descriptors: { window: 0, offset: 0, mapping: null },
    available: { window: 0, offset: SIZE * 16, mapping: null },
    used: { window: 0, offset: 4096, mapping: null },
  };
  for (let head = 0; head < SIZE; head++) window.u32[head * 4 + 2] = 1;
  const guestMemory = new GuestMemory(new MockHost(), [window]);
  const queue = new VirtQueue(0, { queueNeedsTurn() {} }, guestMemory, new DirtyLog([window]));
  queue.start({ ...places, size: SIZE, eventIndex, indirect: false, inflight: null }, 0);
  assertEquals(queue.enableKicks(), false);

  const driver = new Worker(import.meta.resolve("./queue_race_driver.ts"), { type: "module" });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  driver.onmessage = () => resolve();
  driver.onerror = (event) => reject(new Error(event.message));
  await promise;
  const told: Race = {
    ...{ memory, control, size: SIZE, eventIndex, rounds: ROUNDS },
    available: places.available.offset / 2,
    used: places.used.offset / 2,
  };
  driver.postMessage(told);

  const signals = new Int32Array(control);
  const chain = new DescriptorChain();
  let done = 0, sleeps = 0;
  try {
    for (;;) {
      const kicks = Atomics.load(signals, 0);
      queue.suppressKicks();
      for (; queue.pop(chain) === Pop.Chain; done++) queue.push(chain.head, 0);
      queue.publish();
      if (Atomics.load(signals, 1) !== 0) break;
      // As where a sleep ends because a request is done.
      if (done % 2 === 1) {
        if (queue.enableKicks()) continue;
        queue.dropKicks();
      }
      let found = false;
      for (let looks = done * 31 % 61; looks > 0 && !found; looks--) found = queue.hasAvailable;
      if (found || queue.enableKicks()) continue;
      sleeps++;
      const end = Atomics.wait(signals, 0, kicks, LOST_MS);
      assert(end !== "timed-out" || !queue.hasAvailable, `the kick for round ${done} is lost`);
    }
    assertEquals(done, ROUNDS);
    return sleeps;
  } finally {
    Atomics.store(signals, 1, 1);
    driver.terminate();
  }
}

for (const [what, eventIndex] of [["by event index", true], ["by flag", false]] as const) {
  Deno.test(`no kick is lost between two threads, asked for ${what}`, async () => {
    const sleeps = await race(eventIndex);
    assert(sleeps > 100, `the device slept ${sleeps} times`);
  });
}
