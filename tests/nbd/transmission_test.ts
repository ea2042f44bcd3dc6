/**
 * The transmission phase by cases: what each command becomes, how it is answered, what is refused, and how a connection ends.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { bytesOf, type Reply } from "./client.ts";
import {
  CACHE,
  DF,
  DISC,
  FAST,
  FLUSH,
  FUA,
  makeExport,
  Meeting,
  type MeetingOptions,
  NO_HOLE,
  ONE,
  PIECE,
  RANGE,
  READ,
  STATUS,
  TRIM,
  WRITE,
  ZERO,
} from "./meeting.ts";

function meet(options: MeetingOptions & { slots?: number } = {}): Meeting {
  const { port, queue } = makeExport(options);
  for (let i = 0; i < port.disk.length; i++) port.disk[i] = i * 7 + (i >> 9);
  return new Meeting(port, queue, options);
}

function filled(length: number, byte: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).fill(byte);
}

/** The data of a read whose chunks are all there. */
function dataOf(replies: readonly Reply[], offset: number, length: number): Uint8Array {
  const data = new Uint8Array(length);
  let bytes = 0;
  for (const reply of replies) {
    data.set(reply.data, reply.chunk === null ? 0 : reply.offset - offset);
    bytes += reply.data.length;
  }
  assertEquals(bytes, length);
  assertEquals(
    replies.map(({ chunk }) => chunk?.isDone ?? true).lastIndexOf(true),
    replies.length - 1,
  );
  assertEquals(replies.filter(({ chunk }) => chunk?.isDone ?? true).length, 1);
  return data;
}

Deno.test("reads of every alignment bring the right bytes, structured or not", () => {
  for (const isStructured of [true, false]) {
    for (
      const [offset, length] of [
        ...[[0, 512], [4096, 4096], [0, 1], [511, 2], [513, 4096], [100, 3 * PIECE]],
        ...[[4096, 10 * PIECE], [1, 20 * PIECE], [256 * 1024 - 7, 7]],
      ]
    ) {
      const meeting = meet({ isStructured });
      meeting.ask({ command: READ, cookie: 9, offset, length });
      const replies = meeting.settle();
      assert(replies.every(({ cookie, error }) => cookie === 9 && error === 0));
      const expected = meeting.port.disk.subarray(offset, offset + length);
      assertEquals(
        dataOf(replies, offset, length),
        new Uint8Array(expected),
        `${offset} ${length}`,
      );
      assertEquals([meeting.port.taken, meeting.transmission.inFlight], [0, 0]);
    }
  }
});

Deno.test("a read of one piece is one reply, without anything around it", () => {
  const meeting = meet();
  meeting.ask({ command: READ, cookie: 1, offset: 8192, length: 4096 });
  const replies = meeting.settle();
  assertEquals(replies.map(({ chunk }) => chunk), [{ type: 1, isDone: true }]);
  assertEquals(meeting.port.log, [[0, 8192, 4096]]);
});

Deno.test("writes arrive, unaligned ones without touching what lies beside them", () => {
  for (
    const [offset, length] of [
      ...[[0, 512], [4096, 9 * PIECE], [1, 1], [511, 2], [100, 5000], [512, 100], [3000, 20_000]],
    ]
  ) {
    const meeting = meet();
    const expected = meeting.port.disk.slice();
    expected.fill(0xab, offset, offset + length);
    meeting.ask({ command: WRITE, cookie: 2, offset, data: filled(length, 0xab) });
    const replies = meeting.settle();
    assertEquals(replies.map(({ cookie, error }) => [cookie, error]), [[2, 0]]);
    assertEquals(meeting.port.disk, expected, `${offset} ${length}`);
    assertEquals(meeting.port.taken, 0);
  }
});

