/**
 * Which Kelpie this is.
 *
 * @module
 */

/** Version of agent and command line, as semver.org has it. */
export const VERSION = "0.1.0";

/** Newest version of the protocol between nodes that this Kelpie speaks. */
export const PROTOCOL = 1;
