/**
 * Sealing of gossip datagrams: AES-256-GCM under a key that only holders of the cluster secret have.
 *
 *     0  magic        "Kg"
 *     2  version      u8, 1
 *     3  reserved     u8, 0
 *     4  session      8 bytes, random, drawn at each start of the sender
 *    12  counter      u32, big-endian, 1 for the first packet of the session
 *    16  ciphertext   as long as the plaintext
 *     …  tag          16 bytes
 *
 *     nonce  session | counter        bytes 4…15 as they are
 *     AAD    bytes 0…15
 *     key    HKDF-SHA256(secret, no salt, "kelpie gossip datagram v1")
 *
 * Invariants:
 * - No nonce is used twice: a session is 64 random bits, its counter only grows, and a new session is drawn
 *   before the counter would wrap.
 * - A packet is opened at most once as long as its session is remembered, and never when it is more than
 *   {@linkcode REPLAY_WINDOW} packets older than the newest of its session.
 * - A session is remembered only after one of its packets has authenticated, so nobody without the secret can
 *   make {@linkcode SESSIONS_MAX} be reached with sessions of his own making; recordings of real ones are all
 *   that he has. The session that was used least recently is forgotten first.
 * - What does not authenticate costs at most one decryption of {@linkcode DATAGRAM_BYTES_MAX} bytes and leaves
 *   nothing behind but a counter.
 *
 * What is left to a recorder: packets of a session that is forgotten here (because this process started later, or
 * by {@linkcode SESSIONS_MAX} newer ones) can be played once more, in their order. The gossip inside is made for
 * it: all news carries run and incarnation of its subject, older news loses against newer, and answers
 * carry a number that was drawn for the question.
 *
 * @module
 */
import { createCipheriv, createDecipheriv, hkdfSync } from "node:crypto";
import type { Random } from "../platform/platform.ts";

/** Version that is written, and the only one that is read. */
export const DATAGRAM_VERSION = 1;

/** Bytes of the cluster secret. */
export const SECRET_BYTES = 32;

/** Bytes before the ciphertext. */
export const SEAL_HEADER_BYTES = 16;

/** Bytes of the tag behind the ciphertext. */
const TAG_BYTES = 16;

/**
 * Largest sealed datagram. With 48 bytes of IPv6 and UDP headers it has 1400 bytes on the wire, which also passes
 * tunnels (WireGuard: 1420) without being cut into fragments.
 */
export const DATAGRAM_BYTES_MAX = 1352;

/** Largest plaintext of one datagram. */
export const PLAINTEXT_BYTES_MAX = DATAGRAM_BYTES_MAX - SEAL_HEADER_BYTES - TAG_BYTES;

/** Packets of one session that may overtake each other. A node sends a few tens per second. */
export const REPLAY_WINDOW = 1024;

/** Sessions remembered: several starts of each node of a cluster of a thousand. About 0.4 KiB each. */
export const SESSIONS_MAX = 4096;

/** Last counter of a session. */
const COUNTER_MAX = 0xffff_ffff;

const MAGIC_0 = 0x4b;
const MAGIC_1 = 0x67;
const KEY_PURPOSE = "kelpie gossip datagram v1";
const WINDOW_WORDS = REPLAY_WINDOW / 32;

/** Why packets were refused, and how many were not. All count from the start of the process. */
export interface SealCounters {
  /** Packets sealed. */
  sealed: number;
  /** Packets opened. */
  opened: number;
  /** Shorter than header and tag. */
  tooShort: number;
  /** Longer than {@linkcode DATAGRAM_BYTES_MAX}. */
  tooLong: number;
  /** Another magic, version or reserved byte: no gossip, or another Kelpie's. */
  unknownVersion: number;
  /** Sealed by this very process: sent back by somebody. */
  ownSession: number;
  /** Opened before. */
  replayed: number;
  /** Left the replay window behind. */
  tooOld: number;
  /** Made without the secret, or changed on the way. */
  forged: number;
  /** Sessions that made room for others. */
  sessionsForgotten: number;
}

/** What is remembered of a sender's session: bit `counter mod 1024` of `seen` is set once it was opened. */
interface Session {
  /** Newest counter opened. */
  newest: number;
  /** Counters up to this one count as opened: the session was not known then. */
  floor: number;
  seen: Uint32Array;
}

