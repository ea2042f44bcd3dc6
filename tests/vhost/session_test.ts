import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { POP_BUDGET } from "../../agent/vhost/session.ts";
import { Fixture, type FixtureOptions, GUEST_BASE, LINUX_FEATURES, USER_BASE } from "./fixture.ts";
import { FEATURE, frame, join, PROTOCOL_FEATURES, REQUEST, u32s, u64s } from "./mock_driver.ts";

const NEED_REPLY = 1 | 8;

/** A fixture of which nothing but the connection is there. */
function connected(options: FixtureOptions = {}): Fixture {
  const fixture = new Fixture(options);
  fixture.frontEnd.connect();
  return fixture;
}

/** Makes a read request available without kicking; returns its head. */
function offerRead(fixture: Fixture, queue = fixture.queue): number {
  const address = fixture.allocate(512);
  return queue.add(fixture.chain(0, 0, [{ address, length: 512, write: true }]).chain);
}

/** Descriptors that the fixture's host has open, but for kicks, calls and errors of running queues. */
function openCount(fixture: Fixture): number {
  return fixture.host.open.size;
}

// ------------------------------------------------------------------------------------ conversation

Deno.test("what is offered: features, protocol features, queues, memory slots", () => {
  const { frontEnd } = new Fixture();
  const offered = FEATURE.SEG_MAX | FEATURE.BLK_SIZE | FEATURE.FLUSH | FEATURE.TOPOLOGY |
    FEATURE.CONFIG_WCE | FEATURE.MQ | FEATURE.DISCARD | FEATURE.WRITE_ZEROES | FEATURE.LOG_ALL |
    FEATURE.INDIRECT | FEATURE.EVENT_IDX | FEATURE.PROTOCOL | FEATURE.VERSION_1;
  assertEquals(frontEnd.askU64(REQUEST.GET_FEATURES), offered);
  assertEquals(frontEnd.askU64(REQUEST.GET_PROTOCOL_FEATURES), PROTOCOL_FEATURES);
  assertEquals(frontEnd.askU64(REQUEST.GET_QUEUE_NUM), 64n);
  assertEquals(frontEnd.askU64(REQUEST.GET_MAX_MEM_SLOTS), 509n);
  assertEquals(frontEnd.askU64(REQUEST.GET_STATUS), 0n);
});

Deno.test("every message without its own reply is acknowledged when asked, and silent when not", () => {
  for (const needReply of [true, false]) {
    const fixture = connected();
    const { frontEnd, host, queue, regions } = fixture;
    const event = () => host.openEvent({ count: 0 });
    const table = join(u32s(0, 0));
    const messages: [number, Uint8Array<ArrayBuffer>, number[]][] = [
      [REQUEST.SET_OWNER, u32s(), []],
      [REQUEST.SET_FEATURES, u64s(fixture.features), []],
      [REQUEST.SET_PROTOCOL_FEATURES, u64s(PROTOCOL_FEATURES), []],
      [REQUEST.SET_MEM_TABLE, table, []],
      [REQUEST.ADD_MEM_REG, join(u64s(0), frontEnd.regionPayload(regions[0])), [
        host.openFile(regions[0].file),
      ]],
      [REQUEST.SET_VRING_NUM, u32s(0, 16), []],
      [REQUEST.SET_VRING_BASE, u32s(0, 0), []],
      [REQUEST.SET_VRING_ADDR, frontEnd.vringAddress(queue), []],
      [REQUEST.SET_VRING_CALL, u64s(0), [event()]],
      [REQUEST.SET_VRING_ERR, u64s(0), [event()]],
      [REQUEST.SET_VRING_KICK, u64s(0), [event()]],
      [REQUEST.SET_VRING_CALL, u64s(0x100), []],
      [REQUEST.SET_VRING_ERR, u64s(0x100), []],
      [REQUEST.SET_VRING_ENABLE, u32s(0, 1), []],
      [REQUEST.SET_BACKEND_REQ_FD, u32s(), [event()]],
      [REQUEST.SET_LOG_FD, u32s(), [event()]],
      [REQUEST.SET_STATUS, u64s(15), []],
      [REQUEST.SET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(1)), []],
      [REQUEST.RESET_OWNER, u32s(), []],
      [REQUEST.REM_MEM_REG, join(u64s(0), frontEnd.regionPayload(regions[0])), []],
      [REQUEST.RESET_DEVICE, u32s(), []],
    ];
    for (const [request, payload, fds] of messages) {
      frontEnd.send(request, payload, fds, needReply ? NEED_REPLY : 1);
      const reply = frontEnd.reply();
      assertEquals(reply?.request, needReply ? request : undefined, `request ${request}`);
      if (needReply) {
        assertEquals([...reply!.payload], [0, 0, 0, 0, 0, 0, 0, 0], host.events.join());
      }
    }
    assertEquals(host.isHungUp, false);
    fixture.close();
    assertEquals(host.open.size, 0);
  }
});

Deno.test("a conversation is the same however its bytes are cut", () => {
  const whole = new Fixture();
  whole.start();
  for (let seed = 0; seed < 5; seed++) {
    const cut = new Fixture();
    cut.frontEnd.fragments = new Prng(seed);
    cut.start();
    assertEquals(
      cut.host.sent.map(({ bytes }) => bytes),
      whole.host.sent.map(({ bytes }) => bytes),
    );
    assertEquals(cut.session.description, whole.session.description);
    cut.close();
  }
  whole.close();
});

Deno.test("several messages in one receive: the descriptors belong to the last of them", () => {
  const fixture = connected();
  const { frontEnd, host, queue } = fixture;
  const kick = host.openEvent(queue.kickEvent);
  const bytes = join(
    frame(REQUEST.SET_FEATURES, u64s(fixture.features)),
    frame(REQUEST.SET_VRING_NUM, u32s(0, 16)),
    frame(REQUEST.SET_VRING_KICK, u64s(0)),
  );
  // The last one may be there in part only.
  frontEnd.sendBytes(bytes.slice(0, -3), [kick]);
  assertEquals(host.kicks.size, 0);
  frontEnd.sendBytes(bytes.slice(-3));
  assertEquals(host.kicks.get(0), kick);
  fixture.close();
});

// ---------------------------------------------------------------------------------------- refusals

interface Refusal {
  readonly what: string;
  readonly reason: string;
  readonly request: number;
  readonly payload: (fixture: Fixture) => Uint8Array<ArrayBuffer>;
  readonly fds?: (fixture: Fixture) => number[];
  /** Otherwise only connected. */
  readonly isRunning?: boolean;
  readonly before?: (fixture: Fixture) => void;
}

