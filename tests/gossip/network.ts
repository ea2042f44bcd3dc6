/**
 * A network of gossip machines with a seed: loss, delay, duplicates, cut links, members that crash, restart or stop
 * for a while. Time passes in steps of one millisecond.
 *
 * @module
 */
import { Prng } from "../../agent/base/prng.ts";
import {
  Gossip,
  type GossipOptions,
  knownMember,
  type MemberEvent,
  type MemberView,
  TICK_MS,
} from "../../agent/gossip/gossip.ts";
import { EMPTY_META, type MemberMeta } from "../../agent/gossip/meta.ts";

/** What sealing adds to a packet. */
const SEAL_BYTES = 32;

/** Uuid of the member with this index. Its first digits differ, as those of random uuids do. */
export function uuidOf(index: number): string {
  const mixed = Math.imul(index + 1, 0x9e3779b1) >>> 0;
  return mixed.toString(16).padStart(8, "0") + index.toString(16).padStart(24, "0");
}

/** Address of the member with this index. */
export function addressOf(index: number): string {
  return `10.0.${index >> 8}.${index & 255}:7460`;
}

/** A meta as long as real ones. */
export function metaOf(index: number): MemberMeta {
  return {
    ...EMPTY_META,
    name: `host-${index}`,
    zone: `rack-${index % 7}`,
    version: "0.3.0",
    protocol: 1,
    capacityBytes: 4e12,
    freeBytes: 1e12,
  };
}

/** One member of the network. */
export interface Node {
  readonly index: number;
  gossip: Gossip;
  address: string;
  isUp: boolean;
  /** Does not run; what comes waits. */
  isPaused: boolean;
  readonly waiting: { from: string; bytes: Uint8Array }[];
  bytesSent: number;
  bytesReceived: number;
}

/** An event, and who saw it when. */
export interface Seen {
  readonly atMs: number;
  readonly on: Node;
  readonly event: MemberEvent;
}

/** How bad the network is. */
export interface NetworkOptions {
  readonly seed: number;
  readonly loss?: number;
  readonly delayMs?: readonly [number, number];
  readonly duplicates?: number;
}

/** The network. */
export class Network {
  nowMs = 1000;
  loss: number;
  readonly nodes: Node[] = [];
  readonly seen: Seen[] = [];
  /** False for links that are cut. */
  isLinked: (from: Node, to: Node) => boolean = () => true;
  readonly random: Prng;
  readonly #options: NetworkOptions;
  readonly #byAddress = new Map<string, Node>();
  readonly #inFlight = new Map<number, { to: string; from: Node; bytes: Uint8Array }[]>();

  constructor(options: NetworkOptions) {
    this.#options = options;
    this.random = new Prng(options.seed);
    this.loss = options.loss ?? 0;
  }

  /** Starts a member. */
  add(index: number, options: Partial<GossipOptions> & { agentIncarnation?: number } = {}): Node {
    const node: Node = {
      index,
      gossip: this.#machine(index, addressOf(index), options),
      address: addressOf(index),
      isUp: true,
      isPaused: false,
      waiting: [],
      bytesSent: 0,
      bytesReceived: 0,
    };
    this.nodes.push(node);
    this.#byAddress.set(node.address, node);
    return node;
  }

  /** `count` members that have been together for long. */
  addKnown(count: number): void {
    const known = Array.from({ length: count }, (_, index) =>
      knownMember({
        uuid: uuidOf(index),
        address: addressOf(index),
        agentIncarnation: 1,
        meta: metaOf(index),
      }));
    known.sort((a, b) => a.uuid < b.uuid ? -1 : 1);
    for (let index = 0; index < count; index++) this.add(index, { known });
  }

  /** `count` members that all know the first by its address. */
  addJoining(count: number): void {
    for (let index = 0; index < count; index++) this.add(index, { seeds: [addressOf(0)] });
  }

