/**
 * The handshake: what is agreed on, what is refused and with which words, and what ends a connection.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import {
  type Agreement,
  type ExportInfo,
  type ExportRefusal,
  Handshake,
  type HandshakeHost,
  OPTION_BYTES_MAX,
  OPTIONS_MAX,
  type TlsMode,
} from "../../agent/nbd/handshake.ts";
import { bytesOf, contextData, goData, MemoryStream, option, parseAnswers } from "./client.ts";

const WEB: ExportInfo = {
  name: "web",
  description: "a disk",
  sizeBytes: 2 ** 40 + 512,
  isReadOnly: false,
  canTrim: true,
  canZero: true,
};

const ACK = 1, SERVER = 2, INFO = 3, CONTEXT = 4;
const EXPORT_NAME = 1, ABORT = 2, LIST = 3, START_TLS = 5, ASK_INFO = 6, GO = 7, STRUCTURED = 8;
const LIST_CONTEXT = 9, SET_CONTEXT = 10;

/** A server with one export, and whoever has connected to it. */
class Meeting implements HandshakeHost {
  stream = new MemoryStream();
  readonly handshake: Handshake;
  agreement: Agreement | null = null;
  closed: string | null | undefined;
  readonly asked: string[] = [];
  /** Answers come when the test says so. */
  isSlow = false;
  /** Connections to the TLS stream. */
  secure: MemoryStream | null = null;

  constructor(tls: TlsMode = "off", flags = 3) {
    this.handshake = new Handshake(this, this.stream, tls);
    this.handshake.start();
    assertEquals(this.stream.take(), bytesOf("NBDMAGICIHAVEOPT", [2, 3]));
    this.say(bytesOf([4, flags]));
  }

  /** Puts bytes in, in pieces of every size, and takes the answers. */
  say(...parts: Uint8Array[]) {
    return parseAnswers(this.sayRaw(...parts));
  }

  sayRaw(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
    let rest = bytesOf(...parts);
    for (let size = 1; rest.length > 0; size = size * 2 + 1) {
      const taken = this.stream.put(rest.subarray(0, size));
      rest = rest.subarray(taken);
      this.handshake.step();
      if (this.closed !== undefined || taken === 0) break;
    }
    return this.stream.take();
  }

  list(): void {
    this.asked.push("list");
    if (!this.isSlow) this.handshake.listed(["db", "web"]);
  }

  find(name: string, open: boolean): void {
    this.asked.push(`${open ? "open" : "find"} ${name}`);
    if (!this.isSlow) this.handshake.found(this.#lookUp(name));
  }

  #lookUp(name: string): ExportInfo | ExportRefusal {
    return name === "web" ? WEB : { answer: 0x8000_0006, message: `there is no disk ${name}` };
  }

  startTls(): void {
    this.secure = new MemoryStream();
    this.stream = this.secure;
    this.handshake.secured(this.secure);
  }

  agreed(agreement: Agreement): void {
    this.agreement = agreement;
  }

  close(reason: string | null): void {
    assertEquals(this.closed, undefined);
    this.closed = reason;
  }
}

function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

Deno.test("Go tells size, flags and block sizes, and begins the transmission", () => {
  const meeting = new Meeting();
  const answers = meeting.say(option(STRUCTURED), option(GO, goData("web", [1, 2, 3])));
  assertEquals(answers.map(({ option, type }) => [option, type]), [
    [STRUCTURED, ACK],
    ...[INFO, INFO, INFO, INFO, ACK].map((type) => [GO, type]),
  ]);
  assertEquals(textOf(answers[1].data.subarray(2)), "web");
  assertEquals(textOf(answers[2].data.subarray(2)), "a disk");
  assertEquals(answers[3].data, bytesOf([2, 3], [4, 512], [4, 4096], [4, 32 * 1024 * 1024]));
  // has-flags, flush, FUA, trim, write-zeroes, DF, multi-conn, cache, fast-zero
  assertEquals(answers[4].data, bytesOf([2, 0], [8, WEB.sizeBytes], [2, 0b1101_1110_1101]));
  assertEquals(meeting.agreement, { info: WEB, isStructured: true, hasAllocation: false });
  assertEquals(meeting.asked, ["open web"]);
});

Deno.test("Info opens nothing and goes on", () => {
  const meeting = new Meeting();
  const answers = meeting.say(option(ASK_INFO, goData("web")), option(ASK_INFO, goData("nope")));
  assertEquals(answers.map(({ type }) => type), [INFO, INFO, ACK, 0x8000_0006]);
  assertEquals(textOf(answers[3].data), "there is no disk nope");
  assertEquals(meeting.asked, ["find web", "find nope"]);
  assertEquals(meeting.agreement, null);
});

Deno.test("a read-only export says so, and offers nothing that changes it", () => {
  const meeting = new Meeting();
  meeting.isSlow = true;
  meeting.say(option(GO, goData("web")));
  meeting.handshake.found({ ...WEB, isReadOnly: true });
  const [, info] = parseAnswers(meeting.stream.take());
  const flags = info.data[10] * 256 + info.data[11];
  assertEquals(flags & (1 << 1), 2);
  assertEquals(flags & ((1 << 5) | (1 << 6) | (1 << 11)), 0);
});

