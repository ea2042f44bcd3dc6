/**
 * Replicas that are not what they should be are found by comparing them, and healed where it is clear what is right.
 *
 * @module
 */
import { assert, assertEquals, assertGreater } from "@std/assert/mod.js";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import type { CheckReport } from "../../agent/replication/check_report.ts";
import { BEHIND, NO_MAJORITY } from "../../agent/replication/deciding.ts";
import { Operation, OperationKind } from "../../agent/store/operation.ts";
import type { Process, SimNode } from "./node.ts";
import { type Session, Story, type StoryWrite } from "./story.ts";

/** Has one node compare all replicas. */
function check(story: Story, node: SimNode, repair = true, preferred = 0): CheckReport {
  const found = story.beginCheck(node, repair, preferred);
  story.waitFor("a check is over", () => found.report !== null);
  return found.report!;
}

/** What a check says of the disk: differences and those settled, replicas that lacked writes and those that caught up, what is left. */
function settled(
  { disks: [disk], blocks, unchecked }: CheckReport,
): [number, number, number, number, CheckReport["blocks"], CheckReport["unchecked"]] {
  const { differingBlocks, settledBlocks, laggingChunks, caughtUpChunks } = disk;
  return [differingBlocks, settledBlocks, laggingChunks, caughtUpChunks, blocks, unchecked];
}

/** Two copies, and groups for which the leader has nothing more to do. */
function withTwoCopies(story: Story): void {
  story.ask({ kind: "set-copies", name: "disk", copies: 2 });
  let epoch = 0;
  for (let i = 0; epoch !== story.map!.epoch || !story.isQuiet(); i++) {
    assert(i < 20, "groups do not come to rest");
    epoch = story.map!.epoch;
    story.pass(2000);
  }
  assertEquals(story.groupOf(story.nodes[0], 0).entry.inSync.length, 2);
}

/** Some other node reads blocks, all replicas are the same, and one more check finds nothing wrong. */
function verify(
  story: Story,
  reader: SimNode,
  blocks: readonly (readonly [number, number])[],
): void {
  story.waitFor("every group is whole", () => story.isQuiet(), 120_000);
  const session = story.open(reader);
  for (const [place, block] of blocks) session.read(place, block);
  session.close();
  const report = check(story, story.nodes[0]);
  assertEquals(settled(report), [0, 0, 0, 0, [], []]);
  story.compareReplicas();
}

/** Where a node's disk holds a block that is full of one number, the last place of several; −1: nowhere. */
function placeOf(node: SimNode, value: number): number {
  let place = -1;
  for (let at = 0; at < node.disk.sizeBytesMax; at += BLOCK_BYTES) {
    const words = new Uint32Array(node.disk.peek(at, BLOCK_BYTES).buffer);
    // What was sent again at a new epoch was written again: the log goes on behind what it had.
    if (words[0] === value && words.every((word) => word === value)) place = at;
  }
  return place;
}

/** What a node's own replica holds at a block. */
function contentOf(
  story: Story,
  id: number,
  place: number,
  block: number,
  layers = story.disk.layers,
): number {
  const { store, data } = story.nodes[id - 1].process!;
  const offset = data!.arena.allocate(BLOCK_BYTES);
  let isDone = false;
  const operation = new Operation({ operationDone: () => isDone = true }, 0);
  operation.layers = layers;
  operation.chunk = story.chunkOf(place);
  operation.block = story.oracle.places[place] / BLOCK_BYTES % CHUNK_BLOCKS + block;
  operation.blockCount = 1;
  operation.buffer = offset;
  story.nodes[id - 1].isLookedAt = true;
  store.submit(operation);
  story.nodes[id - 1].isLookedAt = false;
  story.nodes[id - 1].turn();
  story.waitFor("a block is read", () => isDone);
  const value = story.nodes[id - 1].window.u32[offset >>> 2];
  data!.arena.release(offset, BLOCK_BYTES);
  return value;
}

/** One node, in its first process, acknowledges writes of one block, and forgets them. */
class Liar {
  /** First block of the write, in the disk; null: it does what it says. */
  block: number | null = null;
  /** Not even the number of the write is kept. */
  forgetsAll = false;

  /** @param who the node, by its number */
  constructor(public who = 3) {}

