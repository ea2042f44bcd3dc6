import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { DirtyLog } from "../../agent/vhost/dirty_log.ts";
import { GuestMemory, type Place } from "../../agent/vhost/guest_memory.ts";
import { InflightArea, inflightBytes } from "../../agent/vhost/inflight.ts";
import {
  CHAIN_DESCRIPTORS_MAX,
  DescriptorChain,
  faultText,
  Pop,
  ringBytes,
  RingFault,
  VirtQueue,
} from "../../agent/vhost/queue.ts";
import { Guest, GuestQueue, type GuestRegion } from "./mock_driver.ts";
import { MockHost } from "./mock_host.ts";

const BASE = 0x10_0000;
const BUFFERS = BASE + 0x8000;

interface Options {
  readonly size?: number;
  readonly eventIndex?: boolean;
  readonly indirect?: boolean;
  readonly pieceBytes?: number;
}

/** A queue on its own: ring at BASE, buffers from BUFFERS on. */
function create(options: Options = {}) {
  const { size = 8, eventIndex = true, indirect = true, pieceBytes = Infinity } = options;
  const host = new MockHost();
  host.pieceBytes = pieceBytes;
  const memory = new GuestMemory(host, host.windows);
  const file = host.createFile(0x40000);
  const region: GuestRegion = {
    guestAddress: BASE,
    userAddress: BASE,
    sizeBytes: 0x40000,
    file,
    fileOffset: 0,
  };
  memory.add(region, host.openFile(file));
  const guest = new Guest(host.bytes, [region]);
  const driver = new GuestQueue(guest, 0, size, BASE);
  driver.eventIndex = eventIndex;
  const log = new DirtyLog(host.windows);
  let turns = 0;
  const queue = new VirtQueue(0, { queueNeedsTurn: () => turns++ }, memory, log);
  const place = (address: number): Place => ({
    window: 0,
    offset: guest.at(address),
    mapping: null,
  });
  const setup = {
    size,
    descriptors: place(driver.descriptors),
    available: place(driver.available),
    used: place(driver.used),
    eventIndex,
    indirect,
    inflight: null,
  };
  const start = (base = 0) => queue.start(setup, base);
  start();
  return {
    host,
    memory,
    guest,
    driver,
    queue,
    log,
    chain: new DescriptorChain(),
    setup,
    start,
    turns: () => turns,
  };
}

const read = (address: number, length: number) => ({ address, length, write: false });
const write = (address: number, length: number) => ({ address, length, write: true });

Deno.test("pop() copies a chain: addresses, lengths, what is readable and what writable", () => {
  for (const table of [-1, BUFFERS, BUFFERS + 4, BUFFERS + 2, BUFFERS + 1]) {
    const { driver, queue, chain } = create();
    const head = driver.add(
      [read(1, 16), read(2 ** 40, 512), write(3, 0xffff_ffff), write(4, 0)],
      table,
    );
    assertEquals(queue.pop(chain), Pop.Chain);
    assertEquals(chain.head, head);
    assertEquals(chain.count, 4);
    assertEquals(chain.readableCount, 2);
    assertEquals([...chain.addresses.subarray(0, 4)], [1, 2 ** 40, 3, 4]);
    assertEquals([...chain.lengths.subarray(0, 4)], [16, 512, 0xffff_ffff, 0]);
    assertEquals(chain.readableBytes, 528);
    assertEquals(chain.writableBytes, 0xffff_ffff);
    assertEquals(queue.inFlightCount, 1);
    assertEquals(queue.pop(chain), Pop.Empty);
  }
});

Deno.test("pop() takes direct descriptors in front of an indirect one", () => {
  const { driver, queue, chain } = create();
  driver.add([read(1, 16), read(2, 512), write(3, 1)], BUFFERS, 2);
  assertEquals(queue.pop(chain), Pop.Chain);
  assertEquals([...chain.addresses.subarray(0, chain.count)], [1, 2, 3]);
});

