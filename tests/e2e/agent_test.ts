/**
 * A real agent on real files, driven as its users do it: by signals, the command line, curl and vhost-user. No
 * guest: `guest_test.ts` has those.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import { BackEndError } from "../../agent/frontend/error.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { formatClusterSecret } from "../../agent/cluster_secret.ts";
import { Prng } from "../../agent/base/prng.ts";
import { until } from "../guest/deadline.ts";
import { find } from "../guest/install.ts";
import { AgentProcess, AgentRefusal, WorkDirectory } from "../tools/agent_process.ts";
import { addressFor } from "../tools/ports.ts";
import { NotifySocket } from "./notify_socket.ts";
import { changeHost, makeNewer, readSuperblock, storePath } from "./superblocks.ts";

const KIB = 1024, MIB = 1024 * KIB;

/** Options of an agent in a directory of its own. */
function optionsIn(work: WorkDirectory, more: { capacity?: string } = {}) {
  return {
    runDir: `${work.path}/run`,
    dataDir: `${work.path}/data`,
    capacity: "1G",
    ...more,
  };
}

function randomBytes(seed: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(lengthBytes);
  new Prng(seed).fill(bytes);
  return bytes;
}

/** Says where long bytes differ; a whole comparison of megabytes takes minutes to print. */
function assertBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assertEquals(actual.length, expected.length, what);
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  if (at < 0) return;
  const shown = [actual, expected].map((bytes) => bytes.slice(at, at + 16).toHex());
  throw new Error(`${what}: byte ${at} and on are ${shown[0]}, not ${shown[1]}`);
}

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

Deno.test("an agent makes its identity at its first start and keeps it and all data through stops and kills", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const data = randomBytes(1, 300_000);
  let identity;
  {
    await using agent = await AgentProcess.start(options);
    assertMatch(agent.log, /made a new store/);
    using client = agent.client();
    identity = (await client.status()).agent;
    assertMatch(identity.nodeId, /^(?!0+$)[0-9a-f]{32}$/);
    assertMatch(identity.clusterId, /^(?!0+$)[0-9a-f]{32}$/);
    await client.createDisk({ name: "web", sizeBytes: 64 * MIB });
    const written = await agent.runWith({ stdin: data }, "disk", "write", "web", "--offset", "1M");
    assertEquals(written.code, 0, written.stderr);
    // Owner-only: whoever reaches the sockets reaches the data.
    for (const path of [agent.runDir, `${agent.runDir}/agent.sock`, agent.socket("web")]) {
      assertEquals((await Deno.stat(path)).mode! & 0o077, 0, path);
    }
    assertEquals((await Deno.stat(storePath(options.dataDir))).mode! & 0o077, 0);
    await agent.stop();
    assertEquals(readSuperblock(options.dataDir).clean, true);
    assertEquals([...Deno.readDirSync(agent.runDir)].filter((entry) => entry.isFile), []);
  }
  for (const end of ["kill", "stop"] as const) {
    await using agent = await AgentProcess.start(options);
    assertMatch(agent.log, /the agent is ready/);
    assert(!agent.log.includes("made a new store"));
    using client = agent.client();
    const { nodeId, clusterId } = (await client.status()).agent;
    assertEquals([nodeId, clusterId], [identity.nodeId, identity.clusterId]);
    const read = ["disk", "read", "web", "--offset", "1M", "--length", `${data.length}`];
    const { code, stdout, stderr } = await agent.run(...read);
    assertEquals(code, 0, stderr);
    assertBytes(stdout, data, "web");
    await agent[end]();
    assertEquals(readSuperblock(options.dataDir).clean, end === "stop");
  }
});

Deno.test("a start that is refused does not hide that the run before it was killed", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  {
    await using agent = await AgentProcess.start(options);
    await agent.kill();
  }
  assertEquals(readSuperblock(options.dataDir).clean, false);
  const secretFile = `${work.path}/secret`;
  const secret = formatClusterSecret(new Uint8Array(32).fill(9));
  await Deno.writeTextFile(secretFile, `${secret}\n`, { mode: 0o600 });
  const refused = AgentProcess.start({ ...options, arguments: ["--secret-file", secretFile] });
  await assertRejects(() => refused, Error, "another secret");
  assertEquals(readSuperblock(options.dataDir).clean, false);
  await using agent = await AgentProcess.start(options);
  await agent.stop();
  assertEquals(readSuperblock(options.dataDir).clean, true);
});

