import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Gossip, GOSSIP_DEFAULTS, knownMember, TICK_MS } from "../../agent/gossip/gossip.ts";
import { EMPTY_META } from "../../agent/gossip/meta.ts";
import { PackWriter } from "../../agent/gossip/pack.ts";
import {
  decodePacket,
  encodeEntry,
  type Entry,
  type Packet,
  PACKET_BYTES_MAX,
  PacketKind,
  uuidBytes,
} from "../../agent/gossip/packet.ts";
import { addressOf, metaOf, Network, type Node, uuidOf } from "./network.ts";

/** Events that one member saw about another. */
function eventsOf(network: Network, on: Node, of: Node): string[] {
  return network.seen
    .filter((seen) => seen.on === on && seen.event.member.uuid === uuidOf(of.index))
    .map((seen) => seen.event.kind);
}

/** Crashes a member and gives the time until all others have it dead. */
function crashOne(network: Network, node: Node, limitMs: number): number {
  network.crash(node);
  return network.runUntil(() => network.allSee(node, "dead"), limitMs);
}

// ------------------------------------------------------------------------------------------- joining

Deno.test("3 members that know one address find each other in a second", () => {
  const network = new Network({ seed: 1 });
  network.addJoining(3);
  network.runUntil(() => network.isConverged(), 1000);
  assertEquals(network.nodes.map(({ gossip }) => gossip.isJoining), [false, false, false]);
  assertEquals(network.view(network.nodes[2], network.nodes[1]), {
    uuid: uuidOf(1),
    address: addressOf(1),
    state: "alive",
    agentIncarnation: 1,
    incarnation: 0,
    meta: metaOf(1),
    changedMs: network.view(network.nodes[2], network.nodes[1])!.changedMs,
    accusations: [],
    deadlineMs: 0,
    confirmedBy: "",
    isSelf: false,
  });
});

Deno.test("50 members that start together find each other, in a bad network too", () => {
  for (const loss of [0, 0.2]) {
    const network = new Network({ seed: 2, loss, duplicates: loss, delayMs: [1, 1 + 100 * loss] });
    network.addJoining(50);
    network.runUntil(() => network.isConverged(), 10_000);
  }
});

Deno.test("a newcomer fetches a list of many slices, at a bounded rate", () => {
  const network = new Network({ seed: 3 });
  network.addKnown(150);
  network.run(500);
  const newcomer = network.add(150, { seeds: [addressOf(7)] });
  // 16 slices: four at once, the others 20 ms apart. Only one per tick would take 800 ms.
  const tookMs = network.runUntil(() => newcomer.gossip.size === 151, 600);
  assertEquals(network.view(newcomer, network.nodes[99])?.meta, metaOf(99));
  // 150 entries of about 130 bytes, ten in a slice.
  const sliceCount = tookMs / GOSSIP_DEFAULTS.pullMs + 4;
  assert(newcomer.bytesReceived <= sliceCount * 1352 + tookMs * 4, `${newcomer.bytesReceived}`);
  network.runUntil(() => network.isConverged(), 5000);
});

Deno.test("seeds that do not answer yet are tried again; those that are no address are left out", () => {
  const network = new Network({ seed: 4 });
  network.add(0, { seeds: ["no address", addressOf(0), addressOf(9), addressOf(1)] });
  network.run(5000);
  assertEquals(network.nodes[0].gossip.size, 1);
  network.add(1);
  network.runUntil(() => network.isConverged(), 2000);
});

Deno.test("a member alone says nothing to nobody", () => {
  const network = new Network({ seed: 4 });
  network.add(0);
  network.run(10_000);
  assertEquals(network.nodes[0].bytesSent, 0);
});

// ----------------------------------------------------------------------------------------- detection

