/**
 * How commands lay out what they say.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Output } from "../../cli/output.ts";
import type { Terminal } from "../../cli/terminal.ts";

function outputOf(isOutTerminal: boolean): Output {
  const terminal: Pick<Terminal, "environment" | "isOutTerminal" | "isErrorTerminal"> = {
    environment: () => undefined,
    isOutTerminal,
    isErrorTerminal: false,
  };
  return new Output(terminal as Terminal);
}

Deno.test("tableText() puts columns side by side, as wide as what is widest in them", () => {
  assertEquals(
    outputOf(false).tableText(["NAME", ">SIZE", "STATE"], [
      ["a", "1", "-"],
      ["long-name", "12.5G", "open"],
    ]),
    "NAME        SIZE  STATE\n" +
      "a              1  -\n" +
      "long-name  12.5G  open\n",
  );
  assertEquals(outputOf(false).tableText([">N", "M"], []), "N  M\n");
});

Deno.test("tableText() counts what a terminal shows: neither colours nor marks, wide characters twice", () => {
  const output = outputOf(true);
  assertEquals(
    output.tableText(["A", "B"], [
      ["世界", "1"],
      ["e\u0301", "2"],
      [output.styled("bad", "down"), "3"],
    ]),
    "\x1b[1mA\x1b[22m     \x1b[1mB\x1b[22m\n" +
      "世界  1\n" +
      "e\u0301     2\n" +
      "\x1b[31mdown\x1b[39m  3\n",
  );
});
