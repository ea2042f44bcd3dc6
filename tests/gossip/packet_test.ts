import { Packr } from "msgpackr";
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { Gossip } from "../../agent/gossip/gossip.ts";
import { decodeMeta, EMPTY_META, encodeMeta, META_BYTES_MAX } from "../../agent/gossip/meta.ts";
import { PackReader, PackWriter } from "../../agent/gossip/pack.ts";
import {
  decodePacket,
  encodeEntry,
  INCARNATION_MAX,
  isAddress,
  type Packet,
  PACKET_BYTES_MAX,
  PACKET_VERSION,
  PacketKind,
  uuidBytes,
} from "../../agent/gossip/packet.ts";
import { PLAINTEXT_BYTES_MAX } from "../../agent/wire/datagram_seal.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

const A = "0a".repeat(16);
const B = "1b".repeat(16);
const C = "2c".repeat(16);

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pack(value: unknown): Uint8Array {
  return new Uint8Array(packr.pack(value));
}

function read(bytes: Uint8Array): Packet {
  const packet = decodePacket(bytes);
  if (typeof packet === "string") throw new Error(`${packet}: ${hex(bytes)}`);
  return packet;
}

/** What msgpackr would take for a uuid. */
function id(uuid: string): Uint8Array {
  return uuidBytes(uuid);
}

const META = { ...EMPTY_META, name: "host-1", zone: "r1", version: "0.3.0", protocol: 1 };

function member(uuid: string, address: string, seed: number, seeds: string[] = []): Gossip {
  const self = { uuid, address, agentIncarnation: 3, meta: META };
  return new Gossip({ self, seeds, random: new Prng(seed) });
}

/** Two members meet, with the packets that they exchange. */
function meeting(): string[] {
  const one = member(A, "10.0.0.1:7460", 1);
  const two = member(B, "10.0.0.2:7460", 2, ["10.0.0.1:7460"]);
  const lines: string[] = [];
  for (let nowMs = 0; nowMs < 700; nowMs += 50) {
    one.tick(nowMs);
    two.tick(nowMs);
    for (let round = 0; round < 3; round++) {
      for (const { bytes } of one.takePackets()) {
        lines.push(`${nowMs} one ${hex(bytes)}`);
        two.receive("10.0.0.1:7460", bytes, nowMs);
      }
      for (const { bytes } of two.takePackets()) {
        lines.push(`${nowMs} two ${hex(bytes)}`);
        one.receive("10.0.0.2:7460", bytes, nowMs);
      }
    }
  }
  return lines;
}

Deno.test("entries of version 1 have the bytes that they always had, and read as they were written", () => {
  assertEquals(PACKET_VERSION, 1, "a new version needs golden bytes and a line here");
  const metaBytes = encodeMeta(META);
  const base = { uuid: A, run: 6, incarnation: 300, content: null, accusations: [], by: "" };
  const content = { address: "host-1:7460", meta: META, metaBytes };
  const accusations = [{ by: B, asked: 3, nacks: 2 }, { by: C, asked: 0, nacks: 0 }];
  const entries = [
    { ...base, state: "alive", content } as const,
    { ...base, state: "alive" } as const,
    { ...base, state: "suspect", accusations } as const,
    { ...base, state: "dead", by: B } as const,
    { ...base, state: "left", run: 2 ** 33 - 1, incarnation: INCARNATION_MAX } as const,
  ];
  assertEquals(entries.map((entry) => hex(encodeEntry(entry))), GOLDEN_ENTRIES);
  const writer = new PackWriter(PACKET_BYTES_MAX);
  for (const bytes of [pack([1, 4, [id(C), 1, 2], []]).with(0, 0x95)]) writer.raw(bytes);
  writer.array(entries.length);
  for (const entry of entries) writer.raw(encodeEntry(entry));
  const packet = read(writer.take());
  assertEquals(packet.entries, entries);
  assertEquals([packet.kind, packet.from, packet.run, packet.incarnation], [4, C, 1, 2]);
});

Deno.test("a meeting of two members has the packets of version 1 that it always had", () => {
  const golden = Deno.readTextFileSync(new URL("golden/meeting_v1.txt", import.meta.url));
  if (Deno.args.includes("--update-golden")) {
    Deno.writeTextFileSync(
      new URL("golden/meeting_v1.txt", import.meta.url),
      meeting().join("\n") + "\n",
    );
  }
  assertEquals(meeting().join("\n") + "\n", golden, "intended? then -- --update-golden");
});