Deno.test("a crash is confirmed everywhere within 3.5 s in clusters of 3 to 10", () => {
  for (const count of [3, 4, 5, 7, 10]) {
    const times: number[] = [];
    for (let seed = 1; seed <= 8; seed++) {
      const network = new Network({ seed });
      network.addKnown(count);
      network.run(2000 + 37 * seed);
      times.push(crashOne(network, network.nodes[0], 3500));
      assertEquals(network.falseDeaths(), []);
    }
    times.sort((a, b) => a - b);
    assert(times[4] <= 2500, `${count} members: ${times}`);
  }
});

Deno.test("why a member is dead can be told: who probed, when, and what helpers said", () => {
  const network = new Network({ seed: 5 });
  network.addKnown(5);
  network.run(2000);
  const crashedMs = network.nowMs;
  const [crashed, other] = network.nodes;
  network.crash(crashed);
  network.runUntil(() => network.allSee(crashed, "suspect"), 3000);
  assert(network.view(other, crashed)!.deadlineMs > network.nowMs - TICK_MS);
  network.runUntil(() => network.allSee(crashed, "dead"), 3500);
  const view = network.view(other, crashed)!;
  assert(view.accusations.length >= 3, JSON.stringify(view));
  for (const { by, atMs, asked, nacks } of view.accusations) {
    assert(network.nodes.slice(1).some(({ index }) => uuidOf(index) === by));
    assert(atMs > crashedMs && atMs <= network.nowMs);
    assertEquals([asked, nacks], [3, 3]);
  }
  assert(view.confirmedBy !== "" && view.deadlineMs === 0);
  assertEquals(eventsOf(network, other, crashed), ["suspect", "dead"]);
});

Deno.test("two of five that crash together are found", () => {
  const network = new Network({ seed: 6 });
  network.addKnown(5);
  network.run(2000);
  network.crash(network.nodes[0]);
  crashOne(network, network.nodes[1], 6000);
  assert(network.allSee(network.nodes[0], "dead"));
});

Deno.test("a link that is cut between two members alone makes nobody suspect", () => {
  const network = new Network({ seed: 7 });
  network.addKnown(5);
  const [one, other] = network.nodes;
  network.isLinked = (from, to) =>
    !(from === one && to === other) && !(from === other && to === one);
  network.run(20_000);
  assertEquals(network.seen, []);
  assert(one.gossip.counters.indirectProbes > 0, "helpers were needed");
});

Deno.test("a member that hears and cannot be heard is dead, and well again afterwards", () => {
  const network = new Network({ seed: 8 });
  network.addKnown(5);
  const mute = network.nodes[2];
  network.isLinked = (from) => from !== mute;
  network.runUntil(() => network.allSee(mute, "dead"), 6000);
  network.isLinked = () => true;
  network.runUntil(() => network.isConverged(), 4000);
  assertEquals(network.falseDeaths().filter(({ on }) => on !== mute).length, 4);
});

Deno.test("nobody is dead by mistake in minutes of 30 % loss, and the one who crashes is found", () => {
  for (const count of [3, 5]) {
    const network = new Network({ seed: 9, loss: 0.3, duplicates: 0.05, delayMs: [1, 30] });
    network.addKnown(count);
    network.run(180_000);
    assert(network.nodes.some(({ gossip }) => gossip.counters.refutations > 0), "and it was bad");
    assertEquals(network.falseDeaths().length, 0);
    crashOne(network, network.nodes[1], 10_000);
  }
});

Deno.test("a suspect refutes, and the suspicion ends everywhere", () => {
  const network = new Network({ seed: 10 });
  network.addKnown(6);
  network.run(2000);
  const victim = network.nodes[3];
  network.isLinked = (from, to) => from !== victim && to !== victim;
  network.runUntil(
    () => network.nodes.some((on) => network.view(on, victim)?.state === "suspect"),
    4000,
  );
  network.isLinked = () => true;
  network.run(2000);
  assert(network.isConverged());
  assertEquals(network.falseDeaths(), []);
  assert(victim.gossip.counters.refutations > 0);
  const incarnation = victim.gossip.member(uuidOf(3))!.incarnation;
  assert(incarnation > 0);
  for (const on of network.nodes) {
    assertEquals(network.view(on, victim)?.incarnation, incarnation);
  }
});

