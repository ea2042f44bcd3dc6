/**
 * Snapshots and clones that are taken, read and deleted while a cluster is under faults, and what must hold of them:
 *
 * - a snapshot never changes, wherever and whenever it is read;
 * - each block holds what it could have held at some moment between the question and the completion: nothing that was written
 *   later, nothing that was overwritten before;
 * - all blocks, of all disks of one command, are of one point in time: where a write is in it, so is every write that had been
 *   acknowledged before that one was sent (or what has overwritten it);
 * - a clone is as its snapshot is, also while it is flattened, and after that, when the snapshot may be gone;
 * - a snapshot is complete soon, or is given up.
 *
 * @module
 */
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import type { Prng } from "../../agent/base/prng.ts";
import { BlockKind, BlockRequest } from "../../agent/blk/target.ts";
import {
  clonePoint,
  type ClusterMap,
  type DiskEntry,
  type MapCommand,
} from "../../agent/map/map.ts";
import { ENODEV } from "../../agent/platform/platform.ts";
import { Volume } from "../../agent/volume/volume.ts";
import { BLOCKS_MAX, type DiskOracle } from "./guest.ts";
import { GUEST_OFFSET, type SimNode } from "./node.ts";

/** Milliseconds after which a snapshot that is not complete is given up. */
const GIVE_UP_MS = 4000;
/** Where snapshots are read to, behind what guests use. */
const BUFFER_OFFSET = GUEST_OFFSET + 8 * 1024 * 1024;
/** Most snapshots of one disk. */
const SNAPSHOTS_MAX = 6;

/** One disk's part of a command. */
interface Part {
  readonly oracle: DiskOracle;
  /** Layer; 0 until the map has it. */
  layer: number;
  /** What each block holds, once it was read whole: by place, then by block. */
  content: number[] | null;
  isDeleted: boolean;
}

interface Taken {
  readonly name: string;
  readonly beginMs: number;
  /** When all of it was complete; Infinity: not yet. */
  completeMs: number;
  readonly parts: readonly Part[];
  isAborted: boolean;
  isChecked: boolean;
  isAbortAsked: boolean;
}

/** What this needs of the run around it. */
export interface SnapshotHost {
  readonly map: ClusterMap | null;
  readonly nowMs: number;
  readonly oracles: readonly DiskOracle[];
  running(): SimNode[];
  propose(command: MapCommand, done?: (ok: boolean) => void): void;
  until(what: string, isDone: () => boolean, mostMs?: number): void;
  note(message: string): void;
}

/** See the head of the file. */
export class Snapshots {
  taken = 0;
  read = 0;
  deleted = 0;
  cloned = 0;
  /** Disks that were made independent of others. */
  flattened = 0;
  /** Layers whose flattening was cancelled, or ended for another reason than that it was done: replicas may have copied some. */
  readonly half = new Set<number>();
  readonly #clones = new Map<string, Part>();
  readonly #flattening = new Map<number, number>();
  readonly #all: Taken[] = [];
  #next = 1;

  constructor(readonly host: SnapshotHost, readonly random: Prng) {}

  /** One thing or some at random. */
  step(): void {
    for (let count = this.random.between(1, 4); count > 0; count--) this.#step();
  }

