/**
 * What the simulated network promises, and that it really does its worst.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { Prng } from "../../agent/base/prng.ts";
import type { PeerListener } from "../../agent/platform/network.ts";
import {
  BAD_FAULTS,
  LINK_MS_MAX,
  type NetworkFaults,
  type SimulatedHost,
  SimulatedNetwork,
} from "../../agent/platform/simulated/network.ts";
import { headOf, linkOf, tagOf } from "./peer_ends.ts";

/** A host that records what it is told. */
class Node implements PeerListener {
  readonly bytes = new Uint8Array(2 << 20);
  readonly arena = new Arena(2 << 20);
  host: SimulatedHost;
  readonly events: string[] = [];
  /** Tags in order, by link. */
  readonly got: { life: string; tag: number; data: number }[] = [];
  readonly sent: { life: string; tag: number }[] = [];
  /** Of each link number, which of its uses it is. */
  readonly lives = new Map<number, string>();
  readonly controls: number[] = [];
  readonly datagrams: number[] = [];
  ready = 0;
  /** Depth of calls of its own that it is in: nothing may be delivered then. */
  isCalling = false;

  constructor(readonly network: SimulatedNetwork, readonly node: number, incarnation = 1) {
    this.host = this.#start(incarnation);
  }

  #start(incarnation: number): SimulatedHost {
    const host = this.network.addHost({
      address: addressOf(this.node),
      self: {
        uuid: `${this.node}`.padStart(32, "0"),
        node: this.node,
        incarnation,
        clusterId: "c".repeat(32),
      },
      bytes: this.bytes,
      arena: this.arena,
    });
    host.peerListener = this;
    host.controlListener = {
      controlReceived: (peer, bytes) => {
        this.#told();
        assertEquals(peer.address, addressOf(peer.node));
        this.controls.push(tagOf(bytes));
      },
    };
    host.datagramListener = {
      datagramReceived: (_from, bytes) => {
        this.#told();
        this.datagrams.push(tagOf(bytes));
      },
    };
    return host;
  }

  restart(incarnation: number): void {
    this.host = this.#start(incarnation);
  }

  /** The newest link that is up to or from a node. */
  link(to: number, direction: "out" | "in" = "out"): number {
    const up = this.events.filter((event) =>
      event.includes(`node ${to}.`) && event.endsWith(direction)
    );
    return linkOf(up.at(-1)!);
  }

  /** An outgoing link to a node has ever been there. */
  hasLink(to: number): boolean {
    return this.events.some((event) => event.includes(`node ${to}.`) && event.endsWith("out"));
  }

  send(to: number, tag: number, data = 0): boolean {
    this.isCalling = true;
    const offset = data > 0 ? this.arena.allocate(data) : 0;
    this.bytes.fill(tag, offset, offset + data);
    const sent = this.host.send(this.link(to), headOf(tag), 64, offset, data);
    if (sent) this.sent.push({ life: this.lives.get(this.link(to))!, tag });
    if (data > 0) this.arena.release(offset, data);
    this.isCalling = false;
    return sent;
  }

  #told(): void {
    assert(!this.isCalling, "told from inside a call of its own");
    assert(this.host.isAlive, "a dead host is told something");
  }

  linkUp(link: number, node: number, isOutgoing: boolean, incarnation: number): void {
    this.#told();
    this.events.push(`up ${link} node ${node}.${incarnation} ${isOutgoing ? "out" : "in"}`);
    this.lives.set(link, `${this.node}: ${this.events.length}`);
  }
  linkDown(link: number): void {
    this.#told();
    this.events.push(`down ${link}`);
  }
  linkReady(): void {
    this.#told();
    this.ready++;
  }
  received(link: number, head: Uint8Array, headBytes: number, offset: number, data: number): void {
    this.#told();
    assertEquals(headBytes, 64);
    const tag = tagOf(head);
    if (data > 0) {
      assertEquals(
        this.bytes.subarray(offset, offset + data).every((byte) => byte === tag % 256),
        true,
      );
      this.arena.release(offset, data);
    }
    this.got.push({ life: this.lives.get(link)!, tag, data });
  }
}

