/**
 * Reads: find the blocks, read them with as few requests as possible, check every one.
 *
 *     operation ─▶ slot: per block location and checksum, or where that lies ─▶ runs
 *                  (of the newest layer that has it: index.ts, chains.ts for long chains)
 *               ─▶ disk reads ─▶ check ─▶ done
 *
 * Invariants:
 * - No block is handed out that does not match its checksum. One that does not is read once more by
 *   itself, into the operation's buffer, even where it first went to a guest's memory, which the
 *   guest may have changed before it was checked. If it still does not match, the operation fails
 *   with −EBADMSG (−EIO when the disk could not read it), the block's bytes are zeroed, and the
 *   damage is reported.
 * - Every segment that a read goes to is pinned until the read is done, so its blocks and the
 *   header pages with their checksums stay what they are. So is one while a header page is read.
 * - A header page that comes from the disk is kept only once it has shown that it is of the record
 *   that the index means (header_proof.ts): the first page of a header by itself, any other by what
 *   lies around it, which is read when it has not. If it cannot, none of the blocks whose checksums
 *   it has is handed out (−EBADMSG).
 * - Everything is preallocated: `SLOTS` operations at a time; more wait in a list.
 *
 * @module
 */
import { BLOCK_BYTES, BLOCK_SHIFT, TRANSFER_BLOCKS_MAX } from "../base/limits.ts";
import { type Disk, EBADMSG, EIO, type Window, type WindowVector } from "../platform/platform.ts";
import { BlockFault } from "./block_fault.ts";
import { CHAIN_LAYERS_MIN, Chains } from "./chains.ts";
import type { ChecksumCache } from "./checksum_cache.ts";
import { AROUND_BLOCKS, HeaderProof } from "./header_proof.ts";
import { type Index, IndexKind, POISON } from "./index.ts";
import type { Operation } from "./operation.ts";
import type { Segments } from "./segments.ts";

/** Operations at a time: the deepest queue that a guest's rings usually have. */
const SLOTS = 128;
const SLOT_BITS = 7;
/** Disk reads at a time: enough for any device; more would only queue in the kernel. */
const REQUESTS_MAX = 256;
/** Header pages being read at a time. */
const PAGE_SLOTS = 32;
/** Arena bytes for them, and for what lies around one of them: few pages need that. */
export const READS_BYTES = (PAGE_SLOTS + AROUND_BLOCKS) * BLOCK_BYTES;
/** Added to a page's number when what lies around it is read. */
const AROUND = PAGE_SLOTS;
/** Run number that stands for the second reading of one block. */
const RUN_AGAIN = TRANSFER_BLOCKS_MAX;

/** Tokens of a run: slot in the low bits, run above. */
export const READ_TOKEN_BITS = SLOT_BITS + 9;

/** How a block's checksum is known. */
const enum Check {
  /** Nothing to check: it is zeros. */
  None = 0,
  Direct = 1,
  Positional = 2,
  /** Known to be damaged. */
  Poison = 3,
  /** Added when the disk could not read it. */
  Unread = 4,
  /** Its checksum cannot be read. */
  Unknown = 8,
  /** The header with its checksum is not there. */
  NoHeader = 9,
}

/** What reads ask of the store around them. */
export interface ReadsOwner {
  /** A read is over without having gone to the disk: it must not complete inside the submission. */
  completeLater(operation: Operation): void;
  /** A block is damaged. */
  blockDamaged(
    layer: number,
    chunk: number,
    block: number,
    location: number,
    fault: BlockFault,
  ): void;
}

/** See the head of the file. */
export class Reads {
  /** Reads from the disk that are under way. */
  requests = 0;
  /** Operations that hold a slot. */
  active = 0;

  // Counters.
  blocksRead = 0;
  secondReads = 0;

  readonly #disk: Disk;
  readonly #window: Window;
  readonly #index: Index;
  readonly #chains: Chains;
  readonly #segments: Segments;
  readonly #cache: ChecksumCache;
  readonly #proof: HeaderProof;
  readonly #owner: ReadsOwner;
  readonly #runToken: number;
  readonly #pageToken: number;
  readonly #tokenShift: number;
  readonly #at: number;

