/**
 * The window kernel against golden values of the reference implementation and against a slow XXH3
 * written from its specification.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { CHECKSUM_BYTES_MIN, createKernel } from "../../agent/base/kernel.ts";
import { Prng } from "../../agent/base/prng.ts";

const MIB = 1024 * 1024;
const memory = new WebAssembly.Memory({ initial: 64, maximum: 64 });
const bytes = new Uint8Array(memory.buffer);
const kernel = createKernel(memory);

/** Length, content, XXH3-64 as `xxhsum -H3` prints it. */
const GOLDEN: [number, "zeros" | "pattern", string][] = [
  [256, "zeros", "a68dfbb1d75c6e8d"],
  [256, "pattern", "21510a7d3542bfa9"],
  [320, "zeros", "5db942e18c2a13f6"],
  [320, "pattern", "f758846918687b38"],
  [960, "zeros", "45795bea4e6fad48"],
  [960, "pattern", "09f26551f46c14bc"],
  [1024, "zeros", "de5f15ab6daf7941"],
  [1024, "pattern", "5e3689bc8c842770"],
  [1088, "zeros", "59fbf83d27c42b10"],
  [1088, "pattern", "f78fa33231c928ea"],
  [1984, "zeros", "19923c3d7e763004"],
  [1984, "pattern", "77913f86e285a431"],
  [2048, "zeros", "211d551610b7f84a"],
  [2048, "pattern", "13f3e0e9838ed1fe"],
  [2112, "zeros", "d48438fe8b254394"],
  [2112, "pattern", "d6078138c101fc78"],
  [4032, "zeros", "e84623d849a981f1"],
  [4032, "pattern", "002c309026389f67"],
  [4096, "zeros", "93d76fe148c689ba"],
  [4096, "pattern", "a0ed3bdaa0d77e01"],
  [4160, "zeros", "7b84a6d3e077a3a3"],
  [4160, "pattern", "98a74eea65a621af"],
  [65536, "zeros", "33b202d302b65caa"],
  [65536, "pattern", "091b08ce7e2f3977"],
  [1048576, "zeros", "918780b90550bf34"],
  [1048576, "pattern", "2de1b21f2b0f198d"],
];

/** The content that the golden values were made of. */
function patternByte(index: number): number {
  return (Math.imul(index, index) * 7 + index * 131 + (index >> 8) * 29 + 17) & 255;
}

const MASK = (1n << 64n) - 1n;
const PRIME32_1 = 0x9E3779B1n;
const PRIME64_1 = 0x9E3779B185EBCA87n;
const SECRET = Uint8Array.from(
  ("b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e").match(/../g)!,
  (hex) => parseInt(hex, 16),
);

/** XXH3-64 of more than 240 bytes, one lane at a time. */
function slowXxh3(input: Uint8Array): bigint {
  const word = (from: Uint8Array, offset: number) =>
    new DataView(from.buffer, from.byteOffset + offset).getBigUint64(0, true);
  const lanes = [0xC2B2AE3Dn, PRIME64_1, 0xC2B2AE3D27D4EB4Fn, 0x165667B19E3779F9n];
  lanes.push(0x85EBCA77C2B2AE63n, 0x85EBCA77n, 0x27D4EB2F165667C5n, PRIME32_1);
  const accumulate = (offset: number, secret: number) => {
    for (let lane = 0; lane < 8; lane++) {
      const value = word(input, offset + 8 * lane);
      const key = value ^ word(SECRET, secret + 8 * lane);
      lanes[lane ^ 1] = (lanes[lane ^ 1] + value) & MASK;
      lanes[lane] = (lanes[lane] + (key & 0xffffffffn) * (key >> 32n)) & MASK;
    }
  };
  const stripes = Math.floor((input.length - 1) / 64);
  for (let stripe = 0; stripe < stripes; stripe++) {
    accumulate(64 * stripe, 8 * (stripe % 16));
    if (stripe % 16 === 15) {
      for (let lane = 0; lane < 8; lane++) {
        const mixed = lanes[lane] ^ (lanes[lane] >> 47n) ^ word(SECRET, 128 + 8 * lane);
        lanes[lane] = (mixed * PRIME32_1) & MASK;
      }
    }
  }
  accumulate(input.length - 64, 121);
  let hash = BigInt(input.length) * PRIME64_1;
  for (let lane = 0; lane < 8; lane += 2) {
    const product = (lanes[lane] ^ word(SECRET, 11 + 8 * lane)) *
      (lanes[lane + 1] ^ word(SECRET, 19 + 8 * lane));
    hash += (product & MASK) ^ (product >> 64n);
  }
  hash &= MASK;
  hash = ((hash ^ (hash >> 37n)) * 0x165667919E3779F9n) & MASK;
  return hash ^ (hash >> 32n);
}

const low32 = (hash: bigint) => Number(hash & 0xffffffffn);

