/**
 * The crash scenarios, each a function of its seed: the tests run a few seeds, the task as many as
 * asked.
 *
 * @module
 */
import { type Shape, SMALL, World } from "./harness.ts";

/** Runs with one seed; returns how many crashes were looked at. */
export type Scenario = (seed: number) => number;

const LARGER: Shape = {
  ...SMALL,
  segments: 72,
  blocks: 128,
  operationBlocks: 48,
  chunks: [0, 1, 70000],
};

/** A short workload with a crash at every single write boundary. */
export function everyBoundary(seed: number): number {
  const world = new World(seed, SMALL);
  world.bench.disk.boundary = () => world.checkCrash();
  for (let step = 0; step < 120; step++) world.step();
  world.drain();
  world.checkCrash();
  return world.crashesChecked;
}

/** A longer workload, with a crash at some boundaries, and now and then one for good. */
export function randomBoundaries(seed: number): number {
  const world = new World(seed, LARGER);
  const check = () => {
    if (world.crashRandom.chance(0.02)) world.checkCrash();
  };
  world.bench.disk.boundary = check;
  for (let step = 0; step < 3000; step++) {
    world.step();
    if (world.random.chance(0.002)) world.crash();
    else if (world.random.chance(0.003)) world.restart();
  }
  world.drain();
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * A store that is nearly full, so that cleaning, early checkpoints and waiting writes happen all
 * the time.
 */
export function nearlyFull(seed: number): number {
  const world = new World(seed, { ...SMALL, segments: 38, blocks: 72 }, {
    write: 80,
    free: 4,
    sync: 4,
  });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.02)) world.checkCrash();
  };
  for (let step = 0; step < 2500; step++) {
    world.step();
    if (world.random.chance(0.002)) world.crash();
  }
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * Checkpoints only when space asks for them, so that replay is long and what it walks through is
 * mostly garbage; little free space, much overwriting.
 */
export function longReplay(seed: number): number {
  const shape: Shape = {
    ...SMALL,
    segments: 36,
    blocks: 40,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 64 * 1024 * 1024 },
  };
  const world = new World(seed, shape, { write: 80, free: 8, sync: 6 });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.03)) world.checkCrash();
  };
  for (let step = 0; step < 2000; step++) world.step();
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * One checkpoint after the other in a store with little space: segments die, are reused and cleaned
 * while the checkpoint that still names their old content is being written.
 */
export function manyCheckpoints(seed: number): number {
  const shape: Shape = {
    ...SMALL,
    segments: 32,
    blocks: 48,
    operationBlocks: 8,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 65536, checkpointLogRatio: 0 },
  };
  const world = new World(seed, shape, { write: 80, free: 3, sync: 12, layer: 0 });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.03)) world.checkCrash();
  };
  for (let step = 0; step < 2500; step++) world.step();
  world.checkCrash();
  return world.crashesChecked;
}

/** The process is killed and the machine loses power while the store opens again. */
export function killThenPowerLoss(seed: number): number {
  const world = new World(seed, { ...SMALL, segments: 38, blocks: 72 }, {
    write: 80,
    free: 8,
    sync: 2,
  });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.03)) world.checkKillThenPowerLoss();
  };
  for (let step = 0; step < 2000; step++) world.step();
  return world.crashesChecked;
}

/**
 * Some writes fail, having changed the disk or not: they are tried again elsewhere, and nobody
 * notices.
 */
export function writeErrors(seed: number): number {
  const world = new World(seed, SMALL);
  const faults = world.random.fork();
  const fail = (kind: string, offsetBytes: number) =>
    kind === "write" && offsetBytes >= 1024 * 1024 && faults.chance(0.08) ? -5 : 0;
  world.bench.disk.faults = { fail };
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.05)) world.checkCrash();
  };
  for (let step = 0; step < 1200; step++) {
    world.step();
    if (world.random.chance(0.003)) {
      world.crash();
      world.bench.disk.faults = { fail };
    }
  }
  world.drain();
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * Bits rot anywhere on a store at rest, superblocks, checkpoint and headers included: it may refuse
 * to open, and it may refuse blocks, but what it returns is right.
 */
export function bitRot(seed: number): number {
  const world = new World(seed, SMALL);
  for (let step = world.random.between(50, 700); step > 0; step--) {
    world.step();
    if (world.random.chance(0.005)) world.crash();
  }
  world.drain();
  // What is not known to be durable cannot be told from what was torn.
  world.sync();
  let rounds = 0;
  for (; rounds < 12; rounds++) world.checkRot();
  return rounds;
}

/**
 * Bits of users' blocks rot in the tail of the log, and the power fails before anything on the disk
 * says that they were durable.
 */
export function tailRot(seed: number): number {
  const tight = seed % 2 === 0;
  const shape: Shape = tight ? { ...SMALL, segments: 38, blocks: 72 } : SMALL;
  const world = new World(seed, shape, { sync: 20, meta: 10, layer: tight ? 0 : 1 });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.03)) world.checkTailRot();
  };
  for (let step = 0; step < 1200; step++) {
    world.step();
    if (world.random.chance(0.002)) world.crash();
  }
  return world.crashesChecked;
}

