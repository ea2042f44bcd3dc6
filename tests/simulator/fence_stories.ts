/**
 * Writes that come late: what the fences of a replica are for.
 *
 * A replica refuses a write that is not of the lease that its map knows, and one that was sent under a map from before its group's
 * last change (`agent/replication/replica.ts`). In each of these stories that is the last thing between a late write and the disk.
 *
 * It is not always. Where a chunk has been written by a later lease, or has that very write already, its stamp tells that a late one is
 * over, fence or no fence: so here the chunks have been read meanwhile, or copied, but not written where the write arrives.
 *
 * @module
 */
import { assertEquals, assertLess } from "@std/assert/mod.js";
import type { SimNode } from "./node.ts";
import type { Story } from "./story.ts";

/** Blocks of a place of the oracle; both are in one chunk. */
export const BLOCK = 0, NEIGHBOUR = 1;
/** Nothing comes later than this: a kernel gives up then (`TCP_USER_TIMEOUT` in `agent/platform/linux/tcp.ts`). */
const LATE_MS_MAX = 8000;
/** Time within which what was let go has arrived and been dealt with. */
const ARRIVAL_MS = 50;

/** What came of a story, when all is quiet again and the disk is closed. */
export interface Aftermath {
  /** Late writes that were refused. */
  readonly refused: number;
  /** Place of the oracle whose {@linkcode BLOCK} it was about. */
  readonly place: number;
  /** Nodes on which guests are to read it now, one after the other. */
  readonly readers: readonly SimNode[];
}

/** A story, and the fence without which it ends badly. */
export interface FenceStory {
  readonly fence: "lease" | "epoch";
  tell(story: Story): Aftermath;
}

/**
 * The lease of another. A host is being taken out of service: its replicas have moved away, a guest still runs there. What that guest
 * writes last gets stuck on the way to both replicas. The agent is killed and starts again, which ends its lease; another node
 * gets the disk at once, finds both replicas equal, and reads. Then one of the stuck messages arrives.
 *
 * No group has changed since it was sent, and its sender is up: nothing speaks against it but that the lease is another's now.
 */
function lateWriteOfAnEarlierLease(story: Story): Aftermath {
  const [heir, holder, replica] = story.nodes;
  const place = 0;
  story.ask({ kind: "set-availability", node: holder.node, availability: "draining" });
  story.waitFor("its replicas have moved", () => story.isQuiet());
  const before = story.open(holder);
  before.writeNow(place, BLOCK);
  const { changedEpoch } = story.groupOf(replica, place).entry;

  story.network.hold(holder, heir);
  story.network.hold(holder, replica);
  const sentMs = story.world.nowMs;
  const stuck = before.write(place, BLOCK);
  story.pass(5);
  holder.crash(false);
  holder.start([heir.address]);
  story.waitFor("its agent is back", () => holder.incarnation > 0);
  const after = story.open(heir);
  after.read(place, BLOCK);

  const refusedBefore = story.refusedBy(replica);
  story.network.release(holder, replica);
  story.pass(ARRIVAL_MS);
  const refused = story.refusedBy(replica) - refusedBefore;
  assertLess(story.world.nowMs - sentMs, LATE_MS_MAX);
  assertEquals(stuck.isDone, false);
  assertEquals(story.groupOf(replica, place).entry.changedEpoch, changedEpoch);

  // After this the replicas have equal stamps, whatever is in them: nothing would ever look for a difference there again.
  after.writeNow(place, NEIGHBOUR);
  // For the same reason the other message does no harm when it comes now.
  story.network.release(holder, heir);
  story.pass(ARRIVAL_MS);
  after.close();
  return { refused, place, readers: [replica, heir] };
}

/**
 * An earlier epoch, at a replica that was away. For a moment nothing arrives there, and the leader takes it for dead: a write that is on
 * its way to it is acknowledged without it, and then overwritten. It comes back, on the connections that it had, and begins to
 * catch up. Then the write arrives: TCP has sent it again.
 *
 * What is written to a chunk while it is copied is kept, as newer than the copy. This write is older than that.
 */
