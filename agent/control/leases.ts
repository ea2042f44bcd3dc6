/**
 * Which disks this node holds, wants and gives back: between the sessions of the data plane and the map.
 *
 *     free ──wanted──▶ wanted ──map: ours──▶ held ──released──▶ given back ─▶ free
 *                        ▲                     │ map: somebody else's
 *                        │ map: ours no more,  └──────────────▶ fenced ──released──▶ free
 *                        └ but nobody else's
 *
 * Invariants:
 * - A disk is granted under a generation that the map gave to this very start of the agent, and to nobody else.
 * - Once another node has held a disk that a session here still has open, that session is fenced for good: its guest
 *   goes on from a state that is no longer the disk's.
 * - A lease that nobody here wants goes back: also one that came after its session had gone, or whose return was refused.
 *
 * @module
 */
import {
  type ClusterMap,
  type DiskEntry,
  isOn,
  type MapCommand,
  writtenByOthers,
} from "../map/map.ts";

/** What leases need around them. */
export interface LeasesHost {
  wantLease(disk: number): void;
  forgetLease(disk: number): void;
  propose(command: MapCommand, done?: () => void): void;
  /**
   * The disk is this node's under this generation. Again, with a higher one, when a lease was lost and got back.
   *
   * @param lease.isUnclean whoever had it last, here or elsewhere, did not give it back in good order
   * @param lease.byOthers see `writtenByOthers` of `map/queries.ts`
   */
  granted(
    disk: number,
    lease: { generation: number; isUnclean: boolean; byOthers: number },
  ): void;
  /** Another node has had the disk, or may have it: whoever has it open here under this generation must stop for good. */
  fenced(disk: number, generation: number): void;
}

interface Held {
  /** Generation granted to the data plane; 0: none yet. */
  generation: number;
  /** The holder before has not given it back in good order. */
  isUnclean: boolean;
  /** The newest generation under which others may have written. */
  byOthers: number;
  /** The data plane has brought the replicas in line under that generation. */
  isOpened: boolean;
  isFenced: boolean;
}

/** A lease on its way back. */
interface Return {
  readonly generation: number;
  /** Its replicas agree: the next holder has nothing to bring in line. */
  readonly isClean: boolean;
  readonly isUnwritten: boolean;
  /** Nothing was decided, and the lease is here still: too many changes were waiting, for one. */
  isRefused: boolean;
}

/** See the head of the file. */
export class Leases {
  readonly #host: LeasesHost;
  readonly #held = new Map<number, Held>();
  /** What is being given back, by disk. */
  readonly #returning = new Map<number, Return>();
  #map: ClusterMap | null = null;
  #node = 0;
  #incarnation = 0;

  constructor(host: LeasesHost) {
    this.#host = host;
  }

  /** Disks that sessions here have open, or wait for. */
  get disks(): IterableIterator<number> {
    return this.#held.keys();
  }