Deno.test("write-zeroes and trim cover what they may, in ranges as long as the device takes", () => {
  const meeting = meet();
  meeting.ask({ command: ZERO, cookie: 1, offset: 512, length: 2 * RANGE });
  meeting.ask({ command: ZERO, flags: NO_HOLE, cookie: 2, offset: 0, length: 512 });
  meeting.ask({ command: ZERO, flags: FAST, cookie: 3, offset: 0, length: 512 });
  meeting.ask({ command: TRIM, cookie: 4, offset: 100, length: 2000 });
  meeting.ask({ command: TRIM, cookie: 5, offset: 100, length: 300 });
  const replies = meeting.settle();
  assertEquals(replies.map(({ cookie, error }) => [cookie, error]).sort(), [
    ...[[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]],
  ]);
  assertEquals(meeting.port.log, [
    [13, 512, RANGE, true],
    [13, 512 + RANGE, RANGE, true],
    [13, 0, 512],
    [13, 0, 512, true],
    // Not the sectors of which it is only a part.
    [11, 512, 1536],
  ]);
});

Deno.test("write-zeroes of parts of sectors zeroes exactly those", () => {
  for (const [offset, length] of [[10, 20], [500, 30], [100, 40_000], [512, 700], [1, 511]]) {
    const meeting = meet();
    const expected = meeting.port.disk.slice().fill(0, offset, offset + length);
    meeting.ask({ command: ZERO, cookie: 2, offset, length });
    assertEquals(meeting.settle().map(({ error }) => error), [0]);
    assertEquals(meeting.port.disk, expected);
    // It would be no faster than writing.
    meeting.ask({ command: ZERO, flags: FAST, cookie: 3, offset, length });
    assertEquals(meeting.settle().map(({ error }) => error), [95]);
  }
});

Deno.test("FUA is answered when a flush behind the data has succeeded", () => {
  for (const [offset, length] of [[4096, 4096], [0, 3 * PIECE], [100, 700]]) {
    const meeting = meet();
    meeting.ask({ command: WRITE, flags: FUA, cookie: 7, offset, data: filled(length, 0xcd) });
    const flush = () => meeting.port.pending.findIndex(({ type }) => type === 4);
    while (flush() < 0) {
      meeting.port.complete();
      assertEquals(meeting.turn(), []);
    }
    assertEquals(meeting.port.pending.length, 1);
    meeting.port.complete();
    assertEquals(meeting.turn().map(({ cookie, error }) => [cookie, error]), [[7, 0]]);
    const written = meeting.port.durable.subarray(offset, offset + length);
    assertEquals(new Uint8Array(written), filled(length, 0xcd));
    assertEquals(meeting.port.taken, 0);
  }
  for (const command of [TRIM, ZERO]) {
    const meeting = meet();
    meeting.ask({ command, flags: FUA, cookie: 1, offset: 0, length: 4096 });
    assertEquals(meeting.settle().map(({ error }) => error), [0]);
    assertEquals(meeting.port.log.map(([type]) => type).at(-1), 4);
  }
});

Deno.test("a flush that fails fails the write with FUA before it", () => {
  const meeting = meet();
  meeting.ask({ command: WRITE, flags: FUA, cookie: 7, offset: 0, data: filled(512, 1) });
  meeting.port.complete();
  meeting.turn();
  meeting.port.complete(0, 1);
  assertEquals(meeting.turn().map(({ error }) => error), [5]);
});

Deno.test("a flush is a flush, and Cache reads without telling", () => {
  const meeting = meet();
  meeting.ask({ command: FLUSH, cookie: 1 });
  meeting.ask({ command: CACHE, cookie: 2, offset: 4096, length: 8192 });
  assertEquals(meeting.settle().map(({ cookie, data }) => [cookie, data.length]).sort(), [
    ...[[1, 0], [2, 0]],
  ]);
  assertEquals(meeting.port.log, [[4, 0, 0], [0, 4096, 4096], [0, 8192, 4096]]);
});

