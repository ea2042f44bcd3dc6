/**
 * The durable state: a golden file, crashes between any two writes, damage, and recovery.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { type Configuration, encodeConfiguration } from "../../agent/consensus/configuration.ts";
import {
  ENTRY_BYTES_MAX,
  RECOVERY_TERMS,
  SNAPSHOT_BYTES_MAX,
  VALUE_BYTES_MAX,
} from "../../agent/consensus/limits.ts";
import type { Entry, Snapshot } from "../../agent/consensus/log.ts";
import { Raft } from "../../agent/consensus/raft.ts";
import type { Persist, RaftState } from "../../agent/consensus/ready.ts";
import { recover, standingOf } from "../../agent/consensus/recover.ts";
import {
  load,
  type Loaded,
  STORAGE_VERSION,
  type StorageWrite,
  writeInitial,
} from "../../agent/consensus/storage.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { Group } from "./group.ts";

type Disk = Map<string, Uint8Array>;

function writeTo(disk: Disk, writes: readonly StorageWrite[]): void {
  for (const { key, value } of writes) {
    if (value === null) disk.delete(key);
    else disk.set(key, value);
  }
}

function loaded(disk: Disk, id = 1): Loaded {
  return unwrap(load(disk, id))!;
}

function diskOf(state: RaftState, id = 1): Disk {
  const disk: Disk = new Map();
  writeTo(disk, writeInitial(id, state));
  return disk;
}

const members: Configuration = { voters: [1, 2], learners: [3] };

function entry(index: number, term: number, bytes = 3): Entry {
  return { index, term, kind: 1, data: new Uint8Array(bytes).fill(index) };
}

function persistOf(part: Partial<Persist>): Persist {
  return {
    token: 1,
    hardState: null,
    snapshot: null,
    isLogReplaced: false,
    entries: [],
    commit: 0,
    messages: [],
    ...part,
  };
}

/** What the golden file of version 1 was made of. */
function goldenDisk(): Disk {
  const disk = diskOf(Raft.bootstrap(1));
  const { storage } = loaded(disk);
  const configuration = encodeConfiguration(members);
  const steps: Partial<Persist>[] = [
    { hardState: { term: 2, vote: 1 }, entries: [entry(2, 2), entry(3, 2)], commit: 1 },
    { entries: [{ index: 4, term: 2, kind: 2, data: configuration }], commit: 3 },
    {
      snapshot: { index: 3, term: 2, configuration: { voters: [1], learners: [] }, data: bytes(9) },
    },
    { hardState: { term: 2 ** 40, vote: 65535 }, entries: [entry(5, 3)], commit: 4 },
  ];
  for (const step of steps) writeTo(disk, storage.write(persistOf(step)));
  return disk;
}

function bytes(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, place) => place);
}

function textOf(disk: Disk): string {
  return [...disk].sort().map(([key, value]) => {
    return `${key} ${[...value].map((byte) => byte.toString(16).padStart(2, "0")).join("")}\n`;
  }).join("");
}

Deno.test("the golden state of version 1 reads as it did, and is what is written", () => {
  assertEquals(STORAGE_VERSION, 1, "a new version needs a golden file and a line here");
  const text = Deno.readTextFileSync(new URL("golden/storage_v1.txt", import.meta.url));
  assertEquals(textOf(goldenDisk()), text);
  const disk: Disk = new Map(
    text.trim().split("\n").map((line) => {
      const [key, digits] = line.split(" ");
      return [key, Uint8Array.from(digits.match(/../g)!, (pair) => parseInt(pair, 16))];
    }),
  );
  assertEquals(loaded(disk).state, {
    term: 2 ** 40,
    vote: 65535,
    snapshot: { index: 3, term: 2, configuration: { voters: [1], learners: [] }, data: bytes(9) },
    entries: [{ index: 4, term: 2, kind: 2, data: encodeConfiguration(members) }, entry(5, 3)],
    commit: 4,
  });
});

Deno.test("initial states come back as they were", () => {
  for (const state of [Raft.bootstrap(1), Raft.bootstrap(1, bytes(70_000)), Raft.joining()]) {
    assertEquals(loaded(diskOf(state)).state, state);
  }
  assertEquals(unwrap(load(new Map([["map", new Uint8Array(1)]]), 1)), null);
});

