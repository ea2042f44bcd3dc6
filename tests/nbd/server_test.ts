/**
 * `kelpie nbd` as those use it who have nothing else: libnbd's and QEMU's own clients, a client that knows no manners, and an
 * agent that dies meanwhile.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { until } from "../guest/deadline.ts";
import { AgentProcess, kelpie } from "../tools/agent_process.ts";
import { freeAddress } from "../tools/ports.ts";
import { bytesOf, goData, option, request } from "./client.ts";
import { NbdProcess, RawClient, runTool, tool, uriOf, withAgent } from "./nbd_process.ts";

const MIB = 1024 * 1024;

/** A raw image of data, a hole, and data. */
async function makeImage(path: string, sizeBytes: number): Promise<void> {
  const random = new Prng(7);
  const bytes = new Uint8Array(5 * MIB);
  using file = await Deno.open(path, { create: true, write: true });
  await file.truncate(sizeBytes);
  for (const at of [0, sizeBytes - bytes.length]) {
    random.fill(bytes);
    await file.seek(at, Deno.SeekMode.Start);
    for (let done = 0; done < bytes.length;) done += await file.write(bytes.subarray(done));
  }
}

Deno.test("nbdinfo finds every disk by its name, and is told why it does not", async () => {
  await withAgent({ web: "64M", db: "8M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using server = await NbdProcess.start(agent, "--socket", socket);
    assertEquals((await Deno.stat(socket)).mode! & 0o777, 0o600);
    const { exports } = JSON.parse(await tool("nbdinfo", "--json", "--list", uriOf(socket, "")));
    assertEquals(
      exports.map((each: Record<string, unknown>) => [each["export-name"], each["export-size"]]),
      [["db", 8 * MIB], ["web", 64 * MIB]],
    );
    const { exports: [web], structured } = JSON.parse(
      await tool("nbdinfo", "--json", uriOf(socket, "web")),
    );
    assertEquals([structured, web.is_read_only, web.can_multi_conn], [true, false, true]);
    for (const what of ["fua", "flush", "trim", "zero", "fast_zero", "df", "cache"]) {
      assertEquals(web[`can_${what}`], true, what);
    }
    assertEquals([web.block_size_minimum, web.block_size_preferred], [512, 4096]);
    for (
      const [name, reason] of [
        ["nope", /there is no disk named "nope"/],
        ["nope@monday", /there is no disk named "nope"/],
        ["web@monday", /disk web has no snapshot named "monday"/],
        ["../web", /cannot be the name/],
        ["web@a@b", /cannot be the name/],
        ["", /no export was named/],
      ] as const
    ) {
      const error = await assertRejects(() => RawClient.open(socket, name), Error);
      assertMatch(error.message, reason);
      assertEquals((await runTool("nbdinfo", uriOf(socket, name))).code, 1);
    }
    assertEquals(await server.stop(), 0);
    await assertRejects(() => Deno.stat(socket), Deno.errors.NotFound);
  });
});

Deno.test("--export serves what it names, and without a name the only one", async () => {
  await withAgent({ web: "64M", db: "8M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using _server = await NbdProcess.start(agent, "--socket", socket, "--export", "db");
    const { exports } = JSON.parse(await tool("nbdinfo", "--json", "--list", uriOf(socket, "")));
    assertEquals(exports.map((each: Record<string, unknown>) => each["export-name"]), ["db"]);
    assertEquals(await tool("nbdinfo", "--size", uriOf(socket, "")), `${8 * MIB}\n`);
    const error = await assertRejects(() => RawClient.open(socket, "web"), Error);
    assertMatch(error.message, /no export is called "web"/);
  });
});

