/**
 * That the previous version is one, and that a store of it goes over to this version, and not back.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { LEVEL_MAX } from "../../agent/base/levels.ts";
import { unwrap } from "../../agent/map/errors.ts";
import type { MapCommand } from "../../agent/map/map.ts";
import { encodeMap } from "../../agent/map/map_codec.ts";
import { encodeProposal } from "../../agent/map/proposal_codec.ts";
import { VERSION } from "../../agent/version.ts";
import { until, within } from "../guest/deadline.ts";
import { clusterWithDisk, nodeUp, runAll } from "../map/cluster.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";
import { PREVIOUS_LEVEL, PREVIOUS_VERSION, PreviousVersion } from "./previous_version.ts";

/** What a start and an end take: the program loads, replays its log, and finds out. */
const CHANGE_MS_MAX = 30_000;

Deno.test("this version writes what the previous one reads until the level rises, and not after", async () => {
  await using previous = await PreviousVersion.make();
  const load = (file: string) => import(`file://${previous.path}/agent/${file}`);
  const codec = await load("map/map_codec.ts");
  const { decodeProposal } = await load("map/proposal_codec.ts");
  const old = clusterWithDisk(3, 3);
  assertEquals(codec.decodeMap(unwrap(encodeMap(old))), { ok: true, value: old });
  assertEquals(codec.encodeMap(old).value, unwrap(encodeMap(old)));
  const ups = [1, 2, 3].map((node) => nodeUp(node, { version: VERSION, protocol: LEVEL_MAX }));
  const raised = runAll(old, ...ups, { kind: "raise-level", level: LEVEL_MAX });
  const refused = codec.decodeMap(unwrap(encodeMap(raised)));
  assertEquals([refused.ok, refused.error.code], [false, "limit"]);

  const read = (command: MapCommand) => {
    const decoded = decodeProposal(unwrap(encodeProposal({ node: 1, sequence: 1, command })));
    return decoded.ok ? "" : decoded.error.code;
  };
  assertEquals(read({ kind: "delete-disk", name: "web" }), "");
  assertEquals(read({ kind: "delete-disk", name: "web", trashedMs: 1 }), "limit");
  assertEquals(read({ kind: "create-snapshots", disks: [1], name: "s", nowMs: 1 }), "limit");
});

Deno.test("a host of the previous version becomes one of this, with what it had, and there is no way back", async () => {
  await using previous = await PreviousVersion.make();
  await using work = await WorkDirectory.make("kelpie-upgrade-");
  const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "400M" };
  {
    await using agent = await AgentProcess.start({ ...options, program: previous.program });
    await agent.check("disk", "create", "web", "64M");
    using client = agent.client();
    assertEquals((await client.cluster()).level, PREVIOUS_LEVEL);
    await agent.stop();
  }
  {
    await using agent = await AgentProcess.start(options);
    using client = agent.client();
    await until(async () => (await client.cluster()).level === LEVEL_MAX, {
      timeoutMs: CHANGE_MS_MAX,
      what: () => `the level does not rise:\n${agent.log}`,
    });
    assertEquals((await client.disks()).map(({ name }) => name), ["web"]);
    await agent.stop();
  }
  await using old = AgentProcess.launch({ ...options, program: previous.program });
  old.ready.catch(() => {});
  const { code } = await within(old.exited, CHANGE_MS_MAX, () => `it does not end:\n${old.log}`);
  assertEquals(code, 1);
  await old.kill();
  assertStringIncludes(
    old.log,
    `this store is not opened: the cluster speaks level ${LEVEL_MAX}, and Kelpie ${PREVIOUS_VERSION} speaks only ${PREVIOUS_LEVEL}`,
  );
  assertStringIncludes(old.log, `install version ${VERSION}, or a newer one`);
});
