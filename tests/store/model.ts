/**
 * The oracle of the store's tests: what each block may hold.
 *
 * A block's value is a stamp: {@linkcode ABSENT} (never written or freed), 0 (zeros), or the number
 * that its content was made from. Of each block the model knows `base`, the values one of which was
 * durable for sure at the last sync, and `later`, what was asked for since, in order. Before a
 * crash a read must return the last one (or one that is under way); after a crash any of base and
 * later.
 *
 * Of each chunk it knows, besides, everything that was asked for since the last sync, in order, with
 * the stamps: after a crash the chunk must be exactly what a prefix of that makes of it, content and
 * stamp together; only the last operation of the prefix may be there in part, and then the stamp is
 * unknown. Where writes may have been torn, blocks of any of them may be missing from the prefix, and
 * then the stamp is unknown, too. So a stamp that is known always means the whole of a prefix.
 *
 * An absorb is a change of two chunks. What it makes of them is known when it is asked for, since all
 * that was asked for before of these chunks comes before it; after a crash it must be in what both hold
 * or in neither.
 *
 * A fill is known when it is asked for in the same way. Where writes before it were torn it may have found more holes than the
 * model knows of.
 *
 * The model relies on the workload never having two operations on one block under way at a time, absorbs
 * aside.
 *
 * @module
 */

/** Nothing there: reads fall through to older layers. */
export const ABSENT = -1;

interface Acked {
  /** When it was acknowledged, by the model's own clock; Infinity: not yet. */
  ackedAt: number;
}

interface Change extends Acked {
  readonly value: number;
  /** Of an absorb: what the block may be after it where writes before it were torn; see {@linkcode ChunkChange}. */
  readonly torn?: readonly number[];
}

/** "unknown", or generation and sequence. */
export type ModelStamp = string;
/** The stamp of a chunk that has none. */
export const UNKNOWN: ModelStamp = "unknown";
/** An operation that leaves the stamp. */
export const KEPT = "kept";

export function stampName(generation: number, sequence: number): ModelStamp {
  return generation === 0 ? UNKNOWN : `${generation}.${sequence}`;
}

interface ChunkChange extends Acked {
  readonly block: number;
  /** undefined: the block stays as it is. */
  readonly values: readonly (number | undefined)[];
  readonly stamp: ModelStamp;
  /** Of an absorb: its number, the same in both chunks; 0: it is none. */
  readonly absorb: number;
  /** A fill: a part of it sets the stamp as the whole does. */
  readonly isFill?: boolean;
  /** Of an absorb in the chunk that takes: what the other may hold where writes were torn, by block; of a fill: what it brings. */
  readonly torn: ReadonlyMap<number, ReadonlySet<number>> | null;
}

/** A prefix of what was asked for of a chunk: which absorbs are in it; null: that cannot be told. */
type Prefix = ReadonlySet<number> | null;

/** A chunk that was found after a crash. */
export interface FoundChunk {
  readonly layer: number;
  readonly stamp: ModelStamp;
  /** From block 0 on. */
  readonly values: readonly number[];
}

/** A chunk: as it was at the last sync, and what was asked for since. */
interface Chunk {
  stamp: ModelStamp;
  values: Map<number, number>;
  later: ChunkChange[];
}

function applyChange(chunk: Chunk, change: ChunkChange): void {
  change.values.forEach((value, i) => {
    if (value !== undefined) chunk.values.set(change.block + i, value);
  });
  if (change.stamp !== KEPT) chunk.stamp = change.stamp;
}

