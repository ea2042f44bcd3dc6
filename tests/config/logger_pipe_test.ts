/**
 * Where the log goes, nobody may be reading: that holds nobody up.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";

const WAIT_MS = 20_000;

Deno.test("a log that nobody reads is lost, and whoever logs goes on", async () => {
  const module = new URL("../../agent/logger.ts", import.meta.url).href;
  // Some times what a pipe holds.
  const script = `
    import { Logger } from ${JSON.stringify(module)};
    const log = new Logger({ level: "info", format: "text" });
    for (let i = 0; i < 1000; i++) log.warn("x".repeat(i === 0 ? 10 : 1000));
    console.log("went on");
  `;
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--no-check",
      "--config",
      "deno.json",
      `data:application/typescript,${encodeURIComponent(script)}`,
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), WAIT_MS);
  const said = await new Response(child.stdout).text();
  clearTimeout(timer);
  const log = await new Response(child.stderr).text();
  await child.status;
  assertEquals(said, "went on\n");
  // What there was room for is there, in whole lines.
  assertEquals(log.split("\n")[0].endsWith("xxxxxxxxxx"), true);
});
