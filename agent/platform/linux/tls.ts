/**
 * TLS, server side, by OpenSSL's libssl: between a connection of `tcp.ts` and whoever wants its bytes in clear.
 *
 *     TcpConnection.input  ─▶ memory BIO ─▶ SSL_read  ─▶ input    (clear)
 *     TcpConnection.output ◀─ memory BIO ◀─ SSL_write ◀─ output   (clear)
 *
 * Keys, certificates, versions and ciphers are all the library's business: it is the system's own, which the system keeps up to date.
 * Nothing here looks into a record.
 *
 * Invariants:
 * - TLS 1.2 at least, no renegotiation, no resumption: each connection shows its certificate anew.
 * - With a CA, a client without a certificate of it does not get through the handshake.
 * - At most {@linkcode STEP_BYTES} of either direction lie in OpenSSL's own buffers; what does not fit stays where it is.
 *
 * Functions as of OpenSSL 3; the same in 1.1.
 *
 * @module
 */
import type { TcpConnection } from "./tcp.ts";
import { cString } from "./libc.ts";

const symbols = {
  serverMethod: { name: "TLS_server_method", parameters: [], result: "pointer" },
  contextNew: { name: "SSL_CTX_new", parameters: ["pointer" /* SSL_METHOD* */], result: "pointer" },
  contextFree: { name: "SSL_CTX_free", parameters: ["pointer"], result: "void" },
  contextControl: {
    name: "SSL_CTX_ctrl",
    parameters: ["pointer", "i32", /* int cmd */ "isize", /* long */ "pointer"],
    result: "isize",
  },
  contextOptions: {
    name: "SSL_CTX_set_options",
    parameters: ["pointer", "u64"],
    result: "u64",
  },
  contextTickets: {
    name: "SSL_CTX_set_num_tickets",
    parameters: ["pointer", "usize"],
    result: "i32",
  },
  passwordData: {
    name: "SSL_CTX_set_default_passwd_cb_userdata",
    parameters: ["pointer", "buffer" /* void*, kept */],
    result: "void",
  },
  useCertificate: {
    name: "SSL_CTX_use_certificate_chain_file",
    parameters: ["pointer", "buffer" /* const char* */],
    result: "i32",
  },
  useKey: {
    name: "SSL_CTX_use_PrivateKey_file",
    parameters: ["pointer", "buffer", /* const char* */ "i32"],
    result: "i32",
  },
  checkKey: { name: "SSL_CTX_check_private_key", parameters: ["pointer"], result: "i32" },
  verifyLocations: {
    name: "SSL_CTX_load_verify_locations",
    parameters: ["pointer", "buffer", /* const char* file */ "pointer" /* const char* path */],
    result: "i32",
  },
  setVerify: {
    name: "SSL_CTX_set_verify",
    parameters: ["pointer", "i32", "pointer" /* callback */],
    result: "void",
  },
  loadClientCa: {
    name: "SSL_load_client_CA_file",
    parameters: ["buffer" /* const char* */],
    result: "pointer",
  },
  setClientCa: {
    name: "SSL_CTX_set_client_CA_list",
    parameters: ["pointer", "pointer" /* STACK_OF(X509_NAME)*, taken over */],
    result: "void",
  },
  sessionNew: { name: "SSL_new", parameters: ["pointer"], result: "pointer" },
  sessionFree: { name: "SSL_free", parameters: ["pointer"], result: "void" },
  setAcceptState: { name: "SSL_set_accept_state", parameters: ["pointer"], result: "void" },
  setBio: {
    name: "SSL_set_bio",
    parameters: ["pointer", "pointer", /* BIO* read, taken over */ "pointer" /* BIO* write */],
    result: "void",
  },
  isInitFinished: { name: "SSL_is_init_finished", parameters: ["pointer"], result: "i32" },
  read: { name: "SSL_read", parameters: ["pointer", "buffer", "i32"], result: "i32" },
  write: { name: "SSL_write", parameters: ["pointer", "buffer", "i32"], result: "i32" },
  shutdown: { name: "SSL_shutdown", parameters: ["pointer"], result: "i32" },
  getError: { name: "SSL_get_error", parameters: ["pointer", "i32"], result: "i32" },
  bioMemory: { name: "BIO_s_mem", parameters: [], result: "pointer" },
  bioNew: { name: "BIO_new", parameters: ["pointer"], result: "pointer" },
  bioRead: { name: "BIO_read", parameters: ["pointer", "buffer", "i32"], result: "i32" },
  bioWrite: { name: "BIO_write", parameters: ["pointer", "buffer", "i32"], result: "i32" },
  bioPending: { name: "BIO_ctrl_pending", parameters: ["pointer"], result: "usize" },
  errorClear: { name: "ERR_clear_error", parameters: [], result: "void" },
  errorGet: { name: "ERR_get_error", parameters: [], result: "usize" },
  errorText: {
    name: "ERR_error_string_n",
    parameters: ["usize", "buffer", /* char* */ "usize"],
    result: "void",
  },
} as const;

