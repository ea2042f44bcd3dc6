import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { renameDurably, syncFile } from "../../cli/durable.ts";
import { ensurePackages } from "../guest/install.ts";

Deno.test("what cannot be synced is no error: character devices have nothing that could be lost", async () => {
  using device = await Deno.open("/dev/null", { write: true });
  await assertRejects(() => device.sync(), Error, "", "or this test is of nothing");
  await syncFile(device);
});

Deno.test("a file that has failed is not taken for one that cannot be synced", async () => {
  const closed = await Deno.open("/dev/null");
  closed.close();
  await assertRejects(() => syncFile(closed), Deno.errors.BadResource);
});

Deno.test("a file gets its name for good: its directory is synced after it", async () => {
  const { strace } = await ensurePackages(["strace"]);
  const dir = await Deno.makeTempDir();
  try {
    const [script, trace] = [`${dir}/rename.ts`, `${dir}/trace`];
    await Deno.writeTextFile(`${dir}/a`, "content");
    const module = new URL("../../cli/durable.ts", import.meta.url).href;
    await Deno.writeTextFile(
      script,
      `import { renameDurably } from "${module}"; await renameDurably("${dir}/a", "${dir}/b");`,
    );
    const traced = [Deno.execPath(), "run", "-A", script];
    const { success, stderr } = await new Deno.Command(strace, {
      args: ["-f", "-y", "-e", "trace=rename,fsync", "-o", trace, ...traced],
    }).output();
    assert(success, new TextDecoder().decode(stderr));
    const calls = (await Deno.readTextFile(trace)).matchAll(/(rename|fsync)\((?:\d+<)?([^>,]*)/g);
    const ours = [...calls].map(([, name, path]) => [name, path.replaceAll('"', "")])
      .filter(([, path]) => path.startsWith(dir));
    assertEquals(ours, [["rename", `${dir}/a`], ["fsync", dir]]);
    assertEquals(await Deno.readTextFile(`${dir}/b`), "content");
    await assertRejects(() => renameDurably(`${dir}/a`, `${dir}/c`), Deno.errors.NotFound);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