  // Slots.
  readonly #free = new Uint8Array(SLOTS);
  #freeCount = SLOTS;
  readonly #operations: (Operation | null)[] = new Array(SLOTS).fill(null);
  /** Runs, runs issued, runs not yet back. */
  readonly #runs = new Uint16Array(SLOTS);
  readonly #issued = new Uint16Array(SLOTS);
  readonly #pending = new Uint16Array(SLOTS);
  /** Blocks checked so far. */
  readonly #checked = new Uint16Array(SLOTS);
  /** Block (+1) that is being, or has been, read for the second time. */
  readonly #again = new Uint16Array(SLOTS);
  /** Header page that the slot waits for, 0 when none. */
  readonly #waitsFor = new Uint32Array(SLOTS);
  #waiting = 0;

  // Blocks of slots: TRANSFER_BLOCKS_MAX each.
  readonly #check = new Uint8Array(SLOTS * TRANSFER_BLOCKS_MAX);
  readonly #location = new Uint32Array(SLOTS * TRANSFER_BLOCKS_MAX);
  /** Direct: the checksum. Positional: location of the header page. */
  readonly #sum = new Uint32Array(SLOTS * TRANSFER_BLOCKS_MAX);
  /** Positional: word within the page. */
  readonly #word = new Uint16Array(SLOTS * TRANSFER_BLOCKS_MAX);
  /** The layer that it was found in; 0: one behind the first (chains.ts). */
  readonly #layer = new Uint32Array(SLOTS * TRANSFER_BLOCKS_MAX);
  // Runs of slots.
  readonly #runFirst = new Uint16Array(SLOTS * TRANSFER_BLOCKS_MAX);
  readonly #runCount = new Uint16Array(SLOTS * TRANSFER_BLOCKS_MAX);

  /** Slots with runs that found no request free: a ring. */
  readonly #stalled = new Uint8Array(SLOTS);
  #stalledFirst = 0;
  #stalledCount = 0;