  readonly sabotage = (process: Process) => {
    const number = ++this.#processes;
    const { store } = process;
    const submit = store.submit.bind(store);
    store.submit = (operation) => {
      const block = operation.chunk * CHUNK_BLOCKS + operation.block;
      const isLost = number === this.who && operation.kind === OperationKind.Write &&
        block === this.block && operation.generation > 0;
      if (!isLost) return submit(operation);
      if (!this.forgetsAll) operation.kind = OperationKind.Stamp;
      else {
        const lost = operation;
        operation = new Operation({ operationDone: () => lost.owner.operationDone(lost) }, 0);
        operation.kind = OperationKind.Sync;
      }
      submit(operation);
    };
  };
  #processes = 0;

  /** Writes a block, of which this node keeps nothing but what it held before. */
  write(story: Story, session: Session, place: number, block: number): number {
    this.block = story.oracle.places[place] / BLOCK_BYTES + block;
    const { value } = session.writeNow(place, block);
    this.block = null;
    return value;
  }
}

Deno.test("replicas that are the same are found to be so, from any node, with the disk open or not", () => {
  const story = new Story(1);
  const session = story.open(story.nodes[1]);
  for (let place = 0; place < 4; place++) session.writeNow(place, place);
  for (const isOpen of [true, false]) {
    if (!isOpen) session.close();
    for (const node of story.nodes) {
      const { disks: [disk], blocks, unchecked } = check(story, node);
      assertEquals([blocks, unchecked], [[], []]);
      assertGreater(disk.chunks, 0);
      assertEquals(disk, {
        ...disk,
        comparedChunks: disk.chunks,
        singleChunks: 0,
        damagedBlocks: 0,
        differingBlocks: 0,
        uncheckedChunks: 0,
      });
      // Each on three nodes.
      assertEquals(disk.verifiedBlocks, 12);
    }
  }
});

Deno.test("a block that has rotted is healed, or only reported", () => {
  for (const repair of [false, true]) {
    const story = new Story(2);
    const session = story.open(story.nodes[0]);
    const { value } = session.write(0, 3);
    session.writeNow(0, 4);
    session.close();
    story.pass(2000);
    const { disk } = story.nodes[2];
    disk.flipBit(placeOf(story.nodes[2], value) + 77, 1);
    const report = check(story, story.nodes[1], repair);
    const [{ damagedBlocks, repairedBlocks, differingBlocks }] = report.disks;
    assertEquals([damagedBlocks, repairedBlocks, differingBlocks], [1, repair ? 1 : 0, 0]);
    const offsetBytes = story.oracle.places[0] + 3 * BLOCK_BYTES;
    const expected = {
      kind: "damaged",
      disk: story.disk.id,
      layer: story.disk.layers[0],
      offsetBytes,
      nodes: [3],
      contents: [0],
      reason: "nothing was to be changed",
    };
    assertEquals(report.blocks, repair ? [] : [expected]);
    const isHealed = story.nodes.every(({ process }) => process!.store.stats().damage.length === 0);
    assertEquals(isHealed, repair);
    if (repair) story.compareReplicas();
    else assertEquals(story.nodes[2].process!.data!.status.repaired, 0);
  }
});

Deno.test("a write that a node has acknowledged and not carried out is found, and put right unless only a report is wanted", () => {
  for (const isOpen of [true, false]) {
    const liar = new Liar();
    const story = new Story(3, liar.sabotage);
    const session = story.open(story.nodes[0]);
    session.writeNow(0, 1);
    liar.write(story, session, 0, 1);
    session.writeNow(0, 2);
    if (!isOpen) session.close();
    const report = check(story, story.nodes[1], false);
    const [disk] = report.disks;
    assertEquals([disk.differingBlocks, disk.damagedBlocks, disk.uncheckedChunks], [1, 0, 0]);
    assertEquals(disk.comparedChunks, disk.chunks - 1);
    const offsetBytes = story.oracle.places[0] + BLOCK_BYTES;
    const [{ nodes, contents, ...block }] = report.blocks;
    const reason = "nothing was to be changed";
    assertEquals(block, {
      kind: "differs",
      disk: story.disk.id,
      layer: story.disk.layers[0],
      offsetBytes,
      reason,
    });
    const ofNode = new Map(nodes.map((node, i) => [node, contents[i]]));
    assertEquals(ofNode.get(1), ofNode.get(2));
    assert(ofNode.get(1) !== ofNode.get(3));
    const { epoch } = story.map!;
    assertEquals(settled(check(story, story.nodes[1])), [1, 1, 0, 0, [], []]);
    assertEquals(story.map!.epoch, epoch, "nobody has to leave for that");
    assertEquals(story.nodes[2].process!.data!.status.repaired, 1);
    if (isOpen) session.close();
    verify(story, story.nodes[2], [[0, 1], [0, 2]]);
  }
});

