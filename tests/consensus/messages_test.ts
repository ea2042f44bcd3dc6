/**
 * Messages as bytes: a golden file, and nothing that damage could slip through.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Packr } from "msgpackr";
import { Prng } from "../../agent/base/prng.ts";
import { crc32c } from "../../agent/consensus/checksum.ts";
import {
  changeConfiguration,
  type Configuration,
  CONFIGURATION_BYTES_MAX,
  decodeConfiguration,
  encodeConfiguration,
  majorityOf,
  quorumValue,
} from "../../agent/consensus/configuration.ts";
import {
  APPEND_BYTES_MAX,
  APPEND_ENTRIES_MAX,
  COUNTER_MAX,
  ENTRY_BYTES_MAX,
  ENTRY_OVERHEAD_BYTES,
  LEARNERS_MAX,
  MESSAGE_BYTES_MAX,
  SNAPSHOT_BYTES_MAX,
  SNAPSHOT_PART_BYTES_MAX,
  VOTERS_MAX,
} from "../../agent/consensus/limits.ts";
import {
  decodeMessage,
  encodeMessage,
  type Message,
  MESSAGE_VERSION,
} from "../../agent/consensus/messages.ts";
import { unwrap } from "../../agent/map/errors.ts";

const configuration: Configuration = { voters: [1, 2, 65535], learners: [4] };
const head = { from: 1, to: 65535, term: 2 ** 40 };

/** The messages that the golden file of version 1 holds, one a line. */
const MESSAGES_V1: Message[] = [
  {
    kind: "append",
    ...head,
    prevIndex: 7,
    prevTerm: 3,
    commit: 6,
    entries: [
      { index: 8, term: 3, kind: 0, data: new Uint8Array(0) },
      { index: 9, term: 4, kind: 1, data: new Uint8Array([1, 2, 3]) },
      { index: 10, term: 4, kind: 2, data: encodeConfiguration(configuration) },
    ],
  },
  { kind: "append", ...head, prevIndex: 0, prevTerm: 0, commit: 0, entries: [] },
  {
    kind: "append-response",
    ...head,
    index: 70_000,
    isRejected: true,
    agreedIndex: 5,
    agreedTerm: 2,
  },
  { kind: "heartbeat", ...head, commit: 2 ** 33, round: 9 },
  { kind: "heartbeat-response", ...head, round: 9 },
  { kind: "vote", ...head, isPre: true, isTransfer: false, lastIndex: 10, lastTerm: 4 },
  { kind: "vote-response", ...head, isPre: false, isGranted: true },
  {
    kind: "snapshot",
    ...head,
    index: 100,
    snapshotTerm: 4,
    configuration,
    totalBytes: 1000,
    checksum: 0xdeadbeef,
    offset: 990,
    data: new Uint8Array([9, 8, 7]),
  },
  { kind: "snapshot-response", ...head, index: 100, snapshotTerm: 4, offset: 993 },
  { kind: "timeout-now", ...head },
];

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function golden(): Uint8Array[] {
  const text = Deno.readTextFileSync(new URL("golden/messages_v1.hex", import.meta.url));
  return text.trim().split("\n").map((line) =>
    Uint8Array.from(line.match(/../g)!, (pair) => parseInt(pair, 16))
  );
}

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

Deno.test("the golden messages of version 1 read as they did, and are what is written", () => {
  assertEquals(MESSAGE_VERSION, 1, "a new version needs a golden file and a line here");
  assertEquals(golden().map((bytes) => unwrap(decodeMessage(bytes))), MESSAGES_V1);
  assertEquals(MESSAGES_V1.map((message) => hex(encodeMessage(message))), golden().map(hex));
});

Deno.test("damage gives an error or a message in range, and never throws", () => {
  const random = new Prng(4);
  for (const bytes of golden()) {
    for (let length = 0; length < bytes.length; length++) {
      assertEquals(decodeMessage(bytes.subarray(0, length)).ok, false);
    }
    assertEquals(decodeMessage(new Uint8Array([...bytes, 0])).ok, false);
    for (let round = 0; round < 500; round++) {
      const damaged = bytes.slice();
      for (let count = random.between(1, 4); count > 0; count--) {
        damaged[random.below(damaged.length)] = random.u32();
      }
      const result = decodeMessage(damaged);
      if (!result.ok) assert(["corrupt", "limit"].includes(result.error.code));
      // What passes can be written again, hence keeps every bound.
      else assertEquals(unwrap(decodeMessage(encodeMessage(result.value))), result.value);
    }
  }
  assertEquals(decodeMessage(new Uint8Array(MESSAGE_BYTES_MAX + 1)).ok, false);
  assertEquals(decodeMessage(new Uint8Array(MESSAGE_BYTES_MAX).fill(0x91)).ok, false);
  assertEquals(decodeMessage(new Uint8Array([0xdd, 255, 255, 255, 255])).ok, false);
});

