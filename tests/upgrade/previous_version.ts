/**
 * The previous version of Kelpie: a copy of this source that speaks one level less, for tests of upgrades to this version.
 *
 * It knows nothing that came with this version's level: its commands and fields, and maps in their newest version. What this version
 * does differently at every level is in it all the same.
 *
 * @module
 */
import { type Changes, SourceCopy } from "./source_copy.ts";

/** Of its program. */
export const PREVIOUS_VERSION = "0.1.0";
/** The newest level that it speaks. */
export const PREVIOUS_LEVEL = 1;

const CHANGES: Changes = {
  "agent/base/levels.ts": [
    ["export const LEVEL_MAX = 2;", `export const LEVEL_MAX = ${PREVIOUS_LEVEL};`],
  ],
  "agent/version.ts": [
    ['export const VERSION = "0.2.0";', `export const VERSION = "${PREVIOUS_VERSION}";`],
  ],
  "agent/map/map_codec.ts": [
    ["export const MAP_VERSION = 4;", "export const MAP_VERSION = 2;"],
  ],
  "agent/map/proposal_codec.ts": [
    [
      'import { Packr } from "msgpackr";',
      'import { Packr } from "msgpackr";\nimport { commandLevel } from "./levels.ts";',
    ],
    [
      "  if (left > 0) return tooNew(",
      `  if (left > 0 || commandLevel(command) > ${PREVIOUS_LEVEL}) return tooNew(`,
    ],
  ],
};

/** The previous version; {@linkcode SourceCopy} says what there is to do with it. */
export type PreviousVersion = SourceCopy;

/** Makes the previous version. */
export const PreviousVersion = {
  /** @param mistake what else is changed, to show that it is noticed */
  make: (mistake: Changes = {}): Promise<SourceCopy> =>
    SourceCopy.make("previous", CHANGES, mistake),
};