function lateWriteToOneThatWasAway(story: Story): Aftermath {
  const [source, sequencer, replica] = story.nodes;
  const place = 0;
  const group = (node: SimNode) => story.groupOf(node, place);
  const link = () => sequencer.process!.data!.peers.linkOf(replica.node);
  const guest = story.open(sequencer);
  guest.writeNow(place, BLOCK);
  const linkBefore = link();

  story.cutOff(replica);
  story.network.hold(source, replica);
  story.network.hold(sequencer, replica);
  const sentMs = story.world.nowMs;
  const stuck = guest.write(place, BLOCK);
  story.pass(5);
  assertEquals(stuck.isDone, false);
  story.takeForDead(replica);
  story.waitFor("the write is done without it", () => stuck.isDone);
  assertEquals(group(sequencer).members.includes(replica.node), false);
  guest.writeNow(place, BLOCK);
  story.network.cut.clear();
  story.waitFor("it joins", () => group(replica).entry.joining.includes(replica.node));

  const refusedBefore = story.refusedBy(replica);
  story.network.release(sequencer, replica);
  story.pass(ARRIVAL_MS);
  const refused = story.refusedBy(replica) - refusedBefore;
  assertLess(story.world.nowMs - sentMs, LATE_MS_MAX);
  assertEquals(link(), linkBefore);
  assertEquals(group(replica).entry.joining.includes(replica.node), true);

  story.network.release(source, replica);
  story.pass(ARRIVAL_MS);
  // A chunk with live writes is complete when one of them is as new as the copy.
  guest.writeNow(place, NEIGHBOUR);
  story.waitFor("every group is whole", () => story.isQuiet());
  guest.read(place, BLOCK);
  guest.close();
  return { refused, place, readers: [replica] };
}

/**
 * An earlier epoch, from a sequencer that does not know all members. A replica was away for a moment, and has caught up by copying from
 * another one. The sequencer's data worker has not heard of that yet: what it writes goes to that other one, after the copy was
 * taken, and would never come to the newcomer.
 */
function writeOfASequencerThatLacksAMember(story: Story): Aftermath {
  const [source, sequencer, newcomer] = story.nodes;
  const group = (node: SimNode) => story.groupOf(node, place);
  const isMember = (by: SimNode) => group(by).members.includes(newcomer.node);
  // Who is copied from goes by the number of the group, and chunks that follow each other are in such groups.
  const isFromSource = (at: number) => {
    const { entry, group } = story.groupOf(source, at);
    return entry.inSync.filter((node) => node !== newcomer.node)[group % 2] === source.node;
  };
  const place = [0, 1].find(isFromSource)!;
  const guest = story.open(sequencer);
  guest.writeNow(place, BLOCK);

  story.cutOff(newcomer);
  story.takeForDead(newcomer);
  story.waitFor("the sequencer knows", () => !isMember(sequencer));
  story.network.cut.clear();
  story.waitFor("it is back", () => story.isUp(newcomer));
  // Nobody joins before those who hold leases have said that they know who is up; whether they hear of the joining is another matter.
  const { epoch } = story.map!;
  story.waitFor("the sequencer knows", () => sequencer.process!.data!.view.epoch >= epoch);
  sequencer.deafen();
  story.waitFor("it is in sync", () => group(newcomer).entry.inSync.includes(newcomer.node));
  assertEquals(isMember(sequencer), false);

  const refusedBefore = story.refusedBy(source);
  const write = guest.write(place, BLOCK);
  story.pass(ARRIVAL_MS);
  const refused = story.refusedBy(source) - refusedBefore;
  sequencer.hear();
  story.waitFor("the write is done", () => write.isDone);
  story.waitFor("every group is whole", () => story.isQuiet());
  guest.read(place, BLOCK);
  guest.close();
  return { refused, place, readers: [newcomer] };
}

/** All of them. */
export const FENCE_STORIES: readonly FenceStory[] = [
  { fence: "lease", tell: lateWriteOfAnEarlierLease },
  { fence: "epoch", tell: lateWriteToOneThatWasAway },
  { fence: "epoch", tell: writeOfASequencerThatLacksAMember },
];
