/**
 * A host whose disk hangs for good: what it is asked stays unanswered, while its agent lives and takes connections.
 *
 * @module
 */
import { Story } from "./story.ts";

/** How a disk is that does not give back any request. */
const NEVER_MS = 1e9;

Deno.test("a replica whose disk hangs is not waited for", () => {
  const story = new Story(1);
  const [one, , hung] = story.nodes;
  const session = story.open(one);
  session.writeNow(0, 0);
  hung.diskDelayMs = NEVER_MS;
  const write = session.write(0, 1);
  story.waitFor("the hung one is not waited for", () => write.isDone, 60_000);
});

Deno.test("a host that holds a lease, and whose disk hangs, keeps no other one from catching up", () => {
  const story = new Story(1);
  const [one, two, hung] = story.nodes;
  story.ask({ kind: "create-disk", name: "other", sizeBytes: 2 ** 24, nowMs: 0, copies: 3 });
  const other = story.map!.disks.find(({ name }) => name === "other")!;
  const volume = hung.attach(other.id, other.sizeBytes, other.layers)!;
  story.waitFor("the other disk is open", () => volume.generation > 0);
  const session = story.open(one);
  session.writeNow(0, 0);
  hung.diskDelayMs = NEVER_MS;
  const write = session.write(0, 1);
  story.waitFor("the hung one is not waited for", () => write.isDone, 60_000);
  two.crash(true);
  story.pass(500);
  two.start([]);
  story.waitFor("node 2 is back", () => two.incarnation > 1);
  const last = session.write(0, 2);
  story.waitFor("the disk is written again", () => last.isDone, 120_000);
});
