/**
 * The cluster map: what there is, agreed and durable. A pure state machine.
 *
 *     apply(map, command) ──► { map: the next map, effects: what must be done about it }
 *                        └──► an error; the map is as it was
 *
 * The same map and the same command give the same result everywhere: time comes with the command,
 * identities are counted in the map. Whoever holds the map commits it durably first and carries the
 * effects out afterwards; a start-up with a map does what the effects would have done.
 *
 * Invariants, kept by {@linkcode apply} and checked again by the decoder ({@linkcode checkMap}):
 *
 * - `epoch` rises by one with every change and never otherwise;
 * - disks are sorted by name (code units), and names and ids are unique;
 * - a layer belongs to exactly one disk; disk ids and layer ids are never used twice;
 * - maps are immutable: a change makes a new one that shares what stayed.
 *
 * @module
 */

import { DISK_BYTES_MAX, SECTOR_BYTES } from "../base/limits.ts";
import { type ControlError, failure, type Result, success } from "./errors.ts";
import { checkDiskName } from "./names.ts";

/**
 * Most disks of one map. Each costs two sockets and some memory while it is idle; with names and
 * attributes of usual length the encoded map stays below {@linkcode MAP_BYTES_MAX}.
 */
export const DISKS_MAX = 4096;

/** Most bytes of an encoded map: it is committed as one value. */
export const MAP_BYTES_MAX = 1024 * 1024;

/** Most layers of one disk: reads fall through them one by one. */
export const LAYERS_MAX = 128;

/** Most copies that a disk may ask for. */
export const COPIES_MAX = 8;

/** Most attributes of one disk. */
export const ATTRIBUTES_MAX = 16;

/** Longest key of an attribute, in characters of the same set as a disk's name. */
export const ATTRIBUTE_KEY_LENGTH_MAX = 63;

/** Longest value of an attribute, in UTF-16 code units. */
export const ATTRIBUTE_VALUE_LENGTH_MAX = 255;

/** Layer and disk ids are unsigned 32-bit numbers; 0 is never given. */
export const ID_MAX = 0xffff_ffff;

/** Free-form notes of the user about a disk. */
export type Attributes = Readonly<Record<string, string>>;

/** One disk. */
export interface DiskEntry {
  /** 1…{@linkcode ID_MAX}, never used twice. */
  readonly id: number;
  /** Passes {@linkcode checkDiskName}. */
  readonly name: string;
  /** A multiple of 512, up to `DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Layer ids, newest first: writes go to the first, reads fall through. */
  readonly layers: readonly number[];
  /** Milliseconds since 1970. */
  readonly createdMs: number;
  /** Guests may only read. */
  readonly readOnly: boolean;
  /** Replicas that the disk should have; a single node keeps one whatever this says. */
  readonly copies: number;
  /**
   * Fencing number of the newest lease; 0 before the first. Each {@link TakeLease} raises it.
   */
  readonly generation: number;
  readonly attributes: Attributes;
}

/** What holds for the whole cluster. */
export interface Settings {
  /** `copies` of a disk that does not say. */
  readonly copies: number;
}

/** The cluster map. */
export interface ClusterMap {
  /** Version: 0 for the empty map, and one more with every change. */
  readonly epoch: number;
  /** Id of the next disk. */
  readonly nextDisk: number;
  /** Id of the next layer. */
  readonly nextLayer: number;
  readonly settings: Settings;
  /** Sorted by name. */
  readonly disks: readonly DiskEntry[];
}

/** The map of a cluster in which nothing has happened yet. */
export const EMPTY_MAP: ClusterMap = {
  epoch: 0,
  nextDisk: 1,
  nextLayer: 1,
  settings: { copies: 1 },
  disks: [],
};

/** Makes an empty disk. */
export interface CreateDisk {
  readonly kind: "create-disk";
  readonly name: string;
  /** A multiple of 512, 512…`DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Now, in milliseconds since 1970: machines have no clock. */
  readonly nowMs: number;
  readonly readOnly?: boolean;
  readonly copies?: number;
  readonly attributes?: Attributes;
}

/** Deletes a disk and its layers. */
export interface DeleteDisk {
  readonly kind: "delete-disk";
  readonly name: string;
}

/** Changes a disk's size. */
export interface ResizeDisk {
  readonly kind: "resize-disk";
  readonly name: string;
  /** A multiple of 512, 512…`DISK_BYTES_MAX`. */
  readonly sizeBytes: number;
  /** Must be true for the new size to be smaller than the old one: data is lost. */
  readonly shrink?: boolean;
}

