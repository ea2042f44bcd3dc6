/**
 * The table of members: found by uuid, in order of uuid, and in the order in which they are probed.
 *
 *     sorted   all members                                       slices of it are exchanged
 *     peers    alive and suspect, without this one:  | probed in this round | not yet |
 *                                                    0                    #next      n
 *
 * Each probe draws one of those not probed yet, so every round goes over everybody once in an order of its own
 * (SWIM, section 4.3: the time to the first probe is bounded). Newcomers are put among those not probed yet.
 *
 * The digest is the exclusive or of a hash of each member that is alive or suspect, in 16 parts by the first digit
 * of its uuid: equal tables give equal digests, whatever the order in which the news came.
 *
 * Invariants: {@linkcode MemberTable.place} and {@linkcode MemberTable.describe} are the only ways to change a member, so
 * that all these views agree.
 *
 * @module
 */
import type { Random } from "../platform/platform.ts";
import { type Accusation, type Content, DIGEST_PARTS, type MemberState } from "./packet.ts";

/** One member, as this one knows it. Changed by {@linkcode MemberTable} where it says so. */
export interface Member {
  readonly uuid: string;
  /** Of the newest claim. Changed by `place`. */
  readonly run: number;
  readonly incarnation: number;
  readonly state: MemberState;
  /** What it says about itself, in the newest claim that was heard in full. Changed by `describe`. */
  readonly content: Content;
  readonly contentRun: number;
  readonly contentIncarnation: number;
  /** When its state changed. */
  changedMs: number;
  /** Suspect, and dead: who accuses or accused it, the first first, and when that was heard. */
  accusations: (Accusation & { readonly atMs: number })[];
  /** Suspect: when its time began. Moved where this member itself did not run. */
  suspectedMs: number;
  /** Dead: who confirmed it; else "". */
  confirmedBy: string;
  /**
   * Dead for this member alone: it was cut off from most of the others itself when it decided so, and tells others of
   * its suspicion only.
   */
  isDoubtful: boolean;
  /** Place among the peers, −1 for none. */
  readonly peerIndex: number;
  /** Part of its hash that never changes. */
  readonly uuidHash: number;
}

type Mutable = { -readonly [Key in keyof Member]: Member[Key] };

/** The table. */
export class MemberTable {
  readonly #byUuid = new Map<string, Member>();
  readonly #sorted: Member[] = [];
  readonly #peers: Mutable[] = [];
  #next = 0;
  readonly #digest = new Uint32Array(DIGEST_PARTS);
  /** Members that are suspect. */
  readonly suspects: Set<Member> = new Set();
  /** Members that are dead or have left, the longest first. */
  readonly gone: Set<Member> = new Set();

  /** @param self uuid of the member that is no peer of itself */
  constructor(readonly self: string) {}

  /** All members, in order of their uuids. Not to be changed. */
  get sorted(): readonly Member[] {
    return this.#sorted;
  }

  /** Members that are alive or suspect, in no order, without this one. Not to be changed. */
  get peers(): readonly Member[] {
    return this.#peers;
  }

  /** Digest of the members that are alive or suspect. Not to be changed. */
  get digest(): Uint32Array {
    return this.#digest;
  }

  get(uuid: string): Member | undefined {
    return this.#byUuid.get(uuid);
  }

  /** Adds a member that is not there yet, alive. */
  add(
    uuid: string,
    claim: { run: number; incarnation: number; content: Content },
    nowMs: number,
  ): Member {
    const member: Mutable = {
      uuid,
      run: claim.run,
      incarnation: claim.incarnation,
      state: "alive",
      content: claim.content,
      contentRun: claim.run,
      contentIncarnation: claim.incarnation,
      changedMs: nowMs,
      accusations: [],
      suspectedMs: 0,
      confirmedBy: "",
      isDoubtful: false,
      peerIndex: -1,
      uuidHash: hashOfUuid(uuid),
    };
    this.#byUuid.set(uuid, member);
    this.#sorted.splice(this.indexBehind(uuid), 0, member);
    this.#toggleDigest(member);
    if (uuid !== this.self) this.#addPeer(member);
    return member;
  }

  /** Takes over a claim: its run, incarnation and state. */
  place(
    member: Member,
    claim: { run: number; incarnation: number },
    state: MemberState,
    nowMs: number,
  ): void {
    const mutable: Mutable = member;
    this.#toggleDigest(member);
    mutable.run = claim.run;
    mutable.incarnation = claim.incarnation;
    if (mutable.state !== state) {
      mutable.state = state;
      mutable.changedMs = nowMs;
      this.#file(mutable);
    }
    this.#toggleDigest(member);
  }

