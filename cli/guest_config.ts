/**
 * What a guest has to be told to use a disk: `kelpie disk qemu` and `kelpie disk libvirt`.
 *
 * A vhost-user back end reads and writes the guest's memory itself, so that memory must be shared. Two
 * ways say so to QEMU: `-numa node,memdev=mem0` wants `-m` of the same size beside it, while
 * `-machine memory-backend=mem0` takes the size from the object and merges with any other `-machine`. The
 * second one asks nothing of the user and is what is printed.
 *
 * `reconnect` is what lets the agent be restarted or upgraded under a running guest.
 *
 * libvirt runs QEMU as a user of its own unless the domain says otherwise, and the agent's sockets are for the agent's user only:
 * hence the `<seclabel>`. libvirt changes the owner of no vhost-user socket, and QEMU, which has been told to reconnect, would wait
 * without a word.
 *
 * @module
 */
import { parseSize } from "../agent/config.ts";
import { diskSockets } from "../agent/map/names.ts";
import {
  type AnyCommand,
  type CommandContext,
  countArgument,
  diskArgument,
  examples,
  sizeText,
} from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Seconds between two attempts of QEMU to reach a restarted agent. */
const RECONNECT_SECONDS = 1;

/** Memory of a guest that is not described otherwise. */
const MEMORY_USUAL = "2G";

/** Queues of a disk that is not described otherwise; a guest uses as many as it has CPUs. */
const QUEUES_USUAL = 4;

/** Queues that a disk of ours offers; QEMU refuses to start with more. */
const QUEUES_MAX = 64;

/** More CPUs than any host has that a domain is printed for. */
const CPUS_MAX = 1024;

/** Most disks of one guest that one command describes: the slots of a PCI bus. */
const DISKS_MAX = 26;

/** What a guest's configuration is made from. */
export interface GuestOptions {
  readonly runDir: string;
  /** Names of disks that there are. */
  readonly disks: readonly string[];
  /** Memory of the guest; 0 leaves out what describes it. */
  readonly memoryBytes: number;
  /** Queues of each disk. */
  readonly queues: number;
}

/** …and from which, where libvirt starts it. */
export interface LibvirtOptions extends GuestOptions {
  /** Who owns the agent's sockets, as numbers. */
  readonly owner: { readonly uid: number; readonly gid: number };
}

/**
 * Arguments of `qemu-system-…`.
 *
 * @returns one line per device; split at white space, as `$(...)` does
 * @throws CommandError where a path cannot survive that splitting
 */
export function qemuArguments(options: GuestOptions): string[] {
  const lines: string[] = [];
  if (options.memoryBytes > 0) {
    const size = exactSize(options.memoryBytes);
    lines.push(`-object memory-backend-memfd,id=mem0,size=${size},share=on`);
    lines.push("-machine memory-backend=mem0");
  }
  options.disks.forEach((disk, index) => {
    const path = diskSockets(options.runDir, disk).readWrite;
    if (!/^[\w/.,:@%+=-]+$/.test(path)) {
      throw new CommandError(
        ExitCode.Failure,
        `the socket path ${
          JSON.stringify(path)
        } has a character that the shell would not leave alone`,
        { hint: "choose another --run-dir for the agent" },
      );
    }
    // QEMU takes a comma for the end of a value unless it is doubled.
    const escaped = path.replaceAll(",", ",,");
    const id = `kelpie${index}`;
    lines.push(`-chardev socket,id=${id},path=${escaped},reconnect=${RECONNECT_SECONDS}`);
    lines.push(`-device vhost-user-blk-pci,chardev=${id},num-queues=${options.queues}`);
  });
  return lines;
}

/** A size as QEMU takes it, without rounding. */
function exactSize(bytes: number): string {
  for (const [unit, power] of [["G", 3], ["M", 2], ["K", 1]] as const) {
    if (bytes % 1024 ** power === 0) return `${bytes / 1024 ** power}${unit}`;
  }
  return String(bytes);
}

/**
 * XML for `virsh edit`: `<memoryBacking>` and `<seclabel>` for the domain, and one `<disk>` per disk for its
 * `<devices>`. libvirt refuses serial, cache, iotune, discard, readonly and snapshot settings on such
 * disks; the agent looks after those.
 */
export function libvirtFragments(options: LibvirtOptions): string {
  return [
    "<!-- below <domain>: the guest's memory, shared with the agent, and QEMU as the agent's user, whose sockets they are -->",
    ...memoryBacking(),
    ...securityLabel(options),
    "",
    "<!-- below <devices> -->",
    ...diskElements(options),
    "",
  ].join("\n");
}

/**
 * A whole domain, ready for `virsh define`.
 *
 * @param options.name of the domain
 * @param options.cpus of the guest
 */