/** Gives a disk another name. */
export interface RenameDisk {
  readonly kind: "rename-disk";
  readonly name: string;
  readonly newName: string;
}

/** Changes what else there is to change about a disk; what is left out stays. */
export interface ChangeDisk {
  readonly kind: "change-disk";
  readonly name: string;
  readonly readOnly?: boolean;
  readonly copies?: number;
  /** Replaces all attributes. */
  readonly attributes?: Attributes;
}

/** Raises a disk's generation: whoever proposed this holds the disk's lease from then on. */
export interface TakeLease {
  readonly kind: "take-lease";
  /** By id, not by name: the disk may be renamed meanwhile. */
  readonly id: number;
}

/** Changes settings of the cluster; what is left out stays. */
export interface ChangeSettings {
  readonly kind: "change-settings";
  readonly copies?: number;
}

/** Everything that can be asked of the map. */
export type MapCommand =
  | CreateDisk
  | DeleteDisk
  | ResizeDisk
  | RenameDisk
  | ChangeDisk
  | TakeLease
  | ChangeSettings;

/**
 * What has to be done because the map changed, in the order in which it has to be done.
 *
 * `disk-resized`: when the disk shrank, the blocks of `layers[0]` from the new end to the old one are
 * to be zeroed; when it grew, the blocks from the old end to the new one as well, before a guest may
 * see the new size. Each alone would do but for crashes between commit and effect.
 */
export type MapEffect =
  | { readonly kind: "layer-created"; readonly layer: number }
  | { readonly kind: "disk-added"; readonly disk: DiskEntry }
  | { readonly kind: "disk-removed"; readonly disk: DiskEntry }
  | { readonly kind: "layer-dropped"; readonly layer: number }
  | { readonly kind: "disk-resized"; readonly disk: DiskEntry; readonly previousBytes: number }
  | { readonly kind: "disk-renamed"; readonly disk: DiskEntry; readonly previousName: string }
  | { readonly kind: "disk-changed"; readonly disk: DiskEntry }
  | { readonly kind: "lease-taken"; readonly disk: DiskEntry };

/** The next map and what follows from it. */
export interface Applied {
  readonly map: ClusterMap;
  /** Empty when the command changed nothing; then `map` is the very map that was given. */
  readonly effects: readonly MapEffect[];
}

/**
 * Applies one command to a map.
 *
 * @param map stays as it is
 * @param command from a user: every field is checked
 * @returns the next map and its effects, or an error with code `invalid`, `exists`, `missing` or
 * `limit`
 *
 * @example
 * ```ts
 * import { apply, EMPTY_MAP } from "./map.ts";
 *
 * const result = apply(EMPTY_MAP, {
 *   kind: "create-disk",
 *   name: "web",
 *   sizeBytes: 20 * 1024 ** 3,
 *   nowMs: 0,
 * });
 * if (!result.ok) throw new Error(result.error.message);
 * if (result.value.map.epoch !== 1) throw new Error("a change raises the epoch");
 * ```
 */
export function apply(map: ClusterMap, command: MapCommand): Result<Applied> {
  switch (command.kind) {
    case "create-disk":
      return createDisk(map, command);
    case "delete-disk":
      return deleteDisk(map, command);
    case "resize-disk":
      return resizeDisk(map, command);
    case "rename-disk":
      return renameDisk(map, command);
    case "change-disk":
      return changeDisk(map, command);
    case "take-lease":
      return takeLease(map, command);
    case "change-settings":
      return changeSettings(map, command);
  }
}

/**
 * Finds a disk by its name.
 *
 * @param map the map to look in
 * @param name any string
 */
export function findDisk(map: ClusterMap, name: string): DiskEntry | undefined {
  const index = indexOf(map.disks, name);
  return map.disks[index]?.name === name ? map.disks[index] : undefined;
}

/** The error for a disk that is not there. */
export function diskMissing(name: string): ControlError {
  return {
    code: "missing",
    message: `there is no disk named ${JSON.stringify(name)}`,
    hint: "'kelpie disk list' shows the disks that there are",
  };
}