/** Whether some prefix of what was asked for makes `values` once blocks of its writes are left out. */
function isTornPrefix(
  { values: base, later }: Chunk,
  values: readonly number[],
  isAbsorber: boolean,
): boolean {
  const mayHold = (value: number, block: number, end: number): boolean => {
    for (let i = end - 1; i >= 0; i--) {
      const written = later[i].values[block - later[i].block];
      if (later[i].torn?.get(block)?.has(value) === true) return true;
      if (written === undefined) continue;
      if (written === value) return true;
      if (later[i].torn !== null) continue;
      // What needs no data is there as a whole.
      if (written <= 0) return false;
    }
    return (base.get(block) ?? ABSENT) === value;
  };
  for (let end = isAbsorber ? 0 : 1; end <= later.length; end++) {
    // Torn writes to what was absorbed make the stamp of what absorbed it unknown.
    const hasWrite = isAbsorber ||
      later.slice(0, end).some(({ isFill, values: written }) =>
        // One that finds no hole brings its data all the same.
        isFill === true || written.some((each) => each! > 0)
      );
    if (hasWrite && values.every((value, block) => mayHold(value, block, end))) return true;
  }
  return false;
}

interface Block {
  base: number[];
  later: Change[];
}

/** A value that does not change any more. */
const UNTOUCHED: Block = { base: [ABSENT], later: [] };

/** What is known of a named thing that comes and goes (layers) or changes (META). */
interface Named {
  base: (string | null)[];
  later: { value: string | null; ackedAt: number }[];
}

/** See the head of the file. */
export class Model {
  /** layer → block key → block. */
  readonly layers = new Map<number, Map<number, Block>>();
  /** Layers that may not be there after a crash, because they are being created or deleted. */
  readonly uncertain = new Set<number>();
  readonly meta = new Map<string, Named>();
  #clock = 0;
  readonly #dirty = new Set<Block>();
  /** "layer/chunk" → chunk. */
  readonly #chunks = new Map<string, Chunk>();
  /** Absorbs asked for so far, and layers that have taken something by one. */
  #absorbs = 0;
  readonly #absorbers = new Set<number>();

  static key(chunk: number, block: number): number {
    return chunk * 1024 + block;
  }

  /**
   * What was asked for: blocks of `layer` become `value(i)`, the chunk's stamp `stamp`. Returns what
   * to hand to {@linkcode ack}.
   */
  begin(
    layer: number,
    chunk: number,
    block: number,
    values: number[],
    stamp: ModelStamp = KEPT,
  ): Acked[] {
    const blocks = this.layers.get(layer)!;
    const whole: ChunkChange = {
      block,
      values,
      stamp,
      absorb: 0,
      torn: null,
      ackedAt: Infinity,
    };
    this.#chunk(layer, chunk).later.push(whole);
    const changes: Acked[] = values.map((value, i) =>
      this.#beginBlock(blocks, Model.key(chunk, block + i), value)
    );
    return [...changes, whole];
  }