Deno.test("images go in and out by nbdcopy and qemu-img, holes and all", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`, image = `${path}/image`, copy = `${path}/copy`;
    const uri = uriOf(socket, "web");
    await makeImage(image, 64 * MIB);
    await using _server = await NbdProcess.start(agent, "--socket", socket);
    const map = async () => {
      const extents = JSON.parse(await tool("nbdinfo", "--json", "--map", uri));
      return extents.map((each: Record<string, number>) => [each.offset, each.length, each.type]);
    };
    assertEquals(await map(), [[0, 64 * MIB, 3]]);
    await tool("nbdcopy", "--connections=4", "--requests=32", "--flush", image, uri);
    assertEquals(
      await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri),
      "Images are identical.\n",
    );
    assertEquals(await map(), [
      ...[[0, 5 * MIB, 0], [5 * MIB, 54 * MIB, 3], [59 * MIB, 5 * MIB, 0]],
    ]);
    const qemuMap = JSON.parse(await tool("qemu-img", "map", "--output=json", "-f", "raw", uri));
    assertEquals(
      qemuMap.map((each: Record<string, unknown>) => [each.start, each.length, each.data]),
      [[0, 5 * MIB, true], [5 * MIB, 54 * MIB, false], [59 * MIB, 5 * MIB, true]],
    );
    await tool("nbdcopy", uri, copy);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, copy);
    // Neither has been read for nothing, nor written.
    assert((await Deno.stat(copy)).blocks! * 512 < 12 * MIB);
    await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, `${path}/q`);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, `${path}/q`);
    // And back over what is there, zeros included.
    await Deno.truncate(copy, 0);
    await Deno.truncate(copy, 64 * MIB);
    await tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", copy, uri);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", copy, uri);
    assertEquals(await map(), [[0, 64 * MIB, 3]]);
  });
});

Deno.test("qemu-io's writes, FUA, zeroes and discards do what they say, aligned or not", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using _server = await NbdProcess.start(agent, "--socket", socket);
    const steps = [
      "write -P 0xaa 0 1M",
      "write -f -P 0xbb 1M 64k",
      "write -P 0x11 100 1000",
      "read -P 0xaa 0 100",
      "read -P 0x11 100 1000",
      "read -P 0xaa 1100 500",
      "write -z 2000 70000",
      "read -P 0xaa 1100 900",
      "read -P 0 2000 70000",
      "read -P 0xaa 72000 1000",
      "write -z -u -f 512k 64k",
      "read -P 0 512k 64k",
      "discard 640k 64k",
      "read -P 0 640k 64k",
      "read -P 0xaa 704k 64k",
      "aio_write -P 0x22 8M 4M",
      "aio_write -P 0x33 16M 4M",
      "aio_flush",
      "flush",
      "read -P 0x22 8M 4M",
      "read -P 0x33 16M 4M",
    ];
    const args = steps.flatMap((step) => ["-c", step]);
    const output = await tool(
      "qemu-io",
      "-f",
      "raw",
      "-t",
      "writeback",
      ...args,
      uriOf(socket, "web"),
    );
    assert(!/failed|mismatch/i.test(output), output);
    // The agent has counted flushes, and only as many as were asked for: FUA, flush, and the end.
    const extents = JSON.parse(await tool("nbdinfo", "--json", "--map", uriOf(socket, "web")));
    assertEquals(extents.at(-1).type, 3);
  });
});

Deno.test("a client without structured replies gets long reads in one run, and others' writes", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using _server = await NbdProcess.start(agent, "--socket", socket);
    using first = await RawClient.open(socket, "web");
    using second = await RawClient.open(socket, "web");
    const data = new Uint8Array(3 * MIB + 17);
    new Prng(3).fill(data);
    assertEquals((await first.ask({ command: 1, offset: 1000, data })).error, 0);
    assertEquals((await second.ask({ command: 3 })).error, 0);
    const reply = await second.ask({ command: 0, offset: 1000, length: data.length });
    assert(reply.data.every((byte, i) => byte === data[i]));
    assertEquals((await first.ask({ command: 0, offset: 64 * MIB, length: 1 })).error, 22);
    assertEquals(
      (await first.ask({ command: 1, offset: 64 * MIB - 1, data: data.subarray(0, 2) })).error,
      28,
    );
    // Who comes later sees how large the disk is by then.
    await agent.check("disk", "resize", "web", "96M");
    assertEquals(await tool("nbdinfo", "--size", uriOf(socket, "web")), `${96 * MIB}\n`);
    using third = await RawClient.open(socket, "web");
    assertEquals((await third.ask({ command: 0, offset: 96 * MIB - 512, length: 512 })).error, 0);
    third[Symbol.dispose]();
    // One session of the agent for all; it goes with the last.
    using client = agent.client();
    assertEquals((await client.disk("web")).sessions.length, 1);
    first[Symbol.dispose]();
    assertEquals((await second.ask({ command: 0, offset: 0, length: 512 })).error, 0);
    second[Symbol.dispose]();
    await until(async () => (await client.disk("web")).openOn === null, {
      timeoutMs: 20_000,
      what: () => "the disk is not given back",
    });
  });
});

Deno.test("a disk that is in use is refused for writing, and read beside it with --read-only", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const [writable, readable] = [`${path}/rw`, `${path}/ro`];
    await using _first = await NbdProcess.start(agent, "--socket", writable);
    await using _second = await NbdProcess.start(agent, "--socket", readable, "--read-only");
    const guest = await FrontEnd.connect({ socket: agent.socket("web") });
    await guest.write(0, new Uint8Array(4096).fill(5));
    const error = await assertRejects(() => RawClient.open(writable, "web"), Error);
    assertMatch(error.message, /disk web is in use by .*--read-only/);
    const info = JSON.parse(await tool("nbdinfo", "--json", uriOf(readable, "web")));
    assertEquals(info.exports[0].is_read_only, true);
    using client = await RawClient.open(readable, "web");
    assertEquals((await client.ask({ command: 0, length: 4096 })).data[4095], 5);
    await guest.write(0, new Uint8Array(4096).fill(6));
    assertEquals((await client.ask({ command: 0, length: 4096 })).data[4095], 6);
    for (
      const [command, data] of [[1, new Uint8Array(512)], [4, undefined], [6, undefined]] as const
    ) {
      assertEquals((await client.ask({ command, length: 512, data })).error, 1);
    }
    await guest.close();
    using writer = await RawClient.open(writable, "web");
    assertEquals((await writer.ask({ command: 1, data: new Uint8Array(512).fill(9) })).error, 0);
    // What was written is no hole a moment later, though nothing of it went through this server.
    const extents = JSON.parse(await tool("nbdinfo", "--json", "--map", uriOf(readable, "web")));
    assertEquals(extents[0], { offset: 0, length: 4096, type: 0, description: "data" });
  });
});

Deno.test("a snapshot is read by its name while its disk is written, and its clients go with it", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`, image = `${path}/image`, copy = `${path}/copy`;
    await makeImage(image, 64 * MIB);
    await using server = await NbdProcess.start(agent, "--socket", socket);
    await tool("nbdcopy", "--flush", image, uriOf(socket, "web"));
    await agent.check("disk", "snapshot", "web@monday");
    await agent.check("disk", "resize", "web", "96M");
    {
      await using guest = await FrontEnd.connect({ socket: agent.socket("web") });
      for (const at of [0, 8 * MIB, 80 * MIB]) await guest.write(at, new Uint8Array(MIB).fill(7));
    }
    const { exports } = JSON.parse(await tool("nbdinfo", "--json", "--list", uriOf(socket, "")));
    assertEquals(
      exports.map((each: Record<string, unknown>) => [each["export-name"], each["export-size"]]),
      [["web", 96 * MIB], ["web@monday", 64 * MIB]],
    );
    const monday = uriOf(socket, "web@monday");
    const { exports: [info] } = JSON.parse(await tool("nbdinfo", "--json", monday));
    assertEquals([info.is_read_only, info["export-size"]], [true, 64 * MIB]);
    await tool("nbdcopy", monday, copy);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, copy);
    using client = await RawClient.open(socket, "web@monday");
    assertEquals((await client.ask({ command: 1, data: new Uint8Array(512) })).error, 1);
    // Only what it is called has changed: who has it open reads on, and others find it by the new name.
    await agent.check("disk", "snapshot", "rename", "web@monday", "first");
    assertEquals(await tool("nbdinfo", "--size", uriOf(socket, "web@first")), `${64 * MIB}\n`);
    using other = await RawClient.open(socket, "web@first");
    assertEquals((await other.ask({ command: 0, length: 512 })).error, 0);
    await agent.check("disk", "snapshot", "web@monday");
    using another = await RawClient.open(socket, "web@monday");
    const read = async (each: RawClient) => (await each.ask({ command: 0, length: 512 })).data[0];
    assertEquals(await read(another), 7);
    assertEquals(await read(client), await read(other));
    await agent.check("disk", "snapshot", "delete", "web@first", "--yes");
    await other.isClosed();
    assertMatch(server.log, /web@monday: the snapshot was deleted/);
    const error = await assertRejects(() => RawClient.open(socket, "web@first"), Error);
    assertMatch(error.message, /disk web has no snapshot named "first"/);
    assertEquals(await server.stop(), 0);
  });
});

