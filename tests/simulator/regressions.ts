/**
 * Seeds that have found bugs, with what they have found. A seed leads to the same run only as long as nothing draws more or less
 * chance than it did: these are good places to look at, not exact repetitions.
 *
 * @module
 */

/** A run that has failed once. */
export interface Regression {
  readonly seed: number;
  readonly nodes?: number;
  readonly faultsMs: number;
  readonly hasSnapshots?: boolean;
  readonly hasPaths?: boolean;
  readonly areMoving?: boolean;
  readonly areGoing?: boolean;
  /** What was wrong. */
  readonly found: string;
}

/** Oldest first. */
export const REGRESSIONS: readonly Regression[] = [
  {
    seed: 2008,
    faultsMs: 20_000,
    found: "a block that the local disk could not read (EIO) was not read from another replica",
  },
  {
    seed: 2012,
    faultsMs: 20_000,
    found:
      "a new holder's first flush failed because a group without any chunk of the disk was settled; " +
      "a flush failed for the guest when the store of the only replica failed",
  },
  {
    seed: 4022,
    faultsMs: 20_000,
    found:
      "a read returned a write that not all replicas had, and that was not there after a take-over; " +
      "a node that was just taken for dead could be removed by force, and its lease given away while it served",
  },
  {
    seed: 4026,
    faultsMs: 20_000,
    found:
      "a read returned a write that not all replicas had, and that was not there after a take-over",
  },
  {
    seed: 2,
    faultsMs: 15_000,
    found:
      "a disk that got more copies stayed with the places that it had: nobody computed targets for the new pool",
  },
  {
    seed: 70048,
    faultsMs: 20_000,
    found:
      "a bit of a guest's block that rotted in the tail of a store's log took the synced entries of consensus behind it with " +
      "it, and the node that had lost them was shut out for good",
  },
  {
    seed: 90074,
    faultsMs: 20_000,
    found: "the same",
  },
  {
    seed: 90064,
    faultsMs: 20_000,
    found:
      "a chunk that equalled the source's lost its stamp to a live write that was on its way into the store when they were compared",
  },
  {
    seed: 120036,
    faultsMs: 20_000,
    found:
      "a node whose log of consensus had lost its durable tail with a header that rotted was shut out for good by its leader",
  },
  {
    seed: 110112,
    faultsMs: 20_000,
    found:
      "a node to which a link was cut for seconds was kept out of its groups for five minutes: complaints of one cut were counted " +
      "as many",
  },
  {
    seed: 130944,
    faultsMs: 20_000,
    found:
      "an agent was killed, and its disk could not read the end of the log at the next start: what was there, acknowledged and " +
      "not flushed, counted as torn, and the node as one that had lost nothing",
  },
  {
    seed: 200019,
    faultsMs: 20_000,
    found:
      "a joining replica waited for writes of a run that had ended, until the disk was opened again",
  },
  {
    seed: 300059,
    faultsMs: 20_000,
    found:
      "nodes that were drained together gave away what disks could not be written without, and guests waited; and the " +
      "simulator did not take back a drain that came after the faults had ended",
  },
  {
    seed: 300563,
    faultsMs: 20_000,
    found:
      "a joining replica went on copying, for the old group, a chunk of a disk that had got another number of copies, and " +
      "nobody there gave it any more",
  },
  {
    seed: 300952,
    faultsMs: 20_000,
    found:
      "a damaged block was healed with what another replica had had of it before a write, over that write: it was applied " +
      "while the disk read the damaged block once more",
  },
  {
    seed: 530156,
    faultsMs: 20_000,
    found:
      "a joining replica that had a chunk's newest content got an older write of it once more, and then took what that had made of it " +
      "for the newest",
  },
  {
    seed: 500226,
    faultsMs: 20_000,
    hasSnapshots: true,
    found: "a write that came once more was applied behind a later one that overlapped it",
  },
  {
    seed: 500048,
    faultsMs: 20_000,
    hasSnapshots: true,
    found:
      "a write that waited for the lease went into the layer that a snapshot had frozen meanwhile",
  },
  {
    seed: 510109,
    faultsMs: 20_000,
    hasSnapshots: true,
    found: "a node that had been out of reach gave back writes after its lease was another node's",
  },
  {
    seed: 510025,
    faultsMs: 20_000,
    hasSnapshots: true,
    found: "a snapshot that was deleted, and merged, was read through an older map",
  },
  {
    seed: 600488,
    faultsMs: 20_000,
    found:
      "of two flushes under way only the one that ended first failed when what both covered was lost",
  },
  {
    seed: 702186,
    faultsMs: 20_000,
    found: "a checkpoint that was under way when a sync failed went on, and claimed what was lost",
  },
  {
    seed: 706180,
    faultsMs: 20_000,
    found:
      "a block that had rotted in the log's tail was taken for torn by a node that stayed in sync",
  },
  {
    seed: 708553,
    faultsMs: 20_000,
    found:
      "a write overtook an earlier one that the node had refused while it stopped, which then looked as if it had been applied",
  },
  {
    seed: 850019,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "a node said that it had absorbed a layer while the data path was lost that had its only copy, and deleted the layer when the " +
      "path was back",
  },
  {
    seed: 850057,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "a check of replicas took a hole of a flattened layer and zeros that were copied into it elsewhere for a difference",
  },
  {
    seed: 850047,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found: "an agent that stopped ended badly when one data path was closed before another one",
  },
  {
    seed: 850211,
    faultsMs: 20_000,
    hasPaths: true,
    found:
      "a block that had rotted where replicas were to be brought in line was never healed: both copies had lost their stamps, and " +
      "each waited for the other",
  },
  {
    seed: 970209,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "writes failed where a segment begins, and its header was all that was there: the next start went on behind it with lower " +
      "numbers than it names, and the start after that took what had been acknowledged and synced for damaged, or for not there",
  },
  {
    seed: 980130,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "a node that was no member of a group was forgetting a chunk there when it joined again: by the stamp that was still there it " +
      "counted as whole, and then was empty",
  },
  {
    seed: 990211,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "a node had lost the only copy of a group with a data path, and knew that the map says so; a holder that did not know yet took " +
      "a sync of its other paths for one of that, and told its guest that all was flushed",
  },
  {
    seed: 1000274,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    found:
      "the sync failed with which a data path is opened after its agent was killed, which may drop what that had acknowledged; the " +
      "agent was killed before it took part, and the next one said that nothing was lost",
  },
  {
    seed: 6000652,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    found:
      "a layer was made independent of its parent while it absorbed that one: replicas had different stamps of chunks of which there was " +
      "nothing to copy, for good",
  },
  {
    seed: 7000494,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    found:
      "the same, where one replica had the layer's chunk from another node, with the stamp of the chain, before its parent was cut off",
  },
  {
    seed: 8002144,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    found:
      "a layer had absorbed another one, and was being absorbed itself; a node that did not know yet asked for the two together, was told " +
      "that there is nothing in them, and held zeros with the stamp of the data",
  },
  {
    seed: 9100626,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    areGoing: true,
    found:
      "the only replica of a chunk had lost its stamp in a power cut, in a layer that was being absorbed; who joined took its own unknown " +
      "stamp, of nothing, for the same, and was in sync without the chunk",
  },
  {
    seed: 9201150,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    areGoing: true,
    found:
      "a read of a clone had waited for its replica while the clone was made independent; it was read through what it had been cut off " +
      "from, of which the upper part was gone: what that had overwritten came back",
  },
  {
    seed: 9603147,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    areGoing: true,
    found:
      "a node was removed, and then taken in once more, by what it had asked for before it was in the cluster: nobody was behind the " +
      "new node, for which groups waited",
  },
  {
    seed: 9800026,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    areGoing: true,
    found:
      "the last replica in sync had lost writes in a crash, and was settled; what was under way went to it by the numbers that it had on " +
      "another one, which had those writes as well: equal stamps for different content",
  },
  {
    seed: 9800757,
    faultsMs: 20_000,
    hasSnapshots: true,
    hasPaths: true,
    areMoving: true,
    areGoing: true,
    found:
      "an agent was killed right after its last guest had gone in good order, and a block at its log's end rotted: that passed for what " +
      "the kill had cut short, nobody compared it with the other replica, and the two differed for good",
  },
];
