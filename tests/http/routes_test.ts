/**
 * What every operation of the API answers, and what it refuses. Over the handler, without a socket.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import type { CheckReport } from "../../agent/http/backend.ts";
import type {
  DiskDocument,
  NodeDocument,
  PlanDocument,
  StatusDocument,
} from "../../agent/http/documents.ts";
import { BODY_BYTES_MAX, CHECKS_MAX, createHandler, STATUS_OF } from "../../agent/http/server.ts";
import { CONTROL_ERROR_CODES, type ControlError, ControlFailure } from "../../agent/map/errors.ts";
import { addNode, atLevelTwo, clusterOf, clusterWithDisk, run, runAll } from "../map/cluster.ts";
import { FakeBackend, FakeLog, HEALTHY_STORE, IDLE_DISK, sessionWith } from "./fake_backend.ts";

const GIB = 1024 ** 3;

class Harness {
  readonly backend = new FakeBackend();
  readonly log = new FakeLog();
  readonly closing = new AbortController();
  readonly handle = createHandler({
    backend: this.backend,
    log: this.log,
    closing: this.closing.signal,
    statusTimeoutMs: 20,
  });

  send(method: string, path: string, body?: unknown): Promise<Response> {
    const text = typeof body === "string" || body === undefined ? body : JSON.stringify(body);
    return this.handle(new Request(`http://agent${path}`, { method, body: text }));
  }

  async ask<T>(status: number, method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.send(method, path, body);
    const text = await response.text();
    assertEquals(response.status, status, text);
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  async refused(
    status: number,
    method: string,
    path: string,
    body?: unknown,
  ): Promise<ControlError> {
    return (await this.ask<{ error: ControlError }>(status, method, path, body)).error;
  }
}

Deno.test("every error code has the status that its table names", async () => {
  const source = await Deno.readTextFile(new URL("../../agent/map/errors.ts", import.meta.url));
  const rows = [...source.matchAll(/^ \* \| `(\w+)` \|.*\| (\d+) \| \d+ \|$/gm)];
  assertEquals(Object.fromEntries(rows.map((row) => [row[1], Number(row[2])])), STATUS_OF);
  assertEquals(Object.keys(STATUS_OF), [...CONTROL_ERROR_CODES]);
});

Deno.test("POST /v1/disks/{name}/extents tells what a part of a disk is made of, and of nothing else", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.add("web", GIB);
  const path = "/v1/disks/web/extents";
  assertEquals(await ask(200, "POST", path, { offsetBytes: 4096, lengthBytes: GIB - 4096 }), {
    offsetBytes: 4096,
    disk: 1,
    layer: 1,
    sinceLayer: 0,
    extents: [
      { lengthBytes: 4096, state: "data" },
      { lengthBytes: GIB - 8192, state: "hole" },
    ],
  });
  for (const [offsetBytes, lengthBytes] of [[0, 0], [0, GIB + 1], [GIB, 1], [-1, 1], [0, -1]]) {
    const { code } = await refused(400, "POST", path, { offsetBytes, lengthBytes });
    assertEquals(code, "invalid", `${offsetBytes} ${lengthBytes}`);
  }
  await refused(404, "POST", "/v1/disks/db/extents", { offsetBytes: 0, lengthBytes: 1 });
  await refused(400, "POST", path, { offsetBytes: 0 });
});

Deno.test("extents of a snapshot, and since an older one, are asked for by layers", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.clusterMap = { ...backend.clusterMap, level: 2 };
  for (const name of ["web", "db"]) backend.add(name, GIB);
  for (const name of ["a", "b"]) await ask(201, "POST", "/v1/snapshots", { disks: ["web"], name });
  await ask(201, "POST", "/v1/snapshots", { disks: ["db"], name: "a" });
  await ask(200, "PATCH", "/v1/disks/web", { sizeBytes: 2 * GIB });
  const [a, b] = backend.clusterMap.disks.find(({ name }) => name === "web")!.snapshots;
  const path = "/v1/disks/web/extents";
  const range = { offsetBytes: 0, lengthBytes: GIB };
  await ask(200, "POST", path, { ...range, snapshot: "b", since: "web@a" });
  assertEquals(backend.asked.at(-1), { ...range, layer: b.layer, since: a.layer });
  await ask(200, "POST", path, { ...range, snapshot: "a" });
  assertEquals(backend.asked.at(-1), { ...range, layer: a.layer, since: undefined });
  await ask(200, "POST", path, { ...range, since: "web@b" });
  assertEquals(backend.asked.at(-1), { ...range, layer: undefined, since: b.layer });
  const wrong: [number, Record<string, unknown>, string][] = [
    [404, { snapshot: "c" }, "missing"],
    [404, { since: "web@c" }, "missing"],
    [404, { since: "wbe@a" }, "missing"],
    [404, { since: "a" }, "missing"],
    [400, { snapshot: "a", since: "web@b" }, "invalid"],
    [400, { snapshot: "a", since: "web@a" }, "invalid"],
    [400, { snapshot: "b", since: "db@a" }, "invalid"],
    [400, { snapshot: "b", lengthBytes: 2 * GIB }, "invalid"], // it was smaller then
    [400, { snapshot: 7 }, "invalid"],
  ];
  for (const [status, more, code] of wrong) {
    const error = await refused(status, "POST", path, { ...range, ...more });
    assertEquals(error.code, code, JSON.stringify(more));
  }
});

Deno.test("POST /v1/disks makes a disk that GET shows", async () => {
  const { ask, send, backend } = bound(new Harness());
  const attributes = { owner: "anna" };
  const made = await ask<DiskDocument>(201, "POST", "/v1/disks", {
    name: "web",
    sizeBytes: GIB,
    copies: 3,
    attributes,
  });
  assertEquals(made.name, "web");
  assertEquals(made.sizeBytes, GIB);
  assertEquals(made.copies, 3);
  assertEquals(made.attributes, attributes);
  assertEquals(made.readOnly, false);
  assertEquals(made.socket, "/run/kelpie/web.sock");
  assertEquals(made.readOnlySocket, "/run/kelpie/ro/web.sock");
  assert(Math.abs(made.createdMs - Date.now()) < 60_000);
  assertEquals(await ask(200, "GET", "/v1/disks/web"), made);
  assertEquals(await ask(200, "GET", "/v1/disks"), { disks: [made] });
  assertEquals(backend.clusterMap.epoch, 1);
  const response = await send("POST", "/v1/disks", { name: "db", sizeBytes: GIB });
  assertEquals(response.headers.get("location"), "/v1/disks/db");
});

Deno.test("what is wrong with a new disk is said, and nothing is made", async () => {
  const cases: [number, string, unknown, string][] = [
    [400, "invalid", { name: "web" }, "sizeBytes"],
    [400, "invalid", { name: "web", sizeBytes: "20G" }, "integer"],
    [400, "invalid", { name: "web", sizeBytes: 1.5 }, "integer"],
    [400, "invalid", { name: "web", sizeBytes: 2 ** 60 }, "integer"],
    [400, "invalid", { name: "web", sizeBytes: 1000 }, "multiple of 512"],
    [400, "invalid", { name: "web", sizeBytes: -512 }, "least"],
    [400, "invalid", { name: "../web", sizeBytes: GIB }, "name"],
    [400, "invalid", { name: "agent", sizeBytes: GIB }, "itself"],
    [400, "invalid", { name: "web", sizeBytes: GIB, size: 1 }, '"size" is not known'],
    [400, "invalid", { name: "web", sizeBytes: GIB, kind: "delete-disk" }, "kind"],
    [400, "invalid", { name: "web", sizeBytes: GIB, nowMs: 1 }, "nowMs"],
    [400, "invalid", { name: "web", sizeBytes: GIB, readOnly: 1 }, "boolean"],
    [400, "invalid", { name: "web", sizeBytes: GIB, copies: 9 }, "copies"],
    [400, "invalid", { name: "web", sizeBytes: GIB, attributes: { a: 1 } }, "attributes.a"],
    [400, "invalid", { name: "web", sizeBytes: GIB, attributes: [] }, "object"],
    [400, "invalid", '{"name":"web","sizeBytes":512,"__proto__":{}}', "__proto__"],
    [400, "invalid", [], "body"],
    [400, "invalid", "null", "body"],
    [400, "invalid", "{", "JSON"],
    [400, "invalid", undefined, "JSON"],
    [409, "exists", { name: "there", sizeBytes: GIB }, "already"],
  ];
  for (const [status, code, body, part] of cases) {
    const { refused, backend } = bound(new Harness());
    backend.add("there");
    const error = await refused(status, "POST", "/v1/disks", body);
    assertEquals(error.code, code, JSON.stringify(body));
    assertStringIncludes(error.message, part);
    assertEquals(error.message.includes("\n"), false);
    assertEquals(backend.proposed, []);
  }
});

Deno.test("a field that is nearly right is suggested", async () => {
  const { refused } = bound(new Harness());
  const error = await refused(400, "POST", "/v1/disks", { name: "web", sizeByte: GIB });
  assertStringIncludes(error.message, "sizeBytes");
  const second = await refused(400, "POST", "/v1/disks", {
    name: "web",
    sizeBytes: GIB,
    readonly: true,
  });
  assertEquals(second.hint, "did you mean 'readOnly'?");
  const third = await refused(400, "PUT", "/v1/log-level", { level: "warning" });
  assertEquals(third.hint, "did you mean 'warn'?");
});

Deno.test("a disk whose sockets would have too long a path is refused", async () => {
  const { refused, backend } = bound(new Harness());
  backend.runDir = `/run/${"k".repeat(60)}`;
  const error = await refused(400, "POST", "/v1/disks", { name: "n".repeat(63), sizeBytes: GIB });
  assertStringIncludes(error.message, "107");
  assertEquals(backend.proposed, []);
});

Deno.test("PATCH changes everything that it names, and only that", async () => {
  const { ask, backend } = bound(new Harness());
  backend.add("web", GIB);
  const grown = await ask<DiskDocument>(200, "PATCH", "/v1/disks/web", { sizeBytes: 2 * GIB });
  assertEquals([grown.name, grown.sizeBytes, grown.readOnly], ["web", 2 * GIB, false]);
  const changed = await ask<DiskDocument>(200, "PATCH", "/v1/disks/web", {
    name: "www",
    sizeBytes: GIB,
    shrink: true,
    readOnly: true,
    attributes: { a: "b" },
  });
  assertEquals(changed.name, "www");
  assertEquals(changed.sizeBytes, GIB);
  assertEquals(changed.readOnly, true);
  assertEquals(changed.attributes, { a: "b" });
  assertEquals(backend.clusterMap.disks.map((disk) => disk.name), ["www"]);
});

Deno.test("zones are asked for as a disk is made and later, and shown with what becomes of it", async () => {
  const { ask, refused, backend } = bound(new Harness());
  const map = runAll(
    atLevelTwo(clusterOf(3)),
    ...["a", "b", "b"].map((zone, index) => ({ kind: "set-zone", node: index + 1, zone }) as const),
  );
  backend.clusterMap = map;
  const body = { name: "web", sizeBytes: GIB, copies: 2 };
  const made = await ask<DiskDocument>(201, "POST", "/v1/disks", { ...body, zones: ["b", "b"] });
  assertEquals([made.zones, made.zonesProblem, made.copiesInSync], [["b"], null, 2]);
  const { name, zones, zonesProblem } = await ask<DiskDocument>(201, "POST", "/v1/disks", {
    ...body,
    name: "db",
    zones: ["a"],
  });
  assertEquals([name, zones], ["db", ["a"]]);
  assertEquals(zonesProblem, "zone a has 1 node that takes data, too few for 2 copies");
  const changed = await ask<DiskDocument>(200, "PATCH", "/v1/disks/web", {
    zones: ["a"],
    copies: 1,
  });
  assertEquals(changed.zones, ["b"], "until it is there");
  assertEquals([changed.copiesChange?.zones, changed.copiesChange?.copies], [["a"], 1]);
  assertEquals(backend.proposed.at(-1), {
    kind: "set-copies",
    name: "web",
    copies: 1,
    zones: ["a"],
  });
  const back = await ask<DiskDocument>(200, "PATCH", "/v1/disks/web", { zones: ["b"], copies: 2 });
  assertEquals(back.copiesChange?.isBack, true);
  const anywhere = await ask<DiskDocument>(200, "PATCH", "/v1/disks/web", { zones: [] });
  assertEquals(anywhere.copiesChange?.zones, []);
  const error = await refused(400, "PATCH", "/v1/disks/web", { zones: ["x"] });
  assertEquals(error.message, "no node that stores data is in zone x; there are a, b");
  // An empty list says nothing, also to those who speak level 1.
  backend.clusterMap = clusterOf(1);
  await ask<DiskDocument>(201, "POST", "/v1/disks", { ...body, zones: [] });
});

Deno.test("PATCH makes no part of a change that does not fit as a whole", async () => {
  const { refused, backend } = bound(new Harness());
  backend.add("web", GIB);
  backend.add("db", GIB);
  const cases: [number, string, unknown][] = [
    [409, "exists", { readOnly: true, sizeBytes: 2 * GIB, name: "db" }],
    [400, "invalid", { readOnly: true, sizeBytes: 512 }],
    [400, "invalid", { readOnly: true, name: "no/name" }],
    [400, "invalid", { sizeBytes: 2 * GIB, copies: 0 }],
    [400, "invalid", {}],
  ];
  const before = backend.clusterMap;
  for (const [status, code, body] of cases) {
    assertEquals((await refused(status, "PATCH", "/v1/disks/web", body)).code, code);
    assertEquals(backend.clusterMap, before);
  }
  const missing = await refused(404, "PATCH", "/v1/disks/none", { readOnly: true });
  assertEquals(missing.code, "missing");
});

Deno.test("PATCH replaces all limits, and leaves them alone where it names none", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.add("web", GIB);
  const path = "/v1/disks/web";
  const none = (await ask<DiskDocument>(200, "GET", path)).limits;
  assertEquals(none, {
    iops: 0,
    bytesPerSecond: 0,
    burstIops: 0,
    burstBytesPerSecond: 0,
    burstSeconds: 0,
  });
  const limits = { iops: 500, bytesPerSecond: 2 ** 20, burstIops: 1000, burstSeconds: 9 };
  const limited = await ask<DiskDocument>(200, "PATCH", path, { limits });
  assertEquals(limited.limits, { ...none, ...limits });
  const other = await ask<DiskDocument>(200, "PATCH", path, { detectZeroes: true });
  assertEquals([other.limits, other.detectZeroes], [{ ...none, ...limits }, true]);
  const error = await refused(400, "PATCH", path, { limits: { iops: 10, burstIops: 5 } });
  assertStringIncludes(error.message, "bursts of 5");
  await refused(400, "PATCH", path, { limits: { iops: 1.5 } });
  await refused(400, "PATCH", path, { limits: { iops: -1 } });
  const fewer = await ask<DiskDocument>(200, "PATCH", path, { limits: { iops: 10 } });
  assertEquals([fewer.limits, fewer.detectZeroes], [{ ...none, iops: 10 }, true]);
  const free = await ask<DiskDocument>(200, "PATCH", path, { limits: {}, detectZeroes: false });
  assertEquals([free.limits, free.detectZeroes], [none, false]);
});

Deno.test("shrinking needs shrink=true", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.add("web", GIB);
  const error = await refused(400, "PATCH", "/v1/disks/web", { sizeBytes: GIB / 2 });
  assertStringIncludes(error.hint!, "shrink");
  await refused(400, "PATCH", "/v1/disks/web", { sizeBytes: GIB / 2, shrink: false });
  await ask(200, "PATCH", "/v1/disks/web", { sizeBytes: GIB / 2, shrink: true });
  assertEquals(backend.clusterMap.disks[0].sizeBytes, GIB / 2);
});

Deno.test("DELETE refuses a disk in use, names the process, and obeys force", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.add("web");
  backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith({ pid: 4242 })] });
  for (const path of ["/v1/disks/web", "/v1/disks/web?force=0"]) {
    const error = await refused(409, "DELETE", path);
    assertEquals(error.code, "busy");
    assertStringIncludes(error.message, "qemu-system-x86 (pid 4242)");
    assertStringIncludes(error.hint!, "force");
  }
  assertEquals(backend.clusterMap.disks.length, 1);
  await ask(204, "DELETE", "/v1/disks/web?force=1");
  assertEquals(backend.clusterMap.disks.length, 0);
  assertEquals((await refused(404, "DELETE", "/v1/disks/web")).code, "missing");
});

Deno.test("paths, methods, queries and bodies that are not known are refused", async () => {
  const { refused, send, backend } = bound(new Harness());
  backend.add("web");
  const cases: [number, string, string, unknown][] = [
    [404, "GET", "/", undefined],
    [404, "GET", "/v1", undefined],
    [400, "GET", "/v1/disks/", undefined],
    [404, "GET", "/v1/disks/web/", undefined],
    [404, "GET", "/v2/status", undefined],
    [404, "GET", "/v1/disks/none", undefined],
    [404, "POST", "/v1/disks/none/check", undefined],
    [400, "GET", "/v1/disks/%2e%2e%2fx", undefined],
    [400, "GET", "/v1/disks/%ff", undefined],
    [400, "GET", "/v1/disks/a%00b", undefined],
    [400, "GET", "/v1/status?verbose=1", undefined],
    [400, "DELETE", "/v1/disks/web?force=yes", undefined],
    [400, "DELETE", "/v1/disks/web?force=0&force=maybe", undefined],
    [400, "POST", "/v1/shutdown", "{}"],
    [405, "DELETE", "/v1/disks", undefined],
    [405, "POST", "/v1/status", undefined],
    [405, "GET", "/v1/shutdown", undefined],
  ];
  for (const [status, method, path, body] of cases) await refused(status, method, path, body);
  assertEquals((await send("DELETE", "/v1/disks")).headers.get("allow"), "GET, POST");
  assertEquals(backend.isShutDown, false);
  assertEquals(backend.proposed, []);
});

Deno.test("a body may be as long as the limit and no longer", async () => {
  const { refused } = bound(new Harness());
  const fitting = `{"name":"web","x":"${"y".repeat(BODY_BYTES_MAX - 22)}"}`;
  const atLimit = fitting.slice(0, 18) + fitting.slice(18).padEnd(BODY_BYTES_MAX - 18, " ");
  assertEquals(atLimit.length, BODY_BYTES_MAX);
  const known = await refused(400, "POST", "/v1/disks", atLimit);
  assertEquals(known.message.includes("longer"), false);
  const long = await refused(400, "POST", "/v1/disks", `${atLimit} `);
  assertStringIncludes(long.message, `longer than ${BODY_BYTES_MAX}`);
});

Deno.test("a body that is too long is not read to its end", async () => {
  const { handle } = new Harness();
  let parts = 0;
  const body = new ReadableStream({
    pull(controller) {
      parts++;
      controller.enqueue(new Uint8Array(16 * 1024));
    },
  });
  const response = await handle(new Request("http://agent/v1/disks", { method: "POST", body }));
  assertEquals(response.status, 400);
  assert(parts <= 8, `${parts} parts were read`);
});

Deno.test("a body that is not UTF-8 is refused", async () => {
  const { handle } = new Harness();
  const body = new Uint8Array([0x22, 0xff, 0x22]);
  const response = await handle(new Request("http://agent/v1/disks", { method: "POST", body }));
  assertEquals(response.status, 400);
  await response.body?.cancel();
});

Deno.test("a failure of the backend keeps its code, and anything else is internal and logged", async () => {
  const { refused, backend, log } = bound(new Harness());
  for (const code of CONTROL_ERROR_CODES) {
    backend.propose = () => Promise.reject(new ControlFailure({ code, message: "so it is" }));
    const error = await refused(STATUS_OF[code], "POST", "/v1/disks", {
      name: "web",
      sizeBytes: GIB,
    });
    assertEquals(error, { code, message: "so it is" });
  }
  assertEquals(log.lines.some((line) => line.startsWith("error")), false);
  backend.propose = () => Promise.reject(new TypeError("x is undefined"));
  const error = await refused(500, "POST", "/v1/disks", { name: "web", sizeBytes: GIB });
  assertEquals(error.code, "internal");
  assert(log.lines.some((line) => line.startsWith("error") && line.includes("x is undefined")));
});

Deno.test("GET /v1/status is healthy when all is well", async () => {
  const { ask, backend } = bound(new Harness());
  backend.add("web");
  const status = await ask<StatusDocument>(200, "GET", "/v1/status");
  assertEquals(status.healthy, true);
  assertEquals(status.summary, "healthy: 1 disk, 12G of 500G used");
  assertEquals(status.problems, []);
  assertEquals(status.epoch, 1);
  assertEquals(status.store, HEALTHY_STORE);
  assertEquals(status.disks.map((disk) => disk.name), ["web"]);
});

Deno.test("GET /v1/status answers though store and disks are silent, and says so", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.add("web");
  backend.add("db");
  backend.silent.add("").add("web");
  const status = await ask<StatusDocument>(200, "GET", "/v1/status");
  assertEquals(status.healthy, false);
  assertEquals(status.store, null);
  assertEquals(status.disks.map((disk) => disk.name), ["db"]);
  assertEquals(status.problems.map((problem) => problem.code), [
    "store-unavailable",
    "disk-unavailable",
  ]);
  assertEquals(status.problems[1].disk, "web");
  assertEquals((await refused(503, "GET", "/v1/store")).code, "unavailable");
  assertEquals((await refused(503, "GET", "/v1/disks")).code, "unavailable");
  assertEquals((await refused(503, "GET", "/v1/disks/web")).code, "unavailable");
});

Deno.test("GET /v1/status answers though the cluster is silent, and says so", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.clusterMap = clusterWithDisk(3, 3);
  backend.silent.add("*");
  const status = await ask<StatusDocument>(200, "GET", "/v1/status");
  assertEquals([status.healthy, status.cluster, status.groups], [false, null, null]);
  assertEquals(status.problems.map((problem) => problem.code), ["cluster-unavailable"]);
  assertEquals(status.disks.length, 1);
  for (const path of ["/v1/cluster", "/v1/nodes", "/v1/nodes/host-1"]) {
    assertEquals((await refused(503, "GET", path)).code, "unavailable");
  }
});

Deno.test("a node is changed by all of a request, or by nothing of it", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.clusterMap = clusterWithDisk(3, 3);
  const changed = await ask<NodeDocument>(200, "PATCH", "/v1/nodes/host-2", {
    availability: "draining",
    weight: 1.5,
    zone: "rack-1",
  });
  assertEquals([changed.availability, changed.weight, changed.zone], ["draining", 1.5, "rack-1"]);
  assertEquals(await ask(200, "GET", "/v1/nodes/2"), changed);
  backend.proposed.length = 0;
  const cases: [number, string, unknown, string][] = [
    [400, "invalid", { weight: 2, zone: "a/b" }, "zone"],
    [400, "invalid", { zone: "rack-2", weight: -1 }, "weight"],
    [400, "invalid", { weight: "2T" }, "number or null"],
    [400, "invalid", { availability: "out" }, "it can be in, draining"],
    [400, "invalid", { name: "x" }, '"name" is not known'],
    [400, "invalid", {}, "empty"],
    [409, "stale", { weight: 2, targetsEpoch: 1 }, "nothing was changed"],
  ];
  for (const [status, code, body, part] of cases) {
    const error = await refused(status, "PATCH", "/v1/nodes/host-2", body);
    assertEquals(error.code, code, JSON.stringify(body));
    assertStringIncludes(error.message, part);
  }
  assertEquals(backend.proposed, []);
  for (const [method, body] of [["GET"], ["PATCH", { weight: 1 }], ["DELETE"]] as const) {
    const error = await refused(404, method, "/v1/nodes/host-9", body);
    assertEquals(error.hint, "'kelpie node list' shows the nodes that there are");
  }
});

Deno.test("a plan that is out of date where it is decided, and not yet here, is not carried out", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.clusterMap = atLevelTwo(clusterWithDisk(4, 3));
  const plan = await ask<PlanDocument>(200, "POST", "/v1/nodes/host-2/plan", {
    availability: "draining",
  });
  const { propose } = backend;
  backend.propose = (command) => {
    backend.propose = propose;
    // Another agent was first.
    backend.clusterMap = runAll(backend.clusterMap, {
      kind: "set-availability",
      node: 3,
      availability: "draining",
    });
    return propose.call(backend, command);
  };
  const { targetsEpoch } = plan;
  const body = { availability: "draining", weight: 3, targetsEpoch };
  assertEquals((await refused(409, "PATCH", "/v1/nodes/host-2", body)).code, "stale");
  const node = await ask<NodeDocument>(200, "GET", "/v1/nodes/host-2");
  assertEquals([node.availability, node.weight], ["in", null]);
  const next = { ...body, targetsEpoch: backend.clusterMap.targetsEpoch };
  const changed = await ask<NodeDocument>(200, "PATCH", "/v1/nodes/host-2", next);
  assertEquals([changed.availability, changed.weight], ["draining", 3]);
});

Deno.test("a node is found by its name before it is found by its number", async () => {
  const { ask, backend } = bound(new Harness());
  const map = clusterWithDisk(3, 3);
  backend.clusterMap = { ...map, nodes: map.nodes.with(1, { ...map.nodes[1], name: "3" }) };
  assertEquals((await ask<NodeDocument>(200, "GET", "/v1/nodes/3")).id, 2);
  assertEquals((await ask<NodeDocument>(200, "GET", "/v1/nodes/1")).id, 1);
});

Deno.test("a node is asked to start anew by name or id, unless it is down or unknown", async () => {
  const harness = new Harness();
  const { backend } = harness;
  backend.clusterMap = clusterOf(3);
  await harness.ask(204, "POST", "/v1/nodes/host-2/restart");
  await harness.ask(204, "POST", "/v1/nodes/1/restart");
  assertEquals(backend.restarts, [2, 1]);
  await backend.propose({ kind: "node-down", node: 3, incarnation: 1, nowMs: 9 });
  const down = await harness.refused(503, "POST", "/v1/nodes/host-3/restart");
  assertEquals([down.code, down.message], ["unavailable", "node host-3 is down"]);
  await harness.refused(404, "POST", "/v1/nodes/host-9/restart");
  assertEquals(backend.restarts, [2, 1]);
});

Deno.test("a plan is made and nothing is changed", async () => {
  const { ask, refused, backend } = bound(new Harness());
  backend.clusterMap = clusterWithDisk(4, 2);
  const { clusterMap } = backend;
  const plan = await ask<PlanDocument>(200, "POST", "/v1/nodes/host-2/plan", { remove: true });
  assert(plan.movedReplicas >= 128);
  assertEquals(plan.nodes.find(({ name }) => name === "host-2")?.goes, 128);
  assertEquals(plan.targetsEpoch, clusterMap.targetsEpoch);
  await refused(400, "POST", "/v1/nodes/host-2/plan", { weight: -1 });
  await refused(400, "POST", "/v1/nodes/host-2/plan", {});
  assertEquals(backend.clusterMap, clusterMap);
});

Deno.test("a loss is accepted only together with force", async () => {
  const { refused, backend } = bound(new Harness());
  backend.clusterMap = clusterWithDisk(3, 1);
  const error = await refused(400, "DELETE", "/v1/nodes/host-2?accept-loss=1");
  assertStringIncludes(error.message, "without force");
  assertEquals(backend.removed, []);
  const up = await refused(409, "DELETE", "/v1/nodes/host-2?force=1&accept-loss=1");
  assertStringIncludes(up.message, "is up");
});

Deno.test("the secret is in the answer and not in the log", async () => {
  const { ask, log } = bound(new Harness());
  const { secret } = await ask<{ secret: string }>(200, "GET", "/v1/cluster/secret");
  assertMatch(secret, /^kelpie1-/);
  assert(log.lines.some((line) => line.includes("/v1/cluster/secret")));
  assert(!log.lines.join().includes(secret));
});

Deno.test("a disk that is deleted while the list is made is left out", async () => {
  const { ask, backend } = bound(new Harness());
  backend.add("web");
  backend.add("db");
  const { diskStatus } = backend;
  backend.diskStatus = (name) => diskStatus.call(backend, name === "web" ? "gone" : name);
  const { disks } = await ask<{ disks: DiskDocument[] }>(200, "GET", "/v1/disks");
  assertEquals(disks.map((disk) => disk.name), ["db"]);
});

Deno.test("log level, shutdown, version and metrics", async () => {
  const { ask, send, backend } = bound(new Harness());
  assertEquals(await ask(200, "PUT", "/v1/log-level", { level: "debug" }), { level: "debug" });
  assertEquals(backend.logLevel, "debug");
  await ask(204, "POST", "/v1/shutdown");
  assertEquals(backend.isShutDown, true);
  assertEquals(await ask(200, "GET", "/v1/version"), { version: "1.2.3", api: "v1" });
  const metrics = await send("GET", "/metrics");
  assertMatch(metrics.headers.get("content-type")!, /^text\/plain; version=0\.0\.4/);
  assertStringIncludes(await metrics.text(), "kelpie_healthy 1\n");
});

/** Reads the events of a check. */
async function eventsOf(response: Response): Promise<Record<string, unknown>[]> {
  const text = await response.text();
  assertEquals(text.endsWith("\n"), true);
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

Deno.test("a check answers with lines, the report last", async () => {
  const { send, backend } = bound(new Harness());
  backend.add("web");
  const asked: (string | null)[] = [];
  backend.onCheck = async (name, onProgress) => {
    asked.push(name);
    onProgress(1, 3);
    await Promise.resolve();
    onProgress(2, 3);
    return { checkedBytes: 3, damagedBlocks: 1, damage: [{ disk: "web", offsetBytes: 4096 }] };
  };
  for (const path of ["/v1/disks/web/check", "/v1/check"]) {
    const response = await send("POST", path);
    assertEquals(response.headers.get("content-type"), "application/x-ndjson");
    assertEquals(await eventsOf(response), [
      { kind: "progress", checkedBytes: 1, totalBytes: 3 },
      { kind: "progress", checkedBytes: 2, totalBytes: 3 },
      {
        kind: "report",
        checkedBytes: 3,
        damagedBlocks: 1,
        damage: [{ disk: "web", offsetBytes: 4096 }],
      },
    ]);
  }
  assertEquals(asked, ["web", null]);
});

Deno.test("replicas are compared, and healed unless only a report is wanted", async () => {
  const { send, refused, backend } = bound(new Harness());
  backend.add("web");
  const unchecked = [{ disk: "web", reason: "it is not up", nodes: ["b"], chunks: 2 }];
  const report = { good: false, disks: [], blocks: [], unchecked };
  backend.onCompare = (_name, _repair, onProgress) => {
    onProgress(1, 3);
    return Promise.resolve(report);
  };
  const paths = [
    "/v1/disks/web/compare",
    "/v1/disks/web/compare?report-only=1",
    "/v1/compare?report-only=0",
    "/v1/compare?report-only=1",
  ];
  for (const path of paths) {
    assertEquals(await eventsOf(await send("POST", path)), [
      { kind: "progress", checkedBytes: 1, totalBytes: 3 },
      { kind: "compared", ...report },
    ]);
  }
  assertEquals(backend.compared, [["web", true], ["web", false], [null, true], [null, false]]);
  assertEquals((await refused(404, "POST", "/v1/disks/none/compare")).code, "missing");
  assertEquals((await refused(400, "POST", "/v1/compare?report-only=2")).code, "invalid");
});

Deno.test("one node's content counts where replicas differ, if it has any", async () => {
  const { send, refused, backend } = bound(new Harness());
  backend.clusterMap = clusterWithDisk(4, 2);
  const [{ name, id }] = backend.map().nodes;
  for (const node of [name, String(id)]) {
    const response = await send("POST", "/v1/disks/web/settle", { node });
    assertEquals(await eventsOf(response), [{ kind: "compared", ...backend.comparison }]);
  }
  assertEquals(backend.compared, [["web", true, id], ["web", true, id]]);
  const refuse = (status: number, path: string, body?: unknown) =>
    refused(status, "POST", path, body);
  assertEquals((await refuse(404, "/v1/disks/none/settle", { node: name })).code, "missing");
  assertEquals((await refuse(404, "/v1/disks/web/settle", { node: "none" })).code, "missing");
  for (const body of [undefined, {}, { node: 1 }, { node: name, yes: true }]) {
    assertEquals((await refuse(400, "/v1/disks/web/settle", body)).code, "invalid");
  }
  // The fifth one has come later, and has nothing.
  backend.clusterMap = run(backend.map(), addNode(5)).map;
  const nothing = await refuse(400, "/v1/disks/web/settle", { node: backend.map().nodes[4].name });
  assertEquals(nothing.code, "invalid");
  assertMatch(nothing.message, /has no replica in sync of disk web: nothing of it could count/);
  assertEquals(backend.compared.length, 2);
});

Deno.test("progress that nobody reads is dropped, the report is not", async () => {
  const { send, backend } = bound(new Harness());
  backend.onCheck = (_, onProgress) => {
    for (let index = 0; index < 100_000; index++) onProgress(index, 100_000);
    return Promise.resolve({ checkedBytes: 100_000, damagedBlocks: 0, damage: [] });
  };
  const events = await eventsOf(await send("POST", "/v1/check"));
  assert(events.length < 100, `${events.length} events`);
  assertEquals(events.at(-1)!.kind, "report");
});

Deno.test("a check that fails says why in its last line", async () => {
  const { send, backend } = bound(new Harness());
  const error = { code: "unavailable", message: "the store has stopped" } as const;
  backend.onCheck = () => Promise.reject(new ControlFailure(error));
  assertEquals(await eventsOf(await send("POST", "/v1/check")), [{ kind: "error", error }]);
  backend.onCheck = () => {
    throw new TypeError("thrown at once");
  };
  const [event] = await eventsOf(await send("POST", "/v1/check"));
  assertEquals((event.error as ControlError).code, "internal");
});

Deno.test("a check ends when its reader goes, and when the server closes", async () => {
  const { send, backend, closing } = bound(new Harness());
  const aborted: Promise<void>[] = [];
  backend.onCheck = (_, onProgress, signal) => {
    onProgress(0, 1);
    const { promise, resolve } = Promise.withResolvers<void>();
    aborted.push(promise);
    return new Promise<CheckReport>((_, reject) => {
      signal.addEventListener("abort", () => {
        resolve();
        reject(new ControlFailure({ code: "unavailable", message: "ended early" }));
      });
    });
  };
  const first = await send("POST", "/v1/check");
  await first.body!.cancel();
  await aborted[0];
  const second = await send("POST", "/v1/check");
  closing.abort();
  await aborted[1];
  assertEquals((await eventsOf(second)).at(-1)!.kind, "error");
});

Deno.test("only so many checks run at once, and each that ends makes room", async () => {
  const { send, refused, backend } = bound(new Harness());
  backend.onCheck = (_, onProgress) => {
    onProgress(0, 1);
    return new Promise(() => {});
  };
  const running: Response[] = [];
  for (let index = 0; index < CHECKS_MAX; index++) running.push(await send("POST", "/v1/check"));
  assertEquals((await refused(503, "POST", "/v1/check")).code, "unavailable");
  await running[0].body!.cancel();
  const next = await send("POST", "/v1/check");
  assertEquals(next.status, 200);
  for (const response of [...running.slice(1), next]) await response.body!.cancel();
  backend.onCheck = null;
  for (let index = 0; index < 2 * CHECKS_MAX; index++) {
    assertEquals((await refused(404, "POST", "/v1/disks/none/check")).code, "missing");
    assertEquals((await eventsOf(await send("POST", "/v1/check"))).at(-1)!.kind, "report");
  }
});

/** The harness with methods that can be taken apart. */
function bound(harness: Harness) {
  const { backend, log, closing } = harness;
  return {
    backend,
    log,
    closing,
    send: harness.send.bind(harness),
    ask: harness.ask.bind(harness) as Harness["ask"],
    refused: harness.refused.bind(harness),
  };
}
