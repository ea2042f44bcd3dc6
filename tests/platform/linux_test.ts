/**
 * Unix sockets with descriptors, eventfds and the ring, on the real kernel.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { EventFdWatcher } from "../../agent/platform/linux/eventfd.ts";
import {
  check,
  closeFd,
  createEventFd,
  cString,
  libc,
  mapMemory,
  resultOf,
  signalEventFd,
  SystemError,
  viewOf,
} from "../../agent/platform/linux/libc.ts";
import { isSealed, LinuxMemory } from "../../agent/platform/linux/memory.ts";
import { IORING_OP_POLL_ADD, IORING_OP_SEND, Ring } from "../../agent/platform/linux/ring.ts";
import { Tcp } from "../../agent/platform/linux/tcp.ts";
import {
  type Connection,
  connectUnix,
  receivedBytes,
  receiveWithFds,
  sendWithFds,
  SocketWatcher,
  unixAddress,
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

/** A connected pair of unix sockets. */
function socketPair(directory: string): { near: number; far: number } {
  const path = `${directory}/pair.sock`;
  const listening = check(libc.socket(1, 1, 0), "socket");
  const address = unixAddress(path);
  check(libc.bind(listening, address, address.length), "bind");
  check(libc.listen(listening, 1), "listen");
  const near = connectUnix(path);
  const far = check(libc.accept4(listening, null, null, 0), "accept");
  closeFd(listening);
  return { near, far };
}

/** A ring with a socket to send on, and how often each token has ended. */
function sendingRing(
  test: (context: {
    ring: Ring;
    near: number;
    /** Token → result of what has ended. */
    ended: Map<number, number>;
    send(token: number, length: number): void;
    /** Ends when it is submitted. */
    signalled(token: number): void;
    /** Ends after so many milliseconds. */
    timer(token: number, ms: number): void;
  }) => void,
): void {
  const directory = Deno.makeTempDirSync();
  const ring = new Ring();
  const { near, far } = socketPair(directory);
  const event = createEventFd();
  signalEventFd(event);
  try {
    const ended = new Map<number, number>();
    const kind = ring.register({ ringDone: (token, result) => ended.set(token, result) });
    const address = mapMemory({ lengthBytes: 1 << 20, flags: 0x22 });
    const prepare = (token: number, opcode: number, fd: number, at: number, length: number) => {
      const low = (address + at) >>> 0, high = (address + at) / 2 ** 32;
      ring.prepare(kind, token, opcode, 0, fd, low, high, length, 0, 0, 0);
    };
    test({
      ring,
      near,
      ended,
      send: (token, length) => prepare(token, IORING_OP_SEND, near, 4096, length),
      signalled: (token) => {
        ring.prepare(kind, token, IORING_OP_POLL_ADD, 0, event, 0, 0, 0, 0, 0, POLLIN);
      },
      timer(token, ms) {
        new BigInt64Array(viewOf(address, 16).buffer).set([0n, BigInt(Math.round(ms * 1e6))]);
        prepare(token, IORING_OP_TIMEOUT, -1, 0, 1);
      },
    });
  } finally {
    ring.close();
    for (const fd of [near, far, event]) closeFd(fd);
    Deno.removeSync(directory, { recursive: true });
  }
}
const IORING_OP_TIMEOUT = 11, ETIME = 62, POLLIN = 1;

Deno.test("a sleep goes on over the end of a message that it sends, up to what somebody waits for", () => {
  sendingRing(({ ring, ended, send, timer }) => {
    send(1, 64);
    ring.noteInline();
    timer(2, 0.8);
    ring.enter(60_000);
    assertEquals(ring.dispatch(), 2);
    assertEquals(ended.get(1), 64);
    assertEquals(ended.get(2), -ETIME);
    // Where something waits for it after all, and where nobody has said so, it ends with the first.
    send(5, 64);
    ring.noteInline();
    ring.awaitInline();
    timer(6, HANGS_MS);
    ring.enter(60_000);
    assertEquals(ring.dispatch(), 1);
    assertEquals([...ended.keys()].slice(2), [5]);
    send(3, 64);
    timer(4, HANGS_MS);
    ring.enter(60_000);
    assertEquals(ring.dispatch(), 1);
    assertEquals([...ended.keys()].slice(3), [3]);
  });
});

