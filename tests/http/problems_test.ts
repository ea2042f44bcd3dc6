/**
 * Problems: each kind by itself, their order, and that nothing that waits is called healthy.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import type { DiskStatus, SessionStatus, StoreStatus } from "../../agent/http/backend.ts";
import { findProblems, type Observations, PROBLEM_CODES, summarize } from "../../agent/problems.ts";
import { FakeBackend, HEALTHY_STORE, IDLE_DISK, sessionWith } from "./fake_backend.ts";

function seenWith(
  store: Partial<StoreStatus> | null,
  disks: Record<string, SessionStatus[] | string> = {},
): Observations {
  const backend = new FakeBackend();
  for (const name of Object.keys(disks)) backend.add(name);
  const statuses = Object.entries(disks).map(([name, sessions]): [string, DiskStatus | string] => [
    name,
    typeof sessions === "string" ? sessions : { ...IDLE_DISK, sessions },
  ]);
  return {
    map: backend.clusterMap,
    store: store === null ? null : { ...HEALTHY_STORE, ...store },
    disks: new Map(statuses),
  };
}

function codesOf(seen: Observations): string[] {
  return findProblems(seen).map((problem) => problem.code);
}

Deno.test("an idle agent and one with a running guest are healthy", () => {
  assertEquals(codesOf(seenWith({})), []);
  const running = seenWith({}, { web: [sessionWith()], db: [sessionWith({ active: false })] });
  assertEquals(codesOf(running), []);
  assertEquals(summarize(running, []), "healthy: 2 disks, 12G of 500G used");
});

Deno.test("each thing that is wrong is a problem of its own kind", () => {
  const broken = sessionWith({ broken: "descriptor loop in queue 0" });
  const cases: [Observations, string, string][] = [
    [seenWith(null), "store-unavailable", "does not answer"],
    [seenWith({ failed: "sync failed: EIO" }), "store-failed", "sync failed: EIO"],
    [seenWith({ full: true }), "store-full", "is full"],
    [seenWith({ full: true, waitingWrites: 1 }), "store-full", "1 write waits"],
    [seenWith({ waitingWrites: 2 }), "writes-waiting", "2 writes wait"],
    [seenWith({ liveBytes: 460 * 1024 ** 3 }), "store-nearly-full", "460G of the store's 500G"],
    [seenWith({ damagedBlocks: 1 }), "damage", "1 block cannot be read"],
    [seenWith({}, { web: "it is stuck" }), "disk-unavailable", "it is stuck"],
    [seenWith({}, { web: [broken] }), "session-broken", "descriptor loop in queue 0"],
    [
      seenWith({}, { web: [sessionWith({ waitingForLease: true })] }),
      "lease-waiting",
      "qemu-system-x86 (pid 4711) waits for the lease",
    ],
  ];
  for (const [seen, code, part] of cases) {
    const problems = findProblems(seen);
    assertEquals(problems.map((problem) => problem.code), [code]);
    assertStringIncludes(problems[0].message, part);
    assertEquals(summarize(seen, problems), problems[0].message);
  }
  const codes = new Set(cases.map((each) => each[1]));
  assertEquals(codes, new Set(PROBLEM_CODES), "a kind of problem has no case here");
});

Deno.test("who waits for a lease is told who holds it", () => {
  const [problem] = findProblems(seenWith({}, {
    web: [
      sessionWith({ pid: 1, readOnly: true }),
      sessionWith({ pid: 2 }),
      sessionWith({ pid: 3, active: false, waitingForLease: true }),
    ],
  }));
  assertStringIncludes(problem.message, "(pid 3) waits");
  assertStringIncludes(problem.message, "(pid 2) holds");
  assertEquals(problem.disk, "web");
});

Deno.test("damage names the first blocks, and the disk when it is only one", () => {
  const damage = [0, 4096, 8192, 12288].map((offsetBytes) => ({ disk: "web", offsetBytes }));
  const [one] = findProblems(seenWith({ damagedBlocks: 4, damage }));
  assertEquals(
    one.message,
    "4 blocks cannot be read: web at 0, web at 4096, web at 8192, 1 more",
  );
  assertEquals(one.disk, "web");
  const [cut] = findProblems(seenWith({ damagedBlocks: 900, damage }));
  assertEquals(cut.disk, undefined, "the blocks that are not listed may be another disk's");
  const [gone] = findProblems(
    seenWith({ damagedBlocks: 1, damage: [{ disk: "", offsetBytes: 7 }] }),
  );
  assertEquals(gone.message, "1 block cannot be read: a deleted disk at 7");
  assertEquals(gone.disk, undefined);
});

Deno.test("the worst comes first and the summary counts the rest", () => {
  const seen = seenWith({ failed: "EIO", full: true, damagedBlocks: 1 }, {
    web: [sessionWith({ waitingForLease: true })],
  });
  assertEquals(codesOf(seen), ["store-failed", "damage", "store-full", "lease-waiting"]);
  assertEquals(
    summarize(seen, findProblems(seen)),
    "the store /var/lib/kelpie/kelpie.store has stopped: EIO; and 3 more problems",
  );
});

Deno.test("nothing is healthy while anything waits, is full, broken, damaged or silent", () => {
  const random = new Prng(20);
  for (let round = 0; round < 2000; round++) {
    const chance = () => random.below(5) === 0;
    const session = sessionWith({
      waitingForLease: chance(),
      broken: chance() ? "x" : null,
      active: chance(),
    });
    const store = {
      full: chance(),
      waitingWrites: chance() ? 1 + random.below(9) : 0,
      failed: chance() ? "x" : null,
      damagedBlocks: chance() ? 1 : 0,
    };
    const isSilent = chance();
    const seen = seenWith(chance() ? null : store, {
      web: isSilent ? "silent" : [sessionWith(), session],
    });
    const isWrong = isSilent || session.waitingForLease || session.broken !== null ||
      seen.store === null || store.full || store.waitingWrites > 0 || store.failed !== null ||
      store.damagedBlocks > 0;
    const problems = findProblems(seen);
    assertEquals(problems.length > 0, isWrong);
    assertEquals(summarize(seen, problems).startsWith("healthy"), !isWrong);
  }
});
