/**
 * Finds what the guest tests and the demo need from the machine, and gets what is missing.
 *
 * Two kinds of things are needed. Programs that run here (QEMU) have to be installed: root does it
 * with `apt-get`, anybody else is told what to install. Files that only go into the guest (a kernel,
 * a static busybox) are never installed: their Debian packages are downloaded and unpacked below
 * `.cache/guest/` of the checkout, which needs no root and changes nothing on the machine.
 *
 * Test files may run at the same time, in threads and in processes: whatever changes the machine or
 * the cache is done under one lock file, and a directory in the cache appears by rename, complete.
 *
 * @module
 */

/** Programs that can be asked for, and the Debian packages that bring them. */
const PACKAGES = {
  "qemu-system-x86_64": ["qemu-system-x86"],
  // Debian has moved it from one of these packages to the other.
  "qemu-storage-daemon": ["qemu-system-common", "qemu-utils"],
  "qemu-img": ["qemu-utils"],
  "qemu-io": ["qemu-utils"],
  "qemu-nbd": ["qemu-utils"],
  "nbdinfo": ["libnbd-bin"],
  "nbdcopy": ["libnbd-bin"],
  "openssl": ["openssl"],
  "mke2fs": ["e2fsprogs"],
  "e2fsck": ["e2fsprogs"],
  "xz": ["xz-utils"],
  "zstd": ["zstd"],
  "fio": ["fio"],
  "strace": ["strace"],
  // Without what starts it at boot.
  "libvirtd": ["libvirt-daemon", "libvirt-daemon-driver-qemu"],
  "virsh": ["libvirt-clients"],
} as const;

/** The name of a program that {@linkcode ensurePackages} can provide. */
export type ProgramName = keyof typeof PACKAGES;

/** What goes into the guest; paths on this machine. */
export interface GuestFiles {
  /** Version of the kernel, as `uname -r` prints it in the guest. */
  readonly kernelVersion: string;
  /** The kernel image that QEMU loads. */
  readonly kernel: string;
  /** The directory with the kernel's modules, searched recursively. */
  readonly modules: string;
  /** A statically linked busybox. */
  readonly busybox: string;
}

/** Where everything downloaded for guests is kept; git ignores it. */
export const CACHE_DIR: string = decodeURIComponent(
  new URL("../../.cache/guest", import.meta.url).pathname,
);

/** Depends on the architecture of the guest, which is always that of `qemu-system-x86_64`. */
const KERNEL_META_PACKAGE = "linux-image-cloud-amd64";

/** Directories searched after PATH, which leaves them out for users that are not root. */
const SYSTEM_DIRS = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/**
 * Makes sure that programs are there, installing them when this process is root.
 *
 * @param names the programs needed
 * @returns the path of each
 * @throws Error that names the packages to install, when they are missing and cannot be installed
 */
export async function ensurePackages<Name extends ProgramName>(
  names: readonly Name[],
): Promise<Record<Name, string>> {
  if (missing(names).length > 0) await withLock(() => install(names));
  const paths = names.map((name) => [name, find(name)!] as const);
  return Object.fromEntries(paths) as Record<Name, string>;
}

/**
 * Finds a program, without installing anything.
 *
 * @returns its path, or undefined when it is not on PATH nor in the system's directories
 */
export function find(program: string): string | undefined {
  const dirs = (Deno.env.get("PATH") ?? "").split(":").concat(SYSTEM_DIRS);
  return dirs.filter((dir) => dir !== "").map((dir) => `${dir}/${program}`).find(isExecutable);
}

let guestFiles: Promise<GuestFiles> | undefined;

/**
 * Makes sure that what goes into the guest is in the cache, downloading it the first time (27 MB).
 *
 * @throws Error that says what could not be downloaded and what to do about it
 */
export function ensureGuestFiles(): Promise<GuestFiles> {
  guestFiles ??= findGuestFiles();
  return guestFiles;
}

