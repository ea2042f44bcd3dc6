/**
 * The demo shows what it claims, and leaves nothing behind.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert/mod.js";

const ROOT = decodeURIComponent(new URL("../", import.meta.url).pathname);

Deno.test("the demo shows what it claims", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", `${ROOT}tests/demo.ts`],
    stdin: "null",
  }).output();
  const text = new TextDecoder().decode(stdout);
  assertEquals(code, 0, `${text}\n${new TextDecoder().decode(stderr)}`);
  assertStringIncludes(text, "the demo has shown what it claims");
  const [directory] = text.match(/\/tmp\/kelpie-hosts-[^/\s]+/)!;
  assertEquals(await Deno.stat(directory).then(() => "is there", () => "is gone"), "is gone");
});