Deno.test("packets of every kind are read, written by another MessagePack", () => {
  const head = [id(A), 6, 7];
  const digest = new Uint8Array(64).fill(5);
  const cases: [number, unknown[], Record<string, unknown>][] = [
    [PacketKind.Ping, [70000, id(B)], { number: 70000, subject: B }],
    [PacketKind.Ping, [1, id("")], { subject: "" }],
    [PacketKind.Ack, [2 ** 32 - 1, id(B), 9, 10], {
      number: 2 ** 32 - 1,
      subject: B,
      subjectRun: 9,
      subjectIncarnation: 10,
    }],
    [PacketKind.PingRequest, [5, id(B), "[::1]:7460"], { subject: B, address: "[::1]:7460" }],
    [PacketKind.Nack, [5], { number: 5 }],
    [PacketKind.News, [], {}],
    [PacketKind.Digest, [digest], { digest }],
    [PacketKind.DigestAnswer, [digest], { digest }],
    [PacketKind.Slice, [], {}],
    [PacketKind.Pull, [5, id(B)], { number: 5, after: B }],
    [PacketKind.PullAnswer, [5, id(""), id(C)], { number: 5, after: "", next: C }],
  ];
  for (const [kind, fields, expected] of cases) {
    const packet = read(pack([1, kind, head, fields, [[3, id(C), 1, 2]]]));
    const common = { kind, from: A, run: 6, incarnation: 7 };
    for (const [name, value] of Object.entries({ ...common, ...expected })) {
      assertEquals((packet as unknown as Record<string, unknown>)[name], value, `${kind} ${name}`);
    }
    assertEquals(packet.entries.map(({ state, uuid }) => [state, uuid]), [["left", C]]);
    for (const wrong of [[...fields, 0], fields.slice(1), fields.map(() => "x")]) {
      if (wrong.length === 0 && fields.length === 0) continue;
      assertEquals(decodePacket(pack([1, kind, head, wrong, []])), "malformed", `kind ${kind}`);
    }
  }
});

Deno.test("packets that are none are refused and say why", () => {
  const entry = [0, id(C), 1, 2, "host:1", encodeMeta(META)];
  const good = [1, 4, [id(A), 6, 7], [], [entry]];
  const withEntry = (index: number, value: unknown) => {
    return good.with(4, [entry.with(index, value as never)] as never);
  };
  const suspect = (accusations: unknown) => good.with(4, [[1, id(C), 1, 2, accusations]] as never);
  const cases: [string, unknown, string][] = [
    ["another version", good.with(0, 2), "version"],
    ["no version", good.with(0, "1" as never), "malformed"],
    ["no list", 7, "malformed"],
    ["one more", [...good, 0], "malformed"],
    ["unknown kind", good.with(1, 10), "malformed"],
    ["sender", good.with(2, [id(A), 6] as never), "malformed"],
    ["uuid of 15 bytes", good.with(2, [new Uint8Array(15), 6, 7] as never), "malformed"],
    ["uuid of none", good.with(2, [id(""), 6, 7] as never), "malformed"],
    ["run beyond its bound", good.with(2, [id(A), 2 ** 33, 7] as never), "malformed"],
    ["incarnation beyond", good.with(2, [id(A), 6, 2 ** 48 + 1] as never), "malformed"],
    ["below zero", good.with(2, [id(A), -1, 7] as never), "malformed"],
    ["a fraction", good.with(2, [id(A), 1.5, 7] as never), "malformed"],
    ["entries as a map", good.with(4, {} as never), "malformed"],
    ["unknown state", withEntry(0, 4), "malformed"],
    ["entry too short", good.with(4, [entry.slice(0, 5)] as never), "malformed"],
    ["entry too long", good.with(4, [[...entry, 0]] as never), "malformed"],
    ["no address", withEntry(4, "host"), "malformed"],
    ["long address", withEntry(4, "h".repeat(130) + ":1"), "malformed"],
    ["no meta", withEntry(5, new Uint8Array([1])), "malformed"],
    ["meta too long", withEntry(5, new Uint8Array(META_BYTES_MAX + 1)), "malformed"],
    ["suspected by nobody", suspect([]), "malformed"],
    ["suspected by itself", suspect([[id(C), 1, 1]]), "malformed"],
    ["too many accusers", suspect(Array(6).fill([id(A), 1, 1])), "malformed"],
    ["dead by nobody", good.with(4, [[2, id(C), 1, 2]] as never), "malformed"],
  ];
  assert(typeof decodePacket(pack(good)) !== "string");
  for (const [what, value, fault] of cases) assertEquals(decodePacket(pack(value)), fault, what);
  assertEquals(decodePacket(new Uint8Array(PACKET_BYTES_MAX + 1)), "tooLong");
  const bytes = pack(good);
  for (let length = 0; length < bytes.length; length++) {
    assertEquals(decodePacket(bytes.subarray(0, length)), "malformed", `${length} bytes`);
  }
  assertEquals(decodePacket(new Uint8Array([...bytes, 0])), "malformed");
  // An array that claims 65535 entries, and one of 2^32.
  const head = pack(good.with(4, [])).slice(0, -1);
  for (const claim of [[0xdc, 255, 255], [0xdd, 255, 255, 255, 255], [0xdf, 0, 0, 0, 0]]) {
    assertEquals(decodePacket(new Uint8Array([...head, ...claim])), "malformed");
  }
});