Deno.test("what cannot be done is refused as the protocol numbers it, and the connection goes on", () => {
  const sizeBytes = 256 * 1024;
  const cases: [number, Parameters<Meeting["ask"]>[0], (MeetingOptions & object)?][] = [
    [22, { command: READ, cookie: 1, offset: sizeBytes, length: 1 }],
    [22, { command: READ, cookie: 1, offset: 2 ** 53, length: 512 }],
    [75, { command: READ, cookie: 1, offset: 0, length: 33 * 2 ** 20 }, {
      info: { sizeBytes: 2 ** 40 },
    }],
    [28, { command: WRITE, cookie: 1, offset: sizeBytes - 511, data: filled(512, 1) }],
    [28, { command: ZERO, cookie: 1, offset: 0, length: sizeBytes + 512 }],
    [22, { command: TRIM, cookie: 1, offset: 1, length: sizeBytes }],
    [22, { command: READ, flags: ONE, cookie: 1, offset: 0, length: 512 }],
    [22, { command: READ, flags: 64, cookie: 1, offset: 0, length: 512 }],
    [22, { command: READ, flags: DF, cookie: 1, offset: 0, length: 512 }, { isStructured: false }],
    [75, { command: READ, flags: DF, cookie: 1, offset: 1, length: PIECE }],
    [22, { command: WRITE, flags: NO_HOLE, cookie: 1, offset: 0, data: filled(512, 1) }],
    [22, { command: 8, cookie: 1, offset: 0, length: 512 }],
    [22, { command: 0xffff, cookie: 1, offset: 0, length: 512 }],
    [22, { command: STATUS, cookie: 1, offset: 0, length: 512 }],
    [22, { command: STATUS, cookie: 1, offset: 0, length: 0 }, { hasAllocation: true }],
    [1, { command: WRITE, cookie: 1, offset: 0, data: filled(9000, 1) }, {
      info: { isReadOnly: true },
    }],
    [1, { command: TRIM, cookie: 1, offset: 0, length: 512 }, { info: { isReadOnly: true } }],
    [1, { command: ZERO, cookie: 1, offset: 0, length: 512 }, { info: { isReadOnly: true } }],
    [22, { command: TRIM, cookie: 1, offset: 0, length: 512 }, { info: { canTrim: false } }],
  ];
  for (const [error, fields, options] of cases) {
    for (
      const isStructured of fields.flags === DF ? [options?.isStructured ?? true] : [true, false]
    ) {
      const meeting = meet({ ...options, isStructured });
      const before = meeting.port.disk.slice();
      meeting.ask(fields);
      const what = JSON.stringify({ ...fields, data: fields.data?.length, isStructured });
      assertEquals(
        meeting.settle().map((reply) => [reply.cookie, reply.error]),
        [[1, error]],
        what,
      );
      assertEquals(meeting.port.log, [], what);
      assertEquals(meeting.port.disk, before);
      meeting.ask({ command: READ, cookie: 5, offset: 0, length: 512 });
      assertEquals(meeting.settle().map(({ cookie, error }) => [cookie, error]), [[5, 0]], what);
    }
  }
});

Deno.test("an error of the disk is the client's, for the part where it was", () => {
  const meeting = meet();
  meeting.ask({ command: READ, cookie: 1, offset: 0, length: 3 * PIECE });
  meeting.port.complete(1, 1);
  meeting.port.completeAll();
  const replies = meeting.turn();
  assertEquals(replies.map(({ error, offset }) => [error, offset]), [[5, 0], [0, 0], [0, 8192]]);
  assertEquals(replies.map(({ chunk }) => chunk?.type), [0x8002, 1, 1]);
  assertEquals(replies.map(({ chunk }) => chunk?.isDone), [false, false, true]);
  for (const command of [FLUSH, TRIM, ZERO]) {
    meeting.ask({ command, cookie: 2, offset: 0, length: 2 * RANGE });
    while (meeting.port.pending.length > 0) meeting.port.complete(0, command === TRIM ? 2 : 1);
    assertEquals(meeting.turn().map(({ error }) => error), [command === TRIM ? 95 : 5]);
  }
});

