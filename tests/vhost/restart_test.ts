/**
 * What survives the back end: requests in flight, the cache mode; and what is marked for a migration.
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { BlockKind } from "../../agent/blk/target.ts";
import type { GrantedLease } from "../../agent/vhost/session.ts";
import { Fixture, GUEST_BASE, LINUX_FEATURES } from "./fixture.ts";
import { FEATURE, type GuestQueue, join, REQUEST, u32s, u64s } from "./mock_driver.ts";
import type { MockFile } from "./mock_host.ts";

function inflight(sizeBytes: number, queues: number, size: number) {
  return join(u64s(sizeBytes, 0), u32s(queues | size << 16, 0));
}

/** Connects with an inflight area: a new one, or that of an earlier back end. */
function start(
  fixture: Fixture,
  area: { file: MockFile; payload: Uint8Array<ArrayBuffer> } | null,
  lease: GrantedLease = {},
) {
  const { frontEnd, host, queues } = fixture;
  frontEnd.connect();
  let kept = area;
  if (kept === null) {
    const reply = frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(0, queues.length, queues[0].size));
    kept = { file: host.fileOf(reply.fds[0]), payload: reply.payload };
    host.closeFd(reply.fds[0]);
  }
  assertEquals(
    frontEnd.acknowledged(REQUEST.SET_INFLIGHT_FD, kept.payload, [host.openFile(kept.file)]),
    0,
  );
  // QEMU takes the used ring's idx for the base when it has lost the back end.
  const bases = queues.map((queue) => queue.guest.get16(queue.used + 2));
  fixture.configure({ bases });
  for (const queue of queues) frontEnd.setCall(queue);
  fixture.session.leaseGranted(lease);
  fixture.host.runTurns();
  return kept;
}

/** A back end that is killed: its requests never come back, and nothing of it runs any more. */
function successor(fixture: Fixture): Fixture {
  fixture.target.pending.length = 0;
  fixture.target.log.length = 0;
  return new Fixture({ of: fixture });
}

Deno.test("a back end killed at any time: the next one does each request that is owed, oldest first", () => {
  let resubmitted = 0;
  for (let seed = 0; seed < 60; seed++) {
    const random = new Prng(seed);
    let fixture = new Fixture({ queueCount: 2, queueSize: 32, guestBytes: 4 * 1024 * 1024 });
    let area = start(fixture, null);
    /** Sector of each request that the driver has not seen done, by queue and head, in the order offered. */
    const owed = fixture.queues.map(() => new Map<number, { sector: number; status: number }>());
    let sector = 0;
    for (let life = 0; life < 6; life++) {
      const { session, target, host, queues, guest } = fixture;
      const reap = (queue: GuestQueue) => {
        for (const { head } of queue.reap()) {
          const request = owed[queue.index].get(head);
          if (request === undefined) throw new Error("done twice, or never asked for");
          assertEquals(guest.get(request.status, 1)[0], 0);
          owed[queue.index].delete(head);
        }
      };
      for (let step = 0; step < 12; step++) {
        const queue = random.pick(queues);
        if (random.chance(0.6)) {
          const address = fixture.allocate(512);
          const { chain, status } = fixture.chain(0, sector, [{
            address,
            length: 512,
            write: true,
          }]);
          const head = queue.add(chain);
          if (head >= 0) owed[queue.index].set(head, { sector: sector++, status });
          if (random.chance(0.8)) session.kicked(queue.index);
        }
        target.completeSome(random, random.below(3));
        if (random.chance(0.5)) host.runTurns();
        if (random.chance(0.5)) reap(queue);
      }
      // Killed: in one of three ways.
      const way = random.below(3);
      if (way === 0) {
        session.disconnected();
        target.completeAll();
      } else if (way === 1) {
        session.drainAndClose();
        target.completeAll();
        host.runTurns();
      }
      const used = queues.map((queue) => guest.get16(queue.used + 2));
      fixture = successor(fixture);
      // Killed or not, with this area there is no doubt.
      area = start(fixture, area, { isUnclean: true });
      const taken = fixture.target.log.map(({ offsetBytes }) => offsetBytes / 512);
      for (const queue of fixture.queues) {
        reap(queue);
        assertEquals(guest.get16(queue.used + 2), used[queue.index]);
      }
      // Everything offered and not shown as done is with the target again: each once, the oldest first.
      const expected = owed.flatMap((map) =>
        [...map.values()].map((request) => request.sector).sort((a, b) => a - b)
      );
      assertEquals(taken, expected, `seed ${seed}, life ${life}, way ${way}`);
      resubmitted += taken.length;
    }
    fixture.target.completeAll();
    fixture.host.runTurns();
    for (const queue of fixture.queues) {
      for (const { head } of queue.reap()) owed[queue.index].delete(head);
    }
    assertEquals(owed.map((map) => map.size), [0, 0]);
    fixture.close();
  }
  assert(resubmitted > 200, `${resubmitted} resubmitted`);
});

