/**
 * What tests of NBD put around the machines: a stream in memory, and a client that reads no specification but its own.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import type { ByteStream } from "../../agent/nbd/protocol.ts";

/** A connection's two directions in memory: the test puts bytes in, and takes what the machine has queued. */
export class MemoryStream implements ByteStream {
  readonly input: Uint8Array<ArrayBuffer>;
  inputStart = 0;
  inputEnd = 0;
  bytesWanted = 1;
  readonly output: Uint8Array<ArrayBuffer>;
  #head = 0;
  #tail = 0;

  constructor(options: { inputBytes?: number; outputBytes?: number } = {}) {
    this.input = new Uint8Array(options.inputBytes ?? 256 * 1024);
    this.output = new Uint8Array(options.outputBytes ?? 1024 * 1024);
  }

  get queuedBytes(): number {
    return this.#tail - this.#head;
  }

  reserve(bytes: number): number {
    if (this.queuedBytes + bytes > this.output.length) return -1;
    if (this.#tail + bytes > this.output.length) {
      this.output.copyWithin(0, this.#head, this.#tail);
      this.#tail -= this.#head;
      this.#head = 0;
    }
    return this.#tail;
  }

  commit(at: number, bytes: number): void {
    assertEquals(at, this.#tail);
    this.#tail += bytes;
    assert(this.#tail <= this.output.length);
  }

  /** Puts in as much as there is room for; how much that was. */
  put(bytes: Uint8Array): number {
    if (this.inputStart > 0) {
      this.input.copyWithin(0, this.inputStart, this.inputEnd);
      this.inputEnd -= this.inputStart;
      this.inputStart = 0;
    }
    assert(this.bytesWanted <= this.input.length, "more is wanted than ever fits");
    const part = bytes.subarray(0, this.input.length - this.inputEnd);
    this.input.set(part, this.inputEnd);
    this.inputEnd += part.length;
    return part.length;
  }

  /** Takes up to so many bytes of what is queued. */
  take(bytesMax = Infinity): Uint8Array<ArrayBuffer> {
    const end = Math.min(this.#tail, this.#head + bytesMax);
    const bytes = this.output.slice(this.#head, end);
    this.#head = end;
    return bytes;
  }
}

/** Numbers and texts in a row, big-endian. */
export function bytesOf(
  ...parts: (readonly [bytes: 1 | 2 | 4 | 8, value: number | bigint] | string | Uint8Array)[]
): Uint8Array<ArrayBuffer> {
  const pieces = parts.map((part) => {
    if (typeof part === "string") return new TextEncoder().encode(part);
    if (part instanceof Uint8Array) return part;
    const whole = new Uint8Array(8);
    new DataView(whole.buffer).setBigUint64(0, BigInt(part[1]));
    return whole.subarray(8 - part[0]);
  });
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** An option of the handshake. */
export function option(
  number: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  return bytesOf("IHAVEOPT", [4, number], [4, data.length], data);
}

/** Data of Go and Info. */
export function goData(name: string, infos: readonly number[] = []): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(name);
  return bytesOf(
    [4, text.length],
    text,
    [2, infos.length],
    ...infos.map((info) => [2, info] as const),
  );
}

/** Data of ListMetaContext and SetMetaContext. */
export function contextData(name: string, queries: readonly string[]): Uint8Array<ArrayBuffer> {
  const text = (value: string) => bytesOf([4, value.length], value);
  return bytesOf(text(name), [4, queries.length], ...queries.map(text));
}

/** A request of the transmission. */
export function request(
  fields: {
    readonly command: number;
    readonly flags?: number;
    readonly cookie: number;
    readonly offset?: number;
    readonly length?: number;
    readonly data?: Uint8Array;
  },
): Uint8Array<ArrayBuffer> {
  const { command, flags = 0, cookie, offset = 0, length = 0, data = new Uint8Array(0) } = fields;
  return bytesOf(
    [4, 0x25609513],
    [2, flags],
    [2, command],
    [8, cookie],
    [8, offset],
    [4, data.length || length],
    data,
  );
}

/** An answer to an option. */
export interface OptionAnswer {
  readonly option: number;
  readonly type: number;
  readonly data: Uint8Array;
}

/** Takes answers to options apart; there must be nothing else. */
export function parseAnswers(bytes: Uint8Array): OptionAnswer[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const answers: OptionAnswer[] = [];
  for (let at = 0; at < bytes.length;) {
    assertEquals(view.getBigUint64(at), 0x3e889045565a9n);
    const length = view.getUint32(at + 16);
    assert(at + 20 + length <= bytes.length, "an answer is not whole");
    answers.push({
      option: view.getUint32(at + 8),
      type: view.getUint32(at + 12),
      data: bytes.subarray(at + 20, at + 20 + length),
    });
    at += 20 + length;
  }
  return answers;
}

/** A simple reply, or a chunk of a structured one. */
export interface Reply {
  readonly cookie: number;
  /** null: a simple reply. */
  readonly chunk: { readonly type: number; readonly isDone: boolean } | null;
  readonly error: number;
  /** Of a data chunk. */
  readonly offset: number;
  readonly data: Uint8Array<ArrayBuffer>;
  /** Of a block status chunk: bytes and state by turns. */
  readonly extents: readonly number[];
}

/** Takes replies apart as they come. */
export class ReplyReader {
  #bytes: Uint8Array<ArrayBuffer> = new Uint8Array(0);

  /** @param simpleBytes data behind a good simple reply to the request with that cookie */
  constructor(readonly simpleBytes: (cookie: number) => number) {}

  /** Bytes that belong to no whole reply yet. */
  get rest(): number {
    return this.#bytes.length;
  }

  /** Takes bytes; gives the replies that are whole with them. */
  push(bytes: Uint8Array): Reply[] {
    this.#bytes = bytesOf(this.#bytes, bytes);
    const replies: Reply[] = [];
    for (let reply = this.#take(); reply !== null; reply = this.#take()) replies.push(reply);
    return replies;
  }

  #take(): Reply | null {
    const bytes = this.#bytes;
    if (bytes.length < 20) return this.#takeSimple(bytes);
    const view = new DataView(bytes.buffer);
    if (view.getUint32(0) === 0x67446698) return this.#takeSimple(bytes);
    assertEquals(view.getUint32(0), 0x668e33ef, "neither a reply nor a chunk");
    const length = view.getUint32(16);
    if (bytes.length < 20 + length) return null;
    const type = view.getUint16(6);
    const chunk = { type, isDone: (view.getUint16(4) & 1) !== 0 };
    const cookie = Number(view.getBigUint64(8));
    const payload = bytes.slice(20, 20 + length);
    this.#bytes = bytes.slice(20 + length);
    const inner = new DataView(payload.buffer);
    const none = { cookie, chunk, error: 0, offset: 0, data: new Uint8Array(0), extents: [] };
    if ((type & 0x8000) !== 0) {
      assertEquals(length, 6 + inner.getUint16(4) + (type === 0x8002 ? 8 : 0));
      return { ...none, error: inner.getUint32(0) };
    }
    if (type === 1) {
      return { ...none, offset: Number(inner.getBigUint64(0)), data: payload.slice(8) };
    }
    if (type === 5) {
      assertEquals(inner.getUint32(0), 1);
      const count = (length - 4) / 4;
      return {
        ...none,
        extents: Array.from({ length: count }, (_, i) => inner.getUint32(4 + 4 * i)),
      };
    }
    assertEquals([type, length], [0, 0]);
    return none;
  }

  #takeSimple(bytes: Uint8Array<ArrayBuffer>): Reply | null {
    if (bytes.length < 16) return null;
    const view = new DataView(bytes.buffer);
    if (view.getUint32(0) !== 0x67446698) {
      assertEquals(view.getUint32(0), 0x668e33ef, "neither a reply nor a chunk");
      return null;
    }
    const error = view.getUint32(4);
    const cookie = Number(view.getBigUint64(8));
    const length = error === 0 ? this.simpleBytes(cookie) : 0;
    if (bytes.length < 16 + length) return null;
    this.#bytes = bytes.slice(16 + length);
    return {
      cookie,
      chunk: null,
      error,
      offset: 0,
      data: bytes.slice(16, 16 + length),
      extents: [],
    };
  }
}
