import { assertEquals } from "@std/assert/mod.js";
import { BlockDevice, CONFIG_SPACE_BYTES } from "../../agent/blk/device.ts";
import { BlockKind } from "../../agent/blk/target.ts";
import { Fixture, LINUX_FEATURES } from "../vhost/fixture.ts";
import { FEATURE, join, REQUEST, u32s } from "../vhost/mock_driver.ts";
import { MockTarget } from "./mock_target.ts";

const CONFIG_HEX = "0080000000000000" + // capacity: 16 MiB in sectors
  "00000000" + "7e000000" + "00000000" + // size_max, seg_max 126, geometry
  "00020000" + // blk_size 512
  "03" + "00" + "0800" + "00080000" + // 4 KiB physical, aligned, min 8, opt 2048
  "01" + "00" + "0400" + // writeback, num_queues 4
  "00002000" + "01000000" + "08000000" + // discard: 2^21 sectors, 1 range, aligned to 8
  "00002000" + "01000000" + "01" + "000000"; // write zeroes: the same, may unmap

function hex(data: Uint8Array): string {
  return [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

Deno.test("the config space is what the specification draws", () => {
  const device = new BlockDevice(new MockTarget(16 * 1024 * 1024, []), { queueCountMax: 4 });
  const config = new Uint8Array(CONFIG_SPACE_BYTES);
  device.readConfig(0, config);
  assertEquals(hex(config), CONFIG_HEX);
  const part = new Uint8Array(8);
  device.readConfig(56, part);
  assertEquals(hex(part), "01000000" + "00000000", "zeros behind the end");
});

Deno.test("a read-only disk says so and offers nothing that writes", () => {
  const target = new MockTarget(1024 * 1024, []);
  target.readOnly = true;
  const device = new BlockDevice(target);
  assertEquals(BigInt(device.features) & FEATURE.RO, FEATURE.RO);
  assertEquals(BigInt(device.features) & (FEATURE.DISCARD | FEATURE.WRITE_ZEROES), 0n);
  const config = new Uint8Array(CONFIG_SPACE_BYTES);
  device.readConfig(0, config);
  assertEquals(hex(config.subarray(36)), "00".repeat(24));
});

Deno.test("GET_CONFIG answers the sizes that QEMU 7.2 and the bench ask for, and any part", () => {
  const { frontEnd } = new Fixture({ diskBytes: 16 * 1024 * 1024, device: { queueCountMax: 4 } });
  const whole = CONFIG_HEX + "00".repeat(196);
  for (const [offset, size] of [[0, 57], [0, 60], [0, 96], [0, 256], [32, 1], [0, 8], [58, 0]]) {
    const { payload } = frontEnd.ask(
      REQUEST.GET_CONFIG,
      join(u32s(offset, size, 0), new Uint8Array(size).fill(0xee)),
    );
    assertEquals(hex(payload.subarray(0, 12)), hex(u32s(offset, size, 0)));
    assertEquals(hex(payload.subarray(12)), whole.slice(offset * 2, (offset + size) * 2));
  }
});

Deno.test("reads and writes reach the target with offset, length and data; used.len is exact", () => {
  const fixture = new Fixture().start();
  const data = Uint8Array.from({ length: 4096 }, (_, i) => i * 13);
  assertEquals(fixture.write(8, data), { status: 0, length: 1 });
  assertEquals(fixture.read(8, 4096), { status: 0, length: 4097, data });
  assertEquals(fixture.read(9, 512), { status: 0, length: 513, data: data.slice(512, 1024) });
  assertEquals(fixture.target.data.slice(4096, 8192), data);
  fixture.close();
});

Deno.test("a request that the target fails has status IOERR and only the status written", () => {
  const fixture = new Fixture().start();
  fixture.target.bad.add(4096);
  assertEquals(fixture.write(8, new Uint8Array(512)), { status: 1, length: 1 });
  const { status, length } = fixture.read(8, 512);
  assertEquals([status, length], [1, 1]);
  assertEquals(fixture.read(9, 512).status, 0);
  fixture.close();
});

Deno.test("GET_ID gives the serial, padded with zeros, cut where there is little room", () => {
  const fixture = new Fixture();
  fixture.start();
  const text = fixture.target.serial;
  for (const [room, expected] of [[20, text], [8, text.slice(0, 8)]] as const) {
    const address = fixture.allocate(64);
    fixture.guest.set(address, new Uint8Array(64).fill(0xee));
    const done = fixture.request(8, 0, [{ address, length: room, write: true }]);
    assertEquals(done, { status: 0, length: room + 1 });
    const found = fixture.guest.get(address, 64);
    assertEquals(new TextDecoder().decode(found.subarray(0, room)), expected);
    assertEquals(found.subarray(room), new Uint8Array(64 - room).fill(0xee));
  }
  fixture.close();
});

Deno.test("GET_ID is shown without any completion of the target", () => {
  const fixture = new Fixture().start();
  const address = fixture.allocate(20);
  const { chain, status } = fixture.chain(8, 0, [{ address, length: 20, write: true }]);
  fixture.queue.add(chain);
  fixture.session.kicked(0);
  fixture.host.runTurns();
  assertEquals(fixture.queue.reap().length, 1);
  assertEquals(fixture.guest.get(status, 1)[0], 0);
  assertEquals(fixture.queue.callEvent.count, 1);
  fixture.close();
});

/** Which features and cache mode make a write durable before it completes. */
const CACHE: { features: bigint; writeback?: number; isForced: boolean; what: string }[] = [
  { what: "FLUSH and CONFIG_WCE, untouched", features: LINUX_FEATURES, isForced: false },
  { what: "write-through chosen", features: LINUX_FEATURES, writeback: 0, isForced: true },
  { what: "writeback chosen", features: LINUX_FEATURES, writeback: 1, isForced: false },
  { what: "FLUSH alone", features: LINUX_FEATURES & ~FEATURE.CONFIG_WCE, isForced: false },
  { what: "no FLUSH", features: LINUX_FEATURES & ~FEATURE.FLUSH, isForced: true },
  {
    what: "no FLUSH, writeback chosen",
    features: LINUX_FEATURES & ~FEATURE.FLUSH,
    writeback: 1,
    isForced: true,
  },
  {
    what: "neither",
    features: LINUX_FEATURES & ~FEATURE.FLUSH & ~FEATURE.CONFIG_WCE,
    isForced: true,
  },
];

for (const { what, features, writeback, isForced } of CACHE) {
  Deno.test(`with ${what}, a write is ${isForced ? "" : "not "}forced to be durable`, () => {
    const fixture = new Fixture({ features }).start();
    if (writeback !== undefined) {
      const payload = join(u32s(32, 1, 0), Uint8Array.of(writeback));
      assertEquals(fixture.frontEnd.acknowledged(REQUEST.SET_CONFIG, payload), 0);
    }
    fixture.write(0, new Uint8Array(512));
    fixture.request(4, 0);
    fixture.read(0, 512);
    const forced = fixture.target.log.map(({ kind, forceUnitAccess }) => [kind, forceUnitAccess]);
    assertEquals(forced, [[BlockKind.Write, isForced], [BlockKind.Flush, false], [
      BlockKind.Read,
      false,
    ]]);
    fixture.close();
  });
}

Deno.test("the driver may write writeback and nothing else; a migration may bring everything", () => {
  const { frontEnd, device } = new Fixture();
  const set = (offset: number, data: number[], flags: number) =>
    frontEnd.acknowledged(
      REQUEST.SET_CONFIG,
      join(u32s(offset, data.length, flags), Uint8Array.from(data)),
    );
  assertEquals(set(0, [1, 2, 3, 4, 5, 6, 7, 8], 0), 1);
  assertEquals(set(31, [0, 0], 0), 1);
  assertEquals(set(32, [0, 0], 0), 1);
  assertEquals(set(32, [2], 0), 1);
  assertEquals(set(32, [], 0), 1);
  assertEquals(set(32, [0], 7), 1);
  assertEquals(device.restartState, 0);
  assertEquals(set(32, [0], 0), 0);
  assertEquals(device.restartState, 1);
  assertEquals(set(0, Array(60).fill(1), 1), 0);
  assertEquals(device.restartState, 0);
  assertEquals(set(0, [0, 0, 0], 1), 0);
  assertEquals(device.restartState, 0);
});

Deno.test("a reset does not loosen the cache mode behind the guest's back", () => {
  // QEMU keeps showing the guest the mode it chose, also after a reset.
  const fixture = new Fixture().start();
  const { frontEnd } = fixture;
  frontEnd.acknowledged(REQUEST.SET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(0)));
  assertEquals(frontEnd.acknowledged(REQUEST.RESET_DEVICE), 0);
  const { payload } = frontEnd.ask(REQUEST.GET_CONFIG, join(u32s(32, 1, 0), Uint8Array.of(9)));
  assertEquals(payload[12], 0);
  fixture.close();
});

Deno.test("requests are reused: a million would not need more than the depth", () => {
  const fixture = new Fixture({ queueSize: 8 }).start();
  const seen = new Set<unknown>();
  const submit = fixture.target.submit.bind(fixture.target);
  fixture.target.submit = (request) => {
    seen.add(request);
    submit(request);
  };
  for (let i = 0; i < 50; i++) fixture.read(i, 512);
  assertEquals(seen.size, 1);
  fixture.close();
});
