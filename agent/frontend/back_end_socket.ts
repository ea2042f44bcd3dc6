/**
 * The socket to a vhost-user back end: messages out, replies in.
 *
 * Waiting never holds the event loop for more than a few milliseconds at a time, so that a back end
 * may even live in the same process.
 *
 * @module
 */
import { setImmediate } from "node:timers";
import { closeFd, SystemError } from "../platform/linux/libc.ts";
import {
  connectUnix,
  peerPid,
  receivedBytes,
  receiveWithFds,
  sendWithFds,
} from "../platform/linux/socket.ts";
import { BackEndError } from "./error.ts";
import type { Poller } from "./poller.ts";
import { HEADER_BYTES, HeaderFlag, PAYLOAD_BYTES_MAX, Request, requestName } from "./vhost_user.ts";

/** Time that a wait blocks the thread before it lets the event loop turn. */
export const WAIT_SLICE_MS = 2;

const EAGAIN = 11, EINTR = 4, EPIPE = 32, ECONNRESET = 104;

/** A reply; descriptors belong to the caller. */
export interface Reply {
  readonly payload: DataView<ArrayBuffer>;
  readonly fds: readonly number[];
}

/** One connection. */
export class BackEndSocket {
  /** Process at the other end, or 0 when it cannot be told. */
  readonly peerPid: number;
  readonly #fd: number;
  #isClosed = false;
  readonly #poller: Poller;
  readonly #replyTimeoutMs: number;
  readonly #signal: AbortSignal | undefined;
  #received: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #fds: number[] = [];

  private constructor(
    readonly path: string,
    fd: number,
    options: { poller: Poller; replyTimeoutMs: number; signal?: AbortSignal },
  ) {
    this.#fd = fd;
    this.#poller = options.poller;
    this.#replyTimeoutMs = options.replyTimeoutMs;
    this.#signal = options.signal;
    this.peerPid = peerPid(fd);
  }

  /**
   * Connects.
   *
   * @param options.poller watches the socket as `token` from now on
   * @param options.signal ends waits for replies, with its reason
   * @throws BackEndError `connect`
   */
  static connect(
    path: string,
    options: { poller: Poller; token: number; replyTimeoutMs: number; signal?: AbortSignal },
  ): BackEndSocket {
    let fd: number;
    try {
      fd = connectUnix(path);
    } catch (error) {
      if (!(error instanceof SystemError || error instanceof RangeError)) throw error;
      throw new BackEndError("connect", error.message);
    }
    options.poller.addSocket(fd, options.token);
    return new BackEndSocket(path, fd, options);
  }

