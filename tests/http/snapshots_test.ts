/**
 * Snapshots, clones, the trash and schedules over the admin API: what a request leaves behind, whatever the holders of disks do.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import type {
  DiskDocument,
  ScheduleDocument,
  ScheduleListDocument,
  SnapshotDocument,
  SnapshotListDocument,
  TrashDocument,
} from "../../agent/http/documents.ts";
import { createHandler } from "../../agent/http/server.ts";
import { ENTRY_BYTES_MAX } from "../../agent/consensus/limits.ts";
import { type ControlError, ControlFailure, unwrap } from "../../agent/map/errors.ts";
import type { ClusterMap, DiskEntry, MapCommand } from "../../agent/map/map.ts";
import { encodeProposal } from "../../agent/map/proposal_codec.ts";
import { clusterOf, runAll } from "../map/cluster.ts";
import { FakeBackend, FakeLog } from "./fake_backend.ts";

const GIB = 1024 ** 3;
/** Longer than any test takes; and so short that it has passed before anything else happens. */
const LONG_MS = 60_000, SHORT_MS = 1;

/** Three nodes at level 2, with disks "web" (id 1) and "db" (id 2) that nobody has open. */
function twoDisks(): ClusterMap {
  const create = (name: string): MapCommand => ({
    kind: "create-disk",
    name,
    sizeBytes: GIB,
    nowMs: 1,
    copies: 1,
  });
  return runAll({ ...clusterOf(3), level: 2 }, create("web"), create("db"));
}

const open = (id: number, node: number): MapCommand => ({
  kind: "take-lease",
  id,
  node,
  incarnation: 1,
});

class Harness {
  readonly backend = new FakeBackend();
  readonly closing = new AbortController();
  readonly gone = new AbortController();
  readonly #handle: (request: Request) => Promise<Response>;

  constructor(timeoutMs = LONG_MS, ...commands: MapCommand[]) {
    this.backend.clusterMap = runAll(twoDisks(), ...commands);
    this.#handle = createHandler({
      backend: this.backend,
      log: new FakeLog(),
      closing: this.closing.signal,
      snapshotTimeoutMs: timeoutMs,
    });
  }

  async ask<T>(status: number, method: string, path: string, body?: unknown): Promise<T> {
    const request = new Request(`http://agent${path}`, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: this.gone.signal,
    });
    const response = await this.#handle(request);
    const text = await response.text();
    assertEquals(response.status, status, text);
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  async refused(status: number, ...parts: [string, string, unknown?]): Promise<ControlError> {
    return (await this.ask<{ error: ControlError }>(status, ...parts)).error;
  }

  take(status: number, name: string, ...disks: string[]): Promise<SnapshotListDocument> {
    return this.ask(status, "POST", "/v1/snapshots", { disks, name });
  }

  async takeRefused(status: number, name: string, ...disks: string[]): Promise<ControlError> {
    return await this.refused(status, "POST", "/v1/snapshots", { disks, name });
  }

  disk(name: string): DiskEntry {
    return this.backend.clusterMap.disks.find((disk) => disk.name === name)!;
  }

  /** What a holder says when everything of before has come back. */
  async drain(name: string): Promise<void> {
    const { id, generation, snapshots } = this.disk(name);
    const { layer } = snapshots.at(-1)!;
    await this.backend.propose({ kind: "snapshot-taken", id, layer, generation });
  }

  names(disk: string): string[] {
    return this.disk(disk).snapshots.filter((each) => !each.isAborted).map(({ name }) => name);
  }

  /** Resolves when a command of this kind has been carried out. */
  async until(kind: MapCommand["kind"]): Promise<void> {
    while (!this.backend.proposed.some((command) => command.kind === kind)) {
      await this.backend.nextMap();
    }
  }
}

// --------------------------------------------------------------------------------- taking snapshots

