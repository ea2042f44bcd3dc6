/**
 * libvirt runs a guest on a disk of ours, with the XML that `kelpie disk libvirt` prints, and moves it between hosts.
 *
 *     host 1                          host 2                      host 3
 *     libvirtd ─ virsh migrate ─────▶ libvirtd
 *       QEMU ──── the guest ────────▶   QEMU
 *         │ /run/kelpie/web.sock          │ /run/kelpie/web.sock
 *       agent                           agent                     agent
 *
 * A task of its own, `./dev libvirt`: it installs libvirt, and takes longer than the tests that run each time.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import { until, within } from "./guest/deadline.ts";
import { checkFiles, writerScript } from "./guest/files.ts";
import { ioErrorsIn } from "./guest/guest.ts";
import { buildInitramfs } from "./guest/initramfs.ts";
import { ensureGuestFiles } from "./guest/install.ts";
import { GuestShell } from "./guest/shell.ts";
import { kelpie } from "./tools/agent_process.ts";
import { canMakeNamespaces, type Host, Hosts } from "./cluster/hosts.ts";
import { Libvirt, RUN_DIR } from "./cluster/libvirt.ts";
import { compareReplicas } from "./cluster/replicas.ts";

const DISK = "web";
/** How long anything of a guest may take: TCG on a busy machine is slow. */
const TIMEOUT_MS = 60_000;
/** What a guest writes before it counts as going on. */
const FILES = 2;

/**
 * How a guest moves under TCG, whose tracking of dirty pages loses some (see `Guest.migrate`): MiB a second while it runs, the least
 * that libvirt takes, and milliseconds for which it may be stopped, so many that it stops at once and the rest follows at full
 * speed.
 */
const BANDWIDTH_TCG = "1", DOWNTIME_TCG = "2000000";

/** The guest in whatever QEMU it is: each one connects its serial ports to here. */
class LibvirtGuest implements AsyncDisposable {
  readonly #listeners: Record<"shell" | "console", Deno.UnixListener>;
  readonly #shells: GuestShell[] = [];
  readonly #consoles: Deno.Conn[] = [];
  readonly #readers: Promise<void>[] = [];
  #console = "";

  /** @param dir where its sockets are made: `shell` and `console` */
  constructor(dir: string) {
    const listen = (name: string) => Deno.listen({ transport: "unix", path: `${dir}/${name}` });
    this.#listeners = { shell: listen("shell"), console: listen("console") };
  }

