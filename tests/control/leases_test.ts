import { assertEquals } from "@std/assert/mod.js";
import { Leases } from "../../agent/control/leases.ts";
import {
  type ClusterMap,
  type Lease,
  type MapCommand,
  type ReleaseLease,
  UNWRITTEN,
} from "../../agent/map/map.ts";
import { clusterWithDisk } from "../map/cluster.ts";

const DISK = 1;

class Fixture {
  readonly events: string[] = [];
  readonly proposals: { command: MapCommand; done: () => void }[] = [];
  readonly leases = new Leases({
    wantLease: (disk) => this.events.push(`want ${disk}`),
    forgetLease: (disk) => this.events.push(`forget ${disk}`),
    propose: (command, done) => this.proposals.push({ command, done: done ?? (() => {}) }),
    granted: (disk, { generation, isUnclean, byOthers }) => {
      const others = byOthers === 0 ? "" : ` after ${byOthers}`;
      this.events.push(`granted ${disk} ${generation}${isUnclean ? " unclean" : ""}${others}`);
    },
    fenced: (disk, generation) => this.events.push(`fenced ${disk} ${generation}`),
  });

  written = UNWRITTEN;

  constructor(readonly level = 1) {
    this.map(null, 5);
    this.leases.started(1, 3);
    this.take();
  }

  map(lease: Lease | null, generation: number, isThere = true, settled = generation - 1): void {
    const { level, written } = this;
    const map: ClusterMap = { ...clusterWithDisk(3, 3), level };
    const disks = map.disks.map((disk) => ({ ...disk, lease, generation, settled, written }));
    this.leases.mapChanged({ ...map, disks: isThere ? disks : [] });
  }

  /** What was said since the last call, but for what is forgotten. */
  take(): string[] {
    return this.events.splice(0).filter((event) => !event.startsWith("forget"));
  }

  /** Kinds and generations of what was proposed since the last call. */
  proposed(): string[] {
    return this.proposals.splice(0).map(({ command, done }) => {
      done();
      return `${command.kind} ${"generation" in command ? command.generation : ""}`;
    });
  }
}

const OURS: Lease = { node: 1, incarnation: 3 };
const THEIRS: Lease = { node: 2, incarnation: 1 };

/** A fixture that holds the disk under generation 6, opened. */
function holding(level = 1): Fixture {
  const at = new Fixture(level);
  at.leases.wanted(DISK);
  at.map(OURS, 6);
  at.leases.opened(DISK, 6);
  at.take();
  return at;
}

Deno.test("a disk that is wanted is asked for, and granted when the map says that it is ours", () => {
  const at = new Fixture();
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["want 1"]);
  at.map(OURS, 6);
  assertEquals(at.take(), ["granted 1 6"]);
  at.map(OURS, 6);
  assertEquals(at.take(), [], "once");
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["granted 1 6"], "another session of the same disk is told");
  assertEquals([...at.leases.disks], [DISK]);
});

Deno.test("before this start is in the map nothing is granted: the lease may be an earlier one's", () => {
  const at = new Fixture();
  const early = new Fixture();
  early.leases.started(1, 0);
  early.leases.wanted(DISK);
  early.map(OURS, 6);
  assertEquals(early.take().filter((event) => event.startsWith("granted")), []);
  at.leases.wanted(DISK);
  at.take();
  at.map({ node: 1, incarnation: 2 }, 6);
  assertEquals(at.take(), ["want 1"], "what an earlier incarnation holds is asked for anew");
  at.map(OURS, 7);
  assertEquals(at.take(), ["granted 1 7"]);
});

Deno.test("what is given back after it was opened is released; done when the map knows", () => {
  const at = holding();
  let isDone = false;
  at.leases.released(DISK, { done: () => isDone = true });
  assertEquals(isDone, false);
  assertEquals(at.proposed(), ["release-lease 6"]);
  assertEquals([isDone, [...at.leases.disks]], [true, []]);
});

Deno.test("what was never opened is not called settled when it goes back", () => {
  const at = new Fixture();
  at.leases.wanted(DISK);
  at.map(OURS, 6);
  at.leases.opened(DISK, 5);
  at.leases.released(DISK);
  assertEquals(at.proposed(), ["force-release-lease 6"]);
});

