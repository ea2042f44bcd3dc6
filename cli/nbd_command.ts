/**
 * `kelpie nbd`: gives disks by name to everything that speaks NBD.
 *
 * The server is `nbd_server.ts`; here is what it is told, and what is refused before it starts.
 *
 * @module
 */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import { resolve } from "node:path";
import { checkDiskName, checkSnapshotName } from "../agent/map/names.ts";
import { formatAddress, parseAddress } from "../agent/platform/address.ts";
import { type AnyCommand, type CommandContext, countArgument, examples } from "./context.ts";
import { CommandError, ExitCode } from "./output.ts";

/** The port that is registered for NBD. */
const PORT_DEFAULT = 10809;

/** Connections at once unless told otherwise, and at the most: each may take some MiB of memory. */
const CONNECTIONS_DEFAULT = 64, CONNECTIONS_MAX = 1000;

/** Adds `nbd`. */
export function addNbdCommand(program: AnyCommand, context: CommandContext): void {
  program.command("nbd")
    .summary("serve disks over NBD")
    .description(
      "Serves the agent's disks by name to everything that speaks NBD: qemu-img, nbdcopy, hosts without " +
        "vhost-user. A disk is open, and nobody else's, while a client uses it; DISK@SNAPSHOT and " +
        "what is read-only can be read by anybody. Runs until SIGTERM or SIGINT.",
    )
    .option("--socket <path>", "listen on a unix socket, for this user only")
    .option(
      "--listen <address>",
      `listen on host:port (port ${PORT_DEFAULT} if not given); there is no authentication but by TLS`,
      addressArgument,
    )
    .option("--read-only", "nothing can be written; works beside running guests")
    .option(
      "--export <name>",
      "serve this disk or snapshot only; may come again",
      (name: string, before: string[] | undefined) => [...before ?? [], exportArgument(name)],
    )
    .option(
      "--max-connections <count>",
      "connections at once",
      countArgument({ min: 1, max: CONNECTIONS_MAX }),
      CONNECTIONS_DEFAULT,
    )
    .option("--tls-cert <file>", "the server's certificate (PEM); clients have to use TLS then")
    .option("--tls-key <file>", "its private key (PEM)")
    .option("--tls-ca <file>", "let in clients with a certificate of this CA only (PEM)")
    .option("--insecure", "allow --listen on other addresses than the loopback without TLS")
    .addHelpText(
      "after",
      examples(
        "kelpie nbd --socket /run/kelpie-nbd.sock",
        "kelpie nbd --listen localhost --export web --read-only",
        "kelpie nbd --listen 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem",
        "qemu-img convert -p 'nbd+unix:///web?socket=/run/kelpie-nbd.sock' web.qcow2",
      ),
    )
    .action(async (options) => {
      const { socket, listen, tlsCert, tlsKey, tlsCa, insecure = false } = options;
      if (socket === undefined && listen === undefined) {
        throw new CommandError(ExitCode.Usage, "nbd needs --socket or --listen", {
          hint: "kelpie nbd --socket /run/kelpie-nbd.sock",
        });
      }
      if ((tlsCert === undefined) !== (tlsKey === undefined)) {
        throw new CommandError(ExitCode.Usage, "--tls-cert and --tls-key belong together");
      }
      if (tlsCa !== undefined && tlsCert === undefined) {
        throw new CommandError(ExitCode.Usage, "--tls-ca says nothing without --tls-cert");
      }
      const signal = context.terminal.interrupted();
      using client = context.client();
      await client.version(); // says what to do when no agent is there
      const address = listen === undefined ? null : await numericAddress(listen);
      if (address !== null && tlsCert === undefined && !insecure && !isLoopback(address)) {
        throw new CommandError(
          ExitCode.Usage,
          `without TLS everybody who reaches ${address} could read and write every disk`,
          { hint: "give --tls-cert and --tls-key (and --tls-ca), or --insecure if you mean it" },
        );
      }
      const path = socket === undefined ? null : resolve(socket);
      if (path !== null) await clearSocket(path);
      const tls = tlsCert === undefined
        ? null
        : await loadTls({ cert: tlsCert, key: tlsKey!, ca: tlsCa });
      // Late: other commands need none of it.
      const { NbdServer } = await import("./nbd_server.ts");
      const server = new NbdServer({
        client,
        runDir: context.runDir,
        address,
        socket: path,
        tls,
        isReadOnly: options.readOnly ?? false,
        exports: [...new Set(options.export ?? [])],
        connectionsMax: options.maxConnections,
        ready: (addresses) => context.output.say(`serving NBD on ${addresses.join(" and ")}`),
        warn: (message) => context.output.warn(message),
      });
      await server.run(signal);
    });
}

/** `host`, `host:port`, `[ipv6]:port` or a bare IPv6 address. */
function addressArgument(text: string): string {
  const host = text.replace(/^\[(.*)\]$/, "$1");
  const isHost = parseAddress(text) === null;
  const parsed = parseAddress(isHost ? formatAddress(host, PORT_DEFAULT) : text);
  if (parsed !== null) return formatAddress(parsed.host, parsed.port);
  throw new InvalidArgumentError("It must be host, host:port or [ipv6]:port");
}

/** A disk's or snapshot's name. */
function exportArgument(name: string): string {
  const [disk, snapshot, ...rest] = name.split("@");
  const isDisk = rest.length === 0 && checkDiskName(disk) === null;
  if (isDisk && (snapshot === undefined || checkSnapshotName(snapshot) === null)) return name;
  throw new InvalidArgumentError("It must be the name of a disk, or DISK@SNAPSHOT");
}

async function numericAddress(address: string): Promise<string> {
  const { resolveAddress } = await import("../agent/platform/linux/resolve.ts");
  try {
    return await resolveAddress(address);
  } catch (error) {
    throw new CommandError(ExitCode.Usage, `--listen: ${(error as Error).message}`);
  }
}

function isLoopback(address: string): boolean {
  const host = parseAddress(address)?.host ?? "";
  return host.startsWith("127.") || host === "::1";
}

/** Removes the socket of a server that is gone. Anything else at that path is left alone. */
async function clearSocket(path: string): Promise<void> {
  const info = await Deno.lstat(path).catch(() => null);
  if (info === null) return;
  if (!info.isSocket) {
    throw new CommandError(ExitCode.Exists, `${path} is there, and is no socket`);
  }
  try {
    (await Deno.connect({ transport: "unix", path })).close();
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionRefused)) throw error;
    return await Deno.remove(path);
  }
  throw new CommandError(ExitCode.Exists, `somebody listens on ${path} already`);
}

async function loadTls(files: { cert: string; key: string; ca: string | undefined }) {
  const { TlsContext } = await import("../agent/platform/linux/tls.ts");
  try {
    return new TlsContext(files);
  } catch (error) {
    throw new CommandError(ExitCode.Failure, error instanceof Error ? error.message : `${error}`);
  }
}
