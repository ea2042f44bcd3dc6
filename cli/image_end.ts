/**
 * Whether an image's file goes on to where the last of its data lies. qemu-img takes what is behind the end of a file for zeros, in
 * most formats without a word: a download that was cut short would become a disk whose rest is empty.
 *
 * Of qcow2 images the tables are read here, since a table behind the end is one without entries to qemu-img. Of others, `qemu-img map`
 * tells where data lies; data that is compressed is left to the conversion, which fails where it is not there.
 *
 * qcow2, big-endian (QEMU's docs/interop/qcow2.txt):
 *
 *     header   0 magic · 20 cluster bits u32 · 24 bytes of the disk u64 · 36 entries of L1 u32 · 40 place of L1 u64 · 72 features u64
 *     L1       entries of u64: bits 9…55 the place of an L2 table of one cluster, 0: none
 *     L2       entries of u64, of 16 bytes with extended entries
 *              bit 62 clear   bits 9…55 place of the cluster, 0: none; bit 0: it reads as zeros; then u32 zero, u32 allocated subclusters
 *              bit 62 set     compressed: place, and from bit 70 − cluster bits on the 512-byte sectors that it goes on into
 *
 * @module
 */
import { type OpenFile, openFile } from "./files.ts";
import { mapImage } from "./qemu_img.ts";

/** What an image has and its file has not. */
export interface MissingData {
  /** First byte of the disk that it is of. */
  readonly diskBytes: number;
  /** Where in the file it would end. */
  readonly endBytes: number;
  /** Bytes of the file. */
  readonly fileBytes: number;
}

const TWO32 = 2 ** 32;
const SECTOR_BYTES = 512;
/** Header of qcow2 as far as it matters here; version 2 ends before the features. */
const HEADER_BYTES = 80, HEADER_V2_BYTES = 72;
/** Most entries of an L1 table: QEMU's own bound. */
const L1_ENTRIES_MAX = 4 * 1024 * 1024;
/** Features: data lies in another file; entries of L2 tell of subclusters. */
const FEATURE_DATA_FILE = 1 << 2, FEATURE_EXTENDED_L2 = 1 << 4;
const SUBCLUSTERS = 32;

/**
 * The first data of an image that lies behind the end of its file; null: there is none.
 *
 * @param image `path` of a file or device; formats as qemu-img calls them, raw ones aside
 * @throws Deno.errors.NotFound and its like; CommandError where qemu-img cannot read the image
 */
export async function findMissing(
  image: { readonly path: string; readonly format: string },
): Promise<MissingData | null> {
  using file = await openFile(image.path);
  const fileBytes = file.seekSync(0, Deno.SeekMode.End);
  if (image.format === "qcow2") return await findInTables(file, fileBytes);
  let found: MissingData | null = null;
  await mapImage(image, ({ startBytes, lengthBytes, offsetBytes }) => {
    const endBytes = offsetBytes + lengthBytes;
    if (found !== null || endBytes <= fileBytes) return;
    const diskBytes = startBytes + Math.max(0, fileBytes - offsetBytes);
    found = { diskBytes, endBytes, fileBytes };
  });
  return found;
}

/** What matters here of a qcow2 image's header. */
interface Header {
  readonly clusterBits: number;
  readonly diskBytes: number;
  readonly l1Entries: number;
  readonly l1OffsetBytes: number;
  readonly hasDataFile: boolean;
  readonly isExtended: boolean;
}

async function findInTables(file: OpenFile, fileBytes: number): Promise<MissingData | null> {
  const header = headerOf(await readAt(file, 0, HEADER_BYTES));
  const clusterBytes = 2 ** header.clusterBits;
  const l1Bytes = header.l1Entries * 8;
  const l1End = header.l1OffsetBytes + l1Bytes;
  if (l1End > fileBytes) return { diskBytes: 0, endBytes: l1End, fileBytes };
  const l1 = await readAt(file, header.l1OffsetBytes, l1Bytes);
  const tableDiskBytes = clusterBytes * clusterBytes / (header.isExtended ? 16 : 8);
  for (let entry = 0; entry < header.l1Entries; entry++) {
    const offsetBytes = placeAt(l1, entry * 8);
    if (offsetBytes === 0) continue;
    const diskBytes = entry * tableDiskBytes;
    const endBytes = offsetBytes + clusterBytes;
    if (endBytes > fileBytes) return { diskBytes, endBytes, fileBytes };
    const l2 = await readAt(file, offsetBytes, clusterBytes);
    const missing = findInTable(l2, { header, diskBytes, fileBytes });
    if (missing !== null) return missing;
  }
  return null;
}

