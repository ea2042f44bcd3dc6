/**
 * A node whose log's end was torn when its agent ended.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { atLevelTwo, clusterOf } from "../map/cluster.ts";
import { Fixture } from "./fixture.ts";

/** What the node has said when it was back, as far as the map knows. */
function backs(at: Fixture): unknown[] {
  return at.commands.flatMap((command) => command.kind === "node-up" ? [command.torn] : []);
}

Deno.test("it says so when it is back, once", () => {
  const at = new Fixture(atLevelTwo(clusterOf(2)), [], { clean: false, torn: true });
  at.pass(8000);
  assertEquals(backs(at), [true]);
});

Deno.test("whoever was not torn does not, and the word is not said where older agents are", () => {
  const whole = new Fixture(atLevelTwo(clusterOf(2)), [], { clean: false });
  whole.pass(3000);
  assertEquals(backs(whole), [undefined]);
  const old = new Fixture(clusterOf(2), [], { clean: false, torn: true });
  old.pass(8000);
  assertEquals(backs(old), [undefined]);
});
