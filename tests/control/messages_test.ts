import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  ControlKind,
  type ControlMessage,
  decodeControl,
  EMPTY_REPORT,
  encodeControl,
  type NodeReport,
  PROPOSALS_PER_MESSAGE_MAX,
  REPORT_LIST_MAX,
} from "../../agent/control/messages.ts";

const REPORT: NodeReport = {
  epoch: 70_000,
  unreachable: [3, 65535],
  disconnected: [2],
  usedBytes: 2 ** 50,
  capacityBytes: 2 ** 52,
  isFull: true,
  joiningGroups: 256,
  chunksLeft: 100_000,
  copiedBytes: 5,
  copyBytesPerSecond: 6,
  stuck: "no replica to copy from is up",
  waiting: [{ disk: 7, reason: "1 of at least 2 copies are there" }],
  damagedBlocks: 1,
  lostLogs: [2],
  paths: [
    {
      location: "/disk1",
      state: "ok",
      reason: "",
      usedBytes: 7,
      capacityBytes: 2 ** 40,
      isFull: true,
    },
    {
      location: "/disk2",
      state: "left-out",
      reason: "the agent was not given it",
      usedBytes: 0,
      capacityBytes: 2 ** 40,
      isFull: false,
    },
  ],
  isProgramNew: null,
  hasOtherLog: false,
  io: {
    readsPerSecond: 1000,
    writesPerSecond: 2,
    readBytesPerSecond: 4096000,
    writtenBytesPerSecond: 8192,
    inFlight: 3,
    latencyUs: 250,
  },
  flattening: { bytesPerSecond: 12, stuck: "its store is nearly full" },
};

/** One message of each kind. */
const MESSAGES: readonly ControlMessage[] = [
  { kind: ControlKind.Raft, bytes: Uint8Array.of(1, 2, 3) },
  { kind: ControlKind.Propose, proposals: [Uint8Array.of(9), Uint8Array.of()] },
  {
    kind: ControlKind.Join,
    facts: {
      uuid: "0".repeat(32),
      name: "host-1",
      address: "192.0.2.1:7460",
      zone: "a",
      capacityBytes: 1e12,
      witness: true,
      version: "1.0.0",
      protocolMin: 2,
      protocol: 3,
      bootId: "boot",
      nowMs: 1e12,
    },
  },
  { kind: ControlKind.Joined, node: 2, clusterId: "c".repeat(32) },
  { kind: ControlKind.Refused, message: "the name host-1 is taken" },
  { kind: ControlKind.Renew, node: 2, incarnation: 3, id: 4, report: REPORT },
  { kind: ControlKind.Renewed, id: 2 ** 40 },
  { kind: ControlKind.Lease, node: 1, incarnation: 2, disk: 3 },
  { kind: ControlKind.Ask, id: 1 },
  { kind: ControlKind.Reports, id: 1, reports: [[1, REPORT], [2, EMPTY_REPORT]] },
  { kind: ControlKind.Lead, node: 3, address: "192.0.2.3:7460" },
  { kind: ControlKind.Restart, node: 3, incarnation: 7 },
  { kind: ControlKind.Removed, node: 3, clusterId: "c", epoch: 9 },
  {
    kind: ControlKind.Reports,
    id: 2,
    reports: [[1, { ...REPORT, isProgramNew: true }], [2, { ...REPORT, isProgramNew: false }]],
  },
  {
    kind: ControlKind.Reports,
    id: 3,
    reports: [[1, { ...REPORT, hasOtherLog: true }], [2, { ...EMPTY_REPORT, hasOtherLog: true }]],
  },
];

for (const each of MESSAGES) {
  Deno.test(`a control message of kind ${each.kind} comes back as it was`, () => {
    assertEquals(decodeControl(encodeControl(each)), each);
  });
}