/** Tags by the link that they came or went over. */
function byLife(messages: { life: string; tag: number }[]): Map<string, number[]> {
  const lives = new Map<string, number[]>();
  for (const { life, tag } of messages) {
    const tags = lives.get(life);
    if (tags === undefined) lives.set(life, [tag]);
    else tags.push(tag);
  }
  return lives;
}

function addressOf(node: number): string {
  return `10.0.0.${node}:7460`;
}

function make(
  count: number,
  faults: Partial<NetworkFaults> = {},
  seed = 1,
): { network: SimulatedNetwork; nodes: Node[] } {
  const network = new SimulatedNetwork({ random: new Prng(seed), faults });
  return { network, nodes: Array.from({ length: count }, (_, i) => new Node(network, i + 1)) };
}

function dataAddress(node: number): string {
  return `10.0.0.${node}:7461`;
}

Deno.test("a link comes up on both sides, with who is there, and messages arrive in order", () => {
  const { network, nodes: [a, b] } = make(2);
  a.host.setPeer(2, dataAddress(2));
  assertEquals(a.events, []);
  network.run(10);
  assertEquals([a.events, b.events], [["up 0 node 2.1 out"], ["up 0 node 1.1 in"]]);
  for (let tag = 0; tag < 100; tag++) assertEquals(a.send(2, tag, tag % 3 * 4096), true);
  b.host.send(b.link(1, "in"), headOf(7), 64, 0, 0);
  network.run(20);
  assertEquals(b.got.map(({ tag }) => tag), Array.from({ length: 100 }, (_, i) => i));
  assertEquals(a.got.map(({ tag }) => tag), [7]);
  assertEquals([a.arena.usedBytes, b.arena.usedBytes], [0, 0]);
});

Deno.test("a seed repeats a run, another one differs", () => {
  const story = (seed: number) => {
    const { network, nodes } = make(3, BAD_FAULTS, seed);
    for (const a of nodes) {
      for (const b of nodes) if (a !== b) a.host.setPeer(b.node, dataAddress(b.node));
    }
    for (let i = 0; i < 100; i++) {
      network.run(i * 10);
      for (const a of nodes) {
        for (const b of nodes) {
          if (a === b) continue;
          a.host.datagrams.send(addressOf(b.node), headOf(i));
          a.host.control.send(addressOf(b.node), headOf(i));
          if (a.hasLink(b.node)) a.send(b.node, i);
        }
      }
    }
    return JSON.stringify([
      network.counts,
      nodes.map((node) => [node.events, node.got, node.datagrams]),
    ]);
  };
  assertEquals(story(4), story(4));
  assert(story(4) !== story(5));
});

Deno.test("datagrams are lost, doubled and reordered; control messages only lost", () => {
  const { network, nodes: [a, b] } = make(2, BAD_FAULTS, 3);
  const count = 2000;
  for (let tag = 0; tag < count; tag++) {
    a.host.datagrams.send(addressOf(2), headOf(tag));
    if (tag < 1000) assertEquals(a.host.control.send(addressOf(2), headOf(tag)), true);
    network.run(network.nowMs + 1);
  }
  network.run(network.nowMs + 1000);
  const share = b.datagrams.length / count;
  assert(Math.abs(share - 1.5 * 0.7) < 0.06, `${share} of the datagrams arrived`);
  assert(new Set(b.datagrams).size < b.datagrams.length, "none was doubled");
  assert(b.datagrams.some((tag, i) => i > 0 && tag < b.datagrams[i - 1]), "none was overtaken");
  assert(Math.abs(b.controls.length / 1000 - 0.7) < 0.06);
  assert(b.controls.every((tag, i) => i === 0 || tag > b.controls[i - 1]), "in order, once each");
});

Deno.test("a link that breaks loses what is in flight, tells both ends once, and is made again", () => {
  const { network, nodes: [a, b] } = make(2, { delayMs: [5, 10] });
  a.host.setPeer(2, dataAddress(2));
  network.run(100);
  for (let tag = 0; tag < 10; tag++) a.send(2, tag);
  network.run(network.nowMs + 6);
  const before = b.got.length;
  a.host.breakLink(a.link(2));
  network.run(network.nowMs + 500);
  assertEquals(b.got.length, before);
  assertEquals(a.events.map((event) => event.split(" ")[0]), ["up", "down", "up"]);
  assertEquals(b.events.map((event) => event.split(" ")[0]), ["up", "down", "up"]);
  assertEquals(network.counts.linkMessagesLost, 10 - before);
  a.send(2, 50);
  network.run(network.nowMs + 100);
  assertEquals(b.got.at(-1)!.tag, 50);
});