/** A read that the driver makes available, without a kick. */
function ask(fixture: Fixture, sector: number): void {
  const address = fixture.allocate(512);
  const { chain } = fixture.chain(0, sector, [{ address, length: 512, write: true }]);
  assert(fixture.queue.add(chain) >= 0);
}

/**
 * A guest with three requests under way, of which the second is done (the used ring's idx says that it was one, not which), that has moved
 * away from its dead back end.
 *
 * @returns the guest where it is now, its area there, and the one that it has left behind
 */
function movedInDoubt() {
  const first = new Fixture();
  const left = start(first, null);
  first.write(0, new Uint8Array(512));
  for (const sector of [1, 2, 3]) ask(first, sector);
  first.session.kicked(0);
  first.target.complete(1);
  first.host.runTurns();
  const moved = successor(first);
  const area = start(moved, null, { isUnclean: true });
  assert(moved.session.description.isBroken);
  return { moved, area, left };
}

Deno.test("a guest that moved away from a dead back end with requests under way does not go on by guesses", () => {
  const { moved, left } = movedInDoubt();
  moved.session.kicked(0);
  assertEquals(moved.target.log, []);
  assert(moved.session.description.isBroken);
  assert(moved.host.events.some((event) => event.includes("start that agent")));
  // What it comes from knows: the same requests, and no others.
  const back = successor(moved);
  start(back, left, { isUnclean: true });
  assertEquals(back.target.log.map(({ offsetBytes }) => offsetBytes / 512), [1, 3]);
  back.target.completeAll();
  back.close();
});

Deno.test("a guest that stands still since it moved does not go on by guesses when the agent there is restarted", () => {
  let { moved, area } = movedInDoubt();
  for (let restart = 0; restart < 2; restart++) {
    moved = successor(moved);
    // Nobody has given the lease back.
    area = start(moved, area, { isUnclean: true });
    moved.session.kicked(0);
    assertEquals(moved.target.log, []);
    assert(moved.session.description.isBroken);
  }
});

Deno.test("a guest that stands still since it moved is not given back as if all were known: whoever has it next is told", () => {
  const { moved, area } = movedInDoubt();
  // Stopped, as before it moves on, or is continued by hand.
  const base = moved.frontEnd.ask(REQUEST.GET_VRING_BASE, u32s(0, 0)).payload[4];
  assertEquals(moved.host.events.at(-1), "release unclean");
  const next = successor(moved);
  start(next, area, { isUnclean: true });
  assertEquals([next.target.log, next.session.description.isBroken], [[], true]);
  const onward = successor(next);
  start(onward, null, { isUnclean: true });
  assertEquals([onward.target.log, onward.session.description.isBroken], [[], true]);
  assertEquals(base, 2);
});

Deno.test("a guest that was cut off for good stays so when the agent is restarted, until it boots anew", () => {
  const first = new Fixture();
  const area = start(first, null);
  first.write(0, new Uint8Array(512));
  ask(first, 1);
  first.session.kicked(0);
  first.session.fence();
  first.session.disconnected();
  // Another start of the agent, which knows nothing of it, and then an upgrade.
  let next = first;
  for (let restart = 0; restart < 2; restart++) {
    next = successor(next);
    const { frontEnd, host } = next;
    frontEnd.connect();
    frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [host.openFile(area.file)]);
    assert(host.isHungUp);
    assert(host.isClosed);
    assertEquals(host.events.filter((event) => event === "acquire"), []);
    assert(host.events.some((event) => event.includes("end this guest")));
  }
  // After a reset of the guest QEMU asks for another area.
  const booted = successor(next);
  start(booted, null);
  assertEquals(booted.session.description.ringsRunning, 1);
});