Deno.test("without structured replies a failed read has no data, and a long one is in one run", () => {
  const meeting = meet({ isStructured: false });
  meeting.ask({ command: READ, cookie: 1, offset: 0, length: PIECE });
  meeting.port.complete(0, 1);
  assertEquals(meeting.turn().map(({ error, data }) => [error, data.length]), [[5, 0]]);
  // Two requests behind each other: the second is not answered into the first.
  meeting.ask({ command: READ, cookie: 2, offset: 0, length: 12 * PIECE });
  meeting.ask({ command: READ, cookie: 3, offset: 512, length: 512 });
  while (meeting.port.pending.length > 1) meeting.port.complete(1);
  const replies = meeting.settle();
  assertEquals(replies.map(({ cookie, data }) => [cookie, data.length]), [[2, 12 * PIECE], [
    3,
    512,
  ]]);
  assertEquals(replies[0].data, meeting.port.disk.slice(0, 12 * PIECE));
});

Deno.test("without structured replies nothing is answered into a long read, nor before it out of turn", () => {
  const meeting = meet({ isStructured: false });
  meeting.ask({ command: READ, cookie: 1, offset: 512, length: 512 });
  meeting.ask({ command: READ, cookie: 2, offset: 0, length: 20 * PIECE });
  assertEquals(meeting.port.log, [[0, 512, 512]]);
  // Whatever else is under way is done last.
  while (meeting.port.pending.length > 1) meeting.port.complete(1);
  const replies = meeting.settle();
  assertEquals(replies.map(({ cookie, data }) => [cookie, data.length]), [[1, 512], [
    2,
    20 * PIECE,
  ]]);
  assertEquals(replies[1].data, meeting.port.disk.slice(0, 20 * PIECE));
});

Deno.test("without structured replies a read that fails early is an error, one that fails late ends the connection", () => {
  const early = meet({ isStructured: false });
  early.ask({ command: READ, cookie: 2, offset: 0, length: 12 * PIECE });
  early.port.complete(3, 1);
  early.port.completeAll();
  assertEquals(early.turn().map(({ error, data }) => [error, data.length]), [[5, 0]]);
  assertEquals(early.port.taken, 0);
  const late = meet({ isStructured: false });
  late.ask({ command: READ, cookie: 2, offset: 0, length: 12 * PIECE });
  late.port.completeAll();
  late.turn();
  late.port.complete(0, 1);
  late.port.completeAll();
  late.turn();
  assertStringIncludes(late.closed ?? "", "a part of it had been sent");
  assertEquals([late.port.taken, late.transmission.isOver], [0, true]);
});

Deno.test("extents are asked of the host and told within the request", () => {
  const meeting = meet({ hasAllocation: true });
  meeting.ask({ command: STATUS, cookie: 4, offset: 512, length: 8192 });
  assertEquals(meeting.settle(), []);
  const [asked] = meeting.asked;
  assertEquals([asked.offsetBytes, asked.lengthBytes], [512, 8192]);
  meeting.transmission.extents(asked, [4096, 0, 100_000, 3, 4096, 0]);
  const [reply] = meeting.settle();
  assertEquals([reply.cookie, reply.extents], [4, [4096, 0, 4096, 3]]);
  meeting.ask({ command: STATUS, flags: ONE, cookie: 5, offset: 0, length: 8192 });
  meeting.transmission.extents(meeting.asked[1], [4096, 3, 4096, 0]);
  assertEquals(meeting.settle()[0].extents, [4096, 3]);
  assertEquals(meeting.transmission.inFlight, 0);
});

Deno.test("Disconnect is obeyed when everything before it is answered", () => {
  const meeting = meet();
  meeting.ask({ command: WRITE, cookie: 1, offset: 0, data: filled(4096, 9) });
  meeting.ask({ command: DISC, cookie: 2 });
  meeting.ask({ command: READ, cookie: 3, offset: 0, length: 512 });
  assertEquals(meeting.closed, undefined);
  assertEquals(meeting.settle().map(({ cookie }) => cookie), [1]);
  assertEquals(meeting.closed, null);
});