const event = (fixture: Fixture) => [fixture.host.openEvent({ count: 0 })];
const region = (fixture: Fixture, change: object = {}) =>
  join(u64s(0), fixture.frontEnd.regionPayload({ ...fixture.regions[0], ...change }));
const file = (fixture: Fixture) => [fixture.host.openFile(fixture.regions[0].file)];
const rings = (index: number, descriptors: number, used: number, available: number) => () =>
  join(u32s(index, 0), u64s(descriptors, used, available, 0));

/** What is refused, and why. None of these has a reply of its own. */
const REFUSALS: Refusal[] = [
  { what: "an unknown request", reason: "not supported", request: 4711, payload: () => u64s(1) },
  {
    what: "a request of other devices",
    reason: "not supported",
    request: 20,
    payload: () => u64s(1500),
  },
  { what: "request 0", reason: "not supported", request: 0, payload: () => u32s() },
  {
    what: "an unknown request with a descriptor",
    reason: "1 descriptors instead of 0",
    request: 4711,
    payload: () => u32s(),
    fds: event,
  },
  {
    what: "features in 7 bytes",
    reason: "payload of 7 bytes",
    request: REQUEST.SET_FEATURES,
    payload: () => new Uint8Array(7),
  },
  {
    what: "packed rings",
    reason: "not offered",
    request: REQUEST.SET_FEATURES,
    payload: () => u64s(LINUX_FEATURES | 1n << 34n),
  },
  {
    what: "an IOMMU",
    reason: "not offered",
    request: REQUEST.SET_FEATURES,
    payload: () => u64s(LINUX_FEATURES | 1n << 33n),
  },
  {
    what: "in-order rings",
    reason: "not offered",
    request: REQUEST.SET_FEATURES,
    payload: () => u64s(LINUX_FEATURES | 1n << 35n),
  },
  {
    what: "other features while running",
    reason: "while rings are running",
    request: REQUEST.SET_FEATURES,
    payload: () => u64s(LINUX_FEATURES & ~FEATURE.FLUSH),
    isRunning: true,
  },
  {
    what: "protocol features that were not offered",
    reason: "not offered",
    request: REQUEST.SET_PROTOCOL_FEATURES,
    payload: () => u64s(PROTOCOL_FEATURES | 4n),
  },
  {
    what: "protocol feature 40",
    reason: "not offered",
    request: REQUEST.SET_PROTOCOL_FEATURES,
    payload: () => u64s(1n << 40n),
  },
  {
    what: "a features message with a descriptor",
    reason: "1 descriptors instead of 0",
    request: REQUEST.SET_FEATURES,
    payload: () => u64s(0),
    fds: event,
  },
  {
    what: "a queue of 0",
    reason: "not a power of 2",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0, 0),
  },
  {
    what: "a queue of 2048",
    reason: "not a power of 2",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0, 2048),
  },
  {
    what: "a queue of 100",
    reason: "not a power of 2",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0, 100),
  },
  {
    what: "a queue of 2^31",
    reason: "not a power of 2",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0, 2 ** 31),
  },
  {
    what: "the size of queue 64",
    reason: "names queue 64",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(64, 16),
  },
  {
    what: "the size of queue 2^32 − 1",
    reason: "names queue 4294967295",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0xffff_ffff, 16),
  },
  {
    what: "another size while running",
    reason: "while it is running",
    request: REQUEST.SET_VRING_NUM,
    payload: () => u32s(0, 8),
    isRunning: true,
  },
  {
    what: "a base of 65536",
    reason: "not below 65536",
    request: REQUEST.SET_VRING_BASE,
    payload: () => u32s(0, 65536),
  },
  {
    what: "another base while running",
    reason: "while it is running",
    request: REQUEST.SET_VRING_BASE,
    payload: () => u32s(0, 1),
    isRunning: true,
  },
  {
    what: "a switch to 2",
    reason: "neither 0 nor 1",
    request: REQUEST.SET_VRING_ENABLE,
    payload: () => u32s(0, 2),
  },
  {
    what: "the switch of a queue there is not",
    reason: "names queue 99",
    request: REQUEST.SET_VRING_ENABLE,
    payload: () => u32s(99, 1),
  },
  {
    what: "a misaligned descriptor table",
    reason: "misaligned",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(0, 8, 0x2000, 0x3000),
  },
  {
    what: "a misaligned used ring",
    reason: "misaligned",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(0, 0x1000, 0x2002, 0x3000),
  },
  {
    what: "a misaligned available ring",
    reason: "misaligned",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(0, 0x1000, 0x2000, 0x3001),
  },
  {
    what: "the rings of a queue there is not",
    reason: "names queue 64",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(64, 0x1000, 0x2000, 0x3000),
  },
  {
    what: "rings at an absurd address",
    reason: "payload of 40 bytes",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(0, 2 ** 60, 0x2000, 0x3000),
  },
  {
    what: "a move while running",
    reason: "moves queue 0",
    request: REQUEST.SET_VRING_ADDR,
    payload: rings(0, USER_BASE + 0x4000, USER_BASE + 0x5000, USER_BASE + 0x6000),
    isRunning: true,
  },
  {
    what: "a kick without a descriptor: polling",
    reason: "polling",
    request: REQUEST.SET_VRING_KICK,
    payload: () => u64s(0x100),
  },
  {
    what: "a kick whose descriptor is missing",
    reason: "0 descriptors instead of 1",
    request: REQUEST.SET_VRING_KICK,
    payload: () => u64s(0),
  },
  {
    what: "a kick with two descriptors",
    reason: "2 descriptors instead of 1",
    request: REQUEST.SET_VRING_KICK,
    payload: () => u64s(0),
    fds: (f) => [...event(f), ...event(f)],
  },
  {
    what: "a call that says no descriptor and has one",
    reason: "1 descriptors instead of 0",
    request: REQUEST.SET_VRING_CALL,
    payload: () => u64s(0x100),
    fds: event,
  },
  {
    what: "the call of queue 200",
    reason: "names queue 200",
    request: REQUEST.SET_VRING_CALL,
    payload: () => u64s(200),
    fds: event,
  },
  {
    what: "a kick with bits that mean nothing",
    reason: "names queue",
    request: REQUEST.SET_VRING_KICK,
    payload: () => u64s(1n << 32n),
    fds: event,
  },
  {
    what: "a kick with bit 9",
    reason: "names queue",
    request: REQUEST.SET_VRING_KICK,
    payload: () => u64s(0x200),
    fds: event,
  },
  {
    what: "an error descriptor in a message cut short",
    reason: "payload of 4 bytes",
    request: REQUEST.SET_VRING_ERR,
    payload: () => u32s(0),
    fds: event,
  },
  {
    what: "a table with a descriptor too few",
    reason: "1 regions and 0 descriptors",
    request: REQUEST.SET_MEM_TABLE,
    payload: (f) => join(u32s(1, 0), f.frontEnd.regionPayload(f.regions[0])),
  },
  {
    what: "a table with a descriptor too many",
    reason: "0 regions and 1 descriptors",
    request: REQUEST.SET_MEM_TABLE,
    payload: () => u32s(0, 0),
    fds: file,
  },
  {
    what: "a table of nine regions",
    reason: "payload of",
    request: REQUEST.SET_MEM_TABLE,
    payload: () => new Uint8Array(8 + 9 * 32).fill(9, 0, 1),
  },
  {
    what: "a table cut short",
    reason: "payload of",
    request: REQUEST.SET_MEM_TABLE,
    payload: () => u32s(2, 0),
    fds: file,
  },
  {
    what: "a table whose regions overlap",
    reason: "overlaps",
    request: REQUEST.SET_MEM_TABLE,
    payload: (f) =>
      join(
        u32s(2, 0),
        f.frontEnd.regionPayload(f.regions[0]),
        f.frontEnd.regionPayload(f.regions[0]),
      ),
    fds: (f) => [...file(f), ...file(f)],
  },
  {
    what: "a region larger than its file",
    reason: "cannot be mapped",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f, { sizeBytes: 2 ** 30 }),
    fds: file,
  },
  {
    what: "a region of nothing",
    reason: "is empty",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f, { sizeBytes: 0 }),
    fds: file,
  },
  {
    what: "a region that wraps",
    reason: "wraps",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f, { guestAddress: 2 ** 53 - 4096 }),
    fds: file,
  },
  {
    what: "a region backed by an eventfd",
    reason: "cannot be mapped",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f),
    fds: event,
  },
  {
    what: "a region without a descriptor",
    reason: "0 descriptors instead of 1",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f),
  },
  {
    what: "a region that overlaps",
    reason: "overlaps",
    request: REQUEST.ADD_MEM_REG,
    payload: (f) => region(f),
    fds: file,
    isRunning: true,
  },
  {
    what: "the removal of a region there is not",
    reason: "there is not",
    request: REQUEST.REM_MEM_REG,
    payload: (f) => region(f),
  },
  {
    what: "a backend channel without a descriptor",
    reason: "0 descriptors instead of 1",
    request: REQUEST.SET_BACKEND_REQ_FD,
    payload: () => u32s(),
  },
  {
    what: "a config write beyond the space",
    reason: "payload of",
    request: REQUEST.SET_CONFIG,
    payload: () => u32s(256, 1, 0, 0),
  },
  {
    what: "a config write of the capacity",
    reason: "may not write",
    request: REQUEST.SET_CONFIG,
    payload: () => join(u32s(0, 8, 0), u64s(1)),
  },
  {
    what: "a status that is no byte",
    reason: "not a byte",
    request: REQUEST.SET_STATUS,
    payload: () => u64s(256),
  },
  {
    what: "an inflight area for no queue",
    reason: "0 queues",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 0, 0, 16),
    fds: file,
  },
  {
    what: "an inflight area for 65 queues",
    reason: "65 queues",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 0, 65, 16),
    fds: file,
  },
  {
    what: "an inflight area of queues of 2048",
    reason: "queue size of 2048",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 0, 1, 2048),
    fds: file,
  },
  {
    what: "an inflight area that is too small",
    reason: "too few",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(64, 0, 1, 16),
    fds: file,
  },
  {
    what: "an inflight area larger than its file",
    reason: "cannot be mapped",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 2 ** 40, 1, 16),
    fds: file,
  },
  {
    what: "an inflight area that is misaligned",
    reason: "aligned piece",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 3, 1, 16),
    fds: file,
  },
  {
    what: "another inflight area while running",
    reason: "of running rings",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 0, 1, 16),
    fds: file,
    isRunning: true,
  },
  {
    what: "an inflight area that was not agreed on",
    reason: "not negotiated",
    request: REQUEST.SET_INFLIGHT_FD,
    payload: () => inflight(8192, 0, 1, 16),
    fds: file,
    before: (f) => f.frontEnd.send(REQUEST.SET_PROTOCOL_FEATURES, u64s(8)),
  },
];

