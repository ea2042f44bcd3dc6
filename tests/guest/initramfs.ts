/**
 * Builds the root file system that a test guest boots into: busybox, the kernel modules of a virtio
 * disk, the ext4 tools of this machine, and an `/init` that lets the host run commands.
 *
 * The archive is written here, byte by byte, so that neither root nor `cpio` is needed:
 *
 *     newc entry:  "070701" + 13 fields of 8 hexadecimal digits   110 bytes
 *                  name, NUL, zeros to the next multiple of 4
 *                  content, zeros to the next multiple of 4
 *     last entry:  named "TRAILER!!!", empty
 *
 * It is left uncompressed: the kernel under TCG takes longer to decompress it than QEMU to load it.
 *
 * The guest has two serial ports. ttyS0 is the kernel's console and nothing else, so that a kernel
 * message never lands inside the output of a command; ttyS1 carries commands and their results, as
 * `shell.ts` describes.
 *
 * @module
 */

import { ensurePackages, type GuestFiles } from "./install.ts";

/** Kernel modules loaded at boot, with all they depend on; those built into the kernel are skipped. */
export const MODULES: readonly string[] = ["virtio_pci", "virtio_blk", "ext4"];

/** The real ext4 tools, dynamically linked: busybox can make ext2 only and check nothing. */
const EXT4_PROGRAMS = ["mke2fs", "e2fsck"] as const;

/** Other names of these programs; they behave by the name under which they are called. */
const EXT4_ALIASES: readonly (readonly [string, string])[] = [
  ["mkfs.ext4", "mke2fs"],
  ["mkfs.ext3", "mke2fs"],
  ["mkfs.ext2", "mke2fs"],
  ["fsck.ext4", "e2fsck"],
];

/** How to unpack modules by their file name; the cloud kernels of newer Debians are compressed. */
const UNPACKERS: Readonly<Record<string, "xz" | "zstd">> = { ".xz": "xz", ".zst": "zstd" };

const MODE_DIR = 0o040755;
const MODE_PROGRAM = 0o100755;
const MODE_FILE = 0o100644;
const MODE_LINK = 0o120777;

interface Entry {
  readonly path: string;
  readonly mode: number;
  readonly content: Uint8Array;
}

/**
 * Builds the archive.
 *
 * @param files kernel modules and busybox, from `ensureGuestFiles()`
 * @param modules names of kernel modules to load, by default {@linkcode MODULES}
 * @returns a cpio archive in newc format, about 8 MB
 */
export async function buildInitramfs(
  files: GuestFiles,
  modules: readonly string[] = MODULES,
): Promise<Uint8Array<ArrayBuffer>> {
  const loaded = await loadModules(files.modules, modules);
  const init = INIT.replace("@MODULES@", loaded.map((module) => module.name).join(" "));
  const entries: Entry[] = [
    ...["proc", "sys", "dev", "run", "tmp", "mnt", "etc"].map(dir),
    program("init", new TextEncoder().encode(init)),
    program("bin/busybox", await Deno.readFile(files.busybox)),
    link("bin/sh", "busybox"),
    ...loaded.map(({ name, content }) => file(`lib/modules/${name}.ko`, content)),
    ...await ext4Entries(),
  ];
  return archive(withParents(entries));
}

/**
 * The first process of the guest.
 *
 * Each command runs in a session of its own, so that it can be killed with its children, and with
 * its output in a file. What is done is named on a FIFO, whose lines one writer turns into frames:
 * commands that end at the same time cannot mix their results. That file is there before the next
 * command is read, which may ask for it.
 *
 * Commands are no children of the shell that reads them, but of the first process, which waits: where a child ends while `read` is in
 * the middle of a line, busybox 1.35 forgets the part that it has (readcmd() in ash.c begins anew after EINTR).
 */
const INIT = `#!/bin/sh
export PATH=/sbin:/bin HOME=/ TERM=dumb
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs run /run
busybox mount -t tmpfs tmp /tmp
busybox --install -s /bin
for module in @MODULES@; do insmod /lib/modules/$module.ko || echo "init: no $module"; done
dmesg -n 8

exec 3<>/dev/ttyS1
stty raw -echo <&3
mkfifo /run/done
exec 4<>/run/done

while read -r id status <&4; do
  printf '\\036%s %s %s\\n' "$id" "$status" "$(stat -c %s "/run/$id.out")"
  cat "/run/$id.out"
  rm -f "/run/$id.sh" "/run/$id.pid" "/run/$id.out"
done >&3 &

serve() {
  printf %s "$2" | base64 -d >"/run/$1.sh"
  setsid sh "/run/$1.sh" </dev/null >"/run/$1.out" 2>&1 3>&- 4>&- &
  echo $! >"/run/$1.pid"
  wait $!
  echo "$1 $?" >&4
}

printf '\\036ready\\n' >&3
while read -r id words <&3; do
  : >"/run/$id.out"
  (serve "$id" "$words" &)
done &
wait
`;

/** Reads modules and all that they depend on, in an order in which they can be loaded. */
async function loadModules(
  dir: string,
  names: readonly string[],
): Promise<{ name: string; content: Uint8Array }[]> {
  const paths = moduleFiles(dir);
  const builtIn = await builtInModules(dir);
  const order = new Map<string, Uint8Array>();
  const visit = async (name: string): Promise<void> => {
    if (order.has(name) || builtIn.has(name)) return;
    const path = paths.get(name);
    if (path === undefined) throw new Error(`the kernel in ${dir} has no module ${name}`);
    const content = await readModule(path);
    for (const dependency of moduleDependencies(content)) await visit(dependency);
    order.set(name, content);
  };
  for (const name of names) await visit(name);
  return Array.from(order, ([name, content]) => ({ name, content }));
}

