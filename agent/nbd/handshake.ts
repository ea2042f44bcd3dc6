/**
 * The handshake of one NBD connection, server side: fixed newstyle, options until an export is chosen.
 *
 *     greeting ─▶ client flags ─▶ option ─▶ answer ─▶ option ─▶ … ─▶ Go or ExportName ─▶ the transmission
 *                                    └ StartTls ─▶ answer ─▶ TLS ─▶ options again, all that was agreed before forgotten
 *
 * Invariants:
 * - Nothing is allocated for what a client announces: data is looked at when it has come, and only up to
 *   {@linkcode OPTION_BYTES_MAX}; what is longer is refused and thrown away unseen.
 * - One question to the host at a time; what a client sends meanwhile waits, in the order in which it came.
 * - Where TLS is required, nothing but StartTls and Abort is answered before it; what lies behind StartTls in clear text
 *   is never taken for what came through TLS (CVE-2021-3716).
 * - A client that breaks the protocol ends its own connection, and is told why where there is a way to.
 *
 * A synchronous machine: {@linkcode Handshake.step} takes what there is, the host answers by calling back.
 *
 * @module
 */
import {
  Answer,
  ANSWER_HEAD_BYTES,
  ANSWER_MAGIC_HIGH,
  ANSWER_MAGIC_LOW,
  BASE_ALLOCATION,
  BASE_ALLOCATION_ID,
  BLOCK_BYTES_MIN,
  BLOCK_BYTES_PREFERRED,
  type ByteStream,
  ExportFlag,
  GREETING_BYTES,
  HandshakeFlag,
  InfoType,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  Option,
  OPTION_HEAD_BYTES,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  PAYLOAD_BYTES_MAX,
  setU64,
  STRING_BYTES_MAX,
} from "./protocol.ts";

/** Longest data of an option that is looked at: a name, and a few dozen queries as long as they may be. */
export const OPTION_BYTES_MAX = 64 * 1024;

/** Longest data of an option that is thrown away; a client that announces more does not mean it. */
const SKIP_BYTES_MAX = 1024 * 1024;

/** Options of one connection: real clients need a dozen. */
export const OPTIONS_MAX = 256;

/** Bytes of zeros behind the answer to ExportName, where the client did not ask to leave them out. */
const EXPORT_NAME_ZEROES = 124;

/** An export as a client is told of it. */
export interface ExportInfo {
  /** As it was asked for. */
  readonly name: string;
  /** For people. */
  readonly description: string;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  /** The data behind it can be trimmed. */
  readonly canTrim: boolean;
  readonly canZero: boolean;
}

/** Why there is no such export for this client. */
export interface ExportRefusal {
  /** A type of answer, with the topmost bit. */
  readonly answer: Answer;
  readonly message: string;
}

/** What was agreed on when the transmission begins. */
export interface Agreement {
  readonly info: ExportInfo;
  readonly isStructured: boolean;
  /** `base:allocation` was chosen for this very export. */
  readonly hasAllocation: boolean;
}

/** Who does what the handshake cannot do by itself. */
export interface HandshakeHost {
  /** Find out what there is; {@linkcode Handshake.listed} tells. */
  list(): void;
  /**
   * Find an export; {@linkcode Handshake.found} tells.
   *
   * @param open it will be used: whatever has to be there for that is to be there when `found` is called
   */
  find(name: string, open: boolean): void;
  /** The answer to StartTls is on its way: everything that follows it is TLS. {@linkcode Handshake.secured} goes on. */
  startTls(): void;
  /** The handshake is over; what is left in the input are requests. */
  agreed(agreement: Agreement): void;
  /** The connection is to be closed, once what is queued has gone out; null: as the client has asked for. */
  close(reason: string | null): void;
}

/** How TLS is to be used on a connection. */
export type TlsMode = "off" | "required";

const enum State {
  Flags,
  Options,
  /** The host was asked. */
  Waiting,
  Over,
}

const decoder = new TextDecoder("utf-8", { fatal: true });
const encoder = new TextEncoder();