type LibSsl = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** Names under which distributions install it. */
const LIBRARIES = ["libssl.so.3", "libssl.so.1.1"];

const FILETYPE_PEM = 1;
const VERIFY_NONE = 0, VERIFY_PEER = 1, VERIFY_FAIL_IF_NO_PEER_CERT = 2;
const CTRL_SESSION_CACHE = 44, SESSION_CACHE_OFF = 0n;
const CTRL_MIN_VERSION = 123, TLS_1_2 = 0x0303n;
const OPTION_NO_TICKET = 1n << 14n, OPTION_NO_RENEGOTIATION = 1n << 30n;
const ERROR_WANT_READ = 2, ERROR_SYSCALL = 5, ERROR_ZERO_RETURN = 6;

/** Bytes that are handed to OpenSSL at once: four records. */
const STEP_BYTES = 64 * 1024;
/** What those become at the most: head, tag and padding of each record. */
const STEP_SEALED_BYTES = STEP_BYTES + 8 * 512;
/** Bytes in clear that came and were not taken: four of the longest pieces. */
const IN_BYTES = 1024 * 1024;
/** Bytes in clear that are to go out. */
const OUT_BYTES = 4 * 1024 * 1024;

let library: LibSsl | undefined;

/** Throws an Error that says what to install. */
function loadLibrary(): LibSsl {
  for (const name of LIBRARIES) {
    if (library !== undefined) break;
    try {
      library = Deno.dlopen(name, symbols).symbols;
    } catch {
      continue;
    }
  }
  if (library !== undefined) return library;
  throw new Error(`TLS needs OpenSSL (${LIBRARIES.join(" or ")}): install libssl3 or openssl-libs`);
}

const errorBytes = new Uint8Array(256);

/** The oldest error of this thread in words, and none is left afterwards. */
function takeError(ssl: LibSsl): string {
  const code = ssl.errorGet();
  ssl.errorClear();
  if (code === 0n) return "the other end broke off";
  ssl.errorText(code, errorBytes, BigInt(errorBytes.length));
  const end = errorBytes.indexOf(0);
  const text = new TextDecoder().decode(errorBytes.subarray(0, end < 0 ? undefined : end));
  // "error:0A000086:SSL routines::certificate verify failed"
  return text.split(":").slice(4).join(":") || text;
}

/** Files in PEM format. */
export interface TlsFiles {
  /** The server's certificate, and those that lead from it to a CA. */
  readonly cert: string;
  /** Its private key. */
  readonly key: string;
  /** CAs of clients; left out: clients need no certificate. */
  readonly ca?: string;
}

/** What all connections of a server have in common. */
export class TlsContext {
  readonly #ssl: LibSsl;
  readonly #context: Deno.PointerValue;
  /** An empty password: without one OpenSSL would ask for it on the terminal. */
  readonly #password = new Uint8Array(new ArrayBuffer(8));