function inflight(sizeBytes: number, fileOffset: number, queues: number, size: number) {
  return join(u64s(sizeBytes, fileOffset), u32s(queues | size << 16, 0));
}

for (const { what, reason, request, payload, fds, isRunning, before } of REFUSALS) {
  Deno.test(`${what}: refused with a reason where an answer is wanted, otherwise the session ends`, () => {
    for (const needReply of [true, false]) {
      const fixture = isRunning === true ? new Fixture().start() : connected();
      const { frontEnd, host } = fixture;
      before?.(fixture);
      const before_ = openCount(fixture);
      frontEnd.send(request, payload(fixture), fds?.(fixture) ?? [], needReply ? NEED_REPLY : 1);
      const last = host.events.findLast((line) =>
        line.startsWith(needReply ? "refused" : "hang up")
      );
      assertStringIncludes(last ?? host.events.join("\n"), reason);
      if (!needReply) {
        assertEquals(host.isClosed, true);
        assertEquals(host.open.size, 0);
        continue;
      }
      assertEquals([...frontEnd.reply()!.payload], [1, 0, 0, 0, 0, 0, 0, 0]);
      assertEquals(openCount(fixture), before_, "descriptors are closed");
      // The session still works.
      if (isRunning === true) assertEquals(fixture.read(0, 512).status, 0);
      else frontEnd.askU64(REQUEST.GET_FEATURES);
      fixture.close();
      assertEquals(host.open.size, 0);
    }
  });
}

