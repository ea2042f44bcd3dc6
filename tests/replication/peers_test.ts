import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { MessageFlag, MessageType } from "../../agent/replication/messages.ts";
import {
  type PeerRequest,
  type PeerRequestOwner,
  Peers,
  REQUESTS_MAX,
} from "../../agent/replication/peers.ts";
import { answerTo, buffer, FakeTransport, message, type Sent } from "./harness.ts";

const NODE = 2, LINK = 40;

class Fixture implements PeerRequestOwner {
  readonly transport = new FakeTransport();
  readonly arena = new Arena();
  readonly peers = new Peers(this.transport);
  /** Tags of what was answered, with the status. */
  readonly answers: [tag: number, status: number][] = [];

  answered(request: PeerRequest, head: { status: number }, _: unknown, at: number, bytes: number) {
    this.answers.push([request.tag, head.status]);
    if (bytes > 0) this.arena.release(at, bytes);
  }

  submit(tag: number, node = NODE, type: MessageType = MessageType.Free): PeerRequest {
    const request = this.peers.take(type, this)!;
    request.tag = tag;
    request.head.chunk = tag;
    this.peers.submit(node, request);
    return request;
  }

  receive(bytes: Uint8Array, { link = LINK, data = [] as number[] } = {}): boolean {
    const at = data.length === 0 ? 0 : buffer(this.arena, ...data);
    const release = (offset: number, length: number) => this.arena.release(offset, length);
    const length = data.length * BLOCK_BYTES;
    return this.peers.received(link, bytes, bytes.length, at, length, release);
  }
}

/** What was sent: chunk (the request's tag), with "again" where it is marked. */
function order(sent: readonly Sent[]): (number | string)[] {
  return sent.map(({ head }) =>
    head.flags & MessageFlag.Again ? `${head.chunk} again` : head.chunk
  );
}

Deno.test("requests go in the order in which they were submitted, also those from before the link", () => {
  const at = new Fixture();
  at.submit(1);
  at.submit(2);
  assertEquals(at.transport.take(), []);
  assertEquals(at.peers.pending(NODE), 2);
  at.peers.linkUp(LINK, NODE, 1);
  at.submit(3);
  assertEquals(order(at.transport.take()), [1, 2, 3]);
});

Deno.test("after a reconnection what is unanswered goes first, marked, and in its order", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  for (const tag of [1, 2, 3]) at.submit(tag);
  const sent = at.transport.take();
  assertEquals(at.receive(answerTo(sent[1])), true);
  at.peers.linkDown(LINK);
  at.submit(4);
  assertEquals(at.transport.take(), []);
  at.peers.linkUp(LINK + 1, NODE, 2);
  at.submit(5);
  const again = at.transport.take();
  assertEquals(order(again), ["1 again", "3 again", 4, 5]);
  assertEquals(again.every(({ link }) => link === LINK + 1), true);
  // An answer of the old link is nobody's.
  at.receive(answerTo(sent[0]));
  assertEquals(at.answers, [[2, 0]]);
  for (const each of again) at.receive(answerTo(each), { link: LINK + 1 });
  assertEquals(at.answers.map(([tag]) => tag), [2, 1, 3, 4, 5]);
  assertEquals(at.peers.pending(NODE), 0);
});

Deno.test("a newer link takes the place of one that was not known to be gone", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  at.submit(1);
  at.transport.take();
  at.peers.linkUp(LINK + 1, NODE, 1);
  assertEquals(order(at.transport.take()), ["1 again"]);
  at.peers.linkDown(LINK);
  assertEquals(at.peers.isConnected(NODE), true);
});

Deno.test("without room in the transport requests wait, in order, until it is ready", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  at.transport.room = 1;
  for (const tag of [1, 2, 3]) at.submit(tag);
  assertEquals(order(at.transport.take()), [1]);
  at.transport.room = 1;
  at.submit(4);
  assertEquals(order(at.transport.take()), [], "it did not say that it is ready");
  at.peers.linkReady(LINK);
  assertEquals(order(at.transport.take()), [2]);
  at.transport.room = Infinity;
  at.peers.linkReady(LINK);
  assertEquals(order(at.transport.take()), [3, 4]);
});

