/**
 * Sealed records: what may not happen to them, with every implementation of the cipher that is here.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { opensslCipherSuite } from "../../agent/platform/linux/openssl.ts";
import { type CipherSuite, nodeCipherSuite } from "../../agent/wire/cipher.ts";
import {
  RECORD_OVERHEAD_BYTES,
  RecordOpener,
  RecordSealer,
  type StreamOptions,
} from "../../agent/wire/sealed_stream.ts";

const BOUNDS = { headBytesMax: 65536, dataBytesMax: 1 << 20, dataBytesMultiple: 4096 };
const suites: CipherSuite[] = [nodeCipherSuite];
const openssl = opensslCipherSuite();
if (openssl !== null) suites.push(openssl);

interface Pair {
  sealer: RecordSealer;
  opener: RecordOpener;
}

function pair(
  suite: CipherSuite,
  { sealsData = true, openWith = suite, ...options }:
    & { sealsData?: boolean; openWith?: CipherSuite }
    & StreamOptions = {},
): Pair {
  const key = new Uint8Array(32).fill(3);
  return {
    sealer: new RecordSealer(suite, key, sealsData, options),
    opener: new RecordOpener(openWith, key, sealsData, BOUNDS, options),
  };
}

function seal(sealer: RecordSealer, heads: Uint8Array, data: Uint8Array | null): Uint8Array {
  const to = new Uint8Array(RECORD_OVERHEAD_BYTES + heads.length + (data?.length ?? 0));
  assertEquals(sealer.seal(heads, data, to), to.length);
  return to;
}

function open(
  opener: RecordOpener,
  record: Uint8Array,
): { heads: Uint8Array; data: Uint8Array | null } | null {
  const bytes = opener.recordBytes(record, 0, record.length);
  if (bytes !== record.length) return null;
  const heads = new Uint8Array(opener.headBytes(record, 0));
  const dataBytes = opener.dataBytes(record, 0);
  const data = dataBytes > 0 ? new Uint8Array(dataBytes) : null;
  return opener.open(record, 0, heads, data) ? { heads, data } : null;
}

function random(bytes: number, seed: number): Uint8Array {
  const filled = new Uint8Array(bytes);
  new Prng(seed).fill(filled);
  return filled;
}

for (const suite of suites) {
  for (const sealsData of [true, false]) {
    const mode = `${suite.name}, data ${sealsData ? "sealed" : "in clear"}`;

    Deno.test(`records come back as they were: ${mode}`, () => {
      const { sealer, opener } = pair(suite, { sealsData });
      for (const [headBytes, dataBytes] of [[1, 0], [64, 4096], [777, 0], [65536, 1 << 20]]) {
        const heads = random(headBytes, headBytes);
        const data = dataBytes > 0 ? random(dataBytes, dataBytes) : null;
        assertEquals(open(opener, seal(sealer, heads, data)), { heads, data });
      }
    });

    Deno.test(`a change of any authenticated byte is noticed: ${mode}`, () => {
      const heads = random(64, 1), data = random(4096, 2);
      const sample = seal(pair(suite, { sealsData }).sealer, heads, data);
      const end = sealsData ? sample.length : 8 + 64 + 16;
      for (let at = 0; at < end; at = at < 120 ? at + 1 : at + 97) {
        const { opener } = pair(suite, { sealsData });
        const record = sample.slice();
        record[at] ^= 1 << (at % 8);
        assertEquals(open(opener, record), null, `byte ${at}`);
      }
      if (!sealsData) {
        const isPlain = sample.subarray(end).every((byte, i) => byte === data[i]);
        assert(isPlain, "trusted data is in clear");
      } else {
        assert(!sample.subarray(72).join().includes(data.subarray(0, 64).join()));
      }
    });
  }

  Deno.test(`repeated, missing, swapped and other streams' records fail: ${suite.name}`, () => {
    const { sealer } = pair(suite);
    const records = [0, 1, 2].map((i) => seal(sealer, random(64, i), null));
    const fails = (order: number[]) => {
      const { opener } = pair(suite);
      const results = order.map((i) => open(opener, records[i]) !== null);
      assertEquals(results.at(-1), false, `${order}`);
    };
    fails([0, 0]);
    fails([1]);
    fails([0, 2]);
    fails([0, 1, 1]);
    const other = new RecordOpener(suite, new Uint8Array(32).fill(4), true, BOUNDS);
    assertEquals(open(other, records[0]), null, "the other direction has another key");
  });

  Deno.test(`both ends change keys together, by records and by bytes: ${suite.name}`, () => {
    for (const options of [{ recordsPerKey: 3 }, { bytesPerKey: 8000 }]) {
      const { sealer, opener } = pair(suite, options);
      const never = pair(suite);
      const seen = new Set<string>();
      for (let i = 0; i < 20; i++) {
        const heads = new Uint8Array(64), data = i % 3 === 0 ? new Uint8Array(4096) : null;
        const record = seal(sealer, heads, data);
        assertEquals(open(opener, record), { heads, data });
        // The same plaintext under a repeated pair of key and nonce would look the same.
        seen.add(record.subarray(8, 72).join());
        const same = seal(never.sealer, heads, data);
        assertEquals(
          same.join() === record.join(),
          i < 3,
          `record ${i} is ${i < 3 ? "not " : ""}under the first key`,
        );
      }
      assertEquals(seen.size, 20);
    }
  });
}

Deno.test("what one implementation seals the other one opens", () => {
  if (openssl === null) return;
  for (const [from, to] of [[openssl, nodeCipherSuite], [nodeCipherSuite, openssl]]) {
    const { sealer, opener } = pair(from, { openWith: to });
    for (let i = 1; i < 40; i++) {
      const heads = random(i * 37, i), data = i % 2 === 0 ? random(4096 * i, i) : null;
      assertEquals(open(opener, seal(sealer, heads, data)), { heads, data });
    }
  }
});

Deno.test("lengths are bounded before anything else looks at a record", () => {
  const { opener } = pair(nodeCipherSuite);
  const prefix = (heads: number, data: number) => {
    const bytes = new Uint8Array(new Uint32Array([heads, data]).buffer);
    return opener.recordBytes(bytes, 0, 8);
  };
  assertEquals(prefix(1, 0), 25);
  assertEquals(prefix(65536, 1 << 20), 24 + 65536 + (1 << 20));
  for (
    const [heads, data] of [[0, 0], [65537, 0], [64, 1], [64, (1 << 20) + 4096], [0xffffffff, 0], [
      64,
      0xfffff000,
    ]]
  ) assertEquals(prefix(heads, data), -1, `${heads}, ${data}`);
  assertEquals(opener.recordBytes(new Uint8Array(8), 0, 7), 0);
});

Deno.test("a closed key is not used again", () => {
  for (const suite of suites) {
    const { sealer } = pair(suite);
    sealer.close();
    if (suite !== openssl) continue;
    let thrown = false;
    try {
      seal(sealer, new Uint8Array(64), null);
    } catch {
      thrown = true;
    }
    assert(thrown);
  }
});
