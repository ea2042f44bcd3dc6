import { assertEquals } from "@std/assert/mod.js";
import { getU32 } from "../../agent/base/bytes.ts";
import { Prng } from "../../agent/base/prng.ts";
import {
  ANSWER,
  getU64,
  Head,
  HEAD_BYTES,
  MESSAGE_TYPE_MAX,
  MessageType,
  setU64,
} from "../../agent/replication/messages.ts";
import { message } from "./harness.ts";

/** Every field with a value of its own. */
const FIELDS = {
  type: MessageType.Write | ANSWER,
  flags: 0x05,
  version: 1,
  id: 0x89abcdef,
  epoch: 0x1fffff_12345678,
  disk: 0xfedcba98,
  layer: 0x01020304,
  chunk: 0xf1f2f3f4,
  block: 1023,
  count: 1024,
  generation: 0xffffffff,
  pool: 5,
  sequence: 2 ** 53 - 1,
  group: 65535,
  status: -74,
  argument: 0xdeadbeef,
  incarnation: 0x80000001,
};

Deno.test("a head is these bytes, for ever", () => {
  assertEquals(
    message(FIELDS).toHex(),
    "81050100efcdab8978563412ffff1f0098badcfe04030201f4f3f2f1ff030004" +
      "ffffffff05000000ffffffffffff1f00ffff0000b6ffffffefbeadde01000080",
  );
});

Deno.test("a head comes back as it was, also from the middle of other bytes", () => {
  const bytes = new Uint8Array(200).fill(0xaa);
  bytes.set(message(FIELDS), 37);
  const head = new Head();
  assertEquals(head.decode(bytes.subarray(37)), true);
  assertEquals({ ...head }, FIELDS);
  const copy = new Head();
  copy.set(head);
  assertEquals({ ...copy }, FIELDS);
  head.clear(MessageType.Sync);
  assertEquals({ ...head }, { ...new Head(), type: MessageType.Sync });
});

Deno.test("other types, versions and numbers of 2^53 and above are refused", () => {
  const head = new Head();
  const isGood = (change: (bytes: Uint8Array) => void) => {
    const bytes = message({ type: MessageType.Read });
    change(bytes);
    return head.decode(bytes);
  };
  assertEquals(isGood(() => {}), true);
  for (let type = 1; type <= MESSAGE_TYPE_MAX; type++) {
    assertEquals(isGood((bytes) => bytes[0] = type), true, `type ${type}`);
    assertEquals(isGood((bytes) => bytes[0] = type | ANSWER), true, `answer ${type}`);
  }
  for (const type of [0, MESSAGE_TYPE_MAX + 1, 127, ANSWER, ANSWER | (MESSAGE_TYPE_MAX + 1), 255]) {
    assertEquals(isGood((bytes) => bytes[0] = type), false, `type ${type}`);
  }
  assertEquals(isGood((bytes) => bytes[2] = 2), false, "version 2");
  assertEquals(isGood((bytes) => bytes[3] = 1), false, "version 257");
  assertEquals(isGood((bytes) => bytes[14] = 0x20), false, "epoch 2^53");
  assertEquals(isGood((bytes) => bytes[46] = 0x20), false, "sequence 2^53");
  assertEquals(isGood((bytes) => bytes[15] = 1), false, "epoch 2^56");
});

Deno.test("any 64 bytes are read without harm, and what is accepted is in range", () => {
  const random = new Prng(20260101);
  const bytes = new Uint8Array(HEAD_BYTES);
  const head = new Head();
  let accepted = 0;
  for (let i = 0; i < 20_000; i++) {
    random.fill(bytes);
    if (i % 2 === 0) {
      bytes[0] = 1 + (bytes[0] % MESSAGE_TYPE_MAX);
      bytes[2] = 1;
      bytes[3] = 0;
      for (const at of [14, 46]) bytes[at] &= 0x1f;
      for (const at of [15, 47]) bytes[at] = 0;
    }
    if (!head.decode(bytes)) continue;
    accepted++;
    for (const [name, value] of Object.entries({ ...head })) {
      assertEquals(Number.isSafeInteger(value), true, `seed ${random.seed}: ${name} ${value}`);
    }
    assertEquals(message({ ...head }).toHex(), bytes.toHex(), `seed ${random.seed}`);
  }
  assertEquals(accepted > 0, true);
});

Deno.test("numbers of 32 and 64 bits are little-endian, and 2^53 is the limit", () => {
  const view = new DataView(new ArrayBuffer(24));
  for (const value of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1]) {
    setU64(view, 3, value);
    assertEquals(getU64(view, 3), value);
    assertEquals(view.getBigUint64(3, true), BigInt(value));
    assertEquals(getU32(new Uint8Array(view.buffer), 3), value % 2 ** 32);
  }
  view.setBigUint64(3, 2n ** 53n, true);
  assertEquals(getU64(view, 3), -1);
});
