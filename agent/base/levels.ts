/**
 * Levels: versions of everything that agents of one cluster share: gossip, control messages, consensus, peers' frames, the
 * cluster map and its commands, and what a store holds of them.
 *
 *     an agent      speaks LEVEL_MIN…LEVEL_MAX
 *     the cluster   speaks one of them: `level` of its map, which only rises, and only to what every node of the map can speak
 *
 * Whatever is new (a field, a command, a message, a version of a format) belongs to a level and is neither sent nor written before the
 * map has it: `map/levels.ts` is where that is asked. So agents of this and the previous release work in one cluster, and the
 * last of them that is upgraded switches on what is new. Afterwards no older one may take part again: it is refused by what is durable
 * beside its membership (`level` of META, looked at before anything is written to its store), by `node-up` and `add-node`,
 * and by the handshake of connections.
 *
 * How a release makes something new: raise LEVEL_MAX by one (once per release), name the new commands and fields in `map/levels.ts`,
 * write new versions of formats only where `isOn(map, level)`, and read the old ones for ever. LEVEL_MIN rises one release later than what it
 * leaves behind. `tests/upgrade/next_version.ts` does all of that to a copy of this source.
 *
 * @module
 */

/** The oldest level that this agent speaks with others. What older ones wrote to stores is read all the same. */
export const LEVEL_MIN = 1;

/** The newest level that this agent speaks. */
export const LEVEL_MAX = 2;