Deno.test("a larger capacity makes a store larger, and a smaller one is said to change nothing", async () => {
  await using work = await WorkDirectory.make();
  const startWith = async (capacity: string) => {
    await using agent = await AgentProcess.start(optionsIn(work, { capacity }));
    using client = agent.client();
    const { store } = await client.status();
    await agent.stop();
    return { capacityBytes: store!.capacityBytes, log: agent.log };
  };
  const first = await startWith("512M");
  const same = await startWith("512M");
  const larger = await startWith("1G");
  const smaller = await startWith("512M");
  assertEquals(same.capacityBytes, first.capacityBytes);
  assert(larger.capacityBytes > first.capacityBytes);
  assertEquals(smaller.capacityBytes, larger.capacityBytes);
  const said = [first, same, larger, smaller].map(({ log }) => log.includes("does not shrink"));
  assertEquals(said, [false, false, false, true]);
  assertMatch(smaller.log, / wanted=512M /);
});

Deno.test("an agent refuses data that another agent uses, that another host wrote, or that a newer one wrote", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const refusal = async (
    more: { runDir?: string; dataDir?: string; listen?: string; arguments?: string[] } = {},
  ) => {
    const starting = AgentProcess.start({ ...options, ...more });
    starting.then((agent) => agent.kill(), () => {});
    return await assertRejects(() => starting, AgentRefusal) as AgentRefusal;
  };
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "1G");
    const busy = await refusal({ runDir: `${work.path}/run2` });
    assertEquals(busy.code, 2, busy.stderr);
    assertMatch(busy.stderr, /another kelpie agent is using it/);
    // Neither did it harm the one that is there.
    assertMatch(await agent.check("status"), /^healthy: 1 disk/);
    // One with other data but the same sockets must not take them away either.
    const taken = await refusal({ dataDir: `${work.path}/d2` });
    assertMatch(taken.stderr, /an agent listens on .*agent\.sock already/);
    // Its address is no more to be had: who else wants it says so, and says what to do.
    const deaf = await refusal({
      runDir: `${work.path}/run2`,
      dataDir: `${work.path}/d2`,
      listen: addressFor(options.dataDir),
    });
    assertEquals(deaf.code, 2, deaf.stderr);
    assertMatch(deaf.stderr, /cannot listen at 127\.0\.0\.1:\d+: .*in use[^]*--listen/);
    assertMatch(await agent.check("status"), /^healthy: 1 disk/);
    assertEquals(await agent.check("disk", "list", "--names"), "web");
    await agent.stop();
  }
  const { hostId } = readSuperblock(options.dataDir);
  changeHost(options.dataDir, hostId.map((byte) => byte ^ 0xff));
  const foreign = await refusal();
  assertEquals(foreign.code, 2, foreign.stderr);
  assertMatch(foreign.stderr, /another host/);
  assertMatch(foreign.stderr, /--adopt/);
  {
    await using agent = await AgentProcess.start({ ...options, arguments: ["--adopt"] });
    assertEquals(await agent.check("disk", "list", "--names"), "web");
    await agent.stop();
  }
  assertEquals(readSuperblock(options.dataDir).hostId, hostId);
  // Adopted once and for all.
  await (await AgentProcess.start(options)).stop();

  makeNewer(options.dataDir);
  const before = await digest(storePath(options.dataDir));
  const newer = await refusal({ arguments: ["--adopt", "--accept-damage"] });
  assertEquals(newer.code, 2, newer.stderr);
  assertMatch(newer.stderr, /newer version/);
  assertEquals(await digest(storePath(options.dataDir)), before, "it was changed");
});

Deno.test("a store whose superblocks are zeros is refused, not taken for a place for a new one", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const path = storePath(options.dataDir);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    const data = randomBytes(3, MIB);
    assertEquals((await agent.runWith({ stdin: data }, "disk", "write", "web")).code, 0);
    await agent.stop();
  }
  const head = new Uint8Array(MIB);
  {
    using file = await Deno.open(path);
    assertEquals(await file.read(head), MIB);
  }
  const overwrite = async (bytes: Uint8Array) => {
    using file = await Deno.open(path, { write: true });
    assertEquals(await file.write(bytes), MIB);
  };
  await overwrite(new Uint8Array(MIB));
  const refused = await assertRejects(() => AgentProcess.start(options), AgentRefusal);
  assertEquals(refused.code, 2, refused.stderr);
  assertMatch(refused.stderr, new RegExp(`${options.dataDir}: .*zeros.*its beginning was overwr`));
  assertMatch(refused.stderr, /delete the file/);
  // It was left alone: with its beginning it is what it was.
  await overwrite(head);
  {
    await using agent = await AgentProcess.start(options);
    assertEquals(await agent.check("disk", "list", "--names"), "web");
    const read = await agent.run("disk", "read", "web", "--length", "1M");
    assertBytes(read.stdout, randomBytes(3, MIB), "web");
    await agent.stop();
  }
  // What the refusal says to do is enough.
  await Deno.remove(path);
  await using agent = await AgentProcess.start(options);
  assertEquals(await agent.check("disk", "list", "--names"), "");
});