Deno.test("whichever node has lost a write, whoever compares: it is put right by the two others", () => {
  for (const who of [1, 2, 3]) {
    for (const asked of [0, 1, 2]) {
      const liar = new Liar(who);
      const story = new Story(20, liar.sabotage);
      const session = story.open(story.nodes[who % 3]);
      session.writeNow(1, 0);
      liar.write(story, session, 1, 0);
      assertEquals(settled(check(story, story.nodes[asked])), [1, 1, 0, 0, [], []]);
      session.close();
      verify(story, story.nodes[who - 1], [[1, 0]]);
    }
  }
});

Deno.test("what differs is settled while a guest writes to it and beside it, and no write is lost", () => {
  for (let seed = 30; seed < 42; seed++) {
    const liar = new Liar();
    const story = new Story(seed, liar.sabotage);
    const session = story.open(story.nodes[0]);
    for (let block = 0; block < 4; block++) {
      session.writeNow(0, block);
      liar.write(story, session, 0, block);
    }
    const found = story.beginCheck(story.nodes[seed % 3], true);
    let writes: StoryWrite[] = [];
    for (let i = 0; found.report === null; i++) {
      // One of them is left alone for a while, then it is its turn.
      const block = (i >> 4) % 5;
      if (block < 4) writes.push(session.write(0, block));
      if (i % 3 === 0) writes.push(session.write(1, block % 4));
      story.pass(0.5 + seed % 5);
      writes = writes.filter(({ isDone }) => !isDone);
      assert(i < 20_000, "it does not end");
    }
    const [differing, same, , , blocks, unchecked] = settled(found.report);
    assertEquals([same, blocks, unchecked], [differing, [], []]);
    story.waitFor("writes are done", () => writes.every(({ isDone }) => isDone));
    session.close();
    verify(
      story,
      story.nodes[2],
      [0, 1].flatMap((place) => [0, 1, 2, 3].map((b) => [place, b] as const)),
    );
  }
});

Deno.test("of two copies that differ neither is changed, before somebody says which one counts", () => {
  for (const isLiarPreferred of [false, true]) {
    const liar = new Liar();
    const story = new Story(50, liar.sabotage);
    withTwoCopies(story);
    const [other, wrong] = story.groupOf(story.nodes[0], 0).entry.inSync;
    liar.who = wrong;
    const session = story.open(story.nodes[0]);
    const old = session.writeNow(0, 3).value;
    const value = liar.write(story, session, 0, 3);
    session.close();
    for (let i = 0; i < 2; i++) {
      const report = check(story, story.nodes[2]);
      const [differing, same, , , [block]] = settled(report);
      assertEquals([differing, same], [1, 0]);
      assertEquals(block.reason, NO_MAJORITY);
    }
    const has = (node: number) => contentOf(story, node, 0, 3);
    assertEquals([has(wrong), has(other)], [old, value], "nothing was changed");
    const right = isLiarPreferred ? wrong : other;
    assertEquals(settled(check(story, story.nodes[2], true, right)), [1, 1, 0, 0, [], []]);
    assertEquals([has(wrong), has(other)], isLiarPreferred ? [old, old] : [value, value]);
    // Else it has what was overwritten, as it was told.
    if (!isLiarPreferred) verify(story, story.nodes[1], [[0, 3]]);
    else story.compareReplicas();
  }
});