  /** Places of the run that is being sent to the disk. */
  readonly #vector: WindowVector = {
    count: 0,
    windows: new Uint16Array(TRANSFER_BLOCKS_MAX),
    offsets: new Uint32Array(TRANSFER_BLOCKS_MAX),
    lengths: new Uint32Array(TRANSFER_BLOCKS_MAX),
  };

  // Header pages being read.
  /** Location of each; 0: none. */
  readonly #pages = new Uint32Array(PAGE_SLOTS);
  /** 1 for those that what lies around them has to be read of. */
  readonly #isAroundWanted = new Uint8Array(PAGE_SLOTS);
  /** There is one place for that, and it is in use. */
  #isAroundRead = false;

  // Operations without a slot.
  #queue: Operation | null = null;
  #queueLast: Operation | null = null;
  /** Operations in the queue. */
  queued = 0;

  constructor(options: {
    disk: Disk;
    window: Window;
    index: Index;
    segments: Segments;
    cache: ChecksumCache;
    storeWords: Uint32Array;
    owner: ReadsOwner;
    /** Token kinds of runs and pages, and how far a slot is shifted above them. */
    runToken: number;
    pageToken: number;
    tokenShift: number;
    /** Arena offset of `READS_BYTES`. */
    at: number;
  }) {
    this.#disk = options.disk;
    this.#window = options.window;
    this.#index = options.index;
    this.#chains = new Chains(options.index);
    this.#segments = options.segments;
    this.#cache = options.cache;
    this.#proof = new HeaderProof(options.window, options.segments, options.storeWords);
    this.#owner = options.owner;
    this.#runToken = options.runToken;
    this.#pageToken = options.pageToken;
    this.#tokenShift = options.tokenShift;
    this.#at = options.at;
    for (let i = 0; i < SLOTS; i++) this.#free[i] = SLOTS - 1 - i;
  }

  /** Starts a read, or queues it. */
  submit(operation: Operation): void {
    if (this.#freeCount === 0) {
      operation.next = null;
      if (this.#queueLast === null) this.#queue = operation;
      else this.#queueLast.next = operation;
      this.#queueLast = operation;
      this.queued++;
      return;
    }
    this.#start(operation);
  }

  #start(operation: Operation): void {
    const slot = this.#free[--this.#freeCount];
    this.active++;
    this.#operations[slot] = operation;
    operation.result = 0;
    operation.isTaken = false;
    operation.isSummed = false;
    this.#checked[slot] = 0;
    this.#again[slot] = 0;
    this.#waitsFor[slot] = 0;
    if (this.#resolve(slot, operation)) {
      operation.isTaken = operation.isPlaced;
      this.#release(slot);
      this.#owner.completeLater(operation);
      return;
    }
    this.#issued[slot] = 0;
    this.#pending[slot] = 0;
    if (this.#runs[slot] === 0) {
      // Poison and zeros only.
      this.#verify(slot, true);
      return;
    }
    if (this.#stalledCount > 0) this.#stall(slot);
    else this.#issue(slot);
  }

  /**
   * Looks up every block and forms runs of neighbouring locations.
   *
   * @returns true when there is nothing but zeros
   */
  #resolve(slot: number, operation: Operation): boolean {
    const { layers, chunk, block, blockCount, buffer } = operation;
    const base = slot * TRANSFER_BLOCKS_MAX;
    const index = this.#index;
    const isLong = layers.length >= CHAIN_LAYERS_MIN;
    const asked = isLong ? 1 : layers.length;
    /** Up to here the newest layer of a long chain has holes; 0: none was met so far. */
    let holesEnd = 0;
    let runs = 0;
    let runEnd = 0;
    let isPoisoned = false;
    for (let i = 0; i < blockCount;) {
      let count = blockCount - i;
      let found = index;
      let kind = IndexKind.Absent;
      let layer = 0;
      // The newest one is asked in any case; a long chain behind it is not asked one by one.
      for (let l = 0; l < asked && i >= holesEnd && kind === IndexKind.Absent; l++) {
        layer = layers[l];
        count = index.find(layer, chunk, block + i, count);
        kind = index.kind;
      }
      if (isLong && kind === IndexKind.Absent) {
        if (holesEnd === 0) this.#chains.open(layers, chunk);
        if (i >= holesEnd) holesEnd = i + count;
        count = this.#chains.find(block + i, holesEnd - i);
        found = this.#chains.found;
        kind = found.kind;
        layer = this.#chains.layer;
      }
      const at = base + i;
      if (kind === IndexKind.Direct || kind === IndexKind.Run) {
        const { location } = found;
        if (location === runEnd) {
          this.#runCount[base + runs - 1] += count;
        } else {
          this.#runFirst[base + runs] = i;
          this.#runCount[base + runs] = count;
          runs++;
          this.#segments.pins[this.#segments.of(location)]++;
        }
        runEnd = location + count;
        if (kind === IndexKind.Direct) this.#noteDirect(found, at, count, layer);
        else this.#noteRun(found, at, count, layer);
      } else if (kind === IndexKind.Poison) {
        for (let j = at; j < at + count; j++) {
          this.#check[j] = Check.Poison;
          this.#layer[j] = layer;
        }
        isPoisoned = true;
        runEnd = 0;
      } else {
        for (let j = at; j < at + count; j++) this.#check[j] = Check.None;
        if (operation.isPlaced) operation.sink!.zeroBlocks(operation, i, count);
        else {
          const start = buffer + (i << BLOCK_SHIFT);
          this.#window.bytes.fill(0, start, start + (count << BLOCK_SHIFT));
        }
        runEnd = 0;
      }
      i += count;
    }
    this.#runs[slot] = runs;
    return runs === 0 && !isPoisoned;
  }

  /** Notes what a look-up in `index` has found, from place `at` on. */
  #noteDirect(index: Index, at: number, count: number, layer: number): void {
    for (let j = 0; j < count; j++) {
      this.#check[at + j] = Check.Direct;
      this.#location[at + j] = index.location + j;
      this.#sum[at + j] = j === 0 ? index.checksum : index.checksumAt(j);
      this.#layer[at + j] = layer;
    }
  }

  #noteRun(index: Index, at: number, count: number, layer: number): void {
    let { page, word } = index;
    if (this.#cache.find(page) < 0) this.#loadPage(page);
    for (let j = 0; j < count; j++) {
      this.#check[at + j] = Check.Positional;
      this.#location[at + j] = index.location + j;
      this.#sum[at + j] = page;
      this.#word[at + j] = word;
      this.#layer[at + j] = layer;
      if (++word === BLOCK_BYTES / 4 && j + 1 < count) {
        word = 0;
        page++;
        if (this.#cache.find(page) < 0) this.#loadPage(page);
      }
    }
  }

  /** Sends runs to the disk, as many as there are requests free. */
  #issue(slot: number): void {
    const operation = this.#operations[slot]!;
    const base = slot * TRANSFER_BLOCKS_MAX;
    const runs = this.#runs[slot];
    while (this.#issued[slot] < runs) {
      if (this.requests >= REQUESTS_MAX) {
        this.#stall(slot);
        return;
      }
      const run = this.#issued[slot]++;
      const first = this.#runFirst[base + run];
      const count = this.#runCount[base + run];
      this.#pending[slot]++;
      this.requests++;
      this.blocksRead += count;
      const token = this.#runToken | (slot | run << SLOT_BITS) << this.#tokenShift;
      const offset = this.#location[base + first] * BLOCK_BYTES;
      if (operation.isPlaced) {
        operation.sink!.placeBlocks(operation, first, count, this.#vector);
        this.#disk.readScattered(token, offset, this.#vector);
      } else {
        const buffer = operation.buffer + (first << BLOCK_SHIFT);
        this.#disk.read(token, offset, buffer, count << BLOCK_SHIFT);
      }
    }
  }

  #stall(slot: number): void {
    this.#stalled[(this.#stalledFirst + this.#stalledCount) % SLOTS] = slot;
    this.#stalledCount++;
  }

  #unstall(): void {
    while (this.#stalledCount > 0 && this.requests < REQUESTS_MAX) {
      const slot = this.#stalled[this.#stalledFirst];
      this.#stalledFirst = (this.#stalledFirst + 1) % SLOTS;
      this.#stalledCount--;
      this.#issue(slot);
    }
  }

  /** A run has been read. `place` is what the token carries. */
  runDone(place: number, result: number): void {
    const slot = place & SLOTS - 1;
    const run = place >>> SLOT_BITS;
    this.requests--;
    this.#pending[slot]--;
    if (result < 0) {
      const base = slot * TRANSFER_BLOCKS_MAX;
      const first = run === RUN_AGAIN ? this.#again[slot] - 1 : this.#runFirst[base + run];
      const count = run === RUN_AGAIN ? 1 : this.#runCount[base + run];
      for (let i = first; i < first + count; i++) this.#check[base + i] |= Check.Unread;
    } else if (run === RUN_AGAIN) {
      this.#check[slot * TRANSFER_BLOCKS_MAX + this.#again[slot] - 1] &= ~Check.Unread;
    }
    if (this.#stalledCount > 0) this.#unstall();
    if (this.#pending[slot] === 0 && this.#issued[slot] === this.#runs[slot]) {
      this.#verify(slot, false);
    }
  }

  /**
   * Checks blocks from where it stopped; stops again where something has to be read first.
   *
   * @param later the operation was submitted just now and must not complete yet
   */
  #verify(slot: number, later: boolean): void {
    const operation = this.#operations[slot]!;
    const base = slot * TRANSFER_BLOCKS_MAX;
    const { blockCount, checksums } = operation;
    const isSummed = operation.sink === null && checksums.length >= blockCount;
    let lastPage = 0;
    let cached = -1;
    for (let i = this.#checked[slot]; i < blockCount; i++) {
      const at = base + i;
      const check = this.#check[at];
      if (check === Check.None) {
        if (isSummed) checksums[i] = this.#take(slot, operation, i);
        else if (!operation.isPlaced) operation.sink?.takeBlock(operation, i);
        continue;
      }
      if (check === Check.Direct) {
        const sum = this.#sum[at];
        if (isSummed) checksums[i] = sum;
        if (this.#take(slot, operation, i) === sum) continue;
      } else if (check === Check.Positional) {
        const page = this.#sum[at];
        if (page !== lastPage) {
          lastPage = page;
          cached = this.#cache.find(page);
        }
        if (cached < 0) {
          this.#checked[slot] = i;
          this.#waitForPage(slot, page);
          return;
        }
        const sum = this.#cache.word(cached, this.#word[at]);
        if (isSummed) checksums[i] = sum;
        if (this.#take(slot, operation, i) === sum) continue;
      } else if (check === Check.Poison) {
        this.#damaged(slot, i, BlockFault.Mismatch);
        continue;
      } else if (check === Check.Unknown || check === Check.NoHeader) {
        const fault = check === Check.Unknown ? BlockFault.Unread : BlockFault.NoHeader;
        this.#damaged(slot, i, fault);
        continue;
      }
      // Not what was written, or not readable: once more, by itself.
      if (this.#again[slot] !== i + 1) {
        this.#checked[slot] = i;
        this.#readAgain(slot, i);
        return;
      }
      const isUnread = (check & Check.Unread) !== 0;
      this.#damaged(slot, i, isUnread ? BlockFault.Unread : BlockFault.Mismatch);
    }
    operation.isTaken = operation.sink !== null;
    operation.isSummed = isSummed && operation.result === 0;
    this.#finish(slot, operation, later);
  }

  /** Checksum of a block that was read. It is where it is wanted already, or goes there at the same time. */
  #take(slot: number, operation: Operation, i: number): number {
    const { sink } = operation;
    if (sink === null) {
      return this.#window.kernel.checksum(operation.buffer + (i << BLOCK_SHIFT), BLOCK_BYTES);
    }
    return operation.isPlaced && this.#again[slot] !== i + 1
      ? sink.checksumBlock(operation, i)
      : sink.takeBlock(operation, i);
  }

  /** Always into the buffer, where no guest can change it before it is checked. */
  #readAgain(slot: number, i: number): void {
    const at = slot * TRANSFER_BLOCKS_MAX + i;
    this.#again[slot] = i + 1;
    this.secondReads++;
    // The page may be what is wrong.
    if ((this.#check[at] & ~Check.Unread) === Check.Positional) this.#cache.drop(this.#sum[at]);
    this.#pending[slot]++;
    this.requests++;
    this.#disk.read(
      this.#runToken | (slot | RUN_AGAIN << SLOT_BITS) << this.#tokenShift,
      this.#location[at] * BLOCK_BYTES,
      this.#operations[slot]!.buffer + (i << BLOCK_SHIFT),
      BLOCK_BYTES,
    );
  }

  #damaged(slot: number, i: number, fault: BlockFault): void {
    const operation = this.#operations[slot]!;
    const at = slot * TRANSFER_BLOCKS_MAX + i;
    if (operation.result === 0) {
      operation.result = fault === BlockFault.Unread ? -EIO : -EBADMSG;
      operation.badBlock = operation.block + i;
    }
    const start = operation.buffer + (i << BLOCK_SHIFT);
    this.#window.bytes.fill(0, start, start + BLOCK_BYTES);
    operation.sink?.zeroBlocks(operation, i, 1);
    const { layers, chunk } = operation;
    const block = operation.block + i;
    const isPoison = this.#check[at] === Check.Poison;
    const location = isPoison ? 0 : this.#location[at];
    const layer = this.#layer[at] ||
      this.#chains.ownerOf(layers, chunk, block, isPoison ? POISON : location);
    this.#owner.blockDamaged(layer, chunk, block, location, fault);
  }

  #finish(slot: number, operation: Operation, later: boolean): void {
    const base = slot * TRANSFER_BLOCKS_MAX;
    const segments = this.#segments;
    for (let run = 0; run < this.#runs[slot]; run++) {
      segments.unpin(segments.of(this.#location[base + this.#runFirst[base + run]]));
    }
    this.#release(slot);
    if (later) this.#owner.completeLater(operation);
    else operation.owner.operationDone(operation);
    while (this.#queue !== null && this.#freeCount > 0) {
      const next: Operation = this.#queue;
      this.#queue = next.next;
      if (this.#queue === null) this.#queueLast = null;
      next.next = null;
      this.queued--;
      this.#start(next);
    }
  }

  #release(slot: number): void {
    this.#operations[slot] = null;
    this.#free[this.#freeCount++] = slot;
    this.active--;
  }

  // ── Header pages ───────────────────────────────────────────────────────────────────────────────

  /** Begins to read a header page, unless that is under way or no room is left for it. */
  #loadPage(location: number): void {
    let free = -1;
    for (let i = 0; i < PAGE_SLOTS; i++) {
      if (this.#pages[i] === location) return;
      if (this.#pages[i] === 0) free = i;
    }
    if (free < 0 || !this.#segments.isDataRange(location, 1)) return;
    this.#pages[free] = location;
    this.#segments.pins[this.#segments.of(location)]++;
    this.#readPage(free, location, this.#at + free * BLOCK_BYTES, 1);
  }

  /** @param page what the token carries */
  #readPage(page: number, location: number, buffer: number, blocks: number): void {
    this.requests++;
    const token = this.#pageToken | page << this.#tokenShift;
    this.#disk.read(token, location * BLOCK_BYTES, buffer, blocks << BLOCK_SHIFT);
  }

  #waitForPage(slot: number, location: number): void {
    if (!this.#segments.isDataRange(location, 1)) {
      // Nonsense in the index: nothing there can be checked.
      this.#failPage(slot, location, Check.Unknown);
      return this.#verify(slot, false);
    }
    this.#waitsFor[slot] = location;
    this.#waiting++;
    this.#loadPage(location);
  }

  /** A header page, or what lies around one, has been read. `page` is what the token carries. */
  pageDone(page: number, result: number): void {
    this.requests--;
    if (page < AROUND) this.#pageRead(page, result);
    else this.#aroundRead(page - AROUND, result);
  }

  #pageRead(page: number, result: number): void {
    const at = this.#at + page * BLOCK_BYTES;
    if (result < 0) return this.#pageKnown(page, Check.Unknown, at);
    if (this.#proof.isFirst(at, this.#pages[page])) {
      return this.#pageKnown(page, Check.Positional, at);
    }
    this.#isAroundWanted[page] = 1;
    this.#readAround();
    if (this.#stalledCount > 0) this.#unstall();
  }

  /** Reads what lies around a page, unless that is being done for another one. */
  #readAround(): void {
    if (this.#isAroundRead) return;
    const page = this.#isAroundWanted.indexOf(1);
    if (page < 0) return;
    this.#isAroundRead = true;
    const start = this.#proof.startOf(this.#pages[page]);
    const blocks = this.#proof.endOf(this.#pages[page]) - start;
    this.#readPage(AROUND + page, start, this.#aroundAt, blocks);
  }

  /** Arena offset of what lies around a page. */
  get #aroundAt(): number {
    return this.#at + PAGE_SLOTS * BLOCK_BYTES;
  }

  #aroundRead(page: number, result: number): void {
    const location = this.#pages[page];
    const at = this.#aroundAt + (location - this.#proof.startOf(location)) * BLOCK_BYTES;
    const check = result < 0
      ? Check.Unknown
      : this.#proof.isPart(this.#aroundAt, location)
      ? Check.Positional
      : Check.NoHeader;
    this.#isAroundWanted[page] = 0;
    this.#isAroundRead = false;
    // Before anything else is read into its place.
    this.#pageKnown(page, check, at);
    this.#readAround();
  }

  /**
   * All is known of a page that was read.
   *
   * @param check `Positional` when it may be used, otherwise what becomes of the blocks that need it
   * @param at arena offset of the page
   */
  #pageKnown(page: number, check: Check, at: number): void {
    const location = this.#pages[page];
    this.#pages[page] = 0;
    const isUsable = check === Check.Positional;
    if (isUsable) this.#cache.put(location, this.#window.u32, at >>> 2);
    this.#segments.unpin(this.#segments.of(location));
    if (this.#stalledCount > 0) this.#unstall();
    if (this.#waiting === 0) return;
    for (let slot = 0; slot < SLOTS; slot++) {
      const wanted = this.#waitsFor[slot];
      if (wanted === location) {
        this.#waitsFor[slot] = 0;
        this.#waiting--;
        if (!isUsable) this.#failPage(slot, location, check);
        this.#verify(slot, false);
      } else if (wanted !== 0) {
        // Perhaps there was no room for its page before.
        this.#loadPage(wanted);
      }
    }
  }

  /**
   * The checksums on that page cannot be had: none of the blocks that need them can be trusted.
   *
   * @param check why
   */
  #failPage(slot: number, location: number, check: Check): void {
    const base = slot * TRANSFER_BLOCKS_MAX;
    const { blockCount } = this.#operations[slot]!;
    for (let i = this.#checked[slot]; i < blockCount; i++) {
      if (this.#check[base + i] === Check.Positional && this.#sum[base + i] === location) {
        this.#check[base + i] = check;
      }
    }
  }

  /** Takes the operations that wait for a slot. */
  takeQueued(take: (operation: Operation) => void): void {
    while (this.#queue !== null) {
      const operation: Operation = this.#queue;
      this.#queue = operation.next;
      operation.next = null;
      take(operation);
    }
    this.#queueLast = null;
    this.queued = 0;
  }
}
