/**
 * Images whose files were cut short, at every kind of place, against what `qemu-img convert` makes of them.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert/mod.js";
import { Buffer } from "node:buffer";
import { Prng } from "../../agent/base/prng.ts";
import { findMissing } from "../../cli/image_end.ts";
import { ensurePackages } from "../guest/install.ts";

const KIB = 1024, MIB = 1024 * KIB;
/** Not a multiple of a cluster. */
const SIZE = 3 * MIB + 512;
/** Cuts of each image. */
const CUTS = 12;

async function qemuImg(dir: string, ...args: string[]): Promise<boolean> {
  const command = new Deno.Command("qemu-img", { args, cwd: dir, stderr: "null", stdout: "null" });
  return (await command.output()).success;
}

/** Data without a zero byte, a hole, and data that can be compressed. */
function contentOf(seed: number): Uint8Array<ArrayBuffer> {
  const random = new Prng(seed);
  const bytes = new Uint8Array(SIZE);
  random.fill(bytes);
  for (let at = 0; at < SIZE; at++) bytes[at] |= 1;
  bytes.fill(0, MIB, MIB + 256 * KIB);
  for (let at = 2 * MIB; at < 2 * MIB + 512 * KIB; at++) bytes[at] = 1 + at % 7;
  return bytes;
}

const KINDS: readonly (readonly [format: string, ...options: string[]])[] = [
  ["qcow2"],
  ["qcow2", "-o", "compat=0.10"],
  ["qcow2", "-o", "cluster_size=512"], // many tables, between the data
  ["qcow2", "-o", "cluster_size=2M"],
  ["qcow2", "-o", "extended_l2=on"],
  ["qcow2", "-o", "preallocation=metadata"],
  ["qcow2", "-c"],
  ["vmdk"],
  ["vdi"],
];

for (const [at, [format, ...options]] of KINDS.entries()) {
  Deno.test(`what an image lacks is found: ${[format, ...options].join(" ")}`, async () => {
    await ensurePackages(["qemu-img"]);
    const dir = await Deno.makeTempDir({ prefix: "kelpie-cut-" });
    try {
      const content = contentOf(at + 1);
      await Deno.writeFile(`${dir}/raw`, content);
      assert(await qemuImg(dir, "convert", "-f", "raw", "-O", format, ...options, "raw", "whole"));
      const find = (name: string) => findMissing({ path: `${dir}/${name}`, format });
      assertEquals(await find("whole"), null);
      const whole = await Deno.readFile(`${dir}/whole`);
      const random = new Prng(at + 100);
      const cuts = Array.from(
        { length: CUTS },
        () => 72 * KIB + random.below(whole.length - 72 * KIB),
      );
      let lost = 0;
      for (const cut of [...cuts, whole.length - 1, whole.length - 512, whole.length - 64 * KIB]) {
        await Deno.writeFile(`${dir}/cut`, whole.subarray(0, cut));
        const isRead = await qemuImg(dir, "convert", "-f", format, "-O", "raw", "cut", "out");
        const missing = await find("cut").catch((error) => {
          assert(!isRead, `cut at ${cut}: ${error}`);
          return undefined; // qemu-img says so itself
        });
        if (!isRead || missing === undefined) continue;
        const left = await Deno.readFile(`${dir}/out`);
        const first = left.findIndex((byte, at) => byte !== content[at]);
        if (first < 0) continue;
        lost++;
        if (missing === null) {
          throw new Error(`cut at ${cut}: byte ${first} is lost, and not missed`);
        }
        // Of a table, or of what is compressed, not all may be lost.
        const isExact = options.length === 0 && format !== "vdi";
        assert(
          isExact ? missing.diskBytes === first : missing.diskBytes <= first,
          `cut at ${cut}: byte ${missing.diskBytes}, not ${first}`,
        );
        assertEquals(missing.fileBytes, cut);
        assert(missing.endBytes > cut);
      }
      console.log(`      ${lost} of ${CUTS + 3} cuts are not told by qemu-img`);
      // What is read of one that is whole is all of it.
      assert(await qemuImg(dir, "convert", "-f", format, "-O", "raw", "whole", "out"));
      assertEquals(Buffer.compare(await Deno.readFile(`${dir}/out`), content), 0);
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  });
}