Deno.test("whatever breaks, each link delivers a beginning of what was sent on it, in order", () => {
  for (let seed = 1; seed <= 3; seed++) {
    const { network, nodes } = make(3, { ...BAD_FAULTS, linkBreak: 0.05 }, seed);
    const random = new Prng(seed);
    for (const a of nodes) {
      for (const b of nodes) if (a !== b) a.host.setPeer(b.node, dataAddress(b.node));
    }
    network.run(1000);
    let tag = 0;
    for (let i = 0; i < 1000; i++) {
      const [a, b] = random.shuffle([...nodes]);
      if (a.hasLink(b.node)) {
        a.send(b.node, ++tag, random.pick([0, 0, 4096, 65536]));
      }
      if (random.chance(0.01)) {
        network.setCut(addressOf(a.node), addressOf(b.node), random.chance(0.5));
      }
      network.run(network.nowMs + random.below(5));
    }
    network.heal();
    network.faults = { ...network.faults, linkBreak: 0 };
    network.run(network.nowMs + 30_000);
    let arrived = 0;
    for (const node of nodes) {
      assertEquals(node.arena.usedBytes, 0);
      const ups = node.events.filter((event) => event.startsWith("up")).length;
      const downs = node.events.filter((event) => event.startsWith("down")).length;
      assertEquals(ups - downs, node.host.linkCount, `seed ${seed}`);
      assertEquals(node.host.linkCount, 4, `seed ${seed}: every link is there again`);
      for (const [life, tags] of byLife(node.got)) {
        const isBeginning = nodes.some((from) =>
          [...byLife(from.sent).values()].some((sent) =>
            sent[0] === tags[0] && tags.every((tag, i) => tag === sent[i])
          )
        );
        assert(isBeginning, `seed ${seed}: link ${life} got ${tags.slice(0, 20)}`);
      }
      arrived += node.got.length;
    }
    assert(network.counts.linkMessagesLost > 0 && arrived < tag, `seed ${seed}: nothing was lost`);
    assertEquals(network.counts.linkMessagesLost + arrived, network.counts.linkMessages);
  }
});

Deno.test("over a cut a link stalls and goes on, or breaks when it lasts", () => {
  const { network, nodes: [a, b] } = make(2);
  a.host.setPeer(2, dataAddress(2));
  network.run(10);
  // Only one direction: answers still come.
  network.setCut(addressOf(1), addressOf(2), true);
  a.send(2, 1);
  b.host.send(b.link(1, "in"), headOf(9), 64, 0, 0);
  network.run(3000);
  assertEquals([a.got.length, b.got.length, a.events.length], [1, 0, 1]);
  network.heal();
  network.run(4000);
  assertEquals([b.got.map(({ tag }) => tag), a.events.length], [[1], 1]);
  network.partition([[addressOf(1)], [addressOf(2)]]);
  a.send(2, 2);
  network.run(4000 + 3 * LINK_MS_MAX);
  assertEquals([a.events.length, b.events.length, b.got.length], [2, 2, 1]);
  a.host.datagrams.send(addressOf(2), headOf(1));
  a.host.control.send(addressOf(2), headOf(1));
  network.run(network.nowMs + 100);
  assertEquals([b.controls.length, b.datagrams.length], [0, 0]);
  network.heal();
  network.run(network.nowMs + 3000);
  assertEquals(a.events.length, 3);
});

Deno.test("groups of a partition talk among themselves only", () => {
  const { network, nodes } = make(5);
  network.partition([[1, 2].map(addressOf), [3, 4, 5].map(addressOf)]);
  for (const a of nodes) {
    for (const b of nodes) if (a !== b) a.host.control.send(addressOf(b.node), headOf(a.node));
  }
  network.run(100);
  assertEquals(nodes.map((node) => node.controls.sort()), [[2], [1], [4, 5], [3, 5], [3, 4]]);
});

