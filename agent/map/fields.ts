/**
 * What single fields of the map and of its commands may be. Every check takes a value of the right type,
 * from anywhere, and gives null or an error with code `invalid` that names the value and the limit.
 *
 * @module
 */

import { DISK_BYTES_MAX, SECTOR_BYTES } from "../base/limits.ts";
import { type ControlError, invalid } from "./errors.ts";
import {
  ADDRESS_LENGTH_MAX,
  ATTRIBUTE_KEY_LENGTH_MAX,
  ATTRIBUTE_VALUE_LENGTH_MAX,
  type Attributes,
  ATTRIBUTES_MAX,
  BURST_SECONDS_MAX,
  COPIES_MAX,
  LIMIT_MAX,
  type Limits,
  NODE_NAME_LENGTH_MAX,
  type NodeFacts,
  OUT_AFTER_MS_MAX,
  OUT_AFTER_MS_MIN,
  PROTOCOL_MAX,
  type Schedule,
  SCHEDULE_EVERY_MS_MIN,
  type Settings,
  SNAPSHOTS_PER_DISK_MAX,
  TOKEN_LENGTH_MAX,
  TRASH_MS_MAX,
  WEIGHT_MAX,
} from "./model.ts";
import { checkSnapshotName } from "./names.ts";
import type { Speaker } from "./levels.ts";

/**
 * Says what is wrong with a disk's size.
 *
 * @param sizeBytes any number
 * @returns null for a multiple of 512 in 512…`DISK_BYTES_MAX`, else an error with code `invalid`
 */
export function checkSize(sizeBytes: number): ControlError | null {
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < SECTOR_BYTES) {
    return invalid(`${sizeBytes} bytes cannot be the size of a disk: ${SECTOR_BYTES} is the least`);
  }
  if (sizeBytes > DISK_BYTES_MAX) {
    return invalid(
      `${sizeBytes} bytes cannot be the size of a disk: ${DISK_BYTES_MAX} (4 PiB) is the most`,
    );
  }
  if (sizeBytes % SECTOR_BYTES !== 0) {
    return invalid(
      `${sizeBytes} bytes cannot be the size of a disk: it is not a multiple of ${SECTOR_BYTES}`,
    );
  }
  return null;
}

/** A number of copies: 1…{@linkcode COPIES_MAX}. */
export function checkCopies(copies: number): ControlError | null {
  if (Number.isInteger(copies) && copies >= 1 && copies <= COPIES_MAX) return null;
  return invalid(`a disk cannot have ${copies} copies: 1 to ${COPIES_MAX} are possible`);
}

/** A time: whole milliseconds since 1970. */
export function checkTime(nowMs: number): ControlError | null {
  if (Number.isSafeInteger(nowMs) && nowMs >= 0) return null;
  return invalid(`${nowMs} is not a time in whole milliseconds since 1970`);
}

/** Attributes of a disk: how many, their keys and their values. */
export function checkAttributes(attributes: Attributes): ControlError | null {
  const entries = Object.entries(attributes);
  if (entries.length > ATTRIBUTES_MAX) {
    return invalid(`${entries.length} attributes are too many: ${ATTRIBUTES_MAX} is the most`);
  }
  for (const [key, value] of entries) {
    if (key.length > ATTRIBUTE_KEY_LENGTH_MAX || !ATTRIBUTE_KEY.test(key)) {
      return invalid(
        `${JSON.stringify(key.slice(0, 80))} cannot be the key of an attribute`,
        `use 1 to ${ATTRIBUTE_KEY_LENGTH_MAX} letters, digits, '.', '_' or '-'`,
      );
    }
    if (value.length > ATTRIBUTE_VALUE_LENGTH_MAX || !value.isWellFormed()) {
      return invalid(
        `the value of attribute ${key} cannot be stored: well-formed text of up to ` +
          `${ATTRIBUTE_VALUE_LENGTH_MAX} characters can`,
      );
    }
  }
  return null;
}

/** As a disk's name; `__proto__` and its like cannot begin so. */
const ATTRIBUTE_KEY = /^[a-zA-Z0-9][a-zA-Z0-9._-]*$/;

/** `copiesMin` beside `copies`: null, or 1…copies. */
export function checkCopiesMin(copiesMin: number | null, copies: number): ControlError | null {
  if (copiesMin === null) return null;
  if (Number.isInteger(copiesMin) && copiesMin >= 1 && copiesMin <= copies) return null;
  return invalid(
    `${copiesMin} cannot be the fewest copies: 1 to ${copies} are possible with ${copies} copies`,
  );
}