/** Requests whose reply cannot say no: the session ends, whether or not an acknowledgement is asked for. */
const FATAL: [string, number, Uint8Array<ArrayBuffer>, boolean, string][] = [
  ["a base asked of queue 64", REQUEST.GET_VRING_BASE, u32s(64, 0), false, "names queue 64"],
  ["a base asked in 4 bytes", REQUEST.GET_VRING_BASE, u32s(0), false, "payload of 4"],
  ["an inflight area in 8 bytes", REQUEST.GET_INFLIGHT_FD, u64s(0), false, "payload of 8"],
  [
    "an inflight area for 0 queues",
    REQUEST.GET_INFLIGHT_FD,
    inflight(0, 0, 0, 16),
    false,
    "0 queues",
  ],
  ["a log of no bytes", REQUEST.SET_LOG_BASE, u64s(0, 0), true, "log of 0 bytes"],
  ["an absurd log", REQUEST.SET_LOG_BASE, u64s(2 ** 40, 0), true, "log of 1099511627776 bytes"],
  ["a log larger than its file", REQUEST.SET_LOG_BASE, u64s(2 ** 28, 0), true, "cannot be mapped"],
  ["a log without a descriptor", REQUEST.SET_LOG_BASE, u64s(4096, 0), false, "0 descriptors"],
  ["features asked with a descriptor", REQUEST.GET_FEATURES, u32s(), true, "1 descriptors"],
];

for (const [what, request, payload, hasFd, reason] of FATAL) {
  Deno.test(`${what} ends the session`, () => {
    for (const flags of [1, NEED_REPLY]) {
      const fixture = connected();
      const fds = hasFd ? file(fixture) : [];
      fixture.frontEnd.send(request, payload, fds, flags);
      assertStringIncludes(fixture.host.events.join("\n"), reason);
      assertEquals(fixture.host.isClosed, true);
      assertEquals(fixture.host.open.size, 0);
    }
  });
}

Deno.test("GET_CONFIG refuses by an empty payload", () => {
  const { frontEnd } = connected();
  for (
    const payload of [u32s(0, 60, 0), u32s(0, 257, 0), u32s(250, 60, 0), u32s(0), new Uint8Array(0)]
  ) {
    assertEquals(frontEnd.ask(REQUEST.GET_CONFIG, payload).payload.length, 0);
  }
});

for (
  const [what, header] of [
    ["version 0", u32s(1, 0, 0)],
    ["version 2", u32s(1, 2, 0)],
    ["the reply flag", u32s(1, 5, 0)],
    ["an absurd size", u32s(1, 1, 0xffff_ffff)],
    ["a size just too large", u32s(1, 1, 4097)],
  ] as const
) {
  Deno.test(`a header with ${what} ends the session`, () => {
    const fixture = connected();
    fixture.frontEnd.sendBytes(header, event(fixture));
    assertEquals(fixture.host.isClosed, true);
    assertEquals(fixture.host.open.size, 0);
    // What still comes is dropped, and its descriptors are closed.
    fixture.frontEnd.sendBytes(frame(REQUEST.GET_FEATURES), event(fixture));
    assertEquals(fixture.host.open.size, 0);
  });
}

Deno.test("messages before a bad header are carried out", () => {
  const fixture = connected();
  const { frontEnd } = fixture;
  frontEnd.sendBytes(join(frame(REQUEST.GET_STATUS), u32s(1, 0, 0)));
  assertEquals(frontEnd.reply()?.request, REQUEST.GET_STATUS);
  assertEquals(fixture.host.isClosed, true);
});

Deno.test("the largest payload of an unknown request is skipped whole", () => {
  const { frontEnd } = connected();
  assertEquals(frontEnd.acknowledged(999, new Uint8Array(4096).fill(1)), 1);
  assertEquals(frontEnd.acknowledged(REQUEST.SET_OWNER), 0);
});

Deno.test("a front end that keeps sending what is refused is cut off", () => {
  const { frontEnd, host } = connected();
  for (let i = 0; i < 64; i++) assertEquals(frontEnd.acknowledged(999), 1);
  frontEnd.send(999, undefined, [], NEED_REPLY);
  assertEquals(host.isClosed, true);
});

Deno.test("descriptors without end for one message are a reason to end", () => {
  const fixture = connected();
  fixture.frontEnd.sendBytes(u32s(REQUEST.SET_OWNER).slice(0, 1), event(fixture));
  for (let i = 0; i < 7; i++) fixture.frontEnd.sendBytes(new Uint8Array(0), event(fixture));
  assertEquals(fixture.host.isHungUp, false);
  fixture.frontEnd.sendBytes(new Uint8Array(0), event(fixture));
  assertStringIncludes(fixture.host.events.join(), "more than 8 descriptors");
  assertEquals(fixture.host.open.size, 0);
});

Deno.test("messages without end behind a barrier are a reason to end", () => {
  const fixture = new Fixture().start();
  offerRead(fixture);
  fixture.session.kicked(0);
  fixture.frontEnd.stopQueue(0);
  for (let i = 0; i < 1024; i++) fixture.frontEnd.send(REQUEST.GET_STATUS);
  assertEquals(fixture.host.isHungUp, false);
  fixture.frontEnd.send(REQUEST.SET_VRING_CALL, u64s(0), event(fixture));
  assertStringIncludes(fixture.host.events.join(), "messages are waiting");
  fixture.target.completeAll();
  fixture.host.runTurns();
  assertEquals(fixture.host.isClosed, true);
});

// ------------------------------------------------------------------------------------------- rings

Deno.test("a ring starts by itself: what is available before the first kick is done", () => {
  const fixture = new Fixture();
  offerRead(fixture);
  fixture.start();
  assertEquals(fixture.target.pending.length, 1);
  fixture.close();
});

Deno.test("a ring starts only with size, addresses, kick and switch, in any order", () => {
  const random = new Prng(4);
  for (let round = 0; round < 40; round++) {
    const fixture = connected();
    const { frontEnd, host, queue, session } = fixture;
    offerRead(fixture);
    const steps = random.shuffle([
      () => frontEnd.send(REQUEST.SET_VRING_NUM, u32s(0, 16)),
      () => frontEnd.send(REQUEST.SET_VRING_ADDR, frontEnd.vringAddress(queue)),
      () => frontEnd.send(REQUEST.SET_VRING_KICK, u64s(0), [host.openEvent(queue.kickEvent)]),
      () => frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(0, 1)),
      () => fixture.regions.forEach((each) => frontEnd.addRegion(each)),
    ]);
    frontEnd.send(REQUEST.SET_FEATURES, u64s(fixture.features));
    for (const step of steps) {
      assertEquals(host.isLeaseWanted, false);
      step();
    }
    assertEquals(host.isLeaseWanted, true);
    assertEquals(fixture.target.pending.length, 0);
    session.leaseGranted();
    assertEquals(fixture.target.pending.length, 1);
    fixture.close();
  }
});

