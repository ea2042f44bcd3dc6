/**
 * Stories that are kept as files, line by line.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";

/**
 * Compares what happened with a file; with `UPDATE_TRANSCRIPTS` set it writes the file instead (then review the change).
 *
 * @param directory of the transcripts, with a slash at the end
 * @param name of the file, without `.txt`
 */
export function checkTranscript(directory: URL, name: string, lines: readonly string[]): void {
  const url = new URL(`${name}.txt`, directory);
  const text = lines.join("\n") + "\n";
  if (Deno.env.get("UPDATE_TRANSCRIPTS") !== undefined) {
    Deno.mkdirSync(directory, { recursive: true });
    Deno.writeTextFileSync(url, text);
    return;
  }
  assertEquals(text, Deno.readTextFileSync(url));
}