/** All settings. */
export function checkSettings(settings: Settings): ControlError | null {
  const error = checkCopies(settings.copies) ?? checkCopiesMin(settings.copiesMin, COPIES_MAX);
  if (error !== null) return error;
  const { outAfterMs } = settings;
  if (
    !Number.isInteger(outAfterMs) || outAfterMs < OUT_AFTER_MS_MIN || outAfterMs > OUT_AFTER_MS_MAX
  ) {
    return invalid(
      `a node cannot be out after ${outAfterMs} ms: ` +
        `${OUT_AFTER_MS_MIN} to ${OUT_AFTER_MS_MAX} are possible`,
    );
  }
  if (!isWhole(settings.trashMs, 0, TRASH_MS_MAX)) {
    return invalid(
      `deleted disks cannot stay in the trash for ${settings.trashMs} ms: 0 to ${TRASH_MS_MAX} are possible`,
    );
  }
  return null;
}

/** Limits as commands and the encoded map have them: numbers in the order of {@linkcode Limits}. */
export function limitNumbers(limits: Limits): number[] {
  const { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds } = limits;
  return [iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds];
}

/** The limits of such numbers. Where there are not five of them, what is missing is no number, and refused as such. */
export function limitsOf(numbers: readonly number[]): Limits {
  const five = numbers.length <= 5 ? numbers : [];
  const [iops = NaN, bytesPerSecond = NaN, burstIops = NaN, burstBytesPerSecond = NaN] = five;
  const burstSeconds = five[4] ?? NaN;
  return { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds };
}

/** Limits of a disk. */
export function checkLimits(limits: Limits): ControlError | null {
  const { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds } = limits;
  for (const value of [iops, bytesPerSecond, burstIops, burstBytesPerSecond]) {
    if (!isWhole(value, 0, LIMIT_MAX)) {
      return invalid(
        `${value} cannot be a limit: 0 (none) to ${LIMIT_MAX} for each second are possible`,
      );
    }
  }
  if (!isWhole(burstSeconds, 0, BURST_SECONDS_MAX)) {
    return invalid(`bursts of ${burstSeconds} s are not possible: 0 to ${BURST_SECONDS_MAX} are`);
  }
  for (const [limit, burst] of [[iops, burstIops], [bytesPerSecond, burstBytesPerSecond]]) {
    if (burst !== 0 && (limit === 0 || burst < limit)) {
      return invalid(
        `bursts of ${burst} for each second make no sense beside a limit of ${limit}`,
        "allow bursts that are above the limit, or none",
      );
    }
  }
  const isBurst = burstIops !== 0 || burstBytesPerSecond !== 0;
  return isBurst === (burstSeconds !== 0)
    ? null
    : invalid("bursts need a length in seconds, and a length needs bursts");
}

/** A schedule of snapshots. */
export function checkSchedule(schedule: Schedule): ControlError | null {
  const error = checkSnapshotName(schedule.name) ?? checkTime(schedule.createdMs);
  if (error !== null) return error;
  if (schedule.name.length > SCHEDULE_NAME_LENGTH_MAX) {
    return invalid(
      `${
        shown(schedule.name)
      } is too long for a schedule: ${SCHEDULE_NAME_LENGTH_MAX} characters are the most`,
    );
  }
  if (!isWhole(schedule.everyMs, SCHEDULE_EVERY_MS_MIN, OUT_AFTER_MS_MAX)) {
    return invalid(
      `a snapshot every ${schedule.everyMs} ms is not possible: ` +
        `${SCHEDULE_EVERY_MS_MIN} to ${OUT_AFTER_MS_MAX} are`,
    );
  }
  const { keep, keepDaily, keepWeekly, keepMonthly } = schedule;
  if (!isWhole(keep, 1, SNAPSHOTS_PER_DISK_MAX)) {
    return invalid(
      `a schedule cannot keep ${keep} snapshots: 1 to ${SNAPSHOTS_PER_DISK_MAX} it can`,
    );
  }
  for (const kept of [keepDaily, keepWeekly, keepMonthly]) {
    if (!isWhole(kept, 0, SNAPSHOTS_PER_DISK_MAX)) {
      return invalid(
        `a schedule cannot keep ${kept} snapshots: 0 to ${SNAPSHOTS_PER_DISK_MAX} it can`,
      );
    }
  }
  return keep + keepDaily + keepWeekly + keepMonthly <= SNAPSHOTS_PER_DISK_MAX ? null : invalid(
    `a schedule cannot keep more than ${SNAPSHOTS_PER_DISK_MAX} snapshots in all, ` +
      "which is the most that a disk can have",
  );
}

