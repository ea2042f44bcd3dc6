/**
 * libvirt's daemon on a host of hosts.ts, beside that host's agent, with nothing of it on the machine itself.
 *
 *     ┌ host 1's mount and network namespace ────┐      ┌ host 2's ─────────────┐
 *     │ /run, /etc/libvirt, /var/lib, …: its own  │      │                       │
 *     │ /run/kelpie: its agent's run directory    │      │ the same              │
 *     │ ┌ a process namespace ──────────────────┐ │ tcp  │                       │
 *     │ │ sh ── libvirtd ── QEMU …              │◀┼──────┼▶ libvirtd ── QEMU …   │
 *     │ └───────────────────────────────────────┘ │      │                       │
 *     └───────────────────────────────────────────┘      └───────────────────────┘
 *
 * To both daemons the agent's sockets have the same path, as they have on hosts with packages of Kelpie: a domain means the same on
 * both. All that a daemon has started ends with it, since it is in the process namespace of a shell that dies with the thread that made
 * it. The shell is there for what the daemon's children leave behind: the first process of a namespace inherits
 * orphans, and libvirt takes one that nobody has buried for one that cannot be killed.
 *
 * @module
 */
import { until } from "../guest/deadline.ts";
import { ensurePackages } from "../guest/install.ts";
import type { Host } from "./hosts.ts";

/** Where an agent's run directory is to the daemon of its host: where packages have it, too. */
export const RUN_DIR = "/run/kelpie";

/** How long the daemon may take to listen, and to find out what QEMU can do, which it does at the first connection. */
const START_TIMEOUT_MS = 120_000;

/** The port that libvirt has for plain TCP. */
const PORT = 16509;

/** Directories of the machine that the daemon writes to, which become its own. */
const OWN_DIRS = ["/run", "/etc/libvirt", "/var/lib", "/var/log", "/var/cache"];

/** `libvirtd.conf`: anybody in the host's network may command it, and hosts can be told apart. */
function daemonSettings({ ip, number }: Host): string {
  const hostUuid = `00000000-0000-4000-8000-${String(number).padStart(12, "0")}`;
  return `
    listen_tls = 0
    listen_tcp = 1
    tcp_port = "${PORT}"
    listen_addr = "${ip}"
    auth_tcp = "none"
    auth_unix_rw = "none"
    host_uuid = "${hostUuid}"
    log_outputs = "3:stderr"`;
}

/** `qemu.conf`: no daemon beside, no control groups. QEMU runs as whom libvirt takes by itself, where the domain says nothing. */
const QEMU_SETTINGS = `
    security_driver = "none"
    stdio_handler = "file"
    cgroup_controllers = [ ]
    namespaces = [ ]`;

/** A running daemon; see the head of the file. */
export class Libvirt implements AsyncDisposable {
  readonly #host: Host;
  readonly #process: Deno.ChildProcess;
  readonly #reading: Promise<void>;
  #log = "";

  private constructor(host: Host, process: Deno.ChildProcess) {
    this.#host = host;
    this.#process = process;
    this.#reading = process.stderr.pipeThrough(new TextDecoderStream())
      .pipeTo(new WritableStream({ write: (text) => void (this.#log += text) }));
  }

  /**
   * Starts it, and waits until it takes commands.
   *
   * @param host of its own network; its agent has been started before
   * @throws Error with what it said when it does not come up
   */
  static async start(host: Host): Promise<Libvirt> {
    const { libvirtd } = await ensurePackages(["libvirtd", "virsh"]);
    const script = `
      for dir in ${OWN_DIRS.join(" ")}; do
        mkdir -p $dir
        mount -t tmpfs none $dir
      done
      mkdir ${RUN_DIR}
      mount --bind '${host.runDir}' ${RUN_DIR}
      cat >/etc/libvirt/libvirtd.conf <<END${daemonSettings(host)}
END
      cat >/etc/libvirt/qemu.conf <<END${QEMU_SETTINGS}
END
      # It looks for the user before it reads that it needs none. Only the package that starts it at boot makes one.
      cp /etc/passwd /etc/group /run
      grep -q ^libvirt-qemu: /run/passwd || echo libvirt-qemu:x:64055:64055::/:/bin/false >>/run/passwd
      grep -q ^libvirt-qemu: /run/group || echo libvirt-qemu:x:64055: >>/run/group
      mount --bind /run/passwd /etc/passwd
      mount --bind /run/group /etc/group
      exec unshare --pid --fork --kill-child --mount-proc sh -c '${libvirtd} --listen & wait'`;
    const process = new Deno.Command("setpriv", {
      args: ["--pdeathsig", "KILL", "--", ...host.prefix, "sh", "-ec", script],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const libvirt = new Libvirt(host, process);
    try {
      let reason = "";
      await until(async () => {
        const { success, text } = await libvirt.run("version");
        reason = text;
        return success;
      }, {
        timeoutMs: START_TIMEOUT_MS,
        intervalMs: 100,
        what: () => `libvirt on ${host.name}: ${reason}\n${libvirt.#log}`,
      });
      return libvirt;
    } catch (error) {
      await libvirt[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** What names it to another daemon. */
  get uri(): string {
    return `qemu+tcp://${this.#host.ip}/system`;
  }

  /** What it, and QEMU below it, have said. */
  async log(): Promise<string> {
    const { text } = await this.#inside(["sh", "-c", "tail -n 20 /var/log/libvirt/qemu/*.log"]);
    return `--- libvirtd on ${this.#host.name}:\n${this.#log.slice(-3000)}\n--- QEMU:\n${text}`;
  }

  /** Runs a command of `virsh` there. */
  run(...args: readonly string[]): Promise<{ success: boolean; text: string }> {
    return this.#inside(["virsh", "--quiet", "--connect", "qemu:///system", ...args]);
  }

  /**
   * Runs one that must succeed.
   *
   * @returns what it printed, without white space at the ends
   */
  async check(...args: readonly string[]): Promise<string> {
    const { success, text } = await this.run(...args);
    if (success) return text.trim();
    throw new Error(`virsh ${args.join(" ")}:\n${text}\n${await this.log()}`);
  }

  async #inside(line: readonly string[]): Promise<{ success: boolean; text: string }> {
    const [program, ...args] = [...this.#host.prefix, ...line];
    const { success, stdout, stderr } = await new Deno.Command(program, { args, stdin: "null" })
      .output();
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    return { success, text: `${out}${err}` };
  }

  /** Ends it, and every QEMU below it. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.#process.status;
    await this.#reading;
  }
}