Deno.test("snapshots of disks that nobody has open are there at once", async () => {
  const at = new Harness();
  const { snapshots } = await at.take(201, "monday", "web", "db");
  assertEquals(snapshots.map(({ disk, name, isTaking }) => [disk, name, isTaking]), [
    ["web", "monday", false],
    ["db", "monday", false],
  ]);
  assertEquals(snapshots[0].socket, "/run/kelpie/web@monday.sock");
  assertEquals(await at.ask(200, "GET", "/v1/disks/web/snapshots"), {
    snapshots: [snapshots[0]],
  });
  assertEquals((await at.ask<DiskDocument>(200, "GET", "/v1/disks/web")).snapshots, ["monday"]);
});

Deno.test("a snapshot of an open disk is answered when its holder has nothing of before left", async () => {
  const at = new Harness(LONG_MS, open(1, 2), open(2, 3));
  let isAnswered = false;
  const answer = at.take(201, "monday", "web", "db").finally(() => isAnswered = true);
  await at.until("create-snapshots");
  await at.drain("web");
  await Promise.resolve();
  assertEquals(isAnswered, false);
  assert((await at.ask<SnapshotListDocument>(200, "GET", "/v1/snapshots")).snapshots[0].isTaking);
  await at.drain("db");
  const { snapshots } = await answer;
  assertEquals(snapshots.map(({ isTaking }) => isTaking), [false, false]);
  assertEquals(at.backend.proposed.map(({ kind }) => kind).includes("abort-snapshots"), false);
});

Deno.test("a snapshot is said to be there when its socket is", async () => {
  const at = new Harness();
  const inForce = Promise.withResolvers<void>();
  at.backend.inForce = () => inForce.promise;
  let isAnswered = false;
  const answer = at.take(201, "monday", "web").finally(() => isAnswered = true);
  await at.until("create-snapshots");
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
  assertEquals(isAnswered, false);
  inForce.resolve();
  await answer;
});

Deno.test("what is not complete in time is given up, and the disk and node that were late are named", async () => {
  const at = new Harness(SHORT_MS, open(1, 2), open(2, 3));
  at.backend.proposed.push = function (...commands: MapCommand[]): number {
    // One of the two is ready, the other is not.
    if (commands[0].kind === "create-snapshots") queueMicrotask(() => void at.drain("web"));
    return Array.prototype.push.apply(this, commands);
  };
  const { code, message } = await at.takeRefused(503, "monday", "web", "db");
  assertEquals(code, "unavailable");
  assertMatch(message, /^disk db on node host-3 was not ready within 0\.001 seconds: no snapshot/);
  assertEquals([at.names("web"), at.names("db")], [[], []]);
  assertEquals(at.disk("db").snapshots[0].isAborted, true);
  assertEquals(await at.ask(200, "GET", "/v1/snapshots"), { snapshots: [] });
});

Deno.test("what is complete just before it would be given up is there, and said to be", async () => {
  const at = new Harness(SHORT_MS, open(1, 2));
  const { propose } = FakeBackend.prototype;
  at.backend.propose = async function (command) {
    if (command.kind === "abort-snapshots") await at.drain("web");
    return await propose.call(this, command);
  };
  const { snapshots } = await at.take(201, "monday", "web");
  assertEquals(snapshots.map(({ isTaking }) => isTaking), [false]);
});

Deno.test("whoever hangs up, and an agent that stops, leave no snapshot behind", async () => {
  for (const why of ["gone", "closing"] as const) {
    const at = new Harness(LONG_MS, open(1, 2));
    const answer = at.takeRefused(503, "monday", "web");
    await at.until("create-snapshots");
    at[why].abort();
    assertMatch((await answer).message, /disk web on node host-2 was not ready when nobody waited/);
    assertEquals(at.names("web"), []);
  }
});

Deno.test("where it cannot be decided, it is said that it is not known", async () => {
  const at = new Harness(SHORT_MS, open(1, 2));
  const { propose } = FakeBackend.prototype;
  at.backend.propose = function (command) {
    if (command.kind !== "abort-snapshots") return propose.call(this, command);
    const message = "no majority";
    return Promise.reject(new ControlFailure({ code: "unavailable", message }));
  };
  const { message, hint } = await at.takeRefused(503, "monday", "web");
  assertMatch(message, /not ready within .* it could not be given up: no majority/);
  assertMatch(hint!, /snapshot list/);
});

