/**
 * How two agents get to know each other on a fresh byte stream: three messages, after which both have proved that they know
 * the cluster's secret, know who the other is, and share keys that nobody else can have.
 *
 *     initiator                                              responder
 *       hello    range of protocols, nonce, X25519 key, MAC  ──▶
 *       ◀── welcome  range, choice, nonce, X25519 key, sealed identity     (or: refused, range, reason, MAC)
 *       finish   sealed identity  ──▶
 *
 * Every message has a fixed size, so nothing that a stranger says is ever used as a length:
 *
 *     hello    0 magic u32 | 4 kind u8 = 1 | 5 purpose u8 | 6 protocol min u16 | 8 max u16 | 10 zero 6
 *             16 nonce 32 | 48 X25519 public key 32 | 80 HMAC-SHA256 32 of bytes 0…79                          112 bytes
 *     welcome  0 magic u32 | 4 kind u8 = 2 | 5 zero | 6 protocol min u16 | 8 max u16 | 10 choice u16 | 12 zero 4
 *             16 nonce 32 | 48 X25519 public key 32 | 80 sealed identity 320 | 400 tag 16                      416 bytes
 *     refused  as welcome with kind 3, choice 0, 12 reason u16, key zero | 80 HMAC-SHA256 32                   112 bytes
 *     finish   0 sealed identity 320 | 320 tag 16                                                              336 bytes
 *     identity 0 uuid 16 | 16 cluster id 16 (zero: none) | 32 node u16 | 34 purpose u8 | 35 address bytes u8
 *             36 incarnation u32 | 40 features u32 | 44 zero 20 | 64 address 256, zero padded                  320 bytes
 *
 * Keys (HKDF-SHA256, RFC 5869; X25519, RFC 7748), in the manner of Noise's NNpsk0:
 *
 *     input  = secret ‖ X25519(own, other's)
 *     h1     = SHA256(hello ‖ welcome 0…79)       welcome's key = HKDF(input, h1, "welcome"),  associated data h1
 *     h2     = SHA256(h1 ‖ welcome 80…415)        finish's key  = HKDF(input, h2, "finish"),   associated data h2
 *     h3     = SHA256(h2 ‖ finish)                streams' keys = HKDF(input, h3, "to responder" / "to initiator")
 *
 * What follows from it:
 * - Who does not know the secret gets no answer at all (the hello's MAC), and nothing that allocates or computes more than an HKDF and an HMAC.
 *   A hello may be replayed; that costs the responder one key exchange and leads nowhere, since its nonce and key are fresh.
 *   That the stream ends there is all such an initiator learns, and it takes it for what it most likely is (`ended`).
 * - A change of any byte, the ranges of protocols included, changes the transcript: no downgrade. The choice is checked
 *   against both ranges by the initiator as well.
 * - Keys differ by direction and kind of message: nothing can be sent back to who sent it. A connection to oneself is noticed by the uuid.
 * - A cut-off stream ends in no identity: both sides are done only with the last byte of what they wait for.
 * - The secret alone, stolen later, does not open recorded streams: the X25519 keys are gone.
 *
 * The machine is sans-io: it takes bytes and says what to send. Its owner bounds how many of these there are and for how long
 * ({@linkcode HANDSHAKES_MAX}, {@linkcode HANDSHAKE_MS_MAX}, {@linkcode HANDSHAKES_PER_SECOND_MAX}).
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { concatenated, getU32, setU32, toHex } from "../base/bytes.ts";
import { LEVEL_MAX, LEVEL_MIN } from "../base/levels.ts";
import {
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hkdfSync,
  type KeyObject,
  timingSafeEqual,
} from "node:crypto";
import type { Random } from "../platform/platform.ts";
import { KEY_BYTES, nodeCipherSuite, NONCE_BYTES, TAG_BYTES } from "./cipher.ts";

/** Bytes of the cluster's secret. */
export const SECRET_BYTES = 32;
/** Oldest and newest protocol that this version speaks: its levels (`base/levels.ts`). */
export const PROTOCOL_MIN = LEVEL_MIN, PROTOCOL_MAX = LEVEL_MAX;
/** Connections that may be in their handshake at once; the oldest makes room for one more. */
export const HANDSHAKES_MAX = 32;
/** Milliseconds that connecting and the handshake together may take. */
export const HANDSHAKE_MS_MAX = 5000;
/** Incoming connections taken per second: a replayed hello costs half a millisecond, so this is 5 % of a core. */
export const HANDSHAKES_PER_SECOND_MAX = 100;
/** Largest message of the handshake, in bytes: all that is ever buffered of a stranger. */
export const HANDSHAKE_BYTES_MAX = 512;