Deno.test("pop() reads an indirect table that lies across two pieces", () => {
  const { driver, queue, chain } = create({ pieceBytes: 0x18000 });
  const seam = BASE + 0x18000;
  for (const lead of [8, 16, 24, 31]) {
    driver.add([read(1, 16), read(2, 512), write(3, 1)], seam - lead);
    assertEquals(queue.pop(chain), Pop.Chain);
    assertEquals([...chain.addresses.subarray(0, chain.count)], [1, 2, 3]);
  }
});

Deno.test("the copy does not change when the guest changes its descriptors afterwards", () => {
  const { driver, queue, chain } = create();
  const head = driver.add([read(1, 16), write(3, 1)]);
  assertEquals(queue.pop(chain), Pop.Chain);
  driver.setDescriptor(head, 0xdead, 0xffff, 2);
  assertEquals(chain.addresses[0], 1);
  assertEquals(chain.readableCount, 1);
});

/** What no driver may do, and what is said of it. */
const FAULTS: {
  what: string;
  fault: RingFault;
  options?: Options;
  make: (parts: ReturnType<typeof create>) => void;
}[] = [
  {
    what: "the available index jumps by more than the size",
    fault: RingFault.AvailableJump,
    make: ({ driver, guest }) => guest.set16(driver.available + 2, 9),
  },
  {
    what: "the available index goes backwards",
    fault: RingFault.AvailableJump,
    make: ({ driver, guest }) => guest.set16(driver.available + 2, 0xffff),
  },
  {
    what: "a head is the queue's size",
    fault: RingFault.HeadRange,
    make: ({ driver }) => driver.offer(8),
  },
  {
    what: "a head is absurd",
    fault: RingFault.HeadRange,
    make: ({ driver }) => driver.offer(0xffff),
  },
  {
    what: "a next is outside the table",
    fault: RingFault.NextRange,
    make: ({ driver }) => {
      driver.setDescriptor(0, 1, 16, 1, 8);
      driver.offer(0);
    },
  },
  {
    what: "a chain is a circle of two",
    fault: RingFault.ChainLoop,
    make: ({ driver }) => {
      driver.setDescriptor(0, 1, 16, 1, 1);
      driver.setDescriptor(1, 1, 16, 1, 0);
      driver.offer(0);
    },
  },
  {
    what: "a descriptor is its own next",
    fault: RingFault.ChainLoop,
    make: ({ driver }) => {
      driver.setDescriptor(3, 1, 16, 1 | 2, 3);
      driver.offer(3);
    },
  },
  {
    what: "an indirect table is a circle",
    fault: RingFault.ChainLoop,
    make: ({ driver }) => {
      driver.writeDescriptor(BUFFERS, 1, 16, 1, 1);
      driver.writeDescriptor(BUFFERS + 16, 1, 16, 1, 0);
      driver.setDescriptor(0, BUFFERS, 32, 4);
      driver.offer(0);
    },
  },
  {
    what: "a next within an indirect table is outside it",
    fault: RingFault.NextRange,
    make: ({ driver }) => {
      driver.writeDescriptor(BUFFERS, 1, 16, 1, 2);
      driver.setDescriptor(0, BUFFERS, 32, 4);
      driver.offer(0);
    },
  },
  {
    what: "an indirect table is in an indirect table",
    fault: RingFault.IndirectNested,
    make: ({ driver }) => {
      driver.writeDescriptor(BUFFERS, BUFFERS, 16, 4);
      driver.setDescriptor(0, BUFFERS, 16, 4);
      driver.offer(0);
    },
  },
  {
    what: "an indirect descriptor comes without the feature",
    fault: RingFault.IndirectOff,
    options: { indirect: false },
    make: ({ driver }) => driver.add([read(1, 16), write(2, 1)], BUFFERS),
  },
  {
    what: "an indirect descriptor has a next",
    fault: RingFault.IndirectWithNext,
    make: ({ driver }) => {
      driver.setDescriptor(0, BUFFERS, 16, 4 | 1, 1);
      driver.offer(0);
    },
  },
  ...[0, 8, 17, CHAIN_DESCRIPTORS_MAX * 16 + 16, 0xffff_fff0].map((length) => ({
    what: `an indirect table has ${length} bytes`,
    fault: RingFault.IndirectSize,
    make: ({ driver }: ReturnType<typeof create>) => {
      driver.setDescriptor(0, BUFFERS, length, 4);
      driver.offer(0);
    },
  })),
  ...[0, BASE - 16, BASE + 0x40000 - 16, 2 ** 52, 2 ** 63].map((address) => ({
    what: `an indirect table is at 0x${address.toString(16)}, not wholly in memory`,
    fault: RingFault.IndirectAddress,
    make: ({ driver }: ReturnType<typeof create>) => {
      driver.setDescriptor(0, address, 32, 4);
      driver.offer(0);
    },
  })),
  {
    what: "something readable follows something writable",
    fault: RingFault.WritableBeforeReadable,
    make: ({ driver }) => driver.add([read(1, 16), write(2, 1), read(3, 1)]),
  },
  {
    what: "a chain is longer than any may be, by way of an indirect table",
    fault: RingFault.ChainLong,
    make: ({ driver }) => {
      for (let i = 0; i < CHAIN_DESCRIPTORS_MAX; i++) {
        driver.writeDescriptor(
          BUFFERS + i * 16,
          1,
          16,
          i + 1 < CHAIN_DESCRIPTORS_MAX ? 1 : 0,
          i + 1,
        );
      }
      driver.setDescriptor(0, 1, 16, 1, 1);
      driver.setDescriptor(1, BUFFERS, CHAIN_DESCRIPTORS_MAX * 16, 4);
      driver.offer(0);
    },
  },
];