Deno.test("a member that was stopped blames nobody when it goes on, and comes back by itself", () => {
  for (let seed = 1; seed <= 5; seed++) {
    const network = new Network({ seed });
    network.addKnown(5);
    network.run(2000);
    const stopped = network.nodes[4];
    stopped.isPaused = true;
    network.runUntil(() => network.allSee(stopped, "dead"), 4000);
    network.run(8000);
    stopped.isPaused = false;
    network.runUntil(() => network.isConverged(), 3000);
    network.run(5000);
    assert(network.isConverged());
    const blamed = network.seen.filter(({ event }) => event.member.uuid !== uuidOf(4));
    assertEquals(blamed.map(({ event }) => event.kind), [], `seed ${seed}`);
    assert(stopped.gossip.counters.pauses === 1);
  }
});

Deno.test("a member that is stopped again and again for a second makes nobody else dead", () => {
  const network = new Network({ seed: 11 });
  network.addKnown(6);
  const slow = network.nodes[0];
  for (let round = 0; round < 30; round++) {
    slow.isPaused = round % 2 === 0;
    network.run(1000);
  }
  assertEquals(network.falseDeaths().filter(({ event }) => event.member.uuid !== uuidOf(0)), []);
});

// ---------------------------------------------------------------------------------------- partitions

Deno.test("halves of a partition find each other again, and no one is dead within its half", () => {
  for (const [count, border] of [[6, 3], [7, 2], [5, 4]]) {
    const network = new Network({ seed: 12 });
    network.addKnown(count);
    network.run(1000);
    network.isLinked = (from, to) => (from.index < border) === (to.index < border);
    network.run(30_000);
    for (const on of network.nodes) {
      for (const of of network.nodes) {
        const isSame = (on.index < border) === (of.index < border);
        assertEquals(network.view(on, of)?.state, isSame ? "alive" : "dead");
      }
    }
    network.isLinked = () => true;
    const healedMs = network.nowMs;
    network.runUntil(() => network.isConverged(), 10_000);
    network.run(5000);
    assert(network.isConverged());
    assertEquals(network.falseDeaths(healedMs), [], `${border} of ${count}`);
  }
});

Deno.test("who was cut off from all others does not bury them when it is back", () => {
  for (let seed = 1; seed <= 5; seed++) {
    const network = new Network({ seed });
    network.addKnown(8);
    network.run(1000);
    const lonely = network.nodes[3];
    network.isLinked = (from, to) => from !== lonely && to !== lonely;
    network.runUntil(
      () =>
        network.nodes.every((of) => of === lonely || network.view(lonely, of)?.state === "dead"),
      30_000,
    );
    network.isLinked = () => true;
    const healedMs = network.nowMs;
    network.runUntil(() => network.isConverged(), 10_000);
    assertEquals(network.falseDeaths(healedMs), [], `seed ${seed}`);
  }
});

Deno.test("a few that are cut off from many bury nobody when they are back before they have finished", () => {
  const network = new Network({ seed: 3 });
  network.addKnown(60);
  network.run(1000);
  network.isLinked = (from, to) => (from.index < 6) === (to.index < 6);
  network.run(15_000);
  network.isLinked = () => true;
  const healedMs = network.nowMs;
  network.runUntil(() => network.isConverged(), 10_000);
  assertEquals(network.falseDeaths(healedMs).filter(({ on }) => on.index >= 6), []);
});

