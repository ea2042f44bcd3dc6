/**
 * What the guest of a disk has not flushed when it goes: each node syncs its store when it hears that a lease has ended.
 *
 * Nobody is promised anything by it, and nobody waits for it: giving a disk back is part of a guest's move to another host, and
 * syncing may take seconds. But a disk that is closed, and a snapshot that is taken of it then, should not hang for long on
 * no host losing its power (a snapshot of an open disk is synced by its holder before it is complete: `router.ts`).
 *
 * One sync at a time; what ends meanwhile asks for one more.
 *
 * @module
 */
import { Operation, OperationKind, type OperationOwner } from "../store/operation.ts";
import type { LocalStore } from "./local_store.ts";
import type { ClusterView } from "./view.ts";

/** See the head of the file. */
export class Closing implements OperationOwner {
  /** Syncs begun since the start. */
  syncs = 0;
  readonly #store: LocalStore;
  readonly #sync = new Operation(this, 0);
  #isUnderWay = false;
  #isWanted = false;

  constructor(store: LocalStore) {
    this.#store = store;
    this.#sync.kind = OperationKind.Sync;
  }

  /** The map has changed. */
  mapChanged(before: ClusterView | null, view: ClusterView): void {
    if (before === null || before.map.disks === view.map.disks) return;
    for (const { id, lease, generation } of view.map.disks) {
      const was = before.disk(id)?.entry;
      if (was === undefined || was.lease === null) continue;
      if (lease !== null && generation === was.generation) continue;
      this.#isWanted = true;
      break;
    }
    this.#begin();
  }

  #begin(): void {
    if (!this.#isWanted || this.#isUnderWay) return;
    this.#isWanted = false;
    this.#isUnderWay = true;
    this.syncs++;
    this.#store.submit(this.#sync);
  }

  /** {@inheritDoc OperationOwner.operationDone} */
  operationDone(_operation: Operation): void {
    // One that failed has ended the store, or will: there is nothing to add here.
    this.#isUnderWay = false;
    this.#begin();
  }
}
