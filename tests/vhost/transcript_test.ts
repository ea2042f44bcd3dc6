/**
 * Whole conversations with QEMU 7.2, in the order in which its `vhost-user-blk` device speaks.
 */
import { assertEquals } from "@std/assert/mod.js";
import { Fixture } from "./fixture.ts";
import { FEATURE, join, REQUEST, u32s, u64s } from "./mock_driver.ts";
import type { MockFile } from "./mock_host.ts";
import { Transcript } from "./transcript.ts";

const NEED_REPLY = 1 | 8;

interface Area {
  readonly file: MockFile;
  readonly payload: Uint8Array<ArrayBuffer>;
}

/** vhost_dev_init(), and the config space when the device is made. */
function connect(fixture: Fixture, isFirst: boolean): void {
  const { frontEnd, host, queues } = fixture;
  frontEnd.askU64(REQUEST.GET_FEATURES);
  const protocol = frontEnd.askU64(REQUEST.GET_PROTOCOL_FEATURES);
  frontEnd.send(REQUEST.SET_PROTOCOL_FEATURES, u64s(protocol));
  frontEnd.askU64(REQUEST.GET_QUEUE_NUM);
  frontEnd.askU64(REQUEST.GET_MAX_MEM_SLOTS);
  frontEnd.acknowledged(REQUEST.SET_BACKEND_REQ_FD, u32s(), [host.openEvent({ count: 0 })]);
  frontEnd.send(REQUEST.SET_OWNER);
  frontEnd.askU64(REQUEST.GET_FEATURES);
  for (const queue of queues) {
    frontEnd.setCall(queue);
    frontEnd.setError(queue);
  }
  if (isFirst) frontEnd.ask(REQUEST.GET_CONFIG, join(u32s(0, 60, 0), new Uint8Array(60)));
}

/** vhost_user_blk_start(). */
function start(
  fixture: Fixture,
  options: { area?: Area; bases?: number[]; withMemory?: boolean } = {},
): Area {
  const { frontEnd, host, queues } = fixture;
  let { area } = options;
  frontEnd.send(REQUEST.SET_FEATURES, u64s(fixture.features));
  if (area === undefined) {
    const wanted = join(u64s(0, 0), u32s(queues.length | queues[0].size << 16, 0));
    const reply = frontEnd.ask(REQUEST.GET_INFLIGHT_FD, wanted);
    area = { file: host.fileOf(reply.fds[0]), payload: reply.payload };
    host.closeFd(reply.fds[0]);
  }
  frontEnd.send(REQUEST.SET_INFLIGHT_FD, area.payload, [host.openFile(area.file)]);
  frontEnd.send(REQUEST.SET_FEATURES, u64s(fixture.features));
  if (options.withMemory !== false) {
    for (const region of fixture.regions) frontEnd.addRegion(region);
  }
  queues.forEach((queue, i) => frontEnd.setUpQueue(queue, options.bases?.[i] ?? 0));
  for (const queue of queues) {
    frontEnd.acknowledged(REQUEST.SET_VRING_ENABLE, u32s(queue.index, 1));
  }
  // vhost_user_dev_start(), since STATUS was agreed on; then the masks are taken off the calls.
  frontEnd.askU64(REQUEST.GET_STATUS);
  frontEnd.send(REQUEST.SET_STATUS, u64s(7));
  for (const queue of queues) frontEnd.setCall(queue);
  return area;
}

/** vhost_dev_stop(). */
function stop(fixture: Fixture): number[] {
  const { frontEnd, queues } = fixture;
  for (const queue of queues) frontEnd.acknowledged(REQUEST.SET_VRING_ENABLE, u32s(queue.index, 0));
  return queues.map((queue) => {
    frontEnd.send(REQUEST.GET_VRING_BASE, u32s(queue.index, 0));
    return new Uint32Array(frontEnd.reply()!.payload.buffer)[1];
  });
}

function begin(name: string, run: (fixture: Fixture, transcript: Transcript) => Fixture): void {
  Deno.test(name, () => {
    const transcript = new Transcript();
    const fixture = new Fixture({ queueCount: 2, queueSize: 16 });
    transcript.attach(fixture);
    const last = run(fixture, transcript);
    transcript.note("QEMU goes away");
    last.close();
    transcript.check(name.replaceAll(" ", "_"));
  });
}

function offer(fixture: Fixture, type: number, sector: number, isKicked = true): void {
  const address = fixture.allocate(512);
  const data = type < 2 ? [{ address, length: 512, write: type === 0 }] : [];
  fixture.queue.add(fixture.chain(type, sector, data).chain);
  if (isKicked) fixture.session.kicked(0);
}