/** See the head of the file. */
export class Handshake {
  readonly #host: HandshakeHost;
  readonly #tls: TlsMode;
  #stream: ByteStream;
  #isSecure = false;
  #state = State.Flags;
  #hasNoZeroes = false;
  #isStructured = false;
  /** The export that `base:allocation` was chosen for; null: it was not. */
  #allocationOf: string | null = null;
  #options = 0;
  /** Bytes of an option's data that are still to be thrown away. */
  #skip = 0;
  /** The option that the host was asked about. */
  #asked = 0;
  #wantsName = false;
  #wantsDescription = false;
  /** For SetMetaContext: `base:allocation` is among what was asked for. */
  #wantsAllocation = false;

  constructor(host: HandshakeHost, stream: ByteStream, tls: TlsMode) {
    this.#host = host;
    this.#stream = stream;
    this.#tls = tls;
  }

  /** Sends the greeting. */
  start(): void {
    const at = this.#stream.reserve(GREETING_BYTES);
    if (at < 0) return this.#end("no room for the greeting");
    const view = this.#output();
    view.setUint32(at, NBD_MAGIC_HIGH);
    view.setUint32(at + 4, NBD_MAGIC_LOW);
    view.setUint32(at + 8, OPTION_MAGIC_HIGH);
    view.setUint32(at + 12, OPTION_MAGIC_LOW);
    view.setUint16(at + 16, HandshakeFlag.FixedNewstyle | HandshakeFlag.NoZeroes);
    this.#stream.commit(at, GREETING_BYTES);
    this.#stream.bytesWanted = 4;
  }

  /** TLS is there: everything goes through `stream` from now on, and nothing counts that was said before. */
  secured(stream: ByteStream): void {
    this.#stream = stream;
    this.#isSecure = true;
    this.#isStructured = false;
    this.#allocationOf = null;
    this.#state = State.Options;
    stream.bytesWanted = OPTION_HEAD_BYTES;
  }

  /** The handshake is over, or the connection is. */
  get isOver(): boolean {
    return this.#state === State.Over;
  }

  /** Takes what has come. Call it again whenever there is more. */
  step(): void {
    for (;;) {
      const stream = this.#stream;
      const available = stream.inputEnd - stream.inputStart;
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, available);
        stream.inputStart += skipped;
        this.#skip -= skipped;
        stream.bytesWanted = this.#skip > 0 ? 1 : OPTION_HEAD_BYTES;
        if (this.#skip > 0) return;
        continue;
      }
      if (this.#state === State.Flags) {
        if (available < 4) return;
        this.#takeFlags();
      } else if (this.#state !== State.Options || !this.#takeOption(available)) return;
    }
  }