Deno.test("fields of the wrong kind, number, range or meaning are refused", () => {
  const bytes = new Uint8Array(3);
  const members = encodeConfiguration(configuration);
  const cases: [string, unknown[]][] = [
    ["version 0", [0, 9, 1, 2, 3]],
    ["kind 0", [1, 0, 1, 2, 3]],
    ["kind 10", [1, 10, 1, 2, 3]],
    ["no sender", [1, 9, 0, 2, 3]],
    ["receiver of 65536", [1, 9, 1, 65536, 3]],
    ["term 0", [1, 9, 1, 2, 0]],
    ["term of 2^53", [1, 9, 1, 2, 2 ** 53]],
    ["term of 1.5", [1, 9, 1, 2, 1.5]],
    ["one field more", [1, 9, 1, 2, 3, 0]],
    ["negative index", [1, 3, 1, 2, 3, -1, 0]],
    ["text", [1, 4, 1, 2, 3, "1"]],
    ["number for a flag", [1, 6, 1, 2, 3, 1, true]],
    ["a log from the future", [1, 5, 1, 2, 3, false, false, 5, 3]],
    ["term without an entry", [1, 1, 1, 2, 3, 0, 1, 0, []]],
    ["entry from the future", [1, 1, 1, 2, 3, 1, 1, 0, [4, 1, bytes]]],
    ["terms that fall", [1, 1, 1, 2, 3, 1, 2, 0, [1, 1, bytes]]],
    ["unknown kind of entry", [1, 1, 1, 2, 3, 1, 1, 0, [1, 3, bytes]]],
    ["empty entry with data", [1, 1, 1, 2, 3, 1, 1, 0, [1, 0, bytes]]],
    ["entry of no configuration", [1, 1, 1, 2, 3, 1, 1, 0, [1, 2, bytes]]],
    ["entry too long", [1, 1, 1, 2, 3, 1, 1, 0, [1, 1, new Uint8Array(ENTRY_BYTES_MAX + 1)]]],
    ["half an entry", [1, 1, 1, 2, 3, 1, 1, 0, [1, 1]]],
    ["entries past the end", [1, 1, 1, 2, 3, COUNTER_MAX, 1, 0, [1, 1, bytes]]],
    ["part past the end", [1, 7, 1, 2, 3, 5, 2, members, 4, 0, 2, bytes]],
    ["snapshot too long", [1, 7, 1, 2, 3, 5, 2, members, SNAPSHOT_BYTES_MAX + 1, 0, 0, bytes]],
    ["snapshot of nothing", [1, 7, 1, 2, 3, 0, 2, members, 4, 0, 0, bytes]],
    ["snapshot from the future", [1, 7, 1, 2, 3, 5, 4, members, 4, 0, 0, bytes]],
    ["checksum of 33 bits", [1, 7, 1, 2, 3, 5, 2, members, 4, 2 ** 32, 0, bytes]],
    ["no configuration", [1, 7, 1, 2, 3, 5, 2, bytes, 4, 0, 0, bytes]],
  ];
  for (const [what, fields] of cases) {
    const result = decodeMessage(new Uint8Array(packr.pack(fields)));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", what);
  }
  assert(decodeMessage(new Uint8Array(packr.pack([1, 9, 1, 2, 3]))).ok);
  assert(
    decodeMessage(new Uint8Array(packr.pack([1, 7, 1, 2, 3, 5, 2, members, 4, 0, 1, bytes]))).ok,
  );
  const newer = decodeMessage(new Uint8Array(packr.pack([2, 99, "whatever", 0, 0])));
  assertEquals(newer.ok ? "" : newer.error.code, "limit");
});