async function findGuestFiles(): Promise<GuestFiles> {
  const [kernelRoot, busybox] = [
    await unpacked("kernel", kernelPackage),
    await findBusybox(),
  ];
  const kernelName = fileNames(`${kernelRoot}/boot`).find((name) => name.startsWith("vmlinuz-"));
  if (kernelName === undefined) {
    throw new Error(`no boot/vmlinuz-* in ${kernelRoot}: remove that directory and try again`);
  }
  const kernelVersion = kernelName.slice("vmlinuz-".length);
  const modules = [`${kernelRoot}/lib/modules`, `${kernelRoot}/usr/lib/modules`]
    .map((dir) => `${dir}/${kernelVersion}`).find(exists);
  if (modules === undefined) {
    throw new Error(`no modules of ${kernelVersion} in ${kernelRoot}: remove it and try again`);
  }
  return { kernelVersion, kernel: `${kernelRoot}/boot/${kernelName}`, modules, busybox };
}

/** The machine's own busybox if that is static, else the one in Debian's package. */
async function findBusybox(): Promise<string> {
  const own = find("busybox");
  if (own !== undefined && isStatic(own)) return own;
  const root = await unpacked("busybox", () => Promise.resolve("busybox-static"));
  const path = [`${root}/bin/busybox`, `${root}/usr/bin/busybox`].find(isExecutable);
  if (path === undefined) throw new Error(`no busybox in ${root}: remove it and try again`);
  return path;
}

/** The package that the meta package stands for: its name carries the kernel's version. */
async function kernelPackage(): Promise<string> {
  const depends = await command("apt-cache", ["depends", KERNEL_META_PACKAGE]);
  const name = /Depends: (linux-image-\S+)/.exec(depends.stdout)?.[1];
  if (name === undefined) {
    throw new Error(
      `apt does not know ${KERNEL_META_PACKAGE}, the kernel that guests boot (it is Debian's). ` +
        `Run "apt-get update" as root, or unpack such a package with "dpkg -x" into ` +
        `${CACHE_DIR}/kernel`,
    );
  }
  return name;
}

/**
 * The directory in the cache with a package's files, made if it is not there.
 *
 * @param packageName is called only then, and again after the package lists were refreshed
 */
async function unpacked(dirName: string, packageName: () => Promise<string>): Promise<string> {
  const dir = `${CACHE_DIR}/${dirName}`;
  if (exists(dir)) return dir;
  await withLock(async () => {
    if (exists(dir)) return;
    try {
      await unpack(await packageName(), dir);
    } catch (error) {
      // The lists are empty on a fresh machine, and on an old one name files that are gone.
      if (Deno.uid() !== 0) throw error;
      await refreshLists();
      await unpack(await packageName(), dir);
    }
  });
  return dir;
}

