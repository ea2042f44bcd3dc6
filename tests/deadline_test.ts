/**
 * Waits that have an end. That none leaves a timer behind is what the test runner sees to.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { within } from "../agent/deadline.ts";

/** Far beyond any test. */
const LONG_MS = 600_000;

Deno.test("work that ends in time is the result, or the error", async () => {
  const late = () => "late";
  assertEquals(await within(Promise.resolve("done"), LONG_MS, late), "done");
  await assertRejects(
    () => within(Promise.reject(new Error("broken")), LONG_MS, late),
    Error,
    "broken",
  );
});

Deno.test("when the time is over something else is, and how the work ends is nobody's concern", async () => {
  const { promise: work, reject } = Promise.withResolvers<string>();
  assertEquals(await within(work, 1, () => "late"), "late");
  const refusing = within(work, 1, () => {
    throw new Error("no answer");
  });
  await assertRejects(() => refusing, Error, "no answer");
  reject(new Error("too late for anybody"));
});
