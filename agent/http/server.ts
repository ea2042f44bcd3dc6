/**
 * Serves the admin API on `RUN_DIR/agent.sock`.
 *
 *     request ──► route? ──► query, body: bounded, known fields only ──► handler ──► answer
 *                   └──────────────┴─────────────────────────────────────┴──► {"error": …}
 *
 * Invariants: only the owner of the socket can ever connect to it, because it is made in a directory
 * that only he can enter and moved to its place when its mode is right; a living agent's socket is
 * never taken away; whatever a request holds, the worst that comes of it is an error in its answer.
 *
 * @module
 */

import { within } from "../deadline.ts";
import { type ControlError, type ControlErrorCode, ControlFailure } from "../map/errors.ts";
import { checkNodeName } from "../map/fields.ts";
import { agentSocket, checkDiskName, checkSnapshotName } from "../map/names.ts";
import type { Log } from "../platform/platform.ts";
import type { ControlBackend } from "./backend.ts";
import { type Call, json, type Route, unlessAborted } from "./call.ts";
import { SCHEMAS } from "./openapi.ts";
import { ROUTES } from "./routes.ts";
import { checkShape } from "./shape.ts";

/** Longest body of a request that says nothing else, in bytes: a disk with all its attributes takes a tenth. */
export const BODY_BYTES_MAX = 64 * 1024;

/** Requests under way at once: an operator has one, scripts and monitoring a few. */
export const REQUESTS_MAX = 128;

/** Checks under way at once: each reads as fast as the disk can. */
export const CHECKS_MAX = 4;

/** How long the data plane may take to say how it is, in milliseconds. */
const STATUS_TIMEOUT_MS = 5000;

/** How long snapshots may take to be complete, in milliseconds: guests that wait for them wait no longer. */
const SNAPSHOT_TIMEOUT_MS = 5000;

/** How long requests may take to end when the server closes, in milliseconds; then they are told that the agent is stopping. */
const CLOSE_TIMEOUT_MS = 3000;

/** How long clients may take after that to read what they have been told, in milliseconds. */
const FAREWELL_TIMEOUT_MS = 1000;

/** How long to wait for whoever may listen on a socket that is there already, in milliseconds. */
const PROBE_TIMEOUT_MS = 2000;

/** HTTP status of every error code; see `map/errors.ts`. */
export const STATUS_OF: Readonly<Record<ControlErrorCode, number>> = {
  invalid: 400,
  missing: 404,
  exists: 409,
  busy: 409,
  limit: 422,
  full: 507,
  unavailable: 503,
  corrupt: 500,
  internal: 500,
  stale: 409,
};

/** What a server needs. */
export interface ServerOptions {
  readonly backend: ControlBackend;
  readonly log: Log;
  /** Existing directory; gets `agent.sock`. */
  readonly runDir: string;
  /** Instead of 5 s, for tests. */
  readonly statusTimeoutMs?: number;
  /** Instead of 5 s, for tests. */
  readonly snapshotTimeoutMs?: number;
  /** Instead of 3 s, for tests. */
  readonly closeTimeoutMs?: number;
}

/** A server that listens. */
export interface Server {
  /** Path of its socket. */
  readonly socketPath: string;
  /**
   * Takes no new requests, ends checks, waits a little for the rest, answers what is left all the same, and removes the
   * socket. Never rejects.
   */
  close(): Promise<void>;
}

/**
 * Starts to serve.
 *
 * @throws {ControlFailure} with code `busy` when a living agent listens there already, `unavailable`
 * when the socket cannot be made
 */
export async function serve(options: ServerOptions): Promise<Server> {
  const socketPath = agentSocket(options.runDir);
  await refuseLivingAgent(options.runDir);
  const closing = new AbortController();
  const over = new AbortController();
  const handler = createHandler({ ...options, closing: closing.signal, over: over.signal });
  const listener = listenPrivately({ runDir: options.runDir, path: socketPath }, handler);
  const { ino } = Deno.lstatSync(socketPath);
  options.log.debug("admin API listens", { socket: socketPath });
  return {
    socketPath,
    async close() {
      closing.abort();
      removeOwn(socketPath, ino);
      // The runtime can cut off a server's requests, but none of one that it is shutting down already.
      const ended = listener.shutdown().catch(() => {});
      await within(ended, options.closeTimeoutMs ?? CLOSE_TIMEOUT_MS, () => {});
      over.abort();
      await within(ended, FAREWELL_TIMEOUT_MS, () => {});
    },
  };
}

/**
 * Refuses to go on when an agent listens in the run directory, or when what should be its socket is none.
 *
 * @throws {ControlFailure} with code `busy` or `unavailable`
 */
export async function refuseLivingAgent(runDir: string): Promise<void> {
  const path = agentSocket(runDir);
  let info: Deno.FileInfo;
  try {
    info = Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw cannotListen(path, error);
  }
  if (info.isSocket !== true) throw cannotListen(path, "it is there already and is no socket");
  if (await isAnswered(path)) {
    throw new ControlFailure({
      code: "busy",
      message: `an agent listens on ${path} already`,
      hint: "stop it first, or give this one another --run-dir",
    });
  }
}

