/**
 * The map as bytes: a golden file per version, and nothing that damage could slip through.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Packr } from "msgpackr";
import { Prng } from "../../agent/base/prng.ts";
import { unwrap } from "../../agent/map/errors.ts";
import {
  apply,
  checkMap,
  type ClusterMap,
  EMPTY_MAP,
  MAP_BYTES_MAX,
  type MapCommand,
} from "../../agent/map/map.ts";
import { decodeMap, encodeMap, MAP_VERSION } from "../../agent/map/map_codec.ts";

/** The map that the golden file of version 1 holds. */
const COMMANDS_V1: MapCommand[] = [
  {
    kind: "create-disk",
    name: "web",
    sizeBytes: 20 * 1024 ** 3,
    nowMs: 1_700_000_000_000,
    attributes: { owner: "anna", b: "ü" },
  },
  {
    kind: "create-disk",
    name: "db",
    sizeBytes: 4 * 1024 ** 5,
    nowMs: 0,
    readOnly: true,
    copies: 3,
  },
  { kind: "create-disk", name: "x", sizeBytes: 512, nowMs: 1 },
  { kind: "delete-disk", name: "x" },
];

function history(commands: readonly MapCommand[]): ClusterMap {
  return commands.reduce((map, command) => unwrap(apply(map, command)).map, EMPTY_MAP);
}

function golden(version: number): Uint8Array {
  const url = new URL(`golden/map_v${version}.hex`, import.meta.url);
  const digits = Deno.readTextFileSync(url).trim().match(/../g)!;
  return Uint8Array.from(digits, (pair) => parseInt(pair, 16));
}

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });

function pack(value: unknown): Uint8Array {
  return new Uint8Array(packr.pack(value));
}

Deno.test("the golden file of version 1 reads as it did, and is what is written", () => {
  assertEquals(MAP_VERSION, 1, "a new version needs a golden file and a line here");
  const map = history(COMMANDS_V1);
  assertEquals(unwrap(decodeMap(golden(1))), map);
  assertEquals(unwrap(encodeMap(map)), golden(1));
});

Deno.test("equal maps give equal bytes, however their attributes were put together", () => {
  const create = { kind: "create-disk", name: "web", sizeBytes: 512, nowMs: 0 } as const;
  const one = history([{ ...create, attributes: { a: "1", b: "2", c: "3" } }]);
  const other = history([{ ...create, attributes: { c: "3", a: "1", b: "2" } }]);
  assertEquals(unwrap(encodeMap(one)), unwrap(encodeMap(other)));
});

Deno.test("random maps come back as they were", () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = new Prng(seed);
    const commands: MapCommand[] = [];
    for (let index = random.below(30); index > 0; index--) {
      commands.push({
        kind: "create-disk",
        name: `d${index}`,
        sizeBytes: 512 * (1 + random.u32()),
        nowMs: random.u32() * 2 ** random.below(20),
        readOnly: random.below(2) === 0,
        copies: 1 + random.below(8),
        attributes: random.below(2) === 0 ? {} : { [`k${random.below(9)}`]: "v".repeat(200) },
      });
    }
    const map = history(commands);
    assertEquals(unwrap(decodeMap(unwrap(encodeMap(map)))), map, `seed ${seed}`);
  }
  assertEquals(unwrap(decodeMap(unwrap(encodeMap(EMPTY_MAP)))), EMPTY_MAP);
});

Deno.test("bytes that were encoded are not overwritten by the next map", () => {
  const first = unwrap(encodeMap(history(COMMANDS_V1)));
  const copy = first.slice();
  for (let round = 0; round < 10; round++) encodeMap(EMPTY_MAP);
  assertEquals(first, copy);
});

Deno.test("what is cut short or longer is refused", () => {
  const bytes = golden(1);
  for (let length = 0; length < bytes.length; length++) {
    const result = decodeMap(bytes.subarray(0, length));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", `${length} bytes`);
  }
  assertEquals(decodeMap(new Uint8Array([...bytes, 0])).ok, false);
  const huge = decodeMap(new Uint8Array(MAP_BYTES_MAX + 1));
  assertEquals(huge.ok ? "" : huge.error.code, "corrupt");
});