begin("QEMU starts and works", (fixture, transcript) => {
  connect(fixture, true);
  transcript.note("the guest's driver sets DRIVER_OK");
  start(fixture);
  transcript.note("the lease is granted");
  fixture.session.leaseGranted();
  transcript.note("a write, a read and a flush; the read finishes first");
  offer(fixture, 1, 8);
  offer(fixture, 0, 16);
  offer(fixture, 4, 0);
  fixture.target.complete(1);
  fixture.host.runTurns();
  fixture.target.completeAll();
  fixture.host.runTurns();
  assertEquals(fixture.queue.reap().length, 3);
  return fixture;
});

begin("the guest reboots", (fixture, transcript) => {
  connect(fixture, true);
  start(fixture);
  fixture.session.leaseGranted();
  offer(fixture, 1, 8);
  fixture.target.completeAll();
  fixture.host.runTurns();
  transcript.note("the guest resets its device");
  stop(fixture);
  for (const queue of fixture.queues) queue.reset();
  transcript.note("and sets DRIVER_OK once more; QEMU remembers that memory was shared");
  start(fixture, { withMemory: false });
  fixture.session.leaseGranted();
  offer(fixture, 0, 8);
  fixture.target.completeAll();
  fixture.host.runTurns();
  return fixture;
});

begin("the agent restarts under a running guest", (fixture, transcript) => {
  connect(fixture, true);
  const area = start(fixture);
  fixture.session.leaseGranted();
  offer(fixture, 1, 8);
  offer(fixture, 1, 16);
  offer(fixture, 1, 24);
  fixture.target.complete(1);
  fixture.host.runTurns();
  transcript.note(
    "the agent is killed with two writes in flight; the guest makes one more available",
  );
  offer(fixture, 1, 32, false);
  fixture.target.pending.length = 0;
  const next = new Fixture({ of: fixture });
  // The target's own notes come through the first attachment.
  const submit = next.target.submit;
  transcript.attach(next);
  next.target.submit = submit;
  connect(next, false);
  start(next, { area, bases: next.queues.map((queue) => queue.guest.get16(queue.used + 2)) });
  next.session.leaseGranted();
  next.target.completeAll();
  next.host.runTurns();
  assertEquals(next.queue.reap().length, 4);
  return next;
});

begin("QEMU migrates the guest away", (fixture, transcript) => {
  connect(fixture, true);
  start(fixture);
  fixture.session.leaseGranted();
  const { frontEnd, host, queues } = fixture;
  offer(fixture, 0, 8);
  transcript.note("vhost_migration_log(): with a read in flight");
  const log = host.createFile(0x40000);
  frontEnd.ask(REQUEST.SET_LOG_BASE, u64s(0x40000, 0), [host.openFile(log)]);
  frontEnd.acknowledged(REQUEST.SET_FEATURES, u64s(fixture.features | FEATURE.LOG_ALL));
  for (const queue of queues) {
    frontEnd.acknowledged(
      REQUEST.SET_VRING_ADDR,
      frontEnd.vringAddress(queue, { log: queue.used }),
    );
  }
  fixture.target.completeAll();
  host.runTurns();
  const marked = [...host.bytes.subarray(log.offset, log.offset + log.sizeBytes).entries()]
    .filter(([, byte]) => byte !== 0).map(([at, byte]) => `${at.toString(16)}:${byte.toString(2)}`);
  transcript.note(`marked in the log: ${marked.join(" ")}`);
  transcript.note("the guest is stopped; its disk is free for the other host");
  stop(fixture);
  return fixture;
});

begin("memory is plugged in and out", (fixture, transcript) => {
  connect(fixture, true);
  start(fixture);
  fixture.session.leaseGranted();
  const { frontEnd, host, target } = fixture;
  const added = {
    guestAddress: 0x3_0000_0000,
    userAddress: 0x7e00_0000_0000,
    sizeBytes: 0x10000,
    file: host.createFile(0x10000),
    fileOffset: 0,
  };
  transcript.note("in");
  frontEnd.addRegion(added);
  const data = [{ address: added.guestAddress, length: 4096, write: true }];
  fixture.queue.add(fixture.chain(0, 0, data).chain);
  fixture.session.kicked(0);
  transcript.note("out, while a read into it is in flight");
  frontEnd.removeRegion(added);
  transcript.note("the read comes back");
  target.completeAll();
  host.runTurns();
  assertEquals(frontEnd.reply()?.payload[0], 0);
  return fixture;
});

begin("the disk is resized and its cache mode changed", (fixture, transcript) => {
  connect(fixture, true);
  start(fixture);
  fixture.session.leaseGranted();
  const { frontEnd, host, target, session } = fixture;
  transcript.note("to half");
  target.sizeBytes /= 2;
  session.resized();
  assertEquals(host.backendRequests.length, 1);
  frontEnd.ask(REQUEST.GET_CONFIG, join(u32s(0, 60, 0), new Uint8Array(60)));
  transcript.note("the guest chooses write-through");
  frontEnd.send(REQUEST.SET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(0)), [], NEED_REPLY);
  assertEquals(frontEnd.reply()?.payload[0], 0);
  offer(fixture, 1, 8);
  target.completeAll();
  host.runTurns();
  return fixture;
});
