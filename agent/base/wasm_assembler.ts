/**
 * A small assembler for WebAssembly modules: named opcodes, a builder for function bodies, and the
 * sections that `kernel.ts` needs. It knows no more of the format than that.
 *
 *     module   := 00 61 73 6d  01 00 00 00  section*
 *     section  := id:u8  length:leb  content
 *       1 type      count  { 60  params:valtype*  results:valtype* }*
 *       2 import    count  { module:name  field:name  02  01  min:leb  max:leb }*     (memories only)
 *       3 function  count  type-index*
 *       5 memory    count  { 01  min:leb  max:leb }*
 *       7 export    count  { field:name  00  function-index }*
 *      10 code      count  { length:leb  locals  instruction*  0b }*
 *      11 data      count  { 02  memory:leb  41 offset:sleb 0b  length:leb  byte* }*
 *
 * Specification: WebAssembly Core 3.0, chapter 5 (binary format), with multiple memories.
 *
 * @module
 */

/** Value types of locals, parameters and results. */
export const enum ValueType {
  I32 = 0x7f,
  I64 = 0x7e,
  V128 = 0x7b,
}

/** Instructions without immediate operands. */
export const enum Op {
  Else = 0x05,
  End = 0x0b,
  Return = 0x0f,
  Drop = 0x1a,
  I32Eqz = 0x45,
  I32LtU = 0x49,
  I32GtU = 0x4b,
  I32GeU = 0x4f,
  I32Add = 0x6a,
  I32Sub = 0x6b,
  I32ShrU = 0x76,
  I64Add = 0x7c,
  I64Mul = 0x7e,
  I64And = 0x83,
  I64Xor = 0x85,
  I64ShrU = 0x88,
  I32WrapI64 = 0xa7,
  I64ExtendI32U = 0xad,
}

/** Vector instructions (prefix FD) without immediate operands. */
export const enum VectorOp {
  I64x2Splat = 0x12,
  Or = 0x50,
  Xor = 0x51,
  AnyTrue = 0x53,
  I64x2ShrU = 0xcd,
  I64x2Add = 0xce,
  I64x2Mul = 0xd5,
  I64x2ExtMulLowI32x4U = 0xde,
}

/** Block type of blocks and loops that leave nothing on the stack. */
const EMPTY_BLOCK = 0x40;

/** Unsigned LEB128 of an integer 0…2^32 − 1. */
function unsignedLeb(value: number): number[] {
  const bytes: number[] = [];
  do {
    const rest = Math.floor(value / 128);
    bytes.push((value % 128) + (rest > 0 ? 128 : 0));
    value = rest;
  } while (value > 0);
  return bytes;
}

/** Signed LEB128. */
function signedLeb(value: bigint): number[] {
  const bytes: number[] = [];
  for (;;) {
    const low = Number(value & 127n);
    value >>= 7n;
    const done = value === 0n && low < 64 || value === -1n && low >= 64;
    bytes.push(done ? low : low | 128);
    if (done) return bytes;
  }
}

/** A count and the encoded items. */
function vector(items: readonly (readonly number[])[]): number[] {
  return [...unsignedLeb(items.length), ...items.flat()];
}

function name(text: string): number[] {
  const bytes = [...new TextEncoder().encode(text)];
  return [...unsignedLeb(bytes.length), ...bytes];
}

/** One function: its signature, its locals and the instructions emitted so far. */
export class FunctionBuilder {
  #locals: ValueType[] = [];
  #code: number[] = [];

  /**
   * @param field name under which the function is exported
   * @param params types of the parameters, which are locals 0…
   * @param results types of the results
   */
  constructor(
    readonly field: string,
    readonly params: readonly ValueType[],
    readonly results: readonly ValueType[],
  ) {}

  /** Declares a local and returns its index. */
  local(type: ValueType): number {
    this.#locals.push(type);
    return this.params.length + this.#locals.length - 1;
  }

  /** Declares `count` locals of one type and returns their indices. */
  locals(type: ValueType, count: number): number[] {
    return Array.from({ length: count }, () => this.local(type));
  }

  op(...ops: Op[]): this {
    this.#code.push(...ops);
    return this;
  }

  vector(op: VectorOp): this {
    this.#code.push(0xfd, ...unsignedLeb(op));
    return this;
  }

  get(local: number): this {
    this.#code.push(0x20, ...unsignedLeb(local));
    return this;
  }

  set(local: number): this {
    this.#code.push(0x21, ...unsignedLeb(local));
    return this;
  }

  tee(local: number): this {
    this.#code.push(0x22, ...unsignedLeb(local));
    return this;
  }

  i32(value: number): this {
    this.#code.push(0x41, ...signedLeb(BigInt(value | 0)));
    return this;
  }

