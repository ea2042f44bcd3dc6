/**
 * One NBD connection in its transmission phase over a fake disk, with a client that checks what comes back.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { ExportQueue } from "../../agent/nbd/export.ts";
import type { ExportInfo } from "../../agent/nbd/handshake.ts";
import {
  type NbdRequest,
  Transmission,
  type TransmissionHost,
} from "../../agent/nbd/transmission.ts";
import { MemoryStream, type Reply, ReplyReader, request } from "./client.ts";
import { FakePort } from "./fake_port.ts";

/** Commands. */
export const READ = 0, WRITE = 1, DISC = 2, FLUSH = 3, TRIM = 4, CACHE = 5, ZERO = 6, STATUS = 7;
/** Flags of commands. */
export const FUA = 1, NO_HOLE = 2, DF = 4, ONE = 8, FAST = 16;

/** Longest piece in tests, so that pieces are many. */
export const PIECE = 4096;
/** Longest discard and write-zeroes in tests. */
export const RANGE = 16384;

/** An export over a fake disk. */
export function makeExport(options: { slots?: number; diskBytes?: number } = {}) {
  const port = new FakePort(options.slots ?? 8, PIECE, options.diskBytes ?? 256 * 1024);
  const queue = new ExportQueue({ port, bytes: port.bytes, rangeBytes: RANGE });
  return { port, queue };
}

/** What a connection has agreed on. */
export interface MeetingOptions {
  readonly isStructured?: boolean;
  readonly hasAllocation?: boolean;
  readonly info?: Partial<ExportInfo>;
  readonly outputBytes?: number;
}

/** See the head of the file. */
export class Meeting implements TransmissionHost {
  readonly stream: MemoryStream;
  readonly transmission: Transmission;
  /** `undefined`: it goes on. */
  closed: string | null | undefined;
  readonly asked: NbdRequest[] = [];
  readonly #reader: ReplyReader;
  readonly #lengths = new Map<number, number>();
  #unput: Uint8Array = new Uint8Array(0);

  constructor(
    readonly port: FakePort,
    readonly queue: ExportQueue,
    { isStructured = true, hasAllocation = false, info = {}, outputBytes }: MeetingOptions = {},
  ) {
    this.stream = new MemoryStream({ inputBytes: 4 * PIECE, outputBytes: outputBytes ?? 65536 });
    this.transmission = new Transmission(this, this.stream, queue, {
      info: {
        name: "web",
        description: "",
        sizeBytes: port.disk.length,
        isReadOnly: false,
        canTrim: true,
        canZero: true,
        ...info,
      },
      isStructured,
      hasAllocation,
    });
    this.#reader = new ReplyReader((cookie) => this.#lengths.get(cookie) ?? 0);
  }

  /** Sends a request; what does not fit yet goes later. */
  ask(fields: Parameters<typeof request>[0]): void {
    if (fields.command === READ) this.#lengths.set(fields.cookie, fields.length ?? 0);
    this.send(request(fields));
  }

  /** Sends any bytes. */
  send(bytes: Uint8Array): void {
    const all = new Uint8Array(this.#unput.length + bytes.length);
    all.set(this.#unput);
    all.set(bytes, this.#unput.length);
    this.#unput = all;
    this.pump();
  }

  /** Puts in what did not fit before. */
  pump(): void {
    for (;;) {
      const taken = this.stream.put(this.#unput);
      this.#unput = this.#unput.subarray(taken);
      this.transmission.step();
      if (taken === 0) return;
    }
  }

  /** Bytes that are not in the input yet. */
  get unput(): number {
    return this.#unput.length;
  }

  /** Reaps what is done, lets others go on, and takes replies. */
  turn(bytesMax = Infinity): Reply[] {
    this.queue.reap();
    this.queue.resume();
    this.pump();
    return this.#reader.push(this.stream.take(bytesMax));
  }

  /** Does everything that is to be done. */
  settle(): Reply[] {
    const replies = this.turn();
    while (this.port.pending.length > 0) {
      this.port.completeAll();
      replies.push(...this.turn());
    }
    assertEquals(this.#reader.rest, 0, "half a reply is left");
    return replies;
  }

  findExtents(asked: NbdRequest): void {
    this.asked.push(asked);
  }

  close(reason: string | null): void {
    assertEquals(this.closed, undefined, "it was closed twice");
    this.closed = reason;
  }
}
