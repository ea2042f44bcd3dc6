/**
 * Whole data cores of several nodes, wired together: for tests of what several nodes do to each other's replicas.
 *
 * Where a test of one node says itself what the others answer (`harness.ts` has all that it needs), here the others answer. Nothing happens
 * but in `Cluster.pass`: the test decides for how long time passes, which messages wait or do not arrive, and whose stores stand still.
 *
 * @module
 */
import { Arena } from "../../agent/base/arena.ts";
import type { DataCore } from "../../agent/replication/data_core.ts";
import { ANSWER } from "../../agent/replication/messages.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import {
  buffer,
  coreOf,
  type FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  type MapOptions,
  message,
  type Sent,
  sumOf,
  window,
} from "./harness.ts";

/** A node's own link to another has that one's number; the link over which the other asks it, this much more. */
const THEIRS = 10;

/** What passes in a turn. */
const TURN_MS = 10;

/** A node: its data core, and what is around it. It may serve for ever. */
export class Node<Store extends FakeStore = FakeStore> {
  readonly transport = new FakeTransport();
  readonly core: DataCore;
  /** Groups that are reported to be in sync. */
  readonly reported = new Set<number>();

  constructor(readonly id: number, readonly arena: Arena, readonly store: Store, map: MapOptions) {
    this.core = coreOf(this, mapOf(map), id, {
      inSync: (_, groups) => groups.forEach((group) => this.reported.add(group)),
    });
    for (const node of [1, 2, 3, 4]) {
      if (node !== id) this.core.linkUp(THEIRS + node, node, false, 1);
    }
    this.core.renew(Infinity);
  }

  /** Writes a block to disk 1 as the guest of this node, which has its lease. */
  write(
    { layer = 1, chunk, block, sequence, fill }: {
      layer?: number;
      chunk: number;
      block: number;
      sequence: number;
      fill: number;
    },
    done: (result: number) => void = () => {},
  ): void {
    const operation = new Operation({ operationDone: ({ result }) => done(result) }, 1);
    operation.kind = OperationKind.Write;
    operation.layers = [layer];
    operation.chunk = chunk;
    operation.block = block;
    operation.blockCount = 1;
    operation.generation = GENERATION;
    operation.sequence = sequence;
    operation.buffer = buffer(this.arena, fill);
    operation.checksums[0] = sumOf(fill);
    this.core.router(1).submit(operation);
  }
}

/** Says something of a message, and of the node that sends it. */
export type MessageTest = (sent: Sent, from: number) => boolean;

/** How time passes; unless told otherwise everything arrives, and every store carries out what it was given. */
export interface Passing {
  /** Ends after the turn in which such a message was sent, lost or not. */
  readonly until?: MessageTest;
  /** Messages that stay with their sender until time passes without this; others may overtake them. */
  readonly isHeld?: MessageTest;
  /** Messages that never arrive. */
  readonly isLost?: MessageTest;
  /** Nodes whose stores stand still. */
  readonly standing?: readonly number[];
  /** For how long, at most. */
  readonly turns?: number;
}

/** Nodes with a map in force, linked to each other. What is sent to one that does not exist is lost. */
export class Cluster<Store extends FakeStore = FakeStore> {
  /** The one of all nodes. */
  readonly arena = new Arena();
  /** In the order of the ids that were given. */
  readonly nodes: readonly Node<Store>[];
  #nowMs = 1000;

  /**
   * @param map the first map of every node
   * @param makeStore makes the store of each node
   * @param ids which nodes exist: of those from 1 to 4
   */
  constructor(map: MapOptions, makeStore: () => Store, ids: readonly number[] = [1, 2, 3]) {
    this.nodes = ids.map((id) => new Node(id, this.arena, makeStore(), map));
  }

  /** A node that exists. */
  at(id: number): Node<Store> {
    return this.nodes.find((node) => node.id === id)!;
  }

  /** Gives a map to these nodes, in this order; to all unless told otherwise. */
  setMap(map: MapOptions, ids: readonly number[] = this.nodes.map(({ id }) => id)): void {
    for (const id of ids) this.at(id).core.setMap(mapOf(map), id, 1);
  }

  /** Lets time pass. */
  pass({ until, isHeld, isLost, standing = [], turns = 200 }: Passing = {}): void {
    for (let turn = 0, isFound = false; turn < turns && !isFound; turn++) {
      this.#nowMs += TURN_MS;
      for (const { id, core, store } of this.nodes) {
        core.tick(this.#nowMs);
        if (!standing.includes(id)) store.run();
        core.endTurn();
      }
      for (const { id, transport } of this.nodes) {
        for (const sent of transport.take()) {
          if (isHeld?.(sent, id) === true) {
            transport.sent.push(sent);
            continue;
          }
          isFound ||= until?.(sent, id) === true;
          if (isLost?.(sent, id) !== true) this.#deliver(sent, id);
        }
      }
    }
  }

  #deliver({ link, head, extra, data }: Sent, from: number): void {
    const isAnswer = (head.type & ANSWER) !== 0;
    const to = this.nodes.find(({ id }) => id === (isAnswer ? link - THEIRS : link));
    if (to === undefined) return;
    const at = data.length === 0 ? 0 : this.arena.allocate(data.length);
    window.bytes.set(data, at);
    const bytes = message(head, extra);
    to.core.received(isAnswer ? from : THEIRS + from, bytes, bytes.length, at, data.length);
  }
}
