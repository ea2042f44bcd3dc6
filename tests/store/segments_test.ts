/** When a segment may be used again: each of the rules of segments.ts, by itself. */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { NO_SEGMENT } from "../../agent/store/format.ts";
import { Segments, SegmentState } from "../../agent/store/segments.ts";

const BYTES = 128 * 1024;

/** Three segments; the second one is sealed under sequence 5 and holds four live blocks. */
function make(): { segments: Segments; location: number } {
  const segments = new Segments(BYTES, 3);
  segments.assign(1, SegmentState.Sealed, 5, true);
  const location = segments.start(1) + 2;
  segments.addLive(location, 4);
  return { segments, location };
}

/** What reclaim frees. */
function freed(segments: Segments, syncedLsn: number, replaySequence: number): number[] {
  const list: number[] = [];
  segments.reclaim(syncedLsn, replaySequence, (segment) => list.push(segment));
  return list;
}

Deno.test("reclaim() waits until the records that killed a segment are durable", () => {
  const { segments, location } = make();
  segments.removeLive(location, 3, 40);
  assertEquals(freed(segments, 100, 9), [], "one block is still live");
  segments.removeLive(location + 3, 1, 50);
  assertEquals(freed(segments, 49, 9), []);
  assertEquals(segments.pendingSync(49), 1);
  assertEquals(freed(segments, 50, 9), [1]);
  assertEquals(freed(segments, 50, 9), []);
});

Deno.test("reclaim() leaves what replay would walk through", () => {
  const { segments, location } = make();
  segments.removeLive(location, 4, 50);
  assertEquals(freed(segments, 50, 5), []);
  assertEquals(segments.pendingReplay(5), 1);
  assertEquals(freed(segments, 50, 6), [1]);
});

Deno.test("reclaim() leaves what is being read", () => {
  const { segments, location } = make();
  segments.pins[1]++;
  segments.removeLive(location, 4, 50);
  assertEquals(freed(segments, 50, 9), []);
  segments.unpin(1);
  assert(segments.reclaimable);
  assertEquals(freed(segments, 50, 9), [1]);
});

Deno.test("reclaim() leaves what died while a checkpoint was running, until it is over", () => {
  const { segments, location } = make();
  segments.checkpointEpoch++;
  segments.checkpointRunning = true;
  segments.removeLive(location, 4, 50);
  assertEquals(freed(segments, 50, 9), []);
  segments.checkpointRunning = false;
  assertEquals(freed(segments, 50, 9), [1]);
});

Deno.test("reclaim() frees during a checkpoint what had died before it, unless it was cleaned since", () => {
  for (const isCleaned of [false, true]) {
    const { segments, location } = make();
    if (isCleaned) segments.pins[1]++;
    segments.removeLive(location, 4, 50);
    segments.checkpointEpoch++;
    segments.checkpointRunning = true;
    if (isCleaned) segments.cleaned(1, 60);
    assertEquals(freed(segments, 55, 9), isCleaned ? [] : [1]);
    if (!isCleaned) continue;
    segments.checkpointRunning = false;
    assertEquals(freed(segments, 55, 9), [], "relocations up to 60 must be durable");
    assertEquals(freed(segments, 60, 9), [1]);
  }
});

Deno.test("a segment with batches that are not applied is not dead", () => {
  const { segments, location } = make();
  segments.unapplied[1] = 1;
  segments.removeLive(location, 4, 50);
  assertEquals(segments.state[1], SegmentState.Sealed);
  segments.unapplied[1] = 0;
  segments.settle(1, 51);
  assertEquals(segments.state[1], SegmentState.Pending);
});

Deno.test("take() gives ready segments, the lowest first; counting below zero stops the store", () => {
  const { segments, location } = make();
  assertEquals(segments.take(SegmentState.Open), NO_SEGMENT, "none is allocated");
  const busy = segments.takeBusy(0);
  assertEquals(busy, 0);
  segments.endBusy(busy, true);
  assertEquals([segments.freeCount, segments.readyCount], [2, 1]);
  assertEquals(segments.take(SegmentState.Open), 0);
  assertThrows(() => segments.removeLive(location, 5, 1));
});

Deno.test("isDataRange() is true for blocks within one segment, past its header, only", () => {
  const { segments } = make();
  const start = segments.start(1);
  const cases: [number, number, boolean][] = [
    [start, 1, false],
    [start + 1, 31, true],
    [start + 1, 32, false],
    [start + 31, 1, true],
    [start - 1, 1, true],
    [0, 1, false],
    [segments.start(3) + 1, 1, false],
    [0xfffffff0, 1, false],
  ];
  for (const [location, count, expected] of cases) {
    assertEquals(segments.isDataRange(location, count), expected, `${location} ${count}`);
  }
});
