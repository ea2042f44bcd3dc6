/**
 * Tells systemd how the agent is doing: sd_notify(3) without its library.
 *
 * @module
 */
import { closeFd, libc } from "./libc.ts";
import { sendWithFds, unixAddress } from "./socket.ts";

const AF_UNIX = 1, SOCK_DGRAM = 2, SOCK_CLOEXEC = 0o2000000;

/**
 * Sends a state such as `READY=1`. Does nothing when systemd did not start us; never fails.
 *
 * @param state lines of `KEY=value`
 */
export function notifySystemd(state: string): void {
  const path = Deno.env.get("NOTIFY_SOCKET");
  if (path === undefined || path === "") return;
  const fd = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  try {
    let address = unixAddress(path);
    if (path.startsWith("@")) {
      // An abstract name: a zero byte in place of the @, and no zero at its end.
      address = address.slice(0, address.length - 1);
      address[2] = 0;
    }
    if (libc.connect(fd, address, address.length) === 0) {
      sendWithFds(fd, new TextEncoder().encode(state));
    }
  } finally {
    closeFd(fd);
  }
}