/** What the connection is for. */
export type Purpose = "data" | "control";

/** Feature flags of an identity. */
export const FEATURE = {
  /** Bulk data shall be encrypted too. Done when either side wants it. */
  sealBulk: 1,
} as const;

/** Who somebody is. */
export interface Identity {
  /** Node uuid, 32 hex digits. */
  readonly uuid: string;
  /** Node id, 0…65535; 0: none yet. */
  readonly node: number;
  /** Incarnation, u32; 0: none yet. */
  readonly incarnation: number;
  /** Cluster id, 32 hex digits; null: none yet. */
  readonly clusterId: string | null;
  /** Where it listens, `host:port`, up to {@linkcode ADDRESS_BYTES_MAX} bytes. */
  readonly address: string;
  /** Bits of {@linkcode FEATURE}; unknown ones are ignored. */
  readonly features: number;
}

/** Longest address in an identity, in bytes of UTF-8: more than the longest host name and port in use. */
export const ADDRESS_BYTES_MAX = 255;

/** Why a handshake failed. */
export type HandshakeErrorCode =
  /** Not this protocol at all. */
  | "NOT_KELPIE"
  /** The other end has another secret, or bytes were changed on the way. */
  | "SECRET"
  /** The hello got no answer but the end of the stream, as by an agent with another secret. */
  | "UNANSWERED"
  /** The stream ended in the middle. */
  | "ENDED"
  /** No version of the protocol that both speak. */
  | "PROTOCOL"
  /** Connected to the wrong port: data instead of control, or the other way round. */
  | "PURPOSE"
  /** Member of another cluster. */
  | "CLUSTER"
  /** Connected to itself. */
  | "SELF"
  /** Known secret, impossible content. */
  | "MALFORMED";

/** A handshake that failed. */
export class HandshakeError extends Error {
  override readonly name = "HandshakeError";
  /** @param code why, for programs */
  constructor(readonly code: HandshakeErrorCode, message: string) {
    super(`handshake: ${message}`);
  }
}

/** What both ends know after a handshake. */
export interface HandshakeResult {
  readonly peer: Identity;
  readonly protocol: number;
  /** Key for what this end sends. */
  readonly sealingKey: Uint8Array;
  /** Key for what this end receives. */
  readonly openingKey: Uint8Array;
  /** Bulk data is encrypted. */
  readonly sealBulk: boolean;
}

const MAGIC = 0x59504c4b; // "KLPY"
const KIND_HELLO = 1, KIND_WELCOME = 2, KIND_REFUSED = 3;
const REASON_PROTOCOL = 1, REASON_PURPOSE = 2;
const NONCE_AT = 16, PUBLIC_AT = 48, HEAD_BYTES = 80;
const RANDOM_BYTES = 32, PUBLIC_BYTES = 32, MAC_BYTES = 32;
const IDENTITY_BYTES = 320, IDENTITY_ADDRESS_AT = 64;
const HELLO_BYTES = HEAD_BYTES + MAC_BYTES;
const REFUSED_BYTES = HEAD_BYTES + MAC_BYTES;
const WELCOME_BYTES = HEAD_BYTES + IDENTITY_BYTES + TAG_BYTES;
const FINISH_BYTES = IDENTITY_BYTES + TAG_BYTES;

/** Heads of the DER forms of X25519 keys (RFC 8410): what follows is the 32 bytes. */
const DER_PRIVATE = Uint8Array.from(Buffer.from("302e020100300506032b656e04220420", "hex"));
const DER_PUBLIC = Uint8Array.from(Buffer.from("302a300506032b656e032100", "hex"));
const PURPOSES: readonly (Purpose | null)[] = [null, "data", "control"];
const NONE = new Uint8Array(0);

const enum State {
  WantsHello,
  WantsWelcome,
  WantsFinish,
  Done,
  Failed,
}