/** Whether somebody listens; one that is too busy to accept is alive too. */
async function isAnswered(path: string): Promise<boolean> {
  const connecting: Promise<Deno.Conn | null> = Deno.connect({ transport: "unix", path });
  try {
    const connection = await within(connecting, PROBE_TIMEOUT_MS, () => null);
    connection?.close();
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) return false;
    if (error instanceof Deno.errors.NotFound) return false;
    throw cannotListen(path, error);
  }
}

/**
 * Listens where only the owner can come, then moves the socket to its place. A rename replaces what
 * a dead agent left there, and there is no moment in which the socket has another mode than 0600.
 */
function listenPrivately(
  { runDir, path }: { runDir: string; path: string },
  handler: (request: Request) => Promise<Response>,
): Deno.HttpServer {
  // Not the name under which sockets of disks are born beside it, on another thread.
  const directory = `${runDir}/.agent`;
  const born = `${directory}/s`;
  let listener: Deno.HttpServer | null = null;
  try {
    removeIfThere(directory);
    Deno.mkdirSync(directory, { mode: 0o700 });
    listener = Deno.serve({ path: born, onListen: () => {} }, handler);
    Deno.chmodSync(born, 0o600);
    Deno.renameSync(born, path);
    Deno.removeSync(directory);
    return listener;
  } catch (error) {
    listener?.shutdown();
    throw cannotListen(path, error);
  }
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function cannotListen(path: string, reason: unknown): ControlFailure {
  const text = reason instanceof Error ? reason.message : String(reason);
  return new ControlFailure({
    code: "unavailable",
    message: `cannot listen on ${path}: ${text}`,
    hint: "check --run-dir and who owns it",
  });
}

/** Removes the socket unless another agent has put its own there. */
function removeOwn(path: string, ino: number | null): void {
  try {
    if (Deno.lstatSync(path).ino === ino) Deno.removeSync(path);
  } catch {
    // Gone already, and with it the run directory: nothing is left to remove.
  }
}

/** What answers requests. */
export interface HandlerOptions extends Omit<ServerOptions, "runDir"> {
  /** Ends what runs for long. */
  readonly closing: AbortSignal;
  /** What has not been answered by then never will be by itself. */
  readonly over?: AbortSignal;
}

/**
 * The server without its socket.
 *
 * @returns answers one request; never rejects
 */
export function createHandler(options: HandlerOptions): (request: Request) => Promise<Response> {
  const { log, over } = options;
  let requests = 0;
  let checks = 0;
  const answer = async (request: Request, url: URL): Promise<Response> => {
    const { route, names } = findRoute(request.method, url.pathname);
    const call = await readCall(request, url, { route, names, options });
    if (!route.streams) return await route.handle(call);
    if (checks >= CHECKS_MAX) throw tooMany(`${checks} checks`);
    checks++;
    const ended = () => checks--;
    try {
      return onceRead(await route.handle(call), ended);
    } catch (error) {
      ended();
      throw error;
    }
  };
  return async (request) => {
    const startMs = performance.now();
    let path = "";
    let response: Response;
    requests++;
    try {
      if (requests > REQUESTS_MAX) throw tooMany(`${REQUESTS_MAX} requests`);
      const url = readUrl(request);
      path = url.pathname;
      const answered = answer(request, url);
      response = await (over === undefined ? answered : unlessAborted(answered, over, stopping));
    } catch (error) {
      response = answerError(error, log);
    } finally {
      requests--;
    }
    log.debug("admin request", {
      method: request.method,
      path,
      status: response.status,
      durationMs: Math.round(performance.now() - startMs),
    });
    return response;
  };
}

/** The URL; its host part is the client's Host header and may be anything. */
function readUrl(request: Request): URL {
  try {
    return new URL(request.url);
  } catch {
    throw invalid("the request's URL cannot be read");
  }
}

/** Calls `ended` once when the answer has been read to its end or its reader has gone. */
function onceRead(response: Response, ended: () => void): Response {
  const reader = response.body!.getReader();
  let open = true;
  const end = () => {
    if (open) ended();
    open = false;
  };
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { value, done } = await reader.read();
      if (!done) return controller.enqueue(value);
      end();
      controller.close();
    },
    async cancel(reason) {
      end();
      await reader.cancel(reason);
    },
  });
  return new Response(body, response);
}

function stopping(): ControlFailure {
  return new ControlFailure({
    code: "unavailable",
    message: "the agent is stopping, and the request has not come to its end",
    hint: "see what has come of it when the agent runs again",
  });
}

function tooMany(what: string): ControlFailure {
  return new ControlFailure({
    code: "unavailable",
    message: `${what} are under way, which is the most`,
    hint: "try again when they have ended",
  });
}