export function libvirtDomain(
  options: LibvirtOptions & { readonly name: string; readonly cpus: number },
): string {
  const indented = (lines: string[], depth: number) =>
    lines.map((line) => `${" ".repeat(depth)}${line}`);
  return [
    "<domain type='kvm'>",
    `  <name>${escapeXml(options.name)}</name>`,
    `  <memory unit='KiB'>${Math.ceil(options.memoryBytes / 1024)}</memory>`,
    `  <vcpu>${options.cpus}</vcpu>`,
    "  <os>",
    "    <type arch='x86_64' machine='q35'>hvm</type>",
    "    <boot dev='hd'/>",
    "  </os>",
    "  <features>",
    "    <acpi/>",
    "  </features>",
    "  <cpu mode='host-passthrough'/>",
    ...indented(memoryBacking(), 2),
    "  <devices>",
    ...indented(diskElements(options), 4),
    "    <console type='pty'/>",
    "  </devices>",
    ...indented(securityLabel(options), 2),
    "</domain>",
    "",
  ].join("\n");
}

function memoryBacking(): string[] {
  return [
    "<memoryBacking>",
    "  <source type='memfd'/>",
    "  <access mode='shared'/>",
    "</memoryBacking>",
  ];
}

function securityLabel({ owner: { uid, gid } }: LibvirtOptions): string[] {
  return [
    "<seclabel type='static' model='dac' relabel='yes'>",
    `  <label>+${uid}:+${gid}</label>`,
    "</seclabel>",
  ];
}

function diskElements({ runDir, disks, queues }: GuestOptions): string[] {
  return disks.flatMap((disk, index) => [
    "<disk type='vhostuser' device='disk'>",
    `  <driver name='qemu' type='raw' queues='${queues}'/>`,
    `  <source type='unix' path='${escapeXml(diskSockets(runDir, disk).readWrite)}'>`,
    `    <reconnect enabled='yes' timeout='${RECONNECT_SECONDS}'/>`,
    "  </source>",
    `  <target dev='vd${String.fromCharCode(0x61 + index)}' bus='virtio'/>`,
    "</disk>",
  ]);
}

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("'", "&apos;");
}

/** Adds `qemu` and `libvirt` to `kelpie disk`. */
export function addGuestCommands(disk: AnyCommand, context: CommandContext): void {
  disk.command("qemu")
    .summary("print the arguments with which QEMU uses disks")
    .description(
      "Prints the arguments with which QEMU uses disks, ready for $(...). The guest's memory is shared " +
        "with the agent by -machine memory-backend=, so -m is not needed.",
    )
    .argument("<name...>", "disks of one guest", collectDisks)
    .option("--memory <size>", "memory of the guest", sizeText, MEMORY_USUAL)
    .option("--no-memory", "leave the memory out: it is shared already")
    .option("--queues <count>", "queues of each disk", queuesArgument, QUEUES_USUAL)
    .addHelpText(
      "after",
      examples("qemu-system-x86_64 -accel kvm -smp 4 $(kelpie disk qemu web --memory 4G)"),
    )
    .action(async (names, { memory, queues }) => {
      const memoryBytes = memory === false ? 0 : parseSize(memory);
      await checkThere(context, names);
      const { runDir } = context;
      for (const line of qemuArguments({ runDir, disks: names, memoryBytes, queues })) {
        context.output.line(line);
      }
    });

  disk.command("libvirt")
    .summary("print the XML with which libvirt uses disks")
    .description(
      "Prints the elements that a libvirt domain needs to use disks, or a whole domain.",
    )
    .argument("<name...>", "disks of one guest", collectDisks)
    .option("--full", "a whole domain, named after the first disk")
    .option("--memory <size>", "memory of that domain", sizeText, MEMORY_USUAL)
    .option("--cpus <count>", "CPUs of that domain", cpusArgument, QUEUES_USUAL)
    .option("--queues <count>", "queues of each disk", queuesArgument, QUEUES_USUAL)
    .addHelpText(
      "after",
      examples("kelpie disk libvirt web", "kelpie disk libvirt --full web > web.xml"),
    )
    .action(async (names, { full, memory, cpus, queues }) => {
      await checkThere(context, names);
      const memoryBytes = parseSize(memory);
      const { runDir } = context;
      const options = { runDir, disks: names, memoryBytes, queues, owner: await ownerOf(runDir) };
      context.terminal.print(
        full ? libvirtDomain({ ...options, name: names[0], cpus }) : libvirtFragments(options),
      );
    });
}

const queuesArgument = countArgument({ min: 1, max: QUEUES_MAX });
const cpusArgument = countArgument({ min: 1, max: CPUS_MAX });

function collectDisks(name: string, previous: string[] | undefined): string[] {
  const disks = [...previous ?? [], diskArgument(name)];
  if (disks.length > DISKS_MAX) {
    throw new CommandError(ExitCode.Usage, `${disks.length} disks are too many at once`);
  }
  return disks;
}

/** Who owns an agent's run directory: its sockets there belong to the same. */
async function ownerOf(runDir: string): Promise<LibvirtOptions["owner"]> {
  const { uid, gid } = await Deno.stat(runDir);
  return { uid: uid ?? 0, gid: gid ?? 0 };
}

/** A guest that waits for the socket of a disk that is not there would wait for ever. */
async function checkThere(context: CommandContext, names: readonly string[]): Promise<void> {
  using client = context.client();
  for (const name of names) await client.disk(name);
}