/**
 * One end of a handshake.
 *
 * @example
 * ```ts
 * import { Prng } from "../base/prng.ts";
 * import { Handshake } from "./handshake.ts";
 * const secret = new Uint8Array(32).fill(7);
 * const end = (role: "initiator" | "responder", node: number) =>
 *   new Handshake({
 *     role,
 *     secret,
 *     purpose: "data",
 *     random: new Prng(node),
 *     self: {
 *       uuid: `${node}`.repeat(32),
 *       node,
 *       incarnation: 1,
 *       clusterId: "c".repeat(32),
 *       address: `10.0.0.${node}:7460`,
 *       features: 0,
 *     },
 *   });
 * const [a, b] = [end("initiator", 1), end("responder", 2)];
 * b.receive(a.output()!);
 * a.receive(b.output()!);
 * b.receive(a.output()!);
 * console.assert(a.result!.peer.node === 2 && b.result!.peer.node === 1);
 * ```
 */
export class Handshake {
  /** Set when this end is done. What {@linkcode output} still has must be sent all the same. */
  result: HandshakeResult | null = null;
  /** Set when it failed; {@linkcode output} may have a last word for the other end. */
  error: HandshakeError | null = null;
  readonly #secret: Uint8Array;
  readonly #self: Identity;
  readonly #purpose: Purpose;
  readonly #protocolMin: number;
  readonly #protocolMax: number;
  /** The own X25519 key, in DER; made into a key once the other end has earned it. */
  readonly #seed: Uint8Array;
  #private: KeyObject | null = null;
  readonly #head = new Uint8Array(HEAD_BYTES);
  #hello: Uint8Array = NONE;
  #input: Uint8Array = NONE;
  #transcript: Uint8Array = NONE;
  #protocol = 0;
  #peer: Identity | null = null;
  #output: Uint8Array | null = null;
  #state: State;

