/**
 * The guest's side of `queue_race_test.ts`: a driver on a thread of its own, which offers one entry at a time,
 * kicks where it is asked to, and waits until the entry is used.
 *
 *     control   0 kicks | 1 the end | 2 and 3 always 0
 *
 * @module
 */

/** What the driver is told. Offsets count 16-bit words. */
export interface Race {
  readonly memory: SharedArrayBuffer;
  readonly control: SharedArrayBuffer;
  readonly available: number;
  readonly used: number;
  readonly size: number;
  readonly eventIndex: boolean;
  readonly rounds: number;
}

/** Looks at the used ring before it waits a little. */
const LOOKS = 2000;

function drive({ memory, control, available, used, size, eventIndex, rounds }: Race): void {
  const words = new Uint16Array(memory);
  const signals = new Int32Array(control);
  const kick = () => {
    Atomics.add(signals, 0, 1);
    Atomics.notify(signals, 0);
  };
  let index = 0;
  for (let round = 0; round < rounds; round++) {
    const before = index;
    words[available + 2 + index % size] = index % size;
    index = (index + 1) & 0xffff;
    // Linux has virtio_mb() between this store and that load.
    Atomics.store(words, available + 1, index);
    if (eventIndex) {
      const event = Atomics.load(words, used + 2 + size * 4);
      if (((index - event - 1) & 0xffff) < ((index - before) & 0xffff)) kick();
    } else if ((Atomics.load(words, used) & 1) === 0) kick();
    for (let looks = 0; Atomics.load(words, used + 1) !== index; looks++) {
      if (Atomics.load(signals, 1) !== 0) return;
      if (looks > LOOKS) Atomics.wait(signals, 2, 0, 0.05);
    }
    // The two sides drift past one another.
    for (let i = round * 7919 % 97; i > 0; i--) Atomics.load(signals, 3);
  }
  Atomics.store(signals, 1, 1);
  kick();
}

const port = self as unknown as Worker;
port.onmessage = (event: MessageEvent<Race>) => drive(event.data);
port.postMessage("ready");