/** SHA-256 of a store's first MiB, where a format would leave its traces. */
async function digest(path: string): Promise<string> {
  using file = await Deno.open(path);
  const bytes = new Uint8Array(MIB);
  await file.read(bytes);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

Deno.test("an agent tells systemd when it is ready and when it stops", async () => {
  await using work = await WorkDirectory.make();
  using notify = new NotifySocket(`${work.path}/notify`);
  const env = { NOTIFY_SOCKET: `${work.path}/notify` };
  await using agent = await AgentProcess.start({ ...optionsIn(work), env });
  await until(() => notify.received().length > 0, { timeoutMs: 10_000, what: () => "READY=1" });
  assertEquals(notify.received(), ["READY=1"]);
  await agent.stop();
  assertEquals(notify.received(), ["READY=1", "STOPPING=1"]);
});

Deno.test("the command line manages disks and ends with the code that the documentation names", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsIn(work));
  /** Arguments, exit code, what standard output and standard error must match. */
  const steps: [args: string, code: number, stdout: RegExp, stderr: RegExp][] = [
    ["status", 0, /^healthy: 0 disks/, /^$/],
    ["disk list", 0, /^$/, /no disk yet/],
    ["disk create web 64M", 0, /^$/, /disk web of 64M at .*web\.sock/],
    ["disk create web 64M", 3, /^$/, /web/],
    ["disk create db 1.5T --json", 0, /"sizeBytes": 1649267441664/, /^$/],
    ["disk create ../etc 1G", 64, /^$/, /name/],
    ["disk create huge 5E", 64, /^$/, /./],
    ["disk creat web 1G", 64, /^$/, /create/],
    ["disk list --names", 0, /^db\nweb\n$/, /^$/],
    ["disk info web", 0, /size: +64M/, /^$/],
    ["disk info wbe", 5, /^$/, /wbe/],
    ["disk rename web www", 0, /^$/, /www/],
    ["disk rename db www", 3, /^$/, /www/],
    ["disk rename none some", 5, /^$/, /none/],
    ["disk resize www +64M", 0, /^$/, /128M/],
    ["disk resize www 32M", 64, /^$/, /--shrink/],
    ["disk resize www 32M --shrink --yes", 0, /^$/, /32M/],
    ["disk snapshot www@a db@a", 0, /^$/, /took www@a, db@a/],
    ["disk snapshot www@a", 3, /^$/, /has a snapshot named a already/],
    ["disk snapshot list --names", 0, /^db@a\nwww@a\n$/, /^$/],
    ["disk clone www@a copy", 0, /^$/, /copy\.sock/],
    ["disk rollback www@a --yes", 0, /^$/, /in the trash/],
    ["disk delete copy --now --yes", 0, /^$/, /deleted/],
    ["disk purge --all --yes", 0, /^$/, /purged disk www/],
    ["disk delete www", 64, /^$/, /--yes/],
    ["disk delete www --yes", 0, /^$/, /deleted/],
    ["disk delete www --yes", 5, /^$/, /www/],
    ["disk trash --names", 0, /^www\n$/, /^$/],
    ["disk undelete www", 0, /^$/, /is back/],
    ["disk delete www --now --yes", 0, /^$/, /deleted/],
    ["disk list --names", 0, /^db\n$/, /^$/],
    ["disk qemu db", 0, /vhost-user-blk-pci/, /^$/],
    ["version", 0, /agent/, /^$/],
  ];
  for (const [line, expected, out, err] of steps) {
    const { code, stdout, stderr } = await agent.run(...line.split(" "));
    assertEquals(code, expected, `kelpie ${line}: ${stderr}`);
    assertMatch(text(stdout), out, `kelpie ${line}`);
    assertMatch(stderr, err, `kelpie ${line}`);
  }
  // Sockets come and go with the names.
  assertEquals(socketsIn(agent.runDir), ["agent.sock", "db.sock", "db@a.sock"]);
  assertEquals(socketsIn(`${agent.runDir}/ro`), ["db.sock"]);
  await agent.stop();
  const { code, stderr } = await agent.run("status");
  assertEquals(code, 2, stderr);
  assertEquals(socketsIn(agent.runDir), [], "sockets outlive a clean stop");
});

function socketsIn(dir: string): string[] {
  return [...Deno.readDirSync(dir)].filter((entry) => !entry.isDirectory)
    .map((entry) => entry.name).sort();
}