Deno.test("the largest messages fit their bound", () => {
  const long = { index: 1, term: 1, kind: 1 as const, data: new Uint8Array(ENTRY_BYTES_MAX) };
  const small = Math.floor(APPEND_BYTES_MAX / APPEND_ENTRIES_MAX) - ENTRY_OVERHEAD_BYTES;
  const many = Array.from({ length: APPEND_ENTRIES_MAX }, (_, place) => {
    return { index: place + 1, term: COUNTER_MAX, kind: 1 as const, data: new Uint8Array(small) };
  });
  const append = {
    kind: "append",
    ...head,
    prevIndex: 0,
    prevTerm: 0,
    commit: COUNTER_MAX,
  } as const;
  const three = [long, { ...long, index: 2 }, { ...long, index: 3 }];
  for (const entries of [three, many]) {
    const message: Message = { ...append, term: COUNTER_MAX, entries };
    assertEquals(unwrap(decodeMessage(encodeMessage(message))), message);
  }
  const members = {
    voters: Array.from({ length: VOTERS_MAX }, (_, place) => place + 1),
    learners: Array.from({ length: LEARNERS_MAX }, (_, place) => place + 100),
  };
  const message: Message = {
    ...MESSAGES_V1[7] as Extract<Message, { kind: "snapshot" }>,
    configuration: members,
    totalBytes: SNAPSHOT_BYTES_MAX,
    data: new Uint8Array(SNAPSHOT_PART_BYTES_MAX),
  };
  assertEquals(unwrap(decodeMessage(encodeMessage(message))), message);
  assertEquals(encodeConfiguration(members).length, CONFIGURATION_BYTES_MAX);
});

Deno.test("CRC-32C gives the values of RFC 3720, in one go or in pieces", () => {
  const zeros = new Uint8Array(32);
  assertEquals(crc32c(zeros), 0x8a9136aa);
  assertEquals(crc32c(zeros.fill(0xff)), 0x62a8ab43);
  const ascending = Uint8Array.from({ length: 32 }, (_, place) => place);
  assertEquals(crc32c(ascending), 0x46dd794e);
  assertEquals(crc32c(ascending.subarray(5), crc32c(ascending.subarray(0, 5))), 0x46dd794e);
});

Deno.test("a change of the configuration moves one node, or says why not", () => {
  const from: Configuration = { voters: [1, 3], learners: [2] };
  const table: [string, number, string][] = [
    ["add-learner", 4, "1,3 2,4"],
    ["add-learner", 2, "exists"],
    ["add-learner", 1, "exists"],
    ["add-learner", 0, "invalid"],
    ["add-learner", 65536, "invalid"],
    ["promote", 2, "1,2,3 "],
    ["promote", 1, "missing"],
    ["promote", 9, "missing"],
    ["demote", 3, "1 2,3"],
    ["demote", 2, "missing"],
    ["remove", 1, "3 2"],
    ["remove", 2, "1,3 "],
    ["remove", 9, "missing"],
  ];
  for (const [kind, node, expected] of table) {
    const result = changeConfiguration(from, { kind: kind as "promote", node });
    const actual = result.ok
      ? `${result.value.voters} ${result.value.learners}`
      : result.error.code;
    assertEquals(actual, expected, `${kind} ${node}`);
  }
  const last = changeConfiguration({ voters: [1], learners: [] }, { kind: "remove", node: 1 });
  assertEquals(last.ok ? "" : last.error.code, "invalid");
  const full = Array.from({ length: VOTERS_MAX }, (_, place) => place + 1);
  const many = changeConfiguration({ voters: full, learners: [99] }, { kind: "promote", node: 99 });
  assertEquals(many.ok ? "" : many.error.code, "limit");
});

Deno.test("a configuration that is not ascending, names a node twice or has another length is none", () => {
  const good = encodeConfiguration({ voters: [1, 2], learners: [3] });
  assertEquals(decodeConfiguration(good), { voters: [1, 2], learners: [3] });
  const cases: [number, number][] = [[0, 2], [1, 3], [2, 2], [4, 0], [4, 3], [6, 1], [8, 1], [
    8,
    0,
  ]];
  for (const [offset, value] of cases) {
    const bad = good.slice();
    bad[offset] = value;
    assertEquals(decodeConfiguration(bad), null, `${value} at ${offset}`);
  }
  assertEquals(decodeConfiguration(good.subarray(0, 9)), null);
  assertEquals(decodeConfiguration(new Uint8Array(0)), null);
});

Deno.test("a quorum is what a majority has reached", () => {
  const table: [number[], number][] = [
    [[5], 5],
    [[5, 3], 3],
    [[5, 3, 1], 3],
    [[5, 3, 1, 4], 3],
    [[1, 2, 3, 4, 5], 3],
  ];
  for (const [values, expected] of table) {
    const voters = values.map((_, place) => place + 1);
    assertEquals(quorumValue(voters, (voter) => values[voter - 1]), expected);
  }
  assertEquals([1, 2, 3, 4, 5].map(majorityOf), [1, 2, 2, 3, 3]);
});