Deno.test("without F_PROTOCOL_FEATURES rings need no switching on", () => {
  const fixture = new Fixture({ features: LINUX_FEATURES & ~FEATURE.PROTOCOL });
  offerRead(fixture);
  fixture.start();
  assertEquals(fixture.target.pending.length, 1);
  fixture.close();
});

Deno.test("a ring that is switched off takes nothing, and all of it when switched on", () => {
  const fixture = new Fixture().start();
  fixture.frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(0, 0));
  offerRead(fixture);
  fixture.session.kicked(0);
  assertEquals(fixture.target.pending.length, 0);
  fixture.frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(0, 1));
  assertEquals(fixture.target.pending.length, 1);
  fixture.close();
});

Deno.test("nothing is taken without the lease, nor while it is lost", () => {
  const fixture = new Fixture();
  const { frontEnd, session, target } = fixture;
  frontEnd.connect();
  fixture.configure();
  offerRead(fixture);
  session.kicked(0);
  assertEquals(target.pending.length, 0);
  session.leaseGranted();
  assertEquals(target.pending.length, 1);
  session.leaseLost();
  offerRead(fixture);
  session.kicked(0);
  assertEquals(target.pending.length, 1);
  session.leaseGranted();
  assertEquals(target.pending.length, 2);
  fixture.close();
});

Deno.test("the lease is given back when the last ring stands still, and wanted again by the next", () => {
  const fixture = new Fixture({ queueCount: 3 }).start();
  const { frontEnd, host, session } = fixture;
  for (const index of [0, 2, 1]) {
    assertEquals(host.isLeaseWanted, true);
    frontEnd.stopQueue(index);
    assertEquals(frontEnd.reply()?.request, REQUEST.GET_VRING_BASE);
  }
  assertEquals(host.events, ["acquire", "release"]);
  // A grant that comes too late is not taken for one.
  session.leaseGranted();
  fixture.queues[1].reset();
  frontEnd.setUpQueue(fixture.queues[1]);
  assertEquals(host.events, ["acquire", "release", "acquire"]);
  frontEnd.stopQueue(1);
  assertEquals(
    host.events,
    ["acquire", "release", "acquire", "release"],
    "without ever being granted",
  );
  fixture.close();
});

Deno.test("GET_VRING_BASE waits for what is in flight, and other queues go on meanwhile", () => {
  const fixture = new Fixture({ queueCount: 2 }).start();
  const { frontEnd, session, target, queues, host } = fixture;
  offerRead(fixture);
  offerRead(fixture);
  session.kicked(0);
  frontEnd.stopQueue(0);
  frontEnd.send(REQUEST.GET_STATUS);
  assertEquals(frontEnd.reply(), null);
  // Taken before: no. Offered after: not taken either.
  offerRead(fixture);
  session.kicked(0);
  assertEquals(target.pending.length, 2);
  offerRead(fixture, queues[1]);
  session.kicked(1);
  assertEquals(target.pending.length, 3);
  target.complete(0);
  target.complete(0);
  assertEquals(frontEnd.reply(), null, "not before the guest was shown");
  host.runTurns();
  assertEquals(queues[0].reap().length, 2);
  const reply = frontEnd.reply()!;
  assertEquals([...new Uint32Array(reply.payload.buffer)], [0, 2]);
  assertEquals(frontEnd.reply()?.request, REQUEST.GET_STATUS, "in order");
  assertEquals(host.kicks.has(0), false);
  fixture.close();
});

Deno.test("a stopped ring goes on at its base, also with what came meanwhile", () => {
  const fixture = new Fixture().start();
  const { frontEnd, queue, session, target } = fixture;
  fixture.read(0, 512);
  offerRead(fixture);
  frontEnd.stopQueue(0);
  assertEquals(new Uint32Array(frontEnd.reply()!.payload.buffer)[1], 1);
  assertEquals(target.pending.length, 0);
  frontEnd.setUpQueue(queue, 1);
  session.leaseGranted();
  assertEquals(target.pending.length, 1);
  fixture.close();
});

Deno.test("a new kick descriptor takes the old one's place; what came in between is done", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, target } = fixture;
  const old = host.kicks.get(0)!;
  offerRead(fixture);
  frontEnd.send(REQUEST.SET_VRING_KICK, u64s(0), event(fixture));
  assertEquals(host.open.has(old), false);
  assertEquals(target.pending.length, 1);
  fixture.close();
});

Deno.test("a call that was due while there was no descriptor is made up for", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, queue } = fixture;
  frontEnd.send(REQUEST.SET_VRING_CALL, u64s(0x100));
  offerRead(fixture);
  session.kicked(0);
  target.completeAll();
  host.runTurns();
  frontEnd.setCall(queue);
  assertEquals(queue.callEvent.count, 1);
  fixture.close();
});

Deno.test("a running ring whose call descriptor is exchanged loses no call that the old one got", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, queue } = fixture;
  offerRead(fixture);
  session.kicked(0);
  target.completeAll();
  host.runTurns();
  assertEquals(queue.callEvent.count, 1);
  // QEMU throws away what came before it unmasks the vector.
  queue.callEvent.count = 0;
  frontEnd.setCall(queue);
  assertEquals(queue.callEvent.count, 1);
  frontEnd.stopQueue(0);
  frontEnd.setCall(queue);
  assertEquals(queue.callEvent.count, 1, "there is nothing to call for");
  fixture.close();
});

