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
 * - A lease that nobody here wants goes back: also one that came after its session had gone.
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

/** See the head of the file. */
export class Leases {
  readonly #host: LeasesHost;
  readonly #held = new Map<number, Held>();
  /** The newest generation that was granted, by disk: under a later one nothing here has written. */
  readonly #granted = new Map<number, number>();
  /** Generations that are being given back. */
  readonly #returning = new Map<number, number>();
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
    this.#giveBack(disk, held.generation, {
      isClean: held.isOpened && !isUnclean,
      isUnwritten,
      done,
    });
  }

  /**
   * Somebody on this very node takes the disk away from it: what has it open stops for good. The leader takes a forced release by
   * the holder itself for a disk that nobody serves any more, so it must be none before that is proposed.
   *
   * @returns to be called once the map has decided on the release; null: this node does not have the disk under that generation
   */
  revoked(disk: number, generation: number): (() => void) | null {
    const entry = this.#map?.disks.find((candidate) => candidate.id === disk);
    if (entry === undefined || entry.generation !== generation || !this.#isOurs(entry)) return null;
    this.#returning.set(disk, generation);
    const held = this.#held.get(disk);
    if (held?.generation === generation && !held.isFenced) this.#fence(disk, held);
    return () => this.#forgetReturn(disk, generation);
  }

  #forgetReturn(disk: number, generation: number): void {
    if (this.#returning.get(disk) === generation) this.#returning.delete(disk);
  }

  #giveBack(
    disk: number,
    generation: number,
    { isClean, isUnwritten, done = () => {} }: {
      isClean: boolean;
      isUnwritten: boolean;
      done?: () => void;
    },
  ): void {
    this.#returning.set(disk, generation);
    const isTold = isUnwritten && this.#map !== null && isOn(this.#map, 2);
    const what = { id: disk, generation, ...(isTold ? { unwritten: true } : {}) };
    const finished = () => {
      this.#forgetReturn(disk, generation);
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
    if (this.#granted.size > map.disks.length) this.#forgetDeleted(map);
    for (const entry of map.disks) {
      if (!this.#isOurs(entry) || this.#held.has(entry.id)) continue;
      if (this.#returning.get(entry.id) === entry.generation) continue;
      // It came when its session had gone, as a rule.
      const isUnwritten = entry.generation > (this.#granted.get(entry.id) ?? 0);
      this.#giveBack(entry.id, entry.generation, { isClean: false, isUnwritten });
    }
  }

  #forgetDeleted({ disks }: ClusterMap): void {
    const there = new Set(disks.map(({ id }) => id));
    for (const disk of [...this.#granted.keys()]) if (!there.has(disk)) this.#granted.delete(disk);
  }

  #isOurs(entry: DiskEntry): boolean {
    return entry.lease?.node === this.#node && entry.lease.incarnation === this.#incarnation;
  }

  #look(disk: number): void {
    const held = this.#held.get(disk)!;
    const entry = this.#map?.disks.find((candidate) => candidate.id === disk);
    if (held.isFenced || this.#incarnation === 0) return;
    if (entry === undefined) {
      // Deleted under its sessions.
      if (this.#map !== null && held.generation > 0) this.#fence(disk, held);
      return;
    }
    const isReturning = this.#returning.get(disk) === entry.generation;
    if (this.#isOurs(entry) && !isReturning) {
      if (entry.generation === held.generation) return;
      const byOthers = writtenByOthers(entry, this.#node);
      // Of maps that were not seen one by one: others have had it in between.
      if (held.generation > 0 && byOthers > held.generation) return this.#fence(disk, held);
      held.generation = entry.generation;
      held.isUnclean = entry.settled < entry.generation - 1;
      held.byOthers = byOthers;
      this.#granted.set(disk, entry.generation);
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
