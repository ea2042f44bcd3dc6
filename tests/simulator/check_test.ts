/**
 * Replicas that are not what they should be are found by comparing them, and healed where it is clear what is right.
 *
 * @module
 */
import { assert, assertEquals, assertGreater } from "@std/assert/mod.js";
import { BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES } from "../../agent/base/limits.ts";
import type { CheckReport } from "../../agent/replication/checking.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import type { Process, SimNode } from "./node.ts";
import { Story } from "./story.ts";

/** Has one node compare all replicas. */
function check(story: Story, node: SimNode, repair = true): CheckReport {
  const found = story.beginCheck(node, repair);
  story.waitFor("a check is over", () => found.report !== null);
  return found.report!;
}

/** Where a node's disk holds a block that is full of one number; −1: nowhere. */
function placeOf(node: SimNode, value: number): number {
  for (let at = 0; at < node.disk.sizeBytesMax; at += BLOCK_BYTES) {
    const words = new Uint32Array(node.disk.peek(at, BLOCK_BYTES).buffer);
    if (words[0] === value && words.every((word) => word === value)) return at;
  }
  return -1;
}

/** The third node acknowledges writes of one block, and forgets them. */
class Liar {
  /** First block of the write, in the disk; null: it does what it says. */
  block: number | null = null;
  readonly sabotage = (process: Process) => {
    if (++this.#processes !== 3) return;
    const { store } = process;
    const submit = store.submit.bind(store);
    store.submit = (operation) => {
      const block = operation.chunk * CHUNK_BLOCKS + operation.block;
      const isLost = operation.kind === OperationKind.Write && block === this.block &&
        operation.generation > 0;
      if (isLost) operation.kind = OperationKind.Stamp;
      submit(operation);
    };
  };
  #processes = 0;
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
      offsetBytes,
      nodes: [3],
      contents: [0],
    };
    assertEquals(report.blocks, repair ? [] : [expected]);
    const isHealed = story.nodes.every(({ process }) => process!.store.stats().damage.length === 0);
    assertEquals(isHealed, repair);
    if (repair) story.compareReplicas();
    else assertEquals(story.nodes[2].process!.data!.status.repaired, 0);
  }
});

Deno.test("a write that a node has acknowledged and not carried out is found, and nothing is changed", () => {
  const liar = new Liar();
  const story = new Story(3, liar.sabotage);
  const session = story.open(story.nodes[0]);
  session.writeNow(0, 5);
  liar.block = story.oracle.places[0] / BLOCK_BYTES + 5;
  session.writeNow(0, 5);
  liar.block = null;
  session.writeNow(0, 6);
  for (const isOpen of [true, false]) {
    if (!isOpen) session.close();
    const report = check(story, story.nodes[1]);
    const [disk] = report.disks;
    assertEquals([disk.differingBlocks, disk.damagedBlocks, disk.uncheckedChunks], [1, 0, 0]);
    assertEquals(disk.comparedChunks, disk.chunks - 1);
    const offsetBytes = story.oracle.places[0] + 5 * BLOCK_BYTES;
    const [{ nodes, contents, ...block }] = report.blocks;
    assertEquals(block, { kind: "differs", disk: story.disk.id, offsetBytes });
    const ofNode = new Map(nodes.map((node, i) => [node, contents[i]]));
    assertEquals(ofNode.get(1), ofNode.get(2));
    assert(ofNode.get(1) !== ofNode.get(3));
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
  const [{ offsetBytes }] = check(story, story.nodes[2]).blocks;
  assertEquals(Math.floor(offsetBytes / CHUNK_BYTES), story.chunkOf(1));
  assertEquals(offsetBytes, story.oracle.places[1] + 6 * BLOCK_BYTES);
});

Deno.test("with two copies, the one that does not match its checksum is healed from the other one", () => {
  for (const which of [0, 1]) {
    const story = new Story(10 + which);
    story.ask({ kind: "set-copies", name: "disk", copies: 2 });
    story.waitFor(
      "two copies",
      () =>
        story.isQuiet() && story.groupOf(story.nodes[0], 0).entry.inSync.length === 2 &&
        story.nodes[0].process!.map!.disks[0].copies === 2,
    );
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
