import { assert, assertEquals } from "@std/assert/mod.js";
import { Prng } from "../../agent/base/prng.ts";
import {
  GuestRequest,
  parseRequest,
  RANGE_BYTES_MAX,
  REQUEST_BYTES_MAX,
  REQUEST_SEGMENTS_MAX,
  Status,
  Verdict,
} from "../../agent/blk/request.ts";
import { BlockKind } from "../../agent/blk/target.ts";
import { GuestMemory } from "../../agent/vhost/guest_memory.ts";
import { DescriptorChain } from "../../agent/vhost/queue.ts";
import { type Descriptor, Guest, type GuestRegion } from "../vhost/mock_driver.ts";
import { MockHost } from "../vhost/mock_host.ts";

const BASE = 0x10_0000;
const SIZE = 0x60000;
const DISK = 64 * 1024 * 1024;
/** The second region follows the first in guest addresses, and lies elsewhere. */
const SECOND = BASE + SIZE;

function create(pieceBytes = Infinity) {
  const host = new MockHost();
  host.pieceBytes = pieceBytes;
  const memory = new GuestMemory(host, host.windows);
  const regions: GuestRegion[] = [1, 0].map((i) => ({
    guestAddress: BASE + i * SIZE,
    userAddress: BASE + i * SIZE,
    sizeBytes: SIZE,
    file: host.createFile(SIZE),
    fileOffset: 0,
  }));
  for (const region of regions) memory.add(region, host.openFile(region.file));
  const guest = new Guest(host.bytes, regions);
  const request = new GuestRequest({ requestDone() {} });
  const chain = new DescriptorChain();
  const parse = (
    descriptors: readonly Descriptor[],
    options: { size?: number; readOnly?: boolean } = {},
  ) => {
    chain.head = 7;
    chain.count = descriptors.length;
    chain.readableCount = descriptors.filter((descriptor) => !descriptor.write).length;
    chain.readableBytes = chain.writableBytes = 0;
    descriptors.forEach(({ address, length, write }, i) => {
      chain.addresses[i] = address;
      chain.lengths[i] = length;
      if (write) chain.writableBytes += length;
      else chain.readableBytes += length;
    });
    return parseRequest(chain, memory, options.size ?? DISK, options.readOnly ?? false, request);
  };
  const header = (type: number, sector: number, at = BASE) => {
    guest.set32(at, type);
    guest.set32(at + 4, 0xdead_beef);
    guest.set64(at + 8, sector);
    return { address: at, length: 16, write: false };
  };
  return { host, memory, guest, request, parse, header };
}

const STATUS = { address: BASE + 0x100, length: 1, write: true };
const input = (length: number, address = BASE + 0x1000) => ({ address, length, write: true });
const output = (length: number, address = BASE + 0x1000) => ({ address, length, write: false });

Deno.test("a request is the same however it is cut into descriptors, across regions and pieces", () => {
  const random = new Prng(5);
  for (const pieceBytes of [Infinity, 0x18000]) {
    const { guest, request, parse, memory } = create(pieceBytes);
    for (let round = 0; round < 60; round++) {
      const isRead = random.chance(0.5);
      const dataBytes = 512 * random.between(1, 40);
      const sector = random.below(1000);
      /** Guest addresses of one byte string, and its cut. */
      const lay = (length: number, isWritable: boolean) => {
        const descriptors: Descriptor[] = [];
        const addresses: number[] = [];
        while (addresses.length < length) {
          if (random.chance(0.1)) {
            descriptors.push({ address: random.below(2 ** 40), length: 0, write: isWritable });
          }
          const part = Math.min(
            length - addresses.length,
            random.pick([1, 3, 16, 512, 4096, 1 + random.below(9000)]),
          );
          // Often right before the seam of the regions, or of the pieces.
          const seam = random.pick([SECOND, BASE + 0x18000, BASE + 0x30000]);
          const address = random.chance(0.4)
            ? seam - random.below(part + 1)
            : BASE + random.below(2 * SIZE - part);
          descriptors.push({ address, length: part, write: isWritable });
          for (let i = 0; i < part; i++) addresses.push(address + i);
        }
        return { descriptors, addresses };
      };
      const readable = lay(16 + (isRead ? 0 : dataBytes), false);
      const writable = lay((isRead ? dataBytes : 0) + 1, true);
      const header = new Uint8Array(new Uint32Array([isRead ? 0 : 1, 9, sector, 0]).buffer);
      // Overlapping cuts would spoil the header.
      readable.addresses.slice(0, 16).forEach((address, i) => guest.set(address, [header[i]]));
      if (
        readable.addresses.slice(0, 16).some((address, i) => guest.get(address, 1)[0] !== header[i])
      ) continue;
      const verdict = parse([...readable.descriptors, ...writable.descriptors]);
      const offsets =
        (isRead ? writable.addresses.slice(0, dataBytes) : readable.addresses.slice(16))
          .map((address) => guest.at(address));
      const runs = offsets.filter((offset, i) => offset !== offsets[i - 1] + 1).length;
      if (verdict === Verdict.Answer) {
        assert(runs > REQUEST_SEGMENTS_MAX / 2, "only for too many segments");
        continue;
      }
      assertEquals(verdict, Verdict.Submit);
      assertEquals(request.head, 7);
      assertEquals(request.kind, isRead ? BlockKind.Read : BlockKind.Write);
      assertEquals(request.offsetBytes, sector * 512);
      assertEquals(request.lengthBytes, dataBytes);
      const found: number[] = [];
      for (let i = 0; i < request.segmentCount; i++) {
        for (let at = 0; at < request.segmentLengths[i]; at++) {
          found.push(request.segmentOffsets[i] + at);
        }
      }
      assertEquals(found, offsets);
      assertEquals(request.statusOffset, guest.at(writable.addresses.at(-1)!));
    }
    assertEquals(memory.regionCount, 2);
  }
});

