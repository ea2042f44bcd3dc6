/**
 * Space of disks and snapshots, and places of chunks and blocks, over the admin API.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import type {
  ChunkListDocument,
  DiskDocument,
  ObjectDocument,
  PlacesDocument,
  SnapshotListDocument,
} from "../../agent/http/documents.ts";
import { createHandler } from "../../agent/http/server.ts";
import type { ControlError } from "../../agent/map/errors.ts";
import { clusterAtLevelTwo, runAll } from "../map/cluster.ts";
import { FakeBackend, FakeLog } from "./fake_backend.ts";

const MIB = 1024 ** 2, GIB = 1024 ** 3;

/** Two nodes, of which the first is asked, and a disk of 1 GiB with a snapshot. */
class Harness {
  readonly backend = new FakeBackend();
  readonly #handle = createHandler({
    backend: this.backend,
    log: new FakeLog(),
    closing: new AbortController().signal,
    statusTimeoutMs: 20,
  });

  constructor() {
    this.backend.clusterMap = runAll(
      clusterAtLevelTwo(2, "web"),
      { kind: "create-snapshots", disks: [1], name: "monday", nowMs: 1 },
    );
    const { info } = this.backend;
    const { uuid } = this.backend.clusterMap.nodes[0];
    this.backend.info = () => ({ ...info.call(this.backend), nodeId: uuid });
  }

  async ask<T>(status: number, method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.#handle(
      new Request(`http://agent${path}`, {
        method,
        body: body === undefined ? undefined : JSON.stringify(body),
      }),
    );
    const text = await response.text();
    assertEquals(response.status, status, text);
    return JSON.parse(text);
  }
}

Deno.test("disks and snapshots say what they take, and null when the store is silent", async () => {
  const harness = new Harness();
  const [newest, monday] = harness.backend.clusterMap.disks[0].layers;
  harness.backend.bytes.set(newest, 4096).set(monday, 8192);
  const disk = await harness.ask<DiskDocument>(200, "GET", "/v1/disks/web");
  assertEquals(disk.space, { usedBytes: 12288, exclusiveBytes: 12288, sharedBytes: 0 });
  const list = () => harness.ask<SnapshotListDocument>(200, "GET", "/v1/disks/web/snapshots");
  const [snapshot] = (await list()).snapshots;
  assertEquals(snapshot.space, { usedBytes: 8192, exclusiveBytes: 0, sharedBytes: 8192 });
  // What the disk has written over since comes back with the snapshot, and is counted for it alone.
  harness.backend.overlaps.set(monday, 4096);
  const counted = (await list()).snapshots.map(({ space }) => space);
  assertEquals(counted, [{ usedBytes: 8192, exclusiveBytes: 4096, sharedBytes: 4096 }]);
  harness.backend.overlaps.set(monday, null);
  assertEquals((await list()).snapshots.map(({ space }) => space), [null], "there was no time");
  harness.backend.overlaps.delete(monday);
  const { disks } = await harness.ask<{ disks: DiskDocument[] }>(200, "GET", "/v1/disks");
  assertEquals(disks[0].space, disk.space);
  harness.backend.silent.add("");
  assertEquals((await list()).snapshots.map(({ space }) => space), [null]);
  assertEquals((await harness.ask<DiskDocument>(200, "GET", "/v1/disks/web")).space, null);
});

Deno.test("places are counted by sets of nodes", async () => {
  const harness = new Harness();
  const found = await harness.ask<PlacesDocument>(200, "GET", "/v1/disks/web/places");
  assertEquals(found.chunkBytes, 4 * MIB);
  const groups = 2 ** harness.backend.clusterMap.pgBits;
  assertEquals(found.places, [{
    inSync: ["host-1", "host-2"],
    joining: [],
    target: ["host-1", "host-2"],
    readFrom: "host-1",
    problem: null,
    groups: Math.min(groups, 256),
    chunks: 256,
    sizeBytes: GIB,
  }]);
});

Deno.test("chunks of a range come from the one of its first byte to that of its last", async () => {
  const harness = new Harness();
  const path = "/v1/disks/web/chunks";
  const range = { offsetBytes: 5 * MIB, lengthBytes: 4 * MIB };
  const { chunks } = await harness.ask<ChunkListDocument>(200, "POST", path, range);
  assertEquals(chunks.map(({ chunk, offsetBytes }) => [chunk, offsetBytes]), [
    [1, 4 * MIB],
    [2, 8 * MIB],
  ]);
  assertEquals(chunks[0].readFrom, "host-1");
  const past = { offsetBytes: GIB - 512, lengthBytes: 513 };
  const { error } = await harness.ask<{ error: ControlError }>(400, "POST", path, past);
  assertMatch(error.message, /^513 bytes at 1073741312 are not within disk web of 1073741824 /);
});