for (
  const [what, features] of [
    ["with event indices", LINUX_FEATURES],
    ["by flag", LINUX_FEATURES & ~FEATURE.EVENT_IDX],
  ] as const
) {
  /** A session that looks at its ring by itself: the driver is not to kick. */
  const polled = () => {
    const fixture = new Fixture({ features }).start();
    const { host, queue } = fixture;
    host.isPolling = true;
    for (let i = 0; i < 3; i++) fixture.read(0, 512);
    const before = queue.availableIndex;
    offerRead(fixture);
    assertEquals(queue.wantsKick(before), false);
    assertEquals(host.polledSessions.length, 1);
    assertEquals(fixture.session.poll(), true);
    return fixture;
  };

  Deno.test(`when polling ends the driver kicks again, and what came before that is taken, ${what}`, () => {
    const fixture = polled();
    const { host, session, target, queue } = fixture;
    const wantsKick = () => {
      const before = queue.availableIndex;
      offerRead(fixture);
      return queue.wantsKick(before);
    };
    host.isPolling = false;
    assertEquals(session.stopPolling(), false);
    assertEquals(wantsKick(), true);
    host.isPolling = true;
    session.kicked(0);
    assertEquals(target.pending.length, 2);
    assertEquals(wantsKick(), false);
    host.isPolling = false;
    assertEquals(session.stopPolling(), true);
    assertEquals(target.pending.length, 3);
    assertEquals(session.stopPolling(), false);
    assertEquals(wantsKick(), true);
    fixture.close();
  });

  Deno.test(`a ring that is looked at again since a request of it is done asks for no kick, ${what}`, () => {
    const fixture = polled();
    const { host, session, target, queue } = fixture;
    const wantsKick = () => {
      const before = queue.availableIndex;
      offerRead(fixture);
      return queue.wantsKick(before);
    };
    // The loop sleeps until the request is done, and then looks for the next one.
    assertEquals(session.stopPolling(), false);
    target.completeAll();
    host.runTurns();
    assertEquals(wantsKick(), false);
    assertEquals(session.poll(), true);
    assertEquals(target.pending.length, 1);
    assertEquals(wantsKick(), false, "another one meanwhile");
    assertEquals(session.stopPolling(), true, "what was there is taken, and looking goes on");
    assertEquals(session.stopPolling(), false);
    assertEquals(wantsKick(), true);
    fixture.close();
  });

  Deno.test(`a ring that is held up while polling ends asks for kicks when it goes on, ${what}`, () => {
    const fixture = polled();
    const { frontEnd, host, session, target, queue, regions } = fixture;
    frontEnd.setTable(regions);
    offerRead(fixture);
    host.isPolling = false;
    assertEquals(session.poll(), false);
    assertEquals(session.stopPolling(), false);
    target.completeAll();
    host.runTurns();
    assertEquals(target.pending.length, 1, "what waited is taken");
    const before = queue.availableIndex;
    offerRead(fixture);
    assertEquals(queue.wantsKick(before), true);
    fixture.close();
  });

  Deno.test(`a ring that is stopped is left asking for kicks, and is not looked at, ${what}`, () => {
    const fixture = polled();
    const { frontEnd, host, session, target, queue } = fixture;
    frontEnd.stopQueue(0);
    target.completeAll();
    host.runTurns();
    const before = queue.availableIndex;
    offerRead(fixture);
    assertEquals(queue.wantsKick(before), true);
    assertEquals(session.poll(), false);
    assertEquals(session.stopPolling(), false);
    assertEquals(target.pending.length, 0);
    fixture.close();
  });
}

Deno.test("one ring cannot keep the others waiting: its share is bounded per turn", () => {
  const fixture = new Fixture({ queueCount: 2, queueSize: 1024, guestBytes: 4 * 1024 * 1024 })
    .start();
  const { session, target, host, queues } = fixture;
  const address = fixture.allocate(512);
  const { chain } = fixture.chain(0, 0, [{ address, length: 512, write: true }]);
  for (let i = 0; i < 341; i++) assert(queues[0].add(chain) >= 0);
  session.kicked(0);
  assertEquals(target.pending.length, POP_BUDGET);
  assert(host.scheduled !== null, "the rest is not forgotten");
  queues[1].add(chain);
  session.kicked(1);
  assertEquals(target.pending.length, POP_BUDGET + 1);
  host.runTurns();
  assertEquals(target.pending.length, 342);
  fixture.close();
});

Deno.test("64 queues of 1024 all work", () => {
  const fixture = new Fixture({ queueCount: 64, queueSize: 1024, guestBytes: 8 * 1024 * 1024 })
    .start();
  for (const queue of fixture.queues) {
    const address = fixture.allocate(512);
    queue.add(fixture.chain(0, queue.index, [{ address, length: 512, write: true }]).chain);
    fixture.session.kicked(queue.index);
  }
  assertEquals(fixture.target.pending.length, 64);
  fixture.target.completeAll();
  fixture.host.runTurns();
  for (const queue of fixture.queues) {
    assertEquals(queue.reap().length, 1);
    assertEquals(queue.callEvent.count, 1);
  }
  fixture.close();
});

// ------------------------------------------------------------------------------------------ memory

Deno.test("SET_MEM_TABLE waits for what is in flight, then the rings go on in the new memory", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, regions } = fixture;
  offerRead(fixture);
  session.kicked(0);
  frontEnd.setTable(regions, NEED_REPLY);
  offerRead(fixture);
  session.kicked(0);
  assertEquals(target.pending.length, 1, "nothing new meanwhile");
  assertEquals(host.mappings.size, 2);
  assertEquals(frontEnd.reply(), null);
  target.completeAll();
  host.runTurns();
  assertEquals(frontEnd.reply()?.request, REQUEST.SET_MEM_TABLE);
  assertEquals(target.pending.length, 1, "the kick was not lost");
  target.completeAll();
  host.runTurns();
  assertEquals(fixture.queue.reap().length, 2);
  fixture.close();
});

Deno.test("after SET_MEM_TABLE the rings are where the memory is now, not where it was", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, regions, queue } = fixture;
  fixture.read(0, 512);
  // The same content in another file; the guest's view goes over to that.
  const [{ file }] = regions;
  const copy = host.createFile(file.sizeBytes);
  host.bytes.copyWithin(copy.offset, file.offset, file.offset + file.sizeBytes);
  regions.splice(0, 2, ...regions.map((each) => ({ ...each, file: copy })));
  frontEnd.setTable(regions);
  host.bytes.fill(0xff, file.offset, file.offset + file.sizeBytes);
  offerRead(fixture);
  session.kicked(0);
  target.completeAll();
  host.runTurns();
  assertEquals(queue.reap().length, 1);
  assertEquals(
    host.bytes.subarray(file.offset, file.offset + file.sizeBytes).some((byte) => byte !== 0xff),
    false,
  );
  assertEquals(host.events, ["acquire"]);
  fixture.close();
});

Deno.test("a ring whose region is taken away stands still until it is there again", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, regions, queue } = fixture;
  offerRead(fixture);
  session.kicked(0);
  frontEnd.removeRegion(regions[0]);
  assertEquals(host.mappings.size, 2, "still in use");
  target.completeAll();
  host.runTurns();
  assertEquals(frontEnd.reply()?.payload[0], 0);
  assertEquals(host.mappings.size, 1);
  const head = offerRead(fixture);
  session.kicked(0);
  assertEquals(target.pending.length, 0);
  assertEquals(frontEnd.addRegion(regions[0]), 0);
  assertEquals(target.pending.length, 1);
  target.completeAll();
  host.runTurns();
  assertEquals(queue.reap().map((used) => used.head).includes(head), true);
  assertEquals(host.events, ["acquire"]);
  fixture.close();
});

