/**
 * A front end and a guest that have gone mad: mutated messages, wrong descriptors, rings and inflight areas
 * overwritten while they are in use, at every moment of a session.
 *
 *     deno run -A tests/vhost/fuzz.ts --seed 1 --minutes 10
 *
 * What must hold, whatever comes:
 * - Nothing is thrown out of the session, and no call runs without end.
 * - Requests with the target are what the session says is in flight: none is lost, none is done twice.
 * - Not a byte outside the shared regions changes.
 * - A session that ended has closed every descriptor, undone every mapping and given the lease back.
 *
 * Iteration `i` of seed `s` is the same as iteration 0 of seed `s + i`.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { Fixture, GUEST_BASE, LINUX_FEATURES, USER_BASE } from "./fixture.ts";
import {
  FEATURE,
  frame,
  type GuestQueue,
  type GuestRegion,
  join,
  PROTOCOL_FEATURES,
  REQUEST,
  u32s,
  u64s,
} from "./mock_driver.ts";
import type { MockFile } from "./mock_host.ts";

/** Byte that fills what belongs to no region. */
const GUARD = 0xa5;
/** What happens to a session at the most. */
const STEPS_MAX = 120;

/** How often what happened, to see that the fuzzer gets everywhere. */
export type FuzzCounts = Map<string, number>;

/**
 * Runs sessions until `iterations` are over.
 *
 * @param seed of the first
 * @returns how often what happened
 * @throws when something did not hold, with the seed that shows it
 */
export function runFuzz(seed: number, iterations: number): FuzzCounts {
  const counts: FuzzCounts = new Map();
  for (let i = 0; i < iterations; i++) {
    const fuzz = new Fuzz(seed + i, counts);
    try {
      fuzz.run();
    } catch (error) {
      throw new Error(`fuzz: seed ${seed + i} fails after ${fuzz.done.slice(-12).join(", ")}`, {
        cause: error,
      });
    }
  }
  return counts;
}

class Fuzz {
  /** What was done so far, for people. */
  readonly done: string[] = [];
  readonly #random: Prng;
  readonly #counts: FuzzCounts;
  #fixture: Fixture;
  readonly #log: MockFile;
  readonly #guards: { from: number; to: number }[] = [];
  /** The inflight area that the front end holds, and its description. */
  #area: { file: MockFile; payload: Uint8Array<ArrayBuffer> } | null = null;
  /** Replies looked at. */
  #seen = 0;

