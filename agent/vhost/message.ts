/**
 * The messages of the vhost-user protocol: numbers, payload layouts, decoding with validation, encoding.
 *
 * Follows `docs/interop/vhost-user.rst` of QEMU. Numbers are in the machine's byte order, which is little-endian
 * wherever this runs.
 *
 *     message    0 request u32 | 4 flags u32 | 8 size u32 | 12 payload, `size` bytes
 *     flags      bits 0–1 version (1) | bit 2 reply | bit 3 need_reply
 *
 *     u64        0 value u64
 *     state      0 index u32 | 4 num u32
 *     address    0 index u32 | 4 flags u32 | 8 descriptors u64 | 16 used u64 | 24 available u64 | 32 log u64
 *     table      0 count u32 | 4 padding u32 | 8 region, `count` times
 *     region     0 guest address u64 | 8 size u64 | 16 user address u64 | 24 mmap offset u64
 *     one region 0 padding u64 | 8 region
 *     log        0 size u64 | 8 offset u64
 *     config     0 offset u32 | 4 size u32 | 8 flags u32 | 12 `size` bytes
 *     inflight   0 mmap size u64 | 8 mmap offset u64 | 16 queues u16 | 18 queue size u16 | (20 padding u32)
 *
 * Invariants:
 * - Nothing here throws on what a peer sent: a decoder returns null where the payload is not of its layout.
 * - 64-bit addresses and sizes become Numbers. One above 2^53 is refused: no address space reaches that far, and
 *   an address that is not exact is worse than none.
 *
 * @module
 */

/** Bytes of request, flags and size. */
export const HEADER_BYTES = 12;

/**
 * Largest payload taken in, in bytes. The largest one defined for a block device is a config access of
 * 268; the rest is room for requests that are not known here, so that they can be skipped and refused.
 */
export const PAYLOAD_BYTES_MAX = 4096;

/** Regions of one SET_MEM_TABLE: fixed by the protocol (VHOST_MEMORY_BASELINE_NREGIONS). */
export const TABLE_REGIONS_MAX = 8;

/** Largest config space, fixed by the protocol (VHOST_USER_MAX_CONFIG_SIZE). */
export const CONFIG_BYTES_MAX = 256;

/** Requests that a front end sends. */
export const enum Request {
  GetFeatures = 1,
  SetFeatures = 2,
  SetOwner = 3,
  ResetOwner = 4,
  SetMemTable = 5,
  SetLogBase = 6,
  SetLogFd = 7,
  SetVringNum = 8,
  SetVringAddr = 9,
  SetVringBase = 10,
  GetVringBase = 11,
  SetVringKick = 12,
  SetVringCall = 13,
  SetVringErr = 14,
  GetProtocolFeatures = 15,
  SetProtocolFeatures = 16,
  GetQueueNum = 17,
  SetVringEnable = 18,
  SetBackendReqFd = 21,
  GetConfig = 24,
  SetConfig = 25,
  GetInflightFd = 31,
  SetInflightFd = 32,
  ResetDevice = 34,
  GetMaxMemSlots = 36,
  AddMemReg = 37,
  RemMemReg = 38,
  SetStatus = 39,
  GetStatus = 40,
}

/** Requests that a back end sends over its own channel. */
export const enum BackendRequest {
  ConfigChange = 2,
}

/** Bits of the protocol feature mask. */
export const enum ProtocolFeature {
  Mq = 1 << 0,
  LogShmfd = 1 << 1,
  ReplyAck = 1 << 3,
  BackendReq = 1 << 5,
  Config = 1 << 9,
  InflightShmfd = 1 << 12,
  ResetDevice = 1 << 13,
  ConfigureMemSlots = 1 << 15,
  Status = 1 << 16,
}

/** Bits of the header's flags. */
export const enum HeaderFlag {
  VersionMask = 3,
  Version = 1,
  Reply = 4,
  NeedReply = 8,
}

/** SET_VRING_KICK, CALL and ERR: no descriptor comes with the message. */
export const VRING_NO_FD = 0x100;
/** SET_VRING_KICK, CALL and ERR: the queue's index. */
export const VRING_INDEX_MASK = 0xff;
/** SET_VRING_ADDR: writes to the used ring are to be logged (VHOST_VRING_F_LOG). */
export const VRING_FLAG_LOG = 1;

