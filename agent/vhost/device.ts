/**
 * What a vhost-user session needs of the virtio device behind it. `blk/device.ts` is the one there is.
 *
 * @module
 */
import type { DirtyLog } from "./dirty_log.ts";
import type { GuestMemory } from "./guest_memory.ts";
import type { DescriptorChain, VirtQueue } from "./queue.ts";

/** What the device works on. All of it is the session's. */
export interface DeviceContext {
  /** For the addresses in descriptors. */
  readonly memory: GuestMemory;
  /** For what the device writes to guest memory. */
  readonly log: DirtyLog;
}

/** A virtio device with split queues. */
export interface VhostDevice {
  /** Queues it can serve, 1…64. */
  readonly queueCountMax: number;
  /** Device features offered, bits 0…23 in the low half; the session adds those of the ring. */
  readonly features: number;
  /**
   * A value below 2^32 that a restarted back end must know and the front end does not tell it; kept with the
   * requests in flight.
   */
  readonly restartState: number;
  /** Tells what is behind it from everything else, whatever name that has; from 1 to 2^32 − 1. */
  readonly identity: number;
  /** Called once, before anything else. */
  bind(context: DeviceContext): void;
  /** What front end and driver agreed on, of both halves of the feature bits. */
  acknowledge(low: number, high: number): void;
  /** Back to the initial state. Nothing is in flight. */
  reset(): void;
  /** Takes over the state of the back end before this one. Anything may have been written there. */
  restore(state: number): void;
  /** Copies config space from `offset` on into `target`; beyond its end there are zeros. */
  readConfig(offset: number, target: Uint8Array): void;
  /**
   * Writes config space.
   *
   * @param isMigration the values come from the device at the other end of a migration
   * @returns false when the driver may not write there
   */
  writeConfig(offset: number, data: Uint8Array, isMigration: boolean): boolean;
  /**
   * Whether it takes a request now. When not, requests are left in the ring as long as {@linkcode VhostHost.admit} says no; which
   * ones are there does not matter.
   */
  readonly isOpen: boolean;
  /**
   * Takes up a request. Sooner or later, also from inside this call, it is given back by `queue.push`.
   *
   * @param chain valid during the call
   * @returns 0, or a negative `RingFault` when the request cannot be answered at all
   */
  begin(queue: VirtQueue, chain: DescriptorChain): number;
}