for (const { what, fault, options, make } of FAULTS) {
  Deno.test(`pop() reports when ${what}, again and again, and takes nothing`, () => {
    const parts = create(options);
    make(parts);
    for (let i = 0; i < 3; i++) {
      assertEquals(faultText(parts.queue.pop(parts.chain)), faultText(fault));
      assertEquals(parts.queue.inFlightCount, 0);
      assertEquals(parts.queue.availableIndex, 0);
    }
  });
}

Deno.test("pop() refuses a head that is in flight, until it was given back", () => {
  const { driver, queue, chain } = create();
  const head = driver.add([read(1, 16), write(2, 1)]);
  assertEquals(queue.pop(chain), Pop.Chain);
  driver.offer(head);
  assertEquals(queue.pop(chain), RingFault.HeadInFlight);
  queue.push(head, 1);
  assertEquals(queue.pop(chain), Pop.Chain);
});

Deno.test("a full ring and a chain as long as the ring are both fine", () => {
  const { driver, queue, chain } = create();
  driver.add(Array.from({ length: 8 }, (_, i) => read(i, 1)));
  assertEquals(queue.pop(chain), Pop.Chain);
  assertEquals(chain.count, 8);
  queue.push(chain.head, 0);
  queue.publish();
  driver.reap();
  for (let i = 0; i < 8; i++) driver.add([write(i, 1)]);
  for (let i = 0; i < 8; i++) assertEquals(queue.pop(chain), Pop.Chain);
  assertEquals(queue.pop(chain), Pop.Empty);
});

Deno.test("used elements are shown in one go, when published", () => {
  const { driver, queue, chain, guest, turns } = create();
  const heads = [1, 2, 3].map((i) => driver.add([write(i, 8)]));
  for (let i = 0; i < 3; i++) queue.pop(chain);
  queue.push(heads[2], 3);
  queue.push(heads[0], 1);
  assertEquals(turns(), 1, "asked once for the batch");
  assertEquals(guest.get16(driver.used + 2), 0);
  assertEquals(queue.inFlightCount, 1);
  assertEquals(queue.publish(), true);
  assertEquals(driver.reap(), [{ head: heads[2], length: 3 }, { head: heads[0], length: 1 }]);
  assertEquals(queue.publish(), false);
  queue.push(heads[1], 2);
  assertEquals(turns(), 2);
  queue.publish();
  assertEquals(driver.reap(), [{ head: heads[1], length: 2 }]);
});

