/**
 * That the next version is one: it speaks more, and uses it only where it may. The simulator and `tests/cluster` do the rest.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { LEVEL_MAX } from "../../agent/base/levels.ts";
import { unwrap } from "../../agent/map/errors.ts";
import { decodeMap, encodeMap } from "../../agent/map/map_codec.ts";
import { decodeProposal } from "../../agent/map/proposal_codec.ts";
import { clusterWithDisk, nodeUp, runAll } from "../map/cluster.ts";
import { NEXT_LEVEL, NextVersion } from "./next_version.ts";

Deno.test("the next version writes what this one reads up to its level, and nothing else is in its maps", async () => {
  await using next = await NextVersion.make();
  const load = (file: string) => import(`file://${next.path}/agent/${file}`);
  const codec = await load("map/map_codec.ts");
  const ups = (protocol: number) => [1, 2, 3].map((node) => nodeUp(node, { protocol }));
  const snapshot = { kind: "create-snapshots", disks: [1], name: "s", nowMs: 1 } as const;
  const old = clusterWithDisk(3, 3);
  const now = runAll(old, ...ups(LEVEL_MAX), { kind: "raise-level", level: LEVEL_MAX }, snapshot);
  for (const map of [old, now]) {
    assertEquals(codec.encodeMap(map).value, unwrap(encodeMap(map)));
    assertEquals(decodeMap(codec.encodeMap(map).value), { ok: true, value: map });
  }

  const raised = runAll(now, ...ups(NEXT_LEVEL), { kind: "raise-level", level: NEXT_LEVEL });
  const refused = decodeMap(codec.encodeMap(raised).value);
  assertEquals(refused.ok ? "" : refused.error.code, "limit");
  const motto = codec.decodeMap(codec.encodeMap({ ...raised, motto: "x" }).value).value;
  assertEquals([motto.level, motto.motto], [NEXT_LEVEL, "x"]);

  const { encodeProposal } = await load("map/proposal_codec.ts");
  const command = { kind: "set-motto", motto: "x" };
  const bytes = encodeProposal({ node: 1, sequence: 1, command }).value;
  const unknown = decodeProposal(bytes);
  assertEquals(unknown.ok ? "" : unknown.error.code, "limit");
  const { commandLevel } = await load("map/levels.ts");
  assertEquals(commandLevel(command), NEXT_LEVEL);
});