Deno.test("who is preferred counts against two others, and where it has no replica nothing is changed", () => {
  const liar = new Liar();
  const story = new Story(55, liar.sabotage);
  const session = story.open(story.nodes[0]);
  const old = session.writeNow(0, 3).value;
  const value = liar.write(story, session, 0, 3);
  session.close();
  const values = () => [1, 2, 3].map((node) => contentOf(story, node, 0, 3));
  assertEquals(values(), [value, value, old]);
  const [{ reason }] = check(story, story.nodes[0], true, 9).blocks;
  assertEquals(reason, "the node whose content counts has no whole replica in sync of it");
  assertEquals(values(), [value, value, old]);
  assertEquals(settled(check(story, story.nodes[0], true, 3)), [1, 1, 0, 0, [], []]);
  assertEquals(values(), [old, old, old]);
});

Deno.test("a replica in sync that lacks writes copies them", () => {
  for (const copies of [3, 2]) {
    for (const isOpen of [true, false]) {
      const liar = new Liar();
      liar.forgetsAll = true;
      const story = new Story(60, liar.sabotage);
      if (copies === 2) withTwoCopies(story);
      liar.who = story.groupOf(story.nodes[0], 0).entry.inSync[1];
      const session = story.open(story.nodes[0]);
      session.writeNow(0, 0);
      liar.write(story, session, 0, 1);
      // Of this chunk it has nothing at all.
      liar.write(story, session, 1, 2);
      if (!isOpen) session.close();
      story.pass(2000);
      const groups = [0, 1].map((place) => story.groupOf(story.nodes[0], place).entry);
      const chunks = groups.filter(({ inSync }) => inSync.includes(liar.who)).length;
      const reported = check(story, story.nodes[2], false);
      assertEquals(settled(reported).slice(0, 4), [0, 0, chunks, 0]);
      const [{ reason, nodes }] = reported.unchecked;
      assertEquals([reason, nodes], [BEHIND, [liar.who]]);
      const { epoch } = story.map!;
      assertEquals(settled(check(story, story.nodes[2])), [0, 0, chunks, chunks, [], []]);
      assertEquals(story.map!.epoch, epoch, "nobody has to leave for that");
      if (isOpen) session.close();
      verify(story, story.nodes[1], [[0, 0], [0, 1], [1, 2]]);
    }
  }
});

Deno.test("two replicas that each lack what the other one has copy it from each other, and nothing is lost", () => {
  let pairs = 0;
  for (let seed = 62; seed < 68; seed++) {
    const one = new Liar(2), other = new Liar(3);
    const story = new Story(seed, (process) => {
      one.sabotage(process);
      other.sabotage(process);
    });
    // Two chunks of one group: whoever left it to copy one of them would lose the other one.
    const all = [...story.oracle.places.keys()];
    const numberOf = (place: number) => story.groupOf(story.nodes[0], place).group;
    const pair = all.flatMap((a) => all.map((b) => [a, b])).find(([a, b]) =>
      numberOf(a) === numberOf(b) && story.chunkOf(a) < story.chunkOf(b)
    );
    if (pair === undefined) continue;
    pairs++;
    one.forgetsAll = other.forgetsAll = true;
    const session = story.open(story.nodes[0]);
    for (const place of pair) session.writeNow(place, 0);
    one.write(story, session, pair[0], 1);
    other.write(story, session, pair[1], 1);
    session.close();
    assertEquals(settled(check(story, story.nodes[2])), [0, 0, 2, 2, [], []]);
    verify(story, story.nodes[1], pair.flatMap((place) => [[place, 0], [place, 1]] as const));
  }
  assertGreater(pairs, 1);
});

Deno.test("where two of three lack writes they copy them only if somebody says whose content counts", () => {
  const liars = [new Liar(2), new Liar(3)];
  const story = new Story(65, (process) => liars.forEach(({ sabotage }) => sabotage(process)));
  const session = story.open(story.nodes[0]);
  session.writeNow(0, 0);
  for (const liar of liars) {
    liar.forgetsAll = true;
    liar.block = story.oracle.places[0] / BLOCK_BYTES + 1;
  }
  session.writeNow(0, 1);
  for (const liar of liars) liar.block = null;
  session.close();
  for (const preferred of [0, 2]) {
    const [, , lagging, caughtUp, , unchecked] = settled(
      check(story, story.nodes[1], true, preferred),
    );
    assertEquals([lagging, caughtUp], [2, 0]);
    const [{ reason, nodes }] = unchecked;
    assertEquals(nodes, [2, 3]);
    assert(reason.startsWith(`${BEHIND}, `), reason);
  }
  assertEquals(settled(check(story, story.nodes[1], true, 1)), [0, 0, 2, 2, [], []]);
  verify(story, story.nodes[2], [[0, 0], [0, 1]]);
});

