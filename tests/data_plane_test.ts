import { assertEquals } from "@std/assert/mod.js";
import { DataPlane } from "../agent/data_plane.ts";
import { unwrap } from "../agent/map/errors.ts";
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

Deno.test("a store that has been closed is asked nothing more when a tick is due", async () => {
  const dir = await Deno.makeTempDir({ prefix: "kelpie-plane-" });
  const bellFd = createEventFd();
  try {
    await Deno.mkdir(`${dir}/ro`);
    const mailbox = createMailbox();
    const sender = new MailboxSender(mailbox, bellFd);
    // Half of the groups are none of its business: whether it has chunks of them is looked for at every map.
    const map = clusterWithDisk(2, 1);
    const requests: WorkerRequest[] = [
      { kind: "map", part: 0, parts: 1, bytes: unwrap(encodeMap(map)) },
      { kind: "take-part", node: 1, incarnation: map.nodes[0].incarnation },
      { kind: "stop" },
    ];
    const send = (id: number) =>
      sender.send({ id, request: requests[id] } satisfies NumberedRequest);
    const answers: WorkerMessage[] = [];
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
    const plane = new TimedDataPlane(start, (message) => {
      if (message.kind === "ready") send(0);
      if (message.kind !== "answer" && message.kind !== "refusal") return;
      answers.push(message);
      if (message.id < 2) send(message.id + 1);
      else plane.timeMs = 60_000;
    });
    plane.run();
    assertEquals(answers.map(({ kind }) => kind), ["answer", "answer", "answer"]);
  } finally {
    closeFd(bellFd);
    await Deno.remove(dir, { recursive: true });
  }
});
