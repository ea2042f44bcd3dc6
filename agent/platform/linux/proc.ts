/**
 * What the kernel says in /proc and /sys. The runtime does not read there with the permissions that the program has.
 *
 * @module
 */
import { closeFd, cString, libc, O_CLOEXEC, O_RDONLY } from "./libc.ts";

/** Longer ones are cut off. */
const TEXT_BYTES_MAX = 4096;

/** A short file, without white space at its ends; "" where there is none, or it may not be read. */
export function readProc(path: string): string {
  const fd = libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return "";
  const bytes = new Uint8Array(TEXT_BYTES_MAX);
  const length = libc.read(fd, bytes, BigInt(bytes.length));
  closeFd(fd);
  return text(bytes, length);
}

/** What a symbolic link says, such as that of a namespace; "" where there is none, or it may not be read. */
export function readProcLink(path: string): string {
  const bytes = new Uint8Array(TEXT_BYTES_MAX);
  return text(bytes, Number(libc.readlink(cString(path), bytes, BigInt(bytes.length))));
}

function text(bytes: Uint8Array, length: number): string {
  return length > 0 ? new TextDecoder().decode(bytes.subarray(0, length)).trim() : "";
}
