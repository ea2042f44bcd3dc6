/**
 * Several hosts on one machine, each with an agent of its own, for tests, the thrasher and the demo.
 *
 *     as root                                             else
 *
 *     ┌ switch ─────────────── bridge ┐                   one network, loopback
 *     │    p1         p2         p3   │                   127.0.0.1, 127.0.0.2, 127.0.0.3
 *     └────┼──────────┼──────────┼────┘
 *     ┌ host 1 ┐ ┌ host 2 ┐ ┌ host 3 ┐
 *     │  eth0  │ │  eth0  │ │  eth0  │                   hosts that can only be killed, stopped and
 *     │10.77.0.1 │10.77.0.2 │10.77.0.3                   made slow
 *     └────────┘ └────────┘ └────────┘
 *
 * Each host is a process that does nothing but hold a network and a mount namespace; the switch is another. They
 * die with the thread that made them, however that ends, and with them go the namespaces, the links, the addresses and
 * the file systems that were mounted there: nothing of it has a name on the machine, and nothing can be left behind.
 * Agents are entered into their host's namespaces; their sockets and files are on the machine's own file system, where
 * the test, QEMU and the command line reach them.
 *
 * What can be broken:
 *
 * | what                | how                                                           | where      |
 * | ------------------- | ------------------------------------------------------------- | ---------- |
 * | a host's death      | SIGKILL; of all at once: what a crash of the agents leaves    | everywhere |
 * | a host that hangs   | SIGSTOP, SIGCONT; in bursts: a disk that is slow              | everywhere |
 * | its cable           | its port of the switch goes down                              | namespaces |
 * | one direction of it | a neighbour's entry that names a card that is not there       | namespaces |
 * | a full disk         | its data lies in a tmpfs that is too small                    | namespaces |
 * | a disk that dies    | an ext4 on a loop device, which is shut down                  | namespaces |
 *
 * A loss of power cannot be made here: what the kernel has is kept when a process dies. The simulator does that.
 *
 * @module
 */
import { formatClusterSecret } from "../../agent/cluster_secret.ts";
import type { ClusterDocument } from "../../agent/http/documents.ts";
import { diskSockets } from "../../agent/map/names.ts";
import { cString, errno, libc, O_CLOEXEC, O_RDONLY } from "../../agent/platform/linux/libc.ts";
import { until } from "../guest/deadline.ts";
import { find } from "../guest/install.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

/** Where agents listen; data goes over the port after it. */
const PORT = 7460;
/** How long a namespace may take to be there. */
const NAMESPACE_TIMEOUT_MS = 5000;
/** No card has this address: locally administered, and not one that the kernel draws at random for long. */
const NO_CARD = "02:00:00:00:00:fe";
/** Most hosts: an octet of the address. */
const HOSTS_MAX = 100;

/** ioctl of ext4 that ends it as a dying disk would, and its way: nothing is written any more. */
const EXT4_IOC_SHUTDOWN = 0x8004587dn;
const EXT4_GOING_FLAGS_NOLOGFLUSH = 2;

/** Programs that namespaces need. */
const TOOLS = ["ip", "nsenter", "setpriv", "unshare", "mount"] as const;

