/**
 * Holds the API's description against its routes, both ways, and against what the agent answers.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Ajv2020 } from "ajv";
import { OPENAPI, type Schema, SCHEMAS } from "../../agent/http/openapi.ts";
import { ROUTES } from "../../agent/http/routes.ts";
import { createHandler } from "../../agent/http/server.ts";
import { checkShape } from "../../agent/http/shape.ts";
import { ControlFailure } from "../../agent/map/errors.ts";
import type { ClusterMap } from "../../agent/map/map.ts";
import { clusterWithDisk, runAll } from "../map/cluster.ts";
import { FakeBackend, FakeLog, HEALTHY_STORE, IDLE_DISK, sessionWith } from "./fake_backend.ts";

interface Operation {
  operationId: string;
  parameters?: { name: string; in: string }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
  responses: Record<string, { content?: Record<string, { schema: Schema }> }>;
}

const PREFIX = "#/components/schemas/";

/** Every operation of the document by "METHOD path". */
const OPERATIONS = new Map<string, Operation>(
  Object.entries(OPENAPI.paths).flatMap(([path, item]) =>
    Object.entries(item).filter(([key]) => key !== "parameters").map(
      ([method, operation]): [string, Operation] => [
        `${method.toUpperCase()} ${path}`,
        operation as unknown as Operation,
      ],
    )
  ),
);

const ajv = new Ajv2020({ strict: true, allErrors: true, allowUnionTypes: true });
ajv.addVocabulary(["components"]);
ajv.addSchema({ $id: "openapi", components: { schemas: SCHEMAS } });

function assertFits(value: unknown, schema: Schema, what: string): void {
  const absolute = JSON.parse(JSON.stringify(schema).replaceAll(`"${PREFIX}`, `"openapi${PREFIX}`));
  const validate = ajv.compile(absolute);
  assert(
    validate(value),
    `${what}: ${ajv.errorsText(validate.errors)}\n${JSON.stringify(value)}`,
  );
}

Deno.test("every route is described, and every description has its route", () => {
  const routes = ROUTES.map((route) => `${route.method} ${route.path}`);
  assertEquals(new Set(routes).size, routes.length);
  assertEquals(routes.toSorted(), [...OPERATIONS.keys()].toSorted());
});

Deno.test("routes and descriptions agree on bodies, queries and names in paths", () => {
  for (const route of ROUTES) {
    const operation = OPERATIONS.get(`${route.method} ${route.path}`)!;
    const body = operation.requestBody?.content["application/json"].schema.$ref;
    assertEquals(body, route.body === undefined ? undefined : `${PREFIX}${route.body}`);
    const query = (operation.parameters ?? []).filter((each) => each.in === "query");
    assertEquals(query.map((each) => each.name), [...route.query ?? []]);
    const item = OPENAPI.paths[route.path as keyof typeof OPENAPI.paths];
    const inPath = "parameters" in item ? item.parameters.map(({ name }) => `{${name}}`) : [];
    assertEquals(inPath, route.path.match(/\{\w+\}/g) ?? [], route.path);
    const streams = Object.values(operation.responses).some((each) =>
      "application/x-ndjson" in (each.content ?? {})
    );
    assertEquals(streams, route.streams ?? false);
  }
});

Deno.test("operations have names of their own, and references lead somewhere", () => {
  const ids = [...OPERATIONS.values()].map((operation) => operation.operationId);
  assertEquals(new Set(ids).size, ids.length);
  const text = JSON.stringify(OPENAPI);
  const used = new Set([...text.matchAll(/"#\/components\/schemas\/(\w+)"/g)].map((m) => m[1]));
  assertEquals([...used].toSorted(), Object.keys(SCHEMAS).toSorted());
});

Deno.test("every schema is valid and says what it is", () => {
  for (const [name, schema] of Object.entries(SCHEMAS)) {
    assert(ajv.validateSchema(schema), `${name}: ${ajv.errorsText(ajv.errors)}`);
    assert((schema.description ?? "") !== "", name);
  }
});

