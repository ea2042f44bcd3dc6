/**
 * Measures sealing and opening of records, per record: the best of many rounds (other work on the machine only adds), and how much memory
 * each allocates.
 *
 *     deno run -A tests/bench/seal.ts
 *
 * @module
 */
import { opensslCipherSuite } from "../../agent/platform/linux/openssl.ts";
import { type CipherSuite, nodeCipherSuite } from "../../agent/wire/cipher.ts";
import {
  RECORD_OVERHEAD_BYTES,
  RecordOpener,
  RecordSealer,
} from "../../agent/wire/sealed_stream.ts";

const BOUNDS = { headBytesMax: 65536, dataBytesMax: 1 << 20, dataBytesMultiple: 4096 };
const HEAD_BYTES = 136;
const ROUNDS = 40;

function measure(name: string, suite: CipherSuite, sealsData: boolean, dataBytes: number): void {
  const key = new Uint8Array(32).fill(1);
  const sealer = new RecordSealer(suite, key, sealsData);
  const opener = new RecordOpener(suite, key, sealsData, BOUNDS);
  const heads = new Uint8Array(HEAD_BYTES);
  const data = dataBytes > 0 ? new Uint8Array(dataBytes).fill(7) : null;
  const bytes = RECORD_OVERHEAD_BYTES + HEAD_BYTES + dataBytes;
  const each = Math.max(2, Math.min(50, Math.floor((4 << 20) / bytes)));
  const records = new Uint8Array(bytes * each);
  const outHeads = new Uint8Array(HEAD_BYTES);
  const outData = data === null ? null : new Uint8Array(dataBytes);
  const best = [Infinity, Infinity], allocated = [Infinity, Infinity];
  const round = (which: number, run: () => void) => {
    const before = Deno.memoryUsage();
    const startMs = performance.now();
    run();
    best[which] = Math.min(best[which], (performance.now() - startMs) / each * 1000);
    const after = Deno.memoryUsage();
    const grown = after.heapUsed + after.external - before.heapUsed - before.external;
    if (grown >= 0) allocated[which] = Math.min(allocated[which], grown / each);
  };
  for (let i = 0; i < ROUNDS; i++) {
    round(0, () => {
      for (let at = 0; at < records.length; at += bytes) {
        sealer.seal(heads, data, records.subarray(at, at + bytes));
      }
    });
    round(1, () => {
      for (let at = 0; at < records.length; at += bytes) {
        if (!opener.open(records, at, outHeads, outData)) throw new Error("does not open");
      }
    });
  }
  const rate = (us: number) => `${us.toFixed(1)} µs (${(bytes / us / 1000).toFixed(2)} GB/s)`;
  console.log(
    `${name.padEnd(22)} ${String(dataBytes).padStart(8)}: seal ${rate(best[0])}, open ${
      rate(best[1])
    }; allocates ${allocated.map((value) => value.toFixed(0)).join(" and ")} bytes`,
  );
}

const openssl = opensslCipherSuite();
for (const dataBytes of [0, 4096, 65536, 1 << 20]) {
  measure("sealed, node:crypto", nodeCipherSuite, true, dataBytes);
  if (openssl === null) continue;
  measure("sealed, openssl", openssl, true, dataBytes);
  measure("trusted, openssl", openssl, false, dataBytes);
}
