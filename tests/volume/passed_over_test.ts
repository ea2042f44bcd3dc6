/**
 * A disk that has its share of the transfers waits, and costs those that go on nothing: what it has to write is not looked at again for each
 * request of theirs.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { BlockKind, BlockRequest } from "../../agent/blk/target.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import type { Operation } from "../../agent/store/operation.ts";
import { TransferPool } from "../../agent/volume/transfer_pool.ts";
import { Volume } from "../../agent/volume/volume.ts";

const MIB = 1024 * 1024;

Deno.test("a disk that detects zeros and has its share does not look for them whenever another one gets on", () => {
  const memory = new SimulatedMemory();
  const pool = new TransferPool(memory.arena);
  let looks = 0;
  // Of the guest's memory; what is looked at is counted.
  const windows = memory.windows.map((window) =>
    new Proxy(window, {
      get: (target, key) =>
        key !== "kernel" ? Reflect.get(target, key) : new Proxy(target.kernel, {
          get: (kernel, name) => {
            if (name === "isZero") looks++;
            const value = Reflect.get(kernel, name);
            return typeof value === "function" ? value.bind(kernel) : value;
          },
        }),
    })
  );
  const done: Operation[] = [];
  const volumeOf = (submit: (operation: Operation) => void) =>
    new Volume({
      sizeBytes: 64 * MIB,
      serial: "test",
      layers: [1],
      windows,
      pool,
      sink: { submit },
    });
  // Hosts are dead: nothing of it comes back.
  const stuck = volumeOf(() => {});
  stuck.detectZeroes = true;
  const other = volumeOf((operation) => done.push(operation));
  memory.windows[0].bytes.fill(1, memory.guestOffset, memory.guestOffset + MIB);
  let finished = 0;
  const write = (volume: Volume, offsetBytes: number, lengthBytes: number) => {
    const request = new BlockRequest({ requestDone: () => finished++ }, 1);
    request.kind = BlockKind.Write;
    request.offsetBytes = offsetBytes;
    request.lengthBytes = lengthBytes;
    request.segmentCount = 1;
    request.segmentOffsets[0] = memory.guestOffset;
    request.segmentLengths[0] = lengthBytes;
    volume.submit(request);
  };
  for (let i = 0; i < 16; i++) write(stuck, i * MIB, MIB);
  pool.endTurn();
  looks = 0;
  for (let i = 0; i < 100; i++) {
    write(other, i * 4096, 4096);
    pool.endTurn();
    for (const operation of done.splice(0)) operation.owner.operationDone(operation);
    pool.endTurn();
  }
  assertEquals(finished, 100);
  assert(looks <= 256, `${looks / 100} looks for zeros for each write of another disk`);
});