Deno.test("a guest that was left running is cut off when others have changed its disk since, and only then", () => {
  const leave = () => {
    const first = new Fixture();
    return { first, area: start(first, null, { generation: 5 }) };
  };
  for (const byOthers of [0, 4, 5]) {
    const { first, area } = leave();
    first.session.drainAndClose();
    const next = successor(first);
    start(next, area, { generation: 8, byOthers });
    assertEquals(next.session.description.ringsRunning, 1, `others until ${byOthers}`);
    next.close();
  }
  for (const isKilled of [true, false]) {
    const { first, area } = leave();
    ask(first, 1);
    first.session.kicked(0);
    if (!isKilled) {
      first.target.completeAll();
      first.session.drainAndClose();
    }
    const next = successor(first);
    next.target.log.length = 0;
    const { frontEnd, host } = next;
    frontEnd.connect();
    frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [host.openFile(area.file)]);
    next.configure();
    next.session.leaseGranted({ generation: 7, byOthers: 6 });
    next.session.kicked(0);
    assertEquals([host.isHungUp, next.target.log], [true, []]);
    assert(host.events.some((event) => event.includes("end this guest")));
    // For good, whatever it is told then.
    const again = successor(next);
    again.frontEnd.connect();
    again.frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [again.host.openFile(area.file)]);
    assert(again.host.isHungUp);
  }
});

Deno.test("a guest that was stopped in good order goes on by its user's will, one that never got its disk does not", () => {
  for (const isGranted of [true, false]) {
    const first = new Fixture();
    const area = start(first, null, { generation: 5 });
    // Another start of the agent, which grants the disk or does not get it before the guest is stopped.
    const stopped = successor(first);
    const { frontEnd, host } = stopped;
    frontEnd.connect();
    frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [host.openFile(area.file)]);
    stopped.configure();
    if (isGranted) stopped.session.leaseGranted({ generation: 6 });
    frontEnd.ask(REQUEST.GET_VRING_BASE, u32s(0, 0));
    const next = successor(stopped);
    next.frontEnd.connect();
    next.frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [next.host.openFile(area.file)]);
    next.configure();
    next.session.leaseGranted({ generation: 8, byOthers: 7 });
    assertEquals(next.host.isHungUp, !isGranted);
  }
});

Deno.test("a guest that moved goes on where nothing can be in doubt", () => {
  const run = (prepare: (fixture: Fixture) => void, isUnclean: boolean) => {
    const first = new Fixture();
    start(first, null);
    prepare(first);
    const moved = successor(first);
    start(moved, null, { isUnclean });
    assertEquals(moved.session.description.isBroken, false);
    const pending = moved.target.log.length;
    moved.target.completeAll();
    moved.host.runTurns();
    moved.queue.reap();
    assertEquals(moved.read(0, 512).status, 0);
    moved.close();
    return pending;
  };
  const write = (fixture: Fixture) => void fixture.write(0, new Uint8Array(512));
  // The back end before has done all that it took: what the driver has added since is new.
  assertEquals(run((at) => (write(at), ask(at, 1)), false), 1);
  // It died, with nothing under way.
  assertEquals(run(write, true), 0);
  // It died, and this guest has only just booted.
  assertEquals(run((at) => ask(at, 1), true), 1);
});

Deno.test("where an area was kept it tells where to go on, whatever the front end has for a base", () => {
  const first = new Fixture();
  const area = start(first, null);
  for (let sector = 0; sector < 3; sector++) first.write(sector, new Uint8Array(512));
  const next = successor(first);
  const { frontEnd, host } = next;
  frontEnd.connect();
  frontEnd.acknowledged(REQUEST.SET_INFLIGHT_FD, area.payload, [host.openFile(area.file)]);
  // As of a front end that has asked a back end which had never seen the ring.
  next.configure({ bases: [0] });
  next.session.leaseGranted();
  next.session.kicked(0);
  assertEquals(next.target.log, [], "nothing is done a second time");
  assertEquals(next.read(0, 512).status, 0);
  next.close();
});