function headerOf(bytes: DataView): Header {
  const clusterBits = bytes.getUint32(20);
  const l1Entries = bytes.getUint32(36);
  const features = bytes.getUint32(4) >= 3 ? bytes.getUint32(HEADER_V2_BYTES + 4) : 0;
  // qemu-img has opened it, and refuses others.
  if (clusterBits < 9 || clusterBits > 21 || l1Entries > L1_ENTRIES_MAX) {
    throw new Error(`a qcow2 header with ${clusterBits} cluster bits and ${l1Entries} entries`);
  }
  return {
    clusterBits,
    diskBytes: Number(bytes.getBigUint64(24)),
    l1Entries,
    l1OffsetBytes: Number(bytes.getBigUint64(40)),
    hasDataFile: (features & FEATURE_DATA_FILE) !== 0,
    isExtended: (features & FEATURE_EXTENDED_L2) !== 0,
  };
}

/** @param table `diskBytes`: the first byte of the disk that the L2 table is of */
function findInTable(
  l2: DataView,
  table: { readonly header: Header; readonly diskBytes: number; readonly fileBytes: number },
): MissingData | null {
  const { header, fileBytes } = table;
  const clusterBytes = 2 ** header.clusterBits;
  const stride = header.isExtended ? 16 : 8;
  for (let at = 0; at < l2.byteLength; at += stride) {
    const diskBytes = table.diskBytes + at / stride * clusterBytes;
    const restBytes = header.diskBytes - diskBytes;
    if (restBytes <= 0) return null;
    if ((l2.getUint32(at) & 0x4000_0000) !== 0) {
      // The last sector may have been written as far as it is used.
      const endBytes = compressedEnd(l2.getBigUint64(at), header.clusterBits);
      if (endBytes < fileBytes + SECTOR_BYTES) continue;
      return { diskBytes, endBytes, fileBytes };
    }
    const offsetBytes = placeAt(l2, at);
    if (offsetBytes === 0 || header.hasDataFile) continue;
    const usedBytes = header.isExtended
      ? (SUBCLUSTERS - Math.clz32(l2.getUint32(at + 12))) * clusterBytes / SUBCLUSTERS
      : (l2.getUint32(at + 4) & 1) !== 0
      ? 0
      : clusterBytes;
    const endBytes = offsetBytes + Math.min(usedBytes, restBytes);
    if (endBytes <= fileBytes || usedBytes === 0) continue;
    const thereBytes = Math.max(0, fileBytes - offsetBytes);
    return { diskBytes: diskBytes + thereBytes, endBytes, fileBytes };
  }
  return null;
}

/** Bits 9 to 55 of an entry, as a place in the file. */
function placeAt(table: DataView, at: number): number {
  const low = table.getUint32(at + 4);
  return (table.getUint32(at) & 0x00ff_ffff) * TWO32 + (low - low % SECTOR_BYTES);
}

/** Where a compressed cluster ends, at the end of a sector. */
function compressedEnd(entry: bigint, clusterBits: number): number {
  const placeBits = 70 - clusterBits;
  const offsetBytes = Number(BigInt.asUintN(placeBits, entry));
  const sectors = Number(BigInt.asUintN(62, entry) >> BigInt(placeBits));
  return offsetBytes - offsetBytes % SECTOR_BYTES + (sectors + 1) * SECTOR_BYTES;
}

/** Reads all of a part; what the file has not is zeros. */
async function readAt(
  file: OpenFile,
  offsetBytes: number,
  lengthBytes: number,
): Promise<DataView> {
  const bytes = new Uint8Array(lengthBytes);
  file.seekSync(offsetBytes, Deno.SeekMode.Start);
  for (let at = 0; at < lengthBytes;) {
    const count = await file.read(bytes.subarray(at));
    if (count === null) break;
    at += count;
  }
  return new DataView(bytes.buffer);
}
