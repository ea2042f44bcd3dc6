import type { Core, Damage } from "./core.ts";
import type { Done } from "./errors.ts";
import type { Tasks } from "./task.ts";
export interface ScrubProgress {
  checkedBlocks: number;
  totalBlocks: number;
  damagedBlocks: number;
}
export class Scrub {
  running = false;
  blocksChecked = 0;
  passes = 0;
  constructor(_core: Core, _damage: (damage: Damage) => void) {}
  tick(_tasks: Tasks, _nowMs: number): void {}
  now(
    _tasks: Tasks,
    _layers: readonly number[] | null,
    _progress: (progress: ScrubProgress) => void,
    done: Done,
  ): void {
    done(null);
  }
  stop(): void {}
}