Deno.test("what is no request ends the connection; what is under way is waited for and told to nobody", () => {
  for (
    const rubbish of [
      bytesOf("rubbish, and nothing but rubbish"),
      bytesOf([4, 0x25609513], [2, 0], [2, WRITE], [8, 1], [8, 0], [4, 33 * 2 ** 20]),
    ]
  ) {
    const meeting = meet();
    meeting.ask({ command: READ, cookie: 1, offset: 0, length: 3 * PIECE });
    meeting.ask({ command: WRITE, cookie: 2, offset: 0, data: filled(2 * PIECE, 9) });
    meeting.send(rubbish);
    assert(typeof meeting.closed === "string");
    assertEquals(meeting.transmission.isOver, false);
    assertEquals(meeting.settle(), []);
    assertEquals([meeting.port.taken, meeting.transmission.isOver], [0, true]);
  }
});

Deno.test("a connection that breaks off in the middle of anything leaves nothing behind", () => {
  const requests: Parameters<Meeting["ask"]>[0][] = [
    { command: WRITE, cookie: 1, offset: 0, data: filled(5 * PIECE, 1) },
    { command: WRITE, flags: FUA, cookie: 1, offset: 100, data: filled(2 * PIECE, 1) },
    { command: READ, cookie: 1, offset: 0, length: 20 * PIECE },
    { command: ZERO, cookie: 1, offset: 100, length: 3 * PIECE },
    { command: STATUS, cookie: 1, offset: 0, length: 4096 },
  ];
  for (const isStructured of [true, false]) {
    for (const fields of requests) {
      for (let completed = 0; completed < 6; completed++) {
        const meeting = meet({ isStructured, hasAllocation: true, slots: 3 });
        const other = new Meeting(meeting.port, meeting.queue);
        meeting.ask(fields);
        for (let i = 0; i < completed && meeting.port.pending.length > 0; i++) {
          meeting.port.complete();
          meeting.turn();
        }
        meeting.transmission.close();
        for (const asked of meeting.asked) meeting.transmission.extents(asked, [4096, 0]);
        while (meeting.port.pending.length > 0) {
          meeting.port.complete();
          meeting.turn();
        }
        assertEquals(meeting.port.taken, 0, JSON.stringify({ ...fields, data: 0, completed }));
        assert(meeting.transmission.isOver);
        // Others go on.
        other.ask({ command: WRITE, cookie: 8, offset: 7, data: filled(9, 1) });
        assertEquals(other.settle().map(({ error }) => error), [0]);
      }
    }
  }
});

Deno.test("a connection that ends while it is alone with the disk lets the others go on", () => {
  const { port, queue } = makeExport();
  const gone = new Meeting(port, queue, { hasAllocation: true }), other = new Meeting(port, queue);
  // What it has asked the host is still under way.
  gone.ask({ command: STATUS, cookie: 1, offset: 0, length: 4096 });
  gone.ask({ command: WRITE, cookie: 2, offset: 100, data: filled(10, 1) });
  assertEquals(port.log, [[0, 0, 512]]);
  gone.transmission.close();
  port.completeAll();
  gone.turn();
  other.ask({ command: READ, cookie: 3, offset: 0, length: 512 });
  assertEquals(other.settle().map(({ cookie }) => cookie), [3]);
  gone.transmission.extents(gone.asked[0], [4096, 0]);
  assert(gone.transmission.isOver);
});

Deno.test("a payload that trickles holds no slot, and others go on meanwhile", () => {
  const { port, queue } = makeExport({ slots: 1 });
  const slow = new Meeting(port, queue), quick = new Meeting(port, queue);
  // Before the first piece is there; before that of a part of a sector; behind it.
  for (const [offset, sent] of [[0, 300], [100, 300], [100, 500]]) {
    slow.send(bytesOf([4, 0x25609513], [2, 0], [2, WRITE], [8, 1], [8, offset], [4, 4096]));
    slow.send(filled(sent, 5));
    assertEquals(slow.settle(), []);
    assertEquals(port.taken, 0);
    quick.ask({ command: WRITE, cookie: 2, offset: 9000, data: filled(50, 6) });
    assertEquals(quick.settle().map(({ error }) => error), [0]);
    slow.send(filled(4096 - sent, 5));
    assertEquals(slow.settle().map(({ cookie, error }) => [cookie, error]), [[1, 0]]);
    assert(port.disk.subarray(offset, offset + 4096).every((byte) => byte === 5));
  }
});

