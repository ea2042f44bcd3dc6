/**
 * NBD clients by seed: good ones whose every byte is checked, and mad ones beside them, over a disk that answers in any order and
 * sometimes not well.
 *
 *     deno run -A tests/nbd/fuzz.ts --seed 1 --minutes 10
 *
 * What must hold, whatever comes:
 * - Nothing is thrown, and no connection is ended but by its own client's doing.
 * - A good client reads what it wrote, and each of its requests is answered once. What a flush or FUA has promised is
 *   durable. Where the disk failed, it is told.
 * - Mad clients change nothing of what the good ones have: their export is read-only.
 * - At the end no slot and no request is left.
 *
 * Iteration `i` of seed `s` is the same as iteration 0 of seed `s + i`.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import { Handshake, type HandshakeHost } from "../../agent/nbd/handshake.ts";
import { contextData, goData, MemoryStream, option, type Reply, request } from "./client.ts";
import type { FakePort } from "./fake_port.ts";
import {
  CACHE,
  FLUSH,
  FUA,
  makeExport,
  Meeting,
  NO_HOLE,
  READ,
  STATUS,
  TRIM,
  WRITE,
  ZERO,
} from "./meeting.ts";

/** Bytes of the disk that each good client has for itself. */
const REGION_BYTES = 48 * 1024;
const GOOD_CLIENTS = 3;
const DISK_BYTES = (GOOD_CLIENTS + 1) * REGION_BYTES;
/** Requests of a good client. */
const REQUESTS = 120;
/** Turns after which everything must have been answered. */
const TURNS_MAX = 20_000;

/** How often what happened, for tests that ask whether everything did. */
export type Counts = Map<string, number>;

/** Runs iterations; throws an Error that names the seed when something does not hold. */
export function runFuzz(seed: number, iterations: number): Counts {
  const counts: Counts = new Map();
  for (let i = 0; i < iterations; i++) {
    try {
      new Run(seed + i, counts).run();
      fuzzHandshake(seed + i, counts);
    } catch (error) {
      throw new Error(`NBD fuzz, seed ${seed + i}: ${error}`, { cause: error });
    }
  }
  return counts;
}

interface Asked {
  readonly command: number;
  readonly flags: number;
  readonly from: number;
  readonly length: number;
  /** What a read must bring, or what a write leaves. */
  readonly content: Uint8Array<ArrayBuffer>;
  /** Of a flush: what must be durable with it, of the whole region. */
  readonly acknowledged: Uint8Array<ArrayBuffer> | null;
  readonly answers: Reply[];
}

class GoodClient {
  readonly meeting: Meeting;
  readonly #random: Prng;
  readonly #base: number;
  /** What the region holds once everything that was answered is there. */
  readonly #model: Uint8Array<ArrayBuffer>;
  /** Bytes that a failed write may have changed, or not. */
  readonly #unsure: Uint8Array;
  /** The first request that may count on the newest change of a byte. */
  readonly #changedBy = new Float64Array(REGION_BYTES);
  readonly #asked = new Map<number, Asked>();
  readonly #isStructured: boolean;
  readonly #counts: Counts;
  #cookie = 0;

  constructor(
    port: FakePort,
    queue: Meeting["queue"],
    index: number,
    random: Prng,
    counts: Counts,
  ) {
    this.#random = random;
    this.#counts = counts;
    this.#isStructured = random.chance(0.6);
    this.#base = index * REGION_BYTES;
    this.#model = port.disk.slice(this.#base, this.#base + REGION_BYTES);
    this.#unsure = new Uint8Array(REGION_BYTES);
    this.meeting = new Meeting(port, queue, {
      isStructured: this.#isStructured,
      hasAllocation: this.#isStructured,
      outputBytes: random.between(20, 64) * 1024,
    });
  }

  /** Nothing more is to be asked, and everything was answered. */
  get isDone(): boolean {
    return this.#cookie >= REQUESTS && this.#asked.size === 0;
  }