  /** This start of the agent is in the map: what an earlier incarnation held is asked for anew. */
  started(node: number, incarnation: number): void {
    this.#node = node;
    this.#incarnation = incarnation;
    this.#returning.clear();
    if (this.#map !== null) this.mapChanged(this.#map);
  }

  /** A session wants the disk. */
  wanted(disk: number): void {
    const held = this.#held.get(disk);
    // The session that was fenced is gone: this is another one.
    if (held?.isFenced === true) this.#held.delete(disk);
    else if (held !== undefined) {
      // Whoever had it here has given it back; what was left before that was seen to then, if it was opened.
      if (held.generation > 0) {
        const { generation, byOthers } = held;
        const isUnclean = held.isUnclean && !held.isOpened;
        this.#host.granted(disk, { generation, isUnclean, byOthers });
      }
      return;
    }
    this.#held.set(disk, {
      generation: 0,
      isUnclean: false,
      byOthers: 0,
      isOpened: false,
      isFenced: false,
    });
    this.#look(disk);
  }

  /** The data plane may serve the disk now: its replicas agree. */
  opened(disk: number, generation: number): void {
    const held = this.#held.get(disk);
    if (held?.generation === generation) held.isOpened = true;
  }

  /**
   * No session wants the disk any more, and nothing is under way.
   *
   * @param options.isUnclean requests were given up that some replicas may have, and others not: the next holder brings them in line
   * @param options.isUnwritten nothing was written
   * @param options.done called when the map knows it, or will without our doing
   */
  released(
    disk: number,
    { isUnclean = false, isUnwritten = false, done = () => {} }: {
      isUnclean?: boolean;
      isUnwritten?: boolean;
      done?: () => void;
    } = {},
  ): void {
    const held = this.#held.get(disk);
    this.#held.delete(disk);
    this.#host.forgetLease(disk);
    if (held === undefined || held.generation === 0 || held.isFenced) {
      // Cut off, and the lease is here all the same: it goes back.
      if (held?.isFenced === true && this.#map !== null) this.mapChanged(this.#map);
      return done();
    }
    const { generation } = held;
    this.#giveBack(disk, { generation, isClean: held.isOpened && !isUnclean, isUnwritten }, done);
  }

  /**
   * Somebody on this very node takes the disk away from it: what has it open stops for good. The leader takes a forced release by
   * the holder itself for a disk that nobody serves any more, so it must be none before that is proposed.
   *
   * @returns to be called once the map has decided on the release; null: this node does not have the disk under that generation
   */
  revoked(disk: number, generation: number): (() => void) | null {
    if (!this.#isHere(disk, generation)) return null;
    const back = { generation, isClean: false, isUnwritten: false, isRefused: false };
    this.#returning.set(disk, back);
    const held = this.#held.get(disk);
    if (held?.generation === generation && !held.isFenced) this.#fence(disk, held);
    return () => this.#decided(disk, back);
  }

  /** To be called every now and then: what was refused is proposed again, which it must not be from within its answer. */
  tick(): void {
    for (const [disk, { isRefused, ...back }] of [...this.#returning]) {
      if (isRefused) this.#giveBack(disk, back, () => {});
    }
  }

  /** The return was decided on, or refused. */
  #decided(disk: number, back: Return): void {
    if (this.#returning.get(disk) !== back) return;
    if (this.#isHere(disk, back.generation)) back.isRefused = true;
    else this.#returning.delete(disk);
  }

  #giveBack(disk: number, lease: Omit<Return, "isRefused">, done: () => void): void {
    const back = { ...lease, isRefused: false };
    this.#returning.set(disk, back);
    const { generation, isClean, isUnwritten } = back;
    const isTold = isUnwritten && this.#map !== null && isOn(this.#map, 2);
    const what = { id: disk, generation, ...(isTold ? { unwritten: true } : {}) };
    const finished = () => {
      this.#decided(disk, back);
      done();
    };
    // What was never opened may hide what an earlier holder has left: only the next one brings it in line.
    if (isClean) {
      this.#host.propose({ kind: "release-lease", node: this.#node, ...what }, finished);
    } else this.#host.propose({ kind: "force-release-lease", ...what }, finished);
  }

  /** The map has changed. */
  mapChanged(map: ClusterMap): void {
    this.#map = map;
    if (this.#incarnation === 0) return;
    for (const disk of [...this.#held.keys()]) this.#look(disk);
    for (const entry of map.disks) {
      if (!this.#isOurs(entry) || this.#held.has(entry.id)) continue;
      const { id, generation } = entry;
      if (this.#returning.get(id)?.generation === generation) continue;
      // It came when its session had gone: what was granted is held, or on its way back.
      this.#giveBack(id, { generation, isClean: false, isUnwritten: true }, () => {});
    }
  }

  #isOurs(entry: DiskEntry): boolean {
    return entry.lease?.node === this.#node && entry.lease.incarnation === this.#incarnation;
  }

  #entryOf(disk: number): DiskEntry | undefined {
    return this.#map?.disks.find(({ id }) => id === disk);
  }

  /** Whether the map says that this start of the agent has the disk under that generation. */
  #isHere(disk: number, generation: number): boolean {
    const entry = this.#entryOf(disk);
    return entry?.generation === generation && this.#isOurs(entry);
  }

  #look(disk: number): void {
    const held = this.#held.get(disk)!;
    const entry = this.#entryOf(disk);
    if (held.isFenced || this.#incarnation === 0) return;
    if (entry === undefined) {
      // Deleted under its sessions.
      if (this.#map !== null && held.generation > 0) this.#fence(disk, held);
      return;
    }
    const isReturning = this.#returning.get(disk)?.generation === entry.generation;
    if (this.#isOurs(entry) && !isReturning) {
      if (entry.generation === held.generation) return;
      const byOthers = writtenByOthers(entry, this.#node);
      // Of maps that were not seen one by one: others have had it in between.
      if (held.generation > 0 && byOthers > held.generation) return this.#fence(disk, held);
      held.generation = entry.generation;
      held.isUnclean = entry.settled < entry.generation - 1;
      held.byOthers = byOthers;
      held.isOpened = false;
      this.#host.forgetLease(disk);
      this.#host.granted(disk, held);
      return;
    }
    const isTaken = held.generation > 0 && entry.generation > held.generation;
    if (isTaken) return this.#fence(disk, held);
    this.#host.wantLease(disk);
  }

  #fence(disk: number, held: Held): void {
    held.isFenced = true;
    this.#host.forgetLease(disk);
    this.#host.fenced(disk, held.generation);
  }
}