Deno.test("a packet fits into a sealed datagram", () => {
  assertEquals(PACKET_BYTES_MAX, PLAINTEXT_BYTES_MAX);
});

Deno.test("packets may name only addresses that are some", () => {
  for (const good of ["a:1", "10.0.0.1:7460", "host-1.example_x:65535", "[fe80::1%eth0]:7460"]) {
    assert(isAddress(good), good);
  }
  for (
    const bad of ["", "a", ":1", "a:", "a:0", "a:65536", "a:123456", "a b:1", "a:1\n", "::1:7460"]
  ) assert(!isAddress(bad), bad);
});

Deno.test("a meta comes back as it was, the longest too, and newer keys are passed over", () => {
  const longest = {
    name: "ä".repeat(31) + "a",
    zone: "z".repeat(63),
    version: "v".repeat(63),
    protocol: Number.MAX_SAFE_INTEGER,
    capacityBytes: Number.MAX_SAFE_INTEGER,
    freeBytes: 2 ** 40,
    flags: 2 ** 32 - 1,
  };
  for (const meta of [EMPTY_META, META, longest]) {
    const bytes = encodeMeta(meta);
    assert(bytes.length <= META_BYTES_MAX, `${bytes.length}`);
    assertEquals(decodeMeta(bytes), meta);
    assertEquals(packr.unpack(bytes).name, meta.name);
  }
  const newer = pack({ shards: [1, { a: [true, null, -5, 1.5, "x"] }], name: "n", t: new Date(0) });
  assertEquals(decodeMeta(newer), null, "extension types are not passed over");
  const plain = pack({ shards: [1, { a: [true, null, -5, 1.5, "x", -70000] }], name: "n" });
  assertEquals(decodeMeta(plain), { ...EMPTY_META, name: "n" });
  let nested: unknown = 1;
  for (let depth = 0; depth < 20; depth++) nested = [nested];
  assertEquals(decodeMeta(pack({ nested })), null);
  assertEquals(decodeMeta(pack({ name: 5 })), null);
  assertEquals(decodeMeta(pack({ name: "n".repeat(64) })), null);
  assertEquals(decodeMeta(new Uint8Array(300).fill(0x91)), null, "nested without end");
  assertEquals(decodeMeta(new Uint8Array([0x81, 0xa1, 0xff, 1])), null, "no UTF-8");
  assertThrows(() => encodeMeta({ ...EMPTY_META, zone: "ä".repeat(32) }), RangeError);
  assertThrows(() => encodeMeta({ ...EMPTY_META, protocol: 0.5 }), RangeError);
});

Deno.test("numbers, texts and bytes of every length are those of msgpackr", () => {
  const writer = new PackWriter(70_000);
  const numbers = [0, 127, 128, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1];
  for (const value of numbers) {
    writer.uint(value);
    const bytes = writer.take();
    assertEquals(Number(packr.unpack(bytes)), value);
    assertEquals(new PackReader(bytes).uint(), value);
  }
  for (const length of [0, 1, 31, 32, 255, 256, 65535]) {
    writer.text("x".repeat(length));
    const text = writer.take();
    assertEquals(packr.unpack(text), "x".repeat(length));
    assertEquals(new PackReader(text).text(65535).length, length);
    writer.binary(new Uint8Array(length));
    const binary = writer.take();
    assertEquals(packr.unpack(binary).length, length);
    assertEquals(new PackReader(binary).binary(65535).length, length);
    assert(length === 0 || new PackReader(binary).binary(length - 1).length === 0);
  }
  assertEquals(new PackReader(pack(2n ** 60n)).uint(), 0);
  const claims = new PackReader(new Uint8Array([0xdc, 0xff, 0xff, 1]));
  assertEquals([claims.array(), claims.isFailed], [0, true]);
  writer.raw(new Uint8Array(70_001));
  assertThrows(() => writer.take(), RangeError);
});

/** In the order of the test. */
const GOLDEN_ENTRIES: string[] = [
  "9600c4100a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a06cd012cab686f73742d313a37343630c44487a46e616d65a6686f73742d31a47a6f6e65a27231a776657273696f6ea5302e332e30a870726f746f636f6c01a8636170616369747900a46672656500a5666c61677300",
  "9400c4100a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a06cd012c",
  "9501c4100a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a06cd012c9293c4101b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b030293c4102c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c0000",
  "9502c4100a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a06cd012cc4101b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b",
  "9403c4100a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0acf00000001ffffffffcf0001000000000000",
];
