/**
 * Data workers' ends of peer connections for tests and benches: each with its own ring, arena and clock, all turned by one thread
 * over real loopback sockets.
 *
 * @module
 */
import { Arena } from "../../agent/base/arena.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { PeerListener } from "../../agent/platform/network.ts";
import { opensslCipherSuite } from "../../agent/platform/linux/openssl.ts";
import { Peers } from "../../agent/platform/linux/peers.ts";
import { Ring } from "../../agent/platform/linux/ring.ts";
import type { Log } from "../../agent/platform/platform.ts";
import type { CipherSuite } from "../../agent/wire/cipher.ts";
import { FEATURE, type Identity } from "../../agent/wire/handshake.ts";

// The library stays loaded for the life of the process; here, so that no test takes it for a leak of its own.
opensslCipherSuite();

/** The secret of all tests. */
export const SECRET: Uint8Array = new Uint8Array(32).fill(42);

/** A quiet log that remembers. */
export class TestLog implements Log {
  readonly lines: string[] = [];
  debug(): void {}
  info(): void {}
  warn(message: string, fields?: Record<string, unknown>): void {
    this.lines.push(`${message} ${JSON.stringify(fields)}`);
  }
  error(message: string, fields?: Record<string, unknown>): void {
    this.warn(message, fields);
  }
}

/** A node's identity. */
export function identity(node: number, options: Partial<Identity> = {}): Identity {
  return {
    uuid: node.toString(16).padStart(32, "0"),
    node,
    incarnation: 1,
    clusterId: "c".repeat(32),
    address: `127.0.0.1:${7000 + node}`,
    features: FEATURE.sealBulk,
    ...options,
  };
}

/** What {@linkcode PeerEnd} was told. */
export interface Received {
  link: number;
  head: Uint8Array;
  data: Uint8Array | null;
}

/** One end. Records everything; `onReceived` may take over. */
export class PeerEnd implements PeerListener {
  readonly ring = new Ring();
  readonly arena: Arena;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly peers: Peers;
  readonly log = new TestLog();
  readonly events: string[] = [];
  readonly got: Received[] = [];
  nowMs = 1000;
  ready = 0;
  /** Instead of recording; owns the arena buffer. */
  onReceived:
    | ((link: number, head: Uint8Array, dataOffset: number, dataBytes: number) => void)
    | null = null;

  constructor(
    readonly node: number,
    options: {
      self?: Partial<Identity>;
      secret?: Uint8Array;
      suite?: CipherSuite;
      listen?: string | null;
      arenaBytes?: number;
    } = {},
  ) {
    const arenaBytes = options.arenaBytes ?? 16 * 1024 * 1024;
    this.arena = new Arena(arenaBytes);
    this.bytes = new Uint8Array(arenaBytes);
    this.peers = new Peers({
      ring: this.ring,
      arenaBytes: this.bytes,
      arena: this.arena,
      random: new Prng(node * 7919 + Math.floor(performance.now() * 1000)),
      log: this.log,
      secret: options.secret ?? SECRET,
      self: identity(node, options.self),
      listenAddress: options.listen === undefined ? "127.0.0.1:0" : options.listen,
      nowMs: this.nowMs,
      ...(options.suite ? { suite: options.suite } : {}),
    });
    this.peers.listener = this;
  }

  /** Where it listens. */
  get address(): string {
    return this.peers.address!;
  }

  linkUp(link: number, node: number, isOutgoing: boolean, incarnation: number): void {
    this.events.push(`up ${link} node ${node}.${incarnation} ${isOutgoing ? "out" : "in"}`);
  }
  linkDown(link: number): void {
    this.events.push(`down ${link}`);
  }
  linkReady(): void {
    this.ready++;
  }
  received(
    link: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): void {
    if (this.onReceived !== null) {
      this.onReceived(link, head.subarray(0, headBytes), dataOffset, dataBytes);
      return;
    }
    const data = dataBytes > 0 ? this.bytes.slice(dataOffset, dataOffset + dataBytes) : null;
    if (dataBytes > 0) this.arena.release(dataOffset, dataBytes);
    this.got.push({ link, head: head.slice(0, headBytes), data });
  }

  /** One turn of its loop. */
  turn(waitMs = 0): void {
    this.ring.enter(waitMs);
    this.ring.dispatch();
    this.peers.endTurn();
    if (this.ring.unsubmitted > 0) this.ring.enter(0);
  }

  /** Lets its time pass. */
  tick(ms: number): void {
    this.nowMs += ms;
    this.peers.tick(this.nowMs);
  }

  /** Ends it and frees what it holds. */
  close(): void {
    this.peers.close();
    for (let i = 0; i < 5; i++) this.turn();
    this.ring.close();
  }
}

/** Turns all until `isDone`. Each turn may wait for the kernel, so this ends as soon as it can. */
export function turnUntil(ends: readonly PeerEnd[], isDone: () => boolean, what: string): void {
  const endMs = performance.now() + 30_000;
  while (!isDone()) {
    for (const end of ends) end.turn();
    if (isDone()) return;
    if (performance.now() > endMs) {
      throw new Error(
        `${what}: nothing more happens; ${
          ends.map((end) => `${end.node}: ${end.events.join(", ")} ${end.log.lines.join(", ")}`)
            .join(" | ")
        }`,
      );
    }
    ends[0].turn(1);
  }
}

/** Two ends, the first connected to the second. Returns their links. */
export function connectEnds(a: PeerEnd, b: PeerEnd): [aLink: number, bLink: number] {
  const before = [a.events.length, b.events.length];
  a.peers.setPeer(b.node, b.address);
  turnUntil(
    [a, b],
    () => a.events.length > before[0] && b.events.length > before[1],
    "connecting",
  );
  return [linkOf(a.events[before[0]]), linkOf(b.events[before[1]])];
}

/** Link of an event. */
export function linkOf(event: string): number {
  return Number(event.split(" ")[1]);
}

/** A head whose first bytes say `tag`. */
export function headOf(tag: number, bytes = 64): Uint8Array {
  const head = new Uint8Array(bytes);
  new DataView(head.buffer).setUint32(0, tag, true);
  return head;
}

/** The tag of a head. */
export function tagOf(head: Uint8Array): number {
  return new DataView(head.buffer, head.byteOffset).getUint32(0, true);
}
