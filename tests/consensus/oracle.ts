/**
 * What must hold of a Raft group as a whole, checked from outside while it runs.
 *
 * - election safety: one leader per term;
 * - log matching: an index and a term name one entry, with one entry before it;
 * - leader completeness: a new leader has every entry that is committed;
 * - state machine safety: every node applies the same entries, a snapshot is what applying leads
 *   to;
 * - reads: an index is not below what was committed anywhere when the read was asked for;
 * - membership: committed configurations differ by one node, so that majorities overlap;
 * - durability: what a node has applied it still has after a crash.
 *
 * @module
 */
import { crc32c } from "../../agent/consensus/checksum.ts";
import { type Configuration, decodeConfiguration } from "../../agent/consensus/configuration.ts";
import { type Entry, ENTRY_CONFIGURATION } from "../../agent/consensus/log.ts";

/** A promise that was not kept. */
export class Violation extends Error {
  override readonly name = "Violation";
}

/** State of the state machine of the tests: a hash over all that it applied. */
export function applyTo(hash: number, entry: Entry): number {
  const head = new Uint8Array(new Float64Array([entry.index, entry.term, entry.kind]).buffer);
  return crc32c(entry.data, crc32c(head, hash));
}

/** What one node's log looks like from outside: terms by index, and where it begins. */
export class LogView {
  snapshotIndex = 0;
  snapshotTerm = 0;
  readonly terms = new Map<number, number>();
  last = 0;

  termOf(index: number): number | undefined {
    return index === this.snapshotIndex ? this.snapshotTerm : this.terms.get(index);
  }

  begin(snapshotIndex: number, snapshotTerm: number): void {
    this.terms.clear();
    this.snapshotIndex = this.last = snapshotIndex;
    this.snapshotTerm = snapshotTerm;
  }

  append(entry: Entry): void {
    for (let index = this.last; index >= entry.index; index--) this.terms.delete(index);
    this.terms.set(entry.index, entry.term);
    this.last = entry.index;
  }
}

/** See the file's head. */
export class Oracle {
  readonly #leaders = new Map<number, number>();
  readonly #entries = new Map<string, { hash: number; previousTerm: number | undefined }>();
  /** Terms of committed entries, by index. */
  readonly #committed: number[] = [0];
  /** State after each index. */
  readonly #states: number[] = [0];
  #configuration: Configuration | null = null;
  elections = 0;

  /** Highest index that any node has known to be committed. */
  get commit(): number {
    return this.#committed.length - 1;
  }

  /** A node holds this entry behind one of that term. */
  holds(entry: Entry, previousTerm: number | undefined): void {
    const key = `${entry.index}:${entry.term}`;
    const hash = crc32c(entry.data, entry.kind);
    const known = this.#entries.get(key);
    if (known === undefined) {
      this.#entries.set(key, { hash, previousTerm });
    } else if (known.hash !== hash || known.previousTerm !== previousTerm) {
      throw new Violation(`log matching: two entries ${key}`);
    }
  }

  leads(node: number, term: number, view: LogView): void {
    const other = this.#leaders.get(term);
    if (other === node) return;
    if (other !== undefined) {
      throw new Violation(`election safety: ${other} and ${node} lead in term ${term}`);
    }
    this.#leaders.set(term, node);
    this.elections++;
    for (let index = view.snapshotIndex; index <= this.commit; index++) {
      if (view.termOf(index) !== this.#committed[index]) {
        throw new Violation(`leader completeness: ${node} leads in ${term} without entry ${index}`);
      }
    }
  }

  /** A node takes everything up to `commit` for committed; all above `from` is looked at. */
  commits(node: number, from: number, commit: number, view: LogView): void {
    for (let index = Math.max(from + 1, view.snapshotIndex); index <= commit; index++) {
      const term = view.termOf(index);
      if (term === undefined) {
        throw new Violation(`commit: ${node} commits ${index}, which it does not have`);
      }
      if (index === this.commit + 1) this.#committed.push(term);
      else if (index > this.commit) throw new Violation(`commit: ${node} jumps to ${index}`);
      else if (this.#committed[index] !== term) {
        throw new Violation(`commit: ${node} has another entry ${index}`);
      }
    }
  }

  /** A node has applied an entry and has that state now. */
  applies(node: number, entry: Entry, state: number): void {
    if (entry.index > this.commit) throw new Violation(`${node} applies ${entry.index} too early`);
    const known = this.#states[entry.index];
    if (known === undefined) {
      if (this.#states.length !== entry.index) throw new Violation(`${node} skips entries`);
      this.#states.push(state);
      if (entry.kind === ENTRY_CONFIGURATION) this.#configured(decodeConfiguration(entry.data)!);
    } else if (known !== state) {
      throw new Violation(`state machine safety: ${node} differs at ${entry.index}`);
    }
  }

  /** A node has got a snapshot with that state. */
  restores(node: number, index: number, state: number): void {
    if (this.#states[index] !== state) throw new Violation(`${node} restores another ${index}`);
  }

  /** A read that was asked for when `floor` was committed may be answered at `index`. */
  reads(node: number, floor: number, index: number): void {
    if (index < floor) {
      throw new Violation(`read: ${node} answers at ${index}, but ${floor} was committed`);
    }
  }

  #configured(next: Configuration): void {
    const before = this.#configuration;
    this.#configuration = next;
    if (before === null) return;
    const moved = (a: readonly number[], b: readonly number[]) =>
      a.filter((each) => !b.includes(each)).length;
    const voters = moved(before.voters, next.voters) + moved(next.voters, before.voters);
    const learners = moved(before.learners, next.learners) + moved(next.learners, before.learners);
    if (voters > 1 || learners > 1 || voters + learners === 0) {
      throw new Violation(`membership: ${JSON.stringify(before)} to ${JSON.stringify(next)}`);
    }
  }
}