Deno.test("state of another node, of a newer version or without its head is refused", () => {
  const disk = diskOf(Raft.bootstrap(1));
  const other = load(disk, 2);
  assertEquals(other.ok ? "" : other.error.code, "invalid");
  disk.delete("raft/state");
  const headless = load(disk, 1);
  assertEquals(headless.ok ? "" : headless.error.code, "corrupt");
});

Deno.test("the entries of one persist share a value, and long ones fit theirs", () => {
  const { storage } = loaded(diskOf(Raft.bootstrap(1)));
  const many = Array.from({ length: 300 }, (_, place) => entry(place + 2, 1, 100));
  assertEquals(storage.write(persistOf({ entries: many })).length, 1);
  const long = Array.from({ length: 3 }, (_, place) => entry(place + 302, 1, ENTRY_BYTES_MAX));
  const writes = storage.write(persistOf({ entries: long }));
  assertEquals(writes.length, 3);
  const data = new Uint8Array(SNAPSHOT_BYTES_MAX);
  const snapshot = { index: 304, term: 1, configuration: members, data };
  writes.push(...storage.write(persistOf({ snapshot })));
  for (const { value } of writes) assert((value?.length ?? 0) <= VALUE_BYTES_MAX);
});

Deno.test("a persist of nothing writes nothing", () => {
  const { storage } = loaded(diskOf(Raft.bootstrap(1)));
  assertEquals(storage.write(persistOf({ commit: 1 })), []);
});

/** A state and the persists that make it, at random: what a follower may live through. */
class Model {
  term = 1;
  vote = 0;
  snapshot: Snapshot = Raft.joining().snapshot;
  entries: Entry[] = [];
  commit = 0;

  constructor(readonly random: Prng) {}

  get last(): number {
    return this.snapshot.index + this.entries.length;
  }

  state(): RaftState {
    const { term, vote, snapshot, entries, commit } = this;
    return { term, vote, snapshot, entries: [...entries], commit };
  }

  termOf(index: number): number {
    return index === this.snapshot.index
      ? this.snapshot.term
      : this.entries[index - this.snapshot.index - 1].term;
  }

  next(): Persist {
    const { random } = this;
    const part: Partial<Persist> = {};
    if (random.chance(0.3)) {
      this.term++;
      this.vote = random.below(3);
      Object.assign(part, { hardState: { term: this.term, vote: this.vote } });
    }
    const choice = random.below(10);
    if (choice === 0 && this.commit > this.snapshot.index) {
      const index = random.between(this.snapshot.index + 1, this.commit);
      const snapshot = this.#snapshotAt(index, this.termOf(index));
      this.entries = this.entries.slice(index - this.snapshot.index);
      this.snapshot = snapshot;
      Object.assign(part, { snapshot });
    } else if (choice === 1) {
      const index = this.commit + random.between(1, 8);
      // A log that led up to it would have been kept.
      const own = index <= this.last ? this.termOf(index) : 0;
      const snapshot = this.#snapshotAt(index, own === this.term ? ++this.term : this.term);
      if (own === this.term - 1) Object.assign(part, { hardState: this.state() });
      this.snapshot = snapshot;
      this.entries = [];
      this.commit = index;
      Object.assign(part, { snapshot, isLogReplaced: true });
    }
    if (random.chance(0.8)) {
      const isConflict = this.last > this.commit && random.chance(0.4);
      if (isConflict) {
        this.term++;
        Object.assign(part, { hardState: { term: this.term, vote: this.vote } });
      }
      const first = isConflict ? random.between(this.commit + 1, this.last) : this.last + 1;
      const added = Array.from(
        { length: random.between(1, 5) },
        (_, place) => entry(first + place, this.term, random.chance(0.01) ? 40_000 : 5),
      );
      this.entries.splice(first - this.snapshot.index - 1, Infinity, ...added);
      Object.assign(part, { entries: added });
    }
    this.commit = Math.max(this.commit, this.last - random.below(6));
    const hardState = part.hardState && { term: this.term, vote: this.vote };
    return persistOf({ ...part, ...(hardState ? { hardState } : {}), commit: this.commit });
  }

