/**
 * The throttle in virtual time: front ends that always want more, and a loop that is late as a real one is.
 *
 * @module
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { SLACK_MS, Throttle, type ThrottleLimits } from "../../agent/volume/throttle.ts";

const MIB = 1024 * 1024;
const NONE: ThrottleLimits = {
  iops: 0,
  bytesPerSecond: 0,
  burstIops: 0,
  burstBytesPerSecond: 0,
  burstSeconds: 0,
};

/** A front end that has as many requests under way as it can: each comes back some time after it was taken. */
class FrontEnd {
  taken = 0;
  takenBytes = 0;
  /** When those under way come back. */
  readonly #backMs: number[] = [];

  constructor(
    readonly bench: Bench,
    readonly depth: number,
    readonly bytes: () => number,
    readonly latencyMs = 0.2,
  ) {}

  /** Takes what there is, as a session does. */
  resume(): void {
    const { throttle } = this.bench;
    while (this.#backMs.length < this.depth) {
      if (!throttle.isOpen && !throttle.admit(this, this.bench.nowMs)) return;
      const bytes = this.bytes();
      throttle.charge(bytes);
      this.taken++;
      this.takenBytes += bytes;
      this.#backMs.push(this.bench.nowMs + this.latencyMs);
    }
  }

  get nextMs(): number {
    return Math.min(...this.#backMs);
  }

  turn(): void {
    const before = this.#backMs.length;
    for (let i = before - 1; i >= 0; i--) {
      if (this.#backMs[i] <= this.bench.nowMs) this.#backMs.splice(i, 1);
    }
    if (this.#backMs.length < this.depth) this.resume();
  }
}

/** The loop: sleeps until something is due, and is late by up to some milliseconds. */
class Bench {
  readonly throttle = new Throttle();
  readonly frontEnds: FrontEnd[] = [];
  nowMs: number;
  turns = 0;

  constructor(readonly random: Prng, readonly lateMsMax: number, startMs = 12_345.678) {
    this.nowMs = startMs;
  }

  add(depth: number, bytes: () => number): FrontEnd {
    const frontEnd = new FrontEnd(this, depth, bytes);
    this.frontEnds.push(frontEnd);
    return frontEnd;
  }

  run(seconds: number): void {
    const endMs = this.nowMs + seconds * 1000;
    for (;;) {
      this.turns++;
      if (this.throttle.isHolding) this.throttle.resume(this.nowMs);
      for (const frontEnd of this.frontEnds) frontEnd.turn();
      const opensMs = this.throttle.isHolding ? this.throttle.opensMs : Infinity;
      const dueMs = Math.min(opensMs, ...this.frontEnds.map((each) => each.nextMs));
      const next = Math.max(dueMs, this.nowMs + 0.01) + this.random.below(1000) / 1000 *
          this.lateMsMax;
      if (next >= endMs) break;
      this.nowMs = next;
    }
    this.nowMs = endMs;
  }

  get taken(): number {
    return this.frontEnds.reduce((sum, each) => sum + each.taken, 0);
  }

  get takenBytes(): number {
    return this.frontEnds.reduce((sum, each) => sum + each.takenBytes, 0);
  }
}

function near(actual: number, expected: number, what: string): void {
  const off = Math.abs(actual / expected - 1);
  assert(off <= 0.02, `${what}: ${actual} is ${(off * 100).toFixed(1)} % off ${expected}`);
}

Deno.test("over ten seconds the limits are kept to within two per cent, whatever the depth and the delays", () => {
  for (const depth of [1, 4, 256]) {
    for (const lateMsMax of [0, 2, 30]) {
      for (const count of [1, 3]) {
        const what = `depth ${depth}, up to ${lateMsMax} ms late, ${count} front ends`;
        const requests = new Bench(new Prng(depth + lateMsMax), lateMsMax);
        requests.throttle.setLimits({ ...NONE, iops: 500 }, requests.nowMs);
        for (let i = 0; i < count; i++) requests.add(depth, () => 4096);
        requests.run(10);
        // One at a time, each as late as 30 ms: that is slower than the limit.
        const canReach = depth * count > lateMsMax / 2;
        if (canReach) near(requests.taken, 5000, `requests, ${what}`);
        else assert(requests.taken <= 5100, what);

        const bytes = new Bench(new Prng(depth + lateMsMax), lateMsMax);
        bytes.throttle.setLimits({ ...NONE, bytesPerSecond: 50 * MIB }, bytes.nowMs);
        const { random } = bytes;
        const size = () => 4096 * (1 + random.below(random.chance(0.1) ? 256 : 64));
        for (let i = 0; i < count; i++) bytes.add(depth, size);
        bytes.run(10);
        if (depth * count > 8 || lateMsMax === 0) near(bytes.takenBytes, 500 * MIB, what);
        else assert(bytes.takenBytes <= 510 * MIB, what);
      }
    }
  }
});

Deno.test("the stricter of the two limits holds", () => {
  const bench = new Bench(new Prng(1), 1);
  bench.throttle.setLimits({ ...NONE, iops: 1000, bytesPerSecond: 8 * MIB }, bench.nowMs);
  let size = 64 * 1024;
  bench.add(32, () => size);
  bench.run(10);
  near(bench.takenBytes, 80 * MIB, "large requests");
  const before = bench.taken;
  size = 512;
  bench.run(10);
  near(bench.taken - before, 10_000, "small requests");
});

Deno.test("a very low limit is kept too, and one request larger than it is paid for afterwards", () => {
  const bench = new Bench(new Prng(2), 2);
  bench.throttle.setLimits({ ...NONE, iops: 1 }, bench.nowMs);
  bench.add(8, () => 4096);
  bench.run(60);
  assert(bench.taken === 60 || bench.taken === 61, `${bench.taken} requests`);

  const large = new Bench(new Prng(3), 2);
  large.throttle.setLimits({ ...NONE, bytesPerSecond: MIB }, large.nowMs);
  large.add(8, () => 4 * MIB);
  large.run(39);
  assertEquals(large.taken, 10);
});

Deno.test("requests without data count as requests, and not as bytes", () => {
  const bench = new Bench(new Prng(4), 1);
  bench.throttle.setLimits({ ...NONE, bytesPerSecond: 1 }, bench.nowMs);
  bench.add(4, () => 0);
  bench.run(0.1);
  assertEquals(bench.throttle.isHolding, false);
  assert(bench.taken > 100);
  const before = bench.taken;
  bench.throttle.setLimits({ ...NONE, bytesPerSecond: 1, iops: 100 }, bench.nowMs);
  bench.run(10);
  near(bench.taken - before, 1000, "requests without data");
});

Deno.test("bursts last as long as they should at their rate, and come back with the time of less use", () => {
  const bench = new Bench(new Prng(5), 1);
  bench.throttle.setLimits(
    { ...NONE, iops: 500, burstIops: 2000, burstSeconds: 5 },
    bench.nowMs,
  );
  const frontEnd = bench.add(64, () => 4096);
  bench.run(1);
  assert(bench.taken <= 2000 * (1 + SLACK_MS / 1000) + 1, `${bench.taken} in the first second`);
  bench.run(4);
  near(bench.taken, 10_000, "the burst");
  let before = bench.taken;
  bench.run(10);
  near(bench.taken - before, 5000, "after it");
  // Fifteen seconds of nothing would make up for 5 × (2000 − 500) requests.
  bench.frontEnds.length = 0;
  bench.throttle.leave(frontEnd, bench.nowMs);
  bench.nowMs += 7500;
  bench.frontEnds.push(frontEnd);
  before = bench.taken;
  bench.run(5);
  near(bench.taken - before, 3750 + 2500, "half of a burst, after half of that time");

  const bytes = new Bench(new Prng(6), 1);
  bytes.throttle.setLimits(
    { ...NONE, bytesPerSecond: 10 * MIB, burstBytesPerSecond: 50 * MIB, burstSeconds: 2 },
    bytes.nowMs,
  );
  bytes.add(64, () => 65536);
  bytes.run(2);
  near(bytes.takenBytes, 100 * MIB, "the burst of bytes");
  bytes.run(8);
  near(bytes.takenBytes, 180 * MIB, "the burst and after it");
});

Deno.test("a change holds at once, also for those that wait, and gives no new burst", () => {
  const bench = new Bench(new Prng(7), 1);
  const { throttle } = bench;
  throttle.setLimits({ ...NONE, bytesPerSecond: 1024 }, bench.nowMs);
  const frontEnd = bench.add(64, () => MIB);
  bench.run(1);
  assertEquals(frontEnd.taken, 1, "the next one would come after a quarter of an hour");
  throttle.setLimits({ ...NONE, bytesPerSecond: 50 * MIB }, bench.nowMs);
  bench.run(10);
  near(frontEnd.takenBytes, 500 * MIB, "after the change");
  throttle.setLimits(NONE, bench.nowMs);
  const before = frontEnd.taken;
  bench.run(0.01);
  assert(frontEnd.taken - before > 500, "without limits");
  assertEquals(throttle.isHolding, false);

  const burst = { ...NONE, iops: 100, burstIops: 1000, burstSeconds: 10 };
  throttle.setLimits(burst, bench.nowMs);
  bench.run(20);
  const spent = frontEnd.taken;
  for (let i = 0; i < 10; i++) {
    throttle.setLimits({ ...burst, burstIops: 1000 + i % 2 }, bench.nowMs);
    bench.run(1);
  }
  near(frontEnd.taken - spent, 1000, "a burst that is spent");
});

Deno.test("those that wait are served in turn, also beside one with a deep queue", () => {
  const bench = new Bench(new Prng(8), 2);
  bench.throttle.setLimits({ ...NONE, iops: 500 }, bench.nowMs);
  const deep = [bench.add(256, () => 4096), bench.add(256, () => 4096)];
  const shallow = bench.add(1, () => 4096);
  bench.run(10);
  near(bench.taken, 5000, "all of them");
  for (const each of deep) assertAlmostEquals(each.taken / 5000, 1 / 3, 0.1);
  // With one request at a time it cannot take all of its turn, where several are due at once.
  assert(shallow.taken > 700, `only ${shallow.taken} of 5000`);
});

Deno.test("what is held back is counted: requests, and the time for which any was", () => {
  const bench = new Bench(new Prng(9), 0);
  const { throttle } = bench;
  throttle.setLimits({ ...NONE, iops: 100 }, bench.nowMs);
  const frontEnd = bench.add(16, () => 4096);
  bench.run(10);
  // All but the few of the first moment.
  assertAlmostEquals(throttle.heldRequests, frontEnd.taken, 1 + 2 * 100 * SLACK_MS / 1000);
  assertAlmostEquals(throttle.heldMs(bench.nowMs), 10_000, 100);
  assert(bench.turns < 4 * frontEnd.taken, `the loop woke ${bench.turns} times`);
  throttle.setLimits(NONE, bench.nowMs);
  throttle.resume(bench.nowMs);
  const heldMs = throttle.heldMs(bench.nowMs);
  bench.run(0.1);
  assertEquals(throttle.heldMs(bench.nowMs), heldMs, "nobody waits any more");
});

Deno.test("who leaves is not resumed", () => {
  const throttle = new Throttle();
  throttle.setLimits({ ...NONE, iops: 10 }, 0);
  throttle.charge(0);
  throttle.charge(0);
  const gone = { resume: () => assert(false, "it had left") };
  assertEquals(throttle.admit(gone, 1), false);
  assertEquals(throttle.isHolding, true);
  throttle.leave(gone, 2);
  assertEquals(throttle.isHolding, false);
  throttle.resume(10_000);
  assertEquals(throttle.heldMs(10_000), 1);
});

Deno.test("while somebody waits nobody else is admitted, even when it would be open by now", () => {
  const throttle = new Throttle();
  throttle.setLimits({ ...NONE, iops: 10 }, 0);
  throttle.charge(0);
  throttle.charge(0);
  const order: string[] = [];
  const waiter = (name: string) => ({
    resume: () => {
      order.push(name);
      throttle.charge(0);
    },
  });
  const [first, second] = [waiter("first"), waiter("second")];
  assertEquals(throttle.admit(first, 1), false);
  assertEquals(throttle.admit(second, 10_000), false);
  throttle.resume(10_000);
  assertEquals(order, ["first", "second"].slice(0, order.length));
  throttle.resume(20_000);
  assertEquals(order, ["first", "second"]);
});
