/**
 * A store that is full, and a connection that breaks now and then, for hours: what waits is sent again each time.
 *
 * @module
 */
import { assertEquals } from "@std/assert/mod.js";
import { Arena } from "../../agent/base/arena.ts";
import { BLOCK_BYTES } from "../../agent/base/limits.ts";
import { MessageFlag, MessageType } from "../../agent/replication/messages.ts";
import { OPERATIONS_MAX, Replica } from "../../agent/replication/replica.ts";
import { ClusterView } from "../../agent/replication/view.ts";
import { OperationKind } from "../../agent/store/operation.ts";
import {
  buffer,
  EPOCH,
  FakeStore,
  FakeTransport,
  GENERATION,
  type HeadFields,
  mapOf,
  message,
  silent,
  sumOf,
  window,
} from "./harness.ts";

const SELF = 2, LINK = 11, OTHER_LINK = 13, WRITES = 256;

Deno.test("however often a connection breaks while writes wait for space, what makes room comes through", () => {
  const transport = new FakeTransport(), store = new FakeStore(1), arena = new Arena();
  const replica = new Replica({ store, window, arena, transport, log: silent });
  replica.mapChanged(new ClusterView(mapOf(), SELF), 1);
  const common: HeadFields = { epoch: EPOCH, disk: 1, layer: 1, generation: GENERATION };
  const send = (fields: HeadFields) => {
    const isWrite = fields.type === MessageType.Write;
    const bytes = message({ ...common, ...fields, count: 1 }, isWrite ? [sumOf(7)] : [1]);
    const at = isWrite ? buffer(arena, 7) : 0;
    replica.received(
      fields.id! >= 1e6 ? OTHER_LINK : LINK,
      bytes,
      bytes.length,
      at,
      isWrite ? BLOCK_BYTES : 0,
    );
  };
  replica.linkUp(OTHER_LINK, 3, 1);
  // The store has no space: it carries nothing out.
  for (let i = 0; i < OPERATIONS_MAX / WRITES + 1; i++) {
    replica.linkUp(LINK, 1, 1);
    for (let id = 1; id <= WRITES; id++) {
      const flags = i === 0 ? 0 : MessageFlag.Again;
      send({ type: MessageType.Write, id, sequence: id, chunk: 3, block: id, flags });
    }
    replica.endTurn();
    replica.linkDown(LINK);
  }
  // What others read here, on another link, is none of this.
  send({ type: MessageType.Read, id: 1e6, chunk: 5 });
  replica.endTurn();
  assertEquals(store.waiting.filter(({ kind }) => kind === OperationKind.Read).length, 1);
  assertEquals(transport.paused.size, 0);
  store.run();
  replica.endTurn();
  assertEquals(arena.usedBytes, 0);
});
