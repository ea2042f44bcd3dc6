/**
 * Clusters under faults whose hosts go over to the next version, and some back, while guests write.
 *
 * @module
 */
import { assert, assertMatch } from "@std/assert/mod.js";
import { LEVEL_MAX } from "../../agent/base/levels.ts";
import { Control } from "../../agent/control/control.ts";
import { VERSION } from "../../agent/version.ts";
import {
  mottoOf,
  NEXT_LEVEL,
  NEXT_MOTTO,
  NEXT_VERSION,
  NextVersion,
} from "../upgrade/next_version.ts";
import { PREVIOUS_LEVEL, PREVIOUS_VERSION, PreviousVersion } from "../upgrade/previous_version.ts";
import type { Changes } from "../upgrade/source_copy.ts";
import { Simulation } from "./cluster.ts";
import type { Build } from "./node.ts";

/** Seeds that are run. */
const SEEDS = 3;
/** Seeds within which a mistake must be noticed. */
const SEEDS_MAX = 10;

/** This version, as what is upgraded or is upgraded to. */
const THIS: Build = {
  Control,
  version: VERSION,
  protocol: LEVEL_MAX,
  isUsed: (map) => map.level >= LEVEL_MAX,
};

async function buildOf(next: NextVersion): Promise<Build> {
  return {
    Control: await next.control(),
    version: NEXT_VERSION,
    protocol: NEXT_LEVEL,
    isUsed: (map) => mottoOf(map) === NEXT_MOTTO,
  };
}

Deno.test("hosts go over to the next version under faults: the level rises when all have, and nothing is lost", async () => {
  await using next = await NextVersion.make();
  expectUpgrades(THIS, await buildOf(next));
});

Deno.test("hosts of the previous version go over to this one under faults, and nothing is lost", async () => {
  await using previous = await PreviousVersion.make();
  const build: Build = {
    Control: await previous.control(),
    version: PREVIOUS_VERSION,
    protocol: PREVIOUS_LEVEL,
    isUsed: () => false,
  };
  expectUpgrades(build, THIS);
});

function expectUpgrades(build: Build, upgrade: Build): void {
  let changes = 0, refused = 0, writes = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const simulation = new Simulation({ seed, faultsMs: 8000, build, upgrade });
    const report = simulation.run();
    changes += simulation.changes;
    refused += simulation.refused;
    writes += report.writes;
  }
  console.log(`      ${writes} writes, ${changes} changes of version, ${refused} starts refused`);
  assert(changes > SEEDS && writes > 100, `${changes} changes, ${writes} writes`);
}

/** What is said of a next version with a mistake, by the first seed that has something to say. */
async function complaintAbout(mistake: Changes): Promise<string> {
  await using next = await NextVersion.make(mistake);
  const upgrade = await buildOf(next);
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    try {
      new Simulation({ seed, nodes: 3, faultsMs: 5000, build: THIS, upgrade }).run();
    } catch (error) {
      return (error as Error).message.split("\n")[0];
    }
  }
  return "nothing was noticed";
}

Deno.test("a next version that uses what is new before its level is noticed", async () => {
  const complaint = await complaintAbout({
    "agent/control/leader.ts": [["map.level >= 3 &&", "map.level >= 2 &&"]],
    "agent/map/levels.ts": [["  return map.level >= level;", "  return level > 0;"]],
  });
  assertMatch(complaint, /in a map of level 2/);
});

Deno.test("a next version that raises the level when most speak it is noticed", async () => {
  const complaint = await complaintAbout({
    "agent/map/levels.ts": [[
      "    : Math.min(...map.nodes.map(",
      "    : Math.max(...map.nodes.map(",
    ]],
  });
  assertMatch(
    complaint,
    /does not speak level 3|serves at level 3|is too old|it speaks levels 1 to 2, and the cluster 3/,
  );
});