  /** Takes over what a member says about itself in a claim. */
  describe(member: Member, claim: { run: number; incarnation: number; content: Content }): void {
    const mutable: Mutable = member;
    this.#toggleDigest(member);
    mutable.content = claim.content;
    mutable.contentRun = claim.run;
    mutable.contentIncarnation = claim.incarnation;
    this.#toggleDigest(member);
  }

  /** Forgets a member. */
  remove(member: Member): void {
    this.#toggleDigest(member);
    if (member.peerIndex >= 0) this.#removePeer(member);
    this.suspects.delete(member);
    this.gone.delete(member);
    this.#byUuid.delete(member.uuid);
    this.#sorted.splice(this.indexBehind(member.uuid) - 1, 1);
  }

  /** The next member to be probed, or null where there is none. */
  nextProbe(random: Random): Member | null {
    const peers = this.#peers;
    if (peers.length === 0) return null;
    if (this.#next >= peers.length) this.#next = 0;
    const member = peers[this.#next + below(random, peers.length - this.#next)];
    this.#swap(member, this.#next++);
    return member;
  }

  /**
   * Up to `count` different peers, drawn at random.
   *
   * @param accept which of them will do; where few do, fewer may be found
   */
  draw(random: Random, count: number, accept: (member: Member) => boolean): Member[] {
    const drawn: Member[] = [];
    const peers = this.#peers;
    const tries = Math.min(peers.length, 3 * count + 3);
    const start = peers.length === 0 ? 0 : below(random, peers.length);
    // A few peers are gone through, so that nobody is overlooked; of many, each try draws anew.
    const isSmall = peers.length <= 3 * count + 3;
    for (let i = 0; i < tries && drawn.length < count; i++) {
      const at = isSmall ? (start + i) % peers.length : below(random, peers.length);
      const member = peers[at];
      if (!drawn.includes(member) && accept(member)) drawn.push(member);
    }
    return drawn;
  }

  /** Index of the first member whose uuid is greater; 0 for "". */
  indexBehind(uuid: string): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle].uuid <= uuid) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Index of the first member of a part of the digest, or of a later one. */
  indexOfPart(part: number): number {
    return part >= DIGEST_PARTS ? this.#sorted.length : this.indexBehind(lastBefore(part));
  }

  #file(member: Mutable): void {
    const isPeer = isPresent(member) && member.uuid !== this.self;
    if (isPeer && member.peerIndex < 0) this.#addPeer(member);
    if (!isPeer && member.peerIndex >= 0) this.#removePeer(member);
    if (member.state === "suspect") this.suspects.add(member);
    else this.suspects.delete(member);
    this.gone.delete(member);
    if (!isPresent(member)) this.gone.add(member);
  }

  #addPeer(member: Mutable): void {
    member.peerIndex = this.#peers.length;
    this.#peers.push(member);
  }

  #removePeer(member: Mutable): void {
    // The hole moves to the border of the probed, then to the end.
    if (member.peerIndex < this.#next) this.#swap(member, --this.#next);
    this.#swap(member, this.#peers.length - 1);
    this.#peers.pop();
    member.peerIndex = -1;
  }

  #swap(member: Mutable, index: number): void {
    const other = this.#peers[index];
    this.#peers[member.peerIndex] = other;
    other.peerIndex = member.peerIndex;
    this.#peers[index] = member;
    member.peerIndex = index;
  }

  #toggleDigest(member: Member): void {
    if (!isPresent(member)) return;
    this.#digest[parseInt(member.uuid[0], 16)] ^= hashOf(member);
  }
}

/** Alive or suspect. */
export function isPresent(member: Member): boolean {
  return member.state === "alive" || member.state === "suspect";
}

/** A whole number from 0 to `limit` − 1. */
export function below(random: Random, limit: number): number {
  return Math.floor(random.u32() / 2 ** 32 * limit);
}

/** Greater than every uuid of the parts before, less than those of this one. */
function lastBefore(part: number): string {
  return part === 0 ? "" : (part - 1).toString(16) + "g";
}

function hashOf(member: Member): number {
  let hash = mixLong(member.uuidHash, member.run);
  hash = mixLong(hash, member.incarnation);
  hash = mixLong(hash, member.contentRun);
  return mixLong(hash, member.contentIncarnation) >>> 0;
}

function hashOfUuid(uuid: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < 32; i += 8) hash = mix(hash, parseInt(uuid.slice(i, i + 8), 16));
  return hash;
}

function mixLong(hash: number, value: number): number {
  return mix(mix(hash, value >>> 0), Math.floor(value / 2 ** 32));
}

/** One round of MurmurHash3 and its finish (A. Appleby, public domain). */
function mix(hash: number, value: number): number {
  let mixed = Math.imul(value | 0, 0xcc9e2d51);
  mixed = Math.imul((mixed << 15) | (mixed >>> 17), 0x1b873593);
  hash ^= mixed;
  hash = Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64 | 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return hash ^ (hash >>> 13);
}