/** Finds module files below a directory: name, with underscores, to path. */
function moduleFiles(dir: string): Map<string, string> {
  const paths = new Map<string, string>();
  for (const entry of Deno.readDirSync(dir)) {
    const path = `${dir}/${entry.name}`;
    if (entry.isDirectory) moduleFiles(path).forEach((value, key) => paths.set(key, value));
    const name = /^(.+)\.ko(\.\w+)?$/.exec(entry.name)?.[1];
    if (entry.isFile && name !== undefined) paths.set(name.replaceAll("-", "_"), path);
  }
  return paths;
}

/** Modules that are part of the kernel image. */
async function builtInModules(dir: string): Promise<Set<string>> {
  const text = await Deno.readTextFile(`${dir}/modules.builtin`);
  const names = text.split("\n").map((line) => /([^/]+)\.ko$/.exec(line)?.[1]);
  return new Set(names.filter((name) => name !== undefined).map((n) => n.replaceAll("-", "_")));
}

async function readModule(path: string): Promise<Uint8Array> {
  const unpacker = UNPACKERS[path.slice(path.lastIndexOf("."))];
  if (unpacker === undefined) return await Deno.readFile(path);
  const { [unpacker]: unpackerPath } = await ensurePackages([unpacker]);
  const output = await new Deno.Command(unpackerPath, { args: ["-dcq", path] }).output();
  if (!output.success) throw new Error(`${unpacker} cannot unpack ${path}`);
  return output.stdout;
}

/**
 * What a module needs to be loaded before it: the `depends=` string of its `.modinfo` section. The
 * file modules.dep would say it too, but it is made when a kernel is installed, and this one is not.
 */
function moduleDependencies(content: Uint8Array): string[] {
  const text = new TextDecoder("latin1").decode(content);
  const list = /\0depends=([\w,-]*)\0/.exec(text)?.[1] ?? "";
  return list.split(",").filter((name) => name !== "").map((name) => name.replaceAll("-", "_"));
}

/** This machine's ext4 tools with the shared libraries that they load, at the same paths. */
async function ext4Entries(): Promise<Entry[]> {
  const paths = await ensurePackages(EXT4_PROGRAMS);
  const libraries = new Set<string>();
  for (const name of EXT4_PROGRAMS) {
    (await sharedLibraries(paths[name])).forEach((path) => libraries.add(path));
  }
  const entries = EXT4_ALIASES.map(([alias, name]) => link(`sbin/${alias}`, name));
  for (const name of EXT4_PROGRAMS) {
    entries.push(program(`sbin/${name}`, await Deno.readFile(paths[name])));
  }
  for (const path of libraries) {
    entries.push(program(path.slice(1), await Deno.readFile(path)));
  }
  // Without it mke2fs knows no "ext4". A machine that has none makes do with the library's defaults.
  const config = await Deno.readFile("/etc/mke2fs.conf").catch(() => undefined);
  if (config !== undefined) entries.push(file("etc/mke2fs.conf", config));
  return entries;
}

async function sharedLibraries(path: string): Promise<string[]> {
  const output = await new Deno.Command("ldd", { args: [path] }).output();
  if (!output.success) throw new Error(`ldd ${path} failed: the ext4 tools cannot be copied`);
  const lines = new TextDecoder().decode(output.stdout).split("\n");
  return lines.map((line) => /(?:=> |^\s*)(\/\S+) \(0x/.exec(line)?.[1])
    .filter((library) => library !== undefined);
}

const dir = (path: string): Entry => ({ path, mode: MODE_DIR, content: new Uint8Array() });
const file = (path: string, content: Uint8Array): Entry => ({ path, mode: MODE_FILE, content });
const program = (path: string, content: Uint8Array): Entry => ({
  path,
  mode: MODE_PROGRAM,
  content,
});
const link = (path: string, target: string): Entry => ({
  path,
  mode: MODE_LINK,
  content: new TextEncoder().encode(target),
});

/** Puts every directory before what is in it: the kernel makes none by itself. */
function withParents(entries: readonly Entry[]): Entry[] {
  const all = new Map<string, Entry>();
  for (const entry of entries) {
    const parts = entry.path.split("/");
    for (let i = 1; i < parts.length; i++) {
      const parent = parts.slice(0, i).join("/");
      if (!all.has(parent)) all.set(parent, dir(parent));
    }
    if (!all.has(entry.path)) all.set(entry.path, entry);
  }
  return [...all.values()];
}

function archive(entries: readonly Entry[]): Uint8Array<ArrayBuffer> {
  const all = [...entries, { path: "TRAILER!!!", mode: 0, content: new Uint8Array() }];
  const parts = all.flatMap((entry, index) => {
    const name = new TextEncoder().encode(`${entry.path}\0`);
    const header = headerOf(entry, { inode: index + 1, nameSizeBytes: name.length });
    return [padded([header, name]), padded([entry.content])];
  });
  return joined(parts);
}

/** Fields in order: ino mode uid gid nlink mtime filesize devmajor devminor rdev(2) namesize check. */
function headerOf(
  entry: Entry,
  { inode, nameSizeBytes }: { inode: number; nameSizeBytes: number },
): Uint8Array {
  const sizeBytes = entry.content.length;
  const fields = [inode, entry.mode, 0, 0, 1, 0, sizeBytes, 0, 0, 0, 0, nameSizeBytes, 0];
  const digits = fields.map((field) => field.toString(16).padStart(8, "0"));
  return new TextEncoder().encode(`070701${digits.join("")}`);
}

function padded(parts: readonly Uint8Array[]): Uint8Array {
  const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0);
  return joined([...parts, new Uint8Array((4 - sizeBytes % 4) % 4)]);
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}