/**
 * The disk loses records without a word, mostly over older ones of the same layout. Nothing that is stale is ever returned: by
 * reads while it runs and after clean restarts, and after crashes of a store that has noted what is durable. There the first
 * records of segments are spared: what else was in the segment may be nothing, and then nothing tells of it.
 */
export function lostWrites(seed: number): number {
  const isCrashing = seed % 2 === 1;
  const shape: Shape = {
    ...SMALL,
    layers: 2,
    operationBlocks: 8,
    isEven: true,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 65536, checkpointLogRatio: 0 },
  };
  const world = new World(seed, shape, { write: 80, free: 2, zero: 2, layer: 0, meta: 0 });
  // Of format 3, so that the lives of segments are known after a restart.
  while (world.absorbs + world.fills === 0) world.step();
  const lose = () => world.loseRecords(0.05, !isCrashing);
  lose();
  for (let round = 0; round < 6; round++) {
    for (let step = 0; step < 250; step++) world.step();
    world.bench.disk.faults = {};
    world.drain();
    world.checkLost();
    if (isCrashing) world.checkLostCrash();
    if (round % 2 === 1) world.restart();
    lose();
  }
  return world.crashesChecked;
}

/** Many absorbs, one layer's chunks into the next and on, with a crash at every single write boundary. */
export function everyAbsorb(seed: number): number {
  const shape: Shape = {
    ...SMALL,
    layers: 4,
    blocks: 24,
    operationBlocks: 12,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 65536, checkpointLogRatio: 0 },
  };
  const world = new World(seed, shape, { absorb: 15, free: 12, drop: 3, layer: 2 });
  world.bench.disk.boundary = () => world.checkCrash();
  for (let step = 0; step < 120; step++) world.step();
  world.drain();
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * Many absorbs in a store with little space, so that the cleaner moves blocks that were absorbed, and that
 * are while it moves them, and one checkpoint comes after the other, whose parts know of some of it.
 */
export function cleanedAbsorbs(seed: number): number {
  const shape: Shape = {
    ...SMALL,
    segments: seed % 3 === 0 ? 34 : 36,
    layers: 4,
    blocks: 56,
    operationBlocks: 8,
    tunables: {
      ...SMALL.tunables,
      checkpointLogBytes: seed % 2 === 0 ? 65536 : 64 * 1024 * 1024,
      checkpointLogRatio: 0,
    },
  };
  const world = new World(seed, shape, { write: 80, free: 10, sync: 12, absorb: 8, layer: 1 });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.03)) world.checkCrash();
  };
  for (let step = 0; step < 2500; step++) {
    world.step();
    if (world.random.chance(0.002)) world.crash();
    else if (world.random.chance(0.001)) world.restart();
  }
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * Reads through a chain of layers, each of which has some of every chunk, in a store with little space: the cleaner moves what
 * is remembered of the chain, and any layer is written to, freed, absorbed, dropped and made meanwhile.
 */
export function cleanedChain(seed: number): number {
  const shape: Shape = { ...SMALL, layers: 7, operationBlocks: 12 };
  const world = new World(seed, shape, {
    write: 60,
    read: 2,
    zero: 2,
    sync: 4,
    layer: seed % 2,
    absorb: 3,
    chain: 60,
  });
  world.bench.disk.boundary = () => {
    if (world.crashRandom.chance(0.01)) world.checkCrash();
  };
  for (let step = 0; step < 3000; step++) {
    world.step();
    if (world.random.chance(0.001)) world.crash();
  }
  world.checkCrash();
  return world.crashesChecked;
}

/**
 * Mostly fills among frees, zeroes, absorbs and writes, some of them cut, one checkpoint after the other, with a crash at every single
 * write boundary.
 */
export function everyFill(seed: number): number {
  const shape: Shape = {
    ...SMALL,
    layers: 3,
    blocks: 24,
    operationBlocks: 16,
    tunables: { ...SMALL.tunables, checkpointLogBytes: 65536, checkpointLogRatio: 0 },
  };
  const world = new World(seed, shape, {
    write: 25,
    fill: 50,
    free: 15,
    zero: 8,
    drop: 5,
    absorb: 5,
  });
  world.bench.disk.boundary = () => world.checkCrash();
  for (let step = 0; step < 120; step++) world.step();
  world.drain();
  world.checkCrash();
  return world.crashesChecked;
}

/** All of them, by name. */
export const SCENARIOS: Record<string, Scenario> = {
  everyBoundary,
  randomBoundaries,
  nearlyFull,
  longReplay,
  manyCheckpoints,
  killThenPowerLoss,
  writeErrors,
  bitRot,
  tailRot,
  lostWrites,
  everyAbsorb,
  cleanedAbsorbs,
  cleanedChain,
  everyFill,
};