/** Longest name of a schedule: its snapshots' names have 17 characters more. */
const SCHEDULE_NAME_LENGTH_MAX = 40;

function isWhole(value: number, least: number, most: number): boolean {
  return Number.isInteger(value) && value >= least && value <= most;
}

/** A UUID of a store or a cluster: 32 hexadecimal digits, lower case. */
export function checkUuid(uuid: string): ControlError | null {
  return UUID.test(uuid)
    ? null
    : invalid(`${shown(uuid)} is no identity: it is not 32 hexadecimal digits`);
}

const UUID = /^[0-9a-f]{32}$/;

/** A node's name, as a host's. */
export function checkNodeName(name: string): ControlError | null {
  return isLabel(name) ? null : invalid(
    `${shown(name)} cannot be the name of a node`,
    `use 1 to ${NODE_NAME_LENGTH_MAX} letters, digits, '.', '_' or '-', beginning with a letter or digit`,
  );
}

/** A zone's name, or "". */
export function checkZone(zone: string): ControlError | null {
  return zone === "" || isLabel(zone) ? null : invalid(
    `${shown(zone)} cannot be the name of a zone`,
    `use up to ${NODE_NAME_LENGTH_MAX} letters, digits, '.', '_' or '-', beginning with a letter or digit`,
  );
}

function isLabel(text: string): boolean {
  return text.length <= NODE_NAME_LENGTH_MAX && LABEL.test(text);
}

const LABEL = /^[a-zA-Z0-9][a-zA-Z0-9._-]*$/;

/**
 * A node's address: `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`. The port after it is used as
 * well, so 65534 is the last.
 */
export function checkAddress(address: string): ControlError | null {
  const match = address.length <= ADDRESS_LENGTH_MAX ? ADDRESS.exec(address) : null;
  const port = match === null ? 0 : Number(match[1]);
  if (port >= 1 && port <= 65534) return null;
  return invalid(
    `${shown(address)} is no address of a node`,
    "use HOST:PORT, with a port from 1 to 65534; an IPv6 address stands in brackets",
  );
}

const ADDRESS =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]{2,45}(?:%[a-zA-Z0-9._-]{1,15})?\]):([1-9][0-9]{0,4})$/;

/** Bytes that a store may hold. */
export function checkCapacity(capacityBytes: number): ControlError | null {
  if (Number.isSafeInteger(capacityBytes) && capacityBytes >= 0) return null;
  return invalid(`${capacityBytes} bytes cannot be the capacity of a node`);
}

/** A weight, or null. */
export function checkWeight(weight: number | null): ControlError | null {
  if (weight === null || (weight >= 0 && weight <= WEIGHT_MAX)) return null;
  return invalid(`${weight} cannot be the weight of a node: 0 to ${WEIGHT_MAX} are possible`);
}

/** The id of a kernel's boot, or "". */
export function checkBootId(bootId: string): ControlError | null {
  return bootId === "" || isToken(bootId) ? null : invalid(`${shown(bootId)} is no id of a boot`);
}

/** A version of the program, and the levels that it speaks. */
export function checkVersion(
  { version, protocolMin = 1, protocol }: Speaker,
): ControlError | null {
  if (!isToken(version)) return invalid(`${shown(version)} is no version of Kelpie`);
  const stray = [protocolMin, protocol].find((level) => !isLevel(level));
  if (stray !== undefined) {
    return invalid(`${stray} is no version of the protocol: 1 to ${PROTOCOL_MAX} are possible`);
  }
  if (protocolMin <= protocol) return null;
  return invalid(`there are no versions of the protocol from ${protocolMin} to ${protocol}`);
}

function isToken(text: string): boolean {
  return text.length <= TOKEN_LENGTH_MAX && TOKEN.test(text);
}

const TOKEN = /^[a-zA-Z0-9][a-zA-Z0-9.+_-]*$/;

/** Everything that a node says of itself, but for the time. */
export function checkFacts(facts: Omit<NodeFacts, "nowMs">): ControlError | null {
  return checkUuid(facts.uuid) ?? checkNodeName(facts.name) ?? checkAddress(facts.address) ??
    checkZone(facts.zone) ?? checkCapacity(facts.capacityBytes) ?? checkBootId(facts.bootId) ??
    checkVersion(facts);
}

/** Whether something can be a level: 1…{@linkcode PROTOCOL_MAX}. */
export function isLevel(level: number): boolean {
  return Number.isInteger(level) && level >= 1 && level <= PROTOCOL_MAX;
}

/** Text from anywhere as it is safe to print: control characters escaped, cut where it gets long. */
function shown(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}