/**
 * Seals and opens the datagrams of one process.
 *
 * @example
 * ```ts
 * import { DatagramSeal } from "./datagram_seal.ts";
 * import { Prng } from "../base/prng.ts";
 *
 * const secret = new Uint8Array(32).fill(7); // in the agent: from its secret file
 * const here = new DatagramSeal({ secret, random: new Prng(1) });
 * const there = new DatagramSeal({ secret, random: new Prng(2) });
 * const datagram = here.seal(new Uint8Array([1, 2, 3]));
 * console.assert(there.open(datagram)?.length === 3);
 * console.assert(there.open(datagram) === null && there.counters.replayed === 1);
 * ```
 */
export class DatagramSeal {
  /** Live numbers; read them, never write. */
  readonly counters: SealCounters = {
    sealed: 0,
    opened: 0,
    tooShort: 0,
    tooLong: 0,
    unknownVersion: 0,
    ownSession: 0,
    replayed: 0,
    tooOld: 0,
    forged: 0,
    sessionsForgotten: 0,
  };
  readonly #key: Uint8Array;
  readonly #random: Random;
  readonly #session = new Uint8Array(8);
  #sessionKey = "";
  #counter = 0;
  /** Senders' sessions, the least recently used first. */
  readonly #sessions = new Map<string, Session>();
  readonly #sessionsMax: number;

  /**
   * @param options.secret the cluster secret, {@linkcode SECRET_BYTES} long; not kept
   * @param options.random for the session id; must never give the same twice outside of tests
   * @param options.sessionsMax fewer than {@linkcode SESSIONS_MAX}, for tests
   * @param options.firstCounter of the first packet, for tests
   * @throws {RangeError} when the secret has another length
   */
  constructor(
    options: { secret: Uint8Array; random: Random; sessionsMax?: number; firstCounter?: number },
  ) {
    const { secret } = options;
    if (secret.length !== SECRET_BYTES) {
      throw new RangeError(
        `seal: the secret has ${secret.length} bytes instead of ${SECRET_BYTES}`,
      );
    }
    this.#key = new Uint8Array(hkdfSync("sha256", secret, new Uint8Array(0), KEY_PURPOSE, 32));
    this.#random = options.random;
    this.#sessionsMax = options.sessionsMax ?? SESSIONS_MAX;
    this.#drawSession();
    this.#counter = (options.firstCounter ?? 1) - 1;
  }

  /** Sessions remembered now. */
  get sessionCount(): number {
    return this.#sessions.size;
  }