function createDisk(map: ClusterMap, command: CreateDisk): Result<Applied> {
  const copies = command.copies ?? map.settings.copies;
  const error = checkDiskName(command.name) ?? checkSize(command.sizeBytes) ??
    checkCopies(copies) ?? checkAttributes(command.attributes ?? {}) ??
    checkTime(command.nowMs);
  if (error !== null) return { ok: false, error };
  if (findDisk(map, command.name) !== undefined) return taken(command.name);
  if (map.disks.length >= DISKS_MAX) {
    return failure("limit", `there are ${DISKS_MAX} disks, which is the most`);
  }
  if (map.nextDisk > ID_MAX || map.nextLayer > ID_MAX) {
    return failure("limit", `all ${ID_MAX} disk or layer ids have been used`);
  }
  const layer = map.nextLayer;
  const disk: DiskEntry = {
    id: map.nextDisk,
    name: command.name,
    sizeBytes: command.sizeBytes,
    layers: [layer],
    createdMs: command.nowMs,
    readOnly: command.readOnly ?? false,
    copies,
    generation: 0,
    attributes: { ...command.attributes },
  };
  const next = { ...map, nextDisk: map.nextDisk + 1, nextLayer: layer + 1 };
  return changed(next, insert(map.disks, disk), [
    { kind: "layer-created", layer },
    { kind: "disk-added", disk },
  ]);
}

function deleteDisk(map: ClusterMap, command: DeleteDisk): Result<Applied> {
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  const dropped = disk.layers.map((layer): MapEffect => ({ kind: "layer-dropped", layer }));
  return changed(map, without(map.disks, disk), [{ kind: "disk-removed", disk }, ...dropped]);
}

function resizeDisk(map: ClusterMap, command: ResizeDisk): Result<Applied> {
  const error = checkSize(command.sizeBytes);
  if (error !== null) return { ok: false, error };
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  const previousBytes = disk.sizeBytes;
  if (command.sizeBytes === previousBytes) return unchanged(map);
  if (command.sizeBytes < previousBytes && command.shrink !== true) {
    return failure(
      "invalid",
      `${command.sizeBytes} bytes are less than the ${previousBytes} bytes that disk ` +
        `${disk.name} has; what lies beyond would be lost`,
      "allow it with 'shrink' (on the command line: --shrink)",
    );
  }
  const next = { ...disk, sizeBytes: command.sizeBytes };
  return changed(map, replaced(map.disks, disk, next), [
    { kind: "disk-resized", disk: next, previousBytes },
  ]);
}

function renameDisk(map: ClusterMap, command: RenameDisk): Result<Applied> {
  const error = checkDiskName(command.newName);
  if (error !== null) return { ok: false, error };
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  if (command.newName === command.name) return unchanged(map);
  if (findDisk(map, command.newName) !== undefined) return taken(command.newName);
  const next = { ...disk, name: command.newName };
  return changed(map, insert(without(map.disks, disk), next), [
    { kind: "disk-renamed", disk: next, previousName: command.name },
  ]);
}

function changeDisk(map: ClusterMap, command: ChangeDisk): Result<Applied> {
  const disk = findDisk(map, command.name);
  if (disk === undefined) return { ok: false, error: diskMissing(command.name) };
  const next: DiskEntry = {
    ...disk,
    readOnly: command.readOnly ?? disk.readOnly,
    copies: command.copies ?? disk.copies,
    attributes: command.attributes === undefined ? disk.attributes : { ...command.attributes },
  };
  const error = checkCopies(next.copies) ?? checkAttributes(next.attributes);
  if (error !== null) return { ok: false, error };
  const same = next.readOnly === disk.readOnly && next.copies === disk.copies &&
    sameAttributes(next.attributes, disk.attributes);
  if (same) return unchanged(map);
  return changed(map, replaced(map.disks, disk, next), [{ kind: "disk-changed", disk: next }]);
}

function takeLease(map: ClusterMap, command: TakeLease): Result<Applied> {
  const disk = map.disks.find((each) => each.id === command.id);
  if (disk === undefined) return failure("missing", `there is no disk with id ${command.id}`);
  if (disk.generation >= ID_MAX) {
    return failure("limit", `disk ${disk.name} has used all ${ID_MAX} generations`);
  }
  const next = { ...disk, generation: disk.generation + 1 };
  return changed(map, replaced(map.disks, disk, next), [{ kind: "lease-taken", disk: next }]);
}

function changeSettings(map: ClusterMap, command: ChangeSettings): Result<Applied> {
  const settings = { copies: command.copies ?? map.settings.copies };
  const error = checkCopies(settings.copies);
  if (error !== null) return { ok: false, error };
  if (settings.copies === map.settings.copies) return unchanged(map);
  return changed({ ...map, settings }, map.disks, []);
}

function taken(name: string): Result<Applied> {
  return failure("exists", `there is already a disk named ${JSON.stringify(name)}`);
}

function unchanged(map: ClusterMap): Result<Applied> {
  return success({ map, effects: [] });
}

