/**
 * Speed of the index alone: `deno bench tests/bench/index_bench.ts`.
 *
 * @module
 */
import { Index } from "../../agent/store/index.ts";

const CHUNKS = 1024;
const random = new Index();
random.createLayer(1);
for (let i = 0; i < CHUNKS * 1024; i++) random.setDirect(1, i & 1023, i >>> 10, i + 100, i);
const sequential = new Index();
sequential.createLayer(1);
for (let i = 0; i < CHUNKS; i++) {
  sequential.setRun(1, i, 0, 1024, 1000 + i * 1025, 999 + i * 1025, 16);
}
let x = 1;
const next = () => (x = Math.imul(x, 1664525) + 1013904223 | 0) >>> 8;
let location = 10_000_000;

Deno.bench("find one block, random disk", () => {
  const r = next();
  random.find(1, r & 1023, r >>> 10 & 1023, 1);
});
Deno.bench("find one block, sequential disk", () => {
  const r = next();
  sequential.find(1, r & 1023, r >>> 10 & 1023, 1);
});
Deno.bench("find 256 blocks, sequential disk", () => {
  sequential.find(1, next() & 1023, 256, 256);
});
Deno.bench("overwrite one block, random disk", () => {
  const r = next();
  random.setDirect(1, r & 1023, r >>> 10 & 1023, location++, r);
});
Deno.bench("overwrite one block, disk that was sequential", () => {
  const r = next();
  sequential.setDirect(1, r & 1023, r >>> 10 & 1023, location++, r);
});
