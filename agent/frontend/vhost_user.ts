/**
 * The vhost-user protocol as a front end speaks it. Apart from `vhost/message.ts` on purpose: this front
 * end judges the agent's back end, so the two share no reading of the specification.
 *
 *     message   0 request u32 | 4 flags u32 | 8 size u32 | 12 payload, `size` bytes
 *     flags     bits 0–1 version (1) | bit 2 reply | bit 3 need_reply
 *
 * Specification: QEMU's `docs/interop/vhost-user.rst`.
 *
 * @module
 */

/** Bytes of request, flags and size. */
export const HEADER_BYTES = 12;

/** Longest reply that is taken: a config access of 268 bytes is the longest one defined here. */
export const PAYLOAD_BYTES_MAX = 4096;

/** Requests in use. */
export const enum Request {
  GetFeatures = 1,
  SetFeatures = 2,
  SetOwner = 3,
  SetMemTable = 5,
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
  GetConfig = 24,
  SetConfig = 25,
  GetInflightFd = 31,
  SetInflightFd = 32,
}

const NAMES: Record<number, string> = {
  1: "GET_FEATURES",
  2: "SET_FEATURES",
  3: "SET_OWNER",
  5: "SET_MEM_TABLE",
  8: "SET_VRING_NUM",
  9: "SET_VRING_ADDR",
  10: "SET_VRING_BASE",
  11: "GET_VRING_BASE",
  12: "SET_VRING_KICK",
  13: "SET_VRING_CALL",
  14: "SET_VRING_ERR",
  15: "GET_PROTOCOL_FEATURES",
  16: "SET_PROTOCOL_FEATURES",
  17: "GET_QUEUE_NUM",
  18: "SET_VRING_ENABLE",
  24: "GET_CONFIG",
  25: "SET_CONFIG",
  31: "GET_INFLIGHT_FD",
  32: "SET_INFLIGHT_FD",
};

/** Name of a request for people. */
export function requestName(request: number): string {
  return NAMES[request] ?? `request ${request}`;
}

/** Bits of the header's flags. */
export const enum HeaderFlag {
  Version = 1,
  Reply = 4,
  NeedReply = 8,
}

/** Protocol features in use (VHOST_USER_PROTOCOL_F_…). */
export const enum ProtocolFeature {
  Mq = 1 << 0,
  ReplyAck = 1 << 3,
  Config = 1 << 9,
  InflightShmfd = 1 << 12,
}
