/**
 * Images in other formats than raw, by way of `qemu-img`, where it is installed.
 *
 * A conversion always goes through a temporary sparse raw file: every version of qemu-img can do that
 * with every format, whether it reads forwards only or not.
 *
 * @module
 */
import { openFile } from "./files.ts";
import { CommandError, ExitCode } from "./output.ts";

/** Most of an error message of qemu-img that is repeated, in characters. */
const REASON_LENGTH_MAX = 1000;

/** Bytes at the beginning of images that must not be taken for raw ones, when qemu-img is not there. */
const MAGICS: readonly (readonly [format: string, magic: string])[] = [
  ["qcow2", "QFI\xfb"],
  ["qed", "QED\0"],
  ["vmdk", "KDMV"],
  ["vmdk", "# Disk DescriptorFile"],
  ["vhdx", "vhdxfile"],
  ["vpc", "conectix"],
  ["vdi", "<<< "],
];

/** What an image is. */
export interface ImageInfo {
  /** As qemu-img calls it. */
  readonly format: string;
  /** Size of the disk in it; null when only qemu-img could tell. */
  readonly sizeBytes: number | null;
  /** Other files of which its data is part, as the image names them: it decides what is read. */
  readonly references: readonly string[];
}

/**
 * Finds out what an image is.
 *
 * @param path absolute
 * @param format when it is known
 */
export async function inspectImage(path: string, format?: string): Promise<ImageInfo> {
  if (format === "raw") return rawImage();
  const args = ["info", "--output=json", ...(format === undefined ? [] : ["-f", format]), path];
  let stdout: string;
  try {
    stdout = await run(args);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    const found = format ?? await formatByMagic(path);
    if (found === "raw") return rawImage();
    throw missingProgram(`${path} is a ${found} image`);
  }
  const info = JSON.parse(stdout);
  // An encrypted disk is as raw as any other: what is in it is the guest's business.
  if (info.format === "raw" || (info.format === "luks" && format === undefined)) {
    return rawImage();
  }
  return {
    format: String(info.format),
    sizeBytes: Number(info["virtual-size"]),
    references: referencesIn(info, path),
  };
}

function rawImage(): ImageInfo {
  return { format: "raw", sizeBytes: null, references: [] };
}

/** What `qemu-img info` prints of the places where an image may name other files. */
interface QemuImageInfo {
  readonly "backing-filename"?: string;
  readonly "format-specific"?: {
    readonly data?: {
      /** qcow2: the data lies in this file. */
      readonly "data-file"?: string;
      /** vmdk: the data lies in these files, the image itself among them or not. */
      readonly extents?: readonly { readonly filename: string }[];
    };
  };
}

function referencesIn(info: QemuImageInfo, path: string): string[] {
  const data = info["format-specific"]?.data;
  const extents = data?.extents?.map(({ filename }) => filename) ?? [];
  return [info["backing-filename"], data?.["data-file"], ...extents]
    .filter((file) => file !== undefined)
    .filter((file) => file !== path);
}

async function formatByMagic(path: string): Promise<string> {
  using file = await openFile(path);
  const head = new Uint8Array(64);
  const length = await file.read(head) ?? 0;
  const text = String.fromCharCode(...head.subarray(0, length));
  return MAGICS.find(([, magic]) => text.startsWith(magic))?.[0] ?? "raw";
}

/** An image and those that it goes on from, newest first: files that it names, which are opened for this. */
export async function imageChain(
  image: { readonly path: string; readonly format: string },
): Promise<{ path: string; format: string }[]> {
  const { path, format } = image;
  const text = await run(["info", "--backing-chain", "--output=json", "-f", format, path]);
  const chain: { filename: string; format: string }[] = JSON.parse(text);
  return chain.map(({ filename, format }) => ({ path: filename, format }));
}

/** A run of an image's data. */
export interface MappedData {
  /** On the disk. */
  readonly startBytes: number;
  readonly lengthBytes: number;
  /** In the file. */
  readonly offsetBytes: number;
}

/**
 * Tells where the data of an image lies in its own file, as far as it lies there as it is.
 *
 * @param onData gets runs in the disk's order
 */
export async function mapImage(
  image: { readonly path: string; readonly format: string },
  onData: (run: MappedData) => void,
): Promise<void> {
  let rest = "";
  await run(["map", "--output=json", "-f", image.format, image.path], {
    // One object after the other; of a large image, all of them are more than a string can hold.
    onOutput(text) {
      const parts = (rest + text).split("}");
      rest = parts.pop()!;
      for (const part of parts) {
        const { start, length, depth, data, offset } = JSON.parse(
          part.slice(part.indexOf("{")) + "}",
        );
        if (depth !== 0 || !data || offset === undefined) continue;
        onData({ startBytes: start, lengthBytes: length, offsetBytes: offset });
      }
    },
  });
}

/**
 * Converts an image.
 *
 * @param options.from absolute path; likewise `to`, which is written over
 * @param options.onProgress gets 0…1
 * @param options.signal ends the conversion
 */
export async function convertImage(
  options: {
    readonly from: string;
    readonly fromFormat: string;
    readonly to: string;
    readonly toFormat: string;
    readonly onProgress: (fraction: number) => void;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const { from, fromFormat, to, toFormat, onProgress, signal } = options;
  try {
    await run(["convert", "-p", "-f", fromFormat, "-O", toFormat, from, to], {
      signal,
      onOutput(text) {
        // (12.34/100%)\r
        const percent = /\((\d+(?:\.\d+)?)\/100%\)[^(]*$/.exec(text)?.[1];
        if (percent !== undefined) onProgress(Number(percent) / 100);
      },
    });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw missingProgram(`${toFormat === "raw" ? fromFormat : toFormat} images need it`);
  }
}

/**
 * Makes a temporary file beside which nothing else is, to be removed with its directory.
 *
 * @param parent directory for it
 */
export async function temporaryDirectory(
  parent: string,
): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir({ dir: parent, prefix: "kelpie-" });
  return {
    path,
    async [Symbol.asyncDispose]() {
      await Deno.remove(path, { recursive: true });
    },
  };
}

/** Runs qemu-img; gives what it printed. Throws Deno.errors.NotFound when it is not installed. */
async function run(
  args: readonly string[],
  options: { signal?: AbortSignal; onOutput?: (text: string) => void } = {},
): Promise<string> {
  const { signal, onOutput } = options;
  signal?.throwIfAborted();
  // Messages in English: `-p` prints a decimal point in no other.
  const env = { LC_ALL: "C" };
  const command = new Deno.Command("qemu-img", {
    args: [...args],
    env,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
  const child = command.spawn();
  const kill = () => {
    try {
      child.kill("SIGTERM");
    } catch {
      // It has ended by itself.
    }
  };
  signal?.addEventListener("abort", kill, { once: true });
  const stderr = new Response(child.stderr).text();
  let stdout = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    if (onOutput === undefined) stdout += text;
    else onOutput(text);
  }
  const { success } = await child.status;
  signal?.removeEventListener("abort", kill);
  const reason = (await stderr).trim();
  if (success) return stdout;
  signal?.throwIfAborted();
  throw new CommandError(
    ExitCode.Failure,
    `qemu-img ${args[0]} failed: ${reason.split("\n").at(-1)!.slice(0, REASON_LENGTH_MAX)}`,
  );
}

function missingProgram(why: string): CommandError {
  return new CommandError(ExitCode.System, `qemu-img is not installed, and ${why}`, {
    hint: "install it (Debian: apt-get install qemu-utils)",
  });
}