Deno.test("control messages are these bytes, for ever", () => {
  const hex = (message: ControlMessage) => encodeControl(message).toHex();
  assertEquals(hex({ kind: ControlKind.Raft, bytes: Uint8Array.of(1, 2) }), "9201c4020102");
  assertEquals(hex({ kind: ControlKind.Renewed, id: 5 }), "920705");
  assertEquals(
    hex({ kind: ControlKind.Lease, node: 1, incarnation: 2, disk: 300 }),
    "94080102cd012c",
  );
  assertEquals(hex({ kind: ControlKind.Lead, node: 3, address: "a:1" }), "930b03a3613a31");
  assertEquals(hex({ kind: ControlKind.Restart, node: 3, incarnation: 7 }), "930c0307");
  assertEquals(
    hex({ kind: ControlKind.Removed, node: 3, clusterId: "c", epoch: 9 }),
    "940d03a16309",
  );
  assertEquals(
    hex({ kind: ControlKind.Renew, node: 1, incarnation: 1, id: 1, report: EMPTY_REPORT }),
    "95060101019d90900000c2000000a090000000",
  );
});

Deno.test("what is too long is cut by the sender and refused by the receiver", () => {
  const long = {
    ...REPORT,
    unreachable: new Array(REPORT_LIST_MAX + 5).fill(1),
    stuck: "x".repeat(9999),
  };
  const renew = { kind: ControlKind.Renew, node: 1, incarnation: 1, id: 1, report: long } as const;
  const decoded = decodeControl(encodeControl(renew));
  if (decoded?.kind !== ControlKind.Renew) throw new Error("it was refused");
  assertEquals(decoded.report.unreachable.length, REPORT_LIST_MAX);
  assertEquals(decoded.report.stuck.length, 512);
  const proposals = new Array(PROPOSALS_PER_MESSAGE_MAX + 1).fill(Uint8Array.of(1));
  assertEquals(decodeControl(encodeControl({ kind: ControlKind.Propose, proposals })), null);
  const message = "x".repeat(513);
  assertEquals(decodeControl(encodeControl({ kind: ControlKind.Refused, message })), null);
});

Deno.test("wrong types, unknown kinds and other bytes are no messages", () => {
  const bad: readonly Uint8Array[] = [
    Uint8Array.of(),
    Uint8Array.of(0xc0), // nil
    Uint8Array.of(0x80), // a map
    Uint8Array.of(0x90), // an empty list
    Uint8Array.of(0x91, 0x63), // kind 99
    Uint8Array.of(0x91, 0x01), // raft without bytes
    Uint8Array.of(0x92, 0x07, 0xff), // renewed, −1
    Uint8Array.of(0x92, 0x07, 0xcb, 0x3f, 0xe0, 0, 0, 0, 0, 0, 0), // renewed, 0.5
    Uint8Array.of(0x92, 0x02, 0x91, 0x05), // a proposal that is a number
    Uint8Array.of(0x93, 0x0b, 0x03, 0x05), // an address that is a number
    Uint8Array.of(0xdd, 0xff, 0xff, 0xff, 0xff, 0x01), // a list of 4 G entries
    Uint8Array.of(0xc6, 0xff, 0xff, 0xff, 0xff), // 4 GiB that are not there
  ];
  for (const bytes of bad) assertEquals(decodeControl(bytes), null, bytes.toHex());
});

Deno.test("mutated messages never throw, and what is accepted is sound", () => {
  const random = new Prng(4711);
  let accepted = 0;
  for (let i = 0; i < 20_000; i++) {
    const good = encodeControl(random.pick(MESSAGES));
    const bytes = random.chance(0.2) ? good.slice(0, random.below(good.length + 1)) : good;
    for (let n = random.between(1, 4); n > 0 && bytes.length > 0; n--) {
      bytes[random.below(bytes.length)] = random.below(256);
    }
    const decoded = decodeControl(bytes);
    if (decoded === null) continue;
    accepted++;
    // What was accepted can be said again: nothing in it is of a wrong type or out of bounds.
    assertEquals(decodeControl(encodeControl(decoded)), decoded, `seed ${random.seed}, round ${i}`);
  }
  assertEquals(accepted > 1000, true);
});
