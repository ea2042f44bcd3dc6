/**
 * Guests that go with requests under way while their agent lives, as a QEMU does that is killed.
 *
 *     it runs ─▶ it has gone: nobody hears any more how its requests end
 *                  ├─ all of them end ────▶ the lease goes back in good order
 *                  └─ it takes too long ──▶ they are given up ──▶ the lease goes back as after a crash
 *
 * As `agent/disk_server.ts` has it (`DiskServer.giveUp`), but that how long is too long is drawn anew each time. Whoever opens the disk
 * on the same node waits until then. By chances of its own.
 *
 * @module
 */
import type { Prng } from "../../agent/base/prng.ts";
import type { DiskOracle, Guest } from "./guest.ts";
import type { Process, SimNode } from "./node.ts";

/** How long what a guest has left may take, in milliseconds; the last is what agents wait. */
const LEFT_BEHIND_MS = [0, 0, 1, 5, 100, 15_000];
/** How soon somebody starts the next guest, at most, in milliseconds. */
const BACK_MS_MAX = 1000;

/** How long one that is about to go may wait for a moment at which it has requests under way, in milliseconds. */
const WAIT_MS_MAX = 200;

/** What it needs of the run. */
export interface GoingHost {
  /** The newest guest of each disk; one that goes is taken out. */
  readonly guests: Map<number, Guest>;
  after(delayMs: number, run: () => void): void;
  /** Starts a guest on some node that does not have the disk, unless there is one. */
  open(oracle: DiskOracle): void;
  note(node: SimNode, message: string): void;
}

/** A guest that has gone, in a process that has it still. */
interface Leaving {
  readonly process: Process;
  readonly whenOver: (() => void)[];
}

/** See the head of the file. */
export class Going {
  /** Guests that have gone, and those of them whose requests were given up. */
  gone = 0;
  givenUp = 0;
  readonly #leaving = new Map<Guest, Leaving>();

  constructor(readonly host: GoingHost, readonly random: Prng) {}

  /** Some guest goes, sooner or later, as soon as it has requests under way. */
  step(): void {
    const guests = [...this.host.guests.values()];
    if (guests.length > 0) this.#wait(this.random.pick(guests), WAIT_MS_MAX);
  }

  #wait(guest: Guest, leftMs: number): void {
    if (guest.isStopped || this.host.guests.get(guest.oracle.id) !== guest) return;
    if (guest.oldestMs >= 0 || leftMs <= 0) return this.#go(guest);
    const stepMs = this.random.fraction() * 2;
    this.host.after(stepMs, () => this.#wait(guest, leftMs - stepMs));
  }

  /** Those that a node still has: calls `done` for each once it has not, and says how many these are. */
  whenOver(node: SimNode, done: () => void): number {
    let count = 0;
    for (const [guest, { process, whenOver }] of this.#leaving) {
      if (guest.node !== node || process.isDead) continue;
      count++;
      whenOver.push(done);
    }
    return count;
  }

  #go(guest: Guest): void {
    const { node, volume, oracle } = guest;
    const process = node.process!;
    const leaving: Leaving = { process, whenOver: [] };
    this.#leaving.set(guest, leaving);
    this.host.guests.delete(oracle.id);
    this.host.note(node, `its guest of ${oracle.name} has gone`);
    this.gone++;
    this.host.after(this.random.below(BACK_MS_MAX), () => this.host.open(oracle));
    let isUnclean = false;
    guest.leave(() => {
      this.#leaving.delete(guest);
      if (process.isDead) return;
      node.detach(oracle.id, volume, isUnclean);
      for (const done of leaving.whenOver) done();
    });
    this.host.after(this.random.pick(LEFT_BEHIND_MS), () => {
      // Before it has the lease there is nothing to give up.
      if (!this.#leaving.has(guest) || process.isDead || !guest.isBegun) return;
      this.host.note(node, `what its guest of ${oracle.name} has left is given up`);
      this.givenUp++;
      isUnclean = true;
      node.giveUp(oracle.id);
    });
  }
}
