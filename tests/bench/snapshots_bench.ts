/**
 * A disk of many snapshots beside one of none, on a real agent: `deno run -A tests/bench/snapshots_bench.ts [PROGRAM] [SNAPSHOTS]`.
 *
 * Both disks get the same blocks in the same order, by turns, and a snapshot of one of them is taken each time that a share of
 * them is written: so both lie on the disk in the same way, and each layer has a share. Then `kelpie bench` reads them
 * in turn; said is the median of what a read cost the agent's processor on one beside the other in the same round. At last: how long the
 * command takes that takes a snapshot of a disk of 4 TiB, closed and open, and the one that lists a thousand.
 *
 * @module
 */
import { FrontEnd } from "../../agent/frontend/front_end.ts";
import { Prng } from "../../agent/base/prng.ts";
import { AgentProcess, WorkDirectory } from "../tools/agent_process.ts";

const PROGRAM = Deno.args[0] ?? "dist/kelpie";
const SNAPSHOTS = Number(Deno.args[1] ?? 1000);
const BLOCK_BYTES = 4096, DISK_BYTES = 128 * 1024 * 1024, ROUNDS = 15, COMMANDS = 15;

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >>> 1];
}

await using work = await WorkDirectory.make();
await using agent = await AgentProcess.start({
  runDir: `${work.path}/run`,
  dataDir: `${work.path}/data`,
  capacity: "4G",
  program: PROGRAM,
});
using client = agent.client();

/** Milliseconds that a command of the command line takes, its process included. */
async function commandMs(...args: string[]): Promise<number> {
  const start = performance.now();
  const command = new Deno.Command(PROGRAM, { args: ["--run-dir", agent.runDir, ...args] });
  const { success, stderr } = await command.output();
  const ms = performance.now() - start;
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  return ms;
}

async function medianMs(argsOf: (i: number) => string[]): Promise<string> {
  const times: number[] = [];
  for (let i = 0; i < COMMANDS; i++) times.push(await commandMs(...argsOf(i)));
  return `${median(times).toFixed(0)} ms (least ${Math.min(...times).toFixed(0)})`;
}

const names = ["plain", "many"];
for (const name of names) await client.createDisk({ name, sizeBytes: DISK_BYTES });
const fronts = await Promise.all(
  names.map((name) => FrontEnd.connect({ socket: agent.socket(name), queues: 1, depth: 32 })),
);
const blocks = DISK_BYTES / BLOCK_BYTES;
const places = new Prng(1).shuffle(Array.from({ length: blocks }, (_, i) => i));
const data = new Uint8Array(BLOCK_BYTES).fill(7);
let taken = 0;
for (let i = 0; i < blocks; i++) {
  if (Math.floor(i * (SNAPSHOTS + 1) / blocks) > taken) {
    await client.createSnapshots({ disks: ["many"], name: `s${taken++}` });
  }
  await Promise.all(fronts.map((front) => front.write(places[i] * BLOCK_BYTES, data)));
}
for (const front of fronts) {
  await front.flush();
  await front.close();
}
console.log(`disk many has ${(await client.disk("many")).layers.length} layers`);

/** Microseconds of the processor that the agent has used so far: in ticks of ten milliseconds. */
function agentUs(): number {
  const text = Deno.readTextFileSync(`/proc/${agent.pid}/stat`);
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

/** The same for each of some seconds' random reads. */
async function readUs(name: string, size: string): Promise<number> {
  const args = ["--run-dir", agent.runDir, "bench", name, "--rw", "randread", "--json"];
  args.push("--depth", "32", "--seconds", "1", "--block-size", size);
  const start = agentUs();
  const { success, stdout, stderr } = await new Deno.Command(PROGRAM, { args }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  return (agentUs() - start) / JSON.parse(new TextDecoder().decode(stdout)).operations;
}

for (const size of ["4K", "64K", "1M"]) {
  const ratios: number[] = [], plain: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const order = round % 2 === 0 ? names : names.toReversed();
    const of: Record<string, number> = {};
    for (const name of order) of[name] = await readUs(name, size);
    ratios.push(of.many / of.plain);
    plain.push(of.plain);
  }
  console.log(
    `random reads of ${size}: ${
      median(plain).toFixed(2)
    } µs of the agent's processor without snapshots, ` +
      `with ${SNAPSHOTS} ${((median(ratios) - 1) * 100).toFixed(1)} % more`,
  );
}

await client.createDisk({ name: "big", sizeBytes: 4 * 2 ** 40 });
console.log(`kelpie --version: ${await medianMs(() => ["--version"])}`);
const take = (name: string) => (i: number) => ["disk", "snapshot", `big@${name}${i}`];
console.log(`a snapshot of 4 TiB, closed: ${await medianMs(take("closed"))}`);
const front = await FrontEnd.connect({ socket: agent.socket("big"), queues: 1, depth: 32 });
await front.write(0, data);
console.log(`the same, open: ${await medianMs(take("open"))}`);
await front.close();
console.log(
  `a list of ${SNAPSHOTS}: ${await medianMs(() => ["disk", "snapshot", "list", "many"])}`,
);
