/**
 * What the program may do.
 *
 * @module
 */

/** The configuration of this checkout; its path. */
export const CONFIG: string = decodeURIComponent(
  new URL("../../deno.json", import.meta.url).pathname,
);

/**
 * The flags of the task `kelpie`: whatever is made or run in its place may do what that may do, and no more.
 *
 * @param config path of a checkout's `deno.json`
 */
export function programPermissions(config = CONFIG): string[] {
  const { tasks } = JSON.parse(Deno.readTextFileSync(config));
  return tasks.kelpie.command.match(/--(?:no-prompt|allow-\S+)/g);
}