  constructor(seed: number, counts: FuzzCounts) {
    const random = new Prng(seed);
    this.#random = random;
    this.#counts = counts;
    let features = LINUX_FEATURES;
    for (const bit of [FEATURE.EVENT_IDX, FEATURE.INDIRECT, FEATURE.PROTOCOL, FEATURE.FLUSH]) {
      if (random.chance(0.2)) features &= ~bit;
    }
    this.#fixture = new Fixture({
      features,
      queueCount: random.between(1, 3),
      queueSize: random.pick([1, 2, 4, 8, 16, 64]),
      diskBytes: 64 * 1024,
      guestBytes: 256 * 1024,
      pieceBytes: random.pick([Infinity, Infinity, 69632, 98304]),
      readOnly: random.chance(0.1),
    });
    const { host, regions } = this.#fixture;
    this.#log = host.createFile(0x40000);
    const [first, second] = regions;
    this.#guard(host.bytes.length - 4096, host.bytes.length);
    this.#guard(first.file.offset - 4096, first.file.offset);
    this.#guard(first.file.offset + first.sizeBytes, second.file.offset + second.fileOffset);
    const end = second.file.offset + second.fileOffset + second.sizeBytes;
    this.#guard(end, this.#log.offset);
    this.#guard(
      this.#log.offset + this.#log.sizeBytes,
      this.#log.offset + this.#log.sizeBytes + 4096,
    );
  }

  #guard(from: number, to: number): void {
    this.#fixture.host.bytes.fill(GUARD, from, to);
    this.#guards.push({ from, to });
  }

  run(): void {
    const random = this.#random;
    if (random.chance(0.9)) this.#begin();
    const steps = random.between(1, STEPS_MAX);
    for (let step = 0; step < steps; step++) {
      this.#step();
      this.#check();
      if (this.#fixture.host.isClosed && random.chance(0.5)) break;
    }
    this.#end();
  }

  #note(what: string): void {
    this.done.push(what);
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + 1);
  }

  /** A proper start, so that most of the madness meets running rings. */
  #begin(): void {
    const { frontEnd, session, host } = this.#fixture;
    if (this.#random.chance(0.3)) frontEnd.fragments = this.#random.fork();
    frontEnd.connect();
    if (this.#random.chance(0.7)) this.#askForArea();
    if (this.#area !== null && this.#random.chance(0.8)) this.#giveArea();
    this.#fixture.configure();
    for (const queue of this.#fixture.queues) {
      frontEnd.setCall(queue);
      frontEnd.setError(queue);
    }
    session.leaseGranted();
    host.runTurns();
    frontEnd.fragments = null;
  }

  #step(): void {
    const random = this.#random;
    const { session, target, host } = this.#fixture;
    const steps: [number, string, () => void][] = [
      [8, "request", () => this.#request()],
      [8, "complete", () => target.completeSome(random, 1 + random.below(4))],
      [8, "turn", () => host.runTurns()],
      [4, "kick", () => session.kicked(random.pick([0, 0, 1, 2, 63, 64, -1]))],
      [5, "ring", () => this.#corruptRing()],
      [3, "descriptor", () => this.#corruptDescriptor()],
      [2, "memory", () => this.#corruptMemory()],
      [4, "message", () => this.#message(false)],
      [4, "mutated message", () => this.#message(true)],
      [0.3, "rubbish", () => this.#rubbish()],
      [1, "grant", () => session.leaseGranted()],
      [0.5, "lose", () => session.leaseLost()],
      [0.5, "resize", () => session.resized()],
      [0.2, "disconnect", () => session.disconnected()],
      [0.2, "drain", () => session.drainAndClose()],
      [0.5, "restart", () => this.#restart()],
      [0.5, "stray turn", () => this.#strayTurn()],
      [0.5, "heal", () => this.#heal()],
      [2, "poll", () => this.#poll()],
      [0.1, "cut", () => host.sendsLeft = random.below(3)],
      [0.2, "starve", () => host.mapFailure = random.pick([0, 12, 22])],
    ];
    let at = random.fraction() * steps.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, name, act] of steps) {
      at -= weight;
      if (at >= 0) continue;
      this.#note(name);
      act();
      return;
    }
  }

  /** The loop looks at rings by itself for a while, or stops doing so. */
  #poll(): void {
    const { session, host } = this.#fixture;
    host.isPolling = this.#random.chance(0.5);
    if (this.#random.chance(0.6)) session.poll();
    if (host.isPolling) return;
    host.polledSessions.length = 0;
    session.stopPolling();
  }

  #strayTurn(): void {
    this.#fixture.host.scheduled = null;
    this.#fixture.session.turn();
  }

  // ----------------------------------------------------------------------------------------- guest

  #guestAddress(): number {
    const random = this.#random;
    const region = random.pick(this.#fixture.regions);
    const end = region.guestAddress + region.sizeBytes;
    return random.pick([
      region.guestAddress + random.below(region.sizeBytes),
      end - random.below(600),
      end - 512,
      region.guestAddress + 69632 - random.below(600),
      random.pick([0, GUEST_BASE - 1, 2 ** 40, 2 ** 52, 2 ** 53, 2 ** 63]),
    ]);
  }

  /** A request that is mostly right, laid out by hand. */
  #request(): void {
    const random = this.#random;
    const fixture = this.#fixture;
    const queue = random.pick(fixture.queues);
    const type = random.pick([0, 0, 0, 1, 1, 4, 8, 11, 13, random.below(20)]);
    const length = random.pick([0, 20, 512, 512, 1024, 4096, 16384, random.below(70000)]);
    const address = random.chance(0.9)
      ? fixture.allocate(Math.min(length, 20000))
      : this.#guestAddress();
    const write = random.chance(0.9) ? type === 0 || type === 8 : random.chance(0.5);
    const isRange = type === 11 || type === 13;
    const range = fixture.allocate(16);
    fixture.guest.set64(range, random.below(130));
    fixture.guest.set64(range + 8, random.below(130));
    const data = isRange
      ? [{ address: range, length: 16, write: false }]
      : [{ address, length, write }];
    const { chain } = fixture.chain(type, random.pick([0, 1, random.below(130), 2 ** 52]), data);
    if (random.chance(0.1)) random.shuffle(chain);
    if (random.chance(0.05)) chain.pop();
    const table = random.chance(0.3) ? fixture.allocate(64, random.pick([1, 16])) : -1;
    this.#lay(queue, chain, table);
    if (random.chance(0.8)) fixture.session.kicked(queue.index);
  }

  /** Without the driver's bookkeeping, which would not survive what else is done here. */
  #lay(
    queue: GuestQueue,
    chain: { address: number; length: number; write: boolean }[],
    table: number,
  ): void {
    const { guest } = queue;
    const head = this.#random.below(queue.size);
    chain.forEach(({ address, length, write }, i) => {
      const flags = (write ? 2 : 0) | (i + 1 < chain.length ? 1 : 0);
      const index = table < 0 ? (head + i) % queue.size : i;
      const at = (table < 0 ? queue.descriptors : table) + index * 16;
      queue.writeDescriptor(
        at,
        address,
        length,
        flags,
        table < 0 ? (index + 1) % queue.size : i + 1,
      );
    });
    if (table >= 0) queue.setDescriptor(head, table, chain.length * 16, 4);
    // From what is in memory, since the ring may have been overwritten.
    queue.availableIndex = guest.get16(queue.available + 2);
    queue.offer(head);
  }

  #corruptRing(): void {
    const random = this.#random;
    const queue = random.pick(this.#fixture.queues);
    const { guest } = queue;
    const value = random.pick([0, 1, queue.size, 0xffff, random.below(65536)]);
    switch (random.below(5)) {
      case 0:
        guest.set16(queue.available + 2, value);
        break;
      case 1:
        guest.set16(queue.available + 4 + 2 * random.below(queue.size + 1), value);
        break;
      case 2:
        guest.set16(queue.used + 2, value);
        break;
      case 3:
        guest.set16(queue.available, value);
        break;
      default:
        guest.set16(
          queue.available + 2,
          (guest.get16(queue.available + 2) + random.below(3)) & 0xffff,
        );
    }
  }

  #corruptDescriptor(): void {
    const random = this.#random;
    const queue = random.pick(this.#fixture.queues);
    const index = random.below(queue.size);
    const length = random.pick([0, 1, 15, 16, 17, 64, 512, 16384, 16400, 0xffff_ffff]);
    const flags = random.pick([0, 1, 2, 3, 4, 5, 6, random.below(65536)]);
    queue.setDescriptor(index, this.#guestAddress(), length, flags, random.below(queue.size + 2));
  }

  #corruptMemory(): void {
    const random = this.#random;
    const { host } = this.#fixture;
    // The inflight area and the log are the front end's to write, too.
    const region = random.pick(this.#fixture.regions);
    let from = region.file.offset + region.fileOffset;
    let length = region.sizeBytes;
    if (this.#area !== null && random.chance(0.6)) {
      from = this.#area.file.offset;
      length = this.#area.file.sizeBytes;
    }
    const at = from + random.below(length);
    const end = Math.min(from + length, at + random.pick([1, 2, 16, 200]));
    random.fill(host.bytes.subarray(at, end));
  }

  // ------------------------------------------------------------------------------------- front end

  #fd(): number {
    const { host, regions } = this.#fixture;
    return this.#random.pick([
      () => host.openEvent({ count: 0 }),
      () => host.openFile(regions[0].file),
      () => host.openFile(this.#log),
      () => host.openFile(this.#area?.file ?? this.#log),
    ])();
  }

  #askForArea(): void {
    const random = this.#random;
    const { frontEnd, queues } = this.#fixture;
    const size = random.chance(0.9) ? queues[0].size : random.pick([1, 8, 1024]);
    const wanted = join(u64s(0, 0), u32s(queues.length | size << 16, 0));
    frontEnd.send(REQUEST.GET_INFLIGHT_FD, wanted);
    this.#takeReplies();
  }

  /** Takes the descriptors that came with replies. */
  #takeReplies(): void {
    const { host, frontEnd } = this.#fixture;
    frontEnd.skipReplies();
    for (; this.#seen < host.sent.length; this.#seen++) {
      const { bytes, fds } = host.sent[this.#seen];
      for (const fd of fds) {
        this.#area = { file: host.fileOf(fd), payload: bytes.slice(12) };
        host.closeFd(fd);
      }
    }
  }

  #giveArea(): void {
    const { frontEnd, host } = this.#fixture;
    const { file, payload } = this.#area!;
    frontEnd.send(REQUEST.SET_INFLIGHT_FD, payload, [host.openFile(file)]);
  }

  /** A message that makes sense by itself, now or at another time. */
  #plain(): { request: number; payload: Uint8Array<ArrayBuffer>; fds: number[] } {
    const random = this.#random;
    const { frontEnd, host, regions, queues, features } = this.#fixture;
    const queue = random.pick(queues);
    const { index } = queue;
    const event = () => [host.openEvent({ count: 0 })];
    const region = random.pick(regions);
    const elsewhere: GuestRegion = {
      ...region,
      guestAddress: region.guestAddress + 0x10_0000_0000,
      userAddress: USER_BASE + 0x10_0000_0000,
    };
    const make: (() => [number, Uint8Array<ArrayBuffer>, number[]])[] = [
      () => [random.pick([1, 3, 4, 15, 17, 34, 36, 40]), u32s(), []],
      () => [REQUEST.SET_FEATURES, u64s(features), []],
      () => [REQUEST.SET_FEATURES, u64s(features | FEATURE.LOG_ALL), []],
      () => [
        REQUEST.SET_PROTOCOL_FEATURES,
        u64s(random.pick([PROTOCOL_FEATURES, PROTOCOL_FEATURES & ~8n])),
        [],
      ],
      () => [
        REQUEST.SET_MEM_TABLE,
        join(u32s(2, 0), ...regions.map((each) => frontEnd.regionPayload(each))),
        regions.map((each) => host.openFile(each.file)),
      ],
      () => [REQUEST.ADD_MEM_REG, join(u64s(0), frontEnd.regionPayload(region)), [
        host.openFile(region.file),
      ]],
      () => [REQUEST.ADD_MEM_REG, join(u64s(0), frontEnd.regionPayload(elsewhere)), [
        host.openFile(region.file),
      ]],
      () => [
        REQUEST.REM_MEM_REG,
        join(u64s(0), frontEnd.regionPayload(random.pick([region, elsewhere]))),
        [],
      ],
      () => [REQUEST.SET_LOG_BASE, u64s(random.pick([0x40000, 0x8000]), 0), [
        host.openFile(this.#log),
      ]],
      () => [REQUEST.SET_VRING_NUM, u32s(index, random.pick([queue.size, 1, 1024])), []],
      () => [REQUEST.SET_VRING_BASE, u32s(index, random.below(65536)), []],
      () => [REQUEST.SET_VRING_ADDR, frontEnd.vringAddress(queue), []],
      () => [REQUEST.SET_VRING_ADDR, frontEnd.vringAddress(queue, { log: queue.used }), []],
      () => [
        REQUEST.SET_VRING_ADDR,
        join(
          u32s(index, random.below(2)),
          u64s(...[0, 0, 0, 0].map(() => USER_BASE + random.below(0x40000))),
        ),
        [],
      ],
      () => [REQUEST.GET_VRING_BASE, u32s(index, 0), []],
      () => [REQUEST.SET_VRING_KICK, u64s(index), event()],
      () => [REQUEST.SET_VRING_CALL, u64s(index), event()],
      () => [REQUEST.SET_VRING_CALL, u64s(index | 0x100), []],
      () => [REQUEST.SET_VRING_ERR, u64s(index), event()],
      () => [REQUEST.SET_VRING_ENABLE, u32s(index, random.below(2)), []],
      () => [REQUEST.SET_BACKEND_REQ_FD, u32s(), event()],
      () => [REQUEST.GET_CONFIG, join(u32s(0, 60, 0), new Uint8Array(60)), []],
      () => [REQUEST.SET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(random.below(2))), []],
      () => [
        REQUEST.GET_INFLIGHT_FD,
        join(u64s(0, 0), u32s(queues.length | queue.size << 16, 0)),
        [],
      ],
      () => [
        REQUEST.SET_INFLIGHT_FD,
        this.#area?.payload ?? join(u64s(4096, 0), u32s(1 | 16 << 16, 0)),
        [host.openFile(this.#area?.file ?? this.#log)],
      ],
      () => [REQUEST.SET_STATUS, u64s(random.pick([0, 7, 15])), []],
    ];
    const [request, payload, fds] = random.pick(make)();
    return { request, payload, fds };
  }

  #message(isMutated: boolean): void {
    const random = this.#random;
    const { frontEnd } = this.#fixture;
    const { request, payload, fds } = this.#plain();
    this.#note(`request ${request}`);
    let bytes = frame(request, payload, random.chance(0.8) ? 9 : 1);
    if (isMutated) {
      bytes = this.#mutated(bytes);
      if (random.chance(0.2)) fds.push(this.#fd());
      if (random.chance(0.1)) { for (let i = random.below(12); i > 0; i--) fds.push(this.#fd()); }
      if (random.chance(0.1)) { for (const fd of fds.splice(0)) this.#fixture.host.closeFd(fd); }
      if (random.chance(0.2) && fds.length > 0) {
        this.#fixture.host.closeFd(fds.pop()!);
        fds.push(this.#fd());
      }
    }
    if (random.chance(0.2)) {
      const second = this.#plain();
      bytes = join(frame(second.request, second.payload), bytes);
      // Only the last of them gets descriptors, as the kernel hands them out.
      for (const fd of second.fds) this.#fixture.host.closeFd(fd);
    }
    if (random.chance(0.3)) frontEnd.fragments = random.fork();
    frontEnd.sendBytes(bytes, fds);
    frontEnd.fragments = null;
    this.#takeReplies();
  }

  #mutated(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const random = this.#random;
    const payloadAt = 12;
    switch (random.below(6)) {
      case 0: {
        // Shorter, and says so.
        const size = random.below(bytes.length - payloadAt + 1);
        const cut = bytes.slice(0, payloadAt + size);
        new DataView(cut.buffer).setUint32(8, size, true);
        return cut;
      }
      case 1: {
        const more = join(bytes, new Uint8Array(random.between(1, 40)));
        new DataView(more.buffer).setUint32(8, more.length - payloadAt, true);
        return more;
      }
      case 2:
        bytes[random.below(4)] = random.below(256);
        return bytes;
      case 3:
        if (random.chance(0.2)) bytes[4 + random.below(8)] ^= 1 << random.below(8);
        return bytes;
      default:
        for (let i = random.between(1, 4); i > 0 && bytes.length > payloadAt; i--) {
          const at = payloadAt + random.below(bytes.length - payloadAt);
          bytes[at] = random.pick([0, 0xff, bytes[at] ^ (1 << random.below(8)), random.below(256)]);
        }
        return bytes;
    }
  }

  #rubbish(): void {
    const bytes = new Uint8Array(this.#random.between(1, 200));
    this.#random.fill(bytes);
    this.#fixture.frontEnd.sendBytes(bytes, this.#random.chance(0.5) ? [this.#fd()] : []);
  }

  /** Stops the rings and starts them anew, so that a broken device is not the end of it. */
  #heal(): void {
    const fixture = this.#fixture;
    const { frontEnd, host, target, session } = fixture;
    for (const queue of fixture.queues) frontEnd.stopQueue(queue.index);
    target.completeAll();
    host.runTurns();
    for (const queue of fixture.queues) {
      queue.reset();
      frontEnd.setUpQueue(queue);
    }
    session.leaseGranted();
    this.#takeReplies();
  }

  /** The back end is killed, and another one meets the same guest. */
  #restart(): void {
    const { target } = this.#fixture;
    if (!this.#fixture.host.isClosed && this.#random.chance(0.5)) {
      target.pending.length = 0;
    } else this.#end();
    this.#fixture = new Fixture({ of: this.#fixture });
    this.#fixture.host.pieceBytes = this.#random.pick([Infinity, 69632]);
    this.#seen = 0;
    const { frontEnd, queues, session, host } = this.#fixture;
    frontEnd.connect();
    if (this.#area !== null) this.#giveArea();
    this.#takeReplies();
    if (host.isClosed) return;
    try {
      this.#fixture.configure({ bases: queues.map((queue) => queue.guest.get16(queue.used + 2)) });
    } catch (error) {
      // The fixture insists on its regions, which a session that has hung up no longer takes.
      if (!host.isHungUp) throw error;
    }
    session.leaseGranted();
    host.runTurns();
  }

  // ---------------------------------------------------------------------------------------- checks

  #check(): void {
    const { session, target, host } = this.#fixture;
    const inFlight = host.isClosed ? 0 : session.inFlightCount;
    if (inFlight !== target.pending.length) {
      throw new Error(`${inFlight} in flight, but the target has ${target.pending.length}`);
    }
    for (const { from, to } of this.#guards) {
      for (let at = from; at < to; at += 8) {
        if (host.bytes[at] !== GUARD) throw new Error(`byte ${at} outside the regions changed`);
      }
    }
  }

  #end(): void {
    const { session, target, host } = this.#fixture;
    for (const line of host.events) this.#counts.set(line.replaceAll(/\d+|0x[0-9a-f]+/g, "#"), 1);
    host.mapFailure = 0;
    if (this.#random.chance(0.5)) session.drainAndClose();
    target.completeAll();
    host.runTurns();
    session.disconnected();
    target.completeAll();
    host.runTurns();
    this.#takeReplies();
    if (!host.isClosed) throw new Error("the session does not end");
    if (host.isLeaseWanted) throw new Error("the lease is not given back");
    if (host.open.size > 0) throw new Error(`descriptors left: ${[...host.open.keys()]}`);
    if (host.mappings.size > 0) throw new Error("mappings left");
    for (const { from, to } of this.#guards) {
      for (let at = from; at < to; at++) {
        if (host.bytes[at] !== GUARD) throw new Error(`byte ${at} outside the regions changed`);
      }
    }
  }
}

if (import.meta.main) {
  const option = (name: string, otherwise: number) => {
    const at = Deno.args.indexOf(`--${name}`);
    return at < 0 ? otherwise : Number(Deno.args[at + 1]);
  };
  const end = performance.now() + option("minutes", 1) * 60_000;
  let seed = option("seed", 1);
  const first = seed;
  for (; performance.now() < end; seed += 100) runFuzz(seed, 100);
  console.log(`fuzz: seeds ${first} to ${seed - 1} hold`);
}
