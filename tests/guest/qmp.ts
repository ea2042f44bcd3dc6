/**
 * A client of QEMU's machine protocol: JSON objects, one a line, over a stream. QEMU greets, the
 * client asks for no capabilities, and from then on commands are answered by their ID while events
 * come in between. (QEMU, "QEMU Machine Protocol Specification".)
 *
 * @module
 */

/** An event of QEMU, such as SHUTDOWN, DEVICE_DELETED or MIGRATION. */
export interface QmpEvent {
  readonly event: string;
  readonly data?: Record<string, unknown>;
}

interface QmpMessage {
  readonly QMP?: unknown;
  readonly id?: number;
  readonly return?: unknown;
  readonly error?: { class: string; desc: string };
  readonly event?: string;
  readonly data?: Record<string, unknown>;
}

/** One connection to a QEMU. */
export class Qmp {
  readonly #connection: Deno.Conn;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #greeted = Promise.withResolvers<void>();
  readonly #reading: Promise<void>;
  #writing: Promise<void> = Promise.resolve();
  #waiters: { matches: (event: QmpEvent) => boolean; found: (event: QmpEvent) => void }[] = [];
  #idNext = 1;
  #closed: Error | undefined;

  /** Every event so far, oldest first. */
  readonly events: QmpEvent[] = [];

  /** @param connection the socket that QEMU connected its monitor to; closed by `close()` */
  constructor(connection: Deno.Conn) {
    this.#connection = connection;
    this.#greeted.promise.catch(() => {});
    this.#reading = this.#read();
  }

  /** Whether QEMU has closed it, or `close()` was called. */
  get isClosed(): boolean {
    return this.#closed !== undefined;
  }

  /** Waits for the greeting and leaves the negotiation; to be called once, before all else. */
  async negotiate(): Promise<void> {
    await this.#greeted.promise;
    await this.execute("qmp_capabilities");
  }

  /**
   * Runs a command.
   *
   * @returns what QEMU returned
   * @throws Error with QEMU's own description when it refuses, or when it ends first
   */
  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    if (this.#closed !== undefined) throw this.#closed;
    const id = this.#idNext++;
    const answer = Promise.withResolvers<unknown>();
    this.#pending.set(id, answer);
    const line = JSON.stringify({ execute: command, arguments: args, id }) + "\n";
    this.#writing = this.#writing.then(() => this.#write(line)).catch((error) => this.#end(error));
    try {
      return await answer.promise;
    } catch (error) {
      throw new Error(`QMP ${command}: ${(error as Error).message}`);
    }
  }

  /**
   * The first event with this name that `matches`, among those seen and those to come. Never rejects;
   * put a limit on it with `within()`.
   */
  event(name: string, matches: (event: QmpEvent) => boolean = () => true): Promise<QmpEvent> {
    const wanted = (event: QmpEvent): boolean => event.event === name && matches(event);
    const seen = this.events.find(wanted);
    if (seen !== undefined) return Promise.resolve(seen);
    return new Promise((found) => this.#waiters.push({ matches: wanted, found }));
  }

  /** Closes the connection and fails what is pending; waits until nothing is left running. */
  async close(): Promise<void> {
    this.#end(new Error("QEMU has ended"));
    await this.#reading;
    await this.#writing;
  }

  async #write(line: string): Promise<void> {
    const bytes = new TextEncoder().encode(line);
    for (let offset = 0; offset < bytes.length;) {
      offset += await this.#connection.write(bytes.subarray(offset));
    }
  }

  async #read(): Promise<void> {
    const [buffer, decoder] = [new Uint8Array(65536), new TextDecoder()];
    let text = "";
    try {
      for (;;) {
        const sizeBytes = await this.#connection.read(buffer);
        if (sizeBytes === null) break;
        text += decoder.decode(buffer.subarray(0, sizeBytes), { stream: true });
        const lines = text.split("\n");
        text = lines.pop()!;
        for (const line of lines) if (line.trim() !== "") this.#take(JSON.parse(line));
      }
    } catch {
      // The connection was closed or reset: the same as its end.
    }
    this.#end(new Error("QEMU has ended"));
  }

  #take(message: QmpMessage): void {
    if (message.QMP !== undefined) return this.#greeted.resolve();
    if (message.event !== undefined) return this.#takeEvent(message as QmpEvent);
    const answer = this.#pending.get(message.id ?? 0);
    this.#pending.delete(message.id ?? 0);
    if (message.error !== undefined) answer?.reject(new Error(message.error.desc));
    else answer?.resolve(message.return);
  }

  #takeEvent(event: QmpEvent): void {
    this.events.push(event);
    this.#waiters.filter(({ matches }) => matches(event)).forEach(({ found }) => found(event));
    this.#waiters = this.#waiters.filter(({ matches }) => !matches(event));
  }

  #end(reason: Error): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#greeted.reject(reason);
    for (const answer of this.#pending.values()) answer.reject(reason);
    this.#pending.clear();
    this.#connection.close();
  }
}