Deno.test("data goes in and out by every way, and a shrunken or discarded part reads as zeros", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsIn(work));
  const sizeBytes = 8 * MIB;
  // An image with a hole: data, nothing, data.
  const image = new Uint8Array(sizeBytes);
  image.set(randomBytes(2, MIB + 512), 0);
  image.set(randomBytes(3, MIB), 5 * MIB);
  const file = `${work.path}/image.raw`;
  await Deno.writeFile(file, image);

  await agent.check("disk", "import", file, "web");
  assertBytes(await exported(agent, "web"), image, "web");
  await agent.check("disk", "export", "web", `${work.path}/out.raw`);
  assertBytes(await Deno.readFile(`${work.path}/out.raw`), image, "out.raw");
  {
    using client = agent.client();
    const { allocatedBytes } = await client.disk("web");
    assert(allocatedBytes >= 2 * MIB && allocatedBytes <= 2.25 * MIB, `${allocatedBytes} bytes`);
    const { space, layers, counters } = await client.disk("web");
    assertEquals(space?.exclusiveBytes, allocatedBytes, "nobody shares it");
    assert(counters.timedRequests > 0 && counters.timedMs > 0, JSON.stringify(counters));
    // Where its bytes live is where they are in the store's file.
    const object = await client.diskObject("web", { offsetBytes: 5 * MIB + 4097 });
    assertEquals([object.state, object.layer, object.layerOf], ["data", layers[0], "web"]);
    assertEquals([object.inSync.length, object.readFrom], [1, object.inSync[0]]);
    const { path } = await client.store();
    using store = await Deno.open(path);
    await store.seek(object.storeOffsetBytes!, Deno.SeekMode.Start);
    const block = new Uint8Array(4096);
    assertEquals(await store.read(block), 4096);
    assertBytes(block, image.subarray(5 * MIB + 4096, 5 * MIB + 8192), "the block in the store");
    assertEquals((await client.diskObject("web", { offsetBytes: 3 * MIB })).state, "hole");
  }
  const again = await agent.run("disk", "import", file, "web");
  assertEquals(again.code, 3, again.stderr);
  const there = await agent.run("disk", "export", "web", `${work.path}/out.raw`);
  assertEquals(there.code, 3, there.stderr);

  // Standard input, at an offset in the middle of a sector.
  const part = randomBytes(4, 10_001);
  image.set(part, 777);
  const written = await agent.runWith({ stdin: part }, "disk", "write", "web", "--offset", "777");
  assertEquals(written.code, 0, written.stderr);
  const piped = await agent.runWith(
    { stdin: image },
    "disk",
    "import",
    "-",
    "piped",
    "--size",
    "8M",
  );
  assertEquals(piped.code, 0, piped.stderr);
  assertBytes(await exported(agent, "piped"), image, "piped");
  assertBytes(await exported(agent, "web"), image, "web");

  await agent.check("disk", "discard", "web", "--offset", "5M", "--length", "1M", "--yes");
  image.fill(0, 5 * MIB, 6 * MIB);
  assertBytes(await exported(agent, "web"), image, "web");

  await agent.check("disk", "resize", "web", "600K", "--shrink", "--yes");
  await agent.check("disk", "resize", "web", "8M");
  image.fill(0, 600 * KIB);
  assertBytes(await exported(agent, "web"), image, "web");
  // In the middle of a block, too: what is left of it does not come back.
  await agent.check("disk", "resize", "web", "5632", "--shrink", "--yes");
  await agent.check("disk", "resize", "web", "8M");
  image.fill(0, 5632);
  assertBytes(await exported(agent, "web"), image, "web");
  assertEquals(
    text((await agent.run("disk", "check", "web", "--local")).stdout).includes("no damage"),
    true,
  );

  if (find("qemu-img") === undefined) {
    console.log("qcow2: not tested, there is no qemu-img here");
    return;
  }
  await agent.check("disk", "export", "web", `${work.path}/web.qcow2`, "--format", "qcow2");
  assertEquals(
    (await Deno.readFile(`${work.path}/web.qcow2`)).slice(0, 3),
    Uint8Array.of(81, 70, 73),
  );
  await agent.check("disk", "import", `${work.path}/web.qcow2`, "copy");
  assertBytes(await exported(agent, "copy"), image, "copy");
  await agent.kill();

  // All of it is durable: the commands flush.
  await using restarted = await AgentProcess.start(optionsIn(work));
  assertBytes(await exported(restarted, "web"), image, "web");
  assertBytes(await exported(restarted, "copy"), image, "copy");
});