  /** @throws Error that names the file and what is wrong with it */
  constructor(files: TlsFiles) {
    const ssl = loadLibrary();
    this.#ssl = ssl;
    ssl.errorClear();
    this.#context = ssl.contextNew(ssl.serverMethod());
    if (this.#context === null) throw new Error(`TLS: ${takeError(ssl)}`);
    try {
      this.#configure(files);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #configure({ cert, key, ca }: TlsFiles): void {
    const ssl = this.#ssl;
    const context = this.#context;
    ssl.contextControl(context, CTRL_MIN_VERSION, TLS_1_2, null);
    ssl.contextControl(context, CTRL_SESSION_CACHE, SESSION_CACHE_OFF, null);
    ssl.contextOptions(context, OPTION_NO_TICKET | OPTION_NO_RENEGOTIATION);
    ssl.contextTickets(context, 0n);
    ssl.passwordData(context, this.#password);
    const check = (result: number, what: string) => {
      if (result !== 1) throw new Error(`TLS: ${what}: ${takeError(ssl)}`);
    };
    check(ssl.useCertificate(context, cString(cert)), `the certificate ${cert}`);
    check(ssl.useKey(context, cString(key), FILETYPE_PEM), `the key ${key}`);
    check(ssl.checkKey(context), `the key ${key} does not belong to the certificate ${cert}`);
    if (ca === undefined) return ssl.setVerify(context, VERIFY_NONE, null);
    check(ssl.verifyLocations(context, cString(ca), null), `the CA ${ca}`);
    const names = ssl.loadClientCa(cString(ca));
    check(names === null ? 0 : 1, `the CA ${ca}`);
    ssl.setClientCa(context, names);
    ssl.setVerify(context, VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, null);
  }

  /** A session over a connection that is attached; what lies in its input is TLS already. */
  accept(connection: TcpConnection): TlsStream {
    return new TlsStream(this.#ssl, this.#context, connection);
  }

  /** Sessions that are there go on. */
  close(): void {
    this.#ssl.contextFree(this.#context);
  }
}

/** One connection's bytes in clear; a `ByteStream` of `nbd/protocol.ts`. */
export class TlsStream {
  readonly input: Uint8Array<ArrayBuffer> = new Uint8Array(IN_BYTES);
  inputStart = 0;
  inputEnd = 0;
  bytesWanted = 1;
  readonly output: Uint8Array<ArrayBuffer> = new Uint8Array(OUT_BYTES);
  readonly #ssl: LibSsl;
  readonly #connection: TcpConnection;
  #session: Deno.PointerValue;
  readonly #readBio: Deno.PointerValue;
  readonly #writeBio: Deno.PointerValue;
  #head = 0;
  #tail = 0;

  /** Made by {@linkcode TlsContext.accept}. */
  constructor(ssl: LibSsl, context: Deno.PointerValue, connection: TcpConnection) {
    this.#ssl = ssl;
    this.#connection = connection;
    this.#session = ssl.sessionNew(context);
    this.#readBio = ssl.bioNew(ssl.bioMemory());
    this.#writeBio = ssl.bioNew(ssl.bioMemory());
    if (this.#session === null || this.#readBio === null || this.#writeBio === null) {
      throw new Error(`TLS: no memory for a session`);
    }
    ssl.setBio(this.#session, this.#readBio, this.#writeBio);
    ssl.setAcceptState(this.#session);
  }

  /** Whether the handshake is through: before that nothing can have come in clear. */
  get isEstablished(): boolean {
    return this.#session !== null && this.#ssl.isInitFinished(this.#session) === 1;
  }

  /** {@inheritDoc ByteStream.queuedBytes} */
  get queuedBytes(): number {
    return this.#tail - this.#head;
  }

  /** {@inheritDoc ByteStream.reserve} */
  reserve(bytes: number): number {
    if (this.#tail + bytes <= OUT_BYTES) return this.#tail;
    if (this.#tail - this.#head + bytes > OUT_BYTES) return -1;
    this.output.copyWithin(0, this.#head, this.#tail);
    this.#tail -= this.#head;
    this.#head = 0;
    return this.#tail;
  }

  /** {@inheritDoc ByteStream.commit} */
  commit(_at: number, bytes: number): void {
    this.#tail += bytes;
  }

  /**
   * Opens what the connection has received, as far as there is room.
   *
   * @returns null: all is well; else why the connection has to end, "" being that the other end has closed it
   */
  receive(): string | null {
    const ssl = this.#ssl;
    if (this.#session === null) return "closed";
    for (;;) {
      const room = this.#makeRoom();
      if (room === 0) return null;
      ssl.errorClear();
      const result = ssl.read(
        this.#session,
        this.input.subarray(this.inputEnd, this.inputEnd + room),
        room,
      );
      if (result > 0) {
        this.inputEnd += result;
        continue;
      }
      const error = ssl.getError(this.#session, result);
      if (error === ERROR_ZERO_RETURN) return "";
      if (error !== ERROR_WANT_READ) {
        // The alert that says so is on its way.
        this.send();
        return error === ERROR_SYSCALL ? "TLS: the other end broke off" : `TLS: ${takeError(ssl)}`;
      }
      if (!this.#feed()) return null;
    }
  }

  #makeRoom(): number {
    if (this.inputStart === this.inputEnd) {
      this.inputStart = 0;
      this.inputEnd = 0;
    } else if (this.inputStart + this.bytesWanted > IN_BYTES || this.inputEnd === IN_BYTES) {
      this.input.copyWithin(0, this.inputStart, this.inputEnd);
      this.inputEnd -= this.inputStart;
      this.inputStart = 0;
    }
    return IN_BYTES - this.inputEnd;
  }

  /** Hands the library some of what came; false: nothing is there. */
  #feed(): boolean {
    const connection = this.#connection;
    const { inputStart, inputEnd } = connection;
    const bytes = Math.min(STEP_BYTES, inputEnd - inputStart);
    if (bytes === 0) return false;
    const part = connection.input.subarray(inputStart, inputStart + bytes);
    const taken = this.#ssl.bioWrite(this.#readBio, part, bytes);
    if (taken <= 0) return false;
    connection.inputStart += taken;
    return true;
  }

  /**
   * Seals what is queued, as far as the connection has room for it, and passes on what the handshake has to say.
   *
   * @returns null: all is well; else why the connection has to end
   */
  send(): string | null {
    const ssl = this.#ssl;
    if (this.#session === null) return null;
    if (!this.#passOn()) return null;
    if (this.#head === this.#tail || !this.isEstablished) return null;
    while (this.#head < this.#tail) {
      if (this.#connection.reserve(STEP_SEALED_BYTES) < 0) return null;
      const bytes = Math.min(STEP_BYTES, this.#tail - this.#head);
      ssl.errorClear();
      const part = this.output.subarray(this.#head, this.#head + bytes);
      const result = ssl.write(this.#session, part, bytes);
      if (result <= 0) return `TLS: ${takeError(ssl)}`;
      this.#head += result;
      this.#passOn();
    }
    this.#head = 0;
    this.#tail = 0;
    return null;
  }

  /** Passes on what the library wants sent; false: not all of it, for want of room. */
  #passOn(): boolean {
    const connection = this.#connection;
    for (;;) {
      const pending = Number(this.#ssl.bioPending(this.#writeBio));
      if (pending === 0) return true;
      const bytes = Math.min(pending, STEP_SEALED_BYTES);
      const at = connection.reserve(bytes);
      if (at < 0) return false;
      const part = connection.output.subarray(at, at + bytes);
      const taken = this.#ssl.bioRead(this.#writeBio, part, bytes);
      if (taken <= 0) return true;
      connection.commit(at, taken);
    }
  }

  /** Tells the other end that nothing follows, if there is room for it, and frees the session. */
  close(): void {
    if (this.#session === null) return;
    if (this.isEstablished) {
      this.#ssl.shutdown(this.#session);
      this.#ssl.errorClear();
      this.#passOn();
    }
    this.#ssl.sessionFree(this.#session); // and both BIOs
    this.#session = null;
  }
}
