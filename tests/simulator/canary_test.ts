/**
 * The checkers of the simulation see builds that are broken.
 *
 * @module
 */
import { assertEquals, assertGreater, assertMatch } from "@std/assert/mod.js";
import { Simulation, type SimulationOptions } from "./cluster.ts";
import { BLOCK, FENCE_STORIES, type FenceStory } from "./fence_stories.ts";
import {
  acknowledgeEarly,
  confirmAtOnce,
  drainAtOnce,
  forgetAbsorbed,
  forgetEpochs,
  forgetLeases,
  forgetNewPlaces,
  forgetRollback,
  giveUpLeft,
  readOutOfSync,
  replaceBlindly,
  settleGivenUp,
} from "./sabotage.ts";
import { Story } from "./story.ts";

/** Seeds within which each must be seen. */
const SEEDS_MAX = 40;
type Sabotage = NonNullable<SimulationOptions["sabotage"]>;

/** What a checker says; "" when nothing. */
function complaintOf(check: () => void): string {
  try {
    check();
    return "";
  } catch (error) {
    return (error as Error).message.split("\n")[0];
  }
}

/** Runs seeds, from one on, until a checker complains, of something else than what it is to be silent about. */
function complaintAbout(
  sabotage: Sabotage,
  more: Partial<SimulationOptions> = {},
  but = /^$/,
  from = 1,
): string {
  for (let seed = from; seed < from + SEEDS_MAX; seed++) {
    const options = { seed, nodes: 4, faultsMs: 20_000, sabotage, ...more };
    const complaint = complaintOf(() => new Simulation(options).run());
    if (complaint !== "" && !but.test(complaint)) return complaint;
  }
  return "nothing was noticed";
}

/** What is said of blocks that cannot have been those of one disk, or of replicas that are not the same. */
const IS_WRONG = /not linearizable|overwritten before|zeros|nobody wrote|differ:|different stamps/;

Deno.test("a sequencer that acknowledges before the last replica has the write is caught", () => {
  assertMatch(complaintAbout(acknowledgeEarly), IS_WRONG);
});

Deno.test("a node that replaces blocks, and overlooks what is written to them meanwhile, is caught", () => {
  // One in a hundred seeds has a write at that very moment.
  const complaint = complaintAbout(replaceBlindly, { nodes: 3, isSettling: true }, /^$/, 66);
  assertMatch(complaint, /differ:|different stamps|not linearizable|lack writes/);
});

/** What the checkers say after a story; "" where they have nothing to say. */
interface Findings {
  /** Late writes that were refused. */
  readonly refused: number;
  readonly replicas: string;
  readonly blocks: string;
}

function findingsAfter(tell: FenceStory["tell"], sabotage?: Sabotage): Findings {
  const story = new Story(1, sabotage);
  const { refused, place, readers } = tell(story);
  const replicas = complaintOf(() => story.compareReplicas());
  const blocks = complaintOf(() => {
    for (const node of readers) {
      const session = story.open(node);
      session.read(place, BLOCK);
      session.close();
    }
  });
  return { refused, replicas, blocks };
}

Deno.test("a replica that forgets to fence is caught", () => {
  for (const { tell, fence } of FENCE_STORIES) {
    const sound = findingsAfter(tell);
    assertEquals({ ...sound, refused: 0 }, { refused: 0, replicas: "", blocks: "" }, tell.name);
    assertGreater(sound.refused, 0, tell.name);
    const broken = findingsAfter(tell, fence === "lease" ? forgetLeases : forgetEpochs);
    assertEquals(broken.refused, 0, tell.name);
    assertMatch(broken.replicas, / differ: /, tell.name);
    assertMatch(broken.blocks, /not linearizable/, tell.name);
  }
});

Deno.test("a snapshot that is called complete while writes are on their way into it is caught", () => {
  const complaint = complaintAbout(drainAtOnce, { hasSnapshots: true }, /^$/, 13);
  assertMatch(complaint, /@s\d+|not within|differ:/);
});

Deno.test("a node that loses what it merges is caught", () => {
  assertMatch(
    complaintAbout(forgetAbsorbed, { hasSnapshots: true }),
    /@s\d+|zeros|nobody wrote|differ:/,
  );
});

Deno.test("a disk that is rolled back and keeps what it held is caught", () => {
  assertMatch(complaintAbout(forgetRollback, { hasSnapshots: true }), IS_WRONG);
});

Deno.test("a disk that was rolled back, and what it held is not there any more, is caught", () => {
  // A node that starts again with less than the map says may never be ready, and one that has given it up gets no further map.
  assertMatch(complaintAbout(giveUpLeft, { hasSnapshots: true }, /not within/), IS_WRONG);
});

Deno.test("a replica that is read though it is not in sync is caught", () => {
  assertMatch(complaintAbout(readOutOfSync), /not in sync/);
});

Deno.test("a disk that gets other copies before they are complete is caught", () => {
  // A check that comes in time tells of it before any guest could.
  assertMatch(complaintAbout(confirmAtOnce, {}, /not all is good/), IS_WRONG);
});

Deno.test("a holder that forgets who joins as its disk gets other copies is caught", () => {
  // Who lacks writes may also never be whole again.
  assertMatch(complaintAbout(forgetNewPlaces, {}, /not within|not all is good/), IS_WRONG);
});

Deno.test("a lease that goes back in good order though writes were given up is caught", () => {
  // In one of seventy seeds somebody reads what only some replicas have, or compares them.
  const complaint = complaintAbout(settleGivenUp, { nodes: 3, areGoing: true }, /^$/, 90);
  assertMatch(complaint, IS_WRONG);
});
