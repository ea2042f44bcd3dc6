/**
 * The main thread's end of the conversation with the data worker: starts it, asks, and is told.
 *
 * Requests are carried out in the order in which they are made; each is answered once, or fails with the worker.
 *
 * @module
 */
import { within } from "./deadline.ts";
import type { Logger } from "./logger.ts";
import { ControlFailure } from "./map/errors.ts";
import { BLANK_DEVICE_BYTES } from "./platform/linux/disk.ts";
import { createEventFd } from "./platform/linux/libc.ts";
import { createMailbox, MailboxSender } from "./platform/linux/mailbox.ts";
import type {
  NumberedRequest,
  WorkerMessage,
  WorkerRequest,
  WorkerStart,
} from "./worker_protocol.ts";

/** Longest wait for the data plane's last words after a stop: draining, a sync and a checkpoint. */
const STOP_TIMEOUT_MS = 120_000;

/** What the worker says when its store is open. */
export type Ready = Extract<WorkerMessage, { kind: "ready" }>;

/** What the worker says without being asked. */
export type WorkerEvent = Exclude<
  WorkerMessage,
  { kind: "ready" | "failed" | "answer" | "refusal" | "check-progress" }
>;

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onProgress?: (checkedBytes: number, totalBytes: number) => void;
}

/** The main thread's end of the conversation with the data worker. */
export class DataPlaneClient {
  onFailure: (error: Error) => void = () => {};
  /** Told what the worker says of itself; see `worker_protocol.ts`. */
  onEvent: (event: WorkerEvent) => void = () => {};
  readonly #log: Logger;
  readonly #pending = new Map<number, Pending>();
  #worker: Worker | null = null;
  #mailbox: MailboxSender | null = null;
  #nextId = 1;
  #failure: Error | null = null;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Starts the worker and waits until its store is open. */
  start(options: Omit<WorkerStart, "mailbox" | "bellFd">): Promise<Ready> {
    const mailbox = createMailbox();
    const bellFd = createEventFd();
    this.#mailbox = new MailboxSender(mailbox, bellFd);
    // Beside this file, with its ending: .ts from source, .js in the compiled program.
    const url = new URL("./data_worker" + import.meta.url.slice(-3), import.meta.url);
    const worker = new Worker(url, { type: "module", name: "kelpie-data" });
    this.#worker = worker;
    return new Promise((resolve, reject) => {
      worker.onmessage = (event: MessageEvent<WorkerMessage>) => {
        if (event.data.kind === "ready") resolve(event.data);
        else this.#receive(event.data, reject);
      };
      worker.onerror = (event) => {
        event.preventDefault();
        this.#fail(new Error(`the data worker failed: ${event.message}`), reject);
      };
      const start: WorkerStart = { ...options, mailbox, bellFd };
      worker.postMessage(start);
    });
  }

  #receive(message: Exclude<WorkerMessage, Ready>, reject: (error: Error) => void): void {
    switch (message.kind) {
      case "failed":
        this.#fail(failureOf(message.code, message.message), reject);
        return;
      case "answer":
        this.#take(message.id)?.resolve(message.value);
        return;
      case "refusal":
        this.#take(message.id)?.reject(failureOf(message.code, message.message));
        return;
      case "check-progress":
        this.#pending.get(message.id)?.onProgress?.(message.checkedBytes, message.totalBytes);
        return;
      default:
        this.onEvent(message);
    }
  }

  #take(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    return pending;
  }

  #fail(error: Error, reject: (error: Error) => void): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    reject(error);
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    this.onFailure(error);
  }

  /** Asks the worker. Rejects with what it says, or when it is gone. */
  request<T = void>(
    request: WorkerRequest,
    options: {
      onProgress?: (checkedBytes: number, totalBytes: number) => void;
      signal?: AbortSignal;
    } = {},
  ): Promise<T> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, {
        resolve: resolve as (value: unknown) => void,
        reject,
        onProgress: options.onProgress,
      });
      options.signal?.addEventListener("abort", () => {
        if (this.#take(id) === undefined) return;
        void this.request({ kind: "cancel-check", check: id }).catch(() => {});
        reject(new ControlFailure({ code: "unavailable", message: "the check was cancelled" }));
      }, { once: true });
      const numbered: NumberedRequest = { id, request };
      try {
        this.#mailbox!.send(numbered);
      } catch (error) {
        this.#pending.delete(id);
        reject(error);
      }
    });
  }

  /** Lets sessions finish what is under way, and makes everything durable. */
  drain(): Promise<void> {
    return this.#within("drain");
  }

  /** Lets the worker write a checkpoint and end. */
  stop(): Promise<void> {
    return this.#within("stop");
  }

  async #within(kind: "drain" | "stop"): Promise<void> {
    if (this.#worker === null || this.#failure !== null) return;
    try {
      await within(this.request({ kind }), STOP_TIMEOUT_MS, () => {
        throw new Error(`the data plane did not ${kind} within ${STOP_TIMEOUT_MS / 1000} s`);
      });
    } finally {
      this.#log.debug(`the data plane: ${kind} is done`);
    }
  }
}

/** Words a refusal of the worker for people. */
function failureOf(code: string, message: string): ControlFailure {
  switch (code) {
    case "FULL":
      return new ControlFailure({
        code: "full",
        message,
        hint: "delete or discard something, or give the store more capacity",
      });
    case "LAYER":
    case "INVALID":
      return new ControlFailure({ code: "invalid", message });
    case "BUSY":
      return new ControlFailure({ code: "busy", message });
    case "OTHER_HOST":
      return new ControlFailure({
        code: "corrupt",
        message,
        hint: "if it was moved here for good, start the agent once with --adopt",
      });
    case "DAMAGED":
      return new ControlFailure({
        code: "corrupt",
        message,
        hint: "restore it from a backup, or start the agent once with --accept-damage",
      });
    case "LEVEL":
      return new ControlFailure({ code: "limit", message });
    case "NOT_A_STORE":
      return new ControlFailure({
        code: "corrupt",
        message,
        hint:
          "name another --data; or, if nothing there is needed, delete the file kelpie.store, or erase the beginning of the device " +
          `(dd if=/dev/zero of=DEVICE bs=1M count=${BLANK_DEVICE_BYTES / 1024 ** 2})`,
      });
    case "NEWER_FORMAT":
      return new ControlFailure({ code: "corrupt", message });
    default:
      return new ControlFailure({ code: "internal", message });
  }
}