Deno.test("a QEMU that did not notice that its back end was away is taken at its word", () => {
  const first = new Fixture();
  // No negotiation: it begins with the features that it had acknowledged before.
  const { frontEnd, host, queue } = first;
  frontEnd.send(REQUEST.SET_FEATURES, u64s(first.features));
  const reply = frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(0, 1, queue.size));
  assertEquals(reply.fds.length, 1);
  host.closeFd(reply.fds[0]);
  first.configure();
  first.session.leaseGranted();
  assertEquals(first.read(0, 512).status, 0);
  assert(host.events.some((event) => event.startsWith("noted: this QEMU has not noticed")));
  first.close();

  // Whoever begins anew and negotiates nothing has nothing.
  const other = new Fixture();
  other.frontEnd.ask(REQUEST.GET_FEATURES);
  other.frontEnd.send(REQUEST.SET_FEATURES, u64s(other.features));
  other.frontEnd.send(REQUEST.GET_INFLIGHT_FD, inflight(0, 1, 16));
  assert(other.host.events.some((event) => event.includes("INFLIGHT_SHMFD was not negotiated")));
});

Deno.test("a guest that missed its last call is called when the next back end starts", () => {
  const first = new Fixture();
  const area = start(first, null);
  first.write(0, new Uint8Array(512));
  const next = successor(first);
  next.queue.callEvent.count = 0;
  start(next, area);
  assertEquals(next.queue.callEvent.count, 1);
  next.close();
});

Deno.test("write-through survives the back end that was told of it", () => {
  const first = new Fixture();
  const area = start(first, null);
  first.frontEnd.acknowledged(REQUEST.SET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(0)));
  const next = successor(first);
  start(next, area);
  next.write(0, new Uint8Array(512));
  assertEquals(next.target.log, [{
    kind: BlockKind.Write,
    offsetBytes: 0,
    lengthBytes: 512,
    segmentCount: 1,
    forceUnitAccess: true,
    unmap: false,
  }]);
  next.close();
});

Deno.test("without room for an area the front end is told to go on without", () => {
  const fixture = new Fixture();
  fixture.frontEnd.connect();
  fixture.host.mapFailure = 12;
  const reply = fixture.frontEnd.ask(REQUEST.GET_INFLIGHT_FD, inflight(0, 1, 16));
  assertEquals(reply.fds, []);
  assertEquals(new DataView(reply.payload.buffer).getBigUint64(0, true), 0n);
  fixture.host.mapFailure = 0;
  fixture.configure();
  fixture.session.leaseGranted();
  assertEquals(fixture.read(0, 512).status, 0);
  fixture.close();
});

/** Turns logging on as QEMU does under running rings; returns the log's bytes. */
function startLog(fixture: Fixture, sizeBytes: number): Uint8Array<ArrayBuffer> {
  const { frontEnd, host, queues, guest } = fixture;
  const file = host.createFile(sizeBytes);
  const reply = frontEnd.ask(REQUEST.SET_LOG_BASE, u64s(sizeBytes, 0), [host.openFile(file)]);
  assertEquals([...reply.payload], [0, 0, 0, 0, 0, 0, 0, 0]);
  assertEquals(
    frontEnd.acknowledged(REQUEST.SET_FEATURES, u64s(fixture.features | FEATURE.LOG_ALL)),
    0,
  );
  for (const queue of queues) {
    const payload = frontEnd.vringAddress(queue, { log: queue.used });
    assertEquals(frontEnd.acknowledged(REQUEST.SET_VRING_ADDR, payload), 0);
  }
  assertEquals(guest.bytes.length > 0, true);
  return host.bytes.subarray(file.offset, file.offset + sizeBytes);
}

