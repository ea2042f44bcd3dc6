import { assertEquals } from "@std/assert/mod.js";
import {
  decodeBits,
  decodeConfig,
  decodeInflight,
  decodeLog,
  decodeMemoryRegion,
  decodeMemoryTable,
  decodeVringAddress,
  decodeVringState,
  encodeBackendRequest,
  encodeInflightReply,
  encodeReply,
  encodeU64Reply,
  encodeVringStateReply,
  Request,
  requestName,
} from "../../agent/vhost/message.ts";

function bytes(hex: string): Uint8Array<ArrayBuffer> {
  const digits = hex.replaceAll(/\s/g, "");
  return Uint8Array.from(
    { length: digits.length / 2 },
    (_, i) => parseInt(digits.slice(i * 2, i * 2 + 2), 16),
  );
}

function hex(data: Uint8Array): string {
  return [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Golden payloads: what the bytes of the protocol mean. */
const GOLDEN: {
  name: string;
  payload: string;
  decode: (p: Uint8Array<ArrayBuffer>) => unknown;
  value: unknown;
}[] = [
  {
    name: "u64 (SET_FEATURES)",
    payload: "0070003001000000",
    decode: decodeBits,
    value: { low: 0x30007000, high: 1 },
  },
  {
    name: "vring state (SET_VRING_NUM)",
    payload: "0300000080000000",
    decode: decodeVringState,
    value: { index: 3, num: 128 },
  },
  {
    name: "vring address (SET_VRING_ADDR)",
    payload:
      "02000000 01000000 0010000000 7f0000 0020000000 7f0000 0018000000 7f0000 0040000001 000000",
    decode: decodeVringAddress,
    value: {
      index: 2,
      flags: 1,
      descriptors: 0x7f00_0000_1000,
      used: 0x7f00_0000_2000,
      available: 0x7f00_0000_1800,
      log: 0x1_0000_4000,
    },
  },
  {
    name: "memory table (SET_MEM_TABLE)",
    payload: "02000000 00000000" +
      "0000000000000000 0000100000000000 0000000000 7f0000 0000000000000000" +
      "0000000001000000 0000200000000000 0000100000 7f0000 0000100000000000",
    decode: decodeMemoryTable,
    value: [
      { guestAddress: 0, sizeBytes: 0x100000, userAddress: 0x7f00_0000_0000, fileOffset: 0 },
      {
        guestAddress: 0x1_0000_0000,
        sizeBytes: 0x200000,
        userAddress: 0x7f00_0010_0000,
        fileOffset: 0x100000,
      },
    ],
  },
  {
    name: "one region (ADD_MEM_REG)",
    payload:
      "ffffffffffffffff 0000000001000000 0000200000000000 0000100000 7f0000 0000100000000000",
    decode: decodeMemoryRegion,
    value: {
      guestAddress: 0x1_0000_0000,
      sizeBytes: 0x200000,
      userAddress: 0x7f00_0010_0000,
      fileOffset: 0x100000,
    },
  },
  {
    name: "log (SET_LOG_BASE)",
    payload: "0080000000000000 0010000000000000",
    decode: decodeLog,
    value: { sizeBytes: 0x8000, fileOffset: 0x1000 },
  },
  {
    name: "config (SET_CONFIG of writeback)",
    payload: "20000000 01000000 00000000 01",
    decode: decodeConfig,
    value: { offset: 32, sizeBytes: 1, flags: 0, data: Uint8Array.of(1) },
  },
  {
    name: "inflight, packed to 20 bytes",
    payload: "8008000000000000 0000000000000000 0400 8000",
    decode: decodeInflight,
    value: { sizeBytes: 0x880, fileOffset: 0, queueCount: 4, queueSize: 128 },
  },
  {
    name: "inflight, padded to 24 bytes",
    payload: "8008000000000000 0010000000000000 0400 8000 00000000",
    decode: decodeInflight,
    value: { sizeBytes: 0x880, fileOffset: 0x1000, queueCount: 4, queueSize: 128 },
  },
];

for (const { name, payload, decode, value } of GOLDEN) {
  Deno.test(`decoding ${name} follows the layout byte for byte`, () => {
    assertEquals(decode(bytes(payload)), value);
  });

  Deno.test(`decoding ${name} refuses every shorter payload, and a longer one`, () => {
    const whole = bytes(payload);
    for (let length = 0; length < whole.length; length++) {
      // 20 of 24 bytes of an inflight description are one too.
      if (decode === decodeInflight && length === 20) continue;
      assertEquals(decode(whole.slice(0, length)), null, `${length} bytes`);
    }
    // A table may be followed by its unused entries.
    if (decode === decodeMemoryTable) return;
    const longer = new Uint8Array(whole.length + (decode === decodeInflight ? 8 : 1));
    longer.set(whole);
    assertEquals(decode(longer), null);
  });
}

Deno.test("a memory table may carry its unused entries, but no more than eight", () => {
  const one = new Uint8Array(8 + 8 * 32);
  one[0] = 1;
  assertEquals(decodeMemoryTable(one)?.length, 1);
  const nine = new Uint8Array(8 + 9 * 32);
  nine[0] = 9;
  assertEquals(decodeMemoryTable(nine), null);
  assertEquals(decodeMemoryTable(nine.slice(0, 8 + 8 * 32)), null);
});

Deno.test("addresses above 2^53 are refused, 2^53 − 1 is taken", () => {
  const region = new Uint8Array(40);
  region.fill(0xff, 8, 14);
  region[14] = 0x1f;
  assertEquals(decodeMemoryRegion(region)?.guestAddress, 2 ** 53 - 1);
  region[14] = 0x20;
  assertEquals(decodeMemoryRegion(region), null);
});

Deno.test("a log address of rubbish does no harm while logging is off", () => {
  const payload = new Uint8Array(40);
  payload.fill(0xff, 32);
  assertEquals(decodeVringAddress(payload)?.flags, 0);
  payload[4] = 1;
  assertEquals(decodeVringAddress(payload), null);
});

Deno.test("a config access must stay within 256 bytes", () => {
  const access = (offset: number, size: number) => {
    const payload = new Uint8Array(12 + size);
    new Uint32Array(payload.buffer, 0, 2).set([offset, size]);
    return decodeConfig(payload);
  };
  assertEquals(access(0, 256)?.sizeBytes, 256);
  assertEquals(access(196, 60)?.offset, 196);
  assertEquals(access(197, 60), null);
  assertEquals(access(0xffff_fff0, 60), null);
});

Deno.test("replies have the reply flag, version 1 and the size of their payload", () => {
  assertEquals(
    hex(encodeU64Reply(Request.GetFeatures, 0x70000000 | 0x80000000, 1)),
    "010000000500000008000000000000f001000000",
  );
  assertEquals(
    hex(encodeVringStateReply(Request.GetVringBase, { index: 2, num: 0xabcd })),
    "0b000000050000000800000002000000cdab0000",
  );
  assertEquals(hex(encodeReply(Request.GetConfig, new Uint8Array(0))), "180000000500000000000000");
  assertEquals(
    hex(
      encodeInflightReply({ sizeBytes: 0x1234, fileOffset: 0, queueCount: 2, queueSize: 64 }, 24),
    ),
    "1f0000000500000018000000" + "3412000000000000" + "0000000000000000" + "0200" + "4000" +
      "00000000",
  );
  assertEquals(hex(encodeBackendRequest(2)), "020000000100000000000000");
});

Deno.test("requests have their names, unknown ones their numbers", () => {
  assertEquals(requestName(Request.GetFeatures), "GET_FEATURES");
  assertEquals(requestName(Request.SetVringEnable), "SET_VRING_ENABLE");
  assertEquals(requestName(Request.SetInflightFd), "SET_INFLIGHT_FD");
  assertEquals(requestName(Request.GetStatus), "GET_STATUS");
  assertEquals(requestName(4711), "request 4711");
});