Deno.test("a snapshot waits for another one of its disk, and not for ever", async () => {
  const at = new Harness(LONG_MS, open(1, 2));
  const first = at.take(201, "first", "web");
  await at.until("create-snapshots");
  const second = at.take(201, "second", "web");
  await at.drain("web");
  await first;
  while (at.names("web").length < 2) await at.backend.nextMap();
  await at.drain("web");
  await second;
  assertEquals(at.names("web"), ["first", "second"]);

  const late = new Harness(SHORT_MS, open(1, 2), {
    kind: "create-snapshots",
    disks: [1],
    name: "first",
    nowMs: 1,
  });
  const { code, message } = await late.takeRefused(409, "second", "web");
  assertEquals(code, "busy");
  assertMatch(message, /another snapshot of disk web on node host-2 is being taken/);
  assertEquals(late.names("web"), ["first"]);
});

Deno.test("what the map refuses is refused at once, with the map's own words", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  const cases: [number, string, string[], RegExp][] = [
    [409, "monday", ["web"], /disk web has a snapshot named monday already/],
    [409, "monday", ["db", "web"], /disk web has a snapshot named monday already/],
    [404, "tuesday", ["web", "wbe"], /no disk named "wbe"/],
    [400, "tuesday", ["web", "web"], /each once/],
    [400, "tuesday", [], /0 disks at once/],
    [400, "a@b", ["web"], /cannot be the name of a snapshot/],
  ];
  for (const [status, name, disks, message] of cases) {
    assertMatch((await at.takeRefused(status, name, ...disks)).message, message);
  }
  assertEquals([at.names("web"), at.names("db")], [["monday"], []]);
  // A disk whose last holder has died has to be opened first: that does not go away by waiting.
  const unclean = new Harness(LONG_MS, open(1, 2), {
    kind: "node-down",
    node: 2,
    incarnation: 1,
    nowMs: 1,
  }, { kind: "force-release-lease", id: 1, generation: 1 });
  assertMatch((await unclean.takeRefused(409, "x", "web")).message, /not closed in good order/);
});

Deno.test("in a cluster that does not speak level 2 yet, all of it is refused with the reason", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  at.backend.clusterMap = { ...at.backend.clusterMap, level: 1 };
  const requests: [string, string, unknown?][] = [
    ["POST", "/v1/snapshots", { disks: ["web"], name: "tuesday" }],
    ["PATCH", "/v1/disks/web/snapshots/monday", { isProtected: true }],
    ["DELETE", "/v1/disks/web/snapshots/monday"],
    ["POST", "/v1/disks/web/snapshots/monday/clone", { name: "copy" }],
    ["POST", "/v1/disks/web/snapshots/monday/rollback"],
    ["PUT", "/v1/disks/web/schedules/hourly", { everyMs: 60_000, keep: 1 }],
    ["PATCH", "/v1/cluster/settings", { trashMs: 1 }],
  ];
  for (const parts of requests) {
    assertMatch((await at.refused(503, ...parts)).message, /needs level 2/, parts[1]);
  }
  // There is no trash yet: a disk is deleted as it always was.
  await at.ask(204, "DELETE", "/v1/disks/db");
  assertEquals(at.backend.clusterMap.trash, []);
});

// ------------------------------------------------------------------------------ what is done with them

Deno.test("snapshots are renamed, protected and deleted", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  const path = "/v1/disks/web/snapshots/monday";
  const changed = await at.ask<SnapshotDocument>(200, "PATCH", path, {
    name: "kept",
    isProtected: true,
  });
  assertEquals([changed.name, changed.isProtected], ["kept", true]);
  assertMatch((await at.refused(404, "DELETE", path)).message, /no snapshot named "monday"/);
  const kept = "/v1/disks/web/snapshots/kept";
  assertMatch((await at.refused(409, "DELETE", kept)).message, /is protected/);
  assertMatch((await at.refused(409, "DELETE", "/v1/disks/web")).message, /is protected/);
  await at.ask(200, "PATCH", kept, { isProtected: false });
  await at.ask(204, "DELETE", kept);
  assertEquals(at.names("web"), []);
});