Deno.test("while logging, every page whose bytes change is marked, and few others", () => {
  for (const features of [LINUX_FEATURES, LINUX_FEATURES & ~FEATURE.EVENT_IDX]) {
    const random = new Prng(8);
    const fixture = new Fixture({ features, queueSize: 64, diskBytes: 4 * 1024 * 1024 }).start();
    const { guest, host, target, session, queue, regions } = fixture;
    random.fill(target.data);
    // Two requests are in flight when it begins.
    const early = fixture.allocate(8192, 4096);
    queue.add(fixture.chain(0, 0, [{ address: early, length: 8192, write: true }]).chain);
    session.kicked(0);
    const logBytes = (GUEST_BASE + 0x1_0000_0000 + 0x80000) / 4096 / 8;
    const log = startLog(fixture, logBytes);
    const image = () =>
      regions.map((each) =>
        host.bytes.slice(
          each.file.offset + each.fileOffset,
          each.file.offset + each.fileOffset + each.sizeBytes,
        )
      );
    let before = image();
    let marked = 0, changed = 0;
    for (let round = 0; round < 25; round++) {
      const type = random.pick([0, 0, 1, 4, 8]);
      const length = type === 8 ? 20 : 512 * random.between(1, 24);
      const region = random.pick(regions);
      const address = region === regions[0]
        ? fixture.allocate(length, random.pick([16, 4096]))
        : region.guestAddress + random.below(region.sizeBytes - length);
      if (type === 1) before = image();
      const made = fixture.chain(
        type,
        random.below(1000),
        type === 4 ? [] : [{ address, length, write: type !== 1 }],
      );
      queue.add(made.chain);
      // What the driver writes is the front end's to know.
      before = image();
      // Kicks are not asked for, and asked for again: that is written too.
      host.isPolling = random.chance(0.5);
      session.kicked(0);
      target.completeAll();
      host.runTurns();
      if (random.chance(0.5)) {
        while (host.polledSessions.length > 0) host.polledSessions.pop()!.stopPolling();
      }
      const after = image();
      queue.reap();
      regions.forEach((each, i) => {
        for (let page = 0; page < each.sizeBytes / 4096; page++) {
          const number = each.guestAddress / 4096 + page;
          const isMarked = (log[number >> 3] & (1 << (number & 7))) !== 0;
          const isChanged = before[i].subarray(page * 4096, page * 4096 + 4096)
            .some((byte, at) => byte !== after[i][page * 4096 + at]);
          if (isMarked) marked++;
          if (isChanged) {
            changed++;
            assert(
              isMarked,
              `round ${round}: page ${number.toString(16)} changed and is not marked`,
            );
          }
        }
      });
      log.fill(0);
    }
    assert(marked < changed * 1.3, `${marked} marked for ${changed} changed`);
    // Off again: nothing is marked.
    const off = fixture.frontEnd.acknowledged(REQUEST.SET_FEATURES, u64s(fixture.features));
    assertEquals(off, 0);
    fixture.read(0, 4096);
    assertEquals(log.some((byte) => byte !== 0), false);
    assertEquals(guest.get(early, 1)[0], target.data[0]);
    fixture.close();
  }
});

Deno.test("a failed read is marked too: part of it may have been written", () => {
  const fixture = new Fixture().start();
  const log = startLog(fixture, 1024 * 1024);
  fixture.target.bad.add(0);
  const address = GUEST_BASE + 0x40000;
  fixture.request(0, 0, [{ address, length: 4096, write: true }]);
  const page = address / 4096;
  assertEquals(log[page >> 3] & (1 << (page & 7)), 1 << (page & 7));
  fixture.close();
});

Deno.test("a log that is too small stops the device instead of losing pages", () => {
  const fixture = new Fixture().start();
  startLog(fixture, 4096);
  const address = fixture.allocate(512);
  fixture.queue.add(fixture.chain(0, 0, [{ address, length: 512, write: true }]).chain);
  fixture.session.kicked(0);
  fixture.target.completeAll();
  fixture.host.runTurns();
  assertEquals(
    fixture.host.events.at(-1),
    "broken 0: the dirty log does not cover a page that was written",
  );
  fixture.close();
});

Deno.test("another log takes the place of the old one at once", () => {
  const fixture = new Fixture().start();
  const old = startLog(fixture, 1024 * 1024);
  fixture.read(0, 512);
  assert(old.some((byte) => byte !== 0));
  old.fill(0);
  const next = startLog(fixture, 2 * 1024 * 1024);
  fixture.read(0, 512);
  assertEquals(old.some((byte) => byte !== 0), false);
  assert(next.some((byte) => byte !== 0));
  fixture.close();
});
