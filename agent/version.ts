/**
 * Which Kelpie this is.
 *
 * @module
 */

import { LEVEL_MAX, LEVEL_MIN } from "./base/levels.ts";
import type { Speaker } from "./map/levels.ts";

/** Version of agent and command line, as semver.org has it. */
export const VERSION = "0.2.0";

/** What this agent is among others: see `map/levels.ts`. */
export const THIS_SPEAKER: Required<Speaker> = {
  version: VERSION,
  protocolMin: LEVEL_MIN,
  protocol: LEVEL_MAX,
};