  #machine(
    index: number,
    address: string,
    options: Partial<GossipOptions> & { agentIncarnation?: number },
  ): Gossip {
    return new Gossip({
      self: {
        uuid: uuidOf(index),
        address,
        agentIncarnation: options.agentIncarnation ?? 1,
        meta: metaOf(index),
      },
      random: this.random.fork(),
      ...options,
    });
  }

  /** The member's process ends without a word. */
  crash(node: Node): void {
    node.isUp = false;
  }

  /** And begins again, maybe elsewhere. */
  restart(
    node: Node,
    options: Partial<GossipOptions> & { agentIncarnation?: number; address?: string },
  ): void {
    node.isUp = true;
    this.#byAddress.delete(node.address);
    node.address = options.address ?? node.address;
    this.#byAddress.set(node.address, node);
    node.gossip = this.#machine(node.index, node.address, options);
  }

  /** What one member knows about another. */
  view(on: Node, of: Node): MemberView | null {
    return on.gossip.member(uuidOf(of.index));
  }

  /** True when every member that runs sees this state of `of`. */
  allSee(of: Node, state: MemberView["state"]): boolean {
    return this.nodes.every((on) =>
      !on.isUp || on.isPaused || on === of || this.view(on, of)?.state === state
    );
  }

  /** True when every member that runs has all of them, alive. */
  isConverged(): boolean {
    const up = this.nodes.filter(({ isUp }) => isUp);
    return up.every((on) => up.every((of) => this.view(on, of)?.state === "alive"));
  }

  /** Deaths seen since `fromMs` of members that were well. */
  falseDeaths(fromMs = 0): Seen[] {
    return this.seen.filter(({ atMs, event }) =>
      atMs >= fromMs && event.kind === "dead" &&
      this.nodes.some(({ index, isUp }) => isUp && uuidOf(index) === event.member.uuid)
    );
  }

  /** Lets time pass until `isDone`, looking every 50 ms; at most `limitMs`. Returns how long it took. */
  runUntil(isDone: () => boolean, limitMs: number): number {
    const fromMs = this.nowMs;
    while (this.nowMs - fromMs < limitMs) {
      if (isDone()) return this.nowMs - fromMs;
      this.run(TICK_MS);
    }
    if (isDone()) return this.nowMs - fromMs;
    throw new Error(`seed ${this.#options.seed}: not within ${limitMs} ms`);
  }

  /** Lets time pass. */
  run(durationMs: number): void {
    for (const endMs = this.nowMs + durationMs; this.nowMs < endMs;) {
      this.nowMs++;
      this.#deliver();
      for (let at = this.nowMs % TICK_MS; at < this.nodes.length; at += TICK_MS) {
        const node = this.nodes[at];
        if (!node.isUp || node.isPaused) continue;
        for (const { from, bytes } of node.waiting.splice(0)) {
          node.gossip.receive(from, bytes, this.nowMs);
        }
        node.gossip.tick(this.nowMs);
        this.#collect(node);
      }
    }
  }

  #deliver(): void {
    for (const { to, from, bytes } of this.#inFlight.get(this.nowMs) ?? []) {
      const node = this.#byAddress.get(to);
      if (node === undefined || !node.isUp || !this.isLinked(from, node)) continue;
      if (node.isPaused) {
        node.waiting.push({ from: from.address, bytes });
        continue;
      }
      node.bytesReceived += bytes.length + SEAL_BYTES;
      node.gossip.receive(from.address, bytes, this.nowMs);
      this.#collect(node);
    }
    this.#inFlight.delete(this.nowMs);
  }

  #collect(node: Node): void {
    for (const event of node.gossip.takeEvents()) {
      this.seen.push({ atMs: this.nowMs, on: node, event });
    }
    for (const { address, bytes } of node.gossip.takePackets()) {
      node.bytesSent += bytes.length + SEAL_BYTES;
      if (this.loss > 0 && this.random.chance(this.loss)) continue;
      this.#send(node, address, bytes);
      const { duplicates = 0 } = this.#options;
      if (duplicates > 0 && this.random.chance(duplicates)) this.#send(node, address, bytes);
    }
  }

  #send(from: Node, to: string, bytes: Uint8Array): void {
    const [least, most] = this.#options.delayMs ?? [1, 3];
    const atMs = this.nowMs + this.random.between(least, most);
    const list = this.#inFlight.get(atMs);
    if (list === undefined) this.#inFlight.set(atMs, [{ to, from, bytes }]);
    else list.push({ to, from, bytes });
  }
}
