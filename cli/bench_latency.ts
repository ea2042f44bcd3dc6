/**
 * A histogram of latencies: log-linear buckets of at most 1.6 % width, no allocation per sample.
 *
 *     bucket   0…63: one unit each, then 64 per power of two
 *
 * @module
 */

/** 64 buckets per power of two. */
const SUB_BITS = 6;
/** Samples are counted in units of 1/16 µs: 31 bits of them are 134 s. */
const UNITS_PER_US = 16;
const UNITS_MAX = 0x7fffffff;
const BUCKETS = (32 - SUB_BITS) << SUB_BITS;

/** Figures of one kind of operation, in microseconds. */
export interface Latency {
  readonly count: number;
  readonly mean: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

/** Collects samples. */
export class LatencyHistogram {
  readonly #buckets = new Uint32Array(BUCKETS);
  /** Count, sum and maximum: in an array, because numbers in fields are boxed. */
  readonly #totals = new Float64Array(3);

  /** @param us microseconds, ≥ 0 */
  add(us: number): void {
    const totals = this.#totals;
    totals[0]++;
    totals[1] += us;
    if (us > totals[2]) totals[2] = us;
    this.#buckets[bucketOf(Math.min(us * UNITS_PER_US, UNITS_MAX) | 0)]++;
  }

  /** Adds all samples of another histogram. */
  merge(other: LatencyHistogram): void {
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      this.#buckets[bucket] += other.#buckets[bucket];
    }
    this.#totals[0] += other.#totals[0];
    this.#totals[1] += other.#totals[1];
    this.#totals[2] = Math.max(this.#totals[2], other.#totals[2]);
  }

  /** The smallest latency that a fraction of the samples does not exceed, to within 1.6 %. */
  quantile(fraction: number): number {
    const [count, , max] = this.#totals;
    const rank = Math.min(Math.floor(fraction * count), count - 1);
    let below = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      below += this.#buckets[bucket];
      if (below > rank) return Math.min(middleOf(bucket) / UNITS_PER_US, max);
    }
    return 0;
  }

  /** The figures, rounded to a hundredth. */
  summary(): Latency {
    const [count, sum, max] = this.#totals;
    return {
      count,
      mean: rounded(count === 0 ? 0 : sum / count),
      p50: rounded(this.quantile(0.5)),
      p99: rounded(this.quantile(0.99)),
      p999: rounded(this.quantile(0.999)),
      max: rounded(max),
    };
  }
}

function bucketOf(units: number): number {
  if (units < 1 << SUB_BITS) return units;
  const exponent = 31 - Math.clz32(units);
  const shift = exponent - SUB_BITS;
  return ((shift + 1) << SUB_BITS) + ((units >>> shift) & ((1 << SUB_BITS) - 1));
}

function middleOf(bucket: number): number {
  if (bucket < 1 << SUB_BITS) return bucket;
  const shift = (bucket >> SUB_BITS) - 1;
  const low = ((1 << SUB_BITS) + (bucket & ((1 << SUB_BITS) - 1))) * 2 ** shift;
  return low + 2 ** shift / 2;
}

function rounded(value: number): number {
  return Math.round(value * 100) / 100;
}
