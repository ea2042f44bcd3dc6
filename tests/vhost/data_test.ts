import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Fixture, GUEST_BASE, LINUX_FEATURES } from "./fixture.ts";
import { type Descriptor, FEATURE } from "./mock_driver.ts";

const SECTORS = 256;

/** What the driver remembers of a request. */
interface Outstanding {
  readonly type: number;
  readonly sector: number;
  readonly length: number;
  readonly status: number;
  /** Guest addresses of the data, byte by byte. */
  readonly addresses: number[];
  readonly isValid: boolean;
}

/**
 * A guest that does random requests with random cuts on several queues, never two at once that touch the same
 * sector, and knows what every sector must hold.
 */
function run(
  seed: number,
  options: { features?: bigint; pieceBytes?: number; steps: number; isPolling?: boolean },
) {
  const random = new Prng(seed);
  const queueSize = random.pick([4, 16, 64]);
  const fixture = new Fixture({
    queueCount: 3,
    queueSize,
    diskBytes: SECTORS * 512,
    features: options.features,
    pieceBytes: options.pieceBytes,
  }).start();
  const { guest, queues, session, host, target } = fixture;
  const oracle = target.data.slice();
  const busy = new Set<number>();
  const outstanding = queues.map(() => new Map<number, Outstanding>());
  const hasIndirect = (fixture.features & FEATURE.INDIRECT) !== 0n;
  const counts = { done: 0, calls: 0, indirect: 0 };
  /** Slots of guest memory for one request each, so that no two share a byte. */
  const slotBytes = 24576;
  const [first, second] = fixture.regions;
  const start = GUEST_BASE + 65536;
  const slots: number[] = [];
  for (let at = start; at + slotBytes <= first.guestAddress + first.sizeBytes; at += slotBytes) {
    slots.push(at);
  }
  for (
    let at = second.guestAddress;
    at + slotBytes <= second.guestAddress + second.sizeBytes;
    at += slotBytes
  ) {
    slots.push(at);
  }
  const slotOf = new Map<Outstanding, number>();

  function cut(addressStart: number, length: number, write: boolean) {
    const descriptors: Descriptor[] = [];
    const addresses: number[] = [];
    let at = addressStart;
    while (addresses.length < length) {
      const part = Math.min(
        length - addresses.length,
        random.pick([length, 512, 1 + random.below(700), 4096]),
      );
      at += random.pick([0, 0, 1, 3, 16]);
      descriptors.push({ address: at, length: part, write });
      for (let i = 0; i < part; i++) addresses.push(at + i);
      at += part;
    }
    return { descriptors, addresses, end: at };
  }

  function add() {
    const queue = random.pick(queues);
    const slot = slots.pop();
    if (slot === undefined) return;
    const type = random.pick([0, 0, 0, 1, 1, 1, 4, 11, 13, 42]);
    const sectors = 1 + random.below(12);
    const sector = random.below(SECTORS - sectors + 2);
    const isData = type === 0 || type === 1;
    const isRange = type === 11 || type === 13;
    const isValid = type !== 42 && sector + sectors <= SECTORS;
    const touched = isData || isRange ? Array.from({ length: sectors }, (_, i) => sector + i) : [];
    if (isValid && touched.some((each) => busy.has(each))) {
      slots.push(slot);
      return;
    }
    const length = isData ? sectors * 512 : 0;
    const header = new Uint8Array(new Uint32Array([type, 0, isRange ? 0 : sector, 0]).buffer);
    const extra = isRange
      ? new Uint8Array(new Uint32Array([sector, 0, sectors, 0]).buffer)
      : new Uint8Array(0);
    const data = type === 1 ? new Uint8Array(length) : new Uint8Array(0);
    random.fill(data);
    const readable = cut(slot, 16 + extra.length + data.length, false);
    [...header, ...extra, ...data].forEach((byte, i) => guest.set(readable.addresses[i], [byte]));
    const writable = cut(readable.end, (type === 0 ? length : 0) + 1, true);
    for (const address of writable.addresses) guest.set(address, [0xee]);
    const table = hasIndirect && random.chance(0.5) ? Math.ceil((writable.end + 1) / 16) * 16 : -1;
    const chain = [...readable.descriptors, ...writable.descriptors];
    if (table >= 0 && table + chain.length * 16 > slot + slotBytes) {
      slots.push(slot);
      return;
    }
    const before = queue.availableIndex;
    const head = queue.add(
      chain,
      table,
      table >= 0 ? random.below(Math.max(1, Math.min(chain.length, queue.freeCount))) : 0,
    );
    if (head < 0) {
      slots.push(slot);
      return;
    }
    if (table >= 0) counts.indirect++;
    if (isValid) { for (const each of touched) busy.add(each); }
    const request = {
      type,
      sector,
      length: sectors * 512,
      status: writable.addresses.at(-1)!,
      addresses: type === 0 ? writable.addresses.slice(0, -1) : [],
      isValid,
    };
    if (type === 1 && isValid) oracle.set(data, sector * 512);
    if (isRange && isValid) oracle.fill(0, sector * 512, (sector + sectors) * 512);
    slotOf.set(request, slot);
    outstanding[queue.index].set(head, request);
    // A driver kicks only where it is asked to: nothing may hang.
    if (queue.wantsKick(before)) session.kicked(queue.index);
  }

  function reap() {
    for (const queue of queues) {
      if (queue.callEvent.count === 0) continue;
      counts.calls++;
      queue.callEvent.count = 0;
      for (const { head, length } of queue.reap()) {
        const request = outstanding[queue.index].get(head)!;
        outstanding[queue.index].delete(head);
        const [status] = guest.get(request.status, 1);
        const expected = request.type === 4 ? 0 : request.type === 42 ? 2 : request.isValid ? 0 : 1;
        assertEquals(status, expected);
        const isRead = request.type === 0 && request.isValid;
        assertEquals(length, (isRead ? request.length : 0) + 1);
        if (isRead) {
          const found = Uint8Array.from(
            request.addresses,
            (address) => host.bytes[guest.at(address)],
          );
          assertEquals(
            found,
            oracle.slice(request.sector * 512, request.sector * 512 + request.length),
          );
        } else if (request.type === 0) {
          for (const address of request.addresses) assertEquals(guest.get(address, 1)[0], 0xee);
        }
        if (request.isValid && (request.type < 2 || request.type > 10)) {
          for (let i = 0; i < request.length / 512; i++) busy.delete(request.sector + i);
        }
        slots.push(slotOf.get(request)!);
        counts.done++;
      }
    }
  }

  for (let step = 0; step < options.steps; step++) {
    for (let i = random.below(5); i > 0; i--) add();
    target.completeSome(random, random.below(6));
    if (random.chance(0.7)) host.runTurns();
    if (random.chance(0.7)) reap();
    if (options.isPolling !== true) continue;
    // The loop looks by itself for a while; before it sleeps, it asks for kicks again.
    host.isPolling = random.chance(0.5);
    if (random.chance(0.5)) { for (const polled of host.polledSessions) polled.poll(); }
    else {
      while (host.polledSessions.length > 0) host.polledSessions.pop()!.stopPolling();
    }
  }
  host.isPolling = false;
  while (host.polledSessions.length > 0) host.polledSessions.pop()!.stopPolling();
  for (let i = 0; i < 1000 && outstanding.some((map) => map.size > 0); i++) {
    target.completeAll();
    host.runTurns();
    reap();
  }
  assertEquals(outstanding.map((map) => map.size), [0, 0, 0], "requests hang");
  assertEquals(target.data, oracle);
  assertEquals(host.events, ["acquire"]);
  fixture.close();
  return counts;
}

Deno.test("random requests in random cuts leave the disk as an oracle has it, with event indices", () => {
  let done = 0, calls = 0;
  for (let seed = 0; seed < 12; seed++) {
    const counts = run(seed, { steps: 150 });
    done += counts.done;
    calls += counts.calls;
    assert(counts.indirect > 10);
  }
  assert(done > 2000, `${done} done`);
  assert(calls < done, "calls are batched");
});

Deno.test("the same without event indices and without indirect tables", () => {
  for (let seed = 100; seed < 106; seed++) {
    run(seed, { steps: 150, features: LINUX_FEATURES & ~FEATURE.EVENT_IDX & ~FEATURE.INDIRECT });
  }
});

Deno.test("the same with memory in many pieces", () => {
  for (let seed = 200; seed < 206; seed++) run(seed, { steps: 150, pieceBytes: 69632 });
});

Deno.test("the same with a host that looks at the rings by itself, now and then", () => {
  for (let seed = 300; seed < 306; seed++) run(seed, { steps: 150, isPolling: true });
  for (let seed = 400; seed < 404; seed++) {
    run(seed, { steps: 150, isPolling: true, features: LINUX_FEATURES & ~FEATURE.EVENT_IDX });
  }
});