function changed(
  map: ClusterMap,
  disks: readonly DiskEntry[],
  effects: readonly MapEffect[],
): Result<Applied> {
  return success({ map: { ...map, epoch: map.epoch + 1, disks }, effects });
}

/** Index of the first disk whose name is not below `name`. */
function indexOf(disks: readonly DiskEntry[], name: string): number {
  let low = 0;
  let high = disks.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (disks[middle].name < name) low = middle + 1;
    else high = middle;
  }
  return low;
}

function insert(disks: readonly DiskEntry[], disk: DiskEntry): readonly DiskEntry[] {
  return disks.toSpliced(indexOf(disks, disk.name), 0, disk);
}

function without(disks: readonly DiskEntry[], disk: DiskEntry): readonly DiskEntry[] {
  return disks.toSpliced(disks.indexOf(disk), 1);
}

/** `next` in the place of `disk`; both have the same name. */
function replaced(
  disks: readonly DiskEntry[],
  disk: DiskEntry,
  next: DiskEntry,
): readonly DiskEntry[] {
  return disks.with(disks.indexOf(disk), next);
}

function sameAttributes(a: Attributes, b: Attributes): boolean {
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => a[key] === b[key]);
}

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

function checkCopies(copies: number): ControlError | null {
  if (Number.isInteger(copies) && copies >= 1 && copies <= COPIES_MAX) return null;
  return invalid(`a disk cannot have ${copies} copies: 1 to ${COPIES_MAX} are possible`);
}

function checkTime(nowMs: number): ControlError | null {
  if (Number.isSafeInteger(nowMs) && nowMs >= 0) return null;
  return invalid(`${nowMs} is not a time in whole milliseconds since 1970`);
}

function checkAttributes(attributes: Attributes): ControlError | null {
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

function invalid(message: string, hint?: string): ControlError {
  return hint === undefined ? { code: "invalid", message } : { code: "invalid", message, hint };
}

/**
 * Checks every invariant of a map, as after decoding: types are right already, values may be anything.
 *
 * @param map of which nothing is known but its types
 * @returns null for a map that {@linkcode apply} could have made, else an error with code `corrupt`
 */
export function checkMap(map: ClusterMap): ControlError | null {
  const reason = reasonAgainstMap(map);
  return reason === null
    ? null
    : { code: "corrupt", message: `the cluster map is damaged: ${reason}` };
}

function reasonAgainstMap(map: ClusterMap): string | null {
  if (!isCount(map.epoch)) return `its epoch is ${map.epoch}`;
  if (!isNext(map.nextDisk)) return `its next disk id is ${map.nextDisk}`;
  if (!isNext(map.nextLayer)) return `its next layer id is ${map.nextLayer}`;
  const settings = checkCopies(map.settings.copies);
  if (settings !== null) return settings.message;
  if (map.disks.length > DISKS_MAX) return `it has ${map.disks.length} disks`;
  const ids = new Set<number>();
  const layers = new Set<number>();
  let previousName = "";
  for (const disk of map.disks) {
    const reason = reasonAgainstDisk(disk, map);
    if (reason !== null) return `disk ${JSON.stringify(disk.name)}: ${reason}`;
    if (disk.name <= previousName) return `disk ${disk.name} is out of order or there twice`;
    previousName = disk.name;
    if (ids.has(disk.id)) return `disk id ${disk.id} is there twice`;
    ids.add(disk.id);
    for (const layer of disk.layers) {
      if (layers.has(layer)) return `layer ${layer} is there twice`;
      layers.add(layer);
    }
  }
  return null;
}

function reasonAgainstDisk(disk: DiskEntry, map: ClusterMap): string | null {
  const error = checkDiskName(disk.name) ?? checkSize(disk.sizeBytes) ??
    checkCopies(disk.copies) ?? checkTime(disk.createdMs) ?? checkAttributes(disk.attributes);
  if (error !== null) return error.message;
  if (!isIdBelow(disk.id, map.nextDisk)) return `its id is ${disk.id}`;
  if (!isCount(disk.generation) || disk.generation > ID_MAX) {
    return `its generation is ${disk.generation}`;
  }
  if (disk.layers.length < 1 || disk.layers.length > LAYERS_MAX) {
    return `it has ${disk.layers.length} layers`;
  }
  const stray = disk.layers.find((layer) => !isIdBelow(layer, map.nextLayer));
  return stray === undefined ? null : `one of its layers is ${stray}`;
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function isNext(value: number): boolean {
  return Number.isInteger(value) && value >= 1 && value <= ID_MAX + 1;
}

function isIdBelow(value: number, next: number): boolean {
  return Number.isInteger(value) && value >= 1 && value < next;
}
