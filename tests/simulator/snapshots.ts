/**
 * Snapshots and clones that are taken, read and deleted while a cluster is under faults, and what must hold of them:
 *
 * - a snapshot never changes, wherever and whenever it is read;
 * - each block holds what it could have held at some moment between the question and the completion: nothing that was written
 *   later, nothing that was overwritten before;
 * - all blocks, of all disks of one command, are of one point in time: where a write is in it, so is every write that had been
 *   acknowledged before that one was sent (or what has overwritten it);
 * - a clone is as its snapshot is, also while it is flattened, and after that, when the snapshot may be gone;
 * - a disk that is rolled back holds from one moment on exactly what the snapshot holds, or nothing has happened to it; what it held
 *   until then is a disk of its own, in the trash and once it is taken out of there;
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
  takingOf,
} from "../../agent/map/map.ts";
import { ENODEV } from "../../agent/platform/platform.ts";
import { Volume } from "../../agent/volume/volume.ts";
import { BLOCKS_MAX, type DiskOracle } from "./guest.ts";
import { GUEST_OFFSET, type SimNode } from "./node.ts";

/** Milliseconds after which a snapshot that is not complete is given up. */
const GIVE_UP_MS = 4000;
/** Reads at a time, and the bytes of each. */
const READS_MAX = 16, READ_BYTES = 131_072;
/** Where snapshots are read to, behind what guests use. */
const BUFFER_OFFSET = GUEST_OFFSET + 8 * 1024 * 1024;
/** Most snapshots of one disk. */
const SNAPSHOTS_MAX = 6;
/** How long a disk is kept closed for a rollback. */
const ROLLBACK_MS_MAX = 6000;
/** Most disks that rollbacks have left and that are still there. */
const LEFT_MAX = 4;

/** One disk's part of a command. */
interface Part {
  readonly oracle: DiskOracle;
  /** Layer; 0 until the map has it. */
  layer: number;
  /** What each block holds, once it was read whole: by place, then by block. */
  content: number[] | null;
  /** When that was. */
  readMs: number;
  isDeleted: boolean;
  /** Generation of who had the disk when the snapshot was asked for; 0: nobody, or not known. */
  readonly generation: number;
  /**
   * Who had the disk has synced its layer before it was complete. Of a disk that nobody has it holds what was written, as the disk
   * does: what no guest has flushed may be lost with all replicas.
   */
  isSynced: boolean;
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

/** A rollback that is wanted. */
interface Rollback {
  readonly part: Part;
  readonly untilMs: number;
  isAsked: boolean;
  /** Guests may open the disk meanwhile, and then it is not to happen. */
  isRaced: boolean;
}

/** What this needs of the run around it. */
export interface SnapshotHost {
  readonly map: ClusterMap | null;
  readonly nowMs: number;
  readonly oracles: readonly DiskOracle[];
  running(): SimNode[];
  propose(command: MapCommand, done?: (ok: boolean) => void): void;
  /** Has the guest of a disk end, if there is one. */
  close(oracle: DiskOracle): void;
  /** Reads all of a disk as a guest that opens it does. */
  sweep(oracle: DiskOracle): void;
  until(what: string, isDone: () => boolean, mostMs?: number): void;
  note(message: string): void;
}

/** See the head of the file. */
export class Snapshots {
  taken = 0;
  read = 0;
  deleted = 0;
  cloned = 0;
  rolledBack = 0;
  /** Disks that were made independent of others. */
  flattened = 0;
  /** Layers whose flattening was cancelled, or ended for another reason than that it was done: replicas may have copied some. */
  readonly half = new Set<number>();
  readonly #clones = new Map<string, Part>();
  readonly #flattening = new Map<number, number>();
  readonly #all: Taken[] = [];
  #next = 1;
  #rollback: Rollback | null = null;
  /** Snapshots to which a disk was to be rolled back and, as far as is known, has not been, each time: that may come late. */
  readonly #asked: Part[] = [];
  /** Disks that rollbacks have left: what was there before. */
  readonly left: DiskOracle[] = [];
  readonly #rolling: Prng;

  /** @param rolling chances of rollbacks: what else happens to snapshots does not depend on them */
  constructor(readonly host: SnapshotHost, readonly random: Prng, rolling: Prng) {
    this.#rolling = rolling;
  }

