/**
 * What guests are told: QEMU's arguments and libvirt's XML.
 *
 * @module
 */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert/mod.js";
import { libvirtDomain, libvirtFragments, qemuArguments } from "../../cli/guest_config.ts";
import { FakeAgent } from "./fixture.ts";

const GIB = 1024 ** 3;
const ONE = { runDir: "/run/kelpie", disks: ["web"], memoryBytes: 2 * GIB, queues: 4 };
/** For libvirt, of an agent that is not root. */
const OURS = { ...ONE, owner: { uid: 107, gid: 36 } };

Deno.test("qemuArguments() has memory, chardev with reconnect, and device", () => {
  assertEquals(qemuArguments(ONE), [
    "-object memory-backend-memfd,id=mem0,size=2G,share=on",
    "-machine memory-backend=mem0",
    "-chardev socket,id=kelpie0,path=/run/kelpie/web.sock,reconnect=1",
    "-device vhost-user-blk-pci,chardev=kelpie0,num-queues=4",
  ]);
});

Deno.test("qemuArguments() shares the memory once for several disks, or not at all", () => {
  const two = qemuArguments({ ...ONE, disks: ["web", "data"] });
  assertEquals(two.filter((line) => line.startsWith("-object")).length, 1);
  assertEquals(two.filter((line) => line.startsWith("-device")).length, 2);
  assertEquals(new Set(two.flatMap((line) => line.match(/\bid=\w+/g) ?? [])).size, 3);
  assertEquals(qemuArguments({ ...ONE, memoryBytes: 0 }).length, 2);
});

Deno.test("qemuArguments() writes sizes without rounding and doubles commas", () => {
  const size = (memoryBytes: number) =>
    /size=(\w+)/.exec(qemuArguments({ ...ONE, memoryBytes })[0])![1];
  assertEquals(size(1.5 * GIB), "1536M");
  assertEquals(size(GIB + 4096), "1048580K");
  assertEquals(size(1000), "1000");
  const [, , chardev] = qemuArguments({ ...ONE, runDir: "/run/a,b" });
  assertMatch(chardev, /path=\/run\/a,,b\/web\.sock,reconnect/);
});

Deno.test("qemuArguments() refuses a path that the shell would tear apart", () => {
  for (const runDir of ["/run/my dir", "/run/*", "/run/$HOME", "/run/a\tb"]) {
    assertThrows(() => qemuArguments({ ...ONE, runDir }), Error, "the shell would not leave alone");
  }
});

Deno.test("the XML has shared memory and a reconnecting source, and nothing libvirt rejects", () => {
  for (const xml of [libvirtFragments(OURS), libvirtDomain({ ...OURS, name: "web", cpus: 2 })]) {
    assertMatch(xml, /<memoryBacking>\s+<source type='memfd'\/>\s+<access mode='shared'\/>/);
    assertMatch(xml, /<disk type='vhostuser' device='disk'>/);
    assertMatch(xml, /<driver name='qemu' type='raw' queues='4'\/>/);
    assertMatch(xml, /<source type='unix' path='\/run\/kelpie\/web\.sock'>/);
    assertMatch(xml, /<reconnect enabled='yes' timeout='1'\/>/);
    assertMatch(xml, /<target dev='vda' bus='virtio'\/>/);
    assertMatch(
      xml,
      /<seclabel type='static' model='dac' relabel='yes'>\s+<label>\+107:\+36<\/label>/,
    );
    assert(!/<(serial|iotune|readonly|shareable|wwn|blockio)|cache=|discard=|snapshot=/.test(xml));
    assertWellFormed(xml);
  }
});

Deno.test("the XML counts targets up and escapes what XML does not take", () => {
  const xml = libvirtDomain({
    ...OURS,
    runDir: "/run/<a>&'b'",
    disks: ["web", "data"],
    name: "web",
    cpus: 2,
  });
  assertWellFormed(xml);
  assertMatch(xml, /dev='vdb'/);
  assertMatch(xml, /path='\/run\/&lt;a>&amp;&apos;b&apos;\/data\.sock'/);
  assertMatch(xml, /<memory unit='KiB'>2097152<\/memory>/);
});

Deno.test("kelpie disk qemu and libvirt print for disks that are there", async () => {
  await using agent = await FakeAgent.start();
  agent.backend.add("web");
  agent.backend.add("data");
  const { stdout } = await agent.runWell("disk qemu web data --memory 4G --queues 2");
  assertMatch(stdout, /^-object memory-backend-memfd,id=mem0,size=4G,share=on$/m);
  assertMatch(stdout, new RegExp(`path=${agent.runDir}/data\\.sock,reconnect=1`));
  assertMatch(stdout, /num-queues=2/);
  const bare = await agent.runWell("disk qemu web --no-memory");
  assert(!bare.stdout.includes("memory"));
  assertMatch((await agent.runWell("disk qemu web")).stdout, /size=2G/);
  const fragments = (await agent.runWell("disk libvirt web")).stdout;
  assertMatch(fragments, /^<disk type='vhostuser'/m);
  assertMatch(fragments, new RegExp(`<label>\\+${Deno.uid()}:\\+${Deno.gid()}</label>`));
  const full = await agent.runWell("disk libvirt --full web --memory 1G --cpus 3");
  assertMatch(full.stdout, /<vcpu>3<\/vcpu>/);
  assertMatch(full.stdout, /<memory unit='KiB'>1048576</);
});

/** Every element that begins ends, in order. */
function assertWellFormed(xml: string): void {
  const open: string[] = [];
  for (const [tag] of xml.replaceAll(/<!--.*?-->/gs, "").matchAll(/<[^'<]*(?:'[^']*'[^'<]*)*>/g)) {
    const name = /^<\/?([\w-]+)/.exec(tag)![1];
    if (tag.startsWith("</")) assertEquals(open.pop(), name, xml);
    else if (!tag.endsWith("/>")) open.push(name);
  }
  assertEquals(open, []);
}
