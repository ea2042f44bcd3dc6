/**
 * A disk's guest, and who only reads the disk beside it, share the transfers that the disk may have. When the guest is gone, what it has
 * left comes back, whatever the other one waits for.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { BlockKind, BlockRequest, type BlockTarget } from "../../agent/blk/target.ts";
import { EIO } from "../../agent/platform/platform.ts";
import { TransferPool } from "../../agent/volume/transfer_pool.ts";
import { ReadOnlyVolume, Volume } from "../../agent/volume/volume.ts";
import {
  coreOf,
  FakeStore,
  FakeTransport,
  GENERATION,
  mapOf,
  window,
} from "../replication/harness.ts";

const MIB = 1024 * 1024;

Deno.test("a guest that is gone gets all back, however much of its disk somebody else waits to read", () => {
  const arena = new Arena(), store = new FakeStore(1), transport = new FakeTransport();
  const core = coreOf({ store, arena, transport }, mapOf(), 1, {});
  let nowMs = 1000;
  core.tick(nowMs);
  core.renew(Infinity);
  core.openDisk(1, GENERATION);
  const router = core.router(1);
  const pool = new TransferPool(arena);
  const volume = new Volume({
    sizeBytes: 64 * MIB,
    serial: "test",
    layers: [1],
    windows: [window],
    pool,
    sink: router,
  });
  volume.generation = GENERATION;
  const memory = arena.allocate(MIB);
  const request = (to: BlockTarget, kind: BlockKind, lengthBytes: number, results: number[]) => {
    const made = new BlockRequest({ requestDone: ({ result }) => results.push(result) }, 1);
    made.kind = kind;
    made.offsetBytes = 0;
    made.lengthBytes = lengthBytes;
    made.segmentCount = 1;
    made.segmentOffsets[0] = memory;
    made.segmentLengths[0] = lengthBytes;
    to.submit(made);
  };
  const turn = () => {
    core.tick(nowMs += 100);
    store.run();
    pool.endTurn();
    core.endTurn();
    pool.endTurn();
  };
  // No other node answers: a write waits, and with it whatever reads there. Eight reads are more than the disk's share.
  const guest: number[] = [], reader: number[] = [];
  request(volume, BlockKind.Write, BLOCK_BYTES, guest);
  const beside = new ReadOnlyVolume(volume);
  for (let i = 0; i < 8; i++) request(beside, BlockKind.Read, MIB, reader);
  request(volume, BlockKind.Read, BLOCK_BYTES, guest);
  for (let i = 0; i < 10; i++) turn();
  assertEquals([guest, reader], [[], []]);
  // The guest is killed, and what it has left is given up: `DataPlane.abandonRequests`.
  router.abandon(-EIO, true);
  for (let i = 0; i < 100; i++) turn();
  // Only then its lease goes back, and until then nobody reads.
  assertEquals(guest, [-EIO, -EIO]);
  core.closeDisk(1);
  for (let i = 0; i < 10; i++) turn();
  assertEquals(reader, new Array(8).fill(0));
});
