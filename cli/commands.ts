/**
 * Which commands there are, and where the code of each is. It is loaded when a command is called, so that none pays for the others:
 * what a program of this runtime has to read and to run first is most of what a small command takes.
 *
 *     kelpie disk snapshot web@a      snapshot_commands.ts
 *     kelpie disk --help              all of disk
 *     kelpie completions bash         everything
 *
 * Invariant: what is loaded is all that the command line can be about, so that its help, its errors and what it was probably
 * meant to be are the same as if everything were there.
 *
 * @module
 */
import { type AnyCommand, type CommandContext, examples } from "./context.ts";
import { addHelpCommand } from "./help_command.ts";

/** Adds commands to the program, or to a group of it. */
type Add = (parent: AnyCommand, context: CommandContext) => void;

/** Commands whose code is loaded together. */
export interface Part {
  /** Names and aliases of what is added; the tests hold them to that. */
  readonly names: readonly string[];
  /** It tells of all other commands, which are loaded with it. */
  readonly needsAll?: boolean;
  readonly load: () => Promise<Add>;
}

/** Commands with a name in front of theirs. */
export interface Group {
  readonly name: string;
  readonly summary: string;
  readonly description: string;
  readonly examples: readonly string[];
  /** A command of it, for the help of `help`. */
  readonly example: string;
  readonly parts: readonly Part[];
}

const DISK: Group = {
  name: "disk",
  summary: "make, look at and change disks",
  description: "Makes, looks at and changes disks.",
  examples: ["kelpie disk create web 20G", "kelpie disk list"],
  example: "create",
  parts: [
    {
      names: [
        ...["create", "list", "ls", "info", "delete", "rm", "resize", "rename", "mv", "set"],
        ...["release", "lock", "check"],
      ],
      load: async () => (await import("./disk_commands.ts")).addDiskCommands,
    },
    { names: ["limit"], load: async () => (await import("./limit_command.ts")).addLimitCommand },
    {
      names: ["read", "write", "import", "export", "discard"],
      load: async () => (await import("./disk_data.ts")).addDataCommands,
    },
    {
      names: ["preallocate"],
      load: async () => (await import("./preallocate_command.ts")).addPreallocateCommand,
    },
    {
      names: ["backup", "restore"],
      load: async () => (await import("./backup_commands.ts")).addBackupCommands,
    },
    {
      names: ["qemu", "libvirt"],
      load: async () => (await import("./guest_config.ts")).addGuestCommands,
    },
    {
      names: ["snapshot", "rollback"],
      load: async () => (await import("./snapshot_commands.ts")).addSnapshotCommands,
    },
    { names: ["clone"], load: async () => (await import("./clone_command.ts")).addCloneCommand },
    {
      names: ["flatten"],
      load: async () => (await import("./flatten_command.ts")).addFlattenCommand,
    },
    { names: ["tree"], load: async () => (await import("./tree_command.ts")).addTreeCommand },
    {
      names: ["map", "object"],
      load: async () => (await import("./map_commands.ts")).addMapCommands,
    },
    {
      names: ["trash", "undelete", "purge"],
      load: async () => (await import("./trash_commands.ts")).addTrashCommands,
    },
    {
      names: ["schedule"],
      load: async () => (await import("./schedule_commands.ts")).addScheduleCommands,
    },
  ],
};

const NODE: Group = {
  name: "node",
  summary: "look at and change nodes",
  description: "Looks at the nodes of the cluster, and changes where data belongs.",
  examples: ["kelpie node list", "kelpie node drain host-1 --wait"],
  example: "drain",
  parts: [{
    names: ["list", "ls", "info", "drain", "undrain", "weight", "zone", "remove", "rm"],
    load: async () => (await import("./node_commands.ts")).addNodeCommands,
  }],
};

const CLUSTER: Group = {
  name: "cluster",
  summary: "secret, settings and version of the cluster",
  description: "What all nodes of the cluster share.",
  examples: ["kelpie cluster settings"],
  example: "settings",
  parts: [
    {
      names: ["secret", "recover", "upgrade", "settings"],
      load: async () => (await import("./cluster_commands.ts")).addClusterCommands,
    },
    {
      names: ["backup", "restore"],
      load: async () => (await import("./cluster_backup.ts")).addClusterBackupCommands,
    },
  ],
};

/** All commands, in the order in which help lists them. */
export const COMMANDS: readonly (Part | Group)[] = [
  { names: ["agent"], load: async () => (await import("./agent_command.ts")).addAgentCommand },
  { names: ["status"], load: async () => (await import("./status_command.ts")).addStatusCommand },
  DISK,
  NODE,
  CLUSTER,
  { names: ["top"], load: async () => (await import("./top_command.ts")).addTopCommand },
  { names: ["nbd"], load: async () => (await import("./nbd_command.ts")).addNbdCommand },
  { names: ["bench"], load: async () => (await import("./bench_command.ts")).addBenchCommand },
  {
    names: ["completions"],
    needsAll: true,
    load: async () => (await import("./completions.ts")).addCompletionsCommand,
  },
  {
    names: ["version"],
    load: async () => (await import("./version_command.ts")).addVersionCommand,
  },
];

/**
 * Adds commands to the program.
 *
 * @param words what the command line begins with: the command that they are the names of, or the group, is all that is added.
 * Where they are no names everything is, and without any what has no name in front. Left out: everything
 */
export async function addCommands(
  program: AnyCommand,
  context: CommandContext,
  words?: readonly string[],
): Promise<void> {
  const called = find(COMMANDS, words?.[0]);
  const needsAll = called === undefined || (!isGroup(called) && called.needsAll === true);
  for (const entry of needsAll ? COMMANDS : [called]) {
    if (!isGroup(entry)) (await entry.load())(program, context);
    else await addGroup(program, context, entry, partsOf(entry, words));
  }
  addHelpCommand(program, { path: program.name(), example: `${DISK.name} ${DISK.example}` });
}

async function addGroup(
  program: AnyCommand,
  context: CommandContext,
  { name, summary, description, ...group }: Group,
  parts: readonly Part[],
): Promise<void> {
  const command: AnyCommand = program.command(name)
    .summary(summary)
    .description(description)
    .addHelpText("after", examples(...group.examples));
  for (const part of parts) (await part.load())(command, context);
  addHelpCommand(command, { path: `${program.name()} ${name}`, example: group.example });
}

/** What is needed of a group. */
function partsOf({ name, parts }: Group, words: readonly string[] | undefined): readonly Part[] {
  if (words?.length === 0) return [];
  const called = words?.[0] === name ? find(parts, words[1]) : undefined;
  return called === undefined ? parts : [called];
}

function find<T extends Part | Group>(
  entries: readonly T[],
  word: string | undefined,
): T | undefined {
  if (word === undefined) return undefined;
  return entries.find((entry) => isGroup(entry) ? entry.name === word : entry.names.includes(word));
}

function isGroup(entry: Part | Group): entry is Group {
  return "parts" in entry;
}
