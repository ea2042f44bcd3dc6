import { assertEquals } from "@std/assert/mod.js";
import { DataPlane } from "../agent/data_plane.ts";
import { unwrap } from "../agent/map/errors.ts";
import type { ClusterMap } from "../agent/map/map.ts";
import { encodeMap } from "../agent/map/map_codec.ts";
import { snapshotSocketOf } from "../agent/map/names.ts";
import { closeFd, createEventFd } from "../agent/platform/linux/libc.ts";
import { createMailbox, MailboxSender } from "../agent/platform/linux/mailbox.ts";
import type {
  NumberedRequest,
  WorkerMessage,
  WorkerRequest,
  WorkerStart,
} from "../agent/worker_protocol.ts";
import { clusterAtLevelTwo, clusterWithDisk, runAll } from "./map/cluster.ts";

const CAPACITY_BYTES = 256 * 1024 * 1024;

/** A data plane for which time passes when the test says so. */
class TimedDataPlane extends DataPlane {
  timeMs = 0;
  /** Done when the loop has looked at the time so many times. */
  onLook: { looks: number; work: () => void } | null = null;

  override monotonicMs(): number {
    const { onLook } = this;
    if (onLook !== null && onLook.looks-- === 0) {
      this.onLook = null;
      onLook.work();
    }
    return this.timeMs;
  }
}