Deno.test("memory that is added under running rings is usable at once", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host } = fixture;
  const added = {
    guestAddress: GUEST_BASE + 0x2_0000_0000,
    userAddress: USER_BASE + 0x1000_0000,
    sizeBytes: 65536,
    file: host.createFile(65536),
    fileOffset: 0,
  };
  const data = [{ address: added.guestAddress, length: 512, write: true }];
  assertEquals(fixture.request(0, 0, data).status, 1, "not there yet");
  assertEquals(frontEnd.addRegion(added), 0);
  assertEquals(fixture.request(0, 0, data), { status: 0, length: 513 });
  frontEnd.removeRegion(added);
  assertEquals(frontEnd.reply()?.payload[0], 0);
  assertEquals(fixture.request(0, 0, data).status, 1);
  fixture.close();
});

Deno.test("removing a region closes the descriptor that some front ends send along", () => {
  const fixture = new Fixture().start();
  const before = openCount(fixture);
  const { frontEnd, regions } = fixture;
  const payload = join(u64s(0), frontEnd.regionPayload(regions[1]));
  assertEquals(frontEnd.acknowledged(REQUEST.REM_MEM_REG, payload, file(fixture)), 0);
  assertEquals(openCount(fixture), before);
  fixture.close();
});

Deno.test("rings that cross the seam between two pieces of a region work", () => {
  const fixture = new Fixture({
    queueSize: 1024,
    pieceBytes: 65536 + 4096,
    guestBytes: 512 * 1024,
  });
  const { queue, guest, host } = fixture;
  // Lays the ring anew so that the descriptor table crosses.
  const base = GUEST_BASE + 65536 + 4096 - 512;
  Object.assign(queue, { descriptors: base, available: base + 16384, used: base + 16384 + 2064 });
  guest.set(base, new Uint8Array(32768));
  fixture.start();
  assertEquals(fixture.session.description.ringsRunning, 1);
  const data = Uint8Array.from({ length: 512 }, (_, i) => i);
  for (let i = 0; i < 50; i++) {
    const address = GUEST_BASE + 0x40;
    guest.set(address, data);
    guest.set(GUEST_BASE, [...new Uint8Array(new Uint32Array([1, 0, i, 0]).buffer)]);
    queue.add([
      { address: GUEST_BASE, length: 16, write: false },
      { address, length: 512, write: false },
      { address: GUEST_BASE + 0x300, length: 1, write: true },
    ]);
    fixture.session.kicked(0);
    fixture.target.completeAll();
    host.runTurns();
    assertEquals(queue.reap().length, 1);
  }
  fixture.close();
});

// ---------------------------------------------------------------------------------- broken devices

Deno.test("a guest that breaks its ring stops its device, with a reason and an error signal", () => {
  const fixture = new Fixture({ queueCount: 2 }).start();
  const { host, session, queues, target, frontEnd } = fixture;
  offerRead(fixture, queues[1]);
  session.kicked(1);
  queues[0].offer(99);
  session.kicked(0);
  assertEquals(
    host.events.at(-1),
    "broken 0: a head in the available ring is not below the queue's size",
  );
  assertEquals(queues[0].errorEvent.count, 1);
  assertEquals(session.description.isBroken, true);
  // What was in flight is finished; nothing new is taken, on any queue.
  target.completeAll();
  host.runTurns();
  assertEquals(queues[1].reap().length, 1);
  offerRead(fixture, queues[1]);
  session.kicked(1);
  assertEquals(target.pending.length, 0);
  assertEquals(host.events.filter((line) => line.startsWith("broken")).length, 1, "said once");
  // The connection lives, and a reset heals.
  for (const queue of queues) {
    frontEnd.stopQueue(queue.index);
    frontEnd.reply();
    queue.reset();
  }
  assertEquals(session.description.isBroken, false);
  for (const queue of queues) frontEnd.setUpQueue(queue);
  session.leaseGranted();
  assertEquals(fixture.read(0, 512).status, 0);
  fixture.close();
});

Deno.test("a request without a status breaks the device, and does not stay in flight", () => {
  const fixture = new Fixture().start();
  fixture.queue.add([{ address: fixture.header(0, 0), length: 16, write: false }]);
  fixture.session.kicked(0);
  assertStringIncludes(fixture.host.events.at(-1)!, "no byte in guest memory for its status");
  assertEquals(fixture.session.inFlightCount, 0);
  fixture.frontEnd.stopQueue(0);
  assertEquals(fixture.frontEnd.reply()?.request, REQUEST.GET_VRING_BASE);
  fixture.close();
});

Deno.test("rings that are nowhere in memory: the kick says so", () => {
  const fixture = connected();
  const { frontEnd, host, session } = fixture;
  frontEnd.send(REQUEST.SET_FEATURES, u64s(fixture.features));
  frontEnd.setUpQueue(fixture.queue);
  frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(0, 1));
  assertEquals(host.events, []);
  session.kicked(0);
  assertStringIncludes(
    host.events.join(),
    "broken 0: the descriptor table at 0x7f0000000000+0x100",
  );
  frontEnd.stopQueue(0);
  fixture.close();
});

Deno.test("a ring for which the inflight area has no room does not run", () => {
  const fixture = connected();
  const { frontEnd, host } = fixture;
  const area = frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(0, 0, 1, 8));
  assertEquals(area.fds.length, 1);
  fixture.configure();
  fixture.session.leaseGranted();
  assertStringIncludes(host.events.join(), "the inflight area is for 1 queues of 8");
  fixture.close();
});

// --------------------------------------------------------------------------------------- endings

Deno.test("after a disconnection the guest is shown nothing, and the lease waits for the last request", () => {
  const fixture = new Fixture().start();
  const { host, session, target, queue, guest } = fixture;
  offerRead(fixture);
  const address = fixture.allocate(512);
  const { chain, status } = fixture.chain(0, 0, [{ address, length: 512, write: true }]);
  queue.add(chain);
  session.kicked(0);
  target.complete(0);
  // One is done and not shown, one is with the target.
  session.disconnected();
  assertEquals(host.events, ["acquire"]);
  assertEquals(host.mappings.size, 2);
  target.complete(0);
  host.runTurns();
  assertEquals(host.events, ["acquire", "release", "closed"]);
  assertEquals(guest.get16(queue.used + 2), 0);
  assertEquals(guest.get(status, 1)[0], 0xff, "not even a status");
  assertEquals(host.open.size, 0);
  session.disconnected();
  session.kicked(0);
  session.leaseGranted();
  session.resized();
  session.drainAndClose();
  session.turn();
});

