/**
 * What a node remembers of its data paths, as bytes.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { toHex } from "../../agent/base/bytes.ts";
import {
  decodeCount,
  decodeRecord,
  encodeCount,
  encodeRecord,
  type PathRecord,
} from "../../agent/paths/record.ts";
import { SLOTS } from "../../agent/paths/slots.ts";

const MIB = 1024 * 1024;
const RECORD: PathRecord = {
  paths: [
    { id: 1, storeId: "0123456789abcdef".repeat(2), location: "/disk1", capacityBytes: 10 * MIB },
    { id: 7, storeId: "f".repeat(32), location: "", capacityBytes: 0 },
    { id: 255, storeId: "0".repeat(32), location: "/dev/größe", capacityBytes: 2 ** 50 },
  ],
  table: new Uint8Array(SLOTS).map((_, slot) => [0, 1, 7, 255][slot % 4]),
};

Deno.test("a record is read back as it was, from the bytes that version 1 has always had", () => {
  const bytes = encodeRecord(RECORD);
  assertEquals(decodeRecord(bytes), RECORD);
  assertEquals(toHex(bytes.subarray(0, 12)), "01000300" + "000107ff000107ff");
  assertEquals(
    toHex(bytes.subarray(4 + SLOTS)),
    "01000600" + "0123456789abcdef".repeat(2) + "0a000000" + "2f6469736b31" +
      "07000000" + "f".repeat(32) + "00000000" +
      "ff000c00" + "0".repeat(32) + "00000040" + "2f6465762f6772c3b6c39f65",
  );
});

Deno.test("bytes that are no record, or say what cannot be, are none", () => {
  const bytes = encodeRecord(RECORD);
  const entries = 4 + SLOTS;
  const wrong: [string, (copy: Uint8Array) => Uint8Array][] = [
    ["cut", (copy) => copy.subarray(0, copy.length - 1)],
    ["too long", (copy) => new Uint8Array([...copy, 0])],
    ["empty", () => new Uint8Array(0)],
    ["a newer version", (copy) => (copy[0] = 2, copy)],
    ["a reserved byte", (copy) => (copy[1] = 1, copy)],
    ["no paths", (copy) => (copy[2] = 0, copy)],
    ["too many paths", (copy) => (copy[2] = 65, copy)],
    ["a slot of nobody's", (copy) => (copy[4] = 9, copy)],
    ["an id twice", (copy) => (copy[entries + 30] = 1, copy)],
    ["the id 0", (copy) => (copy[entries] = 0, copy)],
    ["a location past the end", (copy) => (copy[entries + 3] = 1, copy)],
  ];
  for (const [what, edit] of wrong) {
    assertEquals(decodeRecord(edit(bytes.slice())), null, what);
  }
});

Deno.test("the count of changes keeps 53 bits", () => {
  for (const count of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1]) {
    assertEquals(decodeCount(encodeCount(count)), count);
  }
  assertEquals([decodeCount(null), decodeCount(new Uint8Array(7))], [0, 0]);
});