/** What `kelpie disk export NAME -` gives. */
async function exported(agent: AgentProcess, name: string): Promise<Uint8Array> {
  const { code, stdout, stderr } = await agent.run("disk", "export", name, "-");
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test({
  name: "curl speaks to the agent's socket",
  ignore: find("curl") === undefined,
  fn: async () => {
    await using work = await WorkDirectory.make();
    await using agent = await AgentProcess.start(optionsIn(work));
    const curl = async (...args: string[]) => {
      const socket = `${agent.runDir}/agent.sock`;
      const { stdout } = await new Deno.Command(find("curl")!, {
        args: ["-sS", "--max-time", "30", "--unix-socket", socket, "-w", "\n%{http_code}", ...args],
      }).output();
      const lines = text(stdout).trimEnd().split("\n");
      return { status: Number(lines.pop()), body: JSON.parse(lines.join("\n") || "null") };
    };
    const body = JSON.stringify({ name: "web", sizeBytes: 64 * MIB });
    const json = ["-H", "content-type: application/json", "-d", body];
    const made = await curl("http://kelpie/v1/disks", ...json);
    assertEquals([made.status, made.body.socket], [201, agent.socket("web")]);
    const { status, body: list } = await curl("http://kelpie/v1/disks");
    assertEquals([status, list.disks.length], [200, 1]);
    assertEquals((await curl("http://kelpie/v1/disks/none")).status, 404);
    assertEquals((await curl("-X", "POST", "http://kelpie/v1/shutdown")).status, 204);
    assertEquals((await agent.exited).code, 0, agent.log);
  },
});

/** A guest of a new disk, to be disconnected, that has written a block. */
async function openWeb(agent: AgentProcess): Promise<FrontEnd> {
  await agent.check("disk", "create", "web", "64M");
  const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
  await frontEnd.write(0, randomBytes(5, 4096));
  return frontEnd;
}

Deno.test("a disk in use is neither deleted nor shrunk, unless that is asked for by force", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsIn(work));
  const frontEnd = await openWeb(agent);
  try {
    using client = agent.client();
    assertEquals((await client.disk("web")).sessions.map((session) => session.pid), [Deno.pid]);
    for (const line of ["delete web --yes", "resize web 32M --shrink --yes"]) {
      const { code, stderr } = await agent.run("disk", ...line.split(" "));
      assertEquals(code, 1, stderr);
      assertMatch(stderr, /in use/);
    }
    // A second writer waits, and is told of; a reader does not.
    const second = FrontEnd.connect({ socket: agent.socket("web") });
    await using reader = await FrontEnd.connect({ socket: agent.readOnlySocket("web") });
    const block = new Uint8Array(4096);
    await reader.read(0, block);
    assertEquals(block, randomBytes(5, 4096));
    await using waiting = await second;
    const write = waiting.write(0, randomBytes(6, 4096));
    await until(
      async () => (await client.disk("web")).sessions.some((one) => one.waitingForLease),
      {
        timeoutMs: 10_000,
        what: () => "a session that waits",
      },
    );
    const status = await agent.run("status");
    assertEquals(status.code, 1, status.stderr);
    assertMatch(text(status.stdout), /waits for the lease/);
    await frontEnd.close();
    await write;
    await reader.read(0, block);
    assertEquals(block, randomBytes(6, 4096));
    const forced = await agent.run("disk", "delete", "web", "--yes", "--force");
    assertEquals(forced.code, 0, forced.stderr);
    await assertRejects(() => waiting.read(0, block), "disconnected");
  } finally {
    frontEnd.abort();
  }
});

Deno.test("a disk that is taken away on its own host is cut off there, and can be opened at once", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsIn(work));
  const frontEnd = await openWeb(agent);
  try {
    await agent.check("disk", "lock", "release", "web", "--yes");
    await assertRejects(() => frontEnd.write(0, randomBytes(6, 4096)), "disconnected");
    const beganMs = performance.now();
    const written = await agent.runWith({ stdin: randomBytes(7, 4096) }, "disk", "write", "web");
    assertEquals(written.code, 0, written.stderr);
    assert(performance.now() - beganMs < 4000, "it has waited for a holder that is no more");
  } finally {
    frontEnd.abort();
  }
});

Deno.test("the only host serves its disks after a restart, though a lease of it had ended by force before", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  await using first = await AgentProcess.start(options);
  const frontEnd = await openWeb(first);
  await first.check("disk", "create", "other", "64M");
  await first.check("disk", "lock", "release", "web", "--yes");
  frontEnd.abort();
  await first.stop();

  await using second = await AgentProcess.start(options);
  const { code, stderr } = await second.run("disk", "read", "other", "--length", "4096");
  assertEquals(code, 0, stderr);
});

