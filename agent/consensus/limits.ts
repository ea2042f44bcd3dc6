/**
 * Times and bounds of consensus, and why they are what they are.
 *
 * @module
 */

/** A leader lets every voter hear from it at least this often, in milliseconds. */
export const HEARTBEAT_MS = 100;

/** The same for learners that lack nothing: they elect nobody and may notice a loss later. */
export const LEARNER_HEARTBEAT_MS = 500;

/** A learner that has not heard its leader for this long knows of none, in milliseconds. */
export const LEARNER_SILENCE_MS = 3 * LEARNER_HEARTBEAT_MS;

/**
 * Shortest time without a leader after which a voter stands, in milliseconds; also how long a
 * follower that has heard its leader refuses to help anybody else. Five heartbeats may be lost.
 */
export const ELECTION_MS_MIN = 500;

/** Longest such time; the actual one is drawn anew each time so that votes are rarely split. */
export const ELECTION_MS_MAX = 1000;

/**
 * Whoever stands again and again, and is not refused, waits twice as long for votes each time, so often: a sync of another node's
 * disk may take as long as 2^STANDS_MAX times `ELECTION_MS_MIN`.
 */
export const STANDS_MAX = 5;

/** A leader that has not heard from a majority for this long steps down, in milliseconds. */
export const QUORUM_MS = ELECTION_MS_MAX;

/**
 * A member that has said for this long that it lacks what it had acknowledged, and nothing else, has
 * lost it, in milliseconds…
 */
export const LOSS_MS = 2 * QUORUM_MS;

/** …so many times at least: one such message may be old. */
export const LOSS_REFUSALS = 5;

/** A transfer of leadership that has not happened by then is given up, in milliseconds. */
export const TRANSFER_MS = 1000;

/** A part of a snapshot that was not answered is sent again after this time, in milliseconds. */
export const SNAPSHOT_RETRY_MS = 300;

/** Highest node id; 0 means "none". */
export const NODE_ID_MAX = 0xffff;

/** Highest term and highest index: what a double holds exactly, with room to add to it. */
export const COUNTER_MAX = 2 ** 52;

/** Most voters: each adds a message per heartbeat, and five is what the cluster aims at. */
export const VOTERS_MAX = 9;

/** Most learners: a configuration must fit one entry with much room to spare. */
export const LEARNERS_MAX = 1024;

/** Longest durable value, in bytes: what the store takes, less some room. */
export const VALUE_BYTES_MAX = 60 * 1024;

/** Longest data of an entry, in bytes: a value holds the longest entry and its own head. */
export const ENTRY_BYTES_MAX = VALUE_BYTES_MAX - 128;

/** What an entry counts beyond its data wherever bytes of entries are bounded. */
export const ENTRY_OVERHEAD_BYTES = 32;

/** Most bytes of entries in one message, unless a single entry is longer. */
export const APPEND_BYTES_MAX = 128 * 1024;

/** Most entries in one message. */
export const APPEND_ENTRIES_MAX = 1024;

/** Most messages with entries that are under way to one follower. */
export const APPENDS_IN_FLIGHT_MAX = 16;

/** Most bytes of a snapshot in one message. */
export const SNAPSHOT_PART_BYTES_MAX = 256 * 1024;

/** Fewest, but for the last part: a receiver keeps a bounded number of them. */
export const SNAPSHOT_PART_BYTES_MIN = 4096;

/** Longest snapshot, in bytes: it is held in memory by leader and receiver. */
export const SNAPSHOT_BYTES_MAX = 16 * 1024 * 1024;

/** Longest encoded message, in bytes: the largest part or entries, and the fields around them. */
export const MESSAGE_BYTES_MAX = 320 * 1024;

/** Most bytes of entries that are proposed and not yet committed; more are refused. */
export const UNCOMMITTED_BYTES_MAX = 4 * 1024 * 1024;

/** Most entries that are proposed and not yet committed. */
export const UNCOMMITTED_ENTRIES_MAX = 4096;

/**
 * Most entries after the snapshot. Whoever holds the state machine compacts long before
 * ({@linkcode COMPACT_ENTRIES}); until it does, proposals are refused and a follower takes no more.
 */
export const LOG_ENTRIES_MAX = 65536;

/** Most bytes of entries after the snapshot. */
export const LOG_BYTES_MAX = 64 * 1024 * 1024;

/** Entries after the snapshot at which it is time to compact. */
export const COMPACT_ENTRIES = 4096;

/** Bytes of entries after the snapshot at which it is time to compact. */
export const COMPACT_BYTES = 4 * 1024 * 1024;

/** Entries that stay in memory behind a snapshot, so that a follower a bit behind needs none. */
export const RETAINED_ENTRIES_MAX = 1024;

/** Bytes of those entries. */
export const RETAINED_BYTES_MAX = 1024 * 1024;

/** Most bytes of committed entries that are handed out at a time, unless one is longer. */
export const APPLY_BYTES_MAX = 1024 * 1024;

/** Most persists under way. */
export const PERSISTS_MAX = 64;

/** Most messages that wait for their persist or to be taken; more are dropped, as a network may. */
export const MESSAGES_MAX = 8192;

/** Most reads that wait for a round of heartbeats. */
export const READS_MAX = 4096;

/** A learner this close to the end of the log may become a voter. */
export const CAUGHT_UP_ENTRIES = 64;

/**
 * How far recovery raises the term: past every term that the lost majority can have reached, so
 * that no (index, term) ever names two different entries.
 */
export const RECOVERY_TERMS = 2 ** 20;