const REQUEST_NAMES: readonly string[] = [
  "NONE",
  "GET_FEATURES",
  "SET_FEATURES",
  "SET_OWNER",
  "RESET_OWNER",
  "SET_MEM_TABLE",
  "SET_LOG_BASE",
  "SET_LOG_FD",
  "SET_VRING_NUM",
  "SET_VRING_ADDR",
  "SET_VRING_BASE",
  "GET_VRING_BASE",
  "SET_VRING_KICK",
  "SET_VRING_CALL",
  "SET_VRING_ERR",
  "GET_PROTOCOL_FEATURES",
  "SET_PROTOCOL_FEATURES",
  "GET_QUEUE_NUM",
  "SET_VRING_ENABLE",
  "SEND_RARP",
  "NET_SET_MTU",
  "SET_BACKEND_REQ_FD",
  "IOTLB_MSG",
  "SET_VRING_ENDIAN",
  "GET_CONFIG",
  "SET_CONFIG",
  "CREATE_CRYPTO_SESSION",
  "CLOSE_CRYPTO_SESSION",
  "POSTCOPY_ADVISE",
  "POSTCOPY_LISTEN",
  "POSTCOPY_END",
  "GET_INFLIGHT_FD",
  "SET_INFLIGHT_FD",
  "GPU_SET_SOCKET",
  "RESET_DEVICE",
  "VRING_KICK",
  "GET_MAX_MEM_SLOTS",
  "ADD_MEM_REG",
  "REM_MEM_REG",
  "SET_STATUS",
  "GET_STATUS",
  "GET_SHARED_OBJECT",
  "SET_DEVICE_STATE_FD",
  "CHECK_DEVICE_STATE",
];

/** Name of a request for people, without its VHOST_USER_ prefix; unknown ones get their number. */
export function requestName(request: number): string {
  return REQUEST_NAMES[request] ?? `request ${request}`;
}

/** One whole message and the descriptors that came with it. */
export interface Message {
  readonly request: number;
  /** The header's flags. */
  readonly flags: number;
  /** Owned by the message. */
  readonly payload: Uint8Array<ArrayBuffer>;
  /** Whoever handles the message takes out what it keeps; the rest is closed. */
  readonly fds: number[];
}

/** A 64-bit value as two halves: feature masks. */
export interface Bits64 {
  readonly low: number;
  readonly high: number;
}

/** Index and number of a queue: `num` is a size, a base or a switch, as the request says. */
export interface VringState {
  readonly index: number;
  readonly num: number;
}

/** Addresses of the parts of a ring: user addresses, but for `log`, which is a guest address. */
export interface VringAddress {
  readonly index: number;
  readonly flags: number;
  readonly descriptors: number;
  readonly used: number;
  readonly available: number;
  readonly log: number;
}

/** A region of guest memory, in bytes. */
export interface MemoryRegion {
  readonly guestAddress: number;
  readonly sizeBytes: number;
  readonly userAddress: number;
  /** First byte in the file behind the descriptor. */
  readonly fileOffset: number;
}

/** Place of a shared area in its file, in bytes. */
export interface SharedArea {
  readonly sizeBytes: number;
  readonly fileOffset: number;
}

/** Access to the config space; `data` is `sizeBytes` long. */
export interface ConfigAccess {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly flags: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** The area that tracks requests in flight. */
export interface InflightDescription extends SharedArea {
  readonly queueCount: number;
  readonly queueSize: number;
}

/** u16 at `at`. The caller has checked the bounds, here and below. */
export function readU16(bytes: Uint8Array, at: number): number {
  return bytes[at] | bytes[at + 1] << 8;
}

/** u32 at `at`. */
export function readU32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 | bytes[at + 3] << 24) >>> 0;
}

/** u64 at `at` as a Number, or −1 when it does not fit 53 bits. */
export function readU64(bytes: Uint8Array, at: number): number {
  const high = readU32(bytes, at + 4);
  return high >= 2 ** 21 ? -1 : high * 2 ** 32 + readU32(bytes, at);
}

/** Puts a u16. */
export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

/** Puts a u32. */
export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

/** Puts a Number below 2^53 as a u64. */
export function writeU64(bytes: Uint8Array, at: number, value: number): void {
  writeU32(bytes, at, value % 2 ** 32);
  writeU32(bytes, at + 4, Math.floor(value / 2 ** 32));
}

/** A bare u64, as two halves. */
export function decodeBits(payload: Uint8Array): Bits64 | null {
  if (payload.length !== 8) return null;
  return { low: readU32(payload, 0), high: readU32(payload, 4) };
}

/** A vring state. */
export function decodeVringState(payload: Uint8Array): VringState | null {
  if (payload.length !== 8) return null;
  return { index: readU32(payload, 0), num: readU32(payload, 4) };
}

/** A vring address description. */
export function decodeVringAddress(payload: Uint8Array): VringAddress | null {
  if (payload.length !== 40) return null;
  const address = {
    index: readU32(payload, 0),
    flags: readU32(payload, 4),
    descriptors: readU64(payload, 8),
    used: readU64(payload, 16),
    available: readU64(payload, 24),
    log: readU64(payload, 32),
  };
  // The log address is only looked at when the flag asks for logging; senders leave rubbish there.
  const isLogBad = (address.flags & VRING_FLAG_LOG) !== 0 && address.log < 0;
  return address.descriptors < 0 || address.used < 0 || address.available < 0 || isLogBad
    ? null
    : address;
}