/** Whether hosts can have networks of their own here. */
export async function canMakeNamespaces(): Promise<boolean> {
  if (Deno.uid() !== 0 || TOOLS.some((tool) => find(tool) === undefined)) return false;
  const { success } = await new Deno.Command("unshare", {
    args: ["--net", "--mount", "true"],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).output();
  return success;
}

/** Whether hosts can have disks that die here. */
export async function canMakeDisks(): Promise<boolean> {
  return find("mkfs.ext4") !== undefined && find("e2fsck") !== undefined &&
    await canMakeNamespaces();
}

/** What hosts are made of. */
export interface HostsOptions {
  /** How many; 3 by default. */
  readonly count?: number;
  /** `namespaces` where that is possible, by default. */
  readonly network?: "namespaces" | "loopback";
  /** What each store may use; 2G by default. */
  readonly capacity?: string;
  /** What the stores of single hosts may use, by number. */
  readonly capacities?: Readonly<Record<number, string>>;
  /** How many data paths single hosts have, by number; 1 by default. */
  readonly paths?: Readonly<Record<number, number>>;
  readonly logLevel?: "debug" | "info";
  /** How fast stores are scrubbed in the background; the program's default by default. */
  readonly scrubRate?: string;
}

/** Some hosts with a network between them. */
export class Hosts implements AsyncDisposable {
  private constructor(
    readonly work: WorkDirectory,
    readonly list: readonly Host[],
    readonly network: "namespaces" | "loopback",
    readonly holders: readonly Holder[],
  ) {}

  /** Makes hosts without agents. */
  static async make(options: HostsOptions = {}): Promise<Hosts> {
    const { count = 3, capacity = "2G" } = options;
    if (count < 1 || count > HOSTS_MAX) throw new RangeError(`${count} hosts: 1 to ${HOSTS_MAX}`);
    const canNamespaces = await canMakeNamespaces();
    const network = options.network ?? (canNamespaces ? "namespaces" : "loopback");
    const work = await WorkDirectory.make("kelpie-hosts-");
    const holders: Holder[] = [];
    try {
      const secretFile = `${work.path}/secret`;
      const secret = crypto.getRandomValues(new Uint8Array(32));
      await Deno.writeTextFile(secretFile, `${formatClusterSecret(secret)}\n`, { mode: 0o600 });
      const hosts: Host[] = [];
      const bridge = network === "namespaces" ? await Holder.make() : null;
      if (bridge !== null) {
        holders.push(bridge);
        await bridge.run(
          "ip link set lo up; ip link add switch0 type bridge; ip link set switch0 up",
        );
      }
      for (let number = 1; number <= count; number++) {
        const holder = bridge === null ? null : await plugIn(bridge, number);
        if (holder !== null) holders.push(holder);
        hosts.push(
          new Host({
            number,
            work: work.path,
            holder,
            bridge,
            secretFile,
            capacity: options.capacities?.[number] ?? capacity,
            paths: options.paths?.[number] ?? 1,
            logLevel: options.logLevel,
            scrubRate: options.scrubRate,
          }),
        );
      }
      return new Hosts(work, hosts, network, holders);
    } catch (error) {
      for (const holder of holders) holder.end();
      await work[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The host with this number, from 1. */
  host(number: number): Host {
    return this.list[number - 1];
  }

  /** Starts the first agent, then all others, which join it; resolves when all are ready. */
  async startAll(): Promise<void> {
    const [first, ...others] = this.list;
    await first.start();
    await Promise.all(others.map((host) => host.start()));
  }

  /**
   * Waits until every node is up and every group has all its copies, as some running agent sees it.
   *
   * @param options.nodes how many there shall be; all hosts unless given
   * @returns what it saw then
   */
  async untilWhole(
    { timeoutMs = 60_000, nodes = this.list.length }: { timeoutMs?: number; nodes?: number } = {},
  ): Promise<ClusterDocument> {
    let last: ClusterDocument | null = null;
    let reason = "no agent runs";
    await until(async () => {
      const host = this.list.find(({ agent, isFrozen }) => agent !== null && !isFrozen);
      try {
        last = host === undefined ? null : await host.cluster();
      } catch (error) {
        // An agent that starts has no socket yet.
        reason = (error as Error).message;
        last = null;
      }
      return last !== null && last.nodes.length === nodes && isWhole(last);
    }, {
      timeoutMs,
      what: () => last === null ? reason : `the cluster is not whole: ${describe(last)}`,
    });
    return last!;
  }

  /** What every agent has logged last, for a message of what has failed. */
  lastLogs(characters = 4000): string {
    return this.list.map(({ name, log }) => `--- ${name}\n${log.slice(-characters)}`).join("\n");
  }

  /** SIGKILL to all agents at the same moment. */
  async killAll(): Promise<void> {
    for (const host of this.list) host.agent?.killNow();
    await Promise.all(this.list.map((host) => host.kill()));
  }

  /** What agents and namespaces leave is gone when this resolves. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.killAll();
    for (const holder of this.holders) holder.end();
    await Promise.all(this.holders.map((holder) => holder.ended));
    await this.work[Symbol.asyncDispose]();
  }
}

/** Whether nothing is missing anywhere. */
export function isWhole({ hasQuorum, nodes, groups }: ClusterDocument): boolean {
  return hasQuorum && nodes.every(({ state }) => state === "up") &&
    groups.whole === groups.total && groups.joining === 0 && groups.misplaced === 0;
}

/** In a line. */
export function describe({ leader, nodes, groups, waiting }: ClusterDocument): string {
  const states = nodes.map((node) => {
    const notes = [node.suspectedBecause, node.stuck].filter((note) => note !== null);
    return `${node.name} ${node.state}${notes.length > 0 ? ` (${notes.join("; ")})` : ""}`;
  });
  const counts = Object.entries(groups).filter(([, value]) => value !== 0 && value !== "")
    .map(([name, value]) => `${name} ${value}`);
  const waits = waiting.map(({ disk, reason }) => `, ${disk} waits: ${reason}`);
  return `leader ${leader}; ${states.join(", ")}; ${counts.join(", ")}${waits.join("")}`;
}

/** Makes a host's namespaces and a cable to the switch. */
async function plugIn(bridge: Holder, number: number): Promise<Holder> {
  const holder = await Holder.make();
  try {
    await bridge.run(
      `ip link add p${number} type veth peer name eth0 netns ${holder.pid}; ` +
        `ip link set p${number} master switch0 up`,
    );
    await holder.run(
      `ip link set lo up; ip addr add 10.77.0.${number}/24 dev eth0; ip link set eth0 up`,
    );
    return holder;
  } catch (error) {
    holder.end();
    throw error;
  }
}

/** A process that holds a network and a mount namespace, and does nothing else. */
export class Holder {
  private constructor(readonly process: Deno.ChildProcess) {}

  static async make(): Promise<Holder> {
    const process = new Deno.Command("setpriv", {
      args: [
        ...["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount"],
        ...["--propagation", "private", "--", "sleep", "infinity"],
      ],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    const holder = new Holder(process);
    try {
      // By then it has its namespaces: it became `sleep` after it had made them.
      await until(async () => {
        return (await Deno.readTextFile(`/proc/${process.pid}/comm`)).trim() === "sleep";
      }, { timeoutMs: NAMESPACE_TIMEOUT_MS, intervalMs: 2, what: () => "a namespace" });
      return holder;
    } catch (error) {
      holder.end();
      throw error;
    }
  }

  get pid(): number {
    return this.process.pid;
  }

  get ended(): Promise<unknown> {
    return this.process.status;
  }

  /** What makes a program run in there. */
  get prefix(): readonly string[] {
    const of = `/proc/${this.pid}/ns`;
    return ["nsenter", `--net=${of}/net`, `--mount=${of}/mnt`, "--"];
  }

  /** Runs a script of `sh` in there, which must succeed. */
  async run(script: string): Promise<string> {
    const [program, ...args] = [...this.prefix, "sh", "-ec", script];
    const { success, stdout, stderr } = await new Deno.Command(program, { args, stdin: "null" })
      .output();
    const decoder = new TextDecoder();
    if (success) return decoder.decode(stdout);
    throw new Error(`\`${script}\` failed: ${decoder.decode(stderr).trim()}`);
  }

  /** Ends it; the namespaces are gone when nothing runs in them any more. */
  end(): void {
    try {
      this.process.kill("SIGKILL");
    } catch {
      // It has ended.
    }
  }
}

/** One host, with or without a running agent. */
export class Host {
  readonly number: number;
  readonly name: string;
  /** `host:port` */
  readonly address: string;
  readonly runDir: string;
  readonly dataDir: string;
  /** The data paths beside that one. */
  readonly morePaths: readonly string[];
  /** The agent, running or not; null before its first start. */
  agent: AgentProcess | null = null;
  /** The program that is installed: what its agent is at its next start; undefined: this source. */
  program: string | undefined;
  /** What all agents of this host have logged. */
  readonly logs: AgentProcess[] = [];
  readonly #holder: Holder | null;
  readonly #bridge: Holder | null;
  readonly #secretFile: string;
  readonly #capacity: string;
  readonly #logLevel: string;
  readonly #scrubRate: string | undefined;

  constructor(parts: {
    number: number;
    work: string;
    holder: Holder | null;
    bridge: Holder | null;
    secretFile: string;
    capacity: string;
    paths: number;
    logLevel?: "debug" | "info";
    scrubRate?: string;
  }) {
    const { number, work } = parts;
    this.number = number;
    this.name = `host${number}`;
    this.address = `${parts.holder === null ? "127.0.0" : "10.77.0"}.${number}:${PORT}`;
    this.runDir = `${work}/${number}/run`;
    this.dataDir = `${work}/${number}/data`;
    this.morePaths = Array.from(
      { length: parts.paths - 1 },
      (_, index) => `${this.dataDir}${index + 2}`,
    );
    this.#holder = parts.holder;
    this.#bridge = parts.bridge;
    this.#secretFile = parts.secretFile;
    this.#capacity = parts.capacity;
    this.#logLevel = parts.logLevel ?? "info";
    this.#scrubRate = parts.scrubRate;
  }

  /** Starts its agent and waits until it is ready. The first host founds the cluster, the others join it. */
  async start(): Promise<AgentProcess> {
    const agent = await this.launch();
    await until(async () => {
      let timer = 0;
      const late = new Promise((resolve) => timer = setTimeout(resolve, 1000));
      await Promise.race([agent.ready, late]).finally(() => clearTimeout(timer));
      return /the agent is ready\b.*\n/.test(agent.log);
    }, { timeoutMs: 60_000, what: () => `${this.name} is not ready:\n${agent.log}` });
    return agent;
  }

  /**
   * Starts its agent and does not wait.
   *
   * @param dataDir another one than the host's, which is a host without data
   */
  async launch(dataDir = this.dataDir): Promise<AgentProcess> {
    await Deno.mkdir(this.runDir.slice(0, -4), { recursive: true });
    const agent = AgentProcess.launch({
      runDir: this.runDir,
      dataDir,
      program: this.program,
      capacity: this.#capacity,
      arguments: [
        ...["--listen", this.address, "--name", this.name, "--secret-file", this.#secretFile],
        ...["--log-level", this.#logLevel],
        ...(this.#scrubRate === undefined ? [] : ["--scrub-rate", this.#scrubRate]),
        ...this.morePaths.flatMap((path) => ["--data", path]),
        ...(this.number === 1 ? [] : ["--join", this.address.replace(/\.\d+:/, ".1:")]),
      ],
      prefix: this.#holder?.prefix,
    });
    this.agent = agent;
    this.logs.push(agent);
    return agent;
  }

  /** The running agent. */
  get running(): AgentProcess {
    if (this.agent === null) throw new Error(`${this.name} has no agent`);
    return this.agent;
  }

  /** What makes a program run in its namespaces, where it has any. */
  get prefix(): readonly string[] {
    return this.#holder?.prefix ?? [];
  }

  /** Its address without the port. */
  get ip(): string {
    return this.address.slice(0, this.address.lastIndexOf(":"));
  }

  /** Path of a disk's socket. */
  socket(disk: string): string {
    return diskSockets(this.runDir, disk).readWrite;
  }

  /** Path of a disk's socket for reading only. */
  readOnlySocket(disk: string): string {
    return diskSockets(this.runDir, disk).readOnly;
  }

  /** Writes random data to a part of a disk, by the command line. */
  async fill(disk: string, offsetBytes: number, bytes: number): Promise<void> {
    const file = `${this.dataDir}.more`;
    const piece = crypto.getRandomValues(new Uint8Array(65_536));
    await Deno.writeFile(file, new Uint8Array(bytes).map((_, i) => piece[i % piece.length]));
    await this.running.check("disk", "write", disk, file, "--offset", `${offsetBytes}`);
    await Deno.remove(file);
  }

  /** All that its agents have logged. */
  get log(): string {
    return this.logs.map((agent) => agent.log).join("");
  }

  /** `kill -9`; resolves when it is gone. */
  async kill(): Promise<void> {
    const { agent } = this;
    // Before it ends: whoever looks after it must not start another one.
    this.agent = null;
    await agent?.kill();
  }

  /**
   * Looks after its agent as a service manager does, until it is ended by `kill` or `stop`: what ends by itself is started anew, as
   * the program that is installed by then.
   *
   * @returns rejects when an agent ends with an error
   */
  async supervise(): Promise<void> {
    while (this.agent !== null) {
      const { agent } = this;
      const { code } = await agent.exited;
      if (this.agent !== agent) return;
      if (code !== 0) throw new Error(`${this.name} ended with ${code}:\n${agent.log}`);
      await this.start();
    }
  }

  /** SIGTERM; resolves when it is gone, rejects when it ended with an error. */
  async stop(): Promise<void> {
    const { agent } = this;
    this.agent = null;
    await agent?.stop();
  }

  /** Whether it was frozen. */
  isFrozen = false;

  /** SIGSTOP: it is there and does nothing. */
  freeze(): void {
    this.isFrozen = true;
    this.agent?.signal("SIGSTOP");
  }

  /** SIGCONT. */
  thaw(): void {
    this.isFrozen = false;
    this.agent?.signal("SIGCONT");
  }

  /** What its agent knows of the cluster. */
  async cluster(): Promise<ClusterDocument> {
    using client = this.running.client();
    return await client.cluster();
  }

  #network(): { holder: Holder; bridge: Holder } {
    const [holder, bridge] = [this.#holder, this.#bridge];
    if (holder === null || bridge === null) throw new Error("there is no network of its own here");
    return { holder, bridge };
  }

  /** Pulls its cable out of the switch. */
  async unplug(): Promise<void> {
    await this.#network().bridge.run(`ip link set p${this.number} down`);
  }

  /** Puts it in again. */
  async plugIn(): Promise<void> {
    await this.#network().bridge.run(`ip link set p${this.number} up`);
  }

  /** What it sends to the other is lost from now on; what the other sends arrives. */
  async deafen(other: Host): Promise<void> {
    await this.#network().holder.run(
      `ip neigh replace 10.77.0.${other.number} lladdr ${NO_CARD} dev eth0 nud permanent`,
    );
  }

  /** What it sends to the other arrives again. */
  async heal(other: Host): Promise<void> {
    await this.#network().holder.run(`ip neigh del 10.77.0.${other.number} dev eth0`);
  }

  /** Puts its data, which it must not have yet, into a file system of this size; it is gone with the host. */
  async limitFileSystem(bytes: number): Promise<void> {
    const { holder } = this.#network();
    await Deno.mkdir(this.dataDir, { recursive: true, mode: 0o700 });
    await holder.run(`mount -t tmpfs -o size=${bytes},mode=0700 none '${this.dataDir}'`);
  }

  /** Makes a data path, which must not be there yet, an ext4 of this size; it is gone with the host. */
  async mountDisk(path: string, bytes: number): Promise<void> {
    const { holder } = this.#network();
    await Deno.mkdir(path, { recursive: true, mode: 0o700 });
    await holder.run(`truncate -s ${bytes} '${path}.ext4'; mkfs.ext4 -q -F '${path}.ext4'`);
    await holder.run(`mount -o loop '${path}.ext4' '${path}'`);
  }

  /** That disk dies: every request fails from now on. */
  killDisk(path: string): void {
    const { holder } = this.#network();
    const fd = libc.open(cString(`/proc/${holder.pid}/root${path}`), O_RDONLY | O_CLOEXEC, 0);
    const way = new Uint8Array(Uint32Array.of(EXT4_GOING_FLAGS_NOLOGFLUSH).buffer);
    const result = fd < 0 ? fd : libc.ioctl(fd, EXT4_IOC_SHUTDOWN, way);
    const code = errno();
    if (fd >= 0) libc.close(fd);
    if (result < 0) throw new Error(`the disk at ${path} cannot be killed (errno ${code})`);
  }

  /** It has been repaired, while no agent ran: what it had written is there again. */
  async mendDisk(path: string): Promise<void> {
    const { holder } = this.#network();
    // e2fsck ends with 1 when it has mended something.
    await holder.run(`umount '${path}'; e2fsck -fy '${path}.ext4' >/dev/null || [ $? -le 2 ]`);
    await holder.run(`mount -o loop '${path}.ext4' '${path}'`);
  }

  /** Fills what is left of that file system, or gives it free again. */
  async fillFileSystem(isFull: boolean): Promise<void> {
    const file = `'${this.dataDir}/ballast'`;
    const { holder } = this.#network();
    await holder.run(isFull ? `cat /dev/zero >${file} 2>/dev/null || true` : `rm -f ${file}`);
  }
}