Deno.test("a guest that was cut off stays so when its agent is restarted: it does not write over what was written since", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  await using first = await AgentProcess.start(options);
  await first.check("disk", "create", "web", "64M");
  const socket = first.socket("web");
  const cutOff = await FrontEnd.connect({ socket, inflight: true });
  try {
    await cutOff.write(0, randomBytes(6, 4096));
    await first.check("disk", "lock", "release", "web", "--yes");
    await assertRejects(() => cutOff.write(0, randomBytes(6, 4096)), "disconnected");
    await assertRejects(() => cutOff.reconnect(), BackEndError);
    const newer = randomBytes(7, 4096);
    assertEquals((await first.runWith({ stdin: newer }, "disk", "write", "web")).code, 0);
    await first.stop();

    await using second = await AgentProcess.start(options);
    await second.run("status");
    const goesOn = cutOff.reconnect().then(() => cutOff.write(0, randomBytes(8, 4096)));
    await assertRejects(() => goesOn, BackEndError);
    const { stdout } = await second.run("disk", "read", "web", "--length", "4096");
    assertEquals(new Uint8Array(stdout), newer);
  } finally {
    cutOff.abort();
  }
});

/** A guest of the disk web, which is new, whose agent was killed. */
async function leftBehind(options: ReturnType<typeof optionsIn>): Promise<FrontEnd> {
  await using agent = await AgentProcess.start(options);
  await agent.check("disk", "create", "web", "64M");
  const guest = await FrontEnd.connect({ socket: agent.socket("web"), inflight: true });
  await guest.write(0, randomBytes(6, 4096));
  await agent.kill();
  return guest;
}

Deno.test("a guest whose agent was away goes on where nobody has written since, and is cut off where somebody has", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const guest = await leftBehind(options);
  using _guest = aborting(guest);
  await using second = await AgentProcess.start(options);
  // Whoever only reads, also where it could write, is nobody to it.
  const reader = await FrontEnd.connect({ socket: second.socket("web") });
  await reader.read(0, new Uint8Array(4096));
  await reader.close();
  await guest.reconnect();
  await guest.write(0, randomBytes(7, 4096));
  await second.stop();

  await using third = await AgentProcess.start(options);
  const newer = randomBytes(8, 4096);
  const { code, stderr } = await third.runWith({ stdin: newer }, "disk", "write", "web");
  assertEquals(code, 0, stderr);
  const goesOn = guest.reconnect().then(() => guest.write(0, randomBytes(9, 4096)));
  await assertRejects(() => goesOn, BackEndError);
  await until(() => /others have had its disk open since: end this guest/.test(third.log), {
    timeoutMs: 30_000,
    what: () => third.log,
  });
  const { stdout } = await third.run("disk", "read", "web", "--length", "4096");
  assertEquals(new Uint8Array(stdout), newer);
});

Deno.test("a guest that waits for who has its disk is cut off as soon as that one writes, for good", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const guest = await leftBehind(options);
  using _guest = aborting(guest);
  await using second = await AgentProcess.start(options);
  const writing = second.run("bench", "web", "--rw", "randwrite", "--seconds", "20", "--yes");
  using client = second.client();
  await until(async () => (await client.disk("web")).counters.writes > 0, {
    timeoutMs: 30_000,
    what: () => second.log,
  });
  const goOn = async () => {
    await guest.reconnect();
    await guest.write(0, randomBytes(7, 4096));
  };
  await assertRejects(goOn, BackEndError);
  await until(() => /others have written to its disk since/.test(second.log), {
    timeoutMs: 30_000,
    what: () => second.log,
  });
  // Nobody else knows of it, and whoever has written is gone.
  await second.kill();
  await writing;

  await using third = await AgentProcess.start(options);
  await assertRejects(goOn, BackEndError);
  await until(() => /others have had its disk open since/.test(third.log), {
    timeoutMs: 30_000,
    what: () => third.log,
  });
});

Deno.test("a guest does not go on with another disk that has the name of its own by now", async () => {
  await using work = await WorkDirectory.make();
  await using agent = await AgentProcess.start(optionsIn(work));
  await agent.check("disk", "create", "web", "64M");
  const frontEnd = await FrontEnd.connect({ socket: agent.socket("web"), inflight: true });
  const goOn = async () => {
    await frontEnd.reconnect();
    await frontEnd.write(0, randomBytes(6, 4096));
  };
  try {
    await frontEnd.write(0, randomBytes(5, 4096));
    // Nobody has told its QEMU, which tries again every second.
    await agent.check("disk", "delete", "web", "--yes", "--force");
    await agent.check("disk", "create", "web", "64M");
    await assertRejects(goOn, BackEndError);
    const { stdout } = await agent.run("disk", "read", "web", "--length", "4096");
    assertEquals(new Uint8Array(stdout), new Uint8Array(4096));
    // Its own is its own under any name.
    await agent.check("disk", "rename", "web", "newer");
    await agent.check("disk", "undelete", "web");
    await goOn();
  } finally {
    frontEnd.abort();
  }
});

