import { assertEquals } from "@std/assert/mod.js";
import { Reminders } from "../../agent/base/reminders.ts";

Deno.test("each thing is said once, again after a while, and not more than so many are remembered", () => {
  const reminders = new Reminders({ againMs: 100, most: 3 });
  const said = (what: string, nowMs: number) => reminders.isDue(what, nowMs);
  assertEquals([said("a", 0), said("a", 99), said("b", 99)], [true, false, true]);
  assertEquals([said("a", 100), said("a", 150), said("b", 150)], [true, false, false]);
  assertEquals([said("c", 150), said("b", 150)], [true, false]);
  // One too many: the others are forgotten.
  assertEquals([said("d", 150), said("d", 151), said("b", 151)], [true, false, true]);
});