  /** One thing or some at random. */
  step(): void {
    for (let count = this.random.between(1, 4); count > 0; count--) this.#step();
  }

  #step(): void {
    const { random } = this;
    this.look();
    this.#stepRollbacks();
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
      parts: oracles.map((oracle) => ({
        oracle,
        layer: 0,
        content: null,
        readMs: 0,
        isDeleted: false,
        generation: this.#holderOf(oracle),
        isSynced: false,
      })),
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

  /** The generation of who has a disk; 0: nobody. */
  #holderOf({ id }: DiskOracle): number {
    const entry = this.host.map?.disks.find((disk) => disk.id === id);
    return entry === undefined || entry.lease === null ? 0 : entry.generation;
  }

  /** A new map, or time has passed: what is complete, and what is to be given up. */
  look(): void {
    const { host } = this;
    const { map } = host;
    if (map === null) return;
    this.#findRollbacks(map);
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
        for (const part of taken.parts) {
          part.isSynced = part.generation !== 0 && part.generation === this.#holderOf(part.oracle);
        }
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
  #pick(random = this.random): Part | null {
    const parts = this.#all.filter(({ completeMs, isAborted }) =>
      completeMs < Infinity && !isAborted
    )
      .flatMap((taken) => taken.parts.filter((part) => this.#isThere(taken, part)));
    return parts.length === 0 ? null : random.pick(parts);
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
    // What such a layer has goes to the one that absorbs it.
    for (const { id, absorbedBy } of layers) {
      if (absorbedBy === null || !this.half.has(id)) continue;
      for (const above of layers) if (above.parent === id) this.half.add(above.id);
    }
  }

  // -------------------------------------------------------------------------------------- rolling back

  /** Whether no guest is to open a disk now: it is about to be rolled back. */
  isResting(oracle: DiskOracle): boolean {
    const rollback = this.#rollback;
    return rollback !== null && rollback.part.oracle === oracle && !rollback.isRaced;
  }

  /** The faults are over: nothing is begun any more, and guests may open every disk. */
  end(): void {
    this.#rollback = null;
  }

  #stepRollbacks(): void {
    const random = this.#rolling;
    if (this.#rollback !== null) return this.#goOn(this.#rollback);
    switch (random.below(8)) {
      case 0:
      case 1:
      case 2:
        return this.#beginRollback();
      case 3:
      case 4:
        if (this.left.length > 0) this.#readLeft(random.pick(this.left), () => {});
        return;
      case 5: {
        if (this.left.length === 0) return;
        const { id, name } = random.pick(this.left);
        if (this.#isInTrash(id)) this.host.propose({ kind: "restore-disk", id, name });
        return;
      }
      case 6:
        if (random.chance(0.4) || this.left.length >= LEFT_MAX) this.#forgetLeft();
    }
  }

  #beginRollback(): void {
    const { host } = this;
    const part = this.#pick(this.#rolling);
    if (part === null || this.left.length >= LEFT_MAX || !part.isSynced) return;
    // What is expected has to be known first.
    if (part.content === null) return this.#readPart(part, () => {});
    const untilMs = host.nowMs + ROLLBACK_MS_MAX;
    this.#rollback = { part, untilMs, isAsked: false, isRaced: false };
    host.close(part.oracle);
  }

  #goOn(rollback: Rollback): void {
    const { host } = this;
    const { part } = rollback;
    const disk = host.map?.disks.find(({ id }) => id === part.oracle.id);
    const taken = this.#all.find(({ parts }) => parts.includes(part))!;
    if (disk === undefined || host.nowMs > rollback.untilMs || !this.#isThere(taken, part)) {
      this.#rollback = null;
      return;
    }
    if (rollback.isAsked) return;
    // Most of the time only when it can be done; now and then it must be refused.
    const isClosed = disk.lease === null && disk.settled >= disk.generation;
    if (!isClosed && !this.#rolling.chance(0.1)) return;
    rollback.isAsked = true;
    rollback.isRaced = this.#rolling.chance(0.3);
    this.#asked.push(part);
    host.propose({
      kind: "rollback-disk",
      disk: disk.name,
      snapshot: taken.name,
      nowMs: 0,
    }, (ok) => {
      // Whether it happened after all, the map says.
      if (!ok) host.note(`rollback to ${taken.name} was refused, as far as its asker knows`);
      if (this.#rollback === rollback) this.#rollback = null;
    });
  }

  /** A rollback has happened where the trash has a disk that was not there. */
  #findRollbacks(map: ClusterMap): void {
    for (const { disk: old } of map.trash) {
      if (this.left.some(({ id }) => id === old.id) || this.#forgotten.has(old.id)) continue;
      const disk = map.disks.find(({ name }) => name === old.name);
      const oracle = this.host.oracles.find(({ id }) => id === disk?.id);
      if (disk === undefined || oracle === undefined) {
        throw new Error(`nobody knows how ${old.name} came into the trash`);
      }
      if (disk.layers.includes(old.layers[0])) {
        throw new Error(`${disk.name} is still read through what it was rolled back from`);
      }
      // Of several that may come late: the new layer lies right above the snapshot's.
      let found: Part | null = null;
      const depthOf = (part: Part) => disk.layers.indexOf(part.layer);
      for (const part of this.#asked) {
        if (part.oracle !== oracle || depthOf(part) < 1) continue;
        if (found === null || depthOf(part) < depthOf(found)) found = part;
      }
      if (found === null) throw new Error(`${disk.name} was rolled back to what nobody asked for`);
      this.#asked.splice(this.#asked.indexOf(found), 1);
      this.rolledBack++;
      this.host.note(`${disk.name} is rolled back to layer ${found.layer}; disk ${old.id} is left`);
      this.left.push(oracle.rolledBack(found.content!, old.id, this.host.nowMs));
    }
  }

  /** Ends a disk that a rollback has left. */
  #forgetLeft(): void {
    const { host } = this;
    if (this.left.length === 0) return;
    const { id, name } = this.#rolling.pick(this.left);
    if (this.#isInTrash(id)) host.propose({ kind: "purge-disk", id });
    else host.propose({ kind: "delete-disk", name, id });
    this.#forget(id);
  }

  #forget(gone: number): void {
    this.#forgotten.add(gone);
    this.left.splice(this.left.findIndex(({ id }) => id === gone), 1);
  }
  readonly #forgotten = new Set<number>();

  #isInTrash(id: number): boolean {
    return this.host.map?.trash.some(({ disk }) => disk.id === id) === true;
  }