Deno.test("publish() calls exactly when the batch passes used_event, for all event indices", () => {
  for (let event = 0; event < 12; event++) {
    for (let batch = 1; batch <= 4; batch++) {
      const { driver, queue, chain, guest, setup } = create();
      // Begins just before the index wraps.
      guest.set16(driver.used + 2, 0xfffc);
      queue.start(setup, 0);
      guest.set16(driver.available + 4 + 8 * 2, (0xfff8 + event) & 0xffff);
      for (let i = 0; i < batch; i++) {
        driver.add([write(1, 1)]);
        queue.pop(chain);
        queue.push(chain.head, 1);
      }
      // The driver wants to be called for the element number event: is it among those added?
      const first = 0xfffc, wanted = 0xfff8 + event;
      const expected = wanted >= first && wanted < first + batch;
      assertEquals(queue.publish(), expected, `event ${event}, batch ${batch}`);
    }
  }
});

Deno.test("without event indices publish() goes by the driver's flag", () => {
  const { driver, queue, chain, guest } = create({ eventIndex: false });
  for (const flag of [0, 1, 0]) {
    guest.set16(driver.available, flag);
    driver.add([write(1, 1)]);
    queue.pop(chain);
    queue.push(chain.head, 1);
    assertEquals(queue.publish(), flag === 0);
    driver.reap();
  }
});

Deno.test("kicks are asked for with what was not yet taken, and what comes meanwhile is noticed", () => {
  for (const eventIndex of [true, false]) {
    const { driver, queue, chain } = create({ eventIndex });
    assertEquals(queue.enableKicks(), false);
    let before = driver.availableIndex;
    driver.add([write(1, 1)]);
    assertEquals(driver.wantsKick(before), true);
    queue.suppressKicks();
    queue.pop(chain);
    before = driver.availableIndex;
    driver.add([write(1, 1)]);
    assertEquals(driver.wantsKick(before), false, "it is being worked on");
    assertEquals(queue.enableKicks(), true, "the one that came without a kick");
    queue.pop(chain);
    assertEquals(queue.enableKicks(), false);
    before = driver.availableIndex;
    driver.add([write(1, 1)]);
    assertEquals(driver.wantsKick(before), true);
  }
});

Deno.test("a driver that offers a head again before it is shown as used overruns nothing", () => {
  const { driver, queue, chain, guest, host } = create({ size: 4 });
  const end = guest.at(driver.used) + 4 + 4 * 8 + 2;
  host.bytes.fill(0xaa, end, end + 64);
  driver.setDescriptor(0, 1, 1, 2);
  for (let i = 0; i < 11; i++) {
    driver.offer(0);
    assertEquals(queue.pop(chain), Pop.Chain);
    queue.push(0, i);
    assert(queue.batchCount <= 4);
  }
  assertEquals(queue.publish(), true, "a call that was owed");
  assertEquals(guest.get16(driver.used + 2), 11);
  assertEquals(host.bytes.slice(end, end + 64), new Uint8Array(64).fill(0xaa));
});

Deno.test("start() goes on where the ring is, whatever the indices are", () => {
  for (const index of [0, 5, 0xfffe, 0xffff]) {
    const { driver, queue, chain, guest, setup } = create();
    guest.set16(driver.used + 2, index);
    guest.set16(driver.available + 2, index);
    driver.availableIndex = driver.usedSeen = index;
    queue.start(setup, index);
    for (let i = 0; i < 20; i++) {
      const head = driver.add([write(1, 1)]);
      assertEquals(queue.pop(chain), Pop.Chain);
      queue.push(chain.head, i);
      queue.publish();
      assertEquals(driver.reap(), [{ head, length: i }]);
    }
  }
});

Deno.test("an abandoned queue shows nothing, and says when the last request came back", () => {
  const { driver, queue, chain, guest, turns } = create();
  for (let i = 0; i < 2; i++) {
    driver.add([write(1, 1)]);
    queue.pop(chain);
  }
  queue.isAbandoned = true;
  queue.push(driver.outstanding[0], 1);
  assertEquals(turns(), 0);
  queue.push(driver.outstanding[1], 1);
  assertEquals(turns(), 1);
  assertEquals(queue.publish(), false);
  assertEquals(guest.get16(driver.used + 2), 0);
});