Deno.test("data that is contiguous is one segment, but not across pieces", () => {
  const { request, parse, header } = create(0x18000);
  const pages = Array.from({ length: 8 }, (_, i) => input(4096, BASE + 0x1000 + i * 4096));
  assertEquals(parse([header(0, 0), ...pages, STATUS]), Verdict.Submit);
  assertEquals(request.segmentCount, 1);
  assertEquals(request.segmentLengths[0], 8 * 4096);
  // The mock lays pieces side by side: guest addresses would be guessed wrongly across the seam.
  const seam = BASE + 0x18000;
  assertEquals(
    parse([header(0, 0), input(4096, seam - 4096), input(4096, seam), STATUS]),
    Verdict.Submit,
  );
  assertEquals(request.segmentCount, 2);
});

/** Requests that are answered without the target; IoError unless said otherwise. */
const ANSWERED: {
  what: string;
  status?: Status;
  readOnly?: boolean;
  make: (parts: ReturnType<typeof create>) => Descriptor[];
}[] = [
  { what: "a header of 15 bytes", make: () => [output(15), STATUS] },
  { what: "no header", make: () => [STATUS] },
  { what: "a header outside memory", make: () => [output(16, 0x1000), STATUS] },
  { what: "a header that leaves memory", make: () => [output(16, SECOND + SIZE - 8), STATUS] },
  { what: "data outside memory", make: ({ header }) => [header(0, 0), input(512, 0x1000), STATUS] },
  {
    what: "data that leaves memory",
    make: ({ header }) => [header(1, 0), output(4096, SECOND + SIZE - 512), STATUS],
  },
  {
    what: "data at an absurd address",
    make: ({ header }) => [header(1, 0), output(512, 2 ** 63), STATUS],
  },
  { what: "a read of 511 bytes", make: ({ header }) => [header(0, 0), input(511), STATUS] },
  { what: "a write of 513 bytes", make: ({ header }) => [header(1, 0), output(513), STATUS] },
  {
    what: "a read beyond the end",
    make: ({ header }) => [header(0, DISK / 512), input(512), STATUS],
  },
  {
    what: "a read across the end",
    make: ({ header }) => [header(0, DISK / 512 - 1), input(1024), STATUS],
  },
  {
    what: "a write across the end",
    make: ({ header }) => [header(1, DISK / 512 - 1), output(1024), STATUS],
  },
  {
    what: "a sector whose bytes wrap 64 bits",
    make: ({ header }) => [header(0, 2 ** 55), input(512), STATUS],
  },
  {
    what: "the largest sector",
    make: ({ header, guest }) => {
      const first = header(0, 0);
      guest.set(BASE + 8, new Uint8Array(8).fill(0xff));
      return [first, input(512), STATUS];
    },
  },
  {
    what: "more bytes than any request has (too long)",
    make: ({ header }) => [header(1, 0), output(REQUEST_BYTES_MAX + 512), STATUS],
  },
  {
    what: "more segments than there is room for",
    make: ({ header }) => [
      header(0, 0),
      ...Array.from({ length: REQUEST_SEGMENTS_MAX + 1 }, (_, i) => input(512, BASE + i * 1024)),
      STATUS,
    ],
  },
  {
    what: "a write to a read-only disk",
    readOnly: true,
    make: ({ header }) => [header(1, 0), output(512), STATUS],
  },
  {
    what: "a discard of a read-only disk",
    readOnly: true,
    make: (parts) => range(parts, 11, 0, 8, 0),
  },
  { what: "zeroing a read-only disk", readOnly: true, make: (parts) => range(parts, 13, 0, 8, 0) },
  {
    what: "an unknown type",
    status: Status.Unsupported,
    make: ({ header }) => [header(99, 0), STATUS],
  },
  {
    what: "a SCSI command",
    status: Status.Unsupported,
    make: ({ header }) => [header(2, 0), output(512), STATUS],
  },
  {
    what: "a secure erase",
    status: Status.Unsupported,
    make: (parts) => range(parts, 14, 0, 8, 0),
  },
  {
    what: "a discard with unmap",
    status: Status.Unsupported,
    make: (parts) => range(parts, 11, 0, 8, 1),
  },
  {
    what: "a discard with reserved flags",
    status: Status.Unsupported,
    make: (parts) => range(parts, 11, 0, 8, 2),
  },
  {
    what: "zeroing with reserved flags",
    status: Status.Unsupported,
    make: (parts) => range(parts, 13, 0, 8, 0x8000_0001),
  },
  { what: "a discard across the end", make: (parts) => range(parts, 11, DISK / 512 - 1, 2, 0) },
  { what: "a discard that wraps", make: (parts) => range(parts, 11, 2 ** 53, 0xffff_ffff, 0) },
  {
    what: "a discard that is too long",
    make: (parts) => range(parts, 11, 0, RANGE_BYTES_MAX / 512 + 1, 0),
  },
  { what: "a discard without a range", make: ({ header }) => [header(11, 0), STATUS] },
  { what: "a discard with half a range", make: ({ header }) => [header(11, 0), output(8), STATUS] },
  { what: "a discard of two ranges", make: ({ header }) => [header(11, 0), output(32), STATUS] },
  {
    what: "a discard with its range outside memory",
    make: ({ header }) => [header(11, 0), output(16, 0x1000), STATUS],
  },
  { what: "GET_ID into the void", make: ({ header }) => [header(8, 0), input(20, 0x1000), STATUS] },
  { what: "a read of nothing", status: Status.Ok, make: ({ header }) => [header(0, 5), STATUS] },
  { what: "a write of nothing", status: Status.Ok, make: ({ header }) => [header(1, 5), STATUS] },
  { what: "a discard of nothing", status: Status.Ok, make: (parts) => range(parts, 11, 5, 0, 0) },
];