/** A backend that has something of everything. */
function fullBackend(): FakeBackend {
  const backend = new FakeBackend();
  backend.clusterMap = clusterWithOddities();
  backend.add("db");
  backend.clusterMap = runAll(
    { ...backend.clusterMap, level: 2 },
    { kind: "create-snapshots", disks: [2], name: "monday", nowMs: 1 },
    { kind: "clone-disk", disk: "db", snapshot: "monday", name: "copy", nowMs: 2 },
    { kind: "create-snapshots", disks: [1], name: "tuesday", nowMs: 2 },
    { kind: "clone-disk", disk: "db", snapshot: "monday", name: "flat", nowMs: 2 },
    { kind: "delete-disk", name: "copy", trashedMs: 3 },
    { kind: "flatten-disk", disk: "flat" },
    {
      kind: "set-schedule",
      disk: "db",
      name: "hourly",
      everyMs: 3_600_000,
      keep: 1,
      keepDaily: 0,
      keepWeekly: 0,
      keepMonthly: 0,
      nowMs: 4,
    },
  );
  backend.leaseTimes.set("web", { sinceMs: 1_700_000_000_000, isExact: true });
  backend.nodeParts.set(2, {
    suspectedBecause: "host-1 probed it in vain",
    copyBytesPerSecond: 1.5,
    secondsLeft: 12.5,
    stuck: "no source",
    hasLostLog: true,
    hasOtherLog: true,
    usedBytes: null,
  });
  backend.clusterPart = {
    waiting: [{ disk: "web", node: 1, reason: "it waits" }],
    joining: [{ address: "host-1:7460", reason: "it cannot be reached", hint: "look" }],
    notes: ["a note"],
  };
  backend.statuses.set("web", {
    ...IDLE_DISK,
    sessions: [sessionWith(), sessionWith({ waitingForLease: true, active: false, broken: "bad" })],
  });
  backend.store = {
    ...HEALTHY_STORE,
    full: true,
    waitingWrites: 3,
    failed: "disk gone",
    damagedBlocks: 2,
    damage: [{ disk: "web", offsetBytes: 0 }, { disk: "", offsetBytes: 4096 }],
  };
  backend.onCheck = (_, onProgress) => {
    onProgress(1, 2);
    return Promise.resolve({ checkedBytes: 2, damagedBlocks: 0, damage: [] });
  };
  backend.onCompare = (_name, _repair, onProgress) => {
    onProgress(1, 2);
    return Promise.resolve({
      good: false,
      disks: [{
        disk: "web",
        inTrash: false,
        chunks: 3,
        comparedChunks: 1,
        singleChunks: 1,
        verifiedBlocks: 9,
        damagedBlocks: 2,
        repairedBlocks: 1,
        differingBlocks: 2,
        settledBlocks: 1,
        laggingChunks: 3,
        caughtUpChunks: 2,
        uncheckedChunks: 1,
      }],
      blocks: [
        { kind: "damaged", disk: "web", offsetBytes: 0, nodes: ["a"], contents: [0], reason: "x" },
        {
          kind: "differs",
          disk: "web",
          offsetBytes: 4096,
          nodes: ["a", "b"],
          contents: [0, 1],
          reason: "y",
        },
      ],
      unchecked: [{ disk: "web", reason: "it is not up", nodes: ["c"], chunks: 1 }],
    });
  };
  return backend;
}

/** A cluster with a disk that is open, a node that is drained, and a loss. */
function clusterWithOddities(): ClusterMap {
  let map = runAll(
    clusterWithDisk(4, 1),
    { kind: "take-lease", id: 1, node: 1, incarnation: 1 },
    { kind: "set-weight", node: 2, weight: 1.5 },
    { kind: "set-availability", node: 2, availability: "draining" },
    { kind: "set-zone", node: 1, zone: "rack" },
    { kind: "node-down", node: 4, incarnation: 1, nowMs: 1 },
    { kind: "remove-node", node: 4, force: true, acceptLoss: true, nowMs: 2 },
  );
  // Node 3 is named by no PG, so that it can be removed.
  const pgs = map.pools[0].pgs.map((pg) => ({ ...pg, target: [1], inSync: [1] }));
  map = { ...map, pools: [{ ...map.pools[0], pgs }] };
  return map;
}

/** A request for every route that goes well, by "METHOD path". */
const REQUESTS: Record<string, { body?: unknown; query?: string }> = {
  "POST /v1/disks": {
    body: {
      name: "new",
      sizeBytes: 512,
      readOnly: true,
      copies: 2,
      zones: ["rack"],
      attributes: { a: "b" },
      detectZeroes: true,
    },
  },
  "PATCH /v1/disks/{name}": {
    body: {
      sizeBytes: 512,
      shrink: true,
      readOnly: true,
      name: "x",
      attributes: {},
      copies: 2,
      zones: ["rack"],
      limits: { iops: 500 },
      detectZeroes: true,
    },
  },
  "DELETE /v1/disks/{name}": { query: "?force=1" },
  "POST /v1/disks/{name}/extents": { body: { offsetBytes: 0, lengthBytes: 8192 } },
  "POST /v1/disks/{name}/chunks": { body: { offsetBytes: 0, lengthBytes: 8192 } },
  "POST /v1/disks/{name}/object": { body: { offsetBytes: 4097 } },
  "POST /v1/snapshots": { body: { disks: ["db"], name: "wednesday" } },
  "PATCH /v1/disks/{name}/snapshots/{snapshot}": { body: { name: "mon", isProtected: true } },
  "POST /v1/disks/{name}/snapshots/{snapshot}/clone": { body: { name: "other", readOnly: true } },
  "PUT /v1/disks/{name}/schedules/{schedule}": { body: { everyMs: 60_000, keep: 3, keepDaily: 7 } },
  "POST /v1/trash/{deleted}/restore": { body: { name: "again" } },
  "PATCH /v1/cluster/settings": {
    body: { trashMs: 5, copies: 2, copiesMin: null, outAfterMs: 60_000 },
  },
  "PATCH /v1/nodes/{node}": { body: { weight: null, zone: "z", availability: "in" } },
  "POST /v1/nodes/{node}/plan": { body: { remove: true } },
  "PUT /v1/log-level": { body: { level: "warn" } },
};

