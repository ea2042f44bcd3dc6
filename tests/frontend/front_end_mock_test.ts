/**
 * The front end against a back end that does what QEMU's never would.
 *
 * @module
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert/mod.js";
import { BackEndError, type BackEndErrorKind } from "../../agent/frontend/error.ts";
import { FrontEnd, type FrontEndOptions } from "../../agent/frontend/front_end.ts";
import { closeFd, createEventFd } from "../../agent/platform/linux/libc.ts";
import * as virtio from "../../agent/frontend/virtio_blk.ts";
import { ProtocolFeature, Request } from "../../agent/frontend/vhost_user.ts";
import {
  MOCK_FEATURES,
  MockBackEnd,
  mockConfig,
  type MockOptions,
  type MockRequest,
} from "./mock_back_end.ts";

const { RequestType } = virtio;

async function withMock(
  options: MockOptions,
  test: (path: string, mock: MockBackEnd) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    const path = `${directory}/s`;
    await using mock = new MockBackEnd(path, options);
    await test(path, mock);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function rejects(
  call: () => Promise<unknown>,
  kind: BackEndErrorKind,
  text: string,
): Promise<void> {
  const error = await assertRejects(call, BackEndError, text);
  assertEquals((error as BackEndError).kind, kind, (error as Error).message);
}

Deno.test("a socket with nobody behind it is a clear error", async () => {
  const directory = await Deno.makeTempDir();
  const socket = `${directory}/none`;
  await rejects(() => FrontEnd.connect({ socket }), "connect", `connect ${socket}`);
  await rejects(() => FrontEnd.connect({ socket: "/" + "x".repeat(120) }), "connect", "121 bytes");
  await Deno.remove(directory);
});

Deno.test("messages come in the order of the protocol, each queue set up before it is enabled", async () => {
  await withMock({}, async (socket, mock) => {
    const disk = await FrontEnd.connect({ socket, queues: 2 });
    const queue = [
      Request.SetVringNum,
      Request.SetVringBase,
      Request.SetVringAddr,
      Request.SetVringKick,
      Request.SetVringCall,
      Request.SetVringErr,
    ];
    assertEquals(mock.messages, [
      Request.GetFeatures,
      Request.GetProtocolFeatures,
      Request.SetProtocolFeatures,
      Request.GetQueueNum,
      Request.SetOwner,
      Request.GetConfig,
      Request.SetFeatures,
      Request.SetMemTable,
      ...queue,
      ...queue,
      Request.SetVringEnable,
      Request.SetVringEnable,
    ]);
    assertEquals(mock.features, disk.features);
    assertEquals(disk.capacityBytes, 64 * 1024 * 1024);
    await disk.close();
    assertEquals(mock.messages.slice(-2), [Request.GetVringBase, Request.GetVringBase]);
    assertEquals(disk.warnings, []);
  });
});

Deno.test("what a back end lacks is named", async () => {
  const { FEATURE_VERSION_1, FEATURE_PROTOCOL, FEATURE_MQ, FEATURE_INDIRECT } = virtio;
  const connect = (options: MockOptions, more: Partial<FrontEndOptions> = {}) => {
    let call: Promise<void> = Promise.resolve();
    return withMock(options, async (socket) => {
      call = FrontEnd.connect({ socket, ...more }).then((disk) => disk.close());
      await call;
    });
  };
  await rejects(
    () => connect({ features: MOCK_FEATURES & ~FEATURE_VERSION_1 }),
    "protocol",
    "VIRTIO_F_VERSION_1",
  );
  await rejects(
    () => connect({ features: MOCK_FEATURES & ~FEATURE_PROTOCOL }),
    "protocol",
    "protocol features",
  );
  await rejects(
    () => connect({ protocolFeatures: ProtocolFeature.Mq }),
    "protocol",
    "CONFIG",
  );
  await rejects(() => connect({}, { inflight: true }), "unsupported", "INFLIGHT_SHMFD");
  const range = (call: () => Promise<unknown>, text: string) =>
    assertRejects(call, RangeError, text);
  await range(() => connect({}, { queues: 3 }), "the back end has 2");
  await range(() => connect({ features: MOCK_FEATURES & ~FEATURE_MQ }, { queues: 2 }), "MQ");
  await range(
    () => connect({ features: MOCK_FEATURES & ~FEATURE_INDIRECT }, { indirect: true }),
    "indirect",
  );
  await range(() => connect({}, { segments: 127 }), "the device takes 126");
  await range(() => connect({}, { depth: 0 }), "depth 0");
  await range(() => connect({}, { bufferBytes: 1000 }), "multiple of 512");
  await range(() => connect({}, { depth: 8192, bufferBytes: 2 ** 20 }), "bytes of memory");
});

Deno.test("a refused, ignored, confused or hung-up message is named", async () => {
  const cases: [MockOptions, BackEndErrorKind, string][] = [
    [{ refuses: [Request.SetMemTable] }, "protocol", "refused SET_MEM_TABLE (1)"],
    [{ ignores: [Request.GetFeatures] }, "stalled", "serving another front end"],
    [
      { ignores: [Request.SetVringAddr] },
      "stalled",
      "has not answered SET_VRING_ADDR within 0.1 s",
    ],
    [{ confuses: [Request.GetConfig] }, "protocol", "the reply to GET_CONFIG is SET_CONFIG"],
    [{ hangsUpAt: [Request.GetQueueNum] }, "disconnected", "it owed the reply to GET_QUEUE_NUM"],
    [{ hangsUpAt: [Request.SetVringEnable] }, "disconnected", "SET_VRING_ENABLE"],
  ];
  for (const [options, kind, text] of cases) {
    await withMock(options, async (socket) => {
      await rejects(() => FrontEnd.connect({ socket, replyTimeoutMs: 100 }), kind, text);
    });
  }
});

Deno.test("a status byte becomes an error that names the request", async () => {
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    const status = request.type === RequestType.In ? 1 : request.type === RequestType.Out ? 2 : 77;
    mock.complete(request, { status });
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    const block = new Uint8Array(4096);
    await rejects(() => disk.read(8192, block), "io", "read at byte 8192 failed with an I/O error");
    await rejects(() => disk.write(512, block), "unsupported", "support write at byte 512");
    await rejects(() => disk.flush(), "io", "flush at byte 0 failed with the unknown status 77");
    // No slot was lost on the way.
    assertEquals(disk.queues[0].freeCount, 8);
    await disk.close();
  });
});

Deno.test("a transfer longer than a buffer is cut up, and one bad piece fails it after the rest", async () => {
  const sectors: number[] = [];
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    sectors.push(request.sector);
    mock.complete(request, { status: request.sector === 8 ? 1 : 0 });
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket, depth: 2, bufferBytes: 4096 });
    await rejects(() => disk.read(0, new Uint8Array(5 * 4096)), "io", "read at byte 4096");
    assertEquals(sectors, [0, 8, 16, 24, 32]);
    assertEquals(disk.queues[0].freeCount, 2);
    await disk.close();
  });
});

Deno.test("chains have the shape that was asked for, and size_max is kept", async () => {
  const config = mockConfig();
  new DataView(config.buffer).setUint32(8, 1024, true); // size_max
  const noSizeMax = MOCK_FEATURES & ~virtio.FEATURE_SIZE_MAX;
  const cases: [MockOptions, Partial<FrontEndOptions>, number[], boolean][] = [
    [{ features: noSizeMax }, {}, [4096], false],
    [{ features: noSizeMax }, { indirect: true }, [4096], true],
    [{ features: noSizeMax }, { segments: 3 }, [1536, 1536, 1024], false],
    [{ config }, { bufferBytes: 4096 }, [1024, 1024, 1024, 1024], false],
    [{ features: noSizeMax }, { depth: 512, bufferBytes: 4096 }, [4096], true],
  ];
  for (const [mockOptions, options, lengths, isIndirect] of cases) {
    const requests: MockRequest[] = [];
    const handle = (request: MockRequest) => requests.push(request) > 0;
    await withMock({ ...mockOptions, handle }, async (socket) => {
      const disk = await FrontEnd.connect({ socket, ...options });
      await disk.write(0, new Uint8Array(4096));
      assertEquals(requests[0].data.map(({ length }) => length), lengths);
      assertEquals(requests[0].isIndirect, isIndirect);
      await disk.close();
    });
  }
});

Deno.test("discard and write-zeroes are cut to what the device takes at once", async () => {
  const ranges: [number, number, number, number][] = [];
  const handle = (request: MockRequest) => {
    const view = new DataView(request.data[0].buffer, request.data[0].byteOffset, 16);
    const [sector, count, flags] = [
      Number(view.getBigUint64(0, true)),
      view.getUint32(8, true),
      view.getUint32(12, true),
    ];
    ranges.push([request.type, sector, count, flags]);
    return true;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    await disk.discard(1024 * 512, 3000 * 512);
    await disk.writeZeroes(0, 512);
    await disk.writeZeroes(0, 512, { unmap: false });
    await disk.discard(0, 0);
    assertEquals(ranges, [
      [RequestType.Discard, 1024, 2048, 0],
      [RequestType.Discard, 3072, 952, 0],
      [RequestType.WriteZeroes, 0, 1, 1],
      [RequestType.WriteZeroes, 0, 1, 0],
    ]);
    await disk.close();
  });
});

Deno.test("what was not negotiated is not sent", async () => {
  const { FEATURE_DISCARD, FEATURE_WRITE_ZEROES, FEATURE_FLUSH, FEATURE_CONFIG_WCE } = virtio;
  const withoutFeatures = FEATURE_DISCARD | FEATURE_WRITE_ZEROES | FEATURE_FLUSH |
    FEATURE_CONFIG_WCE;
  let count = 0;
  await withMock({ handle: () => ++count > 0 }, async (socket, mock) => {
    const disk = await FrontEnd.connect({ socket, withoutFeatures });
    assertEquals(mock.features & withoutFeatures, 0n);
    await rejects(() => disk.discard(0, 512), "unsupported", "discard");
    await rejects(() => disk.writeZeroes(0, 512), "unsupported", "write-zeroes");
    await rejects(() => disk.setWriteCache(false), "unsupported", "CONFIG_WCE");
    await disk.flush();
    assertEquals(count, 0);
    await disk.close();
  });
});

Deno.test("a read-only disk takes no writes", async () => {
  await withMock({ features: virtio.FEATURES_KNOWN }, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    assertEquals(disk.isReadOnly, true);
    const block = new Uint8Array(512);
    await rejects(() => disk.write(0, block), "unsupported", "write: the disk is read-only");
    await rejects(() => disk.discard(0, 512), "unsupported", "read-only");
    await rejects(() => disk.writeZeroes(0, 512), "unsupported", "read-only");
    await disk.read(0, block);
    await disk.close();
  });
});

Deno.test("setWriteCache() sets the writeback byte, and readConfig() sees the config space anew", async () => {
  await withMock({}, async (socket, mock) => {
    const disk = await FrontEnd.connect({ socket });
    await disk.setWriteCache(true);
    assertEquals(mock.config[32], 1);
    await disk.setWriteCache(false);
    assertEquals(mock.config[32], 0);
    new DataView(mock.config.buffer).setUint32(0, 262144, true);
    assertEquals((await disk.readConfig()).capacityBytes, 128 * 1024 * 1024);
    assertEquals(disk.capacityBytes, 128 * 1024 * 1024);
    await disk.close();
  });
});

Deno.test("a used ring that lies is refused", async () => {
  const lies: [(request: MockRequest, mock: MockBackEnd) => void, string][] = [
    [(request, mock) => mock.complete({ ...request, head: 60 }), "names descriptor 60"],
    [(request, mock) => mock.complete({ ...request, head: 1 }), "names descriptor 1"],
    [(request, mock) => mock.complete({ ...request, head: 70000 }), "names descriptor 70000"],
    [(request, mock) => mock.complete(request, { status: null }), "without a status byte"],
  ];
  for (const [lie, text] of lies) {
    const handle = (request: MockRequest, mock: MockBackEnd) => {
      lie(request, mock);
      return false;
    };
    await withMock({ handle }, async (socket) => {
      const disk = await FrontEnd.connect({ socket });
      await rejects(() => disk.read(0, new Uint8Array(512)), "protocol", text);
      disk.abort();
    });
  }
});

Deno.test("a wrong used length is counted and nothing more", async () => {
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    mock.complete(request, { lengthBytes: 0 });
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    await disk.read(0, new Uint8Array(512));
    assertEquals(disk.queues[0].usedLengthMismatches, 1);
    await disk.close();
  });
});

Deno.test("a back end that dies with a request in flight is noticed at once", async () => {
  const handle = (_: MockRequest, mock: MockBackEnd) => {
    mock.hangUp();
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket, stallTimeoutMs: 600_000 });
    await rejects(
      () => disk.read(0, new Uint8Array(512)),
      "disconnected",
      "closed the connection with 1 requests in flight",
    );
    await disk.close();
  });
});

Deno.test("a back end that hangs is given up with the state of its rings", async () => {
  await withMock({ handle: () => false }, async (socket) => {
    const disk = await FrontEnd.connect({ socket, stallTimeoutMs: 50 });
    await rejects(
      () => disk.read(0, new Uint8Array(512)),
      "stalled",
      "queue 0: 1 in flight, available index 1, used index 0, reaped up to 0",
    );
    disk.abort();
  });
});

Deno.test("a back end that hangs is given up once, however much is in flight, and asked again", async () => {
  let isWell = false;
  await withMock({ handle: () => isWell }, async (socket) => {
    const options = { depth: 33, bufferBytes: 512, stallTimeoutMs: 500 };
    const disk = await FrontEnd.connect({ socket, ...options });
    const start = performance.now();
    await rejects(() => disk.read(0, new Uint8Array(32 * 512)), "stalled", "32 in flight");
    const elapsedMs = performance.now() - start;
    assert(elapsedMs < 16 * 500, `${elapsedMs} ms`);
    isWell = true;
    await disk.read(0, new Uint8Array(512));
    disk.abort();
  });
});

Deno.test("a signal ends every wait, but not before what ends soon has ended, and nothing begins after it", async () => {
  for (const endsSoon of [true, false]) {
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error("enough");
    const handle = (request: MockRequest, mock: MockBackEnd) => {
      controller.abort(reason);
      if (endsSoon) setTimeout(() => mock.complete(request));
      return false;
    };
    await withMock({ handle }, async (socket) => {
      const disk = await FrontEnd.connect({
        socket,
        bufferBytes: 512,
        stallTimeoutMs: 600_000,
        signal,
      });
      const read = disk.read(0, new Uint8Array(512));
      if (endsSoon) await read;
      else await assertRejects(() => read, Error, "enough");
      await assertRejects(() => disk.read(0, new Uint8Array(512)), Error, "enough");
      disk.abort();
    });
  }
  const controller = new AbortController();
  await withMock({ ignores: [Request.GetConfig] }, async (socket, mock) => {
    const connecting = FrontEnd.connect({
      socket,
      replyTimeoutMs: 600_000,
      signal: controller.signal,
    });
    while (!mock.messages.includes(Request.GetConfig)) await new Promise((go) => setTimeout(go, 1));
    controller.abort(new Error("enough"));
    await assertRejects(() => connecting, Error, "enough");
  });
});

Deno.test("the error eventfd of a queue ends the wait", async () => {
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    mock.reportError(request.queue);
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket, stallTimeoutMs: 600_000 });
    await rejects(() => disk.read(0, new Uint8Array(512)), "protocol", "reports an error: queue 0");
    disk.abort();
  });
});

Deno.test("reconnect() goes on from the used index with what was in flight", async () => {
  let isFirst = true;
  const handle = (request: MockRequest, mock: MockBackEnd) => {
    if (!isFirst || request.sector !== 16) return true;
    isFirst = false;
    mock.hangUp();
    return false;
  };
  await withMock({ handle }, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    await disk.read(0, new Uint8Array(512));
    await disk.read(4096, new Uint8Array(512));
    const queue = disk.queues[0];
    const slot = queue.takeSlot();
    queue.submit(slot, RequestType.In, 16, 512);
    disk.start(slot);
    await rejects(() => disk.finish(slot), "disconnected", "with 1 requests in flight");
    await disk.reconnect();
    await disk.finish(slot);
    queue.releaseSlot(slot);
    await disk.read(0, new Uint8Array(512));
    await disk.close();
    assertEquals(disk.warnings, []);
  });
});

Deno.test("reconnect() in vain, again and again, closes nothing but its own", async () => {
  const directory = await Deno.makeTempDir();
  const socket = `${directory}/s`;
  const mock = new MockBackEnd(socket, {});
  const disk = await FrontEnd.connect({ socket });
  await mock[Symbol.asyncDispose]();
  await Deno.remove(directory, { recursive: true });
  await rejects(() => disk.reconnect(), "connect", socket);
  // One of these gets the number that the connection had.
  const others = Array.from({ length: 16 }, createEventFd);
  await rejects(() => disk.reconnect(), "connect", socket);
  disk.abort();
  for (const fd of others) {
    assertEquals(Deno.readLinkSync(`/proc/self/fd/${fd}`), "anon_inode:[eventfd]");
    closeFd(fd);
  }
});

Deno.test("ranges are checked before anything is sent", async () => {
  await withMock({}, async (socket) => {
    const disk = await FrontEnd.connect({ socket });
    const size = disk.capacityBytes;
    for (const [offset, length] of [[1, 512], [0, 100], [-512, 512], [size, 512], [NaN, 512]]) {
      await assertRejects(() => disk.read(offset, new Uint8Array(length)), RangeError);
    }
    assertThrows(() => disk.checkRange(size - 512, 1024), RangeError, "leave the disk");
    await disk.read(size, new Uint8Array(0));
    await disk.close();
    await rejects(() => disk.flush(), "disconnected", "has been closed");
  });
});
