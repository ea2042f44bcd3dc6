/**
 * Unix sockets with descriptors, eventfds and the ring, on the real kernel.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { EventFdWatcher } from "../../agent/platform/linux/eventfd.ts";
import {
  closeFd,
  createEventFd,
  libc,
  signalEventFd,
  SystemError,
} from "../../agent/platform/linux/libc.ts";
import { isSealed, LinuxMemory } from "../../agent/platform/linux/memory.ts";
import { Ring } from "../../agent/platform/linux/ring.ts";
import {
  type Connection,
  connectUnix,
  receivedBytes,
  receiveWithFds,
  sendWithFds,
  SocketWatcher,
} from "../../agent/platform/linux/socket.ts";

/** Turns the loop until `isDone`; every step waits for the kernel, so this ends as soon as it can. */
function turn(ring: Ring, isDone: () => boolean): void {
  for (let i = 0; i < 1000 && !isDone(); i++) {
    ring.enter(10);
    ring.dispatch();
  }
  assertEquals(isDone(), true, "nothing more happens");
}

Deno.test("bytes and descriptors arrive together, and the peer's end is noticed once", () => {
  const directory = Deno.makeTempDirSync();
  const ring = new Ring();
  try {
    const sockets = new SocketWatcher(ring);
    const path = `${directory}/a.sock`;
    const accepted: Connection[] = [];
    const stop = sockets.listen(path, (connection) => accepted.push(connection));
    assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
    const client = connectUnix(path);
    turn(ring, () => accepted.length === 1);
    const received: string[] = [];
    const fds: number[] = [];
    const ends: string[] = [];
    const [server] = accepted;
    assertEquals(server.peerPid, Deno.pid);
    server.listener = {
      received(bytes, passed) {
        received.push(new TextDecoder().decode(bytes));
        fds.push(...passed);
      },
      disconnected: (reason) => ends.push(reason),
    };
    const event = createEventFd();
    assertEquals(sendWithFds(client, new TextEncoder().encode("hello"), [event, event]), 5);
    turn(ring, () => received.length > 0);
    assertEquals(received, ["hello"]);
    assertEquals(fds.length, 2);

    // What was passed is the same eventfd.
    signalEventFd(fds[1]);
    const value = new Uint8Array(8);
    assertEquals(libc.read(event, value, 8n), 8);
    for (const fd of [...fds, event]) closeFd(fd);

    server.send(new TextEncoder().encode("answer"));
    assertEquals(receiveWithFds(client, []), 6);
    assertEquals(new TextDecoder().decode(receivedBytes(6)), "answer");

    closeFd(client);
    turn(ring, () => ends.length > 0);
    assertEquals(ends.length, 1);
    stop();
    assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
    assertThrows(() => connectUnix(path), SystemError);
  } finally {
    ring.close();
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("a new agent's socket takes the place of a dead one's", () => {
  const directory = Deno.makeTempDirSync();
  const ring = new Ring();
  try {
    const path = `${directory}/a.sock`;
    new SocketWatcher(ring).listen(path, () => {});
    const accepted: Connection[] = [];
    new SocketWatcher(ring).listen(path, (connection) => accepted.push(connection));
    const client = connectUnix(path);
    turn(ring, () => accepted.length === 1);
    closeFd(client);
    assertThrows(
      () => new SocketWatcher(ring).listen(`${directory}/${"x".repeat(120)}.sock`, () => {}),
    );
  } finally {
    ring.close();
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("every signal of a watched eventfd is told, and one that comes at the end is put back", () => {
  const ring = new Ring();
  const watcher = new EventFdWatcher(ring);
  const fd = createEventFd();
  const mine = libc.fcntl(fd, 1030, /* F_DUPFD_CLOEXEC */ 0);
  let told = 0;
  const watch = watcher.watch(fd, { eventFdSignalled: () => told++ });
  for (let i = 1; i <= 3; i++) {
    signalEventFd(mine);
    turn(ring, () => told === i);
  }
  // The READ takes this one, but nobody wants to hear of it any more.
  signalEventFd(mine);
  watcher.unwatch(watch);
  for (let i = 0; i < 5; i++) {
    ring.enter(1);
    ring.dispatch();
  }
  assertEquals(told, 3);
  assertEquals(libc.read(mine, new Uint8Array(8), 8n), 8, "the signal is lost");
  closeFd(mine);
  ring.close();
});

Deno.test("mapped memory is shared, bounded by its file, and zeros once it is taken away", () => {
  const memory = new LinuxMemory();
  const fd = memory.createShared("test", 3 * 1024 ** 3);
  assertEquals(isSealed(fd), true);
  const pieces = memory.mapShared(fd, 4096, 3 * 1024 ** 3 - 4096);
  if (typeof pieces === "number") throw new Error(`errno ${-pieces}`);
  assertEquals(pieces.length >= 2, true, "three GiB do not fit into one window");
  assertEquals(pieces.reduce((sum, piece) => sum + piece.length, 0), 3 * 1024 ** 3 - 4096);
  const again = memory.mapShared(fd, 0, 8192);
  if (typeof again === "number") throw new Error(`errno ${-again}`);
  memory.windows[pieces[0].window].bytes[pieces[0].offset + 5] = 77;
  assertEquals(memory.windows[again[0].window].bytes[again[0].offset + 4096 + 5], 77);
  memory.unmap(pieces);
  assertEquals(memory.windows[pieces[0].window].bytes[pieces[0].offset + 5], 0);
  assertEquals(memory.windows[again[0].window].bytes[again[0].offset + 4096 + 5], 77);
  assertEquals(memory.mapShared(fd, 0, 4 * 1024 ** 3), -22, "past the end would be fatal to touch");
  assertEquals(memory.mapShared(fd, 0, 0), -22);
  memory.unmap(again);
  closeFd(fd);
});

Deno.test("the arena is the same in every window, and what was mapped is where it was after others went", () => {
  const memory = new LinuxMemory();
  const fd = memory.createShared("test", 5 * 1024 ** 3);
  const pieces = memory.mapShared(fd, 0, 5 * 1024 ** 3);
  if (typeof pieces === "number") throw new Error(`errno ${-pieces}`);
  memory.windows[0].bytes[12345] = 9;
  for (const window of memory.windows) assertEquals(window.bytes[12345], 9);
  memory.windows[0].bytes[1024 * 1024] = 8;
  memory.trimArena(1024 * 1024);
  for (const window of memory.windows) {
    assertEquals([window.bytes[12345], window.bytes[1024 * 1024]], [0, 8]);
  }
  memory.unmap(pieces);
  const windows = memory.windows.length;
  for (let i = 0; i < 20; i++) {
    const next = memory.mapShared(fd, 0, 5 * 1024 ** 3);
    if (typeof next === "number") throw new Error(`errno ${-next}`);
    memory.unmap(next);
  }
  assertEquals(memory.windows.length, windows, "space of the past is used again");
  closeFd(fd);
});