  /** Sends a message that has no reply. */
  send(request: number, payload: Uint8Array, fds: readonly number[] = [], flags = 0): void {
    const message = new Uint8Array(HEADER_BYTES + payload.length);
    const view = new DataView(message.buffer);
    view.setUint32(0, request, true);
    view.setUint32(4, HeaderFlag.Version | flags, true);
    view.setUint32(8, payload.length, true);
    message.set(payload, HEADER_BYTES);
    const result = sendWithFds(this.#fd, message, fds);
    if (result === message.length) return;
    const what = `sending ${requestName(request)} to ${this.path}`;
    if (result === -EPIPE || result === -ECONNRESET) {
      throw new BackEndError("disconnected", `${what}: the back end has closed the connection`);
    }
    // Every request that matters is answered before the next one: the buffer is never nearly full.
    if (result === -EAGAIN || result >= 0) {
      throw new BackEndError("stalled", `${what}: the back end does not read its socket`);
    }
    throw new BackEndError("disconnected", new SystemError(what, -result).message);
  }

  /** Sends a message and waits for its reply. */
  async request(request: number, payload: Uint8Array, fds?: readonly number[]): Promise<Reply> {
    this.send(request, payload, fds);
    return await this.#reply(request);
  }

  /** Sends a message and waits for the acknowledgement that REPLY_ACK asks for. */
  async acknowledged(
    request: number,
    payload: Uint8Array,
    fds?: readonly number[],
  ): Promise<void> {
    this.send(request, payload, fds, HeaderFlag.NeedReply);
    const { payload: reply, fds: unwanted } = await this.#reply(request);
    unwanted.forEach(closeFd);
    const code = reply.byteLength === 8 ? reply.getBigUint64(0, true) : -1n;
    if (code !== 0n) {
      throw new BackEndError("protocol", `the back end refused ${requestName(request)} (${code})`);
    }
  }

  async #reply(request: number): Promise<Reply> {
    const name = requestName(request);
    const deadline = performance.now() + this.#replyTimeoutMs;
    for (;;) {
      const message = this.#takeMessage(name);
      if (message !== null) {
        if (message.request === request && (message.flags & HeaderFlag.Reply) !== 0) return message;
        message.fds.forEach(closeFd);
        throw new BackEndError(
          "protocol",
          `the reply to ${name} is ${requestName(message.request)} with flags ${message.flags}`,
        );
      }
      if (this.#receive(`while it owed the reply to ${name}`)) continue;
      this.#signal?.throwIfAborted();
      if (performance.now() > deadline) {
        const hint = request === Request.GetFeatures
          ? "; it may be serving another front end already"
          : "";
        throw new BackEndError(
          "stalled",
          `the back end at ${this.path} has not answered ${name} within ` +
            `${this.#replyTimeoutMs / 1000} s${hint}`,
        );
      }
      if (this.#poller.wait(WAIT_SLICE_MS) === 0) await turn();
    }
  }

  #takeMessage(name: string): Reply & { request: number; flags: number } | null {
    const bytes = this.#received;
    if (bytes.length < HEADER_BYTES) return null;
    const header = new DataView(bytes.buffer);
    const sizeBytes = header.getUint32(8, true);
    if (sizeBytes > PAYLOAD_BYTES_MAX) {
      throw new BackEndError("protocol", `the reply to ${name} claims ${sizeBytes} bytes`);
    }
    if (bytes.length < HEADER_BYTES + sizeBytes) return null;
    const payload = bytes.slice(HEADER_BYTES, HEADER_BYTES + sizeBytes);
    this.#received = bytes.slice(HEADER_BYTES + sizeBytes);
    return {
      request: header.getUint32(0, true),
      flags: header.getUint32(4, true),
      payload: new DataView(payload.buffer),
      fds: this.#fds.splice(0),
    };
  }

  /** Takes what has arrived; false when nothing has. */
  #receive(when: string): boolean {
    const result = receiveWithFds(this.#fd, this.#fds);
    if (result === -EAGAIN || result === -EINTR) return false;
    if (result === 0 || result === -ECONNRESET) {
      throw new BackEndError(
        "disconnected",
        `the back end at ${this.path} closed the connection ${when}`,
      );
    }
    if (result < 0) {
      throw new BackEndError("disconnected", new SystemError(this.path, -result).message);
    }
    const bytes = new Uint8Array(this.#received.length + result);
    bytes.set(this.#received);
    bytes.set(receivedBytes(result), this.#received.length);
    this.#received = bytes;
    return true;
  }

  /**
   * Looks whether the back end is still there, while no reply is due.
   *
   * @param when for the message: `with 3 requests in flight`
   * @throws BackEndError `disconnected`, or `protocol` when it sent something unasked
   */
  checkAlive(when: string): void {
    if (this.#receive(when)) {
      throw new BackEndError("protocol", `the back end sent a message unasked ${when}`);
    }
  }

  /** Does nothing the second time: by then the number may be somebody else's. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#poller.remove(this.#fd);
    closeFd(this.#fd);
    this.#fds.splice(0).forEach(closeFd);
  }
}

/** Lets the event loop turn once, timers and sockets included; 7 µs, where a timer takes 1 ms. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
