/**
 * Long-running work of the store (recovery, checkpoint, cleaner, scrub) as coroutines.
 *
 * A task is a generator. It asks the disk for something and yields; the completion resumes it.
 * Nothing here is a promise: a task runs on, synchronously, inside `diskDone` or the end of a turn,
 * and stops at its next yield. That keeps each of these machines readable from top to bottom
 * without a state variable. Generators cost an allocation per request and so have no place on the
 * data path.
 *
 * Invariants: a task has at most `REQUESTS_MAX` requests under way and is resumed once for each; a
 * task that waits for the turn is resumed at the end of each turn and must be able to find nothing
 * to do.
 *
 * @module
 */
import type { Disk, IoVector } from "../platform/platform.ts";

/** What a task waits for. */
export const enum Wait {
  /** One of its disk requests. */
  Disk = 0,
  /** The end of this turn or the next tick. */
  Turn = 1,
}

/** A coroutine; what `yield` returns is the result of the disk request. */
export type Task<T = void> = Generator<Wait, T, number>;

/** Requests of one task under way: read-ahead while something is written. */
export const REQUESTS_MAX = 8;

/**
 * Tasks at a time: one of each kind (open, close, checkpoint, cleaner, scrub, allocation, resize)
 * and spare.
 */
export const TASKS_MAX = 12;

/** What a task does its I/O with. */
export class TaskIo {
  /** Requests under way. */
  pending = 0;
  readonly #disk: Disk;
  readonly #token: number;

  constructor(disk: Disk, token: number) {
    this.#disk = disk;
    this.#token = token;
  }

  /** Begins a read; a later `yield Wait.Disk` returns its result. */
  beginRead(offsetBytes: number, buffer: number, lengthBytes: number): void {
    this.#count();
    this.#disk.read(this.#token, offsetBytes, buffer, lengthBytes);
  }

  /** Begins a write of one range. */
  beginWrite(offsetBytes: number, buffer: number, lengthBytes: number): void {
    this.#count();
    const vector: IoVector = {
      count: 1,
      offsets: Uint32Array.of(buffer),
      lengths: Uint32Array.of(lengthBytes),
    };
    this.#disk.write(this.#token, offsetBytes, vector);
  }

  /** Reads; returns bytes or a negative errno. */
  *read(offsetBytes: number, buffer: number, lengthBytes: number): Task<number> {
    this.beginRead(offsetBytes, buffer, lengthBytes);
    return yield Wait.Disk;
  }

  /** Writes one range. */
  *write(offsetBytes: number, buffer: number, lengthBytes: number): Task<number> {
    this.beginWrite(offsetBytes, buffer, lengthBytes);
    return yield Wait.Disk;
  }

  /** Makes all writes that have completed durable. */
  *sync(): Task<number> {
    this.#count();
    this.#disk.sync(this.#token);
    return yield Wait.Disk;
  }

  /** Allocates a range. */
  *allocate(offsetBytes: number, lengthBytes: number): Task<number> {
    this.#count();
    this.#disk.allocate(this.#token, offsetBytes, lengthBytes);
    return yield Wait.Disk;
  }

  /** Punches a range. */
  *punch(offsetBytes: number, lengthBytes: number): Task<number> {
    this.#count();
    this.#disk.punch(this.#token, offsetBytes, lengthBytes);
    return yield Wait.Disk;
  }

  #count(): void {
    if (++this.pending > REQUESTS_MAX) throw new Error("a task has too many requests under way");
  }
}

interface Running {
  readonly task: Task;
  readonly io: TaskIo;
  waits: Wait;
}

/** Runs tasks. */
export class Tasks {
  readonly #disk: Disk;
  readonly #token: (slot: number) => number;
  readonly #slots: (Running | null)[] = new Array(TASKS_MAX).fill(null);
  #count = 0;

  /** @param token makes the disk token of a slot */
  constructor(disk: Disk, token: (slot: number) => number) {
    this.#disk = disk;
    this.#token = token;
  }

  /** Tasks that have not ended. */
  get count(): number {
    return this.#count;
  }

  /** Disk requests of all tasks under way. */
  get pending(): number {
    let pending = 0;
    for (const running of this.#slots) pending += running?.io.pending ?? 0;
    return pending;
  }

  /** Starts a task; it runs up to its first yield. */
  start(make: (io: TaskIo) => Task): void {
    const slot = this.#slots.indexOf(null);
    if (slot < 0) throw new Error("too many tasks");
    const io = new TaskIo(this.#disk, this.#token(slot));
    const running: Running = { task: make(io), io, waits: Wait.Turn };
    this.#slots[slot] = running;
    this.#count++;
    this.#step(slot, running, 0);
  }

  /** A disk request of slot `slot` has ended. */
  diskDone(slot: number, result: number): void {
    const running = this.#slots[slot];
    if (running === null) return;
    running.io.pending--;
    this.#step(slot, running, result);
  }

  /** Resumes the tasks that wait for the turn. */
  endTurn(): void {
    if (this.#count === 0) return;
    for (let slot = 0; slot < TASKS_MAX; slot++) {
      const running = this.#slots[slot];
      if (running !== null && running.waits === Wait.Turn) this.#step(slot, running, 0);
    }
  }

  #step(slot: number, running: Running, result: number): void {
    const { done, value } = running.task.next(result);
    if (!done) {
      running.waits = value;
      return;
    }
    this.#slots[slot] = null;
    this.#count--;
  }
}
