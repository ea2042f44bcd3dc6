/**
 * The window kernel: copy, checksum and zero test over a WebAssembly memory, in WebAssembly SIMD.
 *
 * The checksum is XXH3-64 (default secret, seed 0), truncated to its low 32 bits, of inputs that are
 * a multiple of 64 bytes and at least 256 long: the store's blocks are 4096. What follows is the long
 * form of the algorithm (XXH3 specification, "Long inputs"), with 64-bit lanes as pairs in vectors:
 *
 *     input    | block of 1024: 16 stripes of 64 | … | last block: 1…16 stripes |
 *     stripe s of a block, lane i of 8:
 *                value     = input[i]
 *                key       = value ^ secret[8s + 8i …]
 *                acc[i]   += low32(key) * high32(key)
 *                acc[i^1] += value
 *     after each full block that is not the last:
 *                acc[i]    = ((acc[i] ^ acc[i] >> 47) ^ secret[128 + 8i …]) * PRIME32_1
 *     the very last stripe takes its secret from 121 instead of 8s
 *     hash     = avalanche(length * PRIME64_1 + sum of folded products of acc and secret[11 + 8i …])
 *
 * The values are summed apart from the products and swapped once a block instead of once a stripe:
 * addition commutes, and the scrambling at a block's end is the first to tell the lanes apart.
 *
 * The module is assembled and compiled once per thread and instantiated once per window; the secret
 * lies in a second, private memory of one page.
 *
 * @module
 */
import type { Kernel } from "../platform/platform.ts";
import { assembleModule, FunctionBuilder, Op, ValueType, VectorOp } from "./wasm_assembler.ts";

/** Inputs of the checksum are multiples of this many bytes: one XXH3 stripe. */
export const CHECKSUM_BYTES_MULTIPLE = 64;
/** Shortest input of the checksum: XXH3 hashes up to 240 bytes in other ways, which are not here. */
export const CHECKSUM_BYTES_MIN = 256;

const STRIPE_BYTES = 64;
const XXH_BLOCK_BYTES = 1024;
const STRIPES_PER_BLOCK = XXH_BLOCK_BYTES / STRIPE_BYTES;
/** The secret moves on by one lane per stripe. */
const SECRET_STEP_BYTES = 8;
const SECRET_SCRAMBLE = 128;
const SECRET_LAST_STRIPE = 121;
const SECRET_MERGE = 11;
const VECTORS_PER_STRIPE = 4;

const PRIME32_1 = 0x9E3779B1n;
const PRIME32_2 = 0x85EBCA77n;
const PRIME32_3 = 0xC2B2AE3Dn;
const PRIME64_1 = 0x9E3779B185EBCA87n;
const PRIME64_2 = 0xC2B2AE3D27D4EB4Fn;
const PRIME64_3 = 0x165667B19E3779F9n;
const PRIME64_4 = 0x85EBCA77C2B2AE63n;
const PRIME64_5 = 0x27D4EB2F165667C5n;
const AVALANCHE = 0x165667919E3779F9n;

/** Start values of the eight lanes. */
const ACCUMULATORS = [
  PRIME32_3,
  PRIME64_1,
  PRIME64_2,
  PRIME64_3,
  PRIME64_4,
  PRIME32_2,
  PRIME64_5,
  PRIME32_1,
];

/** XXH3's default secret: 192 bytes. */
const SECRET_HEX = "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
  "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
  "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
  "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
  "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
  "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e";

/** Memory 1 holds the secret at address 0. */
const SECRET_MEMORY = 1;

