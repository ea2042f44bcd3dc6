/**
 * The host's end of the command channel: a stream of bytes to the guest's second serial port.
 *
 *     host to guest:  ID SPACE base64(shell script) LF
 *     guest to host:  0x1e "ready" LF                            at every boot
 *                     0x1e ID SPACE STATUS SPACE SIZE LF OUTPUT   when a command ended; SIZE bytes
 *
 * Any number of commands may be under way. Bytes outside of a frame are skipped: a serial port may
 * deliver some when a guest is reset. IDs are random, so that they stay unique when a guest migrates
 * from one QEMU to another.
 *
 * @module
 */

/** How a command in the guest ended. */
export interface CommandResult {
  /** Exit status of the shell. */
  readonly status: number;
  /** What the command wrote to stdout and stderr. */
  readonly output: string;
}

const FRAME = 0x1e;
const LINE_FEED = 0x0a;

/** A header is a few dozen bytes; more than that without a line feed is noise. */
const HEADER_SIZE_BYTES_MAX = 256;

/** Sends commands to a guest and collects their results. */
export class GuestShell {
  readonly #connection: Deno.Conn;
  readonly #pending = new Map<string, PromiseWithResolvers<CommandResult>>();
  #received = new Uint8Array();
  #writing: Promise<void> = Promise.resolve();
  #ready = Promise.withResolvers<void>();
  #closed: Error | undefined;
  /** Ends when the connection does. */
  readonly #reading: Promise<void>;

  /** @param connection the socket that QEMU connected the serial port to; closed by `close()` */
  constructor(connection: Deno.Conn) {
    this.#connection = connection;
    this.#ready.promise.catch(() => {});
    this.#reading = this.#read();
  }

  /** Resolves when the guest takes commands, now or after its next boot. */
  ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** To be called before a reset: makes {@linkcode GuestShell.ready} wait for the boot after it. */
  expectReset(): void {
    this.#ready = Promise.withResolvers();
    this.#ready.promise.catch(() => {});
    this.#failPending(new Error("the guest was reset while this command ran"));
  }

  /**
   * Sends a command, a script for busybox's `sh` of any size. It runs in a new shell: neither its
   * directory nor its variables outlive it.
   *
   * @returns its ID, which names `/run/ID.out` and `/run/ID.pid` in the guest, and its result, which
   * rejects when the guest ends first
   */
  send(command: string): { id: string; result: Promise<CommandResult> } {
    const id = crypto.randomUUID().slice(0, 13);
    const result = Promise.withResolvers<CommandResult>();
    result.promise.catch(() => {}); // Background commands may have no one waiting for them.
    if (this.#closed !== undefined) {
      result.reject(this.#closed);
      return { id, result: result.promise };
    }
    this.#pending.set(id, result);
    const line = new TextEncoder().encode(`${id} ${base64(command)}\n`);
    this.#writing = this.#writing.then(() => writeAll(this.#connection, line))
      .catch((error) => this.#end(new Error(`cannot send to the guest: ${error.message}`)));
    return { id, result: result.promise };
  }

  /** Closes the connection and fails what is pending; waits until nothing is left running. */
  async close(reason = "the guest has ended"): Promise<void> {
    this.#end(new Error(reason));
    await this.#reading;
    await this.#writing;
  }

  async #read(): Promise<void> {
    const buffer = new Uint8Array(65536);
    try {
      for (;;) {
        const sizeBytes = await this.#connection.read(buffer);
        if (sizeBytes === null) break;
        this.#received = concat(this.#received, buffer.subarray(0, sizeBytes));
        while (this.#takeFrame());
      }
    } catch {
      // The connection was closed or reset: the same as its end.
    }
    this.#end(new Error("the guest has ended"));
  }

  /** Takes one frame off the received bytes; false when there is no complete one. */
  #takeFrame(): boolean {
    const start = this.#received.indexOf(FRAME);
    if (start < 0) {
      this.#received = new Uint8Array();
      return false;
    }
    this.#received = this.#received.subarray(start);
    const headerEnd = this.#received.indexOf(LINE_FEED);
    if (headerEnd < 0 && this.#received.length < HEADER_SIZE_BYTES_MAX) return false;
    const header = new TextDecoder().decode(this.#received.subarray(1, headerEnd));
    if (header === "ready") {
      this.#received = this.#received.subarray(headerEnd + 1);
      this.#failPending(new Error("the guest was reset while this command ran"));
      this.#ready.resolve();
      return true;
    }
    const fields = /^(\S+) (\d+) (\d+)$/.exec(header);
    if (fields === null) {
      this.#received = this.#received.subarray(1);
      return true;
    }
    const [id, status, sizeBytes] = [fields[1], Number(fields[2]), Number(fields[3])];
    const end = headerEnd + 1 + sizeBytes;
    if (this.#received.length < end) return false;
    const output = new TextDecoder().decode(this.#received.subarray(headerEnd + 1, end));
    this.#received = this.#received.subarray(end);
    this.#pending.get(id)?.resolve({ status, output });
    this.#pending.delete(id);
    return true;
  }

  #end(reason: Error): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#failPending(reason);
    this.#ready.reject(reason);
    this.#connection.close();
  }

  #failPending(reason: Error): void {
    for (const result of this.#pending.values()) result.reject(reason);
    this.#pending.clear();
  }
}

function base64(text: string): string {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

async function writeAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let offset = 0; offset < bytes.length;) {
    offset += await connection.write(bytes.subarray(offset));
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}