Deno.test("a replica that lacks writes catches up while a guest writes to its chunks", () => {
  for (let seed = 70; seed < 80; seed++) {
    const liar = new Liar();
    liar.forgetsAll = true;
    const story = new Story(seed, liar.sabotage);
    const session = story.open(story.nodes[0]);
    for (let place = 0; place < 3; place++) {
      session.writeNow(place, 0);
      liar.write(story, session, place, 1);
    }
    const found = story.beginCheck(story.nodes[seed % 3], true);
    let writes: StoryWrite[] = [];
    for (let i = 0; found.report === null; i++) {
      // Not from the first on: a write that comes makes the stamps equal, and what is lacking a difference.
      if (story.world.nowMs % 7000 > seed * 70) writes.push(session.write(i % 3, 2 + i % 2));
      story.pass(3);
      writes = writes.filter(({ isDone }) => !isDone);
      assert(i < 40_000, "it does not end");
    }
    const [differing, same, lagging, caughtUp, blocks, unchecked] = settled(found.report);
    assertEquals([same, caughtUp, blocks, unchecked], [differing, lagging, [], []]);
    story.waitFor("writes are done", () => writes.every(({ isDone }) => isDone));
    session.close();
    verify(
      story,
      story.nodes[2],
      [0, 1, 2].flatMap((place) => [0, 1, 2, 3].map((b) => [place, b] as const)),
    );
  }
});

/** A node that has died runs again, and everything is made right; some other node reads it all. */
function recover(
  story: Story,
  victim: SimNode,
  session: Session,
  found: { readonly report: CheckReport | null },
): void {
  story.pass(300);
  const seed = story.nodes.find((node) => node !== victim)!.address;
  if (victim.process === null) victim.start([seed]);
  story.until("every group is whole", () => story.isQuiet(), 120_000);
  // What a holder that has died may have left is settled by the next one.
  // The second node is the one that compares.
  const isOver = () => victim === story.nodes[1] || found.report !== null;
  story.until("the check is over", isOver, 400_000);
  if (victim !== session.node) session.close();
  const heir = story.open(story.nodes[1]);
  heir.read(0, 0);
  // Until its control knows that the disk is open: what was never open is not settled by its end.
  story.pass(100);
  heir.close();
  const [differing, same, lagging, caughtUp, blocks, unchecked] = settled(
    check(story, story.nodes[1]),
  );
  assertEquals([same, caughtUp, blocks, unchecked], [differing, lagging, [], []]);
  verify(story, story.nodes[2], [[0, 0], [0, 1], [1, 0], [1, 1]]);
}

// In the next two nobody copies anything from the node that is wrong before that is settled: whoever did would be wrong as well, and the
// two of them more than half. Comparing cannot tell.

Deno.test("whoever dies while blocks are replaced, and whenever: what was written is there in the end", () => {
  for (const victim of [0, 1, 2]) {
    for (const isPower of [false, true]) {
      for (const delayMs of [0, 0.3, 0.7, 1, 1.5, 2.5, 5]) {
        const liar = new Liar();
        const story = new Story(80 + delayMs * 10, liar.sabotage);
        const session = story.open(story.nodes[0]);
        for (const place of [0, 1]) {
          for (const block of [0, 1]) {
            session.writeNow(place, block);
            liar.write(story, session, place, block);
          }
        }
        session.flush();
        const [, asked, wrong] = story.nodes;
        const found = story.beginCheck(asked, true);
        const { repairer } = wrong.process!.data!;
        story.waitFor("blocks are being replaced", () => repairer.waiting > 0);
        story.pass(delayMs);
        story.nodes[victim].crash(isPower);
        recover(story, story.nodes[victim], session, found);
      }
    }
  }
});