Deno.test("clones say what they go on from, and snapshots which clones they have", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  const path = "/v1/disks/web/snapshots/monday";
  const made = await at.ask<DiskDocument>(201, "POST", `${path}/clone`, {
    name: "copy",
    readOnly: true,
    attributes: { owner: "anna" },
  });
  const { family, origin, readOnly, attributes } = made;
  assertEquals({ family, origin, readOnly, attributes }, {
    family: 1,
    origin: "web@monday",
    readOnly: true,
    attributes: { owner: "anna" },
  });
  await at.take(201, "tuesday", "copy");
  await at.take(201, "wednesday", "copy");
  const get = (name: string, snapshot: string) =>
    at.ask<SnapshotDocument>(200, "GET", `/v1/disks/${name}/snapshots/${snapshot}`);
  assertEquals((await get("web", "monday")).clones, ["copy"]);
  assertEquals((await get("web", "monday")).parent, null);
  assertEquals((await get("copy", "tuesday")).parent, "web@monday");
  assertEquals((await get("copy", "wednesday")).parent, "copy@tuesday");
  assertEquals((await at.ask<DiskDocument>(200, "GET", "/v1/disks/copy")).origin, "web@monday");
  await at.ask(204, "DELETE", path);
  assertEquals((await at.ask<DiskDocument>(200, "GET", "/v1/disks/copy")).origin, null);
  assertMatch(
    (await at.refused(400, "POST", "/v1/disks/copy/snapshots/tuesday/clone", { name: "a/b" }))
      .message,
    /a\/b/,
  );
});

Deno.test("rolling back leaves what the disk held in the trash", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  await at.ask(200, "PATCH", "/v1/disks/web", { sizeBytes: 2 * GIB });
  const rolled = await at.ask<DiskDocument>(
    200,
    "POST",
    "/v1/disks/web/snapshots/monday/rollback",
  );
  assertEquals([rolled.id, rolled.sizeBytes, rolled.snapshots], [1, GIB, ["monday"]]);
  const { disks } = await at.ask<TrashDocument>(200, "GET", "/v1/trash");
  assertEquals(disks.map(({ name, sizeBytes }) => [name, sizeBytes]), [["web", 2 * GIB]]);
  await at.backend.propose(open(1, 2));
  const path = "/v1/disks/web/snapshots/monday/rollback";
  assertMatch((await at.refused(409, "POST", path)).message, /is open/);
});

Deno.test("a deleted disk is had back by its name, or by its id where the name is not enough", async () => {
  const at = new Harness();
  await at.take(201, "monday", "web");
  await at.ask(204, "DELETE", "/v1/disks/web");
  const { disks: [deleted] } = await at.ask<TrashDocument>(200, "GET", "/v1/trash");
  assertEquals([deleted.id, deleted.name, deleted.snapshots], [1, "web", ["monday"]]);
  assertEquals(deleted.expiresMs - deleted.deletedMs, 24 * 3_600_000);
  const back = await at.ask<DiskDocument>(201, "POST", "/v1/trash/web/restore", {});
  assertEquals([back.id, back.name, back.snapshots], [1, "web", ["monday"]]);

  await at.ask(204, "DELETE", "/v1/disks/web");
  await at.ask(201, "POST", "/v1/disks", { name: "web", sizeBytes: GIB });
  assertMatch(
    (await at.refused(409, "POST", "/v1/trash/web/restore", {})).message,
    /already a disk/,
  );
  await at.ask(204, "DELETE", "/v1/disks/web");
  const { code, message } = await at.refused(400, "DELETE", "/v1/trash/web");
  assertEquals(code, "invalid");
  assertMatch(message, /2 disks in the trash were named web: with the ids 1, 3/);
  const other = await at.ask<DiskDocument>(201, "POST", "/v1/trash/3/restore", { name: "again" });
  assertEquals([other.id, other.name], [3, "again"]);
  await at.ask(204, "DELETE", "/v1/trash/1");
  assertEquals(at.backend.clusterMap.trash, []);
  assertMatch((await at.refused(404, "DELETE", "/v1/trash/1")).message, /no disk "1" in the trash/);
});

