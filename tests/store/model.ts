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
 * The model relies on the workload never having two operations on one block under way at a time.
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
  readonly values: readonly number[];
  readonly stamp: ModelStamp;
}

/** A chunk: as it was at the last sync, and what was asked for since. */
interface Chunk {
  stamp: ModelStamp;
  values: Map<number, number>;
  later: ChunkChange[];
}

function applyChange(chunk: Chunk, change: ChunkChange): void {
  change.values.forEach((value, i) => chunk.values.set(change.block + i, value));
  if (change.stamp !== KEPT) chunk.stamp = change.stamp;
}

/** Whether some prefix of what was asked for makes `values` once blocks of its writes are left out. */
function isTornPrefix({ values: base, later }: Chunk, values: readonly number[]): boolean {
  const mayHold = (value: number, block: number, end: number): boolean => {
    for (let i = end - 1; i >= 0; i--) {
      const written = later[i].values[block - later[i].block];
      if (written === undefined) continue;
      if (written === value) return true;
      // What needs no data is there as a whole.
      if (written <= 0) return false;
    }
    return (base.get(block) ?? ABSENT) === value;
  };
  for (let end = 1; end <= later.length; end++) {
    const hasWrite = later.slice(0, end).some((change) => change.values.some((each) => each > 0));
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
    const whole: ChunkChange = { block, values, stamp, ackedAt: Infinity };
    this.#chunk(layer, chunk).later.push(whole);
    const changes: Acked[] = values.map((value, i) => {
      const key = Model.key(chunk, block + i);
      let known = blocks.get(key);
      if (!known) blocks.set(key, known = { base: [ABSENT], later: [] });
      const change = { value, ackedAt: Infinity };
      known.later.push(change);
      this.#dirty.add(known);
      return change;
    });
    return [...changes, whole];
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
      if (change.values.length > 1 && change.values.some((value) => value > 0)) {
        allowed.add(UNKNOWN);
      }
    }
    return allowed;
  }

  /**
   * After a crash, a chunk holds `values` (from block 0 on) under `stamp`: throws unless some prefix
   * of what was asked for makes that. From now on that is what is there.
   *
   * @param mayBeTorn writes may be there in part, also those before the last
   */
  observeChunk(
    layer: number,
    chunk: number,
    stamp: ModelStamp,
    values: readonly number[],
    mayBeTorn: boolean,
  ): void {
    const known = this.#chunk(layer, chunk);
    const state: Chunk = { stamp: known.stamp, values: new Map(known.values), later: [] };
    const matches = () =>
      state.stamp === stamp &&
      values.every((value, block) => (state.values.get(block) ?? ABSENT) === value);
    let isFound = matches();
    for (let i = 0; i < known.later.length && !isFound; i++) {
      const { block, values: written, stamp: next } = known.later[i];
      // The log may have had to cut it. Frees and zeroes it does not.
      const parts = written.some((value) => value > 0) ? written.length - 1 : 0;
      const before = state.stamp;
      for (let part = 0; part < parts && !isFound; part++) {
        state.values.set(block + part, written[part]);
        if (next !== KEPT) state.stamp = UNKNOWN;
        isFound = matches();
      }
      if (isFound) break;
      state.stamp = before;
      applyChange(state, known.later[i]);
      isFound = matches();
    }
    if (!isFound && mayBeTorn && stamp === UNKNOWN) isFound = isTornPrefix(known, values);
    if (!isFound) {
      throw new Error(
        `layer ${layer}, chunk ${chunk} holds ${values} under ${stamp}: no prefix of what was asked for; ` +
          `from ${known.stamp} with ${JSON.stringify([...known.values])}: ${
            JSON.stringify(known.later)
          }`,
      );
    }
    known.stamp = stamp;
    known.values = new Map(values.map((value, block) => [block, value]));
    known.later = [];
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
    return copy;
  }
}

function afterCrash(block: Block): number[] {
  return [...block.base, ...block.later.map(({ value }) => value)];
}

function now(block: Block): number[] {
  const acked = block.later.findLastIndex((change) => change.ackedAt !== Infinity);
  const values = acked < 0 ? [...block.base] : [];
  for (let i = Math.max(0, acked); i < block.later.length; i++) values.push(block.later[i].value);
  return values;
}