Deno.test("a client that does not read its replies stops its own requests only", () => {
  const { port, queue } = makeExport({ slots: 8 });
  const deaf = new Meeting(port, queue), other = new Meeting(port, queue);
  for (let cookie = 0; cookie < 100; cookie++) {
    deaf.ask({ command: READ, cookie, offset: 0, length: 4096 });
  }
  for (let i = 0; i < 50; i++) {
    port.completeAll();
    queue.reap();
    queue.resume();
    deaf.pump();
  }
  assertEquals(port.taken, 0);
  assert(deaf.stream.queuedBytes <= deaf.stream.output.length);
  assert(deaf.transmission.inFlight < 20);
  other.ask({ command: READ, cookie: 2, offset: 0, length: 4096 });
  assertEquals(other.settle().map(({ cookie }) => cookie), [2]);
  // It reads at last: everything is answered.
  const replies = deaf.settle();
  for (let i = 0; replies.length < 100 && i < 200; i++) replies.push(...deaf.settle());
  assertEquals(replies.map(({ cookie }) => cookie).sort((a, b) => a - b), [...Array(100).keys()]);
});

Deno.test("connections that want more slots than there are get their turns", () => {
  const { port, queue } = makeExport({ slots: 2 });
  const meetings = Array.from({ length: 3 }, () => new Meeting(port, queue));
  const counts = [0, 0, 0];
  let cookie = 0;
  for (let round = 0; round < 300; round++) {
    // The first one asks before all others, always.
    for (const meeting of meetings) {
      while (meeting.transmission.inFlight < 8 && meeting.unput === 0) {
        meeting.ask({ command: READ, cookie: cookie++, offset: 0, length: 512 });
        if (meeting.stream.inputEnd - meeting.stream.inputStart > 28) break;
      }
    }
    port.completeAll();
    meetings.forEach((meeting, i) => counts[i] += meeting.turn().length);
  }
  const least = Math.min(...counts), most = Math.max(...counts);
  assert(least > 100 && most < 2 * least, `${counts}`);
});

Deno.test("a slot that comes free goes to who waits for it, not to who asks just then", () => {
  const { port, queue } = makeExport({ slots: 1 });
  const [first, second] = [new Meeting(port, queue), new Meeting(port, queue)];
  first.ask({ command: READ, cookie: 1, offset: 0, length: 512 });
  second.ask({ command: READ, cookie: 2, offset: 512, length: 512 });
  port.complete();
  queue.reap();
  first.ask({ command: READ, cookie: 3, offset: 1024, length: 512 });
  queue.resume();
  assertEquals(port.log.map(([, offset]) => offset), [0, 512]);
  assertEquals([...second.settle(), ...first.settle()].map(({ cookie }) => cookie), [2, 1, 3]);
});

Deno.test("a write of part of a sector is alone with the disk", () => {
  const { port, queue } = makeExport();
  const first = new Meeting(port, queue), second = new Meeting(port, queue);
  first.ask({ command: WRITE, cookie: 1, offset: 512, data: filled(512, 1) });
  second.ask({ command: WRITE, cookie: 2, offset: 600, data: filled(10, 2) });
  // Not before what is under way is done, and nothing begins meanwhile.
  assertEquals(port.log.length, 1);
  first.ask({ command: WRITE, cookie: 3, offset: 512, data: filled(512, 3) });
  assertEquals(port.log.length, 1);
  port.complete();
  assertEquals(first.turn().map(({ cookie }) => cookie), [1]);
  assertEquals(port.log.slice(1), [[0, 512, 512]]);
  port.complete();
  first.turn();
  assertEquals(port.log.slice(2), [[1, 512, 512]]);
  port.complete();
  assertEquals(second.turn().map(({ cookie }) => cookie), [2]);
  assertEquals(port.log.slice(3), [[1, 512, 512]]);
  const sector = filled(512, 1);
  sector.fill(2, 88, 98);
  assertEquals(port.disk.slice(512, 1024), sector);
  assertEquals(first.settle().map(({ cookie }) => cookie), [3]);
  assertEquals(port.disk.slice(512, 1024), filled(512, 3));
});