Deno.test("a cancelled request is never answered, and neither is who uses its slot next", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  const cancelled = at.submit(1);
  const [sent] = at.transport.take();
  at.peers.cancel(cancelled);
  const next = at.submit(2);
  assertEquals(next.slot, cancelled.slot, "the test is about a slot that is used again");
  assertEquals(at.receive(answerTo(sent), { data: [7] }), true);
  assertEquals(at.answers, []);
  assertEquals(at.arena.usedBytes, 0, "the buffer was released");
  at.receive(answerTo(at.transport.take()[0], { status: 1 }));
  assertEquals(at.answers, [[2, 1]]);
});

Deno.test("one that is cancelled before it was sent leaves the others in their order", () => {
  const at = new Fixture();
  const requests = [1, 2, 3, 4].map((tag) => at.submit(tag));
  at.peers.cancel(requests[0]);
  at.peers.cancel(requests[2]);
  at.peers.linkUp(LINK, NODE, 1);
  assertEquals(order(at.transport.take()), [2, 4]);
});

Deno.test("one that is submitted again goes to the end, marked, and is answered once", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  const first = at.submit(1);
  at.submit(2);
  at.transport.take();
  at.peers.resubmit(first);
  const [again] = at.transport.take();
  assertEquals(order([again]), ["1 again"]);
  at.receive(answerTo(again));
  at.receive(answerTo(again));
  assertEquals(at.answers, [[1, 0]]);
});

Deno.test("answers count only for the request, the node and the kind that they are for", () => {
  const at = new Fixture();
  at.peers.linkUp(LINK, NODE, 1);
  at.peers.linkUp(LINK + 1, NODE + 1, 1);
  at.submit(1);
  const [sent] = at.transport.take();
  assertEquals(at.receive(answerTo(sent), { link: LINK + 1, data: [1] }), true);
  assertEquals(at.receive(answerTo(sent, { type: MessageType.Write | 0x80 }), { data: [1] }), true);
  assertEquals(at.receive(answerTo(sent, { id: sent.head.id + 1 }), { data: [1] }), true);
  assertEquals(at.receive(answerTo(sent, { id: 0xffffffff }), { data: [1] }), true);
  assertEquals(at.answers, []);
  assertEquals(at.arena.usedBytes, 0);
  // What no peer that keeps to the rules would send.
  assertEquals(at.receive(message({ ...sent.head }), { data: [1] }), false, "no answer");
  assertEquals(at.receive(answerTo(sent).slice(0, 63), { data: [1] }), false, "cut off");
  assertEquals(at.receive(answerTo(sent, { version: 9 }), { data: [1] }), false, "version");
  assertEquals(at.arena.usedBytes, 0);
  assertEquals(at.receive(answerTo(sent)), true);
  assertEquals(at.answers, [[1, 0]]);
});

Deno.test("nothing is heard of the requests of a node that is forgotten, and they go to nobody", () => {
  const at = new Fixture();
  at.submit(1);
  at.submit(2, NODE + 1);
  at.peers.forget(NODE);
  assertEquals(at.peers.pending(NODE), 0);
  at.peers.linkUp(LINK, NODE, 1);
  at.peers.linkUp(LINK + 1, NODE + 1, 1);
  assertEquals(order(at.transport.take()), [2]);
  assertEquals(at.answers, []);
});

Deno.test("requests are bounded, and one that is over makes room", () => {
  const at = new Fixture();
  let last: PeerRequest | null = null;
  for (let i = 0; i < REQUESTS_MAX; i++) last = at.submit(i);
  assertEquals(at.peers.take(MessageType.Free, at), null);
  at.peers.cancel(last!);
  assertEquals(at.peers.take(MessageType.Free, at)?.slot, last!.slot);
});

Deno.test("a node that does not answer is named with the time, until it does", () => {
  const at = new Fixture();
  const silentAt = (nowMs: number) => {
    const found: [number, number][] = [];
    at.peers.tick(nowMs, (node, forMs) => found.push([node, forMs]));
    return found;
  };
  at.peers.linkUp(LINK, NODE, 1);
  assertEquals(silentAt(0), [], "nothing waits for it");
  at.submit(1);
  at.submit(2);
  silentAt(1000);
  assertEquals(silentAt(3500), [[NODE, 2500]]);
  const sent = at.transport.take();
  at.receive(answerTo(sent[0]));
  assertEquals(silentAt(4000), [[NODE, 0]], "it begins anew with the answer");
  at.receive(answerTo(sent[1]));
  assertEquals(silentAt(9000), []);
});