/** Emits the checksum, or the fused copy and checksum. */
function checksumFunction(field: string, copies: boolean): FunctionBuilder {
  const [I32, I64, V128] = [ValueType.I32, ValueType.I64, ValueType.V128];
  const f = new FunctionBuilder(field, copies ? [I32, I32, I32] : [I32, I32], [I32]);
  const to = 0;
  const from = copies ? 1 : 0;
  const length = copies ? 2 : 1;
  const products = f.locals(V128, VECTORS_PER_STRIPE);
  const values = f.locals(V128, VECTORS_PER_STRIPE);
  const value = f.local(V128);
  const key = f.local(V128);
  const left = f.local(I32);
  const secret = f.local(I32);
  const hash = f.local(I64);

  /** One stripe at `from + offset`, with the secret at local `secret` (if any) + `secretOffset`. */
  const stripe = (offset: number, secretOffset: number, secretBase?: number) => {
    for (let v = 0; v < VECTORS_PER_STRIPE; v++) {
      f.get(from).loadV128(offset + 16 * v).set(value);
      if (copies) f.get(to).get(value).storeV128(offset + 16 * v);
      if (secretBase === undefined) f.i32(0);
      else f.get(secretBase);
      f.loadV128(secretOffset + 16 * v, SECRET_MEMORY).get(value).vector(VectorOp.Xor).set(key);
      // [lo0 hi0 lo1 hi1] → [lo0 lo1 · ·] × [hi0 hi1 · ·]
      f.get(key).get(key).shuffle32([0, 2, 0, 2]);
      f.get(key).get(key).shuffle32([1, 3, 1, 3]);
      f.vector(VectorOp.I64x2ExtMulLowI32x4U);
      f.get(products[v]).vector(VectorOp.I64x2Add).set(products[v]);
      f.get(values[v]).get(value).vector(VectorOp.I64x2Add).set(values[v]);
    }
  };
  const advance = (bytes: number) => {
    f.get(from).i32(bytes).op(Op.I32Add).set(from);
    if (copies) f.get(to).i32(bytes).op(Op.I32Add).set(to);
    f.get(left).i32(bytes).op(Op.I32Sub).set(left);
  };
  /** products += swapped values; values = 0. */
  const join = () => {
    for (let v = 0; v < VECTORS_PER_STRIPE; v++) {
      f.get(values[v]).get(values[v]).shuffle32([2, 3, 0, 1]);
      f.get(products[v]).vector(VectorOp.I64x2Add).set(products[v]);
      f.v128(0n, 0n).set(values[v]);
    }
  };
  const scramble = () => {
    for (let v = 0; v < VECTORS_PER_STRIPE; v++) {
      f.get(products[v]);
      f.get(products[v]).i32(47).vector(VectorOp.I64x2ShrU).vector(VectorOp.Xor);
      f.i32(0).loadV128(SECRET_SCRAMBLE + 16 * v, SECRET_MEMORY).vector(VectorOp.Xor);
      f.v128(PRIME32_1, PRIME32_1).vector(VectorOp.I64x2Mul).set(products[v]);
    }
  };

  for (let v = 0; v < VECTORS_PER_STRIPE; v++) {
    f.v128(ACCUMULATORS[2 * v], ACCUMULATORS[2 * v + 1]).set(products[v]);
  }
  f.get(length).set(left);
  f.block(() => { // full blocks, all but the last one
    f.get(left).i32(XXH_BLOCK_BYTES + 1).op(Op.I32LtU).branchIf(0);
    f.loop(() => {
      for (let s = 0; s < STRIPES_PER_BLOCK; s++) stripe(STRIPE_BYTES * s, SECRET_STEP_BYTES * s);
      join();
      scramble();
      advance(XXH_BLOCK_BYTES);
      f.get(left).i32(XXH_BLOCK_BYTES).op(Op.I32GtU).branchIf(0);
    });
  });
  f.block(() => { // stripes of the last block, all but the last one
    f.get(left).i32(STRIPE_BYTES + 1).op(Op.I32LtU).branchIf(0);
    f.loop(() => {
      stripe(0, 0, secret);
      f.get(secret).i32(SECRET_STEP_BYTES).op(Op.I32Add).set(secret);
      advance(STRIPE_BYTES);
      f.get(left).i32(STRIPE_BYTES).op(Op.I32GtU).branchIf(0);
    });
  });
  stripe(0, SECRET_LAST_STRIPE);
  join();

  f.get(length).op(Op.I64ExtendI32U).i64(PRIME64_1).op(Op.I64Mul).set(hash);
  const operands = f.locals(I64, 2);
  const parts = f.locals(I64, 3);
  for (let v = 0; v < VECTORS_PER_STRIPE; v++) {
    for (let lane = 0; lane < 2; lane++) {
      f.get(products[v]).extractI64(lane);
      f.i32(0).loadI64(SECRET_MERGE + 16 * v + 8 * lane, SECRET_MEMORY).op(Op.I64Xor);
      f.set(operands[lane]);
    }
    foldedProduct(f, operands[0], operands[1], parts);
    f.get(hash).op(Op.I64Add).set(hash);
  }
  f.get(hash).get(hash).i64(37n).op(Op.I64ShrU, Op.I64Xor).i64(AVALANCHE).op(Op.I64Mul).set(hash);
  f.get(hash).get(hash).i64(32n).op(Op.I64ShrU, Op.I64Xor, Op.I32WrapI64);
  return f;
}

/**
 * Leaves low64 ^ high64 of the 128-bit product of locals `a` and `b` on the stack, by schoolbook
 * multiplication of 32-bit halves.
 */