Deno.test("after a crash nothing is delivered to the dead, and its next life is a newer peer", () => {
  for (const isSilent of [false, true]) {
    const { network, nodes: [a, b] } = make(2);
    a.host.setPeer(2, dataAddress(2));
    b.host.setPeer(1, dataAddress(1));
    network.run(10);
    const link = a.link(2);
    b.host.crash({ isSilent });
    // Not known yet: it goes into a socket that nobody reads.
    assertEquals(a.host.send(link, headOf(1), 64, 0, 0), true);
    network.run(isSilent ? 3000 : 60);
    assertEquals(a.events.length, isSilent ? 2 : 4, `silent ${isSilent}`);
    network.run(10_000);
    assertEquals(a.host.linkCount, 0);
    b.restart(2);
    b.host.setPeer(1, dataAddress(1));
    network.run(15_000);
    assertEquals(a.events.slice(4).map((event) => event.slice(5)).sort(), [
      "node 2.2 in",
      "node 2.2 out",
    ]);
    assertThrows(() => b.restart(3), Error, "already");
  }
});

Deno.test("a new connection of a node replaces its old one, the end first", () => {
  const { network, nodes: [a, b] } = make(2);
  a.host.setPeer(2, dataAddress(2));
  network.run(10);
  a.host.setPeer(2, null);
  a.host.setPeer(2, dataAddress(2));
  network.run(100);
  assertEquals(b.events.map((event) => event.split(" ")[0]), ["up", "down", "up"]);
  assertEquals([a.host.linkCount, b.host.linkCount], [1, 1]);
  a.host.setPeer(2, null);
  network.run(200);
  assertEquals([a.host.linkCount, b.host.linkCount], [0, 0]);
  a.host.setPeer(3, dataAddress(2));
  network.run(5000);
  assertEquals(a.host.linkCount, 0, "another node than expected");
});

Deno.test("a full link refuses and says when there is room; a paused one and one without arena wait", () => {
  const { network, nodes: [a, b] } = make(2);
  a.host.setPeer(2, dataAddress(2));
  network.run(10);
  const inLink = b.link(1, "in");
  b.host.pause(inLink, true);
  let sent = 0;
  while (a.send(2, sent, 1 << 20)) sent++;
  assertEquals(sent, 7);
  network.run(1000);
  assertEquals([b.got.length, a.ready], [0, 0]);
  b.host.pause(inLink, false);
  assertEquals(b.got.length, 0);
  const held = [b.arena.allocate(1 << 20), b.arena.allocate(1 << 20)];
  network.run(2000);
  assertEquals(b.got.length, 0);
  for (const offset of held) b.arena.release(offset, 1 << 20);
  network.run(3000);
  assertEquals([b.got.map(({ tag }) => tag), a.ready], [[0, 1, 2, 3, 4, 5, 6], 1]);
  network.faults = { ...network.faults, linkRefusal: 1 };
  assertEquals(a.send(2, 9), false);
  network.run(4000);
  assertEquals(a.ready, 2);
});

Deno.test("a link is no faster than its bandwidth", () => {
  const { network, nodes: [a, b] } = make(2, { linkBytesPerMs: 10_000 });
  a.host.setPeer(2, dataAddress(2));
  network.run(10);
  for (let tag = 0; tag < 4; tag++) a.send(2, tag, 1 << 20);
  network.run(10 + 2.5 * 105);
  assertEquals(b.got.length, 2);
  network.run(10 + 4 * 106 + 5);
  assertEquals(b.got.length, 4);
});

Deno.test("impossible messages are the caller's fault, at once", () => {
  const { network, nodes: [a] } = make(2);
  a.host.setPeer(2, dataAddress(2));
  network.run(10);
  const send = (headBytes: number, dataBytes: number) => () =>
    a.host.send(a.link(2), new Uint8Array(9000), headBytes, 0, dataBytes);
  for (const [head, data] of [[63, 0], [8193, 0], [64, 100], [64, 2 << 20]]) {
    assertThrows(send(head, data), RangeError);
  }
  assertThrows(() => a.host.datagrams.send(addressOf(2), new Uint8Array(1401)), RangeError);
  assertThrows(() => a.host.control.send(addressOf(2), new Uint8Array(0)), RangeError);
});
