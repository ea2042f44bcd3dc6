/**
 * A node that joins a cluster with thousands of snapshots makes all their layers at once, in a store that has other things to remember.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { Prng } from "../../agent/base/prng.ts";
import { DataCore } from "../../agent/replication/data_core.ts";
import { Bench, makeDisk, SMALL } from "../store/harness.ts";
import { FakeTransport, mapOf } from "./harness.ts";

const LAYERS = 6000;

Deno.test("what consensus has to remember is taken while thousands of layers are made", () => {
  const random = new Prng(1);
  const shape = { ...SMALL, segmentBytes: 1024 * 1024, segments: 64 };
  const bench = new Bench(0, makeDisk(0, random.fork(), shape), random.fork(), shape);
  bench.format();
  bench.mustOpen();
  const errors: string[] = [];
  let installed = 0;
  const core = new DataCore({
    store: bench.store,
    window: bench.window,
    arena: new Arena(),
    transport: new FakeTransport(),
    log: { debug() {}, info() {}, warn() {}, error: (message) => errors.push(message) },
    events: {
      mapInstalled: () => installed++,
      reconciled() {},
      unreachable() {},
      inSync() {},
      settled() {},
      memberFailed() {},
    },
  });
  const layers = Array.from(
    { length: LAYERS },
    (_, i) => ({ id: i + 1, parent: i, absorbedBy: null }),
  );
  core.setMap(mapOf({ layers }), 4, 1);
  const results: (string | null)[] = [];
  const persist = () =>
    bench.store.setMetaBatch([{ key: "raft/state", value: Uint8Array.of(1) }], (error) => {
      results.push(error === null ? null : error.message);
    });
  persist();
  for (let turn = 0; installed === 0 && turn < 20_000; turn++) {
    bench.store.endTurn();
    bench.disk.pump();
    core.tick(1000 + 10 * turn);
  }
  bench.until(() => results.length === 1, "the persist");
  assert(installed > 0, "the map is in force");
  assertEquals([results, errors.length], [[null], 0]);
});