  #snapshotAt(index: number, term: number): Snapshot {
    const data = new Uint8Array(this.random.chance(0.1) ? 130_000 : this.random.below(10)).fill(
      index,
    );
    return { index, term, configuration: members, data };
  }
}

function isIn(state: RaftState, index: number, term: number): boolean {
  const { snapshot, entries } = state;
  if (index === snapshot.index) return term === snapshot.term;
  return entries[index - snapshot.index - 1]?.term === term;
}

/** Is what was loaded in the middle of a persist the old, the new, or sound in between? */
function checkBetween(state: RaftState, before: RaftState, after: RaftState, what: string): void {
  const isOldHard = state.term === before.term && state.vote === before.vote;
  const isNewHard = state.term === after.term && state.vote === after.vote;
  assert(isOldHard || isNewHard, `${what}: term ${state.term} vote ${state.vote}`);
  const { index } = state.snapshot;
  assert(index === before.snapshot.index || index === after.snapshot.index, what);
  const known = new Set(
    [...before.entries, ...after.entries].map((each) => `${each.index}/${each.term}`),
  );
  for (const each of state.entries) assert(known.has(`${each.index}/${each.term}`), what);
  const isOld = state.entries.some((each) => !isIn(after, each.index, each.term));
  // Entries that the persist is to remove are there only behind what they were behind before.
  if (isOld) assert(isIn(before, index, state.snapshot.term), `${what}: a log that is replaced`);
  const last = index + state.entries.length;
  assert(last >= before.commit, `${what}: ends at ${last}, ${before.commit} was committed`);
  assert(state.commit <= Math.max(before.commit, after.commit), what);
  for (const each of before.entries) {
    if (each.index > before.commit || each.index <= index) continue;
    assertEquals(state.entries[each.index - index - 1].term, each.term, what);
  }
}

Deno.test("a crash between any two writes leaves the old, the new, or a sound log between", () => {
  let crashes = 0;
  for (let seed = 1; seed <= 30; seed++) {
    const model = new Model(new Prng(seed));
    const disk = diskOf(Raft.joining());
    let { storage } = loaded(disk);
    writeTo(disk, storage.write(persistOf({ hardState: { term: 1, vote: 0 } })));
    for (let step = 0; step < 25; step++) {
      const before = model.state();
      const persist = model.next();
      const after = model.state();
      const writes = storage.write(persist);
      for (let count = 0; count <= writes.length; count++) {
        const crashed = new Map(disk);
        writeTo(crashed, writes.slice(0, count));
        const what = `seed ${seed}, step ${step}, ${count} of ${writes.length} writes`;
        const result = load(crashed, 1);
        if (!result.ok) throw new Error(`${what}: ${result.error.message}`);
        checkBetween(result.value!.state, before, after, what);
        crashes++;
        if (count === writes.length) {
          assertEquals({ ...result.value!.state, commit: 0 }, { ...after, commit: 0 }, what);
        } else if (model.random.chance(0.1)) {
          // Begin again from there with the same persist: leftovers do no harm, nor another crash.
          for (const write of result.value!.storage.write(persist)) {
            writeTo(crashed, [write]);
            const again = load(crashed, 1);
            if (!again.ok) throw new Error(`${what}, again: ${again.error.message}`);
          }
          const end = loaded(crashed).state;
          assertEquals({ ...end, commit: 0 }, { ...after, commit: 0 }, `${what}, again`);
        }
      }
      writeTo(disk, writes);
      if (model.random.chance(0.3)) ({ storage } = loaded(disk));
    }
  }
  assert(crashes > 2000, `${crashes} crashes`);
});