  #takeFlags(): void {
    const stream = this.#stream;
    const flags = this.#input().getUint32(stream.inputStart);
    stream.inputStart += 4;
    stream.bytesWanted = OPTION_HEAD_BYTES;
    if ((flags & ~(HandshakeFlag.FixedNewstyle | HandshakeFlag.NoZeroes)) !== 0) {
      return this.#end(`the client's flags ${flags >>> 0} are not known here`);
    }
    // Without fixed newstyle a client could not be told of errors; none has been like that since 2011.
    if ((flags & HandshakeFlag.FixedNewstyle) === 0) {
      return this.#end("the client does not speak fixed newstyle");
    }
    this.#hasNoZeroes = (flags & HandshakeFlag.NoZeroes) !== 0;
    this.#state = State.Options;
  }

  /** False: it has not come as a whole. */
  #takeOption(available: number): boolean {
    const stream = this.#stream;
    if (available < OPTION_HEAD_BYTES) return false;
    const view = this.#input();
    const at = stream.inputStart;
    if (
      view.getUint32(at) !== OPTION_MAGIC_HIGH || view.getUint32(at + 4) !== OPTION_MAGIC_LOW
    ) {
      this.#end("an option does not begin as one");
      return false;
    }
    const option = view.getUint32(at + 8);
    const lengthBytes = view.getUint32(at + 12);
    if (lengthBytes <= OPTION_BYTES_MAX && available < OPTION_HEAD_BYTES + lengthBytes) {
      stream.bytesWanted = OPTION_HEAD_BYTES + lengthBytes;
      return false;
    }
    if (++this.#options > OPTIONS_MAX) {
      this.#end(`more than ${OPTIONS_MAX} options`);
      return false;
    }
    stream.inputStart += OPTION_HEAD_BYTES;
    stream.bytesWanted = OPTION_HEAD_BYTES;
    if (lengthBytes > OPTION_BYTES_MAX) {
      if (lengthBytes > SKIP_BYTES_MAX || option === Option.ExportName) {
        this.#end(`an option of ${lengthBytes} bytes`);
        return false;
      }
      this.#skip = lengthBytes;
      this.#refuse(option, Answer.TooBig, `options may have ${OPTION_BYTES_MAX} bytes of data`);
      return true;
    }
    const start = stream.inputStart;
    stream.inputStart += lengthBytes;
    // A copy: answers may come later, when the input is somewhere else.
    this.#option(option, stream.input.slice(start, start + lengthBytes));
    return true;
  }

  #option(option: number, data: Uint8Array<ArrayBuffer>): void {
    if (option === Option.Abort) {
      this.#answer(option, Answer.Ack);
      return this.#end(null);
    }
    if (this.#tls === "required" && !this.#isSecure && option !== Option.StartTls) {
      // ExportName has no answer but the export.
      if (option === Option.ExportName) return this.#end("the client does not begin with TLS");
      return this.#refuse(option, Answer.TlsRequired, "this server takes TLS connections only");
    }
    switch (option) {
      case Option.ExportName:
        return this.#exportName(data);
      case Option.List:
        if (data.length > 0) return this.#refuse(option, Answer.Invalid, "List has no data");
        return this.#ask(option, () => this.#host.list());
      case Option.StartTls:
        return this.#startTls(option, data);
      case Option.Info:
      case Option.Go:
        return this.#info(option, data);
      case Option.StructuredReply:
        if (data.length > 0) return this.#refuse(option, Answer.Invalid, "it has no data");
        this.#isStructured = true;
        return this.#answer(option, Answer.Ack);
      case Option.ListMetaContext:
      case Option.SetMetaContext:
        return this.#metaContext(option, data);
      default:
        return this.#refuse(option, Answer.Unsupported, `option ${option} is not known here`);
    }
  }

  /** Last thing before the host is asked, which may answer from inside. */
  #ask(option: number, ask: () => void): void {
    this.#asked = option;
    this.#state = State.Waiting;
    ask();
  }

  #exportName(data: Uint8Array<ArrayBuffer>): void {
    const name = textOf(data);
    if (name === null) return this.#end("the name of an export is no text");
    this.#ask(Option.ExportName, () => this.#host.find(name, true));
  }

  #startTls(option: number, data: Uint8Array): void {
    if (data.length > 0) return this.#refuse(option, Answer.Invalid, "StartTls has no data");
    if (this.#isSecure) return this.#refuse(option, Answer.Invalid, "TLS is in use already");
    if (this.#tls === "off") {
      return this.#refuse(option, Answer.Policy, "this server was started without a certificate");
    }
    this.#state = State.Waiting;
    this.#answer(option, Answer.Ack);
    if (this.#state === State.Waiting) this.#host.startTls();
  }

  #info(option: number, data: Uint8Array<ArrayBuffer>): void {
    const view = viewOf(data);
    const nameBytes = data.length >= 4 ? view.getUint32(0) : 0;
    const countAt = 4 + nameBytes;
    if (data.length < 6 || nameBytes > STRING_BYTES_MAX || data.length < countAt + 2) {
      return this.#refuse(option, Answer.Invalid, "name and list are not whole");
    }
    const name = textOf(data.subarray(4, countAt));
    const count = view.getUint16(countAt);
    if (name === null || data.length !== countAt + 2 + 2 * count) {
      return this.#refuse(option, Answer.Invalid, "name and list do not fill the option's data");
    }
    this.#wantsName = false;
    this.#wantsDescription = false;
    for (let i = 0; i < count; i++) {
      const type = view.getUint16(countAt + 2 + 2 * i);
      if (type === InfoType.Name) this.#wantsName = true;
      else if (type === InfoType.Description) this.#wantsDescription = true;
    }
    this.#ask(option, () => this.#host.find(name, option === Option.Go));
  }

  #metaContext(option: number, data: Uint8Array<ArrayBuffer>): void {
    if (!this.#isStructured) {
      return this.#refuse(option, Answer.Invalid, "structured replies have to be agreed on first");
    }
    const parsed = parseMetaContext(data);
    if (parsed === null) return this.#refuse(option, Answer.Invalid, "the queries are not whole");
    const { name, queries } = parsed;
    if (option === Option.SetMetaContext) this.#allocationOf = null;
    // A namespace alone lists what is in it, and chooses nothing; no query at all lists everything.
    this.#wantsAllocation = queries.includes(BASE_ALLOCATION) ||
      option === Option.ListMetaContext && (queries.length === 0 || queries.includes("base:"));
    this.#ask(option, () => this.#host.find(name, false));
  }

  // Answers of the host --------------------------------------------------------------------------

  /** The names of all exports; null: they cannot be told now. */
  listed(names: readonly string[] | null): void {
    if (this.#state !== State.Waiting) return;
    this.#state = State.Options;
    if (names === null) {
      return this.#refuse(Option.List, Answer.Platform, "the agent does not answer");
    }
    for (const name of names) {
      const text = encoder.encode(name);
      const data = new Uint8Array(4 + text.length);
      viewOf(data).setUint32(0, text.length);
      data.set(text, 4);
      this.#answer(Option.List, Answer.Server, data);
    }
    this.#answer(Option.List, Answer.Ack);
  }

  /** The export that was asked for, or why there is none. */
  found(found: ExportInfo | ExportRefusal): void {
    if (this.#state !== State.Waiting) return;
    const option = this.#asked;
    this.#state = State.Options;
    if ("answer" in found) {
      if (option === Option.ExportName) return this.#end(found.message);
      return this.#refuse(option, found.answer, found.message);
    }
    switch (option) {
      case Option.ExportName:
        return this.#agree(found, () => this.#answerExportName(found));
      case Option.Info:
        return this.#answerInfo(option, found);
      case Option.Go:
        return this.#agree(found, () => this.#answerInfo(option, found));
      default:
        return this.#answerMetaContext(option, found);
    }
  }

  #agree(info: ExportInfo, answer: () => void): void {
    answer();
    if (this.#state !== State.Options) return; // there was no room for the answer
    this.#state = State.Over;
    this.#host.agreed({
      info,
      isStructured: this.#isStructured,
      hasAllocation: this.#isStructured && this.#allocationOf === info.name,
    });
  }

  #answerExportName(info: ExportInfo): void {
    const bytes = 10 + (this.#hasNoZeroes ? 0 : EXPORT_NAME_ZEROES);
    const at = this.#stream.reserve(bytes);
    if (at < 0) return this.#end("the client does not read its answers");
    const view = this.#output();
    setU64(view, at, info.sizeBytes);
    view.setUint16(at + 8, exportFlags(info, this.#isStructured));
    this.#stream.output.fill(0, at + 10, at + bytes);
    this.#stream.commit(at, bytes);
  }

  #answerInfo(option: number, info: ExportInfo): void {
    const data = new Uint8Array(14);
    const view = viewOf(data);
    if (this.#wantsName) this.#answer(option, Answer.Info, textInfo(InfoType.Name, info.name));
    if (this.#wantsDescription) {
      this.#answer(option, Answer.Info, textInfo(InfoType.Description, info.description));
    }
    view.setUint16(0, InfoType.BlockSize);
    view.setUint32(2, BLOCK_BYTES_MIN);
    view.setUint32(6, BLOCK_BYTES_PREFERRED);
    view.setUint32(10, PAYLOAD_BYTES_MAX);
    this.#answer(option, Answer.Info, data);
    view.setUint16(0, InfoType.Export);
    setU64(view, 2, info.sizeBytes);
    view.setUint16(10, exportFlags(info, this.#isStructured));
    this.#answer(option, Answer.Info, data.subarray(0, 12));
    this.#answer(option, Answer.Ack);
  }

  #answerMetaContext(option: number, { name }: ExportInfo): void {
    if (this.#wantsAllocation) {
      const isSet = option === Option.SetMetaContext;
      if (isSet) this.#allocationOf = name;
      const text = encoder.encode(BASE_ALLOCATION);
      const data = new Uint8Array(4 + text.length);
      // Where contexts are only listed, they have no numbers.
      viewOf(data).setUint32(0, isSet ? BASE_ALLOCATION_ID : 0);
      data.set(text, 4);
      this.#answer(option, Answer.MetaContext, data);
    }
    this.#answer(option, Answer.Ack);
  }

  // Bytes ----------------------------------------------------------------------------------------

  #refuse(option: number, answer: Answer, message: string): void {
    this.#answer(option, answer, encoder.encode(message).subarray(0, STRING_BYTES_MAX));
  }

  #answer(option: number, type: Answer, data: Uint8Array = NOTHING): void {
    if (this.#state === State.Over) return;
    const bytes = ANSWER_HEAD_BYTES + data.length;
    const at = this.#stream.reserve(bytes);
    if (at < 0) return this.#end("the client does not read its answers");
    const view = this.#output();
    view.setUint32(at, ANSWER_MAGIC_HIGH);
    view.setUint32(at + 4, ANSWER_MAGIC_LOW);
    view.setUint32(at + 8, option);
    view.setUint32(at + 12, type);
    view.setUint32(at + 16, data.length);
    this.#stream.output.set(data, at + ANSWER_HEAD_BYTES);
    this.#stream.commit(at, bytes);
  }

  #end(reason: string | null): void {
    if (this.#state === State.Over) return;
    this.#state = State.Over;
    this.#host.close(reason);
  }

  #input(): DataView {
    return viewOf(this.#stream.input);
  }

  #output(): DataView {
    return viewOf(this.#stream.output);
  }
}

const NOTHING = new Uint8Array(0);

/** What an export can do, as its transmission flags say it. */
export function exportFlags(info: ExportInfo, isStructured: boolean): number {
  let flags = ExportFlag.HasFlags | ExportFlag.SendFlush | ExportFlag.SendFua |
    ExportFlag.SendCache;
  // All connections to an export share one session with the disk: what one flushes is flushed for all.
  flags |= ExportFlag.CanMultiConn;
  if (isStructured) flags |= ExportFlag.SendDf;
  if (info.isReadOnly) return flags | ExportFlag.ReadOnly;
  if (info.canTrim) flags |= ExportFlag.SendTrim;
  if (info.canZero) flags |= ExportFlag.SendWriteZeroes | ExportFlag.SendFastZero;
  return flags;
}

/** Export and queries of ListMetaContext and SetMetaContext; null: they do not fill the data. */
function parseMetaContext(
  data: Uint8Array<ArrayBuffer>,
): { readonly name: string; readonly queries: readonly string[] } | null {
  const view = viewOf(data);
  let at = 0;
  const text = (): string | null => {
    if (at + 4 > data.length) return null;
    const bytes = view.getUint32(at);
    at += 4;
    if (bytes > STRING_BYTES_MAX || at + bytes > data.length) return null;
    at += bytes;
    return textOf(data.subarray(at - bytes, at));
  };
  const name = text();
  if (name === null || at + 4 > data.length) return null;
  const count = view.getUint32(at);
  at += 4;
  // Each has four bytes at least, so the data bounds their number.
  if (count > (data.length - at) / 4) return null;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = text();
    if (query === null) return null;
    queries.push(query);
  }
  return at === data.length ? { name, queries } : null;
}

function textInfo(type: InfoType, text: string): Uint8Array {
  const bytes = encoder.encode(text).subarray(0, STRING_BYTES_MAX);
  const data = new Uint8Array(2 + bytes.length);
  viewOf(data).setUint16(0, type);
  data.set(bytes, 2);
  return data;
}

function textOf(bytes: Uint8Array): string | null {
  if (bytes.length > STRING_BYTES_MAX) return null;
  try {
    return decoder.decode(bytes);
  } catch {
    return null;
  }
}

function viewOf(bytes: Uint8Array<ArrayBuffer>): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
