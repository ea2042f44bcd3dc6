/**
 * Rings that are held back because their disk is at its limit.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { BlockKind } from "../../agent/blk/target.ts";
import { SLACK_MS, Throttle } from "../../agent/volume/throttle.ts";
import { Fixture, LINUX_FEATURES } from "./fixture.ts";
import { FEATURE } from "./mock_driver.ts";

const NONE = {
  iops: 0,
  bytesPerSecond: 0,
  burstIops: 0,
  burstBytesPerSecond: 0,
  burstSeconds: 0,
};

/** A fixture behind a limit of one request per millisecond, of which none is left but what `pass` brings. */
function limited(options: { queueCount?: number; features?: bigint } = {}) {
  const fixture = new Fixture({ queueSize: 64, ...options });
  const throttle = new Throttle();
  throttle.setLimits({ ...NONE, iops: 1000 }, 0);
  fixture.target.admission = throttle;
  fixture.host.throttle = throttle;
  fixture.start();
  // What may be late is used up.
  for (let i = 0; i <= SLACK_MS; i++) throttle.charge(0);
  assertEquals(throttle.isOpen, false);
  /** Time goes on by that of some requests, SLACK_MS at most. */
  const pass = (requests: number) => {
    fixture.host.nowMs += requests;
    throttle.resume(fixture.host.nowMs);
  };
  return { fixture, throttle, pass };
}

function offer(fixture: Fixture, queue = fixture.queue, count = 1): void {
  for (let i = 0; i < count; i++) {
    const address = fixture.allocate(512);
    const { chain } = fixture.chain(0, queue.index, [{ address, length: 512, write: true }]);
    if (queue.add(chain) < 0) throw new Error("the queue is full");
  }
}

Deno.test("what is above the limit stays in the ring, and is taken when there is room again", () => {
  for (const features of [LINUX_FEATURES, LINUX_FEATURES & ~FEATURE.EVENT_IDX]) {
    const { fixture, throttle, pass } = limited({ features });
    const { session, target, host } = fixture;
    offer(fixture, fixture.queue, 5);
    session.kicked(0);
    assertEquals([target.pending.length, session.inFlightCount], [0, 0]);
    session.kicked(0);
    assertEquals(target.pending.length, 0);
    pass(1);
    assertEquals(target.pending.length, 1);
    pass(2);
    assertEquals(target.pending.length, 3);
    throttle.setLimits(NONE, host.nowMs);
    throttle.resume(host.nowMs);
    assertEquals([target.pending.length, throttle.isHolding], [5, false]);
    target.completeAll();
    host.runTurns();
    assertEquals(fixture.queue.reap().length, 5);
    // It asks for kicks again.
    const before = fixture.guest.get16(fixture.queue.available + 2);
    offer(fixture);
    assertEquals(fixture.queue.wantsKick(before), true);
    fixture.close();
  }
});

Deno.test("a ring that is held back stops at once, and goes on where it was", () => {
  const { fixture, pass } = limited();
  const { frontEnd, session, target, host } = fixture;
  offer(fixture, fixture.queue, 4);
  session.kicked(0);
  pass(1);
  target.completeAll();
  host.runTurns();
  frontEnd.skipReplies();
  frontEnd.stopQueue(0);
  const { payload } = frontEnd.reply()!;
  assertEquals(new DataView(payload.buffer, payload.byteOffset).getUint32(4, true), 1, "its base");
  // The next to have it need not know of any limit.
  pass(10);
  assertEquals(target.pending.length, 0, "it has stopped");
  frontEnd.setUpQueue(fixture.queue, 1);
  session.leaseGranted();
  pass(10);
  assertEquals(target.pending.length, 3);
  fixture.close();
});

Deno.test("the agent's end, and the front end's, wait for nothing that is held back", () => {
  const drained = limited();
  offer(drained.fixture, drained.fixture.queue, 4);
  drained.fixture.session.kicked(0);
  drained.fixture.session.drainAndClose();
  assertEquals(drained.fixture.host.isClosed, true);
  const gone = limited();
  offer(gone.fixture, gone.fixture.queue, 4);
  gone.fixture.session.kicked(0);
  gone.fixture.session.disconnected();
  assertEquals(gone.fixture.host.isClosed, true);
  gone.pass(10);
  assertEquals(gone.fixture.target.pending.length, 0);
});

Deno.test("rings take turns, however much the first ones want", () => {
  const { fixture, pass } = limited({ queueCount: 3 });
  const { queues, session, target } = fixture;
  for (const queue of queues) {
    offer(fixture, queue, 10);
    session.kicked(queue.index);
  }
  const order: number[] = [];
  for (let i = 0; i < 6; i++) {
    pass(1);
    order.push(...target.pending.map(({ offsetBytes }) => offsetBytes / 512));
    target.completeAll();
    fixture.host.runTurns();
  }
  assertEquals(order, [0, 1, 2, 0, 1, 2]);
  fixture.close();
});

Deno.test("a ring that uses up what there is and runs empty leaves the others waiting, not forgotten", () => {
  const { fixture, pass } = limited({ queueCount: 2 });
  const { queues, session, target } = fixture;
  for (const queue of queues) {
    offer(fixture, queue);
    session.kicked(queue.index);
  }
  pass(1);
  assertEquals(target.pending.length, 1);
  pass(1);
  assertEquals(target.pending.length, 2);
  fixture.close();
});

Deno.test("nobody looks at rings that are held back, nor asks them for kicks", () => {
  const { fixture, pass } = limited();
  const { host, queue, session, target } = fixture;
  host.isPolling = true;
  offer(fixture, queue, 3);
  session.kicked(0);
  pass(1);
  target.completeAll();
  host.runTurns();
  assertEquals(session.poll(), false, "there is something, and it must not be taken");
  const before = fixture.guest.get16(queue.available + 2);
  for (const each of host.polledSessions) assertEquals(each.stopPolling(), false);
  offer(fixture, queue);
  assertEquals(queue.wantsKick(before), false);
  host.isPolling = false;
  pass(3);
  assertEquals(target.pending.length, 3);
  fixture.close();
});

Deno.test("reads and writes are charged with their bytes, the rest as requests alone", () => {
  const fixture = new Fixture();
  const charged: number[] = [];
  fixture.target.admission = { isOpen: true, charge: (bytes) => charged.push(bytes) };
  fixture.start();
  const range = fixture.allocate(16);
  fixture.guest.set64(range, 0);
  fixture.guest.set32(range + 8, 8);
  fixture.guest.set32(range + 12, 0);
  fixture.read(0, 1536);
  fixture.write(0, new Uint8Array(4096));
  fixture.request(4, 0);
  fixture.request(11, 0, [{ address: range, length: 16, write: false }]);
  fixture.request(13, 0, [{ address: range, length: 16, write: false }]);
  assertEquals(fixture.target.log.map(({ kind }) => kind), [
    BlockKind.Read,
    BlockKind.Write,
    BlockKind.Flush,
    BlockKind.Discard,
    BlockKind.WriteZeroes,
  ]);
  assertEquals(charged, [1536, 4096, 0, 0, 0]);
  fixture.close();
});
