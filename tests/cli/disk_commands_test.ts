/**
 * Commands that ask the agent: what they send, print and refuse, against a fake data plane.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert/mod.js";
import { ControlFailure } from "../../agent/map/errors.ts";
import { HEALTHY_STORE, IDLE_DISK, sessionWith } from "../http/fake_backend.ts";
import { clusterWithDisk } from "../map/cluster.ts";
import { FakeAgent } from "./fixture.ts";

const GIB = 1024 ** 3;

Deno.test("create makes a disk of the size that was written", async () => {
  await using agent = await FakeAgent.start();
  for (
    const [name, size, bytes] of [
      ["a", "20G", 20 * GIB],
      ["b", "512M", GIB / 2],
      ["c", "1.5T", 1536 * GIB],
      ["d", "4096", 4096],
    ] as const
  ) {
    const { stdout, stderr } = await agent.runWell(["disk", "create", name, size]);
    assertEquals(stdout, "");
    assertStringIncludes(stderr, `${agent.runDir}/${name}.sock`);
    assertEquals(
      agent.backend.clusterMap.disks.find((each) => each.name === name)?.sizeBytes,
      bytes,
    );
  }
  const { stdout } = await agent.runWell("disk create e 1G --read-only --json");
  assertEquals(JSON.parse(stdout).readOnly, true);
});

Deno.test("what the agent refuses ends with the code for it", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const cases: [words: string, code: number, message: RegExp][] = [
    ["disk create web 1G", 3, /already a disk named "web"/],
    ["disk info wbe", 5, /no disk named "wbe"\n +'kelpie disk list'/],
    ["disk delete wbe --yes", 5, /no disk named/],
    ["disk resize wbe 2G", 5, /no disk named/],
    ["disk rename wbe web2", 5, /no disk named/],
    ["disk qemu wbe", 5, /no disk named/],
    ["disk libvirt wbe", 5, /no disk named/],
    ["disk read wbe", 5, /no disk named/],
    ["disk export wbe -", 5, /no disk named/],
    ["disk check wbe", 5, /no disk named/],
    ["disk create odd 1000", 64, /not a multiple of 512/],
  ];
  for (const [words, expected, message] of cases) {
    const { code, stdout, stderr } = await agent.run(words);
    assertEquals({ words, code, stdout }, { words, code: expected, stdout: "" }, stderr);
    assertMatch(stderr, message);
  }
  agent.backend.propose = () =>
    Promise.reject(new ControlFailure({ code: "full", message: "the store is full" }));
  assertEquals((await agent.run("disk create more 1G")).code, 4);
});

Deno.test("list prints a table, names, or JSON", async () => {
  await using agent = await FakeAgent.start();
  const empty = await agent.runWell("disk list");
  assertEquals(empty.stdout, "");
  assertMatch(empty.stderr, /no disk yet/);
  assertEquals(JSON.parse((await agent.runWell("disk list --json")).stdout), []);

  agent.backend.add("web", 20 * GIB);
  agent.backend.add("db-main", 1.5 * 1024 * GIB);
  agent.backend.statuses.set("web", {
    ...IDLE_DISK,
    allocatedBytes: 3.1 * GIB,
    sessions: [sessionWith(), sessionWith({ pid: 12, command: "evil\x1b[2J", readOnly: true })],
  });
  const { stdout, stderr } = await agent.runWell("disk list");
  assertEquals(
    stdout,
    [
      "NAME     SIZE  DATA  COPIES  OPEN ON  IN USE BY",
      "db-main  1.5T    0B     1/3  -        -",
      "web       20G  3.1G     1/3  -        qemu-system-x86 (pid 4711), evil?[2J (pid 12) reads only",
      "",
    ].join("\n"),
  );
  assertEquals(stderr, "");
  assertEquals((await agent.runWell("disk list --names")).stdout, "db-main\nweb\n");
  const json = JSON.parse((await agent.runWell("disk ls --json")).stdout);
  assertEquals(json.map((disk: { name: string }) => disk.name), ["db-main", "web"]);
});

Deno.test("info tells sockets and users", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web", 20 * GIB);
  agent.backend.statuses.set("web", {
    ...IDLE_DISK,
    sessions: [sessionWith({ broken: "a descriptor chain has a loop" })],
  });
  const { stdout } = await agent.runWell("disk info web");
  assertMatch(stdout, /^name: +web$/m);
  assertMatch(stdout, /^size: +20G \(21474836480 bytes\)$/m);
  assertStringIncludes(stdout, `${agent.runDir}/ro/web.sock`);
  assertMatch(stdout, /in use by: +qemu-system-x86 \(pid 4711\) stands still/);
  assertMatch(stdout, /stands still: a descriptor chain has a loop/);
  assertEquals(
    JSON.parse((await agent.runWell("disk info web --json")).stdout).sizeBytes,
    20 * GIB,
  );
});

Deno.test("delete asks on a terminal, and refuses without one unless --yes", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.statuses.set("web", { ...IDLE_DISK, allocatedBytes: 3 * GIB });
  const names = () => agent.backend.clusterMap.disks.map(({ name }) => name);

  const refused = await agent.run("disk delete web");
  assertEquals(refused.code, 64);
  assertMatch(refused.stderr, /will not delete disk web unasked.*3G of data\n +add --yes/);
  assertEquals(names(), ["web"]);

  for (const answer of ["n", "", "yesterday", "nope"]) {
    const declined = await agent.run("disk delete web", (terminal) => {
      terminal.isInputTerminal = terminal.isErrorTerminal = true;
      terminal.answers = [answer];
    });
    assertEquals(declined.code, 1);
    assertMatch(declined.stderr, /nothing was changed/);
  }
  assertEquals(names(), ["web"]);

  const { terminal } = await agent.runWell("disk delete web", (terminal) => {
    terminal.isInputTerminal = terminal.isErrorTerminal = true;
    terminal.answers = ["y"];
  });
  assertMatch(terminal.questions[0], /Delete disk web\? This destroys its 3G of data\. \[y\/N\]/);
  assertEquals(names(), []);

  agent.backend.add("db");
  await agent.runWell("disk rm db --yes");
  assertEquals(names(), []);
});

Deno.test("a disk in use is deleted by --force only", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  const { code, stderr } = await agent.run("disk delete web --yes");
  assertEquals(code, 1);
  assertMatch(stderr, /in use by qemu-system-x86 \(pid 4711\)\n.*--force/);
  assertEquals((await agent.run("disk delete web --force")).code, 64); // not without --yes
  await agent.runWell("disk delete web --force --yes");
  assertEquals(agent.backend.clusterMap.disks, []);
});

Deno.test("commands that write refuse a disk in use, and name who uses it", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.statuses.set("web", { ...IDLE_DISK, sessions: [sessionWith()] });
  const file = `${agent.runDir}/image`;
  await Deno.writeFile(file, new Uint8Array(4096));
  for (
    const words of [
      "disk write web",
      "disk discard web --yes",
      `disk import ${file} web --yes`,
      "bench web --rw write --yes",
    ]
  ) {
    const { code, stderr } = await agent.run(words);
    assertEquals({ words, code }, { words, code: 1 }, stderr);
    assertMatch(stderr, /in use by qemu-system-x86 \(pid 4711\)/);
  }
});

Deno.test("commands that write refuse a read-only disk", async () => {
  await using agent = await FakeAgent.start();
  await agent.runWell("disk create fixed 1G --read-only");
  const { code, stderr } = await agent.run("disk write fixed");
  assertEquals(code, 1);
  assertMatch(stderr, /disk fixed is read-only/);
});

Deno.test("limit changes what it names, tells what there is, and takes all of it away", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const limits = () => {
    const { iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds } =
      agent.backend.clusterMap.disks[0].limits;
    return [iops, bytesPerSecond, burstIops, burstBytesPerSecond, burstSeconds];
  };
  const steps: [words: string, limits: number[], said: string][] = [
    ["--iops 500", [500, 0, 0, 0, 0], "500 requests/s"],
    ["--bandwidth 50MiB", [500, 50 * 2 ** 20, 0, 0, 0], "500 requests/s, 50M/s"],
    [
      "--burst-iops 2000",
      [500, 50 * 2 ** 20, 2000, 0, 60],
      "500 requests/s (2k for 60 s), 50M/s",
    ],
    [
      "--burst-bandwidth 100M --burst-seconds 5",
      [500, 50 * 2 ** 20, 2000, 100 * 2 ** 20, 5],
      "500 requests/s (2k for 5 s), 50M/s (100M/s for 5 s)",
    ],
    ["--iops 0", [0, 50 * 2 ** 20, 0, 100 * 2 ** 20, 5], "50M/s (100M/s for 5 s)"],
    ["--burst-bandwidth 0", [0, 50 * 2 ** 20, 0, 0, 0], "50M/s"],
    ["--none", [0, 0, 0, 0, 0], "no limits"],
  ];
  for (const [words, expected, said] of steps) {
    const { stderr } = await agent.runWell(`disk limit web ${words}`);
    assertEquals({ words, limits: limits() }, { words, limits: expected });
    assertStringIncludes(stderr, `disk web: ${said}\n`);
  }
  await agent.runWell("disk limit web --iops 500 --burst-iops 600");
  const proposed = agent.backend.proposed.length;
  const told = await agent.runWell("disk limit web");
  assertEquals(told.stdout, "disk web: 500 requests/s (600 for 60 s)\n");
  const json = JSON.parse((await agent.runWell("disk limit web --json")).stdout);
  assertEquals([json.iops, json.burstSeconds], [500, 60]);
  assertEquals(agent.backend.proposed.length, proposed, "to ask changes nothing");
  assertMatch(
    (await agent.runWell("disk info web")).stdout,
    /^limits: +500 requests\/s \(600 for 60 s\)\nheld back: +nothing$/m,
  );

  const cases: [words: string, code: number, message: RegExp][] = [
    ["--none --iops 5", 64, /--none takes all limits away/],
    ["--iops many", 64, /--iops/],
    ["--iops -5", 64, /./],
    ["--bandwidth 50MB", 64, /powers of 1000 or of 1024/],
    ["--burst-iops 100", 64, /bursts of 100 for each second make no sense beside a limit of 500/],
    ["--burst-seconds 4000", 64, /0 to 3600/],
  ];
  for (const [words, expected, message] of cases) {
    const { code, stderr } = await agent.run(`disk limit web ${words}`);
    assertEquals({ words, code }, { words, code: expected }, stderr);
    assertMatch(stderr, message);
  }
  assertEquals(limits(), [500, 0, 600, 0, 60]);
});

Deno.test("info tells what limits held back", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const counters = { ...IDLE_DISK.counters, heldRequests: 1234, heldMs: 61_000 };
  agent.backend.statuses.set("web", { ...IDLE_DISK, counters });
  const { stdout } = await agent.runWell("disk info web");
  assertMatch(stdout, /^held back: +1.2k requests, within 1 min 1 s$/m);
});

Deno.test("zeros are looked for from the start, or when it is said", async () => {
  await using agent = await FakeAgent.start();
  await agent.runWell("disk create web 1G --detect-zeroes");
  const isOn = () => agent.backend.clusterMap.disks[0].detectZeroes;
  assertEquals(isOn(), true);
  await agent.runWell("disk set web --detect-zeroes off");
  assertEquals(isOn(), false);
  await agent.runWell("disk set web --detect-zeroes on");
  assertEquals(isOn(), true);
  assertMatch((await agent.runWell("disk info web")).stdout, /^zeros: +kept as holes$/m);
  assertEquals((await agent.run("disk set web --detect-zeroes maybe")).code, 64);
  assertEquals((await agent.run("disk set web colour on")).code, 64);
});

Deno.test("resize takes a size or what is added, and shrinks only when told twice", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web", 20 * GIB);
  const size = () => agent.backend.clusterMap.disks[0].sizeBytes / GIB;
  const { stderr } = await agent.runWell("disk resize web 40G");
  assertMatch(stderr, /disk web has 40G now, after 20G/);
  await agent.runWell("disk resize web +10G");
  assertEquals(size(), 50);

  const refused = await agent.run("disk resize web 10G --yes");
  assertEquals(refused.code, 64);
  assertMatch(refused.stderr, /what lies beyond would be lost\n +add --shrink/);
  const unasked = await agent.run("disk resize web 10G --shrink");
  assertEquals(unasked.code, 64);
  assertMatch(unasked.stderr, /--yes/);
  assertEquals(size(), 50);
  await agent.runWell("disk resize web 10G --shrink --yes");
  assertEquals(size(), 10);
  assertEquals((await agent.run("disk resize web +-1G")).code, 64);
});

Deno.test("rename says where the disk is now", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const { stderr } = await agent.runWell("disk rename web shop");
  assertStringIncludes(stderr, `${agent.runDir}/shop.sock`);
  agent.backend.add("web");
  assertEquals((await agent.run("disk rename web shop")).code, 3);
});

Deno.test("status is one line when all is well", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const { stdout, stderr } = await agent.runWell("status");
  assertEquals(stdout, "healthy: 1 disk, 12G of 500G used, 1M of memory for the index\n");
  assertEquals(stderr, "");
  assertMatch(
    (await agent.runWell("status --verbose")).stdout,
    /cluster: +fedcba9876543210, epoch 1/,
  );
  assertEquals(JSON.parse((await agent.runWell("status --json")).stdout).healthy, true);
});

Deno.test("status tells only what is not well, what to do, and ends with 1", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.store = { ...HEALTHY_STORE, full: true, waitingWrites: 3 };
  agent.backend.statuses.set("web", {
    ...IDLE_DISK,
    sessions: [sessionWith({ broken: "the available index runs away" })],
  });
  const { code, stdout } = await agent.run("status");
  assertEquals(code, 1);
  const lines = stdout.trimEnd().split("\n");
  assertEquals(lines.length, 4);
  assertMatch(lines[0], /^problem: the store .* is full and 3 writes wait$/);
  assertMatch(lines[1], /^ {2}delete disks/);
  assertMatch(lines[2], /^problem: disk web: .*the available index runs away$/);
  const json = await agent.run("status --json");
  assertEquals(json.code, 1);
  assertEquals(JSON.parse(json.stdout).problems.length, 2);
});

Deno.test("check follows the work and ends with 1 when damage is found", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  const clean = await agent.runWell("disk check --local");
  assertEquals(clean.stdout, "the store: 4K checked, no damage\n");

  agent.backend.onCheck = (name, onProgress) => {
    assertEquals(name, "web");
    onProgress(GIB / 2, GIB);
    return Promise.resolve({
      checkedBytes: GIB,
      damagedBlocks: 3,
      damage: [{ disk: "web", offsetBytes: 8192 }, { disk: "", offsetBytes: 0 }],
    });
  };
  const { code, stdout } = await agent.run("disk check web --local");
  assertEquals(code, 1);
  assertMatch(stdout, /^web: 1G checked, 3 blocks cannot be read$/m);
  assertMatch(stdout, /^web +8192$/m);
  assertMatch(stdout, /^and 1 more$/m);
  const json = await agent.run("disk check web --local --json");
  assertEquals(json.code, 1);
  assertEquals(JSON.parse(json.stdout).damagedBlocks, 3);
});

Deno.test("check compares replicas, and ends with 0 only if all was checked and is good", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  assertEquals((await agent.runWell("disk check")).stdout, "there are no disks\n");
  const disk = {
    disk: "web",
    inTrash: false,
    chunks: 9,
    comparedChunks: 7,
    singleChunks: 1,
    verifiedBlocks: 512,
    damagedBlocks: 2,
    repairedBlocks: 2,
    differingBlocks: 0,
    settledBlocks: 0,
    laggingChunks: 0,
    caughtUpChunks: 0,
    uncheckedChunks: 0,
  };
  agent.backend.comparison = { good: true, disks: [disk], blocks: [], unchecked: [] };
  const good = await agent.runWell("disk check web --no-repair");
  assertMatch(good.stdout, /^web +9 +7 +1 +2M +2 +2 +0 +0 +0 +0 +0$/m);
  assertMatch(good.stdout, /^everything is good$/m);
  agent.backend.comparison = {
    good: false,
    disks: [
      { ...disk, inTrash: true, repairedBlocks: 1, uncheckedChunks: 4, laggingChunks: 6 },
      { ...disk, disk: "db", differingBlocks: 5, settledBlocks: 3, caughtUpChunks: 1 },
    ],
    blocks: [
      {
        kind: "damaged",
        disk: "web",
        offsetBytes: 8192,
        nodes: ["host-2"],
        contents: [0],
        reason: "nobody has it whole",
      },
      {
        kind: "differs",
        disk: "web",
        offsetBytes: 4096,
        nodes: ["host-1", "host-2", "host-3"],
        contents: [0, 1, 0],
        reason: "nobody knows",
      },
    ],
    unchecked: [{ disk: "web", reason: "it is not up", nodes: ["host-3"], chunks: 4 }],
  };
  const bad = await agent.run("disk check");
  assertEquals(bad.code, 1);
  assertMatch(bad.stdout, /^web \(trash\) +9 +7 +1 +2M +2 +1 +0 +0 +6 +0 +4$/m);
  assertMatch(bad.stdout, /^db +9 +7 +1 +2M +2 +2 +5 +3 +0 +1 +0$/m);
  assertMatch(bad.stdout, /^web at 8192: damaged on host-2; nobody has it whole$/m);
  assertMatch(
    bad.stdout,
    /^web at 4096: differs: host-1 has content 1, host-2 has content 2, host-3 has content 1; nobody knows$/m,
  );
  assertMatch(bad.stderr, /kelpie disk check db --prefer NODE/);
  assertMatch(bad.stdout, /^web: 4 chunks not checked: host-3: it is not up$/m);
  const json = await agent.run("disk check --json");
  assertEquals([json.code, JSON.parse(json.stdout)], [1, { ...agent.backend.comparison }]);
  assertEquals(agent.backend.compared, [[null, true], ["web", false], [null, true], [null, true]]);
  const refused = await agent.run("disk check --local --no-repair");
  assertEquals(refused.code, 64);
  const reported = await agent.run("disk check --no-repair");
  assertMatch(reported.stderr, /without --no-repair what is damaged or lacks writes is copied/);
  assertMatch(reported.stderr, /without --no-repair what differs is made what more than half/);
});

Deno.test("check has one node's content count only for one disk, and only if that is what is wanted", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.clusterMap = clusterWithDisk(3, 3);
  const { backend } = agent;
  const [, { name, id }] = backend.map().nodes;
  const words = [
    `disk check --prefer ${name} --yes`,
    `disk check web --prefer ${name} --yes --no-repair`,
    `disk check web --prefer ${name} --yes --local`,
  ];
  for (const each of words) {
    const { code, stderr } = await agent.run(each);
    assertEquals(code, 64, each);
    assertMatch(stderr, /--prefer is for one disk/);
  }
  const unasked = await agent.run(`disk check web --prefer ${name}`);
  assertEquals(unasked.code, 64);
  assertMatch(
    unasked.stderr,
    /will not overwrite replicas of disk web by what node .* has unasked: this destroys what other/,
  );
  assertEquals(backend.compared, []);
  const { stdout } = await agent.runWell(`disk check web --prefer ${name} --yes`);
  assertMatch(stdout, /there are no disks/);
  assertEquals(backend.compared, [["web", true, id]]);
  const json = await agent.runWell(`disk check web --prefer ${id} --yes --json`);
  assertEquals(JSON.parse(json.stdout), { ...backend.comparison });
  const none = await agent.run(`disk check none --prefer ${name}`);
  assertEquals(none.code, 5);
  const wrong = await agent.run("disk check web --prefer none");
  assertEquals(wrong.code, 5);
  assertMatch(wrong.stderr, /there is no node named "none"/);
});

Deno.test("check can be interrupted", async () => {
  await using agent = await FakeAgent.start();
  const { promise, resolve } = Promise.withResolvers<void>();
  agent.backend.onCompare = async (_name, _repair, onProgress, signal) => {
    onProgress(0, GIB);
    resolve();
    await new Promise((done) => signal.addEventListener("abort", done));
    throw signal.reason;
  };
  const { code } = await agent.run("disk check", (terminal) => {
    promise.then(() => terminal.interrupt());
  });
  assertEquals(code, 130);
});

Deno.test("bench asks before it writes over data", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.statuses.set("web", { ...IDLE_DISK, allocatedBytes: GIB });
  for (
    const words of [
      "bench web --rw randwrite",
      "bench web --verify",
      "bench --socket /x --rw write",
    ]
  ) {
    const { code, stderr } = await agent.run(words);
    assertEquals({ words, code }, { words, code: 64 });
    assertMatch(stderr, /--yes/);
  }
  // Nobody listens on the disk's socket here: it came as far as that.
  const { code } = await agent.run("bench web --rw randwrite --yes");
  assertEquals(code, 2);
});

Deno.test("--run-dir is stronger than the environment and works before and after the command", async () => {
  await using agent = await FakeAgent.start();
  const elsewhere = (terminal: { variables: Record<string, string> }) => {
    terminal.variables.KELPIE_RUN_DIR = "/nowhere/kelpie";
  };
  await agent.runWell(`--run-dir ${agent.runDir} disk list`, elsewhere);
  await agent.runWell(`disk list --run-dir ${agent.runDir}`, elsewhere);
  assertEquals((await agent.run("disk list", elsewhere)).code, 2);
  const { stdout } = await agent.runWell("version");
  assert(stdout.endsWith("\nagent 1.2.3\n"));
});