Deno.test("checksum() gives the low half of the reference implementation's XXH3-64", () => {
  for (const [length, content, hex] of GOLDEN) {
    for (let index = 0; index < length; index++) {
      bytes[64 + index] = content === "zeros" ? 0 : patternByte(index);
    }
    const golden = BigInt("0x" + hex);
    assertEquals(kernel.checksum(64, length), low32(golden), `${length} ${content}`);
    if (length <= 65536) assertEquals(slowXxh3(bytes.subarray(64, 64 + length)), golden);
  }
});

Deno.test("checksum() and copyAndChecksum() agree with a slow XXH3 for every length to 5 KiB", () => {
  const random = new Prng(1);
  random.fill(bytes.subarray(0, MIB));
  for (let length = CHECKSUM_BYTES_MIN; length <= 5120; length += 64) {
    const from = random.below(MIB - length); // no alignment needed
    const to = MIB + random.below(MIB);
    const expected = low32(slowXxh3(bytes.subarray(from, from + length)));
    bytes.fill(0xee, to - 16, to + length + 16);
    assertEquals(kernel.checksum(from, length), expected, `length ${length} at ${from}`);
    assertEquals(kernel.copyAndChecksum(to, from, length), expected, `copy of ${length}`);
    assertEquals(bytes.subarray(to, to + length), bytes.subarray(from, from + length));
    assertEquals(bytes.subarray(to - 16, to), new Uint8Array(16).fill(0xee));
    assertEquals(bytes.subarray(to + length, to + length + 16), new Uint8Array(16).fill(0xee));
  }
});

Deno.test("checksum() changes with every single bit of a block", () => {
  const random = new Prng(2);
  random.fill(bytes.subarray(0, 4096));
  const before = kernel.checksum(0, 4096);
  for (let bit = 0; bit < 4096 * 8; bit++) {
    bytes[bit >> 3] ^= 1 << (bit & 7);
    assertEquals(kernel.checksum(0, 4096) !== before, true, `bit ${bit}`);
    bytes[bit >> 3] ^= 1 << (bit & 7);
  }
  assertEquals(kernel.checksum(0, 4096), before);
});

Deno.test("checksums are unsigned", () => {
  const random = new Prng(3);
  let highBits = 0;
  for (let round = 0; round < 64; round++) {
    random.fill(bytes.subarray(0, 256));
    const checksum = kernel.checksum(0, 256);
    assertEquals(checksum >= 0 && checksum < 2 ** 32 && Number.isInteger(checksum), true);
    if (checksum >= 2 ** 31) highBits++;
  }
  assertEquals(highBits > 0, true);
});

Deno.test("isZero() sees any byte that is set, and none outside its range", () => {
  for (const length of [0, 16, 48, 64, 80, 512, 4096]) {
    bytes.fill(0xff, 0, 8192);
    bytes.fill(0, 1000, 1000 + length);
    assertEquals(kernel.isZero(1000, length), true, `length ${length}`);
    for (let index = 0; index < length; index++) {
      bytes[1000 + index] = 0x80;
      assertEquals(kernel.isZero(1000, length), false, `byte ${index} of ${length}`);
      bytes[1000 + index] = 0;
    }
  }
});

Deno.test("lengths that the kernel does not do are refused", () => {
  for (const length of [0, 64, 192, 255, 257, 288, 4095, 4097, -4096, NaN, 4096.5]) {
    assertThrows(() => kernel.checksum(0, length), RangeError, `length ${length}`);
    assertThrows(() => kernel.copyAndChecksum(MIB, 0, length), RangeError, `length ${length}`);
  }
  for (const length of [1, 8, 4095, -16, NaN, 16.5]) {
    assertThrows(() => kernel.isZero(0, length), RangeError, `length ${length}`);
  }
});

Deno.test("ranges that leave the memory throw and change nothing outside", () => {
  const size = bytes.length;
  assertThrows(() => kernel.checksum(size - 4032, 4096), WebAssembly.RuntimeError);
  assertThrows(() => kernel.copyAndChecksum(size - 4032, 0, 4096), WebAssembly.RuntimeError);
  assertThrows(() => kernel.copyAndChecksum(0, size, 4096), WebAssembly.RuntimeError);
  bytes.fill(0, size - 4096);
  assertThrows(() => kernel.isZero(size - 4096, 8192), WebAssembly.RuntimeError);
});

Deno.test("kernels of two windows see their own memory only", () => {
  const other = new WebAssembly.Memory({ initial: 32768, maximum: 32768 });
  const otherKernel = createKernel(other);
  new Uint8Array(other.buffer)[2 ** 31 - 1] = 1;
  bytes.fill(0, 0, 4096);
  assertEquals(kernel.isZero(0, 4096), true);
  assertEquals(otherKernel.isZero(2 ** 31 - 4096, 4080), true);
  assertEquals(otherKernel.isZero(2 ** 31 - 4096, 4096), false);
  assertEquals(otherKernel.checksum(0, 4096), kernel.checksum(0, 4096));
  assertEquals(
    otherKernel.copyAndChecksum(2 ** 31 - 8192, 2 ** 31 - 4096, 4096),
    otherKernel.checksum(2 ** 31 - 8192, 4096),
  );
});
