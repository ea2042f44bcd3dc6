/**
 * Which Kelpie this is.
 *
 * @module
 */

/** Version of agent and command line, as semver.org has it. */
export const VERSION = "0.1.0";
