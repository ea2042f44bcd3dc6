/**
 * An agent with many data paths: each store keeps buffers of its own, and what is left is to be enough for guests and for peers.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { PATHS_MAX, TRANSFER_BYTES_MAX } from "../../agent/base/limits.ts";
import { BUFFER_BYTES } from "../../agent/store/core.ts";
import { TransferClass, TransferPool } from "../../agent/volume/transfer_pool.ts";
import { Owner } from "./owner.ts";

const DISKS = 30;

for (const paths of [1, 4, 8, 12, PATHS_MAX]) {
  Deno.test(`with ${paths} data paths, guests that read and write leave room for what answers them`, () => {
    const arena = new Arena();
    const pool = new TransferPool(arena);
    for (let i = 0; i < paths; i++) assert(arena.reserve(BUFFER_BYTES) >= 0);
    const classes = [TransferClass.Write, TransferClass.Read];
    // Disks that wait for copies hold what they have for hours; others read from other nodes.
    for (const transferClass of classes) {
      const volumes = Array.from({ length: DISKS }, () => new Owner());
      const most = () => pool.mostBytes(transferClass);
      for (let isMore = true; isMore;) {
        isMore = volumes.map((each) => pool.take(each, transferClass, most())).some((it) =>
          it !== null
        );
      }
      assert(volumes.every(({ held }) => held[transferClass] > 0), "each has something");
    }
    // Nothing of a link is heard before there is room for the data of the answer that is next on it: `Peers.#handOut`.
    const answers = [1, 2, 3].map(() => arena.allocate(TRANSFER_BYTES_MAX));
    assertEquals(answers.filter((at) => at < 0), []);
  });
}
