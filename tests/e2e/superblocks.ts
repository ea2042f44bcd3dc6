/**
 * Reads and changes the superblocks of a store that no agent has open, to make stores that tests need: of another
 * host, or of a version to come.
 *
 * @module
 */
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { SimulatedMemory } from "../../agent/platform/simulated/memory.ts";
import {
  decodeSuperblock,
  encodeSuperblock,
  FORMAT_VERSION,
  type Superblock,
  SUPERBLOCK_OFFSETS_BYTES,
} from "../../agent/store/format.ts";

/** The oldest version that can read this, and the checksum, as words of the block (store/format.ts). */
const READABLE_BY_WORD = 3, CHECKSUM_WORD = BLOCK_BYTES / 4 - 1;

/** The file of a store in a data directory. */
export function storePath(dataDir: string): string {
  return `${dataDir}/kelpie.store`;
}

/** The newest superblock. */
export function readSuperblock(dataDir: string): Superblock {
  const found: Superblock[] = [];
  changeBlocks(dataDir, (window) => {
    const superblock = decodeSuperblock(window, 0);
    if (typeof superblock === "object") found.push(superblock);
    return false;
  });
  if (found.length === 0) throw new Error(`no superblock in ${dataDir}`);
  return found.sort((a, b) => b.sequence - a.sequence)[0];
}

/** Makes the store that of another host. */
export function changeHost(dataDir: string, hostId: Uint8Array): void {
  changeBlocks(dataDir, (window) => {
    const superblock = decodeSuperblock(window, 0);
    if (typeof superblock !== "object") return false;
    encodeSuperblock(window, 0, { ...superblock, hostId });
    return true;
  });
}

/** Makes the store one that only later versions can read, and that is whole. */
export function makeNewer(dataDir: string): void {
  changeBlocks(dataDir, (window) => {
    if (typeof decodeSuperblock(window, 0) !== "object") return false;
    window.u32[READABLE_BY_WORD] = FORMAT_VERSION + 1;
    window.u32[CHECKSUM_WORD] = 0;
    window.u32[CHECKSUM_WORD] = window.kernel.checksum(0, BLOCK_BYTES);
    return true;
  });
}

type Window = SimulatedMemory["windows"][number];

/** Calls `change` with each superblock at the window's beginning, and writes back what it says that it changed. */
function changeBlocks(dataDir: string, change: (window: Window) => boolean): void {
  const window = new SimulatedMemory().windows[0];
  using file = Deno.openSync(storePath(dataDir), { read: true, write: true });
  const block = new Uint8Array(BLOCK_BYTES);
  for (const offsetBytes of SUPERBLOCK_OFFSETS_BYTES) {
    file.seekSync(offsetBytes, Deno.SeekMode.Start);
    if (file.readSync(block) !== BLOCK_BYTES) throw new Error(`${dataDir}: a superblock is cut`);
    window.bytes.set(block, 0);
    if (!change(window)) continue;
    file.seekSync(offsetBytes, Deno.SeekMode.Start);
    file.writeSync(window.bytes.slice(0, BLOCK_BYTES));
  }
}
