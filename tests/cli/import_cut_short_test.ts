/** Raw images that change while they are imported. Goes into tests/cli/data_test.ts. */
import { assertEquals, assertMatch } from "@std/assert/mod.js";
import { StorageDaemon } from "../guest/storage_daemon.ts";
import { FakeAgent } from "./fixture.ts";

const MIB = 1024 * 1024;

Deno.test("an import of a file that is cut short, or grows, meanwhile makes no disk", async () => {
  for (const [bytes, what] of [[MIB, /ends/], [5 * MIB + 512, /./], [9 * MIB, /./]] as const) {
    await using agent = await FakeAgent.start();
    const { backend, runDir } = agent;
    const behind = `${runDir}/web.disk`, image = `${runDir}/image`;
    await Deno.writeFile(behind, new Uint8Array(8 * MIB));
    const daemon = await StorageDaemon.start({
      file: behind,
      socket: `${runDir}/web.importing.sock`,
    });
    try {
      const content = new Uint8Array(8 * MIB);
      content.fill(1, 0, MIB);
      content.fill(2, 5 * MIB, 6 * MIB); // and holes between and behind
      await Deno.writeFile(image, new Uint8Array(0));
      await Deno.truncate(image, 8 * MIB);
      using file = await Deno.open(image, { write: true });
      for (const at of [0, 5 * MIB]) {
        await file.seek(at, Deno.SeekMode.Start);
        await file.write(content.subarray(at, at + MIB));
      }
      // The disk is made when the image has been looked at, and before it is copied.
      const propose = backend.propose.bind(backend);
      backend.propose = async (command) => {
        if (command.kind === "create-disk") await Deno.truncate(image, bytes);
        return await propose(command);
      };
      const { code, stderr } = await agent.run(["disk", "import", image, "web"]);
      assertEquals({ bytes, code }, { bytes, code: 1 }, stderr);
      assertMatch(stderr, what);
      assertEquals(backend.clusterMap.disks, []);
    } finally {
      await daemon.stop();
    }
  }
});
