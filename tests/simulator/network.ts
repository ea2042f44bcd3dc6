/**
 * The network between simulated nodes: datagrams and control messages that get lost, doubled and late, and data links that are
 * in order until they break.
 *
 * A link that breaks takes with it what is under way in both directions; its two ends learn of it at different times, and until
 * then what they send goes nowhere. So a server may see a new link of a client before it hears that the old one has gone.
 * Over a direction that is cut a link stalls: it goes on when the cut ends, or breaks after a while.
 * In a direction that is held nothing of data links is lost, only late: see {@linkcode Network.hold}.
 *
 * @module
 */
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import {
  PEER_DATA_BYTES_MAX,
  PEER_HEAD_BYTES_MAX,
  type PeerListener,
  type PeerTransport,
} from "../../agent/platform/network.ts";
import type { World } from "./world.ts";

/** How bad the network is. */
export interface NetworkFaults {
  /** Share of datagrams and control messages that get lost. */
  loss: number;
  /** Share that come twice, the second time much later. */
  repeat: number;
  /** Longest usual delay, in milliseconds. */
  delayMs: number;
  /** Chance per message on a data link that the link breaks. */
  breakage: number;
  /** Chance that a data link takes no message though there is room; it is ready a little later. */
  refusal: number;
}

/** A network without faults. */
export const NO_FAULTS: NetworkFaults = { loss: 0, repeat: 0, delayMs: 1, breakage: 0, refusal: 0 };

/** A node, as the network sees it. */
export interface Station {
  /** Number of the host in the simulation. */
  readonly id: number;
  /** Its number in the map; 0: none yet. */
  readonly node: number;
  readonly address: string;
  readonly isRunning: boolean;
  /** Counts starts of the process: what was sent to an earlier one does not arrive. */
  readonly run: number;
  readonly incarnation: number;
  controlArrived(from: Station, bytes: Uint8Array): void;
  gossipArrived(from: Station, bytes: Uint8Array): void;
  readonly links: LinkEnds | null;
}

/** A station's data links. */
export interface LinkEnds {
  readonly listener: PeerListener;
  /** Room for a message's data; −1: none. */
  allocate(bytes: number): number;
  readonly memory: Uint8Array;
  /** Something arrived: the node's loop turns. */
  turn(): void;
}

/** A message on a data link, with a copy of what was sent; used again for the next one. */
class Message {
  readonly head = new Uint8Array(PEER_HEAD_BYTES_MAX);
  headBytes = 0;
  data = new Uint8Array(0);
  dataBytes = 0;

  take(
    head: Uint8Array,
    headBytes: number,
    memory: Uint8Array,
    dataOffset: number,
    dataBytes: number,
  ): void {
    this.headBytes = headBytes;
    this.head.set(head.subarray(0, headBytes));
    this.dataBytes = dataBytes;
    if (this.data.length < dataBytes) this.data = new Uint8Array(dataBytes);
    this.data.set(memory.subarray(dataOffset, dataOffset + dataBytes));
  }
}

class End {
  link = -1;
  isPaused = false;
  /** Messages that have arrived and wait. */
  readonly queue: Message[] = [];
  queuedBytes = 0;
  wantsReady = false;
  lastArrivalMs = 0;
  /** The link has broken, and what was sent here before that is held: it comes first, and the news after it. */
  isEnding = false;
  constructor(readonly station: Station, readonly run: number) {}
}

interface Connection {
  readonly client: End;
  readonly server: End;
  isUp: boolean;
}

/** Most bytes on their way in one direction of a link. */
const QUEUE_BYTES_MAX = 4 * 1024 * 1024;
/** Messages that are kept for use. */
const MESSAGES_MAX = 256;
const RECONNECT_MS = 100;
/** Longest time between the break of a link and its notice at an end. */
const NOTICE_MS = 400;
/** A link over a cut is given up after this time. */
const CUT_MS = 1500;

/** See the head of the file. */
export class Network {
  readonly stations = new Map<string, Station>();
  faults: NetworkFaults = { ...NO_FAULTS };
  /** Pairs `from>to` over which nothing goes. */
  readonly cut = new Set<string>();
  /** Pairs `from>to` of which data links are held. */
  readonly #held = new Set<string>();
  /** Links that have broken, of which an end has something held to come. */
  readonly #ending = new Set<Connection>();
  #nextLink = 1;
  readonly #connections = new Set<Connection>();
  /** Messages of data links that were delivered. */
  readonly #messages: Message[] = [];
  /** Bytes of gossip and control so far. */
  sentBytes = 0;

  constructor(readonly world: World) {}

  isCut(from: Station, to: Station): boolean {
    return this.cut.has(`${from.id}>${to.id}`);
  }

  /**
   * What is sent over data links from one station to another stays on its way until {@linkcode release}, as segments do that TCP
   * sends again and again: links stay up, no new one is made, and neither that a link is given up nor that the sender's process ends
   * takes back what its kernel has. The other direction, control and gossip go on. For stories: no seed holds anything.
   */
  hold(from: Station, to: Station): void {
    this.#held.add(`${from.id}>${to.id}`);
  }