function foldedProduct(f: FunctionBuilder, a: number, b: number, parts: readonly number[]) {
  const [lowLow, middle, carry] = parts;
  const low = (local: number) => f.get(local).i64(0xffffffffn).op(Op.I64And);
  const high = (local: number) => f.get(local).i64(32n).op(Op.I64ShrU);
  low(a), low(b), f.op(Op.I64Mul).set(lowLow);
  // middle = high(a)·low(b) + high(lowLow): cannot overflow
  high(a), low(b), f.op(Op.I64Mul), high(lowLow), f.op(Op.I64Add).set(middle);
  // carry = low(a)·high(b) + low(middle): cannot overflow
  low(a), high(b), f.op(Op.I64Mul), low(middle), f.op(Op.I64Add).set(carry);
  // high64 = high(a)·high(b) + high(middle) + high(carry)
  high(a), high(b), f.op(Op.I64Mul), high(middle), f.op(Op.I64Add), high(carry), f.op(Op.I64Add);
  f.get(a).get(b).op(Op.I64Mul, Op.I64Xor);
}

/** Emits the zero test: 64 bytes a turn, then 16. */
function isZeroFunction(): FunctionBuilder {
  const [I32, V128] = [ValueType.I32, ValueType.V128];
  const f = new FunctionBuilder("isZero", [I32, I32], [I32]);
  const [offset, left] = [0, 1];
  const sum = f.local(V128);
  for (const vectors of [4, 1]) {
    f.block(() => {
      f.get(left).i32(16 * vectors).op(Op.I32LtU).branchIf(0);
      f.loop(() => {
        f.get(offset).loadV128(0);
        for (let v = 1; v < vectors; v++) f.get(offset).loadV128(16 * v).vector(VectorOp.Or);
        f.tee(sum).vector(VectorOp.AnyTrue);
        f.ifThen(() => f.i32(0).op(Op.Return));
        f.get(offset).i32(16 * vectors).op(Op.I32Add).set(offset);
        f.get(left).i32(16 * vectors).op(Op.I32Sub).tee(left);
        f.i32(16 * vectors).op(Op.I32GeU).branchIf(0);
      });
    });
  }
  f.i32(1);
  return f;
}

/** What the module exports. Results are signed as WebAssembly hands them to JavaScript. */
interface KernelExports {
  checksum(offset: number, length: number): number;
  copyAndChecksum(to: number, from: number, length: number): number;
  isZero(offset: number, length: number): number;
}

let compiledModule: WebAssembly.Module | undefined;

/** The module, assembled and compiled on first use. */
function kernelModule(): WebAssembly.Module {
  compiledModule ??= new WebAssembly.Module(assembleModule({
    // Any 32-bit memory with a declared maximum matches.
    importedMemory: { module: "window", field: "memory", pagesMin: 1, pagesMax: 65536 },
    constants: Uint8Array.from(SECRET_HEX.match(/../g)!, (hex) => parseInt(hex, 16)),
    functions: [
      checksumFunction("checksum", false),
      checksumFunction("copyAndChecksum", true),
      isZeroFunction(),
    ],
  }));
  return compiledModule;
}

class WindowKernel implements Kernel {
  readonly #exports: KernelExports;

  constructor(exports: KernelExports) {
    this.#exports = exports;
  }

  checksum(offset: number, length: number): number {
    if (!isChecksumLength(length)) throwLength(length);
    return this.#exports.checksum(offset, length) >>> 0;
  }

  copyAndChecksum(to: number, from: number, length: number): number {
    if (!isChecksumLength(length)) throwLength(length);
    return this.#exports.copyAndChecksum(to, from, length) >>> 0;
  }

  isZero(offset: number, length: number): boolean {
    if (length % 16 !== 0 || length < 0) throwLength(length);
    return this.#exports.isZero(offset, length) !== 0;
  }
}

function isChecksumLength(length: number): boolean {
  return length % CHECKSUM_BYTES_MULTIPLE === 0 && length >= CHECKSUM_BYTES_MIN;
}

function throwLength(length: number): never {
  throw new RangeError(
    `kernel: length ${length} is not a multiple of ${CHECKSUM_BYTES_MULTIPLE} and at least ` +
      `${CHECKSUM_BYTES_MIN} (checksums), or not a multiple of 16 (isZero)`,
  );
}

/**
 * Makes the kernel of one window.
 *
 * Lengths of checksums are multiples of 64 and at least 256 bytes, those of `isZero` multiples of 16;
 * anything else is a programmer's error and throws a `RangeError`. A range that leaves the memory
 * throws a `WebAssembly.RuntimeError`. Offsets need no alignment.
 *
 * @param memory the window; must have been made with a maximum
 *
 * @example
 * ```ts
 * import { createKernel } from "./kernel.ts";
 * const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });
 * const kernel = createKernel(memory);
 * console.assert(kernel.isZero(0, 4096));
 * const checksum = kernel.copyAndChecksum(8192, 0, 4096);
 * console.assert(checksum === kernel.checksum(8192, 4096));
 * ```
 */
export function createKernel(memory: WebAssembly.Memory): Kernel {
  const instance = new WebAssembly.Instance(kernelModule(), { window: { memory } });
  return new WindowKernel(instance.exports as unknown as KernelExports);
}
