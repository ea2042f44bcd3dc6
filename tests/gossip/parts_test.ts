import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Broadcasts } from "../../agent/gossip/broadcasts.ts";
import { isPresent, type Member, MemberTable } from "../../agent/gossip/members.ts";
import { EMPTY_META, encodeMeta } from "../../agent/gossip/meta.ts";
import { PackWriter } from "../../agent/gossip/pack.ts";
import { DIGEST_PARTS, MEMBER_STATES } from "../../agent/gossip/packet.ts";
import { Health, suspicionTimeoutMs, transmissionsMax } from "../../agent/gossip/suspicion.ts";
import { uuidOf } from "./network.ts";

const CONTENT = {
  address: "host:1",
  meta: EMPTY_META,
  metaBytes: encodeMeta(EMPTY_META),
};

Deno.test("a suspicion takes less the more members confirm it, and longer in small and large clusters", () => {
  const table: [number, number[]][] = [
    [2, [1550, 1550]],
    [3, [6500, 1300, 1300]],
    [5, [4000, 2400, 1464, 800, 800]],
    [10, [4000, 2400, 1464, 800]],
    [100, [11500, 6900, 4209, 2300]],
    [1000, [19000, 11400, 6954, 3800]],
  ];
  for (const [members, times] of table) {
    times.forEach((time, confirmations) => {
      assertEquals(Math.round(suspicionTimeoutMs(members, confirmations)), time, `${members}`);
    });
  }
  assertEquals([2, 9, 10, 99, 100, 1000].map(transmissionsMax), [4, 4, 8, 8, 12, 16]);
});

Deno.test("health stays between its ends and stretches times", () => {
  const health = new Health();
  health.change(-1);
  assertEquals(health.scale(500), 500);
  for (let i = 0; i < 20; i++) health.change(1);
  assertEquals([health.score, health.scale(500)], [8, 4500]);
  for (let i = 0; i < 8; i++) health.change(-1);
  assertEquals(health.score, 0);
});

Deno.test("news are sent the least sent first, as often as allowed, as many as fit, the newest only", () => {
  const broadcasts = new Broadcasts();
  const entry = (mark: number, length = 10) => new Uint8Array(length).fill(mark);
  const marks = (room: number, limit: number, except = "") => {
    const writer = new PackWriter(room);
    const count = broadcasts.write(writer, limit, (uuid) => uuid === except);
    const bytes = writer.take();
    const found = [...new Set(bytes)];
    assertEquals(found.length, count);
    return found;
  };
  broadcasts.put("a", entry(1));
  broadcasts.put("b", entry(2));
  broadcasts.put("c", entry(3, 25));
  assertEquals(marks(20, 3), [1, 2], "the third does not fit");
  broadcasts.put("d", entry(4));
  assertEquals(marks(35, 3), [3, 4], "those that were not sent come first");
  assertEquals(
    marks(30, 3, "a"),
    [2, 4],
    "the receiver knows, and what is too long is passed over",
  );
  broadcasts.put("b", entry(9));
  assertEquals(marks(100, 3), [9, 1, 3, 4]);
  assertEquals(broadcasts.length, 3, "the fourth was sent three times");
  assertEquals(marks(100, 3), [9, 1, 3]);
  assertEquals(marks(100, 3), [9]);
  assertEquals([marks(100, 3), broadcasts.length], [[], 0]);
});

Deno.test("each round of probes goes over everybody once, newcomers included, in another order", () => {
  const table = new MemberTable(uuidOf(0));
  const random = new Prng(3);
  const claim = { run: 2, incarnation: 0, content: CONTENT };
  for (let index = 0; index < 20; index++) table.add(uuidOf(index), claim, 0);
  const round = (count: number) =>
    Array.from({ length: count }, () => table.nextProbe(random)!.uuid);
  const orders = [round(19), round(19), round(19)];
  for (const order of orders) assertEquals(new Set(order).size, 19);
  assert(orders[0].join() !== orders[1].join());
  assert(!orders[0].includes(uuidOf(0)), "not itself");
  const half = round(10);
  table.add(uuidOf(20), claim, 0);
  table.remove(table.get(half[3])!);
  const rest = round(10);
  assertEquals(
    new Set([...half, ...rest]).size,
    20,
    "the removal of a probed one passes over nobody",
  );
  assert(rest.includes(uuidOf(20)));
});

Deno.test("random changes keep all views of the table in agreement, and equal tables have equal digests", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = new Prng(seed);
    const table = new MemberTable(uuidOf(0));
    const model = new Map<string, Member>();
    for (let step = 0; step < 300; step++) {
      const uuid = uuidOf(random.below(40));
      const claim = { run: random.below(4), incarnation: random.below(9), content: CONTENT };
      const member = model.get(uuid);
      if (member === undefined) model.set(uuid, table.add(uuid, claim, step));
      else if (random.chance(0.2)) {
        model.delete(uuid);
        table.remove(member);
      } else if (random.chance(0.3)) table.describe(member, claim);
      else table.place(member, claim, random.pick(MEMBER_STATES), step);
      if (random.chance(0.5)) table.nextProbe(random);
    }
    const all = [...model.values()];
    assertEquals(table.sorted.map(({ uuid }) => uuid), [...model.keys()].sort());
    const peers = all.filter((each) => isPresent(each) && each.uuid !== uuidOf(0));
    assertEquals(new Set(table.peers), new Set(peers));
    assert(table.peers.every((peer, index) => peer.peerIndex === index), `seed ${seed}`);
    assertEquals(table.suspects, new Set(all.filter(({ state }) => state === "suspect")));
    assertEquals(table.gone, new Set(all.filter((each) => !isPresent(each))));
    const other = new MemberTable(uuidOf(0));
    for (const each of random.shuffle(all.filter(isPresent))) {
      const copy = other.add(each.uuid, { ...each }, 0);
      const { contentRun: run, contentIncarnation: incarnation, content } = each;
      other.describe(copy, { run, incarnation, content });
    }
    assertEquals(other.digest, table.digest, `seed ${seed}`);
    for (let part = 0; part < DIGEST_PARTS; part++) {
      const slice = table.sorted.slice(table.indexOfPart(part), table.indexOfPart(part + 1));
      const digit = part.toString(16);
      assertEquals(slice.length, all.filter(({ uuid }) => uuid.startsWith(digit)).length);
      assert(slice.every(({ uuid }) => uuid.startsWith(digit)));
    }
  }
});

Deno.test("the digest tells of each number of a claim", () => {
  const table = new MemberTable(uuidOf(0));
  const member = table.add(uuidOf(1), { run: 2, incarnation: 0, content: CONTENT }, 0);
  const seen = new Set([table.digest.join()]);
  const look = () => {
    const { size } = seen;
    assertEquals(seen.add(table.digest.join()).size, size + 1);
  };
  table.place(member, { run: 3, incarnation: 0 }, "alive", 0);
  look();
  table.place(member, { run: 3, incarnation: 2 ** 40 }, "alive", 0);
  look();
  table.describe(member, { run: 3, incarnation: 0, content: CONTENT });
  look();
  table.describe(member, { run: 3, incarnation: 2 ** 40, content: CONTENT });
  look();
  table.place(member, member, "dead", 0);
  assertEquals(table.digest.join(), new Uint32Array(DIGEST_PARTS).join());
});