  i64(value: bigint): this {
    this.#code.push(0x42, ...signedLeb(BigInt.asIntN(64, value)));
    return this;
  }

  /** v128.const of two 64-bit lanes. */
  v128(lane0: bigint, lane1: bigint): this {
    this.#code.push(0xfd, 0x0c);
    for (const lane of [lane0, lane1]) {
      for (let byte = 0n; byte < 8n; byte++) this.#code.push(Number(lane >> (8n * byte) & 255n));
    }
    return this;
  }

  /** i64x2.extract_lane. */
  extractI64(lane: number): this {
    this.#code.push(0xfd, 0x1d, lane);
    return this;
  }

  /** i8x16.shuffle; `lanes32` names four 32-bit lanes, 0…3 of the first and 4…7 of the second. */
  shuffle32(lanes32: readonly [number, number, number, number]): this {
    this.#code.push(0xfd, 0x0d);
    for (const lane of lanes32) {
      for (let byte = 0; byte < 4; byte++) this.#code.push(4 * lane + byte);
    }
    return this;
  }

  /** v128.load of 16 bytes at the address on the stack plus `offset`, from memory `memory`. */
  loadV128(offset: number, memory = 0): this {
    return this.#access([0xfd, 0x00], offset, memory);
  }

  /** v128.store to memory 0. */
  storeV128(offset: number): this {
    return this.#access([0xfd, 0x0b], offset, 0);
  }

  /** i64.load. */
  loadI64(offset: number, memory = 0): this {
    return this.#access([0x29], offset, memory);
  }

  /** Alignment is always announced as one byte: buffers and the XXH3 secret are read unaligned. */
  #access(opcode: readonly number[], offset: number, memory: number): this {
    const withMemory = 0x40;
    this.#code.push(...opcode);
    this.#code.push(...(memory === 0 ? [0] : [withMemory, memory]), ...unsignedLeb(offset));
    return this;
  }

  /** A block that branches to its end: depth 0 inside `body` leaves it. */
  block(body: () => void): this {
    return this.#nested(0x02, body);
  }

  /** A loop that branches to its start: depth 0 inside `body` goes round again. */
  loop(body: () => void): this {
    return this.#nested(0x03, body);
  }

  /** Takes a condition from the stack and runs `body` if it is not zero. */
  ifThen(body: () => void): this {
    return this.#nested(0x04, body);
  }

  #nested(opcode: number, body: () => void): this {
    this.#code.push(opcode, EMPTY_BLOCK);
    body();
    return this.op(Op.End);
  }

  /** br_if to the enclosing block or loop `depth` levels out. */
  branchIf(depth: number): this {
    this.#code.push(0x0d, ...unsignedLeb(depth));
    return this;
  }

  /** The entry of the code section. */
  encode(): number[] {
    const locals = vector(this.#locals.map((type) => [1, type]));
    const body = [...locals, ...this.#code, Op.End];
    return [...unsignedLeb(body.length), ...body];
  }
}

/** What {@linkcode assembleModule} puts together. */
export interface ModuleDescription {
  /** Memory 0, imported; limits in pages of 64 KiB. */
  readonly importedMemory: {
    readonly module: string;
    readonly field: string;
    readonly pagesMin: number;
    readonly pagesMax: number;
  };
  /** Initial content of memory 1, private to the module: one page. */
  readonly constants: Uint8Array;
  readonly functions: readonly FunctionBuilder[];
}

/** Encodes a module; the result goes to `new WebAssembly.Module`. */
export function assembleModule(description: ModuleDescription): Uint8Array<ArrayBuffer> {
  const { importedMemory, constants, functions } = description;
  const section = (
    id: number,
    content: number[],
  ) => [id, ...unsignedLeb(content.length), ...content];
  const limits = (min: number, max: number) => [1, ...unsignedLeb(min), ...unsignedLeb(max)];
  const types = functions.map(({ params, results }) => [
    0x60,
    ...vector(params.map((type) => [type])),
    ...vector(results.map((type) => [type])),
  ]);
  const memoryImport = [
    ...name(importedMemory.module),
    ...name(importedMemory.field),
    0x02,
    ...limits(importedMemory.pagesMin, importedMemory.pagesMax),
  ];
  const data = [0x02, 1, 0x41, 0, Op.End, ...unsignedLeb(constants.length), ...constants];
  return new Uint8Array([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, vector(types)),
    ...section(2, vector([memoryImport])),
    ...section(3, vector(functions.map((_, index) => unsignedLeb(index)))),
    ...section(5, vector([limits(1, 1)])),
    ...section(
      7,
      vector(functions.map(({ field }, index) => [...name(field), 0, ...unsignedLeb(index)])),
    ),
    ...section(10, vector(functions.map((builder) => builder.encode()))),
    ...section(11, vector([data])),
  ]);
}