function range(
  { header, guest }: ReturnType<typeof create>,
  type: number,
  sector: number,
  sectors: number,
  flags: number,
): Descriptor[] {
  guest.set64(BASE + 0x1000, sector);
  guest.set32(BASE + 0x1008, sectors);
  guest.set32(BASE + 0x100c, flags);
  return [header(type, 77), output(16), STATUS];
}

for (const { what, status = Status.IoError, readOnly = false, make } of ANSWERED) {
  Deno.test(`${what} is answered with status ${status}, and the target not asked`, () => {
    const parts = create();
    const size = what.includes("too long") ? 4 * RANGE_BYTES_MAX : DISK;
    assertEquals(parts.parse(make(parts), { readOnly, size }), Verdict.Answer);
    assertEquals(parts.request.status, status);
    assertEquals(parts.request.statusOffset, parts.guest.at(STATUS.address));
  });
}

Deno.test("a request without a place for its status cannot be answered", () => {
  const { parse, header } = create();
  for (
    const descriptors of [
      [header(0, 0)],
      [header(1, 0), output(512)],
      [header(0, 0), { address: 0x1000, length: 1, write: true }],
      [header(0, 0), input(512), { address: 2 ** 60, length: 1, write: true }],
      [header(0, 0), { address: BASE, length: 0, write: true }],
      [],
    ]
  ) assertEquals(parse(descriptors), Verdict.NoStatus);
});

Deno.test("the status is the last byte of the writable part, even within the data's descriptor", () => {
  const { parse, header, request, guest } = create();
  assertEquals(parse([header(0, 0), input(513)]), Verdict.Submit);
  assertEquals(request.lengthBytes, 512);
  assertEquals(request.statusOffset, guest.at(BASE + 0x1000 + 512));
  // Empty descriptors behind it do not count.
  assertEquals(
    parse([header(0, 0), input(513), { address: 0, length: 0, write: true }]),
    Verdict.Submit,
  );
  assertEquals(request.statusOffset, guest.at(BASE + 0x1000 + 512));
});

Deno.test("flush, discard and write-zeroes are understood", () => {
  const parts = create();
  const { parse, request, header } = parts;
  assertEquals(parse([header(4, 0), STATUS]), Verdict.Submit);
  assertEquals([request.kind, request.lengthBytes], [BlockKind.Flush, 0]);
  assertEquals(parse(range(parts, 11, 9, 3, 0)), Verdict.Submit);
  assertEquals([request.kind, request.offsetBytes, request.lengthBytes], [
    BlockKind.Discard,
    4608,
    1536,
  ]);
  for (const flags of [0, 1]) {
    assertEquals(parse(range(parts, 13, 2, 8, flags)), Verdict.Submit);
    assertEquals([request.kind, request.offsetBytes, request.lengthBytes], [
      BlockKind.WriteZeroes,
      1024,
      4096,
    ]);
    assertEquals(request.unmap, flags === 1);
  }
  // All of a disk's end may be named.
  assertEquals(parse(range(parts, 11, DISK / 512 - 8, 8, 0)), Verdict.Submit);
});

Deno.test("GET_ID takes up to 20 bytes", () => {
  const { parse, header, request } = create();
  for (const [room, length] of [[20, 20], [8, 8], [512, 20]]) {
    assertEquals(parse([header(8, 0), input(room), STATUS]), Verdict.Serial);
    assertEquals(request.lengthBytes, length);
  }
  assertEquals(parse([header(8, 0), STATUS]), Verdict.Answer);
});