Deno.test("every answer, good or bad, is as described", async () => {
  for (const [key, operation] of OPERATIONS) {
    for (const isBroken of [false, true]) {
      const backend = fullBackend();
      if (isBroken) breakAll(backend);
      const response = await request(backend, key);
      const described = operation.responses[response.status] ?? operation.responses.default;
      assertEquals(response.ok, response.status in operation.responses, key);
      const type = (response.headers.get("content-type") ?? "").split(";")[0];
      const schema = described.content?.[type]?.schema;
      const text = await response.text();
      if (described.content === undefined) assertEquals(text, "", key);
      else assertBody(text, { schema, type, what: `${key} ${response.status}` });
    }
  }
});

function breakAll(backend: FakeBackend): void {
  const fail = () =>
    Promise.reject(new ControlFailure({ code: "full", message: "no space", hint: "make some" }));
  Object.assign(backend, {
    propose: fail,
    diskStatus: fail,
    layerBytes: fail,
    extents: fail,
    storeStatus: fail,
    onCheck: fail,
    cluster: fail,
    secret: fail,
  });
}

async function request(backend: FakeBackend, key: string): Promise<Response> {
  const [method, path] = key.split(" ");
  const { body, query = "" } = REQUESTS[key] ?? {};
  // A snapshot of web waits for a holder that is not there.
  const disk = path.includes("/snapshots") || path.includes("/schedules") ? "db" : "web";
  const place = path.replace("{name}", path.includes("/flatten") ? "flat" : disk).replace(
    "{node}",
    "host-3",
  )
    .replace("{snapshot}", "monday").replace("{schedule}", "hourly").replace("{deleted}", "copy");
  const handle = createHandler({
    backend,
    log: new FakeLog(),
    closing: new AbortController().signal,
  });
  return await handle(
    new Request(`http://agent${place}${query}`, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
    }),
  );
}

function assertBody(
  body: string,
  { schema, type, what }: { schema: Schema | undefined; type: string; what: string },
): void {
  if (schema === undefined) throw new Error(`${what}: content type ${type} is not described`);
  if (type === "text/plain") return assertFits(body, schema, what);
  const lines = type === "application/json" ? [body] : body.trimEnd().split("\n");
  for (const line of lines) assertFits(JSON.parse(line), schema, what);
}

Deno.test("checkShape() refuses nothing that the schema allows, and no less than its shape", () => {
  const cases: [string, unknown, boolean][] = [
    ["CreateDisk", { name: "a", sizeBytes: 512 }, true],
    ["CreateDisk", { name: "a", sizeBytes: 512, attributes: {} }, true],
    ["CreateDisk", { name: "a", sizeBytes: 512, attributes: { k: "v" } }, true],
    ["CreateDisk", { name: "a", sizeBytes: 512, attributes: { k: null } }, false],
    ["CreateDisk", { name: "a", sizeBytes: 512, more: 1 }, false],
    ["CreateDisk", { name: "a", sizeBytes: null }, false],
    ["CreateDisk", { sizeBytes: 512 }, false],
    ["ChangeDisk", { readOnly: false }, true],
    ["ChangeDisk", {}, false],
    ["ChangeDisk", "x", false],
    ["ChangeNode", { weight: 1.5 }, true],
    ["ChangeNode", { weight: null }, true],
    ["ChangeNode", { weight: "1T" }, false],
    ["ChangeNode", { availability: "out" }, false],
    ["ChangeNode", {}, false],
    ["PlanRequest", { remove: true }, true],
    ["ChangeSettings", { copiesMin: null }, true],
    ["ChangeSettings", { copiesMin: 1.5 }, false],
    ["ChangeDisk", { zones: [] }, true],
    ["ChangeDisk", { zones: ["a", 1] }, false],
    ["ChangeDisk", { zones: "a" }, false],
    ["ChangeDisk", { setAttributes: { a: "b", c: null } }, true],
    ["ChangeDisk", { setAttributes: { a: 1 } }, false],
    ["CreateSnapshots", { disks: ["web", "db"], name: "monday" }, true],
    ["CreateSnapshots", { disks: "web", name: "monday" }, false],
    ["CreateSnapshots", { disks: ["web", 1], name: "monday" }, false],
    ["CreateSnapshots", { disks: { 0: "web" }, name: "monday" }, false],
    ["ChangeSnapshot", {}, false],
    ["RestoreDisk", {}, true],
    ["SetSchedule", { everyMs: 60_000, keep: 1 }, true],
    ["SetSchedule", { everyMs: "1h", keep: 1 }, false],
    ["LogLevel", { level: "debug" }, true],
    ["LogLevel", { level: "loud" }, false],
    ["LogLevel", { level: 1 }, false],
    ["LogLevel", { level: null }, false],
  ];
  for (const [name, value, fits] of cases) {
    const what = `${name} ${JSON.stringify(value)}`;
    assertEquals(checkShape(value, SCHEMAS[name], SCHEMAS) === null, fits, what);
    assertEquals(ajv.validate(`openapi${PREFIX}${name}`, value), fits, what);
  }
});
