/**
 * Files that a guest writes to its disk, and how they are found again.
 *
 * @module
 */
import type { Guest } from "./guest.ts";

/** Writes random files to /mnt with checksums beside them, synced. */
export async function writeFiles(guest: Guest, name: string, mib: number): Promise<void> {
  await guest.check(`
    mkdir /mnt/${name} && cd /mnt/${name} || exit 1
    for n in $(seq ${mib}); do
      dd if=/dev/urandom of=$n bs=64k count=16 2>/dev/null || exit 1
    done
    sha256sum * >/mnt/${name}.sums && sync`);
}

/** Reads the files of {@linkcode writeFiles} from the disk, not from the guest's memory. */
export async function checkFiles(guest: Pick<Guest, "check">, ...names: string[]): Promise<void> {
  await guest.check("umount /mnt && echo 3 >/proc/sys/vm/drop_caches");
  await guest.check("e2fsck -fn /dev/vda && mount -t ext4 /dev/vda /mnt");
  for (const name of names) {
    await guest.check(`cd /mnt/${name} && sha256sum -c -s ../${name}.sums`);
  }
}

/** Writes file after file, synced one by one, and says the checksum of each: what it has said must be there. It ends at /tmp/stop. */
export function writerScript(writer: number): string {
  return `
    n=0
    cd /mnt
    while n=$((n + 1)) && [ ! -e /tmp/stop ]; do
      dd if=/dev/urandom of=w/${writer}.$n bs=16k count=$((1 + n % 12)) conv=fsync 2>/dev/null || exit 1
      sha256sum w/${writer}.$n
    done`;
}