Deno.test("a clone of what is in the trash is not said to be one of what has its name now", async () => {
  const at = new Harness();
  const copy = () => at.ask<DiskDocument>(200, "GET", "/v1/disks/copy");
  const monday = () => at.ask<SnapshotDocument>(200, "GET", "/v1/disks/web/snapshots/monday");
  await at.take(201, "monday", "web");
  await at.ask(201, "POST", "/v1/disks/web/snapshots/monday/clone", { name: "copy" });
  assertEquals([(await copy()).origin, (await monday()).clones], ["web@monday", ["copy"]]);
  await at.ask(204, "DELETE", "/v1/disks/web");
  assertEquals((await copy()).origin, "web@monday");
  await at.ask(201, "POST", "/v1/disks", { name: "web", sizeBytes: GIB });
  await at.take(201, "monday", "web");
  const { origin, isShared } = await copy();
  assertEquals([origin, isShared, (await monday()).clones], [null, true, []]);
});

Deno.test("a disk goes for good when that is asked for, or the trash is off", async () => {
  const at = new Harness();
  await at.ask(204, "DELETE", "/v1/disks/web?now=1");
  assertEquals(at.backend.clusterMap.trash, []);
  await at.ask(200, "PATCH", "/v1/cluster/settings", { trashMs: 0 });
  await at.ask(204, "DELETE", "/v1/disks/db");
  assertEquals(at.backend.clusterMap.trash, []);
});

Deno.test("attributes are changed one by one, or all at once", async () => {
  const at = new Harness();
  const change = async (body: unknown) =>
    (await at.ask<DiskDocument>(200, "PATCH", "/v1/disks/web", body)).attributes;
  assertEquals(await change({ attributes: { owner: "anna", tier: "gold" } }), {
    owner: "anna",
    tier: "gold",
  });
  assertEquals(await change({ setAttributes: { tier: null, room: "2" } }), {
    owner: "anna",
    room: "2",
  });
  assertEquals(await change({ attributes: { a: "1" }, setAttributes: { b: "2" } }), {
    a: "1",
    b: "2",
  });
  assertEquals(await change({ setAttributes: { none: null } }), { a: "1", b: "2" });
  const { message } = await at.refused(400, "PATCH", "/v1/disks/web", {
    sizeBytes: 2 * GIB,
    setAttributes: { "a b": "1" },
  });
  assertMatch(message, /"a b" cannot be the key/);
  assertEquals(at.disk("web").sizeBytes, GIB);
});

Deno.test("single attributes that several change at the same time are all changed", async () => {
  const at = new Harness();
  const { backend } = at;
  // A decision of the cluster takes a moment.
  const propose = backend.propose.bind(backend);
  backend.propose = async (command) => {
    await new Promise((resolve) => setTimeout(resolve, 2));
    return await propose(command);
  };
  const change = (setAttributes: Record<string, string | null>, status = 200) =>
    at.ask(status, "PATCH", "/v1/disks/web", { setAttributes });
  await Promise.all([
    change({ owner: "anna" }),
    change({ "no key": "1" }, 400),
    change({ tier: "gold" }),
    change({ owner: null, room: "2" }),
  ]);
  assertEquals(at.disk("web").attributes, { tier: "gold", room: "2" });
});