function decodeRegion(payload: Uint8Array, at: number): MemoryRegion | null {
  const region = {
    guestAddress: readU64(payload, at),
    sizeBytes: readU64(payload, at + 8),
    userAddress: readU64(payload, at + 16),
    fileOffset: readU64(payload, at + 24),
  };
  const isBad = region.guestAddress < 0 || region.sizeBytes < 0 || region.userAddress < 0 ||
    region.fileOffset < 0;
  return isBad ? null : region;
}

/**
 * A table of regions. Senders differ in whether they send the unused entries of the table, so the payload may be
 * longer than its count says, but never than the whole table.
 */
export function decodeMemoryTable(payload: Uint8Array): MemoryRegion[] | null {
  if (payload.length < 8 || payload.length > 8 + TABLE_REGIONS_MAX * 32) return null;
  const count = readU32(payload, 0);
  if (count > TABLE_REGIONS_MAX || payload.length < 8 + count * 32) return null;
  const regions: MemoryRegion[] = [];
  for (let index = 0; index < count; index++) {
    const region = decodeRegion(payload, 8 + index * 32);
    if (region === null) return null;
    regions.push(region);
  }
  return regions;
}

/** A single region, as ADD_MEM_REG and REM_MEM_REG send it. */
export function decodeMemoryRegion(payload: Uint8Array): MemoryRegion | null {
  return payload.length === 40 ? decodeRegion(payload, 8) : null;
}

/** A log description. */
export function decodeLog(payload: Uint8Array): SharedArea | null {
  if (payload.length !== 16) return null;
  const log = { sizeBytes: readU64(payload, 0), fileOffset: readU64(payload, 8) };
  return log.sizeBytes < 0 || log.fileOffset < 0 ? null : log;
}

/** A config access. */
export function decodeConfig(payload: Uint8Array<ArrayBuffer>): ConfigAccess | null {
  if (payload.length < 12) return null;
  const offset = readU32(payload, 0);
  const sizeBytes = readU32(payload, 4);
  if (
    sizeBytes > CONFIG_BYTES_MAX || offset + sizeBytes > CONFIG_BYTES_MAX ||
    payload.length !== 12 + sizeBytes
  ) return null;
  return { offset, sizeBytes, flags: readU32(payload, 8), data: payload.subarray(12) };
}

/** An inflight description: 20 bytes, or 24 where the sender's compiler padded it, as QEMU's does. */
export function decodeInflight(payload: Uint8Array): InflightDescription | null {
  if (payload.length !== 20 && payload.length !== 24) return null;
  const inflight = {
    sizeBytes: readU64(payload, 0),
    fileOffset: readU64(payload, 8),
    queueCount: readU16(payload, 16),
    queueSize: readU16(payload, 18),
  };
  return inflight.sizeBytes < 0 || inflight.fileOffset < 0 ? null : inflight;
}

/** A message with a payload of `payloadBytes` zeros, for the caller to fill from {@linkcode HEADER_BYTES} on. */
function frame(request: number, flags: number, payloadBytes: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES + payloadBytes);
  writeU32(bytes, 0, request);
  writeU32(bytes, 4, flags);
  writeU32(bytes, 8, payloadBytes);
  return bytes;
}

/** A reply without, or with the given, payload. */
export function encodeReply(request: number, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = frame(request, HeaderFlag.Version | HeaderFlag.Reply, payload.length);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** A reply that is one u64: an answer, or an acknowledgement (0 is success). */
export function encodeU64Reply(request: number, low: number, high = 0): Uint8Array<ArrayBuffer> {
  const bytes = frame(request, HeaderFlag.Version | HeaderFlag.Reply, 8);
  writeU32(bytes, HEADER_BYTES, low);
  writeU32(bytes, HEADER_BYTES + 4, high);
  return bytes;
}

/** A reply that is a vring state. */
export function encodeVringStateReply(
  request: number,
  state: VringState,
): Uint8Array<ArrayBuffer> {
  return encodeU64Reply(request, state.index, state.num);
}

/** The answer to GET_INFLIGHT_FD; `payloadBytes` is 20 or 24, as the question was. */
export function encodeInflightReply(
  inflight: InflightDescription,
  payloadBytes: number,
): Uint8Array<ArrayBuffer> {
  const bytes = frame(
    Request.GetInflightFd,
    HeaderFlag.Version | HeaderFlag.Reply,
    payloadBytes,
  );
  writeU64(bytes, HEADER_BYTES, inflight.sizeBytes);
  writeU64(bytes, HEADER_BYTES + 8, inflight.fileOffset);
  writeU16(bytes, HEADER_BYTES + 16, inflight.queueCount);
  writeU16(bytes, HEADER_BYTES + 18, inflight.queueSize);
  return bytes;
}

/** A request of ours without payload, on the back end's channel. No reply is asked for. */
export function encodeBackendRequest(request: number): Uint8Array<ArrayBuffer> {
  return frame(request, HeaderFlag.Version, 0);
}
