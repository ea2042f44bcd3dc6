/**
 * Which snapshot of which cluster a snapshot is, also where it was restored: there it has a layer of its own, and the disk's attribute
 * {@linkcode RESTORED_ATTRIBUTE} says of which snapshot its newest one is the copy.
 *
 *     kelpie.restored = CLUSTER/FAMILY/DISK/LAYER=LAYER HERE
 *
 * Invariant: it speaks of the snapshot with that layer here, and of no other; layers are never used twice, so what it says stays true
 * whatever becomes of the disk.
 *
 * @module
 */
import type { SnapshotIdentity } from "../agent/backup/format.ts";
import type { DiskDocument, SnapshotDocument } from "../agent/http/documents.ts";

/** Attribute of a disk that was restored. */
export const RESTORED_ATTRIBUTE = "kelpie.restored";

/** The snapshot itself. */
export function identityOf(
  cluster: string,
  disk: Pick<DiskDocument, "id" | "family">,
  { layer }: Pick<SnapshotDocument, "layer">,
): SnapshotIdentity {
  return { cluster, disk: disk.id, family: disk.family, layer };
}

/**
 * The value of the attribute.
 *
 * @param origin what was restored
 * @param layer of the snapshot that is its copy
 */
export function restoredValue(origin: SnapshotIdentity, layer: number): string {
  return `${origin.cluster}/${origin.family}/${origin.disk}/${origin.layer}=${layer}`;
}

/**
 * Whether a snapshot of a disk holds what another one does, as that one or as its copy.
 *
 * @param cluster id of the cluster that they are in
 */
export function isSnapshot(
  wanted: SnapshotIdentity,
  cluster: string,
  disk: Pick<DiskDocument, "attributes">,
  { layer }: Pick<SnapshotDocument, "layer">,
): boolean {
  if (wanted.cluster === cluster && wanted.layer === layer) return true;
  return disk.attributes[RESTORED_ATTRIBUTE] === restoredValue(wanted, layer);
}
