/**
 * That the next version is one: it speaks more, and uses it only where it may. The simulator and `tests/cluster` do the rest.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { decodeMap } from "../../agent/map/map_codec.ts";
import { decodeProposal } from "../../agent/map/proposal_codec.ts";
import { clusterOf, nodeUp, runAll } from "../map/cluster.ts";
import { NEXT_LEVEL, NextVersion } from "./next_version.ts";

Deno.test("the next version writes what this one reads at level 1, and nothing else is in its maps", async () => {
  await using next = await NextVersion.make();
  const load = (file: string) => import(`file://${next.path}/agent/${file}`);
  const codec = await load("map/map_codec.ts");
  const old = clusterOf(3);
  assertEquals(decodeMap(codec.encodeMap(old).value), { ok: true, value: old });

  const ups = [1, 2, 3].map((node) => nodeUp(node, { version: "0.2.0", protocol: NEXT_LEVEL }));
  const raised = runAll(old, ...ups, { kind: "raise-level", level: NEXT_LEVEL });
  const refused = decodeMap(codec.encodeMap(raised).value);
  assertEquals(refused.ok ? "" : refused.error.code, "limit");
  const motto = codec.decodeMap(codec.encodeMap({ ...raised, motto: "x" }).value).value;
  assertEquals([motto.level, motto.motto], [2, "x"]);

  const { encodeProposal } = await load("map/proposal_codec.ts");
  const command = { kind: "set-motto", motto: "x" };
  const bytes = encodeProposal({ node: 1, sequence: 1, command }).value;
  const unknown = decodeProposal(bytes);
  assertEquals(unknown.ok ? "" : unknown.error.code, "limit");
  const { commandLevel } = await load("map/levels.ts");
  assertEquals(commandLevel(command), NEXT_LEVEL);
});