Deno.test("an agent that is killed and started again is a pause for clients, and nothing else", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using server = await NbdProcess.start(agent, "--socket", socket);
    using client = await RawClient.open(socket, "web");
    const data = new Uint8Array(256 * 1024).fill(1);
    await client.ask({ command: 1, data });
    await agent.kill();
    // Asked while nobody is there to do it.
    const asked = client.ask({ command: 1, offset: data.length, data: data.fill(2) });
    await until(() => server.log.includes("web: the agent is away"), {
      timeoutMs: 20_000,
      what: () => server.log,
    });
    await using again = await AgentProcess.start({
      runDir: agent.runDir,
      dataDir: `${path}/data`,
      capacity: "1G",
    });
    assertEquals((await asked).error, 0);
    const { data: read } = await client.ask({ command: 0, length: 2 * data.length });
    assertEquals([read[0], read[data.length - 1], read[data.length]], [1, 1, 2]);
    // A disk that is deleted takes its clients with it.
    assertEquals((await again.run("disk", "delete", "web", "--yes", "--force")).code, 0);
    await client.isClosed();
    assertMatch(server.log, /web: the disk was deleted/);
    await assertRejects(() => RawClient.open(socket, "web"), Error, "there is no disk");
    assertEquals(await server.stop(), 0);
  });
});

