/**
 * The socket that systemd gives to the services that it waits for: datagrams of `KEY=value` lines, sd_notify(3).
 *
 * @module
 */
import { check, closeFd, libc } from "../../agent/platform/linux/libc.ts";
import { receivedBytes, receiveWithFds, unixAddress } from "../../agent/platform/linux/socket.ts";

const AF_UNIX = 1, SOCK_DGRAM = 2, SOCK_CLOEXEC = 0o2000000;

/** See the head of the file. */
export class NotifySocket implements Disposable {
  readonly #fd: number;
  readonly #states: string[] = [];

  /** @param path where to listen; nothing may be there */
  constructor(path: string) {
    this.#fd = check(libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    const address = unixAddress(path);
    check(libc.bind(this.#fd, address, address.length), "bind");
  }

  /** All that has come in so far, oldest first. Does not wait. */
  received(): readonly string[] {
    for (let length = this.#receive(); length >= 0; length = this.#receive()) {
      this.#states.push(new TextDecoder().decode(receivedBytes(length)));
    }
    return this.#states;
  }

  #receive(): number {
    return receiveWithFds(this.#fd, []);
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
  }
}