Deno.test("what happened in the other half is learnt from slices", () => {
  const network = new Network({ seed: 13 });
  network.addKnown(8);
  network.isLinked = (from, to) => (from.index % 2) === (to.index % 2);
  network.run(15_000);
  // Members that joined, left and died while the halves did not see each other.
  network.add(8, { seeds: [addressOf(0)] });
  network.add(10, { seeds: [addressOf(0)] });
  network.run(3000);
  network.nodes[4].gossip.leave(network.nowMs);
  network.run(2000);
  network.crash(network.nodes[4]);
  network.run(120_000);
  network.isLinked = () => true;
  network.runUntil(() => network.isConverged(), 15_000);
  network.run(3000);
  assert(network.isConverged());
  assert(
    network.nodes.every((on) => !on.isUp || network.view(on, network.nodes[4])?.state !== "alive"),
  );
});

// ------------------------------------------------------------------------- leaving, restarts, changes

Deno.test("who leaves is gone at once, is suspected by nobody, and stays away", () => {
  const network = new Network({ seed: 14, loss: 0.1 });
  network.addKnown(6);
  network.run(2000);
  const leaver = network.nodes[2];
  leaver.gossip.leave(network.nowMs);
  network.runUntil(() => leaver.gossip.hasLeft, 2000);
  network.crash(leaver);
  network.runUntil(() => network.allSee(leaver, "left"), 1500);
  network.run(20_000);
  for (const on of network.nodes) {
    if (on !== leaver) assertEquals(eventsOf(network, on, leaver), ["left"]);
  }
  network.restart(leaver, { agentIncarnation: 2, seeds: [addressOf(0)] });
  network.runUntil(() => network.isConverged(), 2000);
});

Deno.test("a restart with a new agent incarnation wins over all older news", () => {
  const network = new Network({ seed: 15 });
  network.addKnown(5);
  network.run(2000);
  const node = network.nodes[1];
  crashOne(network, node, 3500);
  network.restart(node, { agentIncarnation: 2, seeds: [addressOf(0)] });
  network.runUntil(() => network.isConverged(), 1500);
  for (const on of network.nodes) {
    assertEquals(network.view(on, node)?.agentIncarnation, 2);
    assertEquals(network.view(on, node)?.incarnation, 0, "nothing had to be refuted");
  }
});

Deno.test("a quick restart is seen though nobody had time to suspect, first without a number", () => {
  for (const lastAgentIncarnation of [0, 1]) {
    const network = new Network({ seed: 16 });
    network.addKnown(5);
    network.run(2000);
    const node = network.nodes[1];
    const seesIncarnation = (agentIncarnation: number) => () =>
      network.nodes.every((on) => network.view(on, node)?.agentIncarnation === agentIncarnation);
    network.restart(node, {
      agentIncarnation: 0,
      seeds: [addressOf(0)],
      self: {
        uuid: uuidOf(1),
        address: addressOf(1),
        agentIncarnation: 0,
        lastAgentIncarnation,
        meta: metaOf(1),
      },
    });
    // Never taken for incarnation 1, which has lost what it had not synced.
    network.runUntil(seesIncarnation(0), 2000);
    node.gossip.renumber(1);
    assertEquals(network.view(node, node)?.agentIncarnation, 0, "that of an earlier start");
    node.gossip.renumber(2);
    network.runUntil(seesIncarnation(2), 1500);
    assertEquals(network.nodes.filter((on) => eventsOf(network, on, node).includes("dead")), []);
  }
});

Deno.test("a member that comes back at another address is found there", () => {
  const network = new Network({ seed: 17 });
  network.addKnown(5);
  network.run(2000);
  const node = network.nodes[1];
  network.crash(node);
  network.run(500);
  const address = "moved.example:7461";
  network.restart(node, { agentIncarnation: 2, seeds: [addressOf(0)], address });
  network.runUntil(
    () => network.nodes.every((on) => network.view(on, node)?.address === address),
    1500,
  );
  network.run(10_000);
  assert(network.isConverged());
});