/** Finds the operation, or says what would have been one. */
function findRoute(method: string, path: string): { route: Route; names: string[] } {
  const methods: string[] = [];
  for (const route of ROUTES) {
    const names = matchPath(route.path, path);
    if (names === null) continue;
    if (route.method === method) return { route, names };
    methods.push(route.method);
  }
  if (methods.length === 0) {
    throw new ControlFailure({
      code: "missing",
      message: `there is nothing at ${JSON.stringify(path.slice(0, 200))}`,
      hint: "/v1/openapi.json describes what there is",
    });
  }
  throw new MethodFailure(methods, path);
}

/** The method is wrong: the one error with a status of its own, as RFC 9110 section 15.5.6 asks. */
class MethodFailure extends ControlFailure {
  constructor(readonly methods: readonly string[], path: string) {
    super({ code: "invalid", message: `${path} can be asked with ${methods.join(", ")} only` });
  }
}

/** The names in the path, none where the pattern has none, or null when it does not match. */
function matchPath(pattern: string, path: string): string[] | null {
  const parts = path.split("/");
  const wanted = pattern.split("/");
  if (parts.length !== wanted.length) return null;
  const names: string[] = [];
  for (let index = 0; index < wanted.length; index++) {
    if (wanted[index].startsWith("{")) names.push(decodeName(parts[index]));
    else if (wanted[index] !== parts[index]) return null;
  }
  return names;
}

function decodeName(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function readCall(
  request: Request,
  url: URL,
  { route, names, options }: { route: Route; names: string[]; options: HandlerOptions },
): Promise<Call> {
  const [name = "", part = ""] = names;
  const { path } = route;
  // An id is of the same form as a name.
  if (path.includes("{name}") || path.includes("{deleted}")) throwIfWrong(checkDiskName(name));
  if (path.includes("{node}")) throwIfWrong(checkNodeName(name));
  if (path.includes("{snapshot}") || path.includes("{schedule}")) {
    throwIfWrong(checkSnapshotName(part));
  }
  throwIfWrong(checkQuery(route, url.searchParams));
  return {
    backend: options.backend,
    name,
    part,
    query: url.searchParams,
    body: await readBody(request, route),
    statusTimeoutMs: options.statusTimeoutMs ?? STATUS_TIMEOUT_MS,
    snapshotTimeoutMs: options.snapshotTimeoutMs ?? SNAPSHOT_TIMEOUT_MS,
    closing: options.closing,
    gone: request.signal,
  };
}

function throwIfWrong(error: ControlError | null): void {
  if (error !== null) throw new ControlFailure(error);
}

function checkQuery({ query = [] }: Route, given: URLSearchParams): ControlError | null {
  for (const [key, value] of given) {
    const shown = JSON.stringify(`${key}=${value}`.slice(0, 80));
    if (!query.includes(key)) {
      return { code: "invalid", message: `the query parameter ${shown} is not known here` };
    }
    if (value !== "0" && value !== "1") {
      return { code: "invalid", message: `the query parameter ${shown} must be 0 or 1` };
    }
  }
  return null;
}

async function readBody(request: Request, route: Route): Promise<unknown> {
  const bytes = await readBounded(request, route.bodyBytesMax ?? BODY_BYTES_MAX);
  if (route.body === undefined) {
    if (bytes.length === 0) return undefined;
    throw invalid("this request takes no body");
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw invalid(`the body is no JSON: ${error instanceof Error ? error.message : error}`);
  }
  throwIfWrong(checkShape(value, SCHEMAS[route.body], SCHEMAS));
  return value;
}

/** The whole body, unless it is too long; what is too long is not read to its end. */
async function readBounded(request: Request, bytesMax: number): Promise<Uint8Array> {
  if (request.body === null) return new Uint8Array(0);
  const parts: Uint8Array[] = [];
  let length = 0;
  try {
    for await (const part of request.body) {
      if (length + part.length > bytesMax) {
        throw invalid(`the body is longer than ${bytesMax} bytes, which is the most`);
      }
      parts.push(part);
      length += part.length;
    }
  } catch (error) {
    if (error instanceof ControlFailure) throw error;
    throw invalid("the body cannot be read to its end");
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function invalid(message: string): ControlFailure {
  return new ControlFailure({ code: "invalid", message, hint: "/v1/openapi.json describes it" });
}

function answerError(failure: unknown, log: Log): Response {
  if (!(failure instanceof ControlFailure)) {
    log.error("admin request failed", {
      error: failure instanceof Error ? failure.stack ?? failure.message : String(failure),
    });
    const message = failure instanceof Error ? failure.message : String(failure);
    return json(500, {
      error: {
        code: "internal",
        message: `the agent made a mistake: ${message}`,
        hint: "the agent's log says more",
      },
    });
  }
  const { error } = failure;
  if (!(failure instanceof MethodFailure)) return json(STATUS_OF[error.code], { error });
  const response = json(405, { error });
  response.headers.set("allow", failure.methods.join(", "));
  return response;
}