  #beginBlock(
    blocks: Map<number, Block>,
    key: number,
    value: number,
    torn: readonly number[] = [],
  ): Acked {
    let known = blocks.get(key);
    if (!known) blocks.set(key, known = { base: [ABSENT], later: [] });
    const change = { value, torn, ackedAt: Infinity };
    known.later.push(change);
    this.#dirty.add(known);
    return change;
  }

  /** What was asked for: `into`'s chunk of `blockCount` blocks takes over what `from`'s has. */
  beginAbsorb(into: number, from: number, chunk: number, blockCount: number): Acked[] {
    const [taking, giving] = [this.#chunk(into, chunk), this.#chunk(from, chunk)];
    const [before, given] = [taking, giving].map(({ stamp, values, later }) => {
      const state: Chunk = { stamp, values: new Map(values), later: [] };
      for (const change of later) applyChange(state, change);
      return state;
    });
    this.#absorbers.add(into);
    const absorb = ++this.#absorbs;
    const acked: Acked[] = [];
    const torn = new Map<number, Set<number>>();
    const taken: (number | undefined)[] = [];
    const holes: (number | undefined)[] = [];
    for (let block = 0; block < blockCount; block++) {
      const key = Model.key(chunk, block);
      const value = given.values.get(block) ?? ABSENT;
      const current = before.values.get(block) ?? ABSENT;
      const isHole = current === ABSENT;
      taken.push(isHole && value !== ABSENT ? value : undefined);
      holes.push(value === ABSENT ? undefined : ABSENT);
      const possible = new Set([giving.values.get(block) ?? ABSENT]);
      for (const change of giving.later) {
        const written = change.values[block - change.block];
        if (written !== undefined) possible.add(written);
        for (const each of change.torn?.get(block) ?? []) possible.add(each);
      }
      torn.set(block, possible);
      if (value !== ABSENT) acked.push(this.#beginBlock(this.layers.get(from)!, key, ABSENT));
      if (possible.size === 1 && value === ABSENT) continue;
      const after = isHole ? value : current;
      acked.push(this.#beginBlock(this.layers.get(into)!, key, after, [...possible]));
    }
    const isNothing = before.stamp === UNKNOWN &&
      [...before.values.values()].every((value) => value === ABSENT);
    const stamp = isNothing && given.stamp !== UNKNOWN ? given.stamp : KEPT;
    const ackedAt = Infinity;
    const takes: ChunkChange = { block: 0, values: taken, stamp, absorb, torn, ackedAt };
    const gives: ChunkChange = {
      block: 0,
      values: holes,
      stamp: KEPT,
      absorb,
      torn: null,
      ackedAt,
    };
    taking.later.push(takes);
    giving.later.push(gives);
    return [...acked, takes, gives];
  }

  /** What was asked for: those blocks from `block` on that are holes become `values`; a chunk that holds nothing gets the stamp. */
  beginFill(
    layer: number,
    chunk: number,
    block: number,
    values: readonly number[],
    stamp: ModelStamp,
  ): Acked[] {
    const known = this.#chunk(layer, chunk);
    const before: Chunk = { stamp: known.stamp, values: new Map(known.values), later: [] };
    for (const change of known.later) applyChange(before, change);
    const isNothing = before.stamp === UNKNOWN &&
      [...before.values.values()].every((value) => value === ABSENT);
    const acked: Acked[] = [];
    const torn = new Map<number, Set<number>>();
    const filled = values.map((value, i) => {
      const current = before.values.get(block + i) ?? ABSENT;
      const isHole = current === ABSENT;
      torn.set(block + i, new Set([value]));
      const key = Model.key(chunk, block + i);
      const after = isHole ? value : current;
      acked.push(this.#beginBlock(this.layers.get(layer)!, key, after, [value]));
      return isHole ? value : undefined;
    });
    const whole: ChunkChange = {
      block,
      values: filled,
      stamp: isNothing ? stamp : KEPT,
      absorb: 0,
      isFill: true,
      torn,
      ackedAt: Infinity,
    };
    known.later.push(whole);
    return [...acked, whole];
  }

  #chunk(layer: number, chunk: number): Chunk {
    const key = `${layer}/${chunk}`;
    let known = this.#chunks.get(key);
    if (!known) this.#chunks.set(key, known = { stamp: UNKNOWN, values: new Map(), later: [] });
    return known;
  }

  /** Stamps that a chunk may have after a crash: that of the last sync, and all since. */
  allowedStamps(layer: number, chunk: number): Set<ModelStamp> {
    const { stamp, later } = this.#chunk(layer, chunk);
    const allowed = new Set([stamp]);
    for (const change of later) {
      if (change.stamp === KEPT) continue;
      allowed.add(change.stamp);
      // It may have been cut.
      const isWrite = change.absorb === 0 && change.values.some((value) => value! > 0);
      if (change.values.length > 1 && isWrite) {
        allowed.add(UNKNOWN);
      }
    }
    return allowed;
  }

  /**
   * After a crash, a chunk is this in all layers: throws unless some prefix of what was asked for of each
   * makes that, with no absorb in what one holds and not in the other. From now on that is what is there.
   *
   * @param mayBeTorn writes may be there in part, also those before the last
   */
  observeChunks(chunk: number, found: readonly FoundChunk[], mayBeTorn: boolean): void {
    const prefixes = found.map((each) => this.#prefixes(chunk, each, mayBeTorn));
    const changes = found.map(({ layer }) => this.#chunk(layer, chunk).later);
    const absorbs = changes.map((later) => new Set(later.map(({ absorb }) => absorb)));
    const chosen: Prefix[] = [];
    const agrees = (prefix: Prefix, at: number) =>
      chosen.every((other, i) =>
        prefix === null || other === null ||
        [...absorbs[at]].every((absorb) =>
          absorb === 0 || !absorbs[i].has(absorb) || prefix.has(absorb) === other.has(absorb)
        )
      );
    const choose = (at: number): boolean =>
      at === found.length || prefixes[at].some((prefix) => {
        if (!agrees(prefix, at)) return false;
        chosen.push(prefix);
        if (choose(at + 1)) return true;
        chosen.pop();
        return false;
      });
    if (!choose(0)) {
      throw new Error(
        `chunk ${chunk}: an absorb is in one layer and not in the other: ${
          JSON.stringify(found)
        }, of ${JSON.stringify(changes)}`,
      );
    }
    for (const { layer, stamp, values } of found) {
      const known = this.#chunk(layer, chunk);
      known.stamp = stamp;
      known.values = new Map(values.map((value, block) => [block, value]));
      known.later = [];
    }
  }

  /** Prefixes of what was asked for that make a chunk what was found; throws when there is none. */
  #prefixes(
    chunk: number,
    { layer, stamp, values }: FoundChunk,
    mayBeTorn: boolean,
  ): Prefix[] {
    const known = this.#chunk(layer, chunk);
    const state: Chunk = { stamp: known.stamp, values: new Map(known.values), later: [] };
    const prefixes = new Map<string, Prefix>();
    const absorbs = new Set<number>();
    const look = () => {
      const isFound = state.stamp === stamp &&
        values.every((value, block) => (state.values.get(block) ?? ABSENT) === value);
      if (isFound) prefixes.set([...absorbs].join(), new Set(absorbs));
    };
    look();
    for (const change of known.later) {
      const { block, values: written, stamp: next, absorb, isFill } = change;
      // The log may have had to cut it. Frees, zeroes and absorbs it does not.
      const isWrite = absorb === 0 && written.some((value) => value! > 0);
      const parts = isWrite ? written.length - 1 : 0;
      const before = state.stamp;
      for (let part = 0; part < parts; part++) {
        if (written[part] !== undefined) state.values.set(block + part, written[part]!);
        if (next !== KEPT) state.stamp = isFill ? next : UNKNOWN;
        look();
      }
      state.stamp = before;
      applyChange(state, change);
      if (absorb > 0) absorbs.add(absorb);
      look();
    }
    if (mayBeTorn && stamp === UNKNOWN && isTornPrefix(known, values, this.#absorbers.has(layer))) {
      prefixes.set("torn", null);
    }
    if (prefixes.size === 0) {
      throw new Error(
        `layer ${layer}, chunk ${chunk} holds ${values} under ${stamp}: no prefix of what was asked for; ` +
          `from ${known.stamp} with ${JSON.stringify([...known.values])}: ${
            JSON.stringify(known.later)
          }`,
      );
    }
    return [...prefixes.values()];
  }

  ack(changes: Acked[]): void {
    this.#clock++;
    for (const change of changes) change.ackedAt = this.#clock;
  }

  /** It failed: it may or may not have happened, for ever. */
  syncBegins(): number {
    return this.#clock;
  }

  /** A sync that began at `clock` is acknowledged. */
  synced(clock: number): void {
    for (const block of this.#dirty) {
      const last = block.later.findLastIndex((change) => change.ackedAt <= clock);
      if (last < 0) continue;
      block.base = [block.later[last].value];
      block.later.splice(0, last + 1);
      if (block.later.length === 0) this.#dirty.delete(block);
    }
    for (const chunk of this.#chunks.values()) {
      // What came before it is durable with it, acknowledged or not: one chunk is kept in order.
      const last = chunk.later.findLastIndex(({ ackedAt }) => ackedAt <= clock);
      for (const change of chunk.later.splice(0, last + 1)) applyChange(chunk, change);
    }
  }

  #block(layer: number, chunk: number, block: number): Block {
    return this.layers.get(layer)?.get(Model.key(chunk, block)) ?? UNTOUCHED;
  }

  /** Values that a read through `layers` may return: while running, or after a crash. */
  allowed(layers: readonly number[], chunk: number, block: number, crashed: boolean): Set<number> {
    const values = new Set<number>();
    if (layers.length === 0) return values.add(0);
    const known = this.#block(layers[0], chunk, block);
    for (const value of crashed ? afterCrash(known) : now(known)) {
      if (value !== ABSENT) values.add(value);
      else {for (const below of this.allowed(layers.slice(1), chunk, block, crashed)) {
          values.add(below);
        }}
    }
    return values;
  }

  /**
   * After a crash, a read of the one layer has returned `value`: from now on that is what is there.
   */
  observe(layer: number, chunk: number, block: number, value: number): void {
    const blocks = this.layers.get(layer)!;
    const key = Model.key(chunk, block);
    const known = blocks.get(key);
    if (!known) return;
    const possible = new Set(afterCrash(known));
    // Zeros and nothing look alike.
    known.base = [...possible].filter((one) => one === value || (value === 0 && one === ABSENT));
    known.later = [];
    this.#dirty.delete(known);
  }

  /** Named things: `value` null means gone. */
  beginMeta(key: string, value: string | null): { ackedAt: number } {
    let known = this.meta.get(key);
    if (!known) this.meta.set(key, known = { base: [null], later: [] });
    const change = { value, ackedAt: Infinity };
    known.later.push(change);
    return change;
  }

  /** Durable when acknowledged. */
  ackMeta(key: string): void {
    const known = this.meta.get(key)!;
    known.base = [known.later[known.later.length - 1].value];
    known.later = [];
  }

  allowedMeta(key: string): (string | null)[] {
    const known = this.meta.get(key)!;
    return [...known.base, ...known.later.map(({ value }) => value)];
  }

  observeMeta(key: string, value: string | null): void {
    this.meta.set(key, { base: [value], later: [] });
  }

  /** A copy, for a look into one possible future. */
  clone(): Model {
    const copy = new Model();
    for (const [id, blocks] of this.layers) {
      const to = new Map<number, Block>();
      for (const [key, { base, later }] of blocks) {
        const block = { base: [...base], later: later.map((change) => ({ ...change })) };
        to.set(key, block);
        if (later.length > 0) copy.#dirty.add(block);
      }
      copy.layers.set(id, to);
    }
    for (const id of this.uncertain) copy.uncertain.add(id);
    for (const [key, { base, later }] of this.meta) {
      copy.meta.set(key, { base: [...base], later: later.map((change) => ({ ...change })) });
    }
    for (const [key, { stamp, values, later }] of this.#chunks) {
      const changes = later.map((change) => ({ ...change }));
      copy.#chunks.set(key, { stamp, values: new Map(values), later: changes });
    }
    copy.#clock = this.#clock;
    copy.#absorbs = this.#absorbs;
    for (const layer of this.#absorbers) copy.#absorbers.add(layer);
    return copy;
  }
}

function afterCrash(block: Block): number[] {
  return [...block.base, ...block.later.flatMap(({ value, torn = [] }) => [value, ...torn])];
}

function now(block: Block): number[] {
  const acked = block.later.findLastIndex((change) => change.ackedAt !== Infinity);
  const values = acked < 0 ? [...block.base] : [];
  for (let i = Math.max(0, acked); i < block.later.length; i++) values.push(block.later[i].value);
  return values;
}