  /** What a disk held before it was rolled back, as the map has it; it may have a name again. */
  entryOfLeft({ id }: DiskOracle): DiskEntry | undefined {
    const { map } = this.host;
    return map?.trash.find(({ disk }) => disk.id === id)?.disk ??
      map?.disks.find((disk) => disk.id === id);
  }

  /** Reads what a disk held before it was rolled back: what it would hold if it had just been closed. */
  #readLeft(oracle: DiskOracle, done: (isRead: boolean) => void): void {
    const layer = this.entryOfLeft(oracle)?.layers[0];
    if (layer === undefined) return done(false);
    const startMs = this.host.nowMs;
    this.#read(oracle, layer, (content) => {
      if (content === null || !this.left.includes(oracle)) return done(false);
      for (const [at, value] of content.entries()) {
        oracle.histories[at].read(value, startMs, this.host.nowMs);
      }
      this.read++;
      done(true);
    });
  }

  // --------------------------------------------------------------------------------------------- reading

  /**
   * Reads a snapshot at a random node, or a clone of it.
   *
   * @param done told whether it was read; it is not when its node dies, or when it was deleted meanwhile
   */
  #readPart(part: Part, done: (isRead: boolean) => void, layer = part.layer): void {
    this.#read(part.oracle, layer, (content) => {
      if (content === null) return done(false);
      this.#check(part, content);
      this.read++;
      done(true);
    });
  }

  /** Reads what a layer and those below it hold, at a random node; null: it could not be read. */
  #read(oracle: DiskOracle, layer: number, done: (content: number[] | null) => void): void {
    const able = this.host.running().filter((node) => !node.isWitness);
    if (able.length === 0) return done(null);
    const node = this.random.pick(able);
    const { process } = node;
    const data = process?.data ?? null;
    const disk = data?.hasMap === true ? data.view.diskOfLayer(layer) : undefined;
    if (process === null || data === null || disk === undefined) return done(null);
    // Not under a map that is older than the snapshot, in which the layer may be what a guest writes to.
    const isLive = data.view.map.disks.some((each) =>
      each.layers[0] === layer && this.host.oracles.some(({ name }) => name === each.name)
    );
    // Nor one in which it is still being taken: nobody is shown such a snapshot (`DataPlane.#serveSnapshots`).
    const isBeingTaken = takingOf(disk.entry)?.layer === layer;
    if (isLive || isBeingTaken || data.view.chain(layer).length === 0) return done(null);
    const volume = new Volume({
      sizeBytes: oracle.sizeBytes,
      serial: "snapshot",
      layers: data.view.chain(layer),
      windows: [node.window],
      pool: process.pool,
      sink: data.reader(disk.entry.id),
    });
    // As many as there is room for at a time: some wait for long. Those of a process that is dead do not come back.
    const buffer = this.#readers.findIndex((each) => each === null || each.isOver());
    if (buffer < 0) return done(null);
    this.#readers[buffer] = { isOver: () => node.process !== process };
    const start = BUFFER_OFFSET + buffer * READ_BYTES;
    let left = oracle.places.length;
    const content: number[] = [];
    const end = (content: number[] | null) => {
      // Where its process is dead the buffer may be another one's by now.
      if (node.process === process) this.#readers[buffer] = null;
      done(content);
    };
    let errno = 0;
    oracle.places.forEach((place, at) => {
      const request = new BlockRequest({
        requestDone: () => {
          if (node.process !== process) return left-- === 1 ? end(null) : undefined;
          if (request.result !== 0) errno = request.result;
          else this.#take4(node, content, start, at);
          if (--left > 0) return;
          const isGone = !data.view.isReadable(layer);
          // A node that stops says no more than that.
          if (errno !== 0 && errno !== -ENODEV && !isGone) {
            throw new Error(`${oracle.name}: reading layer ${layer} failed with ${errno}`);
          }
          end(errno !== 0 || isGone ? null : content);
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

  /** Who reads, by buffer. */
  readonly #readers: ({ isOver(): boolean } | null)[] = new Array(READS_MAX).fill(null);

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
    const before = part.content;
    if (before !== null) {
      const at = content.findIndex((value, at) => value !== before[at]);
      if (at < 0) return;
      if (part.isSynced || !part.oracle.changes.isLostSince(part.readMs)) {
        throw new Error(`${what}, block ${at}: it was ${before[at]}, and is ${content[at]} now`);
      }
    }
    part.content = content;
    part.readMs = this.host.nowMs;
    for (const [at, value] of content.entries()) {
      const reason = part.oracle.changes.reasonAgainst(
        at,
        value,
        taken.beginMs,
        taken.completeMs,
        part.isSynced ? taken.completeMs : Infinity,
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
    for (const { oracle, content, isSynced } of taken.parts) {
      for (const [at, value] of content!.entries()) {
        const { completeMs } = taken;
        const lostMs = isSynced ? completeMs : Infinity;
        const reason = oracle.changes.reasonAgainst(at, value, cutMs, completeMs, lostMs);
        if (reason === null) continue;
        throw new Error(
          `${oracle.name}@${taken.name}, block ${at}, is older than another block of it: ${reason}`,
        );
      }
    }
  }

  /** All faults are over, and no guest is there: takes a snapshot of all disks, if none of them was left in disorder. */
  takeNow(): void {
    const { host } = this;
    const name = `s${this.#next++}`;
    const parts = host.oracles.map((oracle) => ({
      oracle,
      layer: 0,
      content: null,
      readMs: 0,
      isDeleted: false,
      generation: 0,
      isSynced: false,
    }));
    const taken: Taken = {
      name,
      beginMs: host.nowMs,
      completeMs: Infinity,
      parts,
      isAborted: false,
      isChecked: false,
      isAbortAsked: false,
    };
    this.#all.push(taken);
    const disks = host.oracles.map(({ id }) => id);
    host.propose({ kind: "create-snapshots", disks, name, nowMs: 0 }, (ok) => {
      if (!ok && parts[0].layer === 0) taken.isAborted = true;
    });
    host.until("a snapshot of all disks is taken or refused", () => {
      this.look();
      return taken.isAborted || taken.completeMs < Infinity;
    });
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
    const hasSome = (oracle: DiskOracle) =>
      this.#all.some((taken) =>
        taken.parts.some((part) => part.oracle === oracle && this.#isThere(taken, part))
      );
    // Every disk was opened and closed in good order by now.
    if (!host.oracles.every(hasSome)) this.takeNow();
    for (const taken of this.#all) {
      for (const part of taken.parts) {
        for (let i = 0; i < 2 && this.#isThere(taken, part); i++) {
          this.#readNow(
            `${part.oracle.name}, layer ${part.layer}`,
            (done) => this.#readPart(part, done),
          );
        }
      }
    }
    const last = this.#pick();
    if (last !== null) this.#cloneOf(last, this.#all.find(({ parts }) => parts.includes(last))!);
    for (const disk of host.map!.disks.filter(({ name }) => name.startsWith("clone-"))) {
      const part = this.#clones.get(disk.name)!;
      const readAll = (layer: number) =>
        this.#readNow(disk.name, (done) => this.#readPart(part, done, layer));
      readAll(disk.layers[0]);
      if (random.chance(0.5)) {
        // It may have to wait for what others have begun.
        let isAsked = false;
        const ask = () => {
          isAsked = true;
          host.propose({ kind: "flatten-disk", disk: disk.name }, (ok) => isAsked = ok);
        };
        const entry = () => host.map!.disks.find(({ id }) => id === disk.id)!;
        host.until(
          `${disk.name} hangs on nobody any more`,
          () => {
            if (!isAsked) ask();
            return clonePoint(host.map!, entry()).parent === 0;
          },
          60_000,
        );
        this.look();
        readAll(entry().layers[0]);
      }
      if (random.chance(0.5)) host.propose({ kind: "delete-disk", name: disk.name });
    }
    // Also where the faults let none happen.
    for (const oracle of host.oracles) this.#rollBackNow(oracle);
    this.#verifyLeft();
  }

  /** Rolls a disk back that nobody has open, and reads all of it. */
  #rollBackNow(oracle: DiskOracle): void {
    const { host } = this;
    const parts = this.#all.flatMap((taken) =>
      taken.parts.filter((part) =>
        part.oracle === oracle && part.content !== null && this.#isThere(taken, part)
      )
    );
    if (parts.length === 0) return;
    const part = this.#rolling.pick(parts);
    const { name } = this.#all.find(({ parts }) => parts.includes(part))!;
    const before = this.rolledBack;
    this.#asked.push(part);
    host.propose({ kind: "rollback-disk", disk: oracle.name, snapshot: name, nowMs: 0 });
    host.until(`${oracle.name} is rolled back to ${name}`, () => this.rolledBack > before);
    host.sweep(oracle);
  }

  /** What was there before a rollback is taken out of the trash, and opened by a guest. */
  #verifyLeft(): void {
    const { host } = this;
    for (const oracle of this.left) {
      const { id, name } = oracle;
      this.#readNow(`${name} is read`, (done) => this.#readLeft(oracle, done));
      if (this.#isInTrash(id)) host.propose({ kind: "restore-disk", id, name });
      host.until(`${name} is restored`, () => !this.#isInTrash(id));
      host.sweep(oracle);
    }
  }

  #readNow(what: string, read: (done: (isRead: boolean) => void) => void): void {
    let isOver = false;
    read((isRead) => {
      if (!isRead) throw new Error(`${what} could not be read`);
      isOver = true;
    });
    this.host.until(`${what} is read`, () => isOver, 60_000);
  }

  /** Everything is deleted; `isAbsorbed` holds some time later. */
  deleteAll(): void {
    for (const { id } of this.left.splice(0)) this.#forgotten.add(id);
    for (const { disk } of this.host.map!.trash) {
      this.host.propose({ kind: "purge-disk", id: disk.id });
    }
    for (const disk of this.host.map!.disks) {
      for (const snapshot of disk.snapshots) {
        if (snapshot.taking !== 0) continue;
        this.host.propose({ kind: "delete-snapshot", disk: disk.name, name: snapshot.name });
      }
      if (/^(clone|old)-/.test(disk.name)) {
        this.host.propose({ kind: "delete-disk", name: disk.name });
      }
    }
  }
}
