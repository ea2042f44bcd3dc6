import { assertEquals } from "@std/assert/mod.js";
import { ProgressWatch } from "../../agent/volume/progress_watch.ts";

Deno.test("a disk stalls from when its last request came back, as long as others are in flight", () => {
  const volume = { inFlight: 0, finished: 0 };
  const watch = new ProgressWatch(volume);
  watch.look(1000);
  volume.inFlight = 2;
  for (const now of [1100, 2100, 7000]) watch.look(now);
  assertEquals(watch.stalledMs(7000), 6000);
  // One comes back: the other has waited for as long, but something moves.
  volume.finished = 1;
  volume.inFlight = 1;
  assertEquals(watch.stalledMs(7001), 0, "before the next look");
  watch.look(7100);
  assertEquals(watch.stalledMs(7200), 100);
  volume.finished = 2;
  volume.inFlight = 0;
  assertEquals(watch.stalledMs(20_000), 0);
});

Deno.test("an idle disk does not stall, however long nothing comes back, and a new request starts from then", () => {
  const volume = { inFlight: 0, finished: 5 };
  const watch = new ProgressWatch(volume);
  for (const now of [0, 10_000, 60_000]) {
    watch.look(now);
    assertEquals(watch.stalledMs(now), 0);
  }
  volume.inFlight = 1;
  watch.look(60_100);
  assertEquals(watch.stalledMs(60_200), 200);
});
