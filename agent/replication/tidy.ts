/**
 * Gives back the space of chunks that this node no longer has to keep: their groups have moved elsewhere.
 *
 * Invariants:
 * - A chunk is dropped only while the map says that its group is whole without this node: all of its target is in sync, and this
 *   node is neither a member nor to become one. What a group might still need is kept, also as a start for catching up.
 * - A group whose chunks are being dropped is not compared before that is done, wherever their disk is by then (`discards.ts`).
 * - Groups are looked at when they become none of this node's business, and when a disk comes into their pool (`map/copies.ts`).
 *
 * Bounds: one group at a time, `DROPS_MAX` chunks under way, looked for every `LOOK_MS`.
 *
 * @module
 */
import type { Log } from "../platform/platform.ts";
import type { Discards } from "./discards.ts";
import { chunkList, type LocalStore } from "./local_store.ts";
import { type ClusterView, type GroupView, keyOf } from "./view.ts";

/** Chunks that are being dropped at a time. */
const DROPS_MAX = 32;
/** Milliseconds between looks while something is to be done. */
const LOOK_MS = 50;

/** See the head of the file. */
export class Tidier {
  /** Chunks dropped so far. */
  dropped = 0;
  readonly #store: LocalStore;
  readonly #discards: Discards;
  readonly #log: Log;
  #view: ClusterView | null = null;
  /** Groups to look at, by key. */
  readonly #todo = new Set<number>();
  #drops = 0;
  #nextMs = 0;
  readonly #list = chunkList(DROPS_MAX);

  constructor(options: { store: LocalStore; discards: Discards; log: Log }) {
    this.#store = options.store;
    this.#discards = options.discards;
    this.#log = options.log;
  }

  /** The map has changed: groups may have become someone else's business. */
  mapChanged(view: ClusterView): void {
    const before = this.#view;
    this.#view = view;
    const arrived = arrivals(before, view);
    for (const pool of view.pools()) {
      const hasMore = pool.length > 0 && arrived.has(pool[0].pool);
      for (const group of pool) {
        const old = before?.pool(group.pool)[group.group];
        // Shared by both views: nothing has changed.
        if (old === group && before!.self === view.self && !hasMore) continue;
        if (!isOver(view, group)) continue;
        if (old !== undefined && isOver(before!, old) && !hasMore) continue;
        this.#todo.add(keyOf(group.pool, group.group));
      }
    }
  }

  /** Time passes. */
  tick(nowMs: number): void {
    const view = this.#view;
    if (view === null || nowMs < this.#nextMs || this.#drops > 0) return;
    this.#nextMs = nowMs + LOOK_MS;
    for (const key of this.#todo) {
      const group = view.groupOfKey(key);
      if (group !== undefined && isOver(view, group) && this.#dropSome(view, group, key)) return;
      this.#todo.delete(key);
    }
  }

  /** Starts to drop some chunks of a group; false when there is none left. */
  #dropSome(view: ClusterView, group: GroupView, key: number): boolean {
    for (const [layer, disk] of view.layersOf(group.pool)) {
      if (!this.#store.hasLayer(layer)) continue;
      const list = this.#list;
      let from = 0;
      do {
        this.#store.listChunks(
          layer,
          from,
          list,
          disk.groups.length,
          view.firstChunk(disk, group.group),
        );
        from = list.next;
      } while (list.count === 0 && from >= 0);
      if (list.count === 0) continue;
      this.#drops = list.count;
      for (let i = 0; i < list.count; i++) {
        const token = {};
        this.#discards.begin(token, layer, list.chunks[i]);
        this.#store.dropChunk(layer, list.chunks[i], (error) => {
          this.#discards.end(token);
          this.#drops--;
          if (error === null) this.dropped++;
          else {
            this.#todo.delete(key);
            this.#log.debug("a chunk that is not needed here any more was not dropped", {
              layer,
              reason: error.message,
            });
          }
        });
      }
      return true;
    }
    return false;
  }
}

/** Pools into which a disk has come from another one: what this node had of it may be left over. */
function arrivals(before: ClusterView | null, view: ClusterView): ReadonlySet<number> {
  const pools = new Set<number>();
  const isSame = before?.map.pools === view.map.pools && before.map.disks === view.map.disks;
  if (before === null || isSame) return pools;
  for (const { entry, pool } of view.disks()) {
    const was = before.disk(entry.id);
    if (was !== undefined && was.pool !== pool) pools.add(pool);
  }
  return pools;
}

/** Whether the group is whole, and none of this node's business. */
function isOver(view: ClusterView, group: GroupView): boolean {
  const { target, inSync, joining } = group.entry;
  return group.isOpen && !target.includes(view.self) && !inSync.includes(view.self) &&
    !joining.includes(view.self) && target.every((node) => inSync.includes(node));
}