Deno.test("a long range comes in parts, and the last chunk is as short as the disk is", async () => {
  const harness = new Harness();
  const sizeBytes = 1200 * 4 * MIB + 512;
  harness.backend.clusterMap = runAll(
    harness.backend.clusterMap,
    { kind: "resize-disk", name: "web", sizeBytes },
  );
  const range = { offsetBytes: 0, lengthBytes: sizeBytes };
  const path = "/v1/disks/web/chunks";
  const first = await harness.ask<ChunkListDocument>(200, "POST", path, range);
  assertEquals(first.chunks.length, 1024);
  const rest = { offsetBytes: 1024 * 4 * MIB, lengthBytes: sizeBytes - 1024 * 4 * MIB };
  const second = await harness.ask<ChunkListDocument>(200, "POST", path, rest);
  assertEquals(second.chunks.length, 177);
  assertEquals(second.chunks.at(-1)?.lengthBytes, 512);
});

Deno.test("an object is a block with its layer's name, and the place in the store of this node", async () => {
  const harness = new Harness();
  const { disks: [web] } = harness.backend.clusterMap;
  const place = { path: "/var/lib/kelpie", storeOffsetBytes: 81920 };
  const ask = (offsetBytes: number) =>
    harness.ask<ObjectDocument>(200, "POST", "/v1/disks/web/object", { offsetBytes });
  harness.backend.blockPlace = { state: "data", layer: web.layers[1], ...place };
  const found = await ask(4 * MIB + 4097);
  assertEquals(
    [found.chunk, found.blockOffsetBytes, found.layerOf, found.storeOffsetBytes],
    [1, 4 * MIB + 4096, "web@monday", 81920],
  );
  harness.backend.blockPlace = { state: "damaged", layer: web.layers[0], ...place };
  assertEquals((await ask(0)).layerOf, "web");
  const { error } = await harness.ask<{ error: ControlError }>(
    400,
    "POST",
    "/v1/disks/web/object",
    { offsetBytes: GIB },
  );
  assertMatch(error.message, /^offset 1073741824 is not within disk web/);
});

Deno.test("a snapshot has places of its own: its size, its layer, and nothing of what came later", async () => {
  const harness = new Harness();
  const { backend } = harness;
  backend.clusterMap = runAll(
    backend.clusterMap,
    { kind: "resize-disk", name: "web", sizeBytes: 2 * GIB },
  );
  const [, monday] = backend.clusterMap.disks[0].layers;
  const places = await harness.ask<PlacesDocument>(
    200,
    "GET",
    "/v1/disks/web/snapshots/monday/places",
  );
  assertEquals(places.places.map(({ chunks, sizeBytes }) => [chunks, sizeBytes]), [[256, GIB]]);
  const range = { offsetBytes: GIB - 4096, lengthBytes: 4096, snapshot: "monday" };
  const chunks = "/v1/disks/web/chunks";
  const found = await harness.ask<ChunkListDocument>(200, "POST", chunks, range);
  assertEquals(found.chunks.map(({ chunk }) => chunk), [255]);
  await harness.ask<ObjectDocument>(200, "POST", "/v1/disks/web/object", { offsetBytes: 0 });
  const object = "/v1/disks/web/object";
  await harness.ask<ObjectDocument>(200, "POST", object, { offsetBytes: 0, snapshot: "monday" });
  assertEquals(backend.askedBlocks, [undefined, monday]);
  const cases: [status: number, path: string, body: unknown, message: RegExp][] = [
    [400, chunks, { ...range, offsetBytes: GIB }, /not within snapshot web@monday of 1073741824/],
    [400, chunks, { ...range, since: "web@monday" }, /says nothing about where chunks are/],
    [404, chunks, { ...range, snapshot: "friday" }, /no snapshot named "friday"/],
    [400, object, { offsetBytes: GIB, snapshot: "monday" }, /not within snapshot web@monday/],
    [404, object, { offsetBytes: 0, snapshot: "friday" }, /no snapshot named "friday"/],
  ];
  for (const [status, path, body, message] of cases) {
    const { error } = await harness.ask<{ error: ControlError }>(status, "POST", path, body);
    assertMatch(error.message, message);
  }
  const missing = "/v1/disks/web/snapshots/friday/places";
  await harness.ask<{ error: ControlError }>(404, "GET", missing);
});

Deno.test("without a map of a cluster nothing has a place", async () => {
  const harness = new Harness();
  harness.backend.clusterMap = { ...harness.backend.clusterMap, pools: [], nodes: [] };
  const { error } = await harness.ask<{ error: ControlError }>(
    503,
    "GET",
    "/v1/disks/web/places",
  );
  assertMatch(error.message, /has no map of a cluster yet/);
});