  /**
   * @param options.secret the cluster's, {@linkcode SECRET_BYTES}
   * @param options.random fit for keys
   * @param options.protocols what this end speaks, if not all it can
   */
  constructor(
    options: {
      readonly role: "initiator" | "responder";
      readonly secret: Uint8Array;
      readonly purpose: Purpose;
      readonly self: Identity;
      readonly random: Random;
      readonly protocols?: readonly [min: number, max: number];
    },
  ) {
    const { secret, self, purpose, role, random } = options;
    if (secret.length !== SECRET_BYTES) {
      throw new RangeError(`handshake: a secret of ${secret.length} bytes, not ${SECRET_BYTES}`);
    }
    encodeIdentity(self, purpose); // Throws now what would throw later.
    this.#secret = secret;
    this.#self = self;
    this.#purpose = purpose;
    [this.#protocolMin, this.#protocolMax] = options.protocols ?? [PROTOCOL_MIN, PROTOCOL_MAX];
    const seed = new Uint8Array(DER_PRIVATE.length + KEY_BYTES);
    seed.set(DER_PRIVATE);
    random.fill(seed.subarray(DER_PRIVATE.length));
    this.#seed = seed;
    const head = this.#head;
    setU32(head, 0, MAGIC);
    setU16(head, 6, this.#protocolMin);
    setU16(head, 8, this.#protocolMax);
    random.fill(head.subarray(NONCE_AT, NONCE_AT + RANDOM_BYTES));
    if (role === "responder") {
      this.#state = State.WantsHello;
      return;
    }
    head[4] = KIND_HELLO;
    head[5] = PURPOSES.indexOf(purpose);
    head.set(this.#publicKey(), PUBLIC_AT);
    this.#hello = concatenated(head, mac(secret, "kelpie hello", head));
    this.#output = this.#hello;
    this.#state = State.WantsWelcome;
  }

  /**
   * Bytes that the next message needs before {@linkcode receive} can do anything with it; 0 when nothing is waited for. Whoever reads
   * no more than this never has bytes of the stream behind the handshake in hand.
   *
   * @param have the first bytes of the message, as far as they are there
   */
  bytesWanted(have: Uint8Array = NONE): number {
    switch (this.#state) {
      case State.WantsHello:
        return HELLO_BYTES;
      case State.WantsWelcome:
        // Both kinds have this much.
        return have.length > 4 && have[4] === KIND_WELCOME ? WELCOME_BYTES : REFUSED_BYTES;
      case State.WantsFinish:
        return FINISH_BYTES;
      default:
        return 0;
    }
  }

  /** What is to be sent now, or null. Each message is handed out once and belongs to the caller. */
  output(): Uint8Array | null {
    const output = this.#output;
    this.#output = null;
    return output;
  }

  /**
   * Takes bytes from the other end.
   *
   * @param bytes what came and was not consumed; never trusted
   * @returns how many were consumed: 0 as long as the message is not complete. Look at `result`, `error` and `output` then
   */
  receive(bytes: Uint8Array): number {
    const wanted = this.bytesWanted(bytes);
    if (wanted === 0 || bytes.length < wanted) return 0;
    const message = bytes.slice(0, wanted);
    try {
      if (this.#state === State.WantsHello) this.#takeHello(message);
      else if (this.#state === State.WantsWelcome) this.#takeWelcome(message);
      else this.#takeFinish(message);
    } catch (error) {
      // A library that dislikes a key is a fault of the key.
      this.error = error instanceof HandshakeError
        ? error
        : new HandshakeError("MALFORMED", "the key exchange failed");
      this.result = null;
      this.#state = State.Failed;
    }
    return wanted;
  }

  /**
   * The other end has ended the stream: sets `error`, unless this end is done or has failed.
   *
   * @param have what came and was not consumed
   */
  ended(have: Uint8Array = NONE): void {
    if (this.bytesWanted() === 0) return;
    this.error = this.#state === State.WantsWelcome && have.length === 0
      ? new HandshakeError("UNANSWERED", "the other end does not answer, as with another secret")
      : new HandshakeError("ENDED", "the other end closed the connection in the middle of it");
    this.#state = State.Failed;
  }

  #takeHello(hello: Uint8Array): void {
    if (getU32(hello, 0) !== MAGIC || hello[4] !== KIND_HELLO) throw notKelpie();
    const expected = mac(this.#secret, "kelpie hello", hello.subarray(0, HEAD_BYTES));
    if (!timingSafeEqual(expected, hello.subarray(HEAD_BYTES))) throw wrongSecret();
    this.#hello = hello;
    const min = getU16(hello, 6), max = getU16(hello, 8);
    const choice = Math.min(max, this.#protocolMax);
    if (min > max || choice < Math.max(min, this.#protocolMin)) {
      this.#refuse(REASON_PROTOCOL);
      throw new HandshakeError("PROTOCOL", this.#protocolMessage(min, max));
    }
    if (PURPOSES[hello[5]] !== this.#purpose) {
      this.#refuse(REASON_PURPOSE);
      throw new HandshakeError(
        "PURPOSE",
        `this port is for ${this.#purpose}, the peer wants ${
          PURPOSES[hello[5]] ?? "something new"
        }`,
      );
    }
    if (!isZero(hello.subarray(10, NONCE_AT))) {
      throw new HandshakeError("MALFORMED", "reserved bytes are set");
    }
    const head = this.#head;
    head[4] = KIND_WELCOME;
    setU16(head, 10, choice);
    head.set(this.#publicKey(), PUBLIC_AT);
    this.#exchange(hello);
    this.#transcript = hash(hello, head);
    const sealed = this.#seal("kelpie welcome");
    this.#transcript = hash(this.#transcript, sealed);
    this.#protocol = choice;
    this.#output = concatenated(head, sealed);
    this.#state = State.WantsFinish;
  }

  #takeWelcome(welcome: Uint8Array): void {
    if (getU32(welcome, 0) !== MAGIC) throw notKelpie();
    const head = welcome.subarray(0, HEAD_BYTES);
    const min = getU16(head, 6), max = getU16(head, 8), choice = getU16(head, 10);
    if (head[4] === KIND_REFUSED) {
      const expected = mac(this.#secret, "kelpie refused", concatenated(this.#hello, head));
      if (!timingSafeEqual(expected, welcome.subarray(HEAD_BYTES))) throw wrongSecret();
      if (getU16(head, 12) === REASON_PURPOSE) {
        throw new HandshakeError("PURPOSE", `the peer's port is not for ${this.#purpose}`);
      }
      throw new HandshakeError("PROTOCOL", this.#protocolMessage(min, max));
    }
    if (head[4] !== KIND_WELCOME) throw notKelpie();
    this.#exchange(head);
    this.#transcript = hash(this.#hello, head);
    const sealed = welcome.subarray(HEAD_BYTES);
    const identity = this.#open("kelpie welcome", sealed);
    this.#transcript = hash(this.#transcript, sealed);
    if (choice !== Math.min(max, this.#protocolMax) || choice < Math.max(min, this.#protocolMin)) {
      throw new HandshakeError("PROTOCOL", this.#protocolMessage(min, max));
    }
    this.#protocol = choice;
    this.#accept(identity);
    const finish = this.#seal("kelpie finish");
    this.#transcript = hash(this.#transcript, finish);
    this.#output = finish;
    this.#succeed("kelpie to responder", "kelpie to initiator");
  }

  #takeFinish(finish: Uint8Array): void {
    const identity = this.#open("kelpie finish", finish);
    this.#transcript = hash(this.#transcript, finish);
    this.#accept(identity);
    this.#succeed("kelpie to initiator", "kelpie to responder");
  }

  #refuse(reason: number): void {
    const head = this.#head;
    head[4] = KIND_REFUSED;
    setU16(head, 12, reason);
    this.#output = concatenated(
      head,
      mac(this.#secret, "kelpie refused", concatenated(this.#hello, head)),
    );
  }

  #publicKey(): Uint8Array {
    this.#private = createPrivateKey({
      key: Buffer.from(this.#seed),
      format: "der",
      type: "pkcs8",
    });
    this.#seed.fill(0);
    // The types want it exported first; the runtime takes it as it is.
    const key = createPublicKey(this.#private as unknown as string);
    return new Uint8Array(key.export({ format: "der", type: "spki" })).subarray(DER_PUBLIC.length);
  }

  /** The X25519 exchange of the key that `#publicKey` made with the key in the other end's head. */
  #exchange(head: Uint8Array): void {
    const der = concatenated(DER_PUBLIC, head.subarray(PUBLIC_AT, PUBLIC_AT + PUBLIC_BYTES));
    const publicKey = createPublicKey({ key: Buffer.from(der), format: "der", type: "spki" });
    const shared = new Uint8Array(diffieHellman({ privateKey: this.#private!, publicKey }));
    // RFC 7748, 6.1: a point of low order makes all zeros, whatever the own key.
    if (isZero(shared)) throw new HandshakeError("MALFORMED", "the key exchange failed");
    this.#input = concatenated(this.#secret, shared);
  }

  #derive(label: string): Uint8Array {
    return new Uint8Array(hkdfSync("sha256", this.#input, this.#transcript, label, KEY_BYTES));
  }

  #seal(label: string): Uint8Array {
    const sealed = new Uint8Array(IDENTITY_BYTES + TAG_BYTES);
    const key = nodeCipherSuite.sealing(this.#derive(label));
    key.begin(new Uint8Array(NONCE_BYTES), this.#transcript);
    key.update(encodeIdentity(this.#self, this.#purpose), sealed);
    key.finish(sealed.subarray(IDENTITY_BYTES));
    key.close();
    return sealed;
  }

  #open(label: string, sealed: Uint8Array): Uint8Array {
    const identity = new Uint8Array(IDENTITY_BYTES);
    const key = nodeCipherSuite.opening(this.#derive(label));
    key.begin(new Uint8Array(NONCE_BYTES), this.#transcript);
    key.update(sealed.subarray(0, IDENTITY_BYTES), identity);
    const isRight = key.finish(sealed.subarray(IDENTITY_BYTES));
    key.close();
    if (!isRight) throw wrongSecret();
    return identity;
  }

  /** Looks at who the other end proved to be. */
  #accept(bytes: Uint8Array): void {
    const peer = decodeIdentity(bytes, this.#purpose);
    const self = this.#self;
    if (peer.uuid === self.uuid) throw new HandshakeError("SELF", "connected to itself");
    if (peer.clusterId !== null && self.clusterId !== null && peer.clusterId !== self.clusterId) {
      throw new HandshakeError(
        "CLUSTER",
        `node ${peer.uuid} at ${peer.address} belongs to cluster ${peer.clusterId}, this one to ${self.clusterId}`,
      );
    }
    this.#peer = peer;
  }

  #succeed(sealingLabel: string, openingLabel: string): void {
    this.result = {
      peer: this.#peer!,
      protocol: this.#protocol,
      sealingKey: this.#derive(sealingLabel),
      openingKey: this.#derive(openingLabel),
      sealBulk: ((this.#peer!.features | this.#self.features) & FEATURE.sealBulk) !== 0,
    };
    this.#input.fill(0);
    this.#state = State.Done;
  }

  #protocolMessage(min: number, max: number): string {
    return `the peer speaks protocols ${min} to ${max}, this agent ${this.#protocolMin} to ` +
      `${this.#protocolMax}: upgrade the older one`;
  }
}

/** Bytes of an identity. Throws RangeError for what the agent itself got wrong. */
function encodeIdentity(identity: Identity, purpose: Purpose): Uint8Array {
  const bytes = new Uint8Array(IDENTITY_BYTES);
  bytes.set(fromHex(identity.uuid, "uuid"));
  if (identity.clusterId !== null) bytes.set(fromHex(identity.clusterId, "cluster id"), 16);
  const address = new TextEncoder().encode(identity.address);
  if (address.length > ADDRESS_BYTES_MAX) {
    throw new RangeError(
      `handshake: the address ${identity.address} has ${address.length} bytes; the limit is ${ADDRESS_BYTES_MAX}`,
    );
  }
  if (!(identity.node >= 0 && identity.node <= 0xffff)) {
    throw new RangeError(`handshake: node ${identity.node} is not within 0…65535`);
  }
  setU16(bytes, 32, identity.node);
  bytes[34] = PURPOSES.indexOf(purpose);
  bytes[35] = address.length;
  setU32(bytes, 36, identity.incarnation);
  setU32(bytes, 40, identity.features);
  bytes.set(address, IDENTITY_ADDRESS_AT);
  return bytes;
}

function decodeIdentity(bytes: Uint8Array, purpose: Purpose): Identity {
  const malformed = (what: string) => new HandshakeError("MALFORMED", what);
  if (PURPOSES[bytes[34]] !== purpose) throw malformed("the identity is for another purpose");
  if (!isZero(bytes.subarray(44, IDENTITY_ADDRESS_AT))) throw malformed("reserved bytes are set");
  const end = IDENTITY_ADDRESS_AT + bytes[35];
  if (!isZero(bytes.subarray(end))) throw malformed("bytes behind the address are set");
  const uuid = toHex(bytes.subarray(0, 16));
  if (/^0+$/.test(uuid)) throw malformed("no uuid");
  let address: string;
  try {
    address = new TextDecoder("utf-8", { fatal: true }).decode(
      bytes.subarray(IDENTITY_ADDRESS_AT, end),
    );
  } catch {
    throw malformed("the address is not UTF-8");
  }
  // It is printed and compared: nothing but what a host name and a port are made of.
  if (!/^[\x21-\x7e]*$/.test(address)) throw malformed("the address has odd characters");
  const node = getU16(bytes, 32);
  const clusterId = isZero(bytes.subarray(16, 32)) ? null : toHex(bytes.subarray(16, 32));
  if (purpose === "data" && (node === 0 || clusterId === null)) {
    throw malformed("a data connection from a node without number or cluster");
  }
  return {
    uuid,
    node,
    incarnation: getU32(bytes, 36),
    clusterId,
    address,
    features: getU32(bytes, 40),
  };
}

function mac(secret: Uint8Array, label: string, bytes: Uint8Array): Uint8Array {
  const key = new Uint8Array(hkdfSync("sha256", secret, NONE, label, MAC_BYTES));
  return new Uint8Array(createHmac("sha256", key).update(bytes).digest());
}

function hash(first: Uint8Array, second: Uint8Array): Uint8Array {
  return new Uint8Array(createHash("sha256").update(first).update(second).digest());
}

function notKelpie(): HandshakeError {
  return new HandshakeError("NOT_KELPIE", "what came is not Kelpie's protocol");
}

function wrongSecret(): HandshakeError {
  return new HandshakeError(
    "SECRET",
    "the other end has another cluster secret, or bytes were changed on the way",
  );
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

function fromHex(text: string, what: string): Uint8Array {
  if (!/^[0-9a-f]{32}$/.test(text)) {
    throw new RangeError(`handshake: the ${what} "${text}" is not 32 hex digits`);
  }
  return Uint8Array.from({ length: 16 }, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

function getU16(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8);
}

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}