Deno.test("news about itself reaches all, often ones at a bounded rate", () => {
  const network = new Network({ seed: 18 });
  network.addKnown(5);
  network.run(1000);
  const node = network.nodes[0];
  for (let freeBytes = 1; freeBytes <= 100; freeBytes++) {
    node.gossip.update({ ...metaOf(0), freeBytes });
    network.run(100);
  }
  network.runUntil(
    () => network.nodes.every((on) => network.view(on, node)?.meta.freeBytes === 100),
    GOSSIP_DEFAULTS.metaMs + 1500,
  );
  assert(network.view(node, node)!.incarnation <= 4);
  assertEquals(new Set(eventsOf(network, network.nodes[1], node)), new Set(["changed"]));
  assertThrows(() => node.gossip.update({ ...EMPTY_META, freeBytes: -1 }), RangeError);
});

Deno.test("the dead are forgotten after a while, do not come back before, and can be forgotten at once", () => {
  const network = new Network({ seed: 19 });
  const config = { deadForgetMs: 20_000, deadNewsMs: 10_000 };
  for (let index = 0; index < 4; index++) {
    network.add(index, { seeds: [addressOf(0)], config });
  }
  network.run(2000);
  const [dead, other] = network.nodes;
  assertEquals(other.gossip.forget(uuidOf(0)), false, "alive");
  crashOne(network, dead, 3500);
  assert(other.gossip.forget(uuidOf(0)));
  assertEquals(network.view(other, dead), null);
  network.run(15_000);
  assert(network.nodes.slice(1).every((on) => network.view(on, dead)?.state !== "alive"));
  network.run(8000);
  assert(network.nodes.slice(1).every((on) => network.view(on, dead) === null));
  assertEquals(eventsOf(network, network.nodes[2], dead), [
    "joined",
    "suspect",
    "dead",
    "forgotten",
  ]);
});

Deno.test("a number of members beyond the bound is refused, the dead make room", () => {
  const network = new Network({ seed: 20 });
  const full = network.add(0, { config: { membersMax: 3 } });
  for (let index = 1; index < 4; index++) network.add(index, { seeds: [addressOf(0)] });
  network.run(3000);
  assertEquals(full.gossip.members().length, 3);
  assert(full.gossip.counters.refused.membersFull > 0);
  const known = network.nodes.slice(1).filter((of) => network.view(full, of) !== null);
  network.crash(known[0]);
  network.run(8000);
  assertEquals(full.gossip.members().length, 3);
  assertEquals(network.view(full, known[0]), null);
});

Deno.test("two agents with one uuid do not talk to each other, and it is counted", () => {
  const random = new Prng(1);
  const self = { uuid: uuidOf(0), address: addressOf(0), agentIncarnation: 1, meta: EMPTY_META };
  const one = new Gossip({ self, random, seeds: [addressOf(1)] });
  const other = new Gossip({ self: { ...self, address: addressOf(1) }, random });
  one.tick(0);
  for (const { bytes } of one.takePackets()) other.receive(addressOf(0), bytes, 0);
  assertEquals(other.counters.refused.ownUuid, 1);
  assertEquals(other.takePackets(), []);
});

Deno.test("a configuration that is none is refused", () => {
  const random = new Prng(1);
  const self = { uuid: uuidOf(0), address: addressOf(0), agentIncarnation: 1, meta: EMPTY_META };
  for (
    const wrong of [
      { uuid: "x" },
      { uuid: uuidOf(0).toUpperCase() + "0" },
      { address: "host" },
      { address: "host:0" },
      { address: "host:65536" },
      { address: `${"h".repeat(130)}:1` },
      { agentIncarnation: -1 },
      { agentIncarnation: 2 ** 32 },
      { meta: { ...EMPTY_META, name: "n".repeat(64) } },
      { meta: { ...EMPTY_META, flags: 2 ** 32 } },
    ]
  ) assertThrows(() => new Gossip({ self: { ...self, ...wrong }, random }), RangeError);
  new Gossip({ self: { ...self, address: "[fe80::1%eth0]:7460" }, random });
});

