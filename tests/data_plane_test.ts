import { assertEquals } from "@std/assert/mod.js";
import { DataPlane } from "../agent/data_plane.ts";
import { unwrap } from "../agent/map/errors.ts";
import type { ClusterMap } from "../agent/map/map.ts";
import { encodeMap } from "../agent/map/map_codec.ts";
import { closeFd, createEventFd } from "../agent/platform/linux/libc.ts";
import { createMailbox, MailboxSender } from "../agent/platform/linux/mailbox.ts";
import type {
  NumberedRequest,
  WorkerMessage,
  WorkerRequest,
  WorkerStart,
} from "../agent/worker_protocol.ts";
import { clusterWithDisk } from "./map/cluster.ts";

const CAPACITY_BYTES = 256 * 1024 * 1024;

/** A data plane for which time passes when the test says so. */
class TimedDataPlane extends DataPlane {
  timeMs = 0;

  override monotonicMs(): number {
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
    if (request.kind === "zero") plane.releaseLease(disk.id, false);
    if (request.kind === "release-noted") seen.push("heard");
    send(next, request);
    next++;
  });
  assertEquals(seen, ["heard", "opened"]);
});
