import { assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { add, has, remove, sizeOf } from "../../agent/replication/block_set.ts";
import {
  Findings,
  FINDINGS_WORDS,
  packFindings,
  packReplacements,
  REPLACEMENTS_MAX,
  unpackFindings,
  unpackReplacements,
  ZEROS_CHECKSUM,
} from "../../agent/replication/findings.ts";
import { EXTRA_BYTES_MAX } from "../../agent/replication/messages.ts";
import { sumOf } from "./harness.ts";

const BLOCK_WORDS = 1024;

function pack(findings: Findings): { extra: Uint8Array; sums: Uint32Array } {
  const extra = new Uint32Array(FINDINGS_WORDS), sums = new Uint32Array(BLOCK_WORDS).fill(7);
  assertEquals(packFindings(findings, extra, sums), FINDINGS_WORDS);
  return { extra: new Uint8Array(extra.buffer), sums };
}

Deno.test("what travels of a look at a chunk, byte by byte", () => {
  const findings = new Findings();
  findings.begin.set(7, 2 ** 40 + 9);
  findings.end.set(7, 2 ** 40 + 11);
  for (const block of [0, 33, 1023]) add(findings.data, block);
  add(findings.zeros, 2);
  add(findings.damaged, 33);
  add(findings.changed, 64);
  findings.checksums[0] = 0x01020304;
  findings.checksums[1023] = 0xfffefdfc;
  const { extra, sums } = pack(findings);
  assertEquals(extra.length, 524);
  const words: Record<number, number> = {};
  new Uint32Array(extra.buffer).forEach((word, i) => word !== 0 && (words[i] = word));
  assertEquals(words, {
    0: 7,
    1: 9,
    2: 256,
    3: 1,
    4: 2,
    34: 0x8000_0000,
    35: 4,
    68: 2,
    101: 1,
  });
  assertEquals([...sums.subarray(0, 3)], [0x01020304, 0xfffefdfc, 0]);
  assertEquals(unpackFindings({ ...findings.end, argument: 0 }, extra, sums), findings);
});

Deno.test("what cannot be right is refused, and nothing that a peer sends does harm", () => {
  const random = new Prng(20260202);
  const end = { generation: 1, sequence: 1, argument: 0 };
  let taken = 0;
  for (let i = 0; i < 2000; i++) {
    const extra = new Uint8Array(
      i % 3 === 0 ? random.below(2 * FINDINGS_WORDS) : FINDINGS_WORDS * 4,
    );
    random.fill(extra);
    if (i % 2 === 0) extra.fill(0, 8);
    const sums = new Uint32Array(i % 5 === 0 ? random.below(3) * 512 : BLOCK_WORDS);
    const findings = unpackFindings(end, extra, sums);
    if (findings === null) continue;
    taken++;
    assertEquals([extra.length, sums.length], [FINDINGS_WORDS * 4, BLOCK_WORDS]);
    assertEquals(Number.isSafeInteger(findings.begin.sequence), true);
  }
  assertEquals(taken > 0, true);
  const both = new Findings();
  add(both.data, 5);
  add(both.zeros, 5);
  const damaged = new Findings();
  add(damaged.damaged, 5);
  for (const findings of [both, damaged]) {
    const { extra, sums } = pack(findings);
    assertEquals(unpackFindings(end, extra, sums), null);
  }
  const { extra, sums } = pack(new Findings());
  extra[11] = 0x20;
  assertEquals(unpackFindings(end, extra, sums), null, "a sequence of 2^61");
});

Deno.test("sets of blocks", () => {
  const set = new Uint32Array(32);
  for (const block of [0, 31, 32, 1023]) add(set, block);
  assertEquals([sizeOf(set), has(set, 31), has(set, 30)], [4, true, false]);
  remove(set, 31);
  remove(set, 31);
  assertEquals([sizeOf(set), has(set, 31)], [3, false]);
});

Deno.test("the checksum of zeros is that of a block of zeros", () => {
  assertEquals(ZEROS_CHECKSUM, sumOf(0));
});

Deno.test("what is to be replaced comes back from its bytes, and nothing else is taken", () => {
  const list = [{ block: 5, wrong: 0xffff_ffff, right: 1 }, { block: 1023, wrong: 0, right: 7 }];
  const words = packReplacements(list);
  assertEquals([...words], [5, 0xffff_ffff, 1, 1023, 0, 7]);
  const bytes = new Uint8Array(words.buffer);
  assertEquals(unpackReplacements(bytes), list);
  const most = Array.from({ length: REPLACEMENTS_MAX }, (_, block) => ({ ...list[0], block }));
  const full = new Uint8Array(packReplacements(most).buffer);
  assertEquals(unpackReplacements(full), most);
  assertEquals(full.length <= EXTRA_BYTES_MAX, true);
  const outside = new Uint8Array(packReplacements([{ ...list[0], block: 1024 }]).buffer);
  const long = new Uint8Array([...full, ...bytes]);
  for (const wrong of [bytes.subarray(4), bytes.subarray(0, 0), outside, long]) {
    assertEquals(unpackReplacements(wrong), null);
  }
});