Deno.test("a flipped bit is an I/O error for its block alone, is named, and is gone when the block is written", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const data = randomBytes(9, 64 * 4096);
  const bad = 17 * 4096;
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    const { code, stderr } = await agent.runWith({ stdin: data }, "disk", "write", "web");
    assertEquals(code, 0, stderr);
    await agent.stop();
  }
  await flipBit(storePath(options.dataDir), data.subarray(bad, bad + 4096));

  await using agent = await AgentProcess.start(options);
  const frontEnd = await FrontEnd.connect({ socket: agent.socket("web") });
  using _frontEnd = aborting(frontEnd);
  const block = new Uint8Array(4096);
  for (let at = 0; at < data.length; at += block.length) {
    if (at === bad) {
      const error = await assertRejects(() => frontEnd.read(at, block), BackEndError);
      assertEquals((error as BackEndError).kind, "io");
    } else {
      await frontEnd.read(at, block);
      assertBytes(block, data.subarray(at, at + block.length), `block at ${at}`);
    }
  }
  const status = await agent.run("status");
  assertEquals(status.code, 1, status.stderr);
  assertMatch(text(status.stdout), new RegExp(`1 block cannot be read: web at ${bad}`));
  const content = async (at: number) =>
    JSON.parse(await agent.check("disk", "object", "web", String(at), "--json")).state;
  assertEquals([await content(bad), await content(0)], ["damaged", "data"]);
  const check = await agent.run("disk", "check", "web", "--local", "--json");
  assertEquals(check.code, 1, check.stderr);
  const { checkedBytes, damage } = JSON.parse(text(check.stdout));
  assertEquals([checkedBytes, damage], [data.length, [{ disk: "web", offsetBytes: bad }]]);
  // Part of a block that cannot be read cannot be written; the whole of it can.
  await assertRejects(() => frontEnd.write(bad, block.subarray(0, 512)), BackEndError);
  await frontEnd.write(bad, data.subarray(bad, bad + 4096));
  await frontEnd.read(bad, block);
  assertBytes(block, data.subarray(bad, bad + 4096), "the block");
  assertEquals(await content(bad), "data");
  await frontEnd.close();
  assertMatch(await agent.check("disk", "check", "web", "--local"), /no damage/);
});

Deno.test("a damaged block that only a snapshot needs is said to be the snapshot's", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const [old, now] = [randomBytes(13, 4096), randomBytes(14, 4096)];
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    const write = async (data: Uint8Array<ArrayBuffer>) => {
      const { code, stderr } = await agent.runWith({ stdin: data }, "disk", "write", "web");
      assertEquals(code, 0, stderr);
    };
    await write(old);
    await agent.check("disk", "snapshot", "web@monday");
    await write(now);
    await agent.stop();
  }
  await flipBit(storePath(options.dataDir), old);
  await using agent = await AgentProcess.start(options);
  const local = await agent.run("disk", "check", "web", "--local", "--json");
  assertEquals(JSON.parse(text(local.stdout)).damage, [{ disk: "web@monday", offsetBytes: 0 }]);
  const status = await agent.run("status");
  assertMatch(text(status.stdout), /1 block cannot be read: web@monday at 0$/m);
  const compared = await agent.run("disk", "check", "web");
  assertMatch(text(compared.stdout), /^web@monday at 0: damaged on /m);
  const states = ["web", "web@monday"].map(async (name) =>
    JSON.parse(await agent.check("disk", "object", name, "0", "--json")).state
  );
  assertEquals(await Promise.all(states), ["data", "damaged"]);
});