Deno.test("damage gives an error or a map that keeps every invariant, and never throws", () => {
  const bytes = golden(1);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const damaged = bytes.slice();
    damaged[bit >> 3] ^= 1 << (bit & 7);
    const result = decodeMap(damaged);
    if (result.ok) assertEquals(checkMap(result.value), null, `bit ${bit}`);
  }
  const random = new Prng(5);
  for (let round = 0; round < 5000; round++) {
    const damaged = bytes.slice(0, 14 + random.below(bytes.length - 13));
    for (let count = 1 + random.below(6); count > 0; count--) {
      damaged[random.below(damaged.length)] = random.u32();
    }
    const result = decodeMap(damaged);
    if (result.ok) assertEquals(checkMap(result.value), null, `round ${round}`);
    else assert(["corrupt", "limit"].includes(result.error.code));
  }
  assertEquals(decodeMap(new Uint8Array(MAP_BYTES_MAX).fill(0x91)).ok, false);
});

Deno.test("fields of the wrong kind, number or place are refused", () => {
  const disk = [1, "web", 512, [1], 0, 0, 1, 0, {}];
  const body = [1, 2, 2, [1], [disk]];
  const withField = (
    index: number,
    value: unknown,
  ) => [1, 2, 2, [1], [disk.with(index, value as never)]];
  const cases: [string, unknown][] = [
    ["no list", 7],
    ["another magic", ["kelpie.mop", 1, body]],
    ["no version", ["kelpie.map", "1", body]],
    ["version 0", ["kelpie.map", 0, body]],
    ["version 1.5", ["kelpie.map", 1.5, body]],
    ["one more", ["kelpie.map", 1, body, 0]],
    ["one field more", ["kelpie.map", 1, [...body, 0]]],
    ["one field less", ["kelpie.map", 1, body.slice(1)]],
    ["text for a number", ["kelpie.map", 1, body.with(0, "1" as never)]],
    ["settings", ["kelpie.map", 1, body.with(3, [1, 2] as never)]],
    ["disks", ["kelpie.map", 1, body.with(4, {} as never)]],
    ["disk with a field more", ["kelpie.map", 1, body.with(4, [[...disk, 0]] as never)]],
    ["id", ["kelpie.map", 1, withField(0, null)]],
    ["name", ["kelpie.map", 1, withField(1, 7)]],
    ["size", ["kelpie.map", 1, withField(2, 1000)]],
    ["size of 2^63", ["kelpie.map", 1, withField(2, 2n ** 63n)]],
    ["layers", ["kelpie.map", 1, withField(3, ["1"])]],
    ["layers as a number", ["kelpie.map", 1, withField(3, 1)]],
    ["unknown flag", ["kelpie.map", 1, withField(5, 2)]],
    ["attributes as a list", ["kelpie.map", 1, withField(8, ["a"])]],
    ["attribute of a number", ["kelpie.map", 1, withField(8, { a: 1 })]],
    ["NaN", ["kelpie.map", 1, withField(4, NaN)]],
  ];
  assertEquals(decodeMap(pack(["kelpie.map", 1, body])).ok, true);
  for (const [what, value] of cases) {
    const result = decodeMap(pack(value));
    assertEquals(result.ok ? "" : result.error.code, "corrupt", what);
  }
});

Deno.test("a newer version is told from damage", () => {
  const result = decodeMap(pack(["kelpie.map", 2, ["whatever"]]));
  assertEquals(result.ok ? "" : result.error.code, "limit");
});

Deno.test("a map that has become too large is refused before it is written", () => {
  const disks = Array.from({ length: 400 }, (_, index) => ({
    ...history([{ kind: "create-disk", name: "a", sizeBytes: 512, nowMs: 0 }]).disks[0],
    name: `d${index}`,
    attributes: Object.fromEntries(
      Array.from({ length: 16 }, (_, key) => [`k${key}`, "v".repeat(255)]),
    ),
  }));
  const result = encodeMap({ ...EMPTY_MAP, disks });
  assertEquals(result.ok ? "" : result.error.code, "limit");
});