Deno.test("writes to the used ring are logged at the address given for it", () => {
  const { driver, queue, chain, host, log } = create();
  const file = host.createFile(4096);
  log.attach([{ window: 0, offset: file.offset, length: 4096 }]);
  log.active = true;
  const bytes = host.bytes.subarray(file.offset, file.offset + 4096);
  // The ring seems to begin so that element 0 is on page 40 and element 1 on page 41.
  queue.usedLogAddress = 41 * 4096 - 12;
  driver.add([write(1, 1)]);
  queue.pop(chain);
  queue.push(chain.head, 1);
  assertEquals(bytes[5], 1, "element 0");
  bytes.fill(0);
  queue.publish();
  assertEquals(bytes[5], 1, "idx");
  bytes.fill(0);
  driver.add([write(1, 1)]);
  queue.pop(chain);
  queue.push(chain.head, 1);
  assertEquals(bytes[5], 2, "element 1");
  bytes.fill(0);
  queue.enableKicks();
  assertEquals(bytes[5], 2, "avail_event behind the ring");
});

Deno.test("what is taken, used and published is noted in the inflight area, each at its time", () => {
  const { driver, queue, chain, setup, host } = create();
  const file = host.createFile(4096);
  const piece = { window: 0, offset: file.offset, length: inflightBytes(1, 8) };
  const area = new InflightArea(host.windows[0], piece, 1, 8);
  queue.start({ ...setup, inflight: area.queue(0, 8) }, 0);
  const marks = () =>
    [...Array(8).keys()].filter((i) => host.bytes[file.offset + 16 + i * 16] === 1);
  const word = (at: number) => host.windows[0].u16[(file.offset + at) >>> 1];
  const heads = [driver.add([write(1, 1)]), driver.add([write(2, 1)])];
  assertEquals(marks(), []);
  queue.pop(chain);
  assertEquals(marks(), [heads[0]]);
  queue.pop(chain);
  assertEquals(marks().length, 2);
  queue.push(heads[1], 1);
  assertEquals(marks().length, 2);
  assertEquals([word(12), word(14)], [heads[1], 0], "listed, not published");
  queue.publish();
  assertEquals(marks(), [heads[0]]);
  assertEquals(word(14), 1);
});

Deno.test("ringBytes() counts the event indices only where they are", () => {
  assertEquals(ringBytes(8, false), { descriptors: 128, available: 20, used: 68 });
  assertEquals(ringBytes(8, true), { descriptors: 128, available: 22, used: 70 });
});

Deno.test("random rings never make pop() throw, loop or take more than there is", () => {
  const random = new Prng(99);
  const parts = create({ size: 16 });
  const { guest, driver, queue, chain, start } = parts;
  const counts = new Map<number, number>();
  for (let round = 0; round < 3000; round++) {
    start(random.below(4));
    for (let i = 0; i < 16; i++) {
      const address = random.pick([
        0,
        BUFFERS,
        BUFFERS + random.below(64),
        BASE + 0x3fff0,
        2 ** 52,
        2 ** 60,
      ]);
      const length = random.pick([0, 1, 16, 32, 48, 512, 0xffff_ffff]);
      const flags = random.pick([0, 1, 1, 2, 3, 3, 4, 5, 6, 7, random.below(65536)]);
      driver.setDescriptor(i, address, length, flags, random.below(18));
      driver.writeDescriptor(
        BUFFERS + i * 16,
        address,
        length,
        random.pick([0, 1, 1, 2, 3, 4]),
        random.below(4),
      );
      guest.set16(driver.available + 4 + i * 2, random.below(17));
    }
    guest.set16(driver.available + 2, random.below(20));
    for (let pops = 0;; pops++) {
      const popped = queue.pop(chain);
      counts.set(popped, (counts.get(popped) ?? 0) + 1);
      if (popped !== Pop.Chain) break;
      assert(pops < 16);
      assert(chain.count > 0 && chain.count <= CHAIN_DESCRIPTORS_MAX);
      assert(chain.readableCount <= chain.count);
      if (random.chance(0.5)) queue.push(chain.head, 0);
    }
  }
  // The rubbish was of every kind.
  for (const kind of [0, 1, -1, -2, -3, -4, -5, -7, -9, -10, -11, -12]) {
    assert(counts.has(kind), `no ${faultText(kind)} among ${JSON.stringify([...counts])}`);
  }
});
