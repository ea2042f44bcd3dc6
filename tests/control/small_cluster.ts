/**
 * Four nodes' control over a network that fails; everything in it follows from one seed.
 *
 *     nodes 1, 2, 3   vote
 *     node 4          learns. It has been away: it begins with an older map, and the others' logs do
 *                     not go back so far any more
 *     node 5          is in the map only, for changes that harm nobody
 *
 * Messages are lost, late, out of order, and repeated long after, also to the next run of whom they are
 * for; links are cut one way or both; processes crash, lose what is not durable, in the middle of a
 * persist as well, and start again.
 *
 * @module
 */
import type { Prng } from "../../agent/base/prng.ts";
import { load, type StorageWrite, writeInitial } from "../../agent/consensus/storage.ts";
import { Control, type ControlHost } from "../../agent/control/control.ts";
import { unwrap } from "../../agent/map/errors.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { applyProposal } from "../../agent/map/proposals.ts";
import { clusterOf, nodeUp, runAll } from "../map/cluster.ts";
import { silent } from "../replication/harness.ts";
import { factsOf } from "./fixture.ts";

/** Nodes that run. */
export const NODES = [1, 2, 3, 4];
/** The node that is in the map only. */
export const SPARE = 5;
/** Time moves in steps of so many milliseconds. */
export const STEP_MS = 20;
/** What was sent has come within this time, also what comes twice. */
export const LATE_MS_MAX = 2000;

/** Voters' logs begin here. */
const FIRST_INDEX = 100;
/** Changes that node 4 has made in a run before, and does not know of. */
const FORGOTTEN = 3;
/** Where nothing goes wrong. */
const DELAY_MS_MAX = 20;
const REPEAT_CHANCE = 0.05;
const PERSIST_MS_MAX = 40;
const DOWN_MS_MAX = 500;

/** One run of a node's process. */
export interface Run {
  readonly node: number;
  /** No other run has it. */
  readonly number: number;
  readonly control: Control;
}

/** A run, and what it has yet to write. */
interface Process extends Run {
  readonly unwritten: StorageWrite[][];
}

/** See the file's head. */
export class SmallCluster {
  nowMs = 1000;
  /** So far. */
  crashes = 0;
  readonly #random: Prng;
  readonly #mapChanged: ControlHost["mapChanged"];
  readonly #map: ClusterMap;
  readonly #disks = new Map<number, Map<string, Uint8Array>>();
  readonly #processes = new Map<number, Process>();
  /** What happens later, by time. */
  readonly #later = new Map<number, (() => void)[]>();
  readonly #cut = new Set<string>();
  #runs = 0;
  #loss = 0;
  #repeat = REPEAT_CHANCE;
  #delayMsMax = DELAY_MS_MAX;

  /** @param mapChanged told of every node's map; see {@linkcode ControlHost} */
  constructor(random: Prng, mapChanged: ControlHost["mapChanged"]) {
    this.#random = random;
    this.#mapChanged = mapChanged;
    const drain = { kind: "set-availability", node: SPARE, availability: "draining" } as const;
    const old = runAll(clusterOf(SPARE), drain);
    let map = old;
    for (let sequence = 1; sequence <= FORGOTTEN; sequence++) {
      map = applyProposal(map, { node: 4, sequence, command: nodeUp(SPARE) }).map;
    }
    this.#map = map;
    const configuration = { voters: [1, 2, 3], learners: [4] };
    for (const node of NODES) {
      const [index, known] = node === 4 ? [1, old] : [FIRST_INDEX, map];
      const snapshot = { index, term: 1, configuration, data: unwrap(encodeMap(known)) };
      const state = { term: 1, vote: 0, snapshot, entries: [], commit: index };
      const disk = new Map<string, Uint8Array>();
      write(disk, writeInitial(node, state));
      this.#disks.set(node, disk);
      this.#start(node);
    }
  }