/** Downloads one package and unpacks it to `dir`, which must not be there. */
async function unpack(packageName: string, dir: string): Promise<void> {
  say(`downloading ${packageName}`);
  const work = await Deno.makeTempDir({ dir: CACHE_DIR, prefix: "unpack-" });
  try {
    // apt's own user may not write here; the download is checked against the signed lists anyway.
    const options = ["-q", "-o", "APT::Sandbox::User=root"];
    await checked("apt-get", [...options, "download", packageName], { cwd: work });
    const deb = fileNames(work).find((name) => name.endsWith(".deb"));
    if (deb === undefined) throw new Error(`apt-get downloaded no file for ${packageName}`);
    await checked("dpkg", ["-x", `${work}/${deb}`, `${work}/root`]);
    await Deno.rename(`${work}/root`, dir);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

async function install(names: readonly ProgramName[]): Promise<void> {
  const absent = missing(names); // Looked up again: another process may have had the lock before.
  if (absent.length === 0) return;
  const packages = [...new Set(absent.flatMap((name) => PACKAGES[name]))];
  const what = `${absent.join(", ")} (Debian: apt-get install ${packages.join(" ")})`;
  if (Deno.uid() !== 0) throw new Error(`not found: ${what}; install it, or run this as root`);
  if (find("apt-get") === undefined) throw new Error(`not found, and no apt-get here: ${what}`);
  say(`installing ${packages.join(" ")}`);
  await refreshLists();
  const options = ["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"];
  await checked("apt-get", ["install", ...options, ...packages]);
  const still = missing(absent);
  if (still.length > 0) throw new Error(`apt-get installed ${packages}, but not ${still}`);
}

let listsRefreshed = false;

async function refreshLists(): Promise<void> {
  if (listsRefreshed) return;
  say("refreshing apt's package lists");
  await checked("apt-get", ["-q", "-o", "DPkg::Lock::Timeout=300", "update"]);
  listsRefreshed = true;
}

/** Runs `work` while no other process or thread runs any, and ends the lock with it. */
async function withLock<T>(work: () => Promise<T>): Promise<T> {
  await Deno.mkdir(CACHE_DIR, { recursive: true });
  using file = await Deno.open(`${CACHE_DIR}/lock`, { create: true, write: true });
  await file.lock(true); // Given back when the file is closed, or the process ends.
  return await work();
}

/** Runs a program to its end. Its output is kept, not shown. */
async function command(
  name: string,
  args: string[],
  options: { cwd?: string } = {},
): Promise<{ success: boolean; stdout: string; stderr: string }> {
  const path = find(name);
  if (path === undefined) {
    throw new Error(`not found: ${name}; guests are made from Debian packages with it`);
  }
  const env = { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" };
  const output = await new Deno.Command(path, { args, env, stdin: "null", ...options }).output();
  const [stdout, stderr] = [output.stdout, output.stderr].map((b) => new TextDecoder().decode(b));
  return { success: output.success, stdout, stderr };
}

async function checked(name: string, args: string[], options?: { cwd?: string }): Promise<void> {
  const { success, stdout, stderr } = await command(name, args, options);
  if (success) return;
  const reason = (stderr.trim() || stdout.trim()).split("\n").slice(-8).join("\n");
  throw new Error(`"${name} ${args.join(" ")}" failed:\n${reason}`);
}

function missing<Name extends ProgramName>(names: readonly Name[]): Name[] {
  return names.filter((name) => find(name) === undefined);
}

/** Whether an ELF program has no interpreter (PT_INTERP), hence needs no shared libraries. */
function isStatic(path: string): boolean {
  using file = Deno.openSync(path);
  const head = new Uint8Array(4096);
  const sizeBytes = file.readSync(head) ?? 0;
  const view = new DataView(head.buffer, 0, sizeBytes);
  const isElf64 = sizeBytes >= 64 && view.getUint32(0) === 0x7f454c46 && head[4] === 2;
  if (!isElf64) return false;
  const offset = Number(view.getBigUint64(32, true)); // e_phoff
  const [entrySizeBytes, count] = [view.getUint16(54, true), view.getUint16(56, true)];
  if (offset + count * entrySizeBytes > sizeBytes) return false;
  const types = Array.from(
    { length: count },
    (_, i) => view.getUint32(offset + i * entrySizeBytes, true),
  );
  return !types.includes(3); // PT_INTERP
}

function isExecutable(path: string): boolean {
  const info = stat(path);
  return info !== undefined && info.isFile && ((info.mode ?? 0) & 0o111) !== 0;
}

function exists(path: string): boolean {
  return stat(path) !== undefined;
}

function stat(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch {
    return undefined;
  }
}

function fileNames(dir: string): string[] {
  return exists(dir) ? Array.from(Deno.readDirSync(dir), (entry) => entry.name) : [];
}

/** Progress goes to stderr: stdout belongs to the data of whoever uses this. */
function say(text: string): void {
  console.error(`guest: ${text}`);
}