Deno.test("what is gone from the log is said as that, and no block is said to be unreadable", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work);
  const gone = randomBytes(10, 4096);
  {
    await using agent = await AgentProcess.start(options);
    await agent.check("disk", "create", "web", "64M");
    for (const data of [randomBytes(11, 4096), gone, randomBytes(12, 4096)]) {
      const { code, stderr } = await agent.runWith({ stdin: data }, "disk", "write", "web");
      assertEquals(code, 0, stderr);
    }
    await agent.kill();
  }
  // The header of the record is right before its data.
  await flipBit(storePath(options.dataDir), gone, -4096 + 40);
  await assertRejects(() => AgentProcess.start(options), AgentRefusal, "--accept-damage");
  await using agent = await AgentProcess.start({ ...options, arguments: ["--accept-damage"] });
  let said = "";
  // The copies agree first, after such an end.
  await until(async () => {
    const { stdout } = await agent.run("status");
    return (said = text(stdout)).match(/^problem/gm)?.length === 1;
  }, { timeoutMs: 30_000, what: () => said });
  assertMatch(said, /kelpie\.store was opened without 1 record of its log that is damaged/);
  assertMatch(await agent.check("disk", "check"), /everything is good/);
  assertMatch(await agent.check("disk", "check", "--local"), /no damage/);
});

/**
 * Flips a bit of where these bytes lie in a file.
 *
 * @param place from where they begin
 */
async function flipBit(path: string, block: Uint8Array, place = 2000): Promise<void> {
  using file = await Deno.open(path, { read: true, write: true });
  const { size } = await file.stat();
  const found = new Uint8Array(block.length);
  for (let at = 0; at < size; at += block.length) {
    await file.seek(at, Deno.SeekMode.Start);
    await file.read(found);
    if (found.some((byte, index) => byte !== block[index])) continue;
    const byte = new Uint8Array(1);
    await file.seek(at + place, Deno.SeekMode.Start);
    await file.read(byte);
    await file.seek(at + place, Deno.SeekMode.Start);
    await file.write(byte.map((value) => value ^ 4));
    return;
  }
  throw new Error(`${path} does not hold the block`);
}

Deno.test("writes to a full store wait, the status says so, and a discard or a delete sets them going", async () => {
  await using work = await WorkDirectory.make();
  const options = optionsIn(work, { capacity: "500M" });
  await using agent = await AgentProcess.start(options);
  using client = agent.client();
  await client.createDisk({ name: "big", sizeBytes: 1024 * MIB });
  await client.createDisk({ name: "small", sizeBytes: 64 * MIB });
  const small = await FrontEnd.connect({ socket: agent.socket("small") });
  using _small = aborting(small);
  await small.write(0, randomBytes(7, 32 * MIB));
  await small.flush();

  const big = await FrontEnd.connect({ socket: agent.socket("big"), depth: 32 });
  using _big = aborting(big);
  const block = randomBytes(8, 4 * MIB);
  let writtenBytes = 0;
  let isStopped = false, hasEnded = false;
  const filling = (async () => {
    while (!isStopped) {
      await big.write(writtenBytes, block);
      writtenBytes += block.length;
    }
    hasEnded = true;
  })();
  filling.catch(() => {}); // waited for at the end
  let store = await client.store();
  let said = "";
  await until(async () => {
    store = await client.store();
    // Writes also wait, for a moment, where the cleaner is about to make room; and it may make some once more before it is said.
    if (!store.full || store.waitingWrites === 0) return false;
    const { code, stdout } = await agent.run("status");
    assertEquals(code, 1);
    said = text(stdout);
    return /full and \d+ writes? waits?/.test(said);
  }, { timeoutMs: 60_000, what: () => `a full store after ${writtenBytes} bytes: ${said}` });
  assert(writtenBytes > 100 * MIB, `full after ${writtenBytes} bytes`);

  // Reads and flushes go on, and so does all that frees.
  const read = new Uint8Array(4096);
  await small.read(0, read);
  assertEquals(read, randomBytes(7, 4096));
  await small.flush();
  const before = writtenBytes;
  await small.discard(0, 32 * MIB);
  await until(() => writtenBytes > before, {
    timeoutMs: 30_000,
    what: () => `the writer goes on after a discard: ${JSON.stringify(store.counters)}`,
  });
  isStopped = true;
  await until(async () => (await client.store()).waitingWrites > 0 || hasEnded, {
    timeoutMs: 60_000,
    what: () => "the writer has ended, or waits again",
  });
  // Whether it waits or not: room for all that is under way.
  await small.close();
  await big.discard(0, 64 * MIB);
  await filling;
  await big.close();

  // Full or not, a start and a delete work.
  await agent.kill();
  await using restarted = await AgentProcess.start(options);
  await restarted.check("disk", "delete", "big", "--now", "--yes");
  const status = await restarted.check("status");
  assertMatch(status, /^healthy: 1 disk/);
  await restarted.stop();
});

/** Disconnects at the end of a block: an orderly end would wait for what is under way, and hide why a test failed. */
function aborting(frontEnd: FrontEnd): Disposable {
  return { [Symbol.dispose]: () => frontEnd.abort() };
}