  ask(): void {
    if (this.#cookie >= REQUESTS || this.#asked.size >= 12) return;
    const random = this.#random;
    const isAligned = random.chance(0.7);
    const unit = isAligned ? 512 : 1;
    const length = unit * random.between(1, (random.chance(0.2) ? 45_000 : 5000) / unit);
    const from = unit * random.between(0, (REGION_BYTES - length) / unit);
    const command = [READ, READ, WRITE, WRITE, FLUSH, TRIM, CACHE, ZERO, STATUS][random.below(9)];
    if (command === STATUS && !this.#isStructured) return;
    if (command !== FLUSH && this.#isBusy(from, length, command)) return;
    const isChange = command === WRITE || command === TRIM || command === ZERO;
    const flags = (isChange && random.chance(0.3) ? FUA : 0) |
      (command === ZERO && random.chance(0.3) ? NO_HOLE : 0);
    const content = new Uint8Array(length);
    if (command === WRITE) random.fill(content);
    else if (command === READ) content.set(this.#model.subarray(from, from + length));
    else if (command === TRIM) this.#trim(content, from);
    const cookie = ++this.#cookie;
    // Until it is answered nobody knows.
    if (isChange) this.#changedBy.fill(Infinity, from, from + length);
    const acknowledged = command === FLUSH ? this.#model.slice() : null;
    this.#asked.set(cookie, { command, flags, from, length, content, acknowledged, answers: [] });
    this.meeting.ask({
      command,
      flags,
      cookie,
      offset: this.#base + from,
      length: command === FLUSH ? 0 : length,
      data: command === WRITE ? content : undefined,
    });
    this.#count(`asks ${command}${isAligned ? "" : " unaligned"}`);
  }

  /** Of a trim: parts of sectors stay. */
  #trim(content: Uint8Array, from: number): void {
    content.set(this.#model.subarray(from, from + content.length));
    const first = Math.ceil(from / 512) * 512,
      end = Math.floor((from + content.length) / 512) * 512;
    if (end > first) content.fill(0, first - from, end - from);
  }

  /** Order of what overlaps is nobody's promise. */
  #isBusy(from: number, length: number, command: number): boolean {
    const isReading = (each: number) => each === READ || each === CACHE || each === STATUS;
    return [...this.#asked.values()].some((other) =>
      other.command !== FLUSH && !(isReading(other.command) && isReading(command)) &&
      from < other.from + other.length && other.from < from + length
    );
  }

  turn(durable: Uint8Array): void {
    const random = this.#random;
    for (const asked of this.meeting.asked.splice(0)) {
      this.meeting.transmission.extents(asked, [random.between(1, 9000), 3, 2 ** 31, 0]);
    }
    const bytesMax = random.chance(0.3) ? random.below(3000) : Infinity;
    for (const reply of this.meeting.turn(bytesMax)) this.#take(reply, durable);
    if (this.meeting.closed === undefined) return;
    const isLate = String(this.meeting.closed).includes("a part of it had been sent");
    if (!isLate || this.#isStructured) throw new Error(`it was cut off: ${this.meeting.closed}`);
    // The one case in which the protocol has no other way.
    this.#count("a read failed late");
    this.#asked.clear();
    this.#cookie = REQUESTS;
  }

  #take(reply: Reply, durable: Uint8Array): void {
    const asked = this.#asked.get(reply.cookie);
    if (asked === undefined) throw new Error(`a reply to ${reply.cookie}, which was not asked`);
    asked.answers.push(reply);
    if (reply.chunk !== null && !this.#isStructured) throw new Error("a chunk, unasked");
    if (reply.chunk?.isDone === false) return;
    this.#asked.delete(reply.cookie);
    const { command, flags, from, length, content, acknowledged, answers } = asked;
    const failed = answers.some(({ error }) => error !== 0);
    this.#count(`${failed ? "fails" : "does"} ${command}`);
    if (failed && answers.every(({ error }) => error === 0 || error === 5) === false) {
      throw new Error(`request ${command} failed with ${answers.map(({ error }) => error)}`);
    }
    const isChange = command === WRITE || command === TRIM || command === ZERO;
    if (isChange && failed) {
      this.#unsure.fill(1, from, from + length);
      this.#changedBy.fill(this.#cookie + 1, from, from + length);
    } else if (isChange) {
      this.#model.set(content, from);
      this.#changedBy.fill(this.#cookie + 1, from, from + length);
      // Parts of sectors that a trim leaves are as unsure as they were.
      const unit = command === TRIM ? 512 : 1;
      const first = Math.ceil(from / unit) * unit, end = Math.floor((from + length) / unit) * unit;
      if (end > first) {
        this.#unsure.fill(0, first, end);
        // What was changed is durable, not what was left.
        const changed = content.subarray(first - from, end - from);
        if ((flags & FUA) !== 0) this.#checkDurable(durable, changed, first, Infinity);
      }
    } else if (command === FLUSH && !failed) {
      this.#checkDurable(durable, acknowledged!, 0, reply.cookie);
    } else if (command === READ) this.#checkRead(asked, failed);
    else if (command === STATUS && reply.extents.length < 2) throw new Error("no extents");
  }

  #checkRead({ from, length, content, answers }: Asked, failed: boolean): void {
    let bytes = 0;
    for (const { chunk, data, offset, error } of answers) {
      if (error !== 0) continue;
      const at = chunk === null ? 0 : offset - this.#base - from;
      bytes += data.length;
      for (let i = 0; i < data.length; i++) {
        if (data[i] !== content[at + i] && this.#unsure[from + at + i] === 0) {
          throw new Error(`byte ${from + at + i} of a read of ${length} at ${from} is ${data[i]}`);
        }
      }
    }
    if (!failed && bytes !== length) throw new Error(`${bytes} of ${length} bytes came`);
  }

  /** @param since request that has promised it; bytes that were changed since are left out: that may be durable as well */
  #checkDurable(durable: Uint8Array, content: Uint8Array, from: number, since: number): void {
    for (let i = 0; i < content.length; i++) {
      const at = from + i;
      const isRight = durable[this.#base + at] === content[i];
      if (isRight || this.#unsure[at] !== 0 || this.#changedBy[at] > since) continue;
      throw new Error(`byte ${at} is not durable`);
    }
  }

  #count(what: string): void {
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + 1);
  }
}

class Run {
  readonly #random: Prng;
  readonly #counts: Counts;

  constructor(seed: number, counts: Counts) {
    this.#random = new Prng(seed);
    this.#counts = counts;
  }

  run(): void {
    const random = this.#random;
    const { port, queue } = makeExport({ slots: random.between(1, 8), diskBytes: DISK_BYTES });
    random.fill(port.disk);
    port.durable.set(port.disk);
    const isFailing = random.chance(0.4);
    const good = Array.from(
      { length: GOOD_CLIENTS },
      (_, i) => new GoodClient(port, queue, i, random.fork(), this.#counts),
    );
    let mad: Meeting | null = null;
    for (let turn = 0; !good.every(({ isDone }) => isDone); turn++) {
      if (turn > TURNS_MAX) throw new Error("not everything was answered");
      for (let i = random.below(4); i > 0; i--) good[random.below(GOOD_CLIENTS)].ask();
      mad = this.#rave(mad, port, queue);
      for (let i = random.below(4); i > 0 && port.pending.length > 0; i--) {
        port.complete(random.below(port.pending.length), isFailing && random.chance(0.05) ? 1 : 0);
      }
      for (const client of good) client.turn(port.durable);
    }
    mad?.transmission.close();
    for (const asked of mad?.asked ?? []) mad!.transmission.extents(asked, [1, 0]);
    for (const { meeting } of good) meeting.transmission.close();
    for (let i = 0; i < 100; i++) {
      port.completeAll();
      queue.reap();
      queue.resume();
    }
    const left = [...good.map(({ meeting }) => meeting), ...mad === null ? [] : [mad]]
      .filter(({ transmission }) => !transmission.isOver);
    if (port.taken > 0 || left.length > 0) {
      throw new Error(`${port.taken} slots and ${left.length} connections are left`);
    }
  }

  /** A client that sends anything, and comes again when it is cut off, or breaks off by itself. */
  #rave(mad: Meeting | null, port: FakePort, queue: Meeting["queue"]): Meeting | null {
    const random = this.#random;
    if (mad === null || random.chance(0.02)) {
      mad?.transmission.close();
      return new Meeting(port, queue, {
        isStructured: random.chance(0.5),
        hasAllocation: random.chance(0.5),
        // Reads only, so that the good ones' data stays what it is.
        info: { isReadOnly: true },
      });
    }
    if (mad.closed !== undefined) {
      this.#counts.set("mad cut off", (this.#counts.get("mad cut off") ?? 0) + 1);
      return null;
    }
    for (const asked of mad.asked.splice(0)) mad.transmission.extents(asked, [1, 0]);
    mad.stream.take(random.chance(0.5) ? Infinity : random.below(100));
    if (random.chance(0.5) || mad.unput > 0) return mad;
    const bytes = request({
      command: random.chance(0.9) ? random.below(9) : random.below(65536),
      flags: random.chance(0.7) ? 0 : random.below(65536),
      cookie: random.u32(),
      offset: random.chance(0.7) ? random.below(DISK_BYTES) : random.u32() * 2 ** random.below(20),
      length: random.chance(0.7) ? random.below(50_000) : random.u32(),
      data: random.chance(0.2) ? new Uint8Array(random.below(9000)) : undefined,
    });
    if (random.chance(0.05)) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
    mad.send(random.chance(0.05) ? bytes.subarray(0, random.below(bytes.length)) : bytes);
    return mad;
  }
}

/** Options that are nearly good, in pieces of any size, over a host that answers now or later. */
function fuzzHandshake(seed: number, counts: Counts): void {
  const random = new Prng(seed ^ 0x5eed);
  let stream = new MemoryStream();
  let answer: (() => void) | null = null;
  let ended = "";
  const later = (act: () => void) => {
    if (answer !== null) throw new Error("two questions at once");
    if (random.chance(0.5)) answer = act;
    else act();
  };
  const host: HandshakeHost = {
    list: () => later(() => handshake.listed(random.chance(0.8) ? ["a", "b"] : null)),
    find: (name) =>
      later(() =>
        handshake.found(
          random.chance(0.3) ? { answer: 0x8000_0006, message: "no" } : {
            ...{ name, description: "d", sizeBytes: 2 ** 30, isReadOnly: false },
            ...{ canTrim: true, canZero: true },
          },
        )
      ),
    startTls: () => {
      stream = new MemoryStream();
      handshake.secured(stream);
    },
    agreed: () => ended = "agreed",
    close: (reason) => ended = `closed ${reason === null ? "in good order" : "for cause"}`,
  };
  const handshake = new Handshake(host, stream, random.chance(0.5) ? "required" : "off");
  handshake.start();
  for (let i = 0; i < 400 && ended === ""; i++) {
    const number = random.between(0, 12);
    const name = random.chance(0.8) ? "web" : "x".repeat(random.below(5000));
    let bytes: Uint8Array = option(
      number,
      random.chance(0.3)
        ? new Uint8Array(random.below(200))
        : number === 9 || number === 10
        ? contextData(name, random.chance(0.5) ? ["base:allocation"] : ["", "base:", name])
        : number === 6 || number === 7
        ? goData(name, [random.below(5)])
        : number === 1
        ? new TextEncoder().encode(name)
        : new Uint8Array(0),
    );
    if (i === 0) bytes = new Uint8Array([0, 0, 0, random.chance(0.9) ? 3 : random.below(256)]);
    if (random.chance(0.1)) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
    for (let at = 0; at < bytes.length && ended === "";) {
      const taken = stream.put(bytes.subarray(at, at + random.between(1, bytes.length)));
      at += taken;
      handshake.step();
      if (answer !== null && random.chance(0.5)) {
        const act = answer as () => void;
        answer = null;
        act();
        handshake.step();
      }
      if (taken === 0 && answer === null) {
        throw new Error("it takes nothing, and waits for nothing");
      }
      if (taken === 0) break;
    }
    stream.take();
  }
  if (ended === "agreed" !== handshake.isOver && ended !== "" && !handshake.isOver) {
    throw new Error("it goes on after its end");
  }
  counts.set(ended, (counts.get(ended) ?? 0) + 1);
}

if (import.meta.main) {
  const option = (name: string, otherwise: number) => {
    const at = Deno.args.indexOf(`--${name}`);
    return at < 0 ? otherwise : Number(Deno.args[at + 1]);
  };
  const end = performance.now() + option("minutes", 1) * 60_000;
  let seed = option("seed", 1);
  const first = seed;
  for (; performance.now() < end; seed += 10) runFuzz(seed, 10);
  console.log(`fuzz: seeds ${first} to ${seed - 1} hold`);
}
