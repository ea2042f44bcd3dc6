/**
 * The printed form of the cluster secret: back and forth, and everything that may befall it on the way.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { formatClusterSecret, parseClusterSecret } from "../../agent/cluster_secret.ts";

/** Bytes of chance, repeatable. */
function secretOf(random: Prng): Uint8Array {
  return Uint8Array.from({ length: 32 }, () => random.below(256));
}

Deno.test("a secret comes back as it went in, whatever stands around it", () => {
  const random = new Prng(1);
  for (let round = 0; round < 200; round++) {
    const secret = secretOf(random);
    const text = formatClusterSecret(secret);
    assertMatch(text, /^kelpie1-[a-z2-7]{58}$/);
    for (const written of [text, `${text}\n`, `  ${text.toUpperCase()}\r\n`]) {
      const parsed = parseClusterSecret(written);
      assertEquals(parsed, { ok: true, value: secret });
    }
  }
});

Deno.test("the form of a secret never changes", () => {
  assertEquals(
    formatClusterSecret(Uint8Array.from({ length: 32 }, (_, index) => index)),
    "kelpie1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp7oajzp4",
  );
  assertThrows(() => formatClusterSecret(new Uint8Array(31)), RangeError, "32 bytes, not 31");
});

Deno.test("a secret with any one character wrong is refused", () => {
  const text = formatClusterSecret(secretOf(new Prng(2)));
  for (let at = 0; at < text.length; at++) {
    for (const digit of "aq72-1é") {
      if (text[at] === digit) continue;
      const result = parseClusterSecret(text.slice(0, at) + digit + text.slice(at + 1));
      assert(!result.ok, `${at} ${digit}`);
    }
  }
});

Deno.test("there is one way to write a secret: bits behind its last byte must be zero", () => {
  const text = formatClusterSecret(new Uint8Array(32));
  const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
  const last = alphabet.indexOf(text[text.length - 1]);
  assertEquals(last % 4, 0);
  for (const bits of [1, 2, 3]) {
    assertEquals(parseClusterSecret(text.slice(0, -1) + alphabet[last + bits]).ok, false);
  }
});

Deno.test("what is wrong with a secret is said, and nothing of the secret with it", () => {
  const text = formatClusterSecret(secretOf(new Prng(3)));
  const digits = text.slice("kelpie1-".length);
  const flipped = digits.slice(0, 8) + (digits[8] === "a" ? "b" : "a") + digits.slice(9);
  const cases: [string, RegExp][] = [
    ["", /empty/],
    [" \n", /empty/],
    [digits, /does not begin with 'kelpie1-'/],
    [`kelpie2-${digits}`, /does not begin/],
    [text.slice(0, -1), /57 characters.*should have 58/],
    [`${text}a`, /59 characters/],
    [`kelpie1-${digits.slice(0, -1)}0`, /character that none has/],
    [`kelpie1-${flipped}`, /mistyped/],
    [text + " ".repeat(2000), /too long/],
  ];
  for (const [written, message] of cases) {
    const result = parseClusterSecret(written);
    if (result.ok) throw new Error(`taken: ${message}`);
    assertEquals(result.error.code, "invalid");
    assertMatch(result.error.message, message);
    assertMatch(result.error.hint ?? "", /kelpie cluster secret/);
    assert(!result.error.message.includes(digits.slice(0, 8)));
  }
});