Deno.test("crash after crash while a replaced log is being removed, it never comes back", () => {
  const disk = diskOf(Raft.bootstrap(1));
  const { storage } = loaded(disk);
  for (let index = 2; index <= 9; index++) {
    writeTo(disk, storage.write(persistOf({ entries: [entry(index, 1)] })));
  }
  const snapshot = { index: 4, term: 2, configuration: members, data: bytes(9) };
  const writes = storage.write(persistOf({
    hardState: { term: 2, vote: 0 },
    snapshot,
    isLogReplaced: true,
  }));
  const head = writes.findIndex(({ key }) => key === "raft/snapshot") + 1;
  writeTo(disk, writes.slice(0, head));
  for (let crash = 0; crash < 12; crash++) {
    const { state, storage } = loaded(disk);
    assertEquals([state.snapshot.index, state.entries], [4, []], `crash ${crash}`);
    const next = storage.write(persistOf({ hardState: { term: 3 + crash, vote: 0 } }));
    writeTo(disk, next.slice(0, 1));
  }
  assertEquals([...disk.keys()].filter((key) => key.startsWith("raft/log")), []);
});

Deno.test("values do not pile up: what is replaced is removed", () => {
  const disk = diskOf(Raft.bootstrap(1));
  const { storage } = loaded(disk);
  for (let round = 0; round < 50; round++) {
    const index = round * 10 + 2;
    const entries = Array.from({ length: 10 }, (_, place) => entry(index + place, 1));
    for (const each of entries) writeTo(disk, storage.write(persistOf({ entries: [each] })));
    const snapshot = { index: index + 9, term: 1, configuration: members, data: bytes(99) };
    writeTo(disk, storage.write(persistOf({ snapshot })));
    assert(disk.size <= 3, [...disk.keys()].join());
  }
});

Deno.test("every damaged bit and every missing value is noticed", () => {
  const disk = goldenDisk();
  for (const [key, value] of disk) {
    for (let bit = 0; bit < value.length * 8; bit++) {
      const damaged = value.slice();
      damaged[bit >> 3] ^= 1 << (bit & 7);
      const result = load(new Map(disk).set(key, damaged), 1);
      assertEquals(result.ok ? "" : result.error.code, "corrupt", `bit ${bit} of ${key}`);
    }
  }
  for (const key of ["raft/state", "raft/part/0/0000", "raft/log/00000000000004"]) {
    const missing = new Map(disk);
    assert(missing.delete(key), `${key} of ${[...disk.keys()]}`);
    assertEquals(load(missing, 1).ok, false, key);
  }
  const other = diskOf(Raft.bootstrap(1, bytes(9).reverse()));
  assert(other.has("raft/part/0/0000"));
  const mixed = new Map(disk).set("raft/part/0/0000", other.get("raft/part/0/0000")!);
  assertEquals(load(mixed, 1).ok, false);
  const swapped = new Map(disk).set(
    "raft/log/00000000000004",
    disk.get("raft/log/00000000000005")!,
  );
  assertEquals(load(swapped, 1).ok, false);
});

Deno.test("recovery makes a survivor the only voter, with all it has, and it leads", () => {
  const group = Group.of(3);
  group.propose(1, "a");
  group.settle();
  const { term, lastIndex } = group.raft(2).status();
  const entries = group.get(2).applied;
  const snapshot = Raft.joining().snapshot;
  const disk = diskOf({ term, vote: 1, snapshot, entries, commit: lastIndex - 1 }, 2);
  assertEquals(unwrap(standingOf(disk, 2)), { lastTerm: term, lastIndex, commit: lastIndex - 1 });
  const { writes } = unwrap(recover(disk, 2));
  for (let count = 0; count <= writes.length; count++) {
    const crashed = new Map(disk);
    writeTo(crashed, writes.slice(0, count));
    assertEquals(load(crashed, 2).ok, true);
    assertEquals(recover(crashed, 2).ok, true);
  }
  writeTo(disk, writes);
  const alone = new Group();
  alone.add(2, loaded(disk, 2).state);
  alone.settle();
  const status = alone.raft(2).status();
  assertEquals(status.role, "leader");
  assert(status.term > term + RECOVERY_TERMS);
  assertEquals(status.configuration, { voters: [2], learners: [] });
  assertEquals(alone.texts(2), ["a"]);
  alone.add(9, Raft.joining());
  alone.change(2, { kind: "add-learner", node: 9 });
  alone.advance(500);
  assertEquals(alone.texts(9), ["a"]);
  const missing = recover(new Map(), 2);
  assertEquals(missing.ok ? "" : missing.error.code, "missing");
});