/** Runs a data plane with one path to its end; `posted` is the main thread, and sends requests to the worker. */
async function run(
  posted: (message: WorkerMessage, plane: TimedDataPlane, send: Send) => void,
): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "kelpie-plane-" });
  const bellFd = createEventFd();
  try {
    await Deno.mkdir(`${dir}/ro`);
    const mailbox = createMailbox();
    const sender = new MailboxSender(mailbox, bellFd);
    const start: WorkerStart = {
      mailbox,
      bellFd,
      paths: [{ location: dir, storePath: `${dir}/kelpie.store`, reason: "" }],
      direct: false,
      capacityBytes: CAPACITY_BYTES,
      runDir: dir,
      scrubRateBytes: 0,
      adopt: false,
      acceptDamage: false,
      refuseNew: null,
      logLevel: "error",
      logFormat: "text",
      hostId: new Uint8Array(16),
    };
    const plane: TimedDataPlane = new TimedDataPlane(
      start,
      (message) =>
        posted(message, plane, (id, request) => {
          sender.send({ id, request } satisfies NumberedRequest);
        }),
    );
    plane.run();
  } finally {
    closeFd(bellFd);
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("sockets that could not be made are made as soon as they can be, and the disk is said to wait for them", async () => {
  const map = clusterWithDisk(1, 1);
  const [disk] = map.disks;
  const requests: WorkerRequest[] = [
    wholeMap(map),
    { kind: "take-part", node: 1, incarnation: map.nodes[0].incarnation },
    { kind: "data-status" },
    { kind: "data-status" },
    { kind: "stop" },
  ];
  const seen: unknown[] = [];
  await run((message, plane, send) => {
    const blocked = `${plane.runDir}/ro`;
    if (message.kind === "ready") {
      Deno.removeSync(blocked);
      // What an agent leaves that ends while it makes its own socket is not in the way.
      Deno.mkdirSync(`${plane.runDir}/.new/s`, { recursive: true });
      send(0, requests[0]);
    }
    if (message.kind === "refusal") throw new Error(message.message);
    if (message.kind !== "answer" || message.id + 1 >= requests.length) return;
    const { id } = message;
    if (requests[id].kind === "data-status") {
      const { waiting } = message.value as { waiting: { disk: number; reason: string }[] };
      const hasSocket = [...Deno.readDirSync(plane.runDir)].some(({ name }) => name === "web.sock");
      seen.push([hasSocket, waiting.map((entry) => [entry.disk, /sockets/.test(entry.reason)])]);
      if (id === 2) Deno.mkdirSync(blocked);
    }
    plane.timeMs += 1000;
    // Some turns later.
    plane.onLook = { looks: 8, work: () => send(id + 1, requests[id + 1]) };
  });
  assertEquals(seen, [[false, [[disk.id, true]]], [true, []]]);
});

Deno.test("a snapshot whose socket's path would be too long has none, and nobody is said to wait for it", async () => {
  const name = "d".repeat(40);
  const long = "s".repeat(63);
  const map = runAll(
    clusterAtLevelTwo(1, "web"),
    { kind: "rename-disk", name: "web", newName: name },
    { kind: "create-snapshots", disks: [1], name: long, nowMs: 1 },
    { kind: "create-snapshots", disks: [1], name: "s", nowMs: 1 },
  );
  const requests: WorkerRequest[] = [
    wholeMap(map),
    { kind: "take-part", node: 1, incarnation: map.nodes[0].incarnation },
    { kind: "data-status" },
    { kind: "stop" },
  ];
  const seen: unknown[] = [];
  await run((message, plane, send) => {
    if (message.kind === "ready") send(0, requests[0]);
    if (message.kind === "refusal") throw new Error(message.message);
    if (message.kind !== "answer" || message.id + 1 >= requests.length) return;
    if (requests[message.id].kind === "data-status") {
      assertEquals(snapshotSocketOf(plane.runDir, name, long), null);
      const sockets = [...Deno.readDirSync(plane.runDir)].map((entry) => entry.name)
        .filter((each) => each.endsWith(".sock")).toSorted();
      seen.push(sockets, (message.value as { waiting: unknown[] }).waiting);
    }
    send(message.id + 1, requests[message.id + 1]);
  });
  assertEquals(seen, [[`${name}.sock`, `${name}@s.sock`], []]);
});

Deno.test("names that disks have taken from each other, in changes that this node sees as one, have their sockets", async () => {
  const founded = clusterWithDisk(1, 1);
  const { incarnation } = founded.nodes[0];
  const [web] = founded.disks;
  const named = (names: readonly string[], epoch: number): ClusterMap => ({
    ...founded,
    epoch,
    disks: names
      .map((name, i) => ({ ...web, id: web.id + i, layers: [web.layers[0] + i], name }))
      .toSorted((a, b) => a.name < b.name ? -1 : 1),
    layers: names.map((_, i) => ({ ...founded.layers[0], id: web.layers[0] + i })),
    nextLayer: web.layers[0] + names.length,
    nextDisk: web.id + names.length,
  } as ClusterMap);
  const requests: WorkerRequest[] = [
    wholeMap(named(["web", "web-new"], founded.epoch + 1)),
    { kind: "take-part", node: 1, incarnation },
    // rename web web-old; rename web-new web
    wholeMap(named(["web-old", "web"], founded.epoch + 3)),
    { kind: "stop" },
  ];
  const seen: string[][] = [];
  await run((message, plane, send) => {
    if (message.kind === "ready") send(0, requests[0]);
    if (message.kind === "refusal") throw new Error(message.message);
    if (message.kind !== "answer" || message.id + 1 >= requests.length) return;
    seen.push(
      [...Deno.readDirSync(plane.runDir)].map(({ name }) => name)
        .filter((name) => name.endsWith(".sock")).toSorted(),
    );
    send(message.id + 1, requests[message.id + 1]);
  });
  assertEquals(seen.slice(1), [["web-new.sock", "web.sock"], ["web-old.sock", "web.sock"]]);
});

type Send = (id: number, request: WorkerRequest) => void;

function wholeMap(map: ClusterMap): WorkerRequest {
  return { kind: "map", part: 0, parts: 1, bytes: unwrap(encodeMap(map)) };
}

Deno.test("a store that has been closed is asked nothing more when a tick is due", async () => {
  // Half of the groups are none of its business: whether it has chunks of them is looked for at every map.
  const map = clusterWithDisk(2, 1);
  const requests: WorkerRequest[] = [
    wholeMap(map),
    { kind: "take-part", node: 1, incarnation: map.nodes[0].incarnation },
    { kind: "stop" },
  ];
  const answers: string[] = [];
  await run((message, plane, send) => {
    if (message.kind === "ready") send(0, requests[0]);
    if (message.kind !== "answer" && message.kind !== "refusal") return;
    answers.push(message.kind);
    if (message.id < 2) send(message.id + 1, requests[message.id + 1]);
    else plane.timeMs = 60_000;
  });
  assertEquals(answers, ["answer", "answer", "answer"]);
});

Deno.test("a lease that was granted before its release was heard of is not for whoever wants the disk next", async () => {
  const founded = clusterWithDisk(1, 1);
  const { incarnation } = founded.nodes[0];
  const lease = { node: 1, incarnation };
  const [disk] = founded.disks;
  const map = { ...founded, disks: [{ ...disk, lease, generation: 5, settled: 4 }] };
  const granted: WorkerRequest = {
    kind: "lease-granted",
    disk: disk.id,
    generation: 5,
    isUnclean: false,
    byOthers: 0,
  };
  const pass: WorkerRequest = { kind: "renew", untilMs: Infinity };
  const requests: WorkerRequest[] = [
    wholeMap(map),
    { kind: "take-part", node: 1, incarnation },
    pass,
    // From here on somebody wants the disk: the agent itself.
    { kind: "zero", disk: disk.id, startBytes: 0, endBytes: 4096 },
    granted,
    ...Array.from({ length: 20 }, () => pass),
    { kind: "release-noted", disk: disk.id },
    granted,
  ];
  const seen: string[] = [];
  let next = 0;
  await run((message, plane, send) => {
    if (message.kind === "reconciled") seen.push("opened");
    const isZeroed = message.kind === "answer" && requests[message.id]?.kind === "zero";
    if (isZeroed) return send(requests.length, { kind: "stop" });
    // It is answered once it has the lease: what comes next must not wait for that.
    const isNext = message.kind === "ready" || message.kind === "lease-wanted" ||
      (message.kind === "answer" && message.id === next - 1);
    if (!isNext || next === requests.length) return;
    const request = requests[next];
    if (request.kind === "zero") plane.releaseLease(disk.id, false, true);
    if (request.kind === "release-noted") seen.push("heard");
    send(next, request);
    next++;
  });
  assertEquals(seen, ["heard", "opened"]);
});

Deno.test("a disk that is deleted while its end is being cut off ends that, and leaves nothing under way", async () => {
  const founded = clusterWithDisk(1, 1);
  const { incarnation } = founded.nodes[0];
  const lease = { node: 1, incarnation };
  const [disk] = founded.disks;
  const held = { ...disk, lease, generation: 5, settled: 4 };
  const map = { ...founded, disks: [held] };
  const requests: WorkerRequest[] = [
    wholeMap(map),
    { kind: "take-part", node: 1, incarnation },
    // It may not serve: what is written waits.
    { kind: "zero", disk: disk.id, startBytes: 0, endBytes: disk.sizeBytes },
    { kind: "lease-granted", disk: disk.id, generation: 5, isUnclean: false, byOthers: 0 },
    { kind: "data-status" },
    wholeMap({ ...map, epoch: map.epoch + 1, disks: [] }),
    ...Array.from({ length: 50 }, (): WorkerRequest => ({ kind: "data-status" })),
  ];
  const zeroId = 2;
  const seen: string[] = [];
  let next = 0;
  await run((message, plane, send) => {
    if (message.kind === "lease-released") seen.push(message.isUnclean ? "unclean" : "clean");
    if (message.kind === "refusal" && message.id === zeroId) seen.push("refused");
    const isNext = message.kind === "ready" || message.kind === "lease-wanted" ||
      (message.kind === "answer" && message.id === next - 1);
    if (!isNext || next > requests.length) return;
    plane.timeMs += 100;
    send(next, next === requests.length ? { kind: "stop" } : requests[next]);
    next++;
  });
  assertEquals(seen, ["unclean", "refused"]);
});