  /** Waits until a QEMU has connected, with the guest or for one that is to come. */
  async connected(): Promise<GuestShell> {
    const both = Promise.all([this.#listeners.shell.accept(), this.#listeners.console.accept()]);
    const [shell, text] = await within(both, TIMEOUT_MS, () => "QEMU has not connected");
    this.#consoles.push(text);
    this.#readers.push(
      text.readable.pipeThrough(new TextDecoderStream())
        .pipeTo(new WritableStream({ write: (part) => void (this.#console += part) }))
        .catch(() => {}),
    );
    this.#shells.push(new GuestShell(shell));
    return this.#shells[this.#shells.length - 1];
  }

  /** Runs a command where the guest is now. */
  async check(command: string): Promise<string> {
    const shell = this.#shells[this.#shells.length - 1];
    const what = () => `in the guest, \`${command}\`:\n${this.#console}`;
    const { status, output } = await within(shell.send(command).result, TIMEOUT_MS, what);
    if (status !== 0) throw new Error(`${what()}\nended with ${status}: ${output}`);
    return output.trim();
  }

  /** Starts a command that goes on. */
  start(command: string): void {
    this.#shells[this.#shells.length - 1].send(command);
  }

  /** It writes and syncs files, and no request of it has failed. */
  async goesOn(): Promise<void> {
    const count = () => this.check("wc -l </tmp/said").then(Number);
    const before = await count();
    await until(async () => await count() >= before + FILES, {
      timeoutMs: TIMEOUT_MS,
      what: () => `it stands still:\n${this.#console}`,
    });
    assertEquals(ioErrorsIn(`${this.#console}\n${await this.check("dmesg")}`), []);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const listener of Object.values(this.#listeners)) listener.close();
    for (const text of this.#consoles) {
      try {
        text.close();
      } catch {
        // Its QEMU has ended, and it with that.
      }
    }
    await Promise.all([...this.#readers, ...this.#shells.map((shell) => shell.close())]);
  }
}

/** What `kelpie disk libvirt` prints where that host's daemon is, and for its sockets. */
async function printed(host: Host, ...options: readonly string[]): Promise<string> {
  const env = { KELPIE_RUN_DIR: RUN_DIR };
  const { prefix } = host;
  const { code, stdout, stderr } = await kelpie(["disk", "libvirt", DISK, ...options], {
    prefix,
    env,
  });
  assertEquals(code, 0, stderr);
  return new TextDecoder().decode(stdout);
}

/** A domain of a user's: what was printed is pasted where its comments say. */
async function domainWith(fragments: string, dir: string): Promise<string> {
  const [, forDomain, forDevices] = fragments.split(/<!--.*?-->/);
  const files = await ensureGuestFiles();
  await Deno.writeFile(`${dir}/initramfs`, await buildInitramfs(files));
  const port = (name: string, number: number) => `
    <serial type='unix'>
      <source mode='connect' path='${dir}/${name}'/>
      <target port='${number}'/>
    </serial>`;
  return `
    <domain type='qemu'>
      <name>${DISK}</name>
      <memory unit='MiB'>128</memory>
      <vcpu>1</vcpu>
      <os>
        <type arch='x86_64' machine='pc'>hvm</type>
        <kernel>${files.kernel}</kernel>
        <initrd>${dir}/initramfs</initrd>
        <cmdline>console=ttyS0 quiet panic=0 mitigations=off no_timer_check</cmdline>
      </os>
      <features><acpi/></features>
      <cpu mode='custom'><model>qemu64</model><feature policy='require' name='rdrand'/></cpu>
      ${forDomain}
      <devices>
        ${forDevices}
        ${port("console", 0)}
        ${port("shell", 1)}
      </devices>
    </domain>`;
}

Deno.test({
  name:
    "libvirt takes the XML that is printed, and migrates the guest between hosts while it writes",
  ignore: !await canMakeNamespaces(),
  fn: async (t) => {
    await using hosts = await Hosts.make();
    await hosts.startAll();
    const [here, there, third] = hosts.list;
    using client = third.running.client();
    await client.createDisk({ name: DISK, sizeBytes: 256 * 1024 * 1024, copies: 3 });
    await hosts.untilWhole();
    const [first, second] = await Promise.all([Libvirt.start(here), Libvirt.start(there)]);
    await using daemons = new AsyncDisposableStack();
    daemons.use(first);
    daemons.use(second);
    await using guest = new LibvirtGuest(hosts.work.path);
    // Where one step has failed, there is no guest for the next.
    const step = async (name: string, fn: () => Promise<void>) => {
      if (!await t.step(name, fn)) throw new Error(`"${name}" failed`);
    };
    const openOn = async (name: string | null) => {
      assertEquals((await client.disk(DISK)).openOn, name);
    };

    await step("it takes a whole domain, and the parts of one", async () => {
      const full = `${hosts.work.path}/full.xml`;
      await Deno.writeTextFile(full, await printed(here, "--full"));
      // Where there is no KVM it still looks at every element; it could not run it.
      const { success, text } = await first.run("define", "--validate", full);
      assert(success || /kvm/i.test(text), text);
      if (success) await first.check("undefine", DISK);
      const fragments = await printed(here, "--queues", "2");
      assertEquals(await printed(there, "--queues", "2"), fragments, "the same on both hosts");
      const domain = `${hosts.work.path}/domain.xml`;
      await Deno.writeTextFile(domain, await domainWith(fragments, hosts.work.path));
      await first.check("define", "--validate", domain);
    });

    await step("the guest runs and writes, also when its agent was killed", async () => {
      const connecting = guest.connected();
      await first.check("start", DISK);
      const shell = await connecting;
      await within(shell.ready(), TIMEOUT_MS, () => "the guest does not come up");
      await guest.check(
        "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir /mnt/w && touch /tmp/said",
      );
      guest.start(`( ${writerScript(1)} ) >/tmp/said; touch /tmp/ended`);
      await guest.goesOn();
      await openOn("host1");
      await here.kill();
      await here.start();
      await guest.goesOn();
      await hosts.untilWhole();
    });

    /** Moves the guest; it goes on at the other end, and nothing of it is left here. */
    const move = async (from: Libvirt, to: Libvirt, host: Host, ...options: string[]) => {
      const connecting = guest.connected();
      await from.check("migrate-setmaxdowntime", DISK, DOWNTIME_TCG);
      await from.check(
        ...["migrate", "--live", "--persistent", "--undefinesource", ...options],
        ...["--bandwidth", BANDWIDTH_TCG, DISK, to.uri],
        ...["--migrateuri", `tcp://${host.ip}`],
      );
      await connecting;
      assertEquals(await from.check("list", "--all", "--name"), "");
      assertEquals(await to.check("domstate", DISK), "running");
      await guest.goesOn();
      await openOn(host.name);
    };

    await step("virsh migrate --live moves it", () => move(first, second, there));

    await step("…and from daemon to daemon, back", async () => {
      await move(second, first, here, "--p2p");
      // What libvirt makes of the XML is still what was printed.
      assertMatch(
        await first.check("dumpxml", DISK),
        /<source type='unix' path='\/run\/kelpie\/web\.sock'>\s*<reconnect enabled='yes' timeout='1'\/>/,
      );
    });

    await step("all that it wrote is there, and the same in every replica", async () => {
      await guest.check("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
      await checkFiles(guest);
      await guest.check("(cd /mnt && sha256sum -c -s /tmp/said) && umount /mnt && sync");
      await first.check("destroy", DISK);
      await until(async () => (await client.disk(DISK)).openOn === null, {
        timeoutMs: TIMEOUT_MS,
        what: () => "the disk is not given back",
      });
      await hosts.untilWhole();
      for (const host of hosts.list) await host.stop();
      const { blocks } = compareReplicas(hosts.list.map((host) => `${host.dataDir}/kelpie.store`));
      assert(blocks > 0, `${blocks} blocks`);
    });
  },
});
