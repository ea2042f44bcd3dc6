/**
 * Measures the data workers' transport: two rings in one process over loopback TCP, on one thread, so both ends' work is in each figure.
 *
 *     deno run -A tests/bench/peers.ts [--seconds 1]
 *
 * @module
 */
import { parseArgs } from "node:util";
import { opensslCipherSuite } from "../../agent/platform/linux/openssl.ts";
import { type CipherSuite, nodeCipherSuite } from "../../agent/wire/cipher.ts";
import { connectEnds, headOf, PeerEnd } from "../platform/peer_ends.ts";

const { values } = parseArgs({ options: { seconds: { type: "string", default: "1" } } });
const seconds = Number(values.seconds);

/** The best window counts: what else runs on the machine only takes away. */
const WINDOW_MS = 50;

/** Requests of `dataBytes` answered by heads, `depth` at a time. Returns how many a second. */
function rate(suite: CipherSuite, features: number, dataBytes: number, depth: number): number {
  const a = new PeerEnd(1, { suite, self: { features } });
  const b = new PeerEnd(2, { suite, self: { features } });
  const [link] = connectEnds(a, b);
  const head = headOf(1, 128), answer = headOf(2);
  const data = a.arena.allocate(dataBytes);
  let done = 0;
  let waiting = 0;
  b.onReceived = (from, _head, offset, bytes) => {
    b.arena.release(offset, bytes);
    b.peers.send(from, answer, 64, 0, 0);
  };
  const issue = () => {
    if (!a.peers.send(link, head, 128, data, dataBytes)) waiting++;
  };
  a.linkReady = () => {
    for (; waiting > 0; waiting--) issue();
  };
  a.onReceived = () => {
    done++;
    issue();
  };
  for (let i = 0; i < depth; i++) issue();
  const warmMs = performance.now() + 200;
  while (performance.now() < warmMs) for (const end of [a, b]) end.turn();
  let perSecond = 0;
  const endMs = performance.now() + seconds * 1000;
  while (performance.now() < endMs) {
    done = 0;
    const startMs = performance.now();
    while (performance.now() - startMs < WINDOW_MS) for (const end of [a, b]) end.turn();
    perSecond = Math.max(perSecond, done / (performance.now() - startMs) * 1000);
  }
  a.close();
  b.close();
  return perSecond;
}

const openssl = opensslCipherSuite();
const modes: [string, CipherSuite, number][] = [["sealed, node:crypto", nodeCipherSuite, 1]];
if (openssl) {
  modes.push(["sealed, openssl", openssl, 1], ["trusted, openssl", openssl, 0]);
} else modes.push(["trusted, node:crypto", nodeCipherSuite, 0]);
for (const [name, suite, features] of modes) {
  const one = rate(suite, features, 4096, 1);
  const many = rate(suite, features, 4096, 32);
  const big = rate(suite, features, 1 << 20, 4);
  console.log(
    `${name.padEnd(22)} 4 KiB depth 1 ${one.toFixed(0)}/s, depth 32 ${many.toFixed(0)}/s; ` +
      `1 MiB depth 4 ${big.toFixed(0)} MiB/s`,
  );
}