Deno.test("a message that the other end does not take holds nothing else up", () => {
  sendingRing(({ ring, near, ended, send, signalled }) => {
    while (sendWithFds(near, new Uint8Array(16_384)) > 0);
    send(1, 64);
    ring.noteInline();
    signalled(2);
    const startMs = performance.now();
    ring.enter(HANGS_MS);
    assert(performance.now() - startMs < HANGS_MS, "it waits for the message");
    ring.dispatch();
    assertEquals([...ended], [[2, POLLIN]]);
    // Said once: from then on it is waited for as anything else.
    signalled(3);
    ring.enter(HANGS_MS);
    ring.dispatch();
    assertEquals([...ended.keys()], [2, 3]);
  });
});
/** Far beyond what a sleep takes that is not stuck. */
const HANGS_MS = 5000;

Deno.test("what has happened is seen without a call, and what nobody waits for goes with any", () => {
  sendingRing(({ ring, ended, send, timer }) => {
    timer(1, 0.5);
    ring.noteIdle();
    assertEquals(ring.unsubmitted, 0);
    ring.enter(0);
    assertEquals([ring.isSignalled, ring.dispatch()], [false, 0]);
    // Linux before 6.1 has a completion at once, and says nothing.
    const endMs = performance.now() + HANGS_MS;
    while (!ring.isSignalled && ring.ready === 0) {
      assert(performance.now() < endMs, "it is not seen");
    }
    ring.enter(0);
    assertEquals([ring.isSignalled, ring.dispatch()], [false, 1]);
    assertEquals([...ended], [[1, -ETIME]]);
    // What something hangs on counts beside it, and takes it along.
    timer(2, 0.5);
    ring.noteIdle();
    send(3, 64);
    assertEquals(ring.unsubmitted, 1);
    ring.submit();
    assertEquals(ring.unsubmitted, 0);
    while (!ended.has(2)) {
      ring.enter(HANGS_MS);
      ring.dispatch();
    }
    assertEquals([...ended.keys()], [1, 3, 2]);
  });
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

Deno.test("an errno that a call cannot have left is looked at again, and believed when it stays", () => {
  const EBADF = 9, ENOENT = 2, EAGAIN = 11;
  const fail: Record<number, () => number> = {
    [EBADF]: () => libc.shutdown(-1, 0),
    [ENOENT]: () => libc.open(cString("/nowhere/at all"), 0, 0),
    [EAGAIN]: () => libc.read(full, new Uint8Array(8), 8n) as number,
  };
  const full = createEventFd(); // of which nothing can be read: EAGAIN
  try {
    const seen = (codes: readonly number[], result = -1) => {
      let calls = 0;
      const call = () => calls < codes.length ? fail[codes[calls++]]() : (calls++, result);
      return [resultOf(call, [EAGAIN]), calls];
    };
    assertEquals(seen([EAGAIN]), [-EAGAIN, 1]);
    assertEquals(seen([ENOENT, EAGAIN]), [-EAGAIN, 2]);
    assertEquals(seen([ENOENT], 7), [7, 2]);
    assertEquals(seen([], 0), [0, 1]);
    assertEquals(seen([ENOENT, EBADF, EBADF, EBADF]), [-EBADF, 3]);
  } finally {
    closeFd(full);
  }
});

const IPPROTO_TCP = 6, TCP_CONGESTION = 13;
const algorithms = Deno.readTextFileSync("/proc/sys/net/ipv4/tcp_available_congestion_control");

/** The congestion control of a connection that began with `algorithm`. */
function congestionControlAfter(algorithm: string): string {
  const ring = new Ring();
  const fd = check(libc.socket(2, /* AF_INET */ 1, /* SOCK_STREAM */ 0), "socket");
  try {
    const wanted = new TextEncoder().encode(algorithm);
    check(libc.setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, wanted, wanted.length), algorithm);
    assert(new Tcp(ring).adopt(fd, "127.0.0.1:1") !== null);
    const name = new Uint8Array(16);
    const length = new Uint8Array(new Uint32Array([16]).buffer);
    check(libc.getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, length), "getsockopt");
    return new TextDecoder().decode(name).replace(/\0.*/s, "");
  } finally {
    closeFd(fd);
    ring.close();
  }
}

Deno.test({
  name: "a connection is taken from BBR, which stops sending to measure",
  // The kernel is another one: nothing to take it from.
  ignore: !algorithms.split(/\s/).includes("bbr"),
  fn: () => assert(["cubic", "reno"].includes(congestionControlAfter("bbr"))),
});

Deno.test("a connection keeps any other congestion control", () => {
  assertEquals(congestionControlAfter("reno"), "reno");
});