Deno.test("ExportName answers with the export, and zeros where they are wanted", () => {
  for (const [flags, bytes] of [[3, 10], [1, 134]]) {
    const meeting = new Meeting("off", flags);
    const raw = meeting.sayRaw(option(EXPORT_NAME, bytesOf("web")));
    assertEquals(raw.length, bytes);
    assertEquals(raw.subarray(0, 8), bytesOf([8, WEB.sizeBytes]));
    assert(raw.subarray(10).every((byte) => byte === 0));
    assertEquals(meeting.agreement?.info, WEB);
  }
  const other = new Meeting();
  other.sayRaw(option(EXPORT_NAME, bytesOf("nope")));
  assertEquals(other.closed, "there is no disk nope");
});

Deno.test("List names every export", () => {
  const answers = new Meeting().say(option(LIST));
  assertEquals(answers.map(({ type }) => type), [SERVER, SERVER, ACK]);
  assertEquals(answers[0].data, bytesOf([4, 2], "db"));
  const meeting = new Meeting();
  meeting.isSlow = true;
  meeting.say(option(LIST));
  meeting.handshake.listed(null);
  assertEquals(parseAnswers(meeting.stream.take())[0].type, 0x8000_0004);
});

Deno.test("base:allocation is listed, chosen, and dropped again", () => {
  const meeting = new Meeting();
  const [early] = meeting.say(option(SET_CONTEXT, contextData("web", ["base:allocation"])));
  assertEquals(early.type, 0x8000_0003);
  meeting.say(option(STRUCTURED));
  for (
    const [queries, isListed, isSet] of [
      [[], true, false],
      [["base:"], true, false],
      [["base:allocation"], true, true],
      [["other:x", "base:allocation"], true, true],
      [["qemu:dirty-bitmap:x"], false, false],
    ] as const
  ) {
    const listed = meeting.say(option(LIST_CONTEXT, contextData("web", queries)));
    assertEquals(listed.map(({ type }) => type), isListed ? [CONTEXT, ACK] : [ACK], `${queries}`);
    const set = meeting.say(option(SET_CONTEXT, contextData("web", queries)));
    assertEquals(set.map(({ type }) => type), isSet ? [CONTEXT, ACK] : [ACK], `${queries}`);
    if (isSet) assertEquals(set[0].data, bytesOf([4, 1], "base:allocation"));
  }
  // The last choice was none.
  meeting.say(option(GO, goData("web")));
  assertEquals(meeting.agreement?.hasAllocation, false);
});

Deno.test("base:allocation holds for the export that it was chosen for", () => {
  const meeting = new Meeting();
  meeting.say(option(STRUCTURED), option(SET_CONTEXT, contextData("web", ["base:allocation"])));
  meeting.say(option(GO, goData("web")));
  assertEquals(meeting.agreement?.hasAllocation, true);
  const other = new Meeting();
  other.isSlow = true;
  other.say(option(STRUCTURED), option(SET_CONTEXT, contextData("db", ["base:allocation"])));
  other.handshake.found({ ...WEB, name: "db" });
  other.handshake.step();
  other.say(option(GO, goData("web")));
  other.handshake.found(WEB);
  assertEquals(other.agreement?.hasAllocation, false);
});

Deno.test("what a client sends while the host is asked waits its turn", () => {
  const meeting = new Meeting();
  meeting.isSlow = true;
  assertEquals(meeting.say(option(LIST), option(STRUCTURED), option(99)), []);
  assertEquals(meeting.asked, ["list"]);
  meeting.handshake.listed([]);
  meeting.handshake.step();
  const answers = parseAnswers(meeting.stream.take());
  assertEquals(answers.map(({ option, type }) => [option, type]), [
    [LIST, ACK],
    [STRUCTURED, ACK],
    [99, 0x8000_0001],
  ]);
});

Deno.test("requests behind Go are left for the transmission", () => {
  const meeting = new Meeting();
  meeting.say(option(GO, goData("web")), bytesOf("rest"));
  const { input, inputStart, inputEnd } = meeting.stream;
  assertEquals(textOf(input.subarray(inputStart, inputEnd)), "rest");
});

Deno.test("where TLS is required, nothing else is answered before it", () => {
  const meeting = new Meeting("required");
  for (const number of [LIST, ASK_INFO, GO, STRUCTURED, LIST_CONTEXT, 77]) {
    const [answer] = meeting.say(option(number, goData("web")));
    assertEquals([answer.option, answer.type], [number, 0x8000_0005]);
  }
  assertEquals(meeting.asked, []);
  const other = new Meeting("required");
  other.say(option(EXPORT_NAME, bytesOf("web")));
  assertStringIncludes(other.closed ?? "", "TLS");
  assertEquals(other.asked, []);
});