Deno.test("packets that the caller does not take are dropped at a bound", () => {
  const network = new Network({ seed: 21 });
  network.addKnown(3);
  const { gossip } = network.nodes[0];
  for (let nowMs = 0; nowMs < 3_600_000; nowMs += TICK_MS) gossip.tick(nowMs);
  assert(gossip.counters.packetsDropped > 0);
  assert(gossip.takePackets().length <= 1024);
});

// --------------------------------------------------------------------------------- two or three by hand

/** The machine of member `index`, which knows others from the map. */
function machine(index: number, known: number[]): Gossip {
  return new Gossip({
    self: {
      uuid: uuidOf(index),
      address: addressOf(index),
      agentIncarnation: 1,
      meta: metaOf(index),
    },
    known: known.map((each) =>
      knownMember({
        uuid: uuidOf(each),
        address: addressOf(each),
        agentIncarnation: 1,
        meta: metaOf(each),
      })
    ),
    random: new Prng(index),
  });
}

/** Lets time pass for two machines that reach nobody else; gives the kinds of packets that they sent. */
function runTogether(one: Gossip, other: Gossip, untilMs: number): number[] {
  const kinds: number[] = [];
  const carry = (from: Gossip, to: Gossip, nowMs: number) => {
    for (const { address, bytes } of from.takePackets()) {
      kinds.push((decodePacket(bytes) as Packet).kind);
      if (address === to.member(to.uuid)?.address) {
        to.receive(from.member(from.uuid)!.address, bytes, nowMs);
      }
    }
  };
  for (let nowMs = 0; nowMs < untilMs; nowMs += TICK_MS) {
    one.tick(nowMs);
    other.tick(nowMs);
    for (let round = 0; round < 3; round++) {
      carry(one, other, nowMs);
      carry(other, one, nowMs);
    }
  }
  return kinds;
}

/** A packet without fields or a number only, from member `index` in this incarnation. */
function packetFrom(index: number, incarnation: number, entries: Entry[]): Uint8Array {
  const writer = new PackWriter(PACKET_BYTES_MAX);
  writer.array(5);
  writer.uint(1);
  writer.uint(PacketKind.News);
  writer.array(3);
  writer.binary(uuidBytes(uuidOf(index)));
  writer.uint(2);
  writer.uint(incarnation);
  writer.array(0);
  writer.array(entries.length);
  for (const entry of entries) writer.raw(encodeEntry(entry));
  return writer.take();
}

/** Member `by` accuses member `index` in incarnation 0. */
function accusation(index: number, by: number): Entry {
  const accusations = [{ by: uuidOf(by), asked: 3, nacks: 1 }];
  const claim = { uuid: uuidOf(index), run: 2, incarnation: 0 };
  return { state: "suspect", ...claim, content: null, accusations, by: "" };
}

Deno.test("equal tables exchange digests only, different ones slices", () => {
  const kinds = new Set(runTogether(machine(0, [1]), machine(1, [0]), 5000));
  assertEquals(
    kinds,
    new Set([PacketKind.Ping, PacketKind.Ack, PacketKind.News, PacketKind.Digest]),
  );
  const other = machine(1, [0]);
  const differing = runTogether(machine(0, [1, 2]), other, 2000);
  assert(differing.includes(PacketKind.DigestAnswer) && differing.includes(PacketKind.Slice));
  assertEquals(other.member(uuidOf(2))?.meta, metaOf(2), "nobody else told of the third");
});

