/**
 * A store that is full, and what whoever runs it can do then: discard, delete, and stop the agent.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { BackEndSocket } from "../../agent/frontend/back_end_socket.ts";
import { BackEndError } from "../../agent/frontend/error.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { RequestType, SECTOR_BYTES } from "../../agent/frontend/virtio_blk.ts";
import type { DiskDocument } from "../../agent/http/documents.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

const MIB = 1024 * 1024;
const TIMEOUT_MS = 60_000;
/** Looks in a row at which writes wait and none is done, after which the store is taken to be full. */
const FULL_LOOKS = 30;

/** An agent with little space, and front ends that want more. */
class Bench implements AsyncDisposable {
  private constructor(readonly work: WorkDirectory, readonly agent: AgentProcess) {}

  static async start(): Promise<Bench> {
    const work = await WorkDirectory.make();
    const options = { runDir: `${work.path}/run`, dataDir: `${work.path}/data`, capacity: "400M" };
    const agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "1G");
    await agent.check("disk", "create", "db", "1G");
    return new Bench(work, agent);
  }

  connect(disk: string): Promise<FrontEnd> {
    const socket = this.agent.socket(disk);
    return FrontEnd.connect({ socket, depth: 16, bufferBytes: MIB, inflight: true });
  }

  /**
   * Writes to a disk from its beginning on until the store has no room.
   *
   * @returns what settles when the front end has ended
   */
  async fill(disk: FrontEnd, fill: number): Promise<{ writing: Promise<unknown> }> {
    let isOver = false;
    const writing = (async () => {
      const piece = new Uint8Array(16 * MIB).fill(fill);
      for (let at = 0; at < 640 * MIB && !isOver; at += piece.length) await disk.write(at, piece);
    })().catch((error) => error);
    writing.then(() => isOver = true);
    using client = this.agent.client();
    // The cleaner finds some more space at first.
    let [looks, last] = [0, -1];
    await until(async () => {
      const { waitingWrites, counters: { userBlocks } } = await client.store();
      looks = waitingWrites > 0 && userBlocks === last ? looks + 1 : 0;
      last = userBlocks;
      return isOver || looks === FULL_LOOKS;
    }, { timeoutMs: TIMEOUT_MS, intervalMs: 50, what: () => "there is still room" });
    assert(!isOver, "all of it was written");
    return { writing };
  }

  /** Waits until nobody uses a disk. */
  async unused(name: string): Promise<void> {
    using client = this.agent.client();
    await until(async () => (await client.disk(name)).sessions.length === 0, {
      timeoutMs: TIMEOUT_MS,
      what: () => `disk ${name} is in use`,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent.kill();
    await this.work[Symbol.asyncDispose]();
  }
}

Deno.test("what a front end has left behind in a full store, which was sent away, keeps nobody from making room", async () => {
  await using bench = await Bench.start();
  const { agent } = bench;
  const { connect } = BackEndSocket;
  const sockets: BackEndSocket[] = [];
  BackEndSocket.connect = (...to) => {
    const socket = connect.apply(BackEndSocket, to);
    sockets.push(socket);
    return socket;
  };
  const gone = await bench.connect("web").finally(() => BackEndSocket.connect = connect);
  const { writing } = await bench.fill(gone, 1);
  // There is no such request.
  sockets[0].send(9999, new Uint8Array(0));
  assert(await writing instanceof BackEndError);
  gone.abort();
  await bench.unused("web");
  assertMatch(agent.log, /hung up on a front end/);
  // The disk itself, and another one.
  await agent.check("disk", "discard", "web", "--length", "64M", "--yes");
  await agent.check("disk", "write", "db", `${import.meta.filename}`);
  await agent.check("disk", "discard", "db", "--yes");
  const read = await agent.run("disk", "read", "web", "--offset", "64M", "--length", "1M");
  assertEquals(read.code, 0, read.stderr);
  assert(read.stdout.every((byte) => byte === 1), "what was acknowledged is gone");
});

Deno.test("a front end that comes back to a full store gets its disk, and its writes when there is room", async () => {
  await using bench = await Bench.start();
  const { agent } = bench;
  const gone = await bench.connect("db");
  const { writing } = await bench.fill(gone, 2);
  gone.abort();
  await writing;
  const guest = await bench.connect("web");
  const [queue] = guest.queues;
  const slots = [0, 1, 2, 3].map((piece) => {
    const slot = queue.takeSlot();
    const at = queue.dataOffset(slot);
    guest.memory.bytes.fill(3 + piece, at, at + MIB);
    queue.submit(slot, RequestType.Out, piece * MIB / SECTOR_BYTES, MIB);
    guest.start(slot);
    return slot;
  });
  using client = agent.client();
  const seen = (what: string, isSo: (disk: DiskDocument) => boolean) =>
    until(async () => isSo(await client.disk("web")), {
      timeoutMs: TIMEOUT_MS,
      what: () => `${what}:\n${agent.log}`,
    });
  await seen("requests in flight", ({ sessions }) => sessions[0]?.inFlight === slots.length);
  const { generation } = await client.disk("web");
  // As QEMU does when the connection has ended.
  await guest.reconnect();
  await seen("another lease", (disk) => disk.generation > generation && disk.sessions.length === 1);
  await agent.check("disk", "delete", "db", "--now", "--yes");
  for (const slot of slots) {
    await guest.finish(slot);
    queue.releaseSlot(slot);
  }
  for (const piece of slots.keys()) {
    const byte = new Uint8Array(512);
    await guest.read(piece * MIB, byte);
    assertEquals(byte[511], 3 + piece);
  }
  await guest.close();
});

Deno.test("a disk whose writes wait for space is deleted by force, and the agent stops in good order", async () => {
  await using bench = await Bench.start();
  const { agent } = bench;
  const guest = await bench.connect("web");
  const { writing } = await bench.fill(guest, 4);
  const refused = await agent.run("disk", "delete", "web", "--now", "--yes");
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, /disk web is in use by/);
  await agent.check("disk", "delete", "web", "--now", "--yes", "--force");
  guest.abort();
  await writing;
  using client = agent.client();
  await until(async () => (await client.store()).liveBytes === 0, {
    timeoutMs: TIMEOUT_MS,
    what: () => "the disk's space is not given back",
  });
  assertMatch(await agent.check("status"), /^healthy: 1 disk/);

  const other = await bench.connect("db");
  const again = await bench.fill(other, 5);
  await agent.stop();
  other.abort();
  await again.writing;
  assert(!/error/i.test(agent.log), agent.log);
});