Deno.test("whoever dies while a replica copies what it lacks, and whenever: what was written is there in the end", () => {
  for (const victim of [0, 1, 2]) {
    for (const isPower of [false, true]) {
      for (const delayMs of [0, 0.3, 0.7, 1, 1.5, 2.5, 4, 8]) {
        // Who comes back compares with somebody in sync, and must not copy from the one that lacks writes.
        if (victim !== 2 && delayMs < 8) continue;
        const liar = new Liar();
        liar.forgetsAll = true;
        const story = new Story(90, liar.sabotage);
        const session = story.open(story.nodes[0]);
        for (const place of [0, 1]) {
          session.writeNow(place, 0);
          liar.write(story, session, place, 1);
        }
        session.flush();
        const found = story.beginCheck(story.nodes[1], true);
        const { completer } = story.nodes[2].process!.data!;
        story.waitFor("chunks are copied", () => completer.waiting > 0);
        story.pass(delayMs);
        if (victim !== 2) story.waitFor("chunks are copied", () => completer.completed === 2);
        story.nodes[victim].crash(isPower);
        recover(story, story.nodes[victim], session, found);
      }
    }
  }
});

Deno.test("two checks at once settle what one would", () => {
  for (const forgetsAll of [false, true]) {
    const liar = new Liar();
    liar.forgetsAll = forgetsAll;
    const story = new Story(95, liar.sabotage);
    const session = story.open(story.nodes[0]);
    for (const place of [0, 1]) {
      session.writeNow(place, 0);
      liar.write(story, session, place, 1);
    }
    const found = story.nodes.map((node) => story.beginCheck(node, true));
    story.waitFor("checks are over", () => found.every(({ report }) => report !== null), 120_000);
    for (const { report } of found) {
      const [differing, same, lagging, caughtUp, blocks, unchecked] = settled(report!);
      assertEquals([same, caughtUp, blocks, unchecked], [differing, lagging, [], []]);
    }
    session.close();
    verify(story, story.nodes[2], [[0, 0], [0, 1], [1, 0], [1, 1]]);
  }
});

Deno.test("two users who prefer different nodes at once get one or the other, block by block", () => {
  const liar = new Liar();
  const story = new Story(96, liar.sabotage);
  const session = story.open(story.nodes[0]);
  const values = [0, 1, 2, 3].map((block) => [
    session.writeNow(0, block).value,
    liar.write(story, session, 0, block),
  ]);
  session.close();
  const found = [1, 3].map((node, i) => story.beginCheck(story.nodes[i], true, node));
  story.waitFor("checks are over", () => found.every(({ report }) => report !== null), 200_000);
  for (const [block, [old, value]] of values.entries()) {
    for (const node of [1, 2, 3]) {
      const content = contentOf(story, node, 0, block);
      assert(content === old || content === value, `${content} is neither ${old} nor ${value}`);
    }
  }
  const { blocks } = check(story, story.nodes[0], true, 1);
  assertEquals(blocks, []);
  story.compareReplicas();
});

Deno.test("the disk changes hosts, gets a snapshot, and other copies, while it is settled", () => {
  for (const forgetsAll of [false, true]) {
    for (const what of ["host", "snapshot", "copies", "copies and a snapshot"]) {
      for (const delayMs of forgetsAll ? [0, 2000, 4300, 4400, 4600, 5000] : [0, 25, 45, 60, 90]) {
        const liar = new Liar();
        liar.forgetsAll = forgetsAll;
        const story = new Story(97, liar.sabotage);
        let session = story.open(story.nodes[0]);
        for (const place of [0, 1]) {
          session.writeNow(place, 0);
          liar.write(story, session, place, 1);
        }
        const found = story.beginCheck(story.nodes[1], true);
        story.pass(delayMs);
        if (what.includes("copies")) story.ask({ kind: "set-copies", name: "disk", copies: 2 });
        if (what.includes("snapshot")) {
          const disks = [story.disk.id];
          story.ask({ kind: "create-snapshots", disks, name: "s", nowMs: 0 });
        }
        if (what === "host") {
          session.close();
          session = story.open(story.nodes[2]);
        }
        session.writeNow(0, 0);
        story.until("the check is over", () => found.report !== null, 400_000);
        session.writeNow(1, 0);
        session.close();
        story.until("every group is whole", () => story.isQuiet(), 120_000);
        story.pass(5000);
        story.until("every group is still whole", () => story.isQuiet(), 120_000);
        const inSync = story.groupOf(story.nodes[0], 0).entry.inSync;
        // If the wrong replica was one of two before it was settled, nobody knows.
        const isTold = inSync.length === 2 && check(story, story.nodes[1], false).blocks.length > 0;
        const good = isTold ? inSync.find((node) => node !== 3)! : 0;
        const [, , lagging, caughtUp, blocks, unchecked] = settled(
          check(story, story.nodes[1], true, good),
        );
        assertEquals([caughtUp, blocks, unchecked], [lagging, [], []]);
        verify(story, story.nodes[0], [[0, 0], [0, 1], [1, 0], [1, 1]]);
      }
    }
  }
});