Deno.test("what is given back with requests that were given up is not called settled, and whoever waits gets it anew", () => {
  const at = holding();
  at.leases.released(DISK, { isUnclean: true });
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["want 1"]);
  assertEquals(at.proposed(), ["force-release-lease 6"]);
  at.map(null, 6, true, 5);
  at.map(OURS, 7, true, 5);
  assertEquals(at.take().at(-1), "granted 1 7 unclean");
});

Deno.test("who gives a disk back says that nothing was written, where that is so and the others know the word", () => {
  const commands = (at: Fixture) =>
    at.proposals.splice(0).map(({ command }) => {
      const { kind, unwritten } = command as ReleaseLease;
      return `${kind}${unwritten === true ? " unwritten" : ""}`;
    });
  for (const level of [1, 2]) {
    const word = level === 2 ? " unwritten" : "";
    const at = holding(level);
    at.leases.released(DISK, { isUnwritten: true });
    assertEquals(commands(at), [`release-lease${word}`]);
    const written = holding(level);
    written.leases.released(DISK);
    assertEquals(commands(written), ["release-lease"]);
    // What was given up has been sent, or has not.
    const unclean = holding(level);
    unclean.leases.released(DISK, { isUnclean: true, isUnwritten: true });
    assertEquals(commands(unclean), [`force-release-lease${word}`]);
    const early = new Fixture(level);
    early.leases.wanted(DISK);
    early.map(OURS, 6);
    early.leases.released(DISK, { isUnwritten: true });
    assertEquals(commands(early), [`force-release-lease${word}`], "never opened");
    const late = new Fixture(level);
    late.map(OURS, 6);
    assertEquals(commands(late), [`force-release-lease${word}`], "its session had gone");
  }
});

Deno.test("who is granted a disk hears until when others have written to it, again and again", () => {
  const at = new Fixture(2);
  at.leases.wanted(DISK);
  at.written = { node: 2, generation: 4, before: 3 };
  at.map(OURS, 6);
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["want 1", "granted 1 6 after 4", "granted 1 6 after 4"]);
  at.written = { node: 1, generation: 6, before: 3 };
  at.map(OURS, 7);
  assertEquals(at.take(), ["granted 1 7 after 3"], "its own are not others'");
});

Deno.test("a lease that comes after its session has gone goes back", () => {
  const at = new Fixture();
  at.leases.wanted(DISK);
  let isDone = false;
  at.leases.released(DISK, { done: () => isDone = true });
  assertEquals([isDone, at.proposed()], [true, []]);
  at.map(OURS, 6);
  assertEquals(at.proposed(), ["force-release-lease 6"]);
});

Deno.test("a disk that is being given back is not granted again under the same generation", () => {
  const at = holding();
  at.leases.released(DISK);
  at.leases.wanted(DISK);
  at.map(OURS, 6);
  assertEquals(at.take().filter((event) => event.startsWith("granted")), []);
  assertEquals(at.proposed(), ["release-lease 6"], "and not given back twice");
  at.map(null, 6);
  at.map(OURS, 7);
  assertEquals(at.take().at(-1), "granted 1 7");
});

Deno.test("a return that was refused is made again, in the same words, and nobody has the disk under that generation", () => {
  // What was written is not called unwritten for it.
  const options = [{}, { isUnclean: true }, { isUnwritten: true }];
  const words = ["release-lease 6", "force-release-lease 6", "release-lease 6 unwritten"];
  for (const [i, option] of options.entries()) {
    const at = holding(2);
    const decided = () =>
      at.proposals.splice(0).map(({ command, done }) => {
        done();
        const { kind, generation, unwritten } = command as ReleaseLease;
        return `${kind} ${generation}${unwritten === true ? " unwritten" : ""}`;
      });
    at.leases.released(DISK, option);
    at.leases.wanted(DISK);
    at.leases.tick();
    assertEquals(decided(), [words[i]], "once while it is under way");
    assertEquals(at.proposals.length, 0, "not from within the answer");
    at.map(OURS, 6);
    assertEquals(at.take(), ["want 1", "want 1"]);
    at.leases.tick();
    at.map(null, 6);
    assertEquals(decided(), [words[i]]);
    at.leases.tick();
    assertEquals(decided(), []);
    at.map(OURS, 7);
    assertEquals(at.take().at(-1), "granted 1 7");
  }
});