  #step(): void {
    const { random } = this;
    this.look();
    switch (random.below(11)) {
      case 0:
      case 1:
      case 2:
        return this.#take();
      case 3:
        return this.#delete();
      case 4:
        return this.#clone();
      case 5:
      case 6: {
        const part = this.#pick();
        if (part !== null) this.#readPart(part, () => {});
        return;
      }
      case 7:
      case 8:
        return this.#flatten();
      case 9:
        return this.#leaveToClone();
      case 10: {
        const clone = this.#pickClone();
        if (clone === null) return;
        this.#readPart(clone.part, () => {}, clone.disk.layers[0]);
      }
    }
  }

  #take(): void {
    const { host, random } = this;
    const oracles = host.oracles.filter(() => random.chance(0.7));
    if (oracles.length === 0) return;
    const name = `s${this.#next++}`;
    const taken: Taken = {
      name,
      beginMs: host.nowMs,
      completeMs: Infinity,
      parts: oracles.map((oracle) => ({ oracle, layer: 0, content: null, isDeleted: false })),
      isAborted: false,
      isChecked: false,
      isAbortAsked: false,
    };
    const isFull = oracles.some((oracle) =>
      this.#all.filter(({ parts }) =>
        parts.some((part) => part.oracle === oracle && !part.isDeleted)
      ).length >= SNAPSHOTS_MAX
    );
    if (isFull) return;
    this.#all.push(taken);
    host.propose({
      kind: "create-snapshots",
      disks: oracles.map(({ id }) => id),
      name,
      nowMs: 0,
    }, (ok) => {
      // Whether it happened after all, the map says.
      if (!ok) host.note(`snapshot ${name} was not taken, as far as its asker knows`);
    });
  }

  /** A new map, or time has passed: what is complete, and what is to be given up. */
  look(): void {
    const { host } = this;
    const { map } = host;
    if (map === null) return;
    this.#noteFlattened(map);
    for (const taken of this.#all) {
      if (taken.isAborted || taken.completeMs < Infinity) continue;
      const entries = taken.parts.map(({ oracle }) =>
        map.disks.find(({ id }) => id === oracle.id)?.snapshots
          .find((each) => each.name === taken.name && !each.isAborted)
      );
      if (entries.every((entry) => entry === undefined)) {
        // It was there, and is given up.
        if (taken.parts[0].layer !== 0) taken.isAborted = true;
        continue;
      }
      if (entries.some((entry) => entry === undefined)) {
        throw new Error(`snapshot ${taken.name} is of some disks, and not of others`);
      }
      entries.forEach((entry, at) => taken.parts[at].layer = entry!.layer);
      const isComplete = entries.every((entry) => entry!.taking === 0);
      if (!isComplete && entries.some((entry) => entry!.taking === 0)) {
        throw new Error(`snapshot ${taken.name} is complete of some disks, and not of others`);
      }
      if (isComplete) {
        taken.completeMs = host.nowMs;
        this.taken++;
        host.note(`snapshot ${taken.name} is complete`);
      } else if (host.nowMs - taken.beginMs > GIVE_UP_MS && !taken.isAbortAsked) {
        taken.isAbortAsked = true;
        host.propose(
          { kind: "abort-snapshots", taking: entries[0]!.taking },
          () => taken.isAbortAsked = false,
        );
      }
    }
  }

  /** A snapshot that is complete and not deleted, as far as is known. */
  #pick(): Part | null {
    const parts = this.#all.filter(({ completeMs, isAborted }) =>
      completeMs < Infinity && !isAborted
    )
      .flatMap((taken) => taken.parts.filter((part) => this.#isThere(taken, part)));
    return parts.length === 0 ? null : this.random.pick(parts);
  }

  #isThere(taken: Taken, part: Part): boolean {
    const disk = this.host.map?.disks.find(({ id }) => id === part.oracle.id);
    const isInMap = disk?.snapshots.some(({ name, layer }) =>
      name === taken.name && layer === part.layer
    );
    return !part.isDeleted && isInMap === true;
  }

  #delete(): void {
    const part = this.#pick();
    if (part === null) return;
    const taken = this.#all.find(({ parts }) => parts.includes(part))!;
    part.isDeleted = true;
    this.deleted++;
    this.host.propose({
      kind: "delete-snapshot",
      disk: part.oracle.name,
      name: taken.name,
      layer: part.layer,
    });
  }

  #clone(): void {
    const { host, random } = this;
    const clones = host.map?.disks.filter(({ name }) => name.startsWith("clone-")) ?? [];
    if (clones.length > 0 && random.chance(0.5)) {
      host.propose({ kind: "delete-disk", name: random.pick(clones).name });
      return;
    }
    const part = this.#pick();
    if (part === null) return;
    this.#cloneOf(part, this.#all.find(({ parts }) => parts.includes(part))!);
  }

  #cloneOf(part: Part, taken: Taken): void {
    this.cloned++;
    const name = `clone-${this.#next++}`;
    this.#clones.set(name, part);
    const { name: disk } = part.oracle;
    this.host.propose({ kind: "clone-disk", disk, snapshot: taken.name, name, nowMs: 0 });
  }

  /** A clone that is there, and what it was cloned from. */
  #pickClone(): { disk: DiskEntry; part: Part } | null {
    const clones = this.host.map?.disks.filter(({ name }) => this.#clones.has(name)) ?? [];
    if (clones.length === 0) return null;
    const disk = this.random.pick(clones);
    return { disk, part: this.#clones.get(disk.name)! };
  }

  /** Clones of a disk. */
  clonesOf(oracle: DiskOracle): DiskEntry[] {
    const { map } = this.host;
    return map?.disks.filter(({ name }) => this.#clones.get(name)?.oracle === oracle) ?? [];
  }

  /** Somebody who hangs on others is to hang on them no more, or is to stay as it is after all. */
  #flatten(): void {
    const { host, random } = this;
    const disks = host.map?.disks.filter((disk) => clonePoint(host.map!, disk).parent !== 0) ?? [];
    if (disks.length === 0) return;
    const disk = random.pick(disks).name;
    host.propose({ kind: "flatten-disk", disk, cancel: random.chance(0.15) });
  }

  /** A disk that guests write to keeps nothing but what a clone of it needs as well: so it is what hangs on another one, too. */
  #leaveToClone(): void {
    const { host } = this;
    const part = this.#pick();
    if (part === null) return;
    const taken = this.#all.find(({ parts }) => parts.includes(part))!;
    const disk = part.oracle.name;
    this.#cloneOf(part, taken);
    part.isDeleted = true;
    this.deleted++;
    host.propose({ kind: "delete-snapshot", disk, name: taken.name, layer: part.layer });
    host.propose({ kind: "flatten-disk", disk });
  }

  /** Which layers are not flattened any more: they have no parent, or some replicas have copied what others have not. */
  #noteFlattened({ layers }: ClusterMap): void {
    for (const { id, parent, flatten } of layers) {
      if (flatten !== undefined) this.#flattening.set(id, parent);
      else if (this.#flattening.delete(id)) {
        if (parent !== 0) this.half.add(id);
        else this.flattened++;
      }
    }
  }

  /**
   * Reads a snapshot at a random node, or a clone of it.
   *
   * @param done told whether it was read; it is not when its node dies, or when it was deleted meanwhile
   */
  #readPart(part: Part, done: (isRead: boolean) => void, layer = part.layer): void {
    const able = this.host.running().filter((node) => !node.isWitness);
    if (able.length === 0) return done(false);
    const node = this.random.pick(able);
    const { process } = node;
    const data = process?.data ?? null;
    const disk = data === null ? undefined : data.view.diskOfLayer(layer);
    if (process === null || data === null || disk === undefined) return done(false);
    // Not under a map that is older than the snapshot.
    if (data.view.chain(layer).length === 0) return done(false);
    const { oracle } = part;
    const volume = new Volume({
      sizeBytes: oracle.sizeBytes,
      serial: "snapshot",
      layers: data.view.chain(layer),
      windows: [node.window],
      pool: process.pool,
      sink: data.reader(disk.entry.id),
    });
    let left = oracle.places.length;
    const content: number[] = [];
    const start = BUFFER_OFFSET + this.host.oracles.indexOf(oracle) * 1024 * 1024 +
      (this.#next++ % 8) * 131_072;
    let errno = 0;
    oracle.places.forEach((place, at) => {
      const request = new BlockRequest({
        requestDone: () => {
          if (node.process !== process) return left-- === 1 ? done(false) : undefined;
          if (request.result !== 0) errno = request.result;
          else this.#take4(node, content, start, at);
          if (--left > 0) return;
          const isGone = !data.view.isReadable(layer);
          // A node that stops says no more than that.
          if (errno !== 0 && errno !== -ENODEV && !isGone) {
            throw new Error(`${oracle.name}: reading layer ${layer} failed with ${errno}`);
          }
          if (errno !== 0 || isGone) return done(false);
          this.#check(part, content);
          this.read++;
          done(true);
        },
      }, 8);
      request.kind = BlockKind.Read;
      request.offsetBytes = place;
      request.lengthBytes = BLOCKS_MAX * BLOCK_BYTES;
      request.segmentCount = 1;
      request.segmentWindows[0] = 0;
      request.segmentOffsets[0] = start + at * BLOCKS_MAX * BLOCK_BYTES;
      request.segmentLengths[0] = request.lengthBytes;
      volume.submit(request);
    });
    node.turn();
  }

  #take4(node: SimNode, content: number[], start: number, at: number): void {
    const words = node.window.u32;
    for (let block = 0; block < BLOCKS_MAX; block++) {
      const from = (start + (at * BLOCKS_MAX + block) * BLOCK_BYTES) >>> 2;
      const value = words[from];
      for (let word = 1; word < BLOCK_BYTES / 4; word += 97) {
        if (words[from + word] !== value) {
          throw new Error(`a block of a snapshot mixes ${value} and ${words[from + word]}`);
        }
      }
      content[at * BLOCKS_MAX + block] = value;
    }
  }

  #check(part: Part, content: number[]): void {
    const taken = this.#all.find(({ parts }) => parts.includes(part))!;
    const what = `${part.oracle.name}@${taken.name}`;
    if (part.content !== null) {
      for (const [at, value] of content.entries()) {
        if (part.content[at] === value) continue;
        throw new Error(`${what}, block ${at}: it was ${part.content[at]}, and is ${value} now`);
      }
      return;
    }
    part.content = content;
    for (const [at, value] of content.entries()) {
      const reason = part.oracle.changes.reasonAgainst(
        at,
        value,
        taken.beginMs,
        taken.completeMs,
      );
      if (reason !== null) throw new Error(`${what}, block ${at}: ${reason}`);
    }
    if (taken.isChecked || taken.parts.some((each) => each.content === null)) return;
    taken.isChecked = true;
    let cutMs = -1;
    for (const { oracle, content } of taken.parts) {
      for (const [at, value] of content!.entries()) {
        cutMs = Math.max(cutMs, oracle.changes.startOf(at, value));
      }
    }
    for (const { oracle, content } of taken.parts) {
      for (const [at, value] of content!.entries()) {
        const reason = oracle.changes.reasonAgainst(at, value, cutMs, taken.completeMs);
        if (reason === null) continue;
        throw new Error(
          `${oracle.name}@${taken.name}, block ${at}, is older than another block of it: ${reason}`,
        );
      }
    }
  }

  /** All faults are over: everything is complete or given up, is read everywhere it can be, and what was deleted is gone. */
  verify(): void {
    const { host, random } = this;
    host.until("snapshots are complete or given up", () => {
      this.look();
      return host.map!.disks.every(({ snapshots }) =>
        snapshots.every(({ taking, isAborted }) => taking === 0 || isAborted)
      );
    }, 60_000);
    for (const taken of this.#all) {
      for (const part of taken.parts) {
        for (let i = 0; i < 2 && this.#isThere(taken, part); i++) this.#readNow(part, part.layer);
      }
    }
    const last = this.#pick();
    if (last !== null) this.#cloneOf(last, this.#all.find(({ parts }) => parts.includes(last))!);
    for (const disk of host.map!.disks.filter(({ name }) => name.startsWith("clone-"))) {
      const part = this.#clones.get(disk.name)!;
      this.#readNow(part, disk.layers[0]);
      if (random.chance(0.5)) {
        host.propose({ kind: "flatten-disk", disk: disk.name });
        const entry = () => host.map!.disks.find(({ id }) => id === disk.id)!;
        host.until(
          `${disk.name} hangs on nobody any more`,
          () => clonePoint(host.map!, entry()).parent === 0,
          60_000,
        );
        this.look();
        this.#readNow(part, entry().layers[0]);
      }
      if (random.chance(0.5)) host.propose({ kind: "delete-disk", name: disk.name });
    }
  }

  #readNow(part: Part, layer: number): void {
    let isOver = false;
    this.#readPart(part, (isRead) => {
      if (!isRead) throw new Error(`${part.oracle.name}: layer ${layer} could not be read`);
      isOver = true;
    }, layer);
    this.host.until("a snapshot is read", () => isOver, 60_000);
  }

  /** Everything is deleted; `isAbsorbed` holds some time later. */
  deleteAll(): void {
    for (const disk of this.host.map!.disks) {
      for (const snapshot of disk.snapshots) {
        if (snapshot.taking !== 0) continue;
        this.host.propose({ kind: "delete-snapshot", disk: disk.name, name: snapshot.name });
      }
      if (disk.name.startsWith("clone-")) {
        this.host.propose({ kind: "delete-disk", name: disk.name });
      }
    }
  }
}