Deno.test("StartTls goes over to TLS, and what lies behind it in clear text is not answered", () => {
  const meeting = new Meeting("required");
  const clear = meeting.stream;
  // Both arrive at once: a man in the middle has put the second behind the first.
  clear.put(bytesOf(option(START_TLS), option(LIST)));
  meeting.handshake.step();
  assertEquals(parseAnswers(clear.take()).map(({ type }) => type), [ACK]);
  assertEquals(meeting.asked, []);
  assertEquals(clear.inputEnd - clear.inputStart, 16); // for TLS to choke on
  assertEquals(meeting.say(option(STRUCTURED), option(LIST)).map(({ type }) => type), [
    ...[ACK, SERVER, SERVER, ACK],
  ]);
  assertEquals(meeting.say(option(START_TLS))[0].type, 0x8000_0003);
});

Deno.test("what was agreed on before TLS is forgotten", () => {
  const meeting = new Meeting("required");
  meeting.say(option(START_TLS));
  meeting.say(option(GO, goData("web")));
  assertEquals(meeting.agreement?.isStructured, false);
  assertEquals(new Meeting("off").say(option(START_TLS))[0].type, 0x8000_0002);
});

Deno.test("options that are not whole are refused, and the handshake goes on", () => {
  const cases: [number, Uint8Array][] = [
    [LIST, bytesOf([1, 0])],
    [STRUCTURED, bytesOf([1, 0])],
    [GO, bytesOf([4, 3], "web")],
    [GO, bytesOf([4, 4], "web", [2, 0])],
    [GO, bytesOf([4, 0xffff_ffff], "web", [2, 0])],
    [GO, bytesOf(goData("web"), [1, 0])],
    [GO, bytesOf([4, 3], "web", [2, 2], [2, 0])],
    [GO, bytesOf([4, 2], [1, 0xff], [1, 0xfe], [2, 0])],
    [GO, goData("x".repeat(4097))],
  ];
  for (const [number, data] of cases) {
    const meeting = new Meeting();
    assertEquals(meeting.say(option(number, data))[0].type, 0x8000_0003, `${number} ${data}`);
    assertEquals(meeting.say(option(LIST)).length, 3);
  }
  for (
    const data of [
      bytesOf([4, 3], "web"),
      bytesOf([4, 3], "web", [4, 1]),
      bytesOf([4, 3], "web", [4, 0xffff_ffff], [4, 0]),
      bytesOf(contextData("web", ["base:"]), [1, 0]),
      bytesOf([4, 3], "web", [4, 1], [4, 5000], "x".repeat(5000)),
    ]
  ) {
    const meeting = new Meeting();
    meeting.say(option(STRUCTURED));
    assertEquals(meeting.say(option(SET_CONTEXT, data))[0].type, 0x8000_0003, `${data}`);
  }
});

Deno.test("an option that is too long is thrown away unseen, one that is absurd ends the connection", () => {
  const meeting = new Meeting();
  const long = option(GO, new Uint8Array(OPTION_BYTES_MAX + 1));
  assertEquals(meeting.say(long)[0].type, 0x8000_0009);
  assertEquals(meeting.say(option(LIST)).length, 3);
  const absurd = new Meeting();
  absurd.say(bytesOf("IHAVEOPT", [4, GO], [4, 0xffff_ffff]));
  assertStringIncludes(absurd.closed ?? "", "4294967295 bytes");
});

Deno.test("what breaks the protocol ends the connection and says why", () => {
  const cases: [string, (meeting: Meeting) => void, number?][] = [
    ["does not begin as one", (meeting) => meeting.say(bytesOf("IHAVEOPX", [8, 0]))],
    ["flags 4", () => {}, 4],
    ["fixed newstyle", () => {}, 2],
    [`more than ${OPTIONS_MAX}`, (meeting) => {
      for (let i = 0; i <= OPTIONS_MAX; i++) meeting.say(option(STRUCTURED));
    }],
  ];
  for (const [reason, act, flags] of cases) {
    const meeting = new Meeting("off", flags);
    act(meeting);
    assertStringIncludes(meeting.closed ?? "", reason);
    assert(meeting.handshake.isOver);
  }
});

Deno.test("Abort is acknowledged and ends the connection in good order", () => {
  const meeting = new Meeting();
  assertEquals(meeting.say(option(ABORT)).map(({ type }) => type), [ACK]);
  assertEquals(meeting.closed, null);
});

Deno.test("a client that never reads its answers is cut off", () => {
  const meeting = new Meeting();
  const { stream } = meeting;
  // Answers are left where they are until there is no room.
  for (let i = 0; meeting.closed === undefined && i < OPTIONS_MAX; i++) {
    stream.put(option(99, new Uint8Array(0)));
    if (i === 0) {
      stream.commit(stream.reserve(stream.output.length - 200), stream.output.length - 200);
    }
    meeting.handshake.step();
  }
  assertStringIncludes(meeting.closed ?? "", "does not read");
});
