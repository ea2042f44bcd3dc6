/** Disks that take each other's names while a command is at work on one of them. */
import { assert, assertEquals } from "@std/assert/mod.js";
import { findDisk } from "../../agent/map/map.ts";
import { hasZstd } from "../../agent/platform/linux/zstd.ts";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { FakeAgent } from "./fixture.ts";

const MIB = 1024 * 1024;
assert(hasZstd());

/** Disks "web", full of sevens, and "spare", empty, and a snapshot of each; they change names after the first answer about extents. */
async function withDisks(test: (agent: FakeAgent) => Promise<void>) {
  await using agent = await FakeAgent.start();
  const { backend, runDir } = agent;
  backend.clusterMap = { ...backend.clusterMap, level: 2 };
  for (const name of ["web", "spare"]) {
    backend.add(name, 4 * MIB);
    await agent.runWell(`disk snapshot ${name}@monday`);
  }
  const { id } = findDisk(backend.clusterMap, "web")!;
  await Deno.writeFile(`${runDir}/web.disk`, new Uint8Array(4 * MIB).fill(7));
  const daemons: StorageDaemon[] = [];
  for (const name of ["web", "web@monday"]) {
    const file = name === "web" ? `${runDir}/web.disk` : `${runDir}/snapshot.disk`;
    if (name !== "web") await Deno.copyFile(`${runDir}/web.disk`, file);
    daemons.push(await StorageDaemon.start({ file, socket: `${runDir}/${name}.sock` }));
  }
  let isFirst = true;
  const rename = (from: string, to: string) => {
    const disks = backend.clusterMap.disks.map((disk) =>
      disk.name === from ? { ...disk, name: to } : disk
    )
      .toSorted((a, b) => a.name < b.name ? -1 : 1);
    backend.clusterMap = { ...backend.clusterMap, disks };
  };
  backend.onExtents = (name, { lengthBytes }) => {
    const found = findDisk(backend.clusterMap, name)!;
    if (isFirst && lengthBytes === 4 * MIB) {
      isFirst = false;
      setTimeout(() => {
        rename("web", "web-old");
        rename("spare", "web");
      });
      return Promise.resolve([{ lengthBytes: MIB, state: "data" }]);
    }
    return Promise.resolve([{ lengthBytes, state: found.id === id ? "data" : "hole" }]);
  };
  try {
    await test(agent);
    assertEquals(findDisk(backend.clusterMap, "web-old")?.id, id);
  } finally {
    for (const daemon of daemons) await daemon.stop();
  }
}

Deno.test("preallocate writes nothing over data when its disk gets another name meanwhile, and another one its own", async () => {
  await withDisks(async (agent) => {
    const asked = agent.backend.onExtents!;
    let questions = 0;
    // The first question is whether there is room.
    agent.backend.onExtents = (name, range) =>
      ++questions === 1
        ? Promise.resolve([{ lengthBytes: range.lengthBytes, state: "data" }])
        : asked(name, range);
    const { code } = await agent.run("disk preallocate web");
    const now = await Deno.readFile(`${agent.runDir}/web.disk`);
    assertEquals(now.findIndex((byte) => byte !== 7), -1, "data has become zeros");
    assert(code !== 0);
  });
});

Deno.test("a backup is whole or none when its disk gets another name meanwhile, and another one its own", async () => {
  await withDisks(async (agent) => {
    const { code, stderr } = await agent.run([
      "disk",
      "backup",
      "web@monday",
      `${agent.runDir}/a.kb`,
      "--compress",
      "none",
    ]);
    if (code !== 0) return;
    const { size } = await Deno.stat(`${agent.runDir}/a.kb`);
    assert(size > 4 * MIB, `${size} bytes of 4M: ${stderr}`);
  });
});
