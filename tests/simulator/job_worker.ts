/**
 * A worker of `jobs.ts`: options in, outcome out.
 *
 * @module
 */
import { outcomeOf, type SeedOptions } from "./jobs.ts";

const scope = globalThis as unknown as {
  onmessage: (event: MessageEvent<SeedOptions>) => void;
  postMessage(message: unknown): void;
};

scope.onmessage = ({ data }) => scope.postMessage(outcomeOf(data));
