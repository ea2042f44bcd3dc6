/** Imports into a disk whose data other hosts have: this one has nothing of it. Goes into tests/cli/data_test.ts. */
import { assert, assertEquals, assertMatch } from "@std/assert/mod.js";
import type { ExtentState } from "../../agent/http/backend.ts";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { FakeAgent } from "./fixture.ts";

const MIB = 1024 * 1024;

Deno.test("import asks before it replaces a disk whose data lies on other hosts, and then replaces all of it", async () => {
  await using agent = await FakeAgent.start();
  const behind = `${agent.runDir}/web.disk`, image = `${agent.runDir}/image`;
  const old = new Uint8Array(2 * MIB).fill(7);
  await Deno.writeFile(behind, old);
  const socket = `${agent.runDir}/web.sock`;
  const daemon = await StorageDaemon.start({ file: behind, socket });
  try {
    await Deno.mkdir(`${agent.runDir}/ro`);
    await Deno.symlink(socket, `${agent.runDir}/ro/web.sock`);
    agent.backend.add("web", old.length); // with allocatedBytes 0: none of its copies is here
    let state: ExtentState = "unknown";
    agent.backend.onExtents = (_, { lengthBytes }) => Promise.resolve([{ lengthBytes, state }]);
    const content = new Uint8Array(2 * MIB);
    content.fill(9, MIB, MIB + 4096);
    await Deno.writeFile(image, content);
    const words = ["disk", "import", image, "web"];
    const refused = await agent.run(words);
    assertEquals(refused.code, 3, refused.stderr);
    assertMatch(refused.stderr, /will not replace disk web .*\n +add --yes/);
    const kept = await Deno.readFile(behind);
    assert(kept.every((byte) => byte === 7), "it was written to unasked");
    await agent.runWell([...words, "--yes"]);
    const now = await Deno.readFile(behind);
    const at = now.findIndex((byte, index) => byte !== content[index]);
    assertEquals(at, -1, `byte ${at} is ${now[at]}: the disk has held it before`);
    // One that is empty, wherever its places are, is not asked about.
    await Deno.writeFile(behind, new Uint8Array(2 * MIB));
    await agent.runWell(words);
    await Deno.writeFile(behind, new Uint8Array(2 * MIB));
    state = "hole";
    await agent.runWell(words);
  } finally {
    await daemon.stop();
  }
});
