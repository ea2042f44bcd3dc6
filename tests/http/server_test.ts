/**
 * The server on its socket, and the client that speaks to it.
 *
 * @module
 */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { AdminClient, AdminError } from "../../agent/admin_client.ts";
import type { CheckReport } from "../../agent/http/backend.ts";
import { serve, type Server } from "../../agent/http/server.ts";
import { ControlFailure } from "../../agent/map/errors.ts";
import { clusterWithDisk, runAll } from "../map/cluster.ts";
import {
  FAKE_SECRET,
  FakeBackend,
  FakeLog,
  HEALTHY_STORE,
  IDLE_DISK,
  sessionWith,
} from "./fake_backend.ts";

interface Fixture {
  readonly backend: FakeBackend;
  readonly runDir: string;
  readonly server: Server;
  readonly client: AdminClient;
}

/** Runs a test with a server that listens in a directory of its own. */
async function withServer(body: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withDirectory(async (runDir) => {
    const backend = new FakeBackend();
    backend.runDir = runDir;
    const server = await serve({ backend, log: new FakeLog(), runDir });
    using client = new AdminClient({ runDir });
    try {
      await body({ backend, runDir, server, client });
    } finally {
      client.close();
      await server.close();
    }
  });
}

async function withDirectory(body: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempDir({ prefix: "kelpie-http-" });
  try {
    await body(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

function listOf(path: string): string[] {
  return [...Deno.readDirSync(path)].map((entry) => entry.name).toSorted();
}

/** Sends bytes as they are and returns what comes back until the server closes. */
async function sendRaw(path: string, text: string): Promise<string> {
  const connection = await Deno.connect({ transport: "unix", path });
  const decoder = new TextDecoder();
  let answer = "";
  try {
    await connection.write(new TextEncoder().encode(text));
    const buffer = new Uint8Array(4096);
    for (;;) {
      const count = await connection.read(buffer);
      if (count === null) return answer;
      answer += decoder.decode(buffer.subarray(0, count), { stream: true });
    }
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionReset) return answer;
    throw error;
  } finally {
    connection.close();
  }
}

Deno.test("the socket is for its owner only, and nothing else is left in the directory", async () => {
  await withServer(({ runDir, server }) => {
    assertEquals(server.socketPath, `${runDir}/agent.sock`);
    assertEquals(listOf(runDir), ["agent.sock"]);
    assertEquals(Deno.lstatSync(server.socketPath).mode! & 0o777, 0o600);
    return Promise.resolve();
  });
});

Deno.test("close() removes the socket", async () => {
  await withServer(async ({ runDir, server, client }) => {
    await client.version();
    await server.close();
    assertEquals(listOf(runDir), []);
    const error = await assertRejects(() => client.version(), AdminError);
    assertEquals((error as AdminError).code, "unavailable");
  });
});

Deno.test("close() answers requests that do not end", async () => {
  await withDirectory(async (runDir) => {
    const backend = new FakeBackend();
    const server = await serve({ backend, log: new FakeLog(), runDir, closeTimeoutMs: 1 });
    backend.add("web");
    const begun = Promise.withResolvers<void>();
    backend.closeSessions = () => {
      begun.resolve();
      return new Promise(() => {});
    };
    using client = new AdminClient({ runDir });
    const deleting = client.deleteDisk("web", { now: true, force: true });
    deleting.catch(() => {}); // asked for below
    // Half of a request never becomes a whole one.
    using half = await Deno.connect({ transport: "unix", path: server.socketPath });
    const text = "POST /v1/disks HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    await half.write(new TextEncoder().encode(text));
    await begun.promise;
    await server.close();
    const error = await assertRejects(() => deleting, AdminError) as AdminError;
    assertEquals(error.code, "unavailable");
    assertStringIncludes(error.message, "the agent is stopping");
    const bytes = new Uint8Array(4096);
    const answer = new TextDecoder().decode(bytes.subarray(0, await half.read(bytes) ?? 0));
    assertStringIncludes(answer, "503");
  });
});

Deno.test("close() leaves another agent's socket where it is", async () => {
  await withServer(async ({ runDir, server }) => {
    Deno.removeSync(server.socketPath);
    const other = await serve({ backend: new FakeBackend(), log: new FakeLog(), runDir });
    await server.close();
    assertEquals(listOf(runDir), ["agent.sock"]);
    await other.close();
  });
});

Deno.test("a living agent's socket is never taken away", async () => {
  await withServer(async ({ runDir, client }) => {
    const error = await assertRejects(
      () => serve({ backend: new FakeBackend(), log: new FakeLog(), runDir }),
      ControlFailure,
    );
    assertEquals((error as ControlFailure).error.code, "busy");
    assertStringIncludes(error.message, `${runDir}/agent.sock`);
    assertEquals((await client.version()).api, "v1");
  });
});

Deno.test("a dead agent's socket and half-made directory are replaced", async () => {
  await withDirectory(async (runDir) => {
    const dead = Deno.listen({ transport: "unix", path: `${runDir}/born` });
    Deno.renameSync(`${runDir}/born`, `${runDir}/agent.sock`);
    dead.close();
    Deno.mkdirSync(`${runDir}/.agent`);
    Deno.writeTextFileSync(`${runDir}/.agent/s`, "");
    const server = await serve({ backend: new FakeBackend(), log: new FakeLog(), runDir });
    using client = new AdminClient({ runDir });
    assertEquals((await client.version()).version, "1.2.3");
    client.close();
    await server.close();
    assertEquals(listOf(runDir), []);
  });
});

Deno.test("what is no socket is not replaced, and a directory that is missing is named", async () => {
  await withDirectory(async (runDir) => {
    Deno.writeTextFileSync(`${runDir}/agent.sock`, "precious");
    for (const directory of [runDir, `${runDir}/missing`]) {
      const error = await assertRejects(
        () => serve({ backend: new FakeBackend(), log: new FakeLog(), runDir: directory }),
        ControlFailure,
      );
      assertEquals((error as ControlFailure).error.code, "unavailable");
      assertStringIncludes(error.message, directory);
    }
    assertEquals(Deno.readTextFileSync(`${runDir}/agent.sock`), "precious");
  });
});

Deno.test("the client does everything that the API offers", async () => {
  await withServer(async ({ backend, client, runDir }) => {
    const made = await client.createDisk({ name: "web", sizeBytes: 1024 ** 3 });
    assertEquals(made.socket, `${runDir}/web.sock`);
    assertEquals(await client.disk("web"), made);
    assertEquals(await client.disks(), [made]);
    const changed = await client.changeDisk("web", { name: "www", readOnly: true });
    assertEquals([changed.name, changed.readOnly, changed.id], ["www", true, made.id]);
    const status = await client.status();
    assertEquals([status.healthy, status.disks.length, status.epoch], [true, 1, 3]);
    assertEquals(await client.store(), HEALTHY_STORE);
    await client.setLogLevel("error");
    assertEquals(backend.logLevel, "error");
    assertStringIncludes(await client.metrics(), 'kelpie_disk_size_bytes{disk="www"} 1073741824\n');
    assertEquals((await client.openapi()).openapi, "3.1.0");
    backend.statuses.set("www", { ...IDLE_DISK, sessions: [sessionWith()] });
    const busy = await assertRejects(() => client.deleteDisk("www"), AdminError) as AdminError;
    assertEquals(busy.code, "busy");
    assertStringIncludes(busy.hint!, "--force");
    await client.deleteDisk("www", { force: true });
    assertEquals(await client.disks(), []);
    await client.shutdown();
    assertEquals(backend.isShutDown, true);
  });
});

Deno.test("the client does everything about nodes and the cluster that the API offers", async () => {
  await withServer(async ({ backend, client }) => {
    backend.clusterMap = runAll(clusterWithDisk(3, 1), {
      kind: "take-lease",
      id: 1,
      node: 1,
      incarnation: 1,
    });
    const { clusterId, nodes, groups, settings } = await client.cluster();
    assertEquals([clusterId, nodes.length, groups.total, settings.copies], [
      "c".repeat(32),
      3,
      256,
      3,
    ]);
    assertEquals((await client.nodes()).map(({ name }) => name), ["host-1", "host-2", "host-3"]);
    assertEquals((await client.node("host-2")).id, 2);
    const plan = await client.planNode("host-2", { availability: "draining" });
    const { targetsEpoch } = plan;
    const drained = await client.changeNode("host-2", { availability: "draining", targetsEpoch });
    assertEquals(drained.availability, "draining");
    const stale = await assertRejects(
      () => client.changeNode("host-2", { weight: 1, targetsEpoch }),
      AdminError,
    ) as AdminError;
    assertEquals(stale.code, "stale");
    assertEquals((await client.changeSettings({ copies: 2 })).copies, 2);
    assertEquals(await client.secret(), FAKE_SECRET);
    assertEquals((await client.locks()).map(({ disk, node }) => [disk, node]), [["web", "host-1"]]);
    assertEquals((await client.releaseDisk("web")).openOn, null);
    assertEquals(await client.locks(), []);
    const busy = await assertRejects(() => client.removeNode("host-2"), AdminError) as AdminError;
    assertEquals(busy.code, "busy");
    await assertRejects(
      () => client.removeNode("2", { force: true, acceptLoss: true }),
      AdminError,
    );
    assertEquals(backend.removed, [
      { id: 2, force: false, acceptLoss: false },
      { id: 2, force: true, acceptLoss: true },
    ]);
    for (const name of ["..", "", "a/b", "x?force=1"]) {
      await assertRejects(() => client.removeNode(name), AdminError);
    }
    assertEquals(backend.removed.length, 2);
  });
});

Deno.test("the client refuses a name that would lead to another path", async () => {
  await withServer(async ({ backend, client }) => {
    backend.add("web");
    for (const name of ["..", "", "a/b", "web?force=1", "web#", "%2e%2e"]) {
      const error = await assertRejects(() => client.deleteDisk(name), AdminError) as AdminError;
      assertEquals(error.code, "invalid", name);
      await assertRejects(() => client.disk(name), AdminError);
      await assertRejects(() => client.check(name), AdminError);
    }
    assertEquals(backend.proposed, []);
    const missing = await assertRejects(() => client.disk("none"), AdminError) as AdminError;
    assertEquals(missing.code, "missing");
  });
});

Deno.test("the client says where no agent answers, and how to start one", async () => {
  await withDirectory(async (runDir) => {
    using client = new AdminClient({ runDir });
    const absent = await assertRejects(() => client.status(), AdminError) as AdminError;
    assertEquals(absent.code, "unavailable");
    assertEquals(absent.message, `no agent answers at ${runDir}/agent.sock: is it running?`);
    assertStringIncludes(absent.hint!, "kelpie agent");
    const dead = Deno.listen({ transport: "unix", path: `${runDir}/born` });
    Deno.renameSync(`${runDir}/born`, `${runDir}/agent.sock`);
    dead.close();
    const refused = await assertRejects(() => client.check(null), AdminError) as AdminError;
    assertEquals(refused.message, absent.message);
  });
});

Deno.test("the client does not wait for ever for an agent that says nothing", async () => {
  await withDirectory(async (runDir) => {
    const mute = Deno.listen({ transport: "unix", path: `${runDir}/agent.sock` });
    const accepted = mute.accept();
    using client = new AdminClient({ runDir, timeoutMs: 20 });
    const error = await assertRejects(() => client.status(), AdminError) as AdminError;
    assertEquals(error.code, "unavailable");
    assertStringIncludes(error.message, "0.02 seconds");
    (await accepted).close();
    mute.close();
  });
});

Deno.test("the client says so when what answers is no agent, or stops in mid-answer", async () => {
  const answers: [string, string, string][] = [
    ["HTTP/1.1 502 Bad\r\ncontent-length: 5\r\n\r\n<html", "internal", "502"],
    ['HTTP/1.1 404 No\r\ncontent-length: 12\r\n\r\n{"error": 1}', "internal", "404"],
    ["HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", "unavailable", "whole"],
    ["nonsense\r\n\r\n", "unavailable", "whole"],
  ];
  for (const [answer, code, part] of answers) {
    await withDirectory(async (runDir) => {
      const listener = Deno.listen({ transport: "unix", path: `${runDir}/agent.sock` });
      const answered = (async () => {
        using connection = await listener.accept();
        await connection.read(new Uint8Array(4096));
        await connection.write(new TextEncoder().encode(answer));
      })();
      using client = new AdminClient({ runDir });
      const error = await assertRejects(() => client.status(), AdminError) as AdminError;
      assertEquals(error.code, code, answer);
      assertStringIncludes(error.message, part);
      await answered;
      listener.close();
    });
  }
});

Deno.test("a check shows progress while it runs, and its report at the end", async () => {
  await withServer(async ({ backend, client }) => {
    backend.add("web");
    const seen = Promise.withResolvers<void>();
    backend.onCheck = async (_, onProgress) => {
      onProgress(1, 2);
      await seen.promise;
      return { checkedBytes: 2, damagedBlocks: 1, damage: [{ disk: "web", offsetBytes: 0 }] };
    };
    const progress: number[][] = [];
    const report = await client.check("web", {
      onProgress: (...numbers) => {
        progress.push(numbers);
        seen.resolve();
      },
    });
    assertEquals(progress, [[1, 2]]);
    assertEquals(report, {
      checkedBytes: 2,
      damagedBlocks: 1,
      damage: [{ disk: "web", offsetBytes: 0 }],
    });
    backend.onCheck = () =>
      Promise.reject(new ControlFailure({ code: "full", message: "no space" }));
    const error = await assertRejects(() => client.check(null), AdminError) as AdminError;
    assertEquals([error.code, error.message], ["full", "no space"]);
  });
});

Deno.test("a check ends in the agent when its client goes away", async () => {
  await withServer(async ({ backend, client }) => {
    const ended = Promise.withResolvers<void>();
    const abort = new AbortController();
    backend.onCheck = (_, onProgress, signal) => {
      onProgress(0, 1);
      const { promise, reject } = Promise.withResolvers<CheckReport>();
      signal.addEventListener("abort", () => {
        ended.resolve();
        reject(new Error("ended early"));
      });
      return promise;
    };
    const checking = client.check(null, {
      onProgress: () => abort.abort(new Error("enough")),
      signal: abort.signal,
    });
    await assertRejects(() => checking, Error, "enough");
    await ended.promise;
  });
});

Deno.test("close() ends a check that runs", async () => {
  await withServer(async ({ backend, client, server }) => {
    const started = Promise.withResolvers<void>();
    backend.onCheck = (_, onProgress, signal) => {
      onProgress(0, 1);
      const { promise, reject } = Promise.withResolvers<CheckReport>();
      signal.addEventListener("abort", () => {
        reject(new ControlFailure({ code: "unavailable", message: "the agent stops" }));
      });
      return promise;
    };
    const checking = client.check(null, { onProgress: () => started.resolve() });
    await started.promise;
    await Promise.all([server.close(), assertRejects(() => checking, AdminError, "stops")]);
  });
});

Deno.test("rubbish on the socket ends that connection and nothing else", async () => {
  await withServer(async ({ client, server }) => {
    const rubbish = [
      "\0\0\0\0\r\n\r\n",
      "GET\r\n\r\n",
      "GET /v1/status HTTP/9.9\r\n\r\n",
      "GET /v1/status HTTP/1.0\r\n\r\n",
      "GET //[:::1 HTTP/1.1\r\nhost: [\r\nconnection: close\r\n\r\n",
      "GET /v1/status HTTP/1.1\r\nhost: a b c\r\nconnection: close\r\n\r\n",
      "GET http://[x/v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
      "OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
      "POST /v1/disks HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: -1\r\n\r\n",
      "POST /v1/disks HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9" +
      "9999999999\r\n\r\n{}" + "x".repeat(70_000),
      "POST /v1/disks HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" +
      "transfer-encoding: chunked\r\n\r\nzz\r\n",
      `GET /${"a".repeat(60_000)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
    ];
    for (const text of rubbish) {
      const answer = await sendRaw(server.socketPath, text);
      assert(!answer.includes(" 500 "), `${text.slice(0, 60)} gave ${answer}`);
      assertEquals((await client.version()).api, "v1", text.slice(0, 60));
    }
  });
});

Deno.test("curl's way works: any host name, no content type", async () => {
  await withServer(async ({ server, client }) => {
    const body = '{"name":"web","sizeBytes":512}';
    const answer = await sendRaw(
      server.socketPath,
      `POST /v1/disks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n` +
        `Content-Type: application/x-www-form-urlencoded\r\nContent-Length: ${body.length}\r\n\r\n` +
        body,
    );
    assertStringIncludes(answer, "HTTP/1.1 201");
    assertEquals((await client.disks()).map((disk) => disk.name), ["web"]);
  });
});