Deno.test("what differs below a clone is settled, before, while and after the clone is made independent of it", () => {
  for (const forgetsAll of [false, true]) {
    for (const delayMs of [-1, 0, 5, 20, 100, 1000, 4400, 5000]) {
      const liar = new Liar();
      liar.forgetsAll = forgetsAll;
      const story = new Story(98, liar.sabotage);
      const session = story.open(story.nodes[0]);
      for (const place of [0, 1]) session.writeNow(place, 0);
      const value = liar.write(story, session, 0, 1);
      liar.write(story, session, 1, 1);
      const disks = [story.disk.id];
      story.ask({ kind: "create-snapshots", disks, name: "s", nowMs: 0 });
      story.waitFor("the snapshot is complete", () => story.disk.snapshots[0].taking === 0);
      story.ask({ kind: "clone-disk", disk: "disk", snapshot: "s", name: "elk", nowMs: 0 });
      session.writeNow(0, 0);
      const found = delayMs < 0 ? null : story.beginCheck(story.nodes[1], true);
      if (found !== null) story.pass(delayMs);
      story.ask({ kind: "flatten-disk", disk: "elk" });
      const isFlat = () => story.map!.layers.every(({ flatten }) => flatten === undefined);
      const isOver = () => isFlat() && (found === null || found.report !== null);
      story.until("the clone is independent, and the check over", isOver, 400_000);
      session.close();
      story.until("every group is whole", () => story.isQuiet(), 120_000);
      // What was copied into the clone before it was settled is its own by now, and a difference of its own.
      const report = check(story, story.nodes[1]);
      assertEquals([report.blocks, report.unchecked], [[], []]);
      const { layers } = story.map!.disks[1];
      const copies = [1, 2, 3].map((node) => contentOf(story, node, 0, 1, layers));
      assertEquals(copies, [value, value, value]);
      verify(story, story.nodes[2], [[0, 0], [0, 1], [1, 0], [1, 1]]);
    }
  }
});

Deno.test("guests that write meanwhile are neither held up nor taken for a difference", () => {
  const story = new Story(4);
  const session = story.open(story.nodes[0]);
  for (let block = 0; block < 8; block++) session.writeNow(0, block);
  const found = story.beginCheck(story.nodes[1], true);
  for (let i = 0; found.report === null; i++) {
    const writes = [session.write(0, i % 8), session.write(0, (i + 3) % 8)];
    story.waitFor("a write is done", () => writes.some(({ isDone }) => isDone));
    assert(i < 2000, "it does not end");
  }
  assertEquals([found.report.blocks, found.report.unchecked], [[], []]);
  assertEquals(found.report.disks[0].comparedChunks, found.report.disks[0].chunks);
});

Deno.test("what is written all the time is reported as not checked", () => {
  const story = new Story(5);
  const session = story.open(story.nodes[0]);
  session.writeNow(0, 0);
  for (const node of story.nodes) node.diskDelayMs = 20;
  const found = story.beginCheck(story.nodes[1], true);
  let underWay = [session.write(0, 0)];
  while (found.report === null) {
    // Some of the same block are always on their way, to each replica.
    while (underWay.length < 32) underWay.push(session.write(0, 0));
    story.pass(0.1);
    underWay = underWay.filter(({ isDone }) => !isDone);
  }
  const { disks: [disk], blocks, unchecked } = found.report;
  assertEquals([disk.differingBlocks, disk.uncheckedChunks, blocks], [0, 1, []]);
  assertEquals(unchecked, [{
    disk: story.disk.id,
    reason: "guests write to it all the time",
    nodes: [],
    chunks: 1,
  }]);
});

