/**
 * Entry of the data worker: waits for its one message, then runs the data plane until it is stopped.
 *
 * @module
 */
/// <reference lib="deno.worker" />
import { DataPlane } from "./data_plane.ts";
import type { WorkerMessage, WorkerStart } from "./worker_protocol.ts";

self.onmessage = (event: MessageEvent<WorkerStart>) => {
  const post = (message: WorkerMessage) => self.postMessage(message);
  try {
    new DataPlane(event.data, post).run();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const isOperating = error instanceof Error && error.name === "SystemError";
    post({
      kind: "failed",
      code: isOperating ? "SYSTEM" : "INTERNAL",
      message: isOperating || !(error instanceof Error) ? message : error.stack ?? message,
    });
  }
  self.close();
};