Deno.test("a connection that is found gone while a reply is sent ends the session in good order", () => {
  for (let sends = 0; sends < 7; sends++) {
    const fixture = new Fixture({ queueCount: 2 });
    fixture.host.sendsLeft = sends;
    try {
      fixture.start();
    } catch (error) {
      // The front end waits for replies that do not come.
      if (!fixture.host.isClosed) throw error;
    }
    assertEquals(fixture.host.isClosed, true, `${sends} sends`);
    assertEquals(fixture.host.events.at(-1), "closed");
  }
});

Deno.test("drainAndClose() finishes and shows what is in flight, takes nothing more, then hangs up", () => {
  const fixture = new Fixture().start();
  const { host, session, target, queue } = fixture;
  offerRead(fixture);
  session.kicked(0);
  session.drainAndClose();
  offerRead(fixture);
  session.kicked(0);
  fixture.frontEnd.send(REQUEST.SET_VRING_CALL, u64s(0), event(fixture));
  assertEquals(target.pending.length, 1);
  target.completeAll();
  host.runTurns();
  assertEquals(queue.reap().length, 1);
  assertEquals(queue.callEvent.count, 1);
  assertEquals(host.events, ["acquire", "hang up: the agent closes the disk", "release", "closed"]);
  assertEquals(host.open.size, 0);
});

Deno.test("drainAndClose() with nothing in flight ends at once, a broken connection during it too", () => {
  const idle = connected();
  idle.session.drainAndClose();
  assertEquals(idle.host.isClosed, true);
  const busy = new Fixture().start();
  offerRead(busy);
  busy.session.kicked(0);
  busy.session.drainAndClose();
  busy.session.disconnected();
  assertEquals(busy.host.isClosed, false);
  busy.target.completeAll();
  busy.host.runTurns();
  assertEquals(busy.host.isClosed, true);
  assertEquals(busy.queue.reap().length, 0);
});

Deno.test("a resize is told on the back end's channel, and the new size is in the config space", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target } = fixture;
  session.resized();
  assertEquals(host.backendRequests.length, 0, "there is no channel");
  frontEnd.acknowledged(REQUEST.SET_BACKEND_REQ_FD, u32s(), event(fixture));
  target.sizeBytes = 512 * 1024;
  session.resized();
  assertEquals(host.backendRequests.map((bytes) => [...bytes]), [[
    2,
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
  ]]);
  assertEquals(session.isConfigRead, false);
  frontEnd.ask(REQUEST.GET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(0)));
  assertEquals(session.isConfigRead, false, "that is not where the size is");
  const { payload } = frontEnd.ask(REQUEST.GET_CONFIG, join(u32s(0, 8, 0), u64s(0)));
  assertEquals(new DataView(payload.buffer, 12).getBigUint64(0, true), 1024n);
  assertEquals(session.isConfigRead, true);
  session.resized();
  assertEquals(session.isConfigRead, false);
  assertEquals(fixture.read(1023, 512).status, 0);
  assertEquals(fixture.read(1024, 512).status, 1);
  fixture.close();
});

Deno.test("RESET_DEVICE drains, stops the rings and forgets them; memory stays", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, queue } = fixture;
  offerRead(fixture);
  session.kicked(0);
  frontEnd.send(REQUEST.SET_STATUS, u64s(15));
  frontEnd.send(REQUEST.RESET_DEVICE, undefined, [], NEED_REPLY);
  assertEquals(frontEnd.reply(), null);
  target.completeAll();
  host.runTurns();
  assertEquals(frontEnd.reply()?.request, REQUEST.RESET_DEVICE);
  assertEquals(host.events, ["acquire", "release"]);
  assertEquals(host.mappings.size, 2);
  assertEquals(frontEnd.askU64(REQUEST.GET_STATUS), 0n);
  queue.reset();
  frontEnd.send(REQUEST.SET_FEATURES, u64s(fixture.features));
  frontEnd.setUpQueue(queue);
  assertEquals(host.isLeaseWanted, false, "it is switched off");
  frontEnd.send(REQUEST.SET_VRING_ENABLE, u32s(0, 1));
  session.leaseGranted();
  assertEquals(fixture.read(0, 512).status, 0);
  fixture.close();
});

Deno.test("status 0 stops rings that are running, and nothing else", () => {
  const fixture = new Fixture().start();
  const { frontEnd, host, session, target, queue } = fixture;
  frontEnd.acknowledged(REQUEST.SET_STATUS, u64s(15));
  assertEquals(frontEnd.askU64(REQUEST.GET_STATUS), 15n);
  offerRead(fixture);
  session.kicked(0);
  frontEnd.send(REQUEST.SET_STATUS, u64s(0));
  frontEnd.send(REQUEST.GET_STATUS);
  assertEquals(frontEnd.reply(), null);
  target.completeAll();
  host.runTurns();
  assertEquals(frontEnd.reply()?.payload[0], 0);
  assertEquals(host.isLeaseWanted, false);
  frontEnd.setUpQueue(queue, 1);
  assertEquals(host.isLeaseWanted, true, "still switched on, features still agreed");
  fixture.close();
});

Deno.test("long chains count as several: what is looked through per turn is bounded, too", () => {
  const fixture = new Fixture({ queueSize: 256, guestBytes: 8 * 1024 * 1024 }).start();
  const { session, target, host, queue } = fixture;
  const address = fixture.allocate(512);
  const pieces = Array.from({ length: 62 }, () => ({ address, length: 512, write: true }));
  const { chain } = fixture.chain(0, 0, pieces);
  // With header and status 64 descriptors: eight more for each.
  const table = fixture.allocate(64 * 16);
  for (let i = 0; i < 100; i++) assert(queue.add(chain, table) >= 0);
  session.kicked(0);
  assertEquals(target.pending.length, Math.ceil(POP_BUDGET / 9));
  assert(host.scheduled !== null, "the rest is not forgotten");
  for (let turns = 0; turns < 4; turns++) host.runTurns();
  assertEquals(target.pending.length, 100);
  fixture.close();
});