Deno.test("the head of any packet of a suspect in a newer incarnation refutes", () => {
  const gossip = machine(0, [1, 2, 3]);
  gossip.receive(addressOf(2), packetFrom(2, 0, [accusation(1, 2)]), 100);
  assertEquals(gossip.member(uuidOf(1))?.state, "suspect");
  gossip.receive(addressOf(1), packetFrom(1, 0, []), 110);
  assertEquals(gossip.member(uuidOf(1))?.state, "suspect", "it has not heard of it yet");
  gossip.receive(addressOf(1), packetFrom(1, 1, []), 120);
  assertEquals(gossip.member(uuidOf(1))?.state, "alive");
  gossip.receive(addressOf(2), packetFrom(2, 0, [accusation(1, 2)]), 130);
  assertEquals(gossip.member(uuidOf(1))?.state, "alive", "old news");
});

Deno.test("a suspect is told of it in the ping, and those who accuse this member are answered first", () => {
  const gossip = machine(0, [1]);
  gossip.tick(0);
  gossip.receive(addressOf(2), packetFrom(2, 0, [accusation(1, 2)]), 10);
  gossip.takePackets();
  for (let nowMs = 50; nowMs < 600; nowMs += TICK_MS) gossip.tick(nowMs);
  const pings = gossip.takePackets()
    .map(({ bytes }) => decodePacket(bytes) as Packet)
    .filter(({ kind }) => kind === PacketKind.Ping);
  assert(pings.length > 0);
  assertEquals(pings[0].entries[0].state, "suspect");
  assertEquals(pings[0].entries[0].uuid, uuidOf(1));

  const accused = machine(0, Array.from({ length: 50 }, (_, index) => index + 1));
  accused.tick(0);
  for (let nowMs = 50; nowMs < 3000; nowMs += TICK_MS) accused.tick(nowMs);
  accused.takePackets();
  accused.receive(addressOf(7), packetFrom(7, 0, [accusation(0, 9)]), 3000);
  accused.tick(3010);
  const told = accused.takePackets().filter(({ address }) => address === addressOf(9));
  assertEquals((decodePacket(told[0].bytes) as Packet).incarnation, 1);
});

Deno.test("a suspect is given the time that this process did not run", () => {
  const gossip = machine(0, [1, 2]);
  gossip.tick(0);
  gossip.receive(addressOf(2), packetFrom(2, 0, [accusation(1, 2)]), 50);
  const { deadlineMs } = gossip.member(uuidOf(1))!;
  gossip.tick(30_000);
  assertEquals(gossip.member(uuidOf(1))?.state, "suspect");
  assertEquals(gossip.member(uuidOf(1))?.deadlineMs, deadlineMs + 30_000 - 50 - TICK_MS);
  assertEquals([gossip.health, gossip.counters.pauses], [1, 1]);
});

// ---------------------------------------------------------------------------------------------- rates

Deno.test("bytes per second of a member are the same with 10, 100 and 1000 members, and 1000 find a crash in 12 s", () => {
  const rates: number[] = [];
  for (const count of [10, 100, 1000]) {
    const network = new Network({ seed: 22 });
    network.addKnown(count);
    const seconds = count === 1000 ? 1 : 6;
    // The news that each member is there, which a start brings.
    network.run(count === 1000 ? 1000 : 4000);
    const before = network.nodes.map(({ bytesSent, bytesReceived }) => bytesSent + bytesReceived);
    network.run(1000 * seconds);
    const all = network.nodes.map((node, index) =>
      (node.bytesSent + node.bytesReceived - before[index]) / seconds
    );
    rates.push(all.reduce((sum, each) => sum + each) / count);
    if (count < 1000) continue;
    const tookMs = crashOne(network, network.nodes[500], 12_000);
    const most = Math.max(...network.nodes.map(({ bytesSent }) => bytesSent));
    // Not even the news of a death takes more than what the timers allow.
    assert(most / (2 + tookMs / 1000) < 25_000, `${most} bytes in ${tookMs} ms`);
    assertEquals(network.falseDeaths(), []);
  }
  for (const rate of rates) assert(rate < 2200 && rate > 1200, `${rates} bytes per second`);
  assert(Math.max(...rates) < 1.15 * Math.min(...rates), `${rates} bytes per second`);
});
