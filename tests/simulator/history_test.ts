import { assertThrows } from "@std/assert/mod.js";
import { BlockHistory } from "./history.ts";

/** Two writes that are never acknowledged; each is read once before the next thing happens. */
function twoReads(): BlockHistory {
  const history = new BlockHistory("a block");
  history.writeStarts(1, 10);
  history.read(1, 20, 30);
  history.writeStarts(2, 40);
  history.read(2, 50, 60);
  return history;
}

Deno.test("BlockHistory: what was read cannot go, acknowledged or not", () => {
  const history = twoReads();
  assertThrows(() => history.read(1, 80, 90), Error, "not linearizable");
});

Deno.test("BlockHistory: what was read goes with all replicas, unless it was acknowledged and flushed", () => {
  const history = twoReads();
  history.lost(70, () => false);
  history.read(1, 80, 90);
  // The first read afterwards has decided.
  history.read(1, 100, 110);

  const flushed = twoReads();
  flushed.writeEnds(2, 65);
  flushed.lost(70, (id) => id === 2);
  assertThrows(() => flushed.read(0, 80, 90), Error, "flushed is newer");
});

Deno.test("BlockHistory: a write that was under way when all replicas were lost may arrive afterwards, once", () => {
  const history = twoReads();
  history.lost(70, () => false);
  history.read(1, 80, 90);
  history.read(2, 100, 110);
  assertThrows(() => history.read(1, 120, 130), Error, "not linearizable");
});