Deno.test("what is taken away on its own host goes back only when it is sure that nothing there uses it", () => {
  const at = holding();
  const decided = at.leases.revoked(DISK, 6)!;
  // The data plane does not say that it has stopped.
  for (let ticks = 0; ticks < 3; ticks++) at.leases.tick();
  at.map(OURS, 6);
  at.leases.released(DISK);
  assertEquals([at.take(), at.proposed()], [["fenced 1 6"], []]);
  decided();
  at.leases.tick();
  assertEquals(at.proposed(), ["force-release-lease 6"]);
});

Deno.test("a lease that was lost and got back is granted anew, under its new generation", () => {
  const at = holding();
  at.map(null, 6);
  assertEquals(at.take(), ["want 1"]);
  at.map(OURS, 7);
  assertEquals(at.take(), ["granted 1 7"]);
  at.leases.released(DISK);
  assertEquals(at.proposed(), ["force-release-lease 7"], "not opened since");
});

Deno.test("once another node has had the disk its session here is fenced for good", () => {
  const at = holding();
  at.map(THEIRS, 7);
  assertEquals(at.take(), ["fenced 1 6"]);
  at.map(null, 7);
  at.map(OURS, 8);
  assertEquals(at.take(), [], "whatever happens to the disk then");
  let isDone = false;
  at.leases.released(DISK, { done: () => isDone = true });
  assertEquals([isDone, at.proposed()], [true, ["force-release-lease 8"]], "nobody wants it");
});

Deno.test("the session that comes after a fenced one is another one, and gets the disk", () => {
  const at = holding();
  at.map(THEIRS, 7);
  at.take();
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["want 1"]);
  at.map(OURS, 8);
  assertEquals(at.take(), ["granted 1 8"]);
});

Deno.test("that another node had it in between is seen by the generation alone", () => {
  const at = holding();
  at.map(null, 7);
  assertEquals(at.take(), ["fenced 1 6"]);
});

Deno.test("that others have written in between is seen where maps were left out, and the lease goes back", () => {
  const at = holding(2);
  at.written = { node: 2, generation: 7, before: 6 };
  at.map(OURS, 8);
  assertEquals(at.take(), ["fenced 1 6"]);
  at.leases.released(DISK);
  assertEquals(at.proposed(), ["force-release-lease 8"]);
  // Leases of its own are none of others.
  const alone = holding(2);
  alone.written = { node: 1, generation: 7, before: 4 };
  alone.map(OURS, 8);
  assertEquals(alone.take(), ["granted 1 8 after 4"]);
});

Deno.test("who waits while another node has the disk goes on waiting", () => {
  const at = new Fixture();
  at.map(THEIRS, 6);
  at.leases.wanted(DISK);
  at.map(THEIRS, 6);
  assertEquals(at.take(), ["want 1", "want 1"]);
  at.map(OURS, 7);
  assertEquals(at.take(), ["granted 1 7"]);
});

Deno.test("a disk that is deleted under its session is fenced", () => {
  const at = holding();
  at.map(null, 6, false);
  assertEquals(at.take(), ["fenced 1 6"]);
});

Deno.test("a lease of this start that nobody here wants goes back", () => {
  const at = new Fixture();
  at.map(OURS, 6);
  assertEquals(at.proposed(), ["force-release-lease 6"]);
  at.map({ node: 1, incarnation: 2 }, 6);
  at.map(THEIRS, 7);
  assertEquals(at.proposed(), [], "of others' nothing is given away");
});

Deno.test("whoever gets a disk that was not given back in good order hears so, until it is in line again", () => {
  const at = new Fixture();
  at.leases.wanted(DISK);
  at.take();
  at.map(OURS, 6, true, 4);
  assertEquals(at.take(), ["granted 1 6 unclean"]);
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["granted 1 6 unclean"], "another session, before it is opened");
  at.leases.opened(DISK, 6);
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["granted 1 6"]);
});

Deno.test("what is taken away on its own host stops there first, and is not granted again meanwhile", () => {
  const at = holding();
  at.map(OURS, 6);
  assertEquals(at.leases.revoked(DISK, 5), null, "not the disk as it is held");
  const decided = at.leases.revoked(DISK, 6);
  assertEquals(at.take(), ["fenced 1 6"]);
  at.leases.wanted(DISK);
  assertEquals(at.take(), ["want 1"], "another session waits for the next generation");
  at.leases.released(DISK);
  at.map(OURS, 6);
  assertEquals(at.proposed(), [], "it is on its way back");
  decided!();
  at.map(null, 6);
  at.map(THEIRS, 7);
  assertEquals(at.leases.revoked(DISK, 7), null, "it is another node's");
});