Deno.test("schedules are made, changed, listed and ended", async () => {
  const at = new Harness();
  const path = "/v1/disks/web/schedules/hourly";
  const made = await at.ask<ScheduleDocument>(200, "PUT", path, {
    everyMs: 3_600_000,
    keep: 24,
    keepDaily: 7,
  });
  assertEquals([made.keep, made.keepDaily, made.keepWeekly, made.keepMonthly], [24, 7, 0, 0]);
  assertEquals(made.nextMs % 3_600_000, 0);
  assert(made.nextMs > Date.now() - 1000);
  assertEquals([made.lastMs, made.isLate, made.snapshots], [null, false, 0]);
  await at.ask(200, "PUT", path, { everyMs: 3_600_000, keep: 3 });
  const { schedules } = await at.ask<ScheduleListDocument>(200, "GET", "/v1/schedules");
  assertEquals(schedules.map(({ disk, name, keep, keepDaily }) => [disk, name, keep, keepDaily]), [
    ["web", "hourly", 3, 0],
  ]);
  assertEquals(
    (await at.ask<ScheduleListDocument>(200, "GET", "/v1/disks/db/schedules")).schedules,
    [],
  );
  assertMatch((await at.refused(400, "PUT", path, { everyMs: 5, keep: 3 })).message, /every 5 ms/);
  await at.ask(204, "DELETE", path);
  assertMatch((await at.refused(404, "DELETE", path)).message, /no schedule named "hourly"/);
});

Deno.test("a snapshot says which schedule took it, until somebody renames it", async () => {
  const at = new Harness();
  await at.ask(200, "PUT", "/v1/disks/web/schedules/daily", { everyMs: 86_400_000, keep: 3 });
  await at.take(201, "daily-20200101T000000Z", "web");
  const [first] = (await at.ask<SnapshotListDocument>(200, "GET", "/v1/snapshots")).snapshots;
  assertEquals(first.schedule, "daily");
  const path = "/v1/disks/web/snapshots/daily-20200101T000000Z";
  const renamed = await at.ask<SnapshotDocument>(200, "PATCH", path, { name: "mine" });
  assertEquals(renamed.schedule, null);
});

Deno.test("a socket whose path would be too long is none", async () => {
  const at = new Harness();
  at.backend.runDir = `/run/${"x".repeat(60)}`;
  const { snapshots } = await at.take(201, "y".repeat(60), "web");
  assertEquals(snapshots[0].socket, null);
});

Deno.test("all disks of a large cluster are one snapshot, with names as long as may be", async () => {
  const harness = new Harness();
  const long = (index: number) => `${index}`.padStart(4, "0").padEnd(63, "x");
  const before = harness.backend.clusterMap.disks.map(({ name }) => name);
  const [first] = harness.backend.clusterMap.disks;
  // Written down, since making so many one by one takes a while.
  const count = 4096 - before.length;
  const { nextDisk, nextLayer } = harness.backend.clusterMap;
  const more = Array.from({ length: count }, (_, index) => ({
    ...first,
    id: nextDisk + index,
    family: nextDisk + index,
    name: long(index),
    layers: [nextLayer + index],
    snapshots: [],
    lease: null,
  }));
  harness.backend.clusterMap = {
    ...harness.backend.clusterMap,
    nextDisk: nextDisk + count,
    nextLayer: nextLayer + count,
    disks: [...more, ...harness.backend.clusterMap.disks],
    layers: [
      ...harness.backend.clusterMap.layers,
      ...more.map(({ layers: [id] }) => ({ id, parent: 0, absorbedBy: null })),
    ],
  };
  const disks = [...before, ...more.map(({ name }) => name)];
  const body = { disks, name: "all" };
  const { snapshots } = await harness.ask<SnapshotListDocument>(201, "POST", "/v1/snapshots", body);
  assertEquals(snapshots.map(({ disk }) => disk), disks);
  const command = harness.backend.proposed.find(({ kind }) => kind === "create-snapshots")!;
  assertEquals(command.kind === "create-snapshots" && command.disks.length, 4096);
  // As an entry of the log, with the highest ids that there are.
  const highest = Array.from({ length: 4096 }, (_, index) => 0xffff_ffff - index);
  const worst = { ...command, disks: highest, name: "y".repeat(63) } as MapCommand;
  const bytes = unwrap(
    encodeProposal({ node: 0xffff, sequence: 2 ** 52, id: 2 ** 52, command: worst }),
  );
  assert(bytes.length <= ENTRY_BYTES_MAX, `${bytes.length} bytes`);
});