Deno.test("a replica that goes in the middle is named, and never counts as checked", () => {
  for (const how of ["dies", "is cut off", "was away before"]) {
    const story = new Story(6);
    const session = story.open(story.nodes[0]);
    for (let place = 0; place < 4; place++) session.writeNow(place, 1);
    session.close();
    if (how === "was away before") {
      story.nodes[2].crash(false);
      story.waitFor("it is down", () => !story.isUp(story.nodes[2]));
    }
    const found = story.beginCheck(story.nodes[0], true);
    if (how === "dies") story.nodes[2].crash(false);
    else if (how === "is cut off") {
      for (const other of story.nodes.slice(0, 2)) {
        story.network.cut.add(`${other.id}>3`).add(`3>${other.id}`);
      }
    }
    story.waitFor("a check is over", () => found.report !== null, 200_000);
    const { disks: [disk], unchecked } = found.report!;
    assertGreater(disk.chunks, 0, how);
    assertEquals(disk.uncheckedChunks, disk.chunks, how);
    assertEquals(unchecked.map(({ nodes }) => nodes.join()), ["3"], how);
    assertEquals(disk.differingBlocks, 0, how);
  }
});

Deno.test("replicas that have not the same writes are reported, and opening the disk brings them in line", () => {
  const story = new Story(7);
  const session = story.open(story.nodes[1]);
  session.writeNow(0, 0);
  // The next write gets to the first node only; then its host dies.
  story.network.cut.add("2>3");
  const write = session.write(0, 0);
  story.pass(50);
  assert(!write.isDone);
  story.nodes[1].crash(true);
  story.network.cut.clear();
  story.waitFor("it is down", () => !story.isUp(story.nodes[1]));
  story.pass(100);
  const { disks: [disk], unchecked } = check(story, story.nodes[0]);
  assertEquals(disk.differingBlocks, 0);
  const reasons = unchecked.map(({ reason }) => reason).sort();
  assertEquals(reasons, [
    "it is not up",
    "its last host has left writes on some replicas only: opening the disk settles that",
  ]);
});

Deno.test("a check that is cancelled leaves nothing behind", () => {
  const story = new Story(8);
  const session = story.open(story.nodes[0]);
  for (let block = 0; block < 8; block++) session.writeNow(0, block);
  const { data } = story.nodes[0].process!;
  const used = () => data!.arena.usedBytes;
  const before = used();
  for (let ms = 0; ms < 6; ms++) {
    const found = story.beginCheck(story.nodes[0], true);
    story.pass(ms / 2);
    data!.cancelCheck(found.check);
    story.pass(500);
    assertEquals([used(), data!.peers.count, found.report], [before, 0, null]);
  }
  assertEquals(check(story, story.nodes[0]).blocks, []);
  session.close();
});

Deno.test("offsets in a report are those of the disk", () => {
  const liar = new Liar();
  const story = new Story(9, liar.sabotage);
  const session = story.open(story.nodes[0]);
  liar.block = story.oracle.places[1] / BLOCK_BYTES + 6;
  session.writeNow(1, 6);
  session.close();
  const [{ offsetBytes }] = check(story, story.nodes[2], false).blocks;
  assertEquals(Math.floor(offsetBytes / CHUNK_BYTES), story.chunkOf(1));
  assertEquals(offsetBytes, story.oracle.places[1] + 6 * BLOCK_BYTES);
});

Deno.test("with two copies, the one that does not match its checksum is healed from the other one", () => {
  for (const which of [0, 1]) {
    const story = new Story(10 + which);
    withTwoCopies(story);
    const session = story.open(story.nodes[0]);
    const { value } = session.write(0, 3);
    session.writeNow(0, 4);
    session.close();
    story.pass(2000);
    const { inSync } = story.groupOf(story.nodes[0], 0).entry;
    assertEquals(inSync.length, 2);
    const rotten = story.nodes.find(({ node }) => node === inSync[which])!;
    rotten.disk.flipBit(placeOf(rotten, value) + 5, 3);
    const { disks: [disk], blocks, unchecked } = check(story, story.nodes[2]);
    assertEquals([disk.damagedBlocks, disk.repairedBlocks, blocks, unchecked], [1, 1, [], []]);
    story.compareReplicas();
    const reader = story.open(story.nodes[0]);
    assertEquals(reader.read(0, 3), value);
    reader.close();
  }
});