  /**
   * Seals one datagram.
   *
   * @param plaintext up to {@linkcode PLAINTEXT_BYTES_MAX} bytes; not kept
   * @returns the datagram, the caller's own
   * @throws {RangeError} when the plaintext is longer: a fault of the caller
   */
  seal(plaintext: Uint8Array): Uint8Array<ArrayBuffer> {
    if (plaintext.length > PLAINTEXT_BYTES_MAX) {
      throw new RangeError(
        `seal: ${plaintext.length} bytes do not fit, ${PLAINTEXT_BYTES_MAX} is the most`,
      );
    }
    if (this.#counter >= COUNTER_MAX) this.#drawSession();
    this.#counter++;
    const datagram = new Uint8Array(SEAL_HEADER_BYTES + plaintext.length + TAG_BYTES);
    datagram[0] = MAGIC_0;
    datagram[1] = MAGIC_1;
    datagram[2] = DATAGRAM_VERSION;
    datagram.set(this.#session, 4);
    new DataView(datagram.buffer).setUint32(12, this.#counter);
    const cipher = createCipheriv("aes-256-gcm", this.#key, datagram.subarray(4, 16), {
      authTagLength: TAG_BYTES,
    });
    cipher.setAAD(datagram.subarray(0, SEAL_HEADER_BYTES));
    const sealed = cipher.update(plaintext);
    datagram.set(sealed, SEAL_HEADER_BYTES);
    datagram.set(cipher.final(), SEAL_HEADER_BYTES + sealed.length);
    datagram.set(cipher.getAuthTag(), SEAL_HEADER_BYTES + plaintext.length);
    this.counters.sealed++;
    return datagram;
  }

  /**
   * Opens one datagram. Never throws on what came.
   *
   * @param datagram anything, from anybody; not kept
   * @returns the plaintext, the caller's own, or null; then {@linkcode counters} says why
   */
  open(datagram: Uint8Array): Uint8Array | null {
    const { counters } = this;
    if (datagram.length < SEAL_HEADER_BYTES + TAG_BYTES) return refuse(counters, "tooShort");
    if (datagram.length > DATAGRAM_BYTES_MAX) return refuse(counters, "tooLong");
    const isKnown = datagram[0] === MAGIC_0 && datagram[1] === MAGIC_1 &&
      datagram[2] === DATAGRAM_VERSION && datagram[3] === 0;
    if (!isKnown) return refuse(counters, "unknownVersion");
    const key = keyOf(datagram, 4);
    if (key === this.#sessionKey) return refuse(counters, "ownSession");
    const counter = new DataView(datagram.buffer, datagram.byteOffset).getUint32(12);
    const session = this.#sessions.get(key);
    // Before the decryption, since it is cheaper, and nothing is marked by it.
    const reason = session === undefined ? null : reasonAgainst(session, counter);
    if (reason !== null) return refuse(counters, reason);
    const plaintext = this.#decrypt(datagram);
    if (plaintext === null) return refuse(counters, "forged");
    this.#remember(key, session, counter);
    counters.opened++;
    return plaintext;
  }

  #decrypt(datagram: Uint8Array): Uint8Array | null {
    const end = datagram.length - TAG_BYTES;
    const decipher = createDecipheriv("aes-256-gcm", this.#key, datagram.subarray(4, 16), {
      authTagLength: TAG_BYTES,
    });
    decipher.setAAD(datagram.subarray(0, SEAL_HEADER_BYTES));
    decipher.setAuthTag(datagram.subarray(end));
    try {
      const plaintext = decipher.update(datagram.subarray(SEAL_HEADER_BYTES, end));
      decipher.final(); // throws when the tag is not that of these bytes
      // Not as a Buffer, whose `slice` would not copy.
      return new Uint8Array(plaintext.buffer, plaintext.byteOffset, plaintext.length);
    } catch {
      return null;
    }
  }

  /** Marks an authenticated packet as opened. */
  #remember(key: string, known: Session | undefined, counter: number): void {
    const session = known ?? {
      newest: counter,
      floor: counter - 1,
      seen: new Uint32Array(WINDOW_WORDS),
    };
    // Counters between the old and the new newest take over bits of what has left the window.
    const first = Math.max(session.newest + 1, counter - REPLAY_WINDOW + 1);
    for (let each = first; each <= counter; each++) {
      session.seen[(each % REPLAY_WINDOW) >>> 5] &= ~(1 << (each & 31));
    }
    session.newest = Math.max(session.newest, counter);
    session.seen[(counter % REPLAY_WINDOW) >>> 5] |= 1 << (counter & 31);
    this.#sessions.delete(key);
    if (this.#sessions.size >= this.#sessionsMax) {
      for (const oldest of this.#sessions.keys()) {
        this.#sessions.delete(oldest);
        break;
      }
      this.counters.sessionsForgotten++;
    }
    this.#sessions.set(key, session);
  }

  #drawSession(): void {
    this.#random.fill(this.#session);
    this.#sessionKey = keyOf(this.#session, 0);
    this.#counter = 0;
  }
}

function refuse(counters: SealCounters, reason: keyof SealCounters): null {
  counters[reason]++;
  return null;
}

function reasonAgainst(session: Session, counter: number): "replayed" | "tooOld" | null {
  if (counter > session.newest) return null;
  if (counter <= session.floor || counter + REPLAY_WINDOW <= session.newest) return "tooOld";
  const bit = session.seen[(counter % REPLAY_WINDOW) >>> 5] & (1 << (counter & 31));
  return bit === 0 ? null : "replayed";
}

/** A session id as the key of a map: eight characters of one byte each. */
function keyOf(bytes: Uint8Array, at: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + 8));
}