Deno.test("clients without manners end their own connections, by seed", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const socket = `${path}/nbd`;
    await using server = await NbdProcess.start(
      agent,
      "--socket",
      socket,
      "--max-connections",
      "8",
    );
    using good = await RawClient.open(socket, "web");
    const data = new Uint8Array(4096).fill(0x5a);
    await good.ask({ command: 1, offset: 8192, data });
    const random = new Prng(11);
    for (let i = 0; i < 60; i++) {
      using bad = await RawClient.connect(socket);
      const rubbish = new Uint8Array(random.between(1, 300));
      random.fill(rubbish);
      const polite = bytesOf([4, 3], option(8), option(7, goData("web")));
      // Requests that read, and heads that end somewhere.
      const reads = request({
        command: 0,
        cookie: 1,
        offset: random.below(2 ** 27),
        length: random.u32(),
      });
      const parts = [bytesOf([4, 3]), polite, rubbish, reads, reads.subarray(0, random.below(28))];
      const sent = bytesOf(
        ...Array.from({ length: random.between(1, 6) }, () => parts[random.below(5)]),
      );
      await bad.send(sent).catch(() => {});
      if (random.chance(0.5)) bad.connection.closeWrite?.().catch?.(() => {});
      if (i % 10 === 0) {
        const { data: read } = await good.ask({ command: 0, offset: 8192, length: 4096 });
        assertEquals(read, data);
      }
    }
    // One more than may be there at once is closed without a word.
    const crowd: RawClient[] = [];
    await until(async () => {
      try {
        crowd.push(await RawClient.connect(socket));
        return false;
      } catch {
        return true;
      }
    }, { timeoutMs: 20_000, what: () => "everybody is let in" });
    assert(crowd.length <= 7, `${crowd.length}`);
    crowd.forEach((client) => client[Symbol.dispose]());
    assertEquals((await good.ask({ command: 0, offset: 8192, length: 4096 })).data, data);
    assertEquals(await server.stop(), 0);
  });
});

/** A CA, and certificates of it for a server and a client, made by openssl; libnbd's names of files. */
async function makeCertificates(directory: string): Promise<void> {
  const openssl = (...args: string[]) => tool("openssl", ...args);
  await Deno.mkdir(directory);
  const path = (name: string) => `${directory}/${name}.pem`;
  await Deno.writeTextFile(`${directory}/ext`, "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  await openssl(
    ...["req", "-x509", ...key, "-keyout", path("ca-key"), "-out", path("ca-cert")],
    ...["-subj", "/CN=a CA for tests", "-days", "2"],
  );
  for (const name of ["server", "client"]) {
    await openssl(
      ...["req", ...key, "-keyout", path(`${name}-key`), "-out", `${directory}/csr`],
      ...["-subj", `/CN=${name}`],
    );
    await openssl(
      ...["x509", "-req", "-in", `${directory}/csr`, "-CA", path("ca-cert")],
      ...["-CAkey", path("ca-key"), "-CAcreateserial", "-out", path(`${name}-cert`), "-days", "2"],
      ...["-extfile", `${directory}/ext`],
    );
  }
}

