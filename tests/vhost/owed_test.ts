/**
 * Requests that are owed from before a restart, of a disk that is at its limit, and a guest that moves.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Throttle } from "../../agent/volume/throttle.ts";
import { Fixture } from "./fixture.ts";
import { join, REQUEST, u32s, u64s } from "./mock_driver.ts";

const LIMITS = {
  iops: 20,
  bytesPerSecond: 0,
  burstIops: 0,
  burstBytesPerSecond: 0,
  burstSeconds: 0,
};
const inflight = (queues: number, size: number) => join(u64s(0, 0), u32s(queues | size << 16, 0));

function offer(fixture: Fixture, sector: number): void {
  const address = fixture.allocate(512);
  const { chain } = fixture.chain(0, sector, [{ address, length: 512, write: true }]);
  if (fixture.queue.add(chain) < 0) throw new Error("the queue is full");
}

Deno.test("a guest that moves away from a back end that owes requests of the one before loses none", () => {
  // A back end that dies with eight requests under way, and two more in the ring.
  const first = new Fixture({ queueSize: 64 });
  first.frontEnd.connect();
  const reply = first.frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(1, 64));
  const file = first.host.fileOf(reply.fds[0]);
  first.frontEnd.acknowledged(REQUEST.SET_INFLIGHT_FD, reply.payload, [first.host.openFile(file)]);
  first.configure({ bases: [0] });
  first.frontEnd.setCall(first.queue);
  first.session.leaseGranted();
  for (let sector = 0; sector < 8; sector++) offer(first, sector);
  first.session.kicked(0);
  assertEquals(first.target.pending.length, 8);
  for (let sector = 8; sector < 10; sector++) offer(first, sector);
  // The next one holds the disk to its limit.
  first.target.pending.length = 0;
  first.target.log.length = 0;
  const second = new Fixture({ of: first });
  const throttle = new Throttle();
  throttle.setLimits(LIMITS, 0);
  second.target.admission = throttle;
  second.host.throttle = throttle;
  second.frontEnd.connect();
  second.frontEnd.acknowledged(REQUEST.SET_INFLIGHT_FD, reply.payload, [
    second.host.openFile(file),
  ]);
  second.configure({ bases: [0] });
  second.frontEnd.setCall(second.queue);
  second.session.leaseGranted({ isUnclean: true });
  second.host.runTurns();
  const done = new Set<number>();
  const note = (fixture: Fixture) => {
    for (const { offsetBytes } of fixture.target.log) done.add(offsetBytes / 512);
    fixture.target.completeAll();
    fixture.host.runTurns();
  };
  note(second);
  // The guest moves: what is under way comes back, and the next host begins at this base, with an area of its own.
  second.frontEnd.skipReplies();
  second.frontEnd.stopQueue(0);
  note(second);
  const { payload } = second.frontEnd.reply()!;
  const base = new DataView(payload.buffer, payload.byteOffset).getUint32(4, true);
  note(second);
  second.target.log.length = 0;
  const moved = new Fixture({ of: second });
  moved.target.admission = undefined;
  moved.frontEnd.connect();
  const fresh = moved.frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(1, 64));
  moved.frontEnd.acknowledged(REQUEST.SET_INFLIGHT_FD, fresh.payload, [
    moved.host.openFile(moved.host.fileOf(fresh.fds[0])),
  ]);
  moved.configure({ bases: [base] });
  moved.frontEnd.setCall(moved.queue);
  moved.session.leaseGranted();
  moved.host.runTurns();
  note(moved);
  assertEquals([...done].sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});