  /** What was held arrives now, in order, and after it that links have broken meanwhile. */
  release(from: Station, to: Station): void {
    this.#held.delete(`${from.id}>${to.id}`);
    for (const connection of [...this.#connections, ...this.#ending]) {
      for (const end of [connection.client, connection.server]) {
        const other = end === connection.client ? connection.server : connection.client;
        if (other.station !== from || end.station !== to) continue;
        this.world.after(0, () => this.#deliver(connection, end));
      }
    }
  }

  #isHeld(from: Station, to: Station): boolean {
    return this.#held.has(`${from.id}>${to.id}`);
  }

  /** Sends a datagram or control message. */
  send(
    from: Station,
    address: string,
    bytes: Uint8Array,
    arrive: (to: Station, from: Station, bytes: Uint8Array) => void,
  ): void {
    const to = this.stations.get(address);
    if (to === undefined) return;
    const { random } = this.world;
    this.sentBytes += bytes.length;
    const copy = bytes.slice();
    const { run } = to;
    const deliver = () => {
      if (to.isRunning && to.run === run && !this.isCut(from, to)) arrive(to, from, copy);
    };
    if (!random.chance(this.faults.loss)) this.world.after(this.#delayMs(), deliver);
    if (random.chance(this.faults.repeat)) {
      this.world.after(this.#delayMs() + random.below(2000), deliver);
    }
  }

  #delayMs(): number {
    const { random } = this.world;
    return random.chance(0.02)
      ? random.fraction() * 20 * this.faults.delayMs
      : random.fraction() * this.faults.delayMs;
  }

  /** The data links of one run of a station. */
  transport(station: Station): PeerTransport & { close(): void } {
    const { run } = station;
    const wanted = new Map<number, string>();
    const mine = new Map<number, { connection: Connection; end: End; other: End }>();
    const connect = (node: number) => {
      const address = wanted.get(node);
      const isCurrent = station.isRunning && station.run === run;
      if (address === undefined || !isCurrent) return;
      for (const { connection, end } of mine.values()) {
        if (
          connection.isUp && end === connection.client && connection.server.station.node === node
        ) {
          return;
        }
      }
      const to = this.stations.get(address);
      const isReachable = to !== undefined && to.isRunning && to.links !== null &&
        to.incarnation > 0 && station.incarnation > 0 &&
        !this.isCut(station, to) && !this.isCut(to, station) &&
        !this.#isHeld(station, to) && !this.#isHeld(to, station);
      if (!isReachable) {
        this.world.after(RECONNECT_MS * (1 + this.world.random.fraction()), () => connect(node));
        return;
      }
      const connection: Connection = {
        client: new End(station, run),
        server: new End(to, to.run),
        isUp: true,
      };
      this.#connections.add(connection);
      for (const end of [connection.client, connection.server]) {
        end.link = this.#nextLink++;
        const other = end === connection.client ? connection.server : connection.client;
        const links = (end.station.links as SimulatedLinks).ends;
        links.set(end.link, { connection, end, other });
        end.station.links!.listener.linkUp(
          end.link,
          other.station.node,
          end === connection.client,
          other.station.incarnation,
        );
        end.station.links!.turn();
      }
    };
    (station.links as SimulatedLinks).ends = mine;
    (station.links as SimulatedLinks).reconnect = connect;
    return {
      setPeer: (node, address) => {
        if (address === null) {
          wanted.delete(node);
          for (const { connection, other } of [...mine.values()]) {
            if (other.station.node === node && connection.client.station === station) {
              this.#break(connection);
            }
          }
          return;
        }
        wanted.set(node, address);
        this.world.after(this.#delayMs(), () => connect(node));
      },
      send: (link, head, headBytes, dataOffset, dataBytes) => {
        const place = mine.get(link);
        if (place === undefined) return false;
        const { connection, end, other } = place;
        const isSane = headBytes <= PEER_HEAD_BYTES_MAX && dataBytes <= PEER_DATA_BYTES_MAX &&
          dataBytes % BLOCK_BYTES === 0;
        if (!isSane) throw new Error(`network: a message of ${headBytes} + ${dataBytes} bytes`);
        // Broken, and nobody here knows yet.
        if (!connection.isUp) return true;
        if (other.queuedBytes > QUEUE_BYTES_MAX) {
          other.wantsReady = true;
          return false;
        }
        if (this.world.random.chance(this.faults.refusal)) {
          this.world.after(this.#delayMs(), () => {
            if (mine.get(link) !== place || station.run !== run || !station.isRunning) return;
            station.links!.listener.linkReady(end.link);
            station.links!.turn();
          });
          return false;
        }
        const message = this.#messages.pop() ?? new Message();
        message.take(head, headBytes, station.links!.memory, dataOffset, dataBytes);
        other.queuedBytes += headBytes + dataBytes;
        if (this.world.random.chance(this.faults.breakage)) {
          this.world.after(this.#delayMs(), () => this.#break(connection));
        }
        // In order: never before what was sent before.
        const atMs = Math.max(this.world.nowMs + this.#delayMs() / 4, other.lastArrivalMs);
        other.lastArrivalMs = atMs;
        this.world.after(atMs - this.world.nowMs, () => {
          if (!connection.isUp && !other.isEnding) return;
          other.queue.push(message);
          this.#deliver(connection, other);
        });
        return true;
      },
      drop: (link) => {
        const place = mine.get(link);
        if (place !== undefined) this.#break(place.connection);
      },
      pause: (link, paused) => {
        const place = mine.get(link);
        if (place === undefined) return;
        place.end.isPaused = paused;
        if (!paused) this.world.after(0, () => this.#deliver(place.connection, place.end));
      },
      close: () => {
        for (const { connection } of [...mine.values()]) this.#break(connection);
      },
    };
  }

  #deliver(connection: Connection, end: End): void {
    const other = end === connection.client ? connection.server : connection.client;
    if (this.#isHeld(other.station, end.station)) return;
    while ((connection.isUp || end.isEnding) && end.queue.length > 0 && !end.isPaused) {
      const { station } = end;
      if (!station.isRunning || station.run !== end.run) return;
      // A cut is noticed when something should have arrived: later, by a timeout.
      if (this.isCut(other.station, station)) {
        this.world.after(CUT_MS, () => {
          if (this.isCut(other.station, station)) this.#break(connection);
          else this.#deliver(connection, end);
        });
        return;
      }
      const message = end.queue[0];
      const { head, headBytes, dataBytes } = message;
      const links = station.links!;
      let offset = 0;
      if (dataBytes > 0) {
        offset = links.allocate(dataBytes);
        if (offset < 0) {
          this.world.after(1, () => this.#deliver(connection, end));
          return;
        }
        links.memory.set(message.data.subarray(0, dataBytes), offset);
      }
      end.queue.shift();
      end.queuedBytes -= headBytes + dataBytes;
      links.listener.received(end.link, head, headBytes, offset, dataBytes);
      // Nobody may look at it any more: whoever does finds rubbish, and later another message.
      head.fill(0xa5, 0, headBytes);
      if (this.#messages.length < MESSAGES_MAX) this.#messages.push(message);
      links.turn();
      if (end.wantsReady && end.queuedBytes < QUEUE_BYTES_MAX / 2) {
        end.wantsReady = false;
        if (connection.isUp && other.station.isRunning && other.station.run === other.run) {
          other.station.links!.listener.linkReady(other.link);
          other.station.links!.turn();
        }
      }
    }
    if (!end.isEnding || end.queue.length > 0) return;
    end.isEnding = false;
    if (!connection.client.isEnding && !connection.server.isEnding) this.#ending.delete(connection);
    this.#noticed(connection, end);
  }

  #break(connection: Connection): void {
    if (!connection.isUp) return;
    connection.isUp = false;
    this.#connections.delete(connection);
    for (const end of [connection.client, connection.server]) {
      const noticeMs = this.world.random.chance(0.5) ? 0 : this.world.random.fraction() * NOTICE_MS;
      const other = end === connection.client ? connection.server : connection.client;
      if (this.#isHeld(other.station, end.station)) {
        end.isEnding = true;
        this.#ending.add(connection);
        continue;
      }
      this.world.after(noticeMs, () => this.#noticed(connection, end));
    }
  }

  #noticed(connection: Connection, end: End): void {
    const { station } = end;
    if (!station.isRunning || station.run !== end.run) return;
    const links = station.links as SimulatedLinks;
    links.ends.delete(end.link);
    links.listener.linkDown(end.link);
    links.turn();
    if (end !== connection.client) return;
    this.world.after(
      RECONNECT_MS * this.world.random.fraction(),
      () => links.reconnect(connection.server.station.node),
    );
  }

  /** Breaks what goes over a cut, after the time that it takes to notice. */
  breakCut(): void {
    for (const connection of [...this.#connections]) {
      const { client, server } = connection;
      if (
        this.isCut(client.station, server.station) || this.isCut(server.station, client.station)
      ) {
        this.world.after(500 + this.world.random.below(2000), () => {
          const isStillCut = this.isCut(client.station, server.station) ||
            this.isCut(server.station, client.station);
          if (isStillCut) this.#break(connection);
        });
      }
    }
  }

  /** A process has died: its connections end at the other side, after a while if the machine is gone too. */
  died(station: Station, isMachine: boolean): void {
    for (const connection of [...this.#connections]) {
      if (connection.client.station !== station && connection.server.station !== station) continue;
      this.world.after(isMachine ? 1000 : 1, () => this.#break(connection));
    }
  }
}

/** What a station offers to the network, with what the network keeps there. */
export interface SimulatedLinks extends LinkEnds {
  ends: Map<number, { connection: Connection; end: End; other: End }>;
  reconnect: (node: number) => void;
}