Deno.test("with a certificate only TLS gets in, and with a CA only its clients", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    const [certs, others] = [`${path}/certs`, `${path}/others`];
    await makeCertificates(certs);
    await makeCertificates(others);
    const image = `${path}/image`;
    await makeImage(image, 64 * MIB);
    const address = freeAddress();
    const port = address.split(":")[1];
    const files = [
      ...["--tls-cert", `${certs}/server-cert.pem`, "--tls-key", `${certs}/server-key.pem`],
      ...["--tls-ca", `${certs}/ca-cert.pem`],
    ];
    await using server = await NbdProcess.start(agent, "--listen", address, ...files);
    const uri = (directory: string) => `nbds://localhost:${port}/web?tls-certificates=${directory}`;
    await tool("nbdcopy", "--flush", image, uri(certs));
    await tool("nbdcopy", uri(certs), `${path}/copy`);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, `${path}/copy`);
    const credentials = `tls-creds-x509,id=tls,dir=${certs},endpoint=client`;
    const block = `driver=raw,file.driver=nbd,file.host=localhost,file.port=${port},` +
      "file.export=web,file.tls-creds=tls";
    await tool(
      ...["qemu-img", "compare", "--object", credentials, "--image-opts"] as const,
      ...[`driver=raw,file.filename=${image}`, block],
    );
    // In clear text, without a certificate, with one of somebody else's CA.
    const plain = await runTool("nbdinfo", `nbd://localhost:${port}/web`);
    assertEquals(plain.code, 1);
    assertMatch(plain.stderr, /TLS|not supported/);
    await Deno.mkdir(`${path}/none`);
    await Deno.copyFile(`${certs}/ca-cert.pem`, `${path}/none/ca-cert.pem`);
    await Deno.copyFile(`${certs}/ca-cert.pem`, `${others}/ca-cert.pem`);
    for (const directory of [`${path}/none`, others]) {
      assertEquals((await runTool("nbdinfo", uri(directory))).code, 1, directory);
    }
    assertMatch(server.log, /was cut off: TLS: .*certificate/);
    assertEquals(await tool("nbdinfo", "--size", uri(certs)), `${64 * MIB}\n`);
    assertEquals(await server.stop(), 0);
  });
});

Deno.test("what would be unsafe or cannot work is refused before anything listens", async () => {
  await withAgent({ web: "64M" }, async (agent, path) => {
    await Deno.writeTextFile(`${path}/file`, "");
    await makeCertificates(`${path}/certs`);
    const pem = (name: string) => `${path}/certs/${name}.pem`;
    const cases: [string[], number, RegExp][] = [
      [[], 64, /needs --socket or --listen/],
      [["--listen", "0.0.0.0:1"], 64, /everybody who reaches 0\.0\.0\.0:1.*\n.*--tls-cert/],
      [["--listen", "[::]"], 64, /everybody who reaches \[::\]:10809/],
      [["--listen", "localhost", "--tls-cert", pem("server-cert")], 64, /belong together/],
      [["--listen", "localhost", "--tls-ca", pem("ca-cert")], 64, /without --tls-cert/],
      [["--socket", `${path}/file`], 3, /is no socket/],
      [["--socket", `${agent.runDir}/agent.sock`], 3, /somebody listens/],
      [["--socket", `${path}/${"x".repeat(120)}`], 64, /socket path/],
      [
        ["--socket", `${path}/s`, "--tls-cert", pem("client-cert"), "--tls-key", pem("server-key")],
        1,
        /key values mismatch|does not belong/,
      ],
      [["--socket", `${path}/s`, "--tls-cert", pem("x"), "--tls-key", pem("y")], 1, /x\.pem/],
      [["--socket", `${path}/s`, "--export", "../web"], 64, /name of a disk, or DISK@SNAPSHOT/],
    ];
    for (const [args, code, message] of cases) {
      const ended = await kelpie(["--run-dir", agent.runDir, "nbd", ...args]);
      assertMatch(ended.stderr, message, args.join(" "));
      assertEquals(ended.code, code, `${args.join(" ")}\n${ended.stderr}`);
    }
    // The socket of a server that was killed is replaced.
    const socket = `${path}/nbd`;
    {
      await using _killed = await NbdProcess.start(agent, "--socket", socket);
    }
    assert((await Deno.lstat(socket)).isSocket);
    await using _server = await NbdProcess.start(agent, "--socket", socket);
    assertEquals(await tool("nbdinfo", "--size", uriOf(socket, "web")), `${64 * MIB}\n`);
  });
});