  /** All that run now. */
  get runs(): Run[] {
    return [...this.#processes.values()];
  }

  /** Lets time pass. */
  pass(ms: number): void {
    for (const endMs = this.nowMs + ms; this.nowMs < endMs;) {
      this.nowMs += STEP_MS;
      for (const work of this.#later.get(this.nowMs) ?? []) work();
      this.#later.delete(this.nowMs);
      for (const { control } of this.runs) control.tick(this.nowMs);
    }
  }

  /** Something goes wrong, or is well again. */
  disturb(): void {
    const random = this.#random;
    const node = random.pick(NODES);
    switch (random.below(7)) {
      case 0:
      case 1:
        return void this.#cut.add(`${node}>${random.pick(NODES)}`);
      case 2:
        for (const other of NODES) this.#cut.add(`${node}>${other}`).add(`${other}>${node}`);
        return;
      case 3:
      case 4:
        return this.#cut.clear();
      case 5:
        this.#loss = random.pick([0, 0, 0.1, 0.3]);
        this.#delayMsMax = random.pick([DELAY_MS_MAX, 40, 100, 400]);
        return;
      case 6:
        if (random.chance(0.5)) this.#crash(node);
    }
  }

  /** Nothing goes wrong any more. */
  calm(): void {
    this.#cut.clear();
    this.#loss = 0;
    this.#repeat = 0;
    this.#delayMsMax = DELAY_MS_MAX;
  }

  #start(node: number): void {
    const unwritten: StorageWrite[][] = [];
    const disk = this.#disks.get(node)!;
    const random = this.#random.fork();
    const number = ++this.#runs;
    const isRunning = () => this.#processes.get(node)?.number === number;
    const control = new Control({
      host: {
        log: silent,
        random,
        wallMs: () => 1e12 + this.nowMs,
        sendControl: (address, bytes) => {
          const sender = this.#map.nodes[node - 1];
          const peer = { ...sender, node, incarnation: 1, clusterId: this.#map.clusterId };
          this.#send(node, address, (to) => to.control.received(peer, bytes));
        },
        sendGossip: (address, bytes) => {
          const from = this.#map.nodes[node - 1].address;
          this.#send(node, address, (to) => to.control.gossipReceived(from, bytes));
        },
        persist: (writes, done) => {
          unwritten.push([...writes]);
          // Whichever of these comes next, the oldest becomes durable.
          this.#after(this.#random.below(PERSIST_MS_MAX), () => {
            if (!isRunning()) return;
            write(disk, unwritten.shift()!);
            done();
          });
        },
        mapChanged: this.#mapChanged,
        started() {},
        renewed() {},
        joined() {},
        joinRefused() {},
        restartWanted() {},
        unfit(message) {
          throw new Error(`node ${node}: ${message}`);
        },
      },
      node,
      facts: { ...factsOf(this.#map.nodes[node - 1]), nowMs: 1 },
      clean: true,
      raft: unwrap(load(disk, node)),
      seeds: [],
      nowMs: this.nowMs,
    });
    this.#processes.set(node, { node, number, control, unwritten });
  }

  /** Of what was being written some first part is there. One is left that runs. */
  #crash(node: number): void {
    const process = this.#processes.get(node);
    if (process === undefined || this.#processes.size === 1) return;
    this.crashes++;
    this.#processes.delete(node);
    const writes = process.unwritten.flat();
    write(this.#disks.get(node)!, writes.slice(0, this.#random.below(writes.length + 1)));
    this.#after(this.#random.below(DOWN_MS_MAX), () => this.#start(node));
  }

  #send(from: number, address: string, deliver: (to: Run) => void): void {
    const to = this.#map.nodes.find((each) => each.address === address)!.id;
    if (this.#cut.has(`${from}>${to}`) || this.#random.chance(this.#loss)) return;
    const arrive = () => {
      const process = this.#processes.get(to);
      if (process !== undefined) deliver(process);
    };
    this.#after(this.#random.below(this.#delayMsMax), arrive);
    if (this.#random.chance(this.#repeat)) {
      this.#after(this.#random.below(LATE_MS_MAX), arrive);
    }
  }

  #after(ms: number, work: () => void): void {
    const atMs = this.nowMs + STEP_MS * (1 + Math.floor(ms / STEP_MS));
    const list = this.#later.get(atMs);
    if (list === undefined) this.#later.set(atMs, [work]);
    else list.push(work);
  }
}

function write(disk: Map<string, Uint8Array>, writes: readonly StorageWrite[]): void {
  for (const { key, value } of writes) {
    if (value === null) disk.delete(key);
    else disk.set(key, value.slice());
  }
}
