/**
 * AES-256-GCM by OpenSSL's libcrypto, called directly: three to four times as fast as `node:crypto`, and without buffers of its own
 * (figures in `wire/sealed_stream.ts`). Nearly every host has the library; where it is not found,
 * {@linkcode opensslCipherSuite} gives null and `node:crypto` does the work.
 *
 * Functions as of OpenSSL 3 (EVP_EncryptInit(3)); the same in 1.1.
 *
 * @module
 */
import { type CipherKey, type CipherSuite, NONCE_BYTES, TAG_BYTES } from "../../wire/cipher.ts";

const symbols = {
  contextNew: { name: "EVP_CIPHER_CTX_new", parameters: [], result: "pointer" },
  contextFree: { name: "EVP_CIPHER_CTX_free", parameters: ["pointer"], result: "void" },
  aes256Gcm: { name: "EVP_aes_256_gcm", parameters: [], result: "pointer" },
  initKey: {
    name: "EVP_CipherInit_ex",
    parameters: [
      "pointer", /* EVP_CIPHER_CTX* */
      "pointer", /* const EVP_CIPHER* */
      "pointer", /* ENGINE* */
      "buffer", /* const unsigned char* key */
      "pointer", /* const unsigned char* iv */
      "i32", /* int enc */
    ],
    result: "i32",
  },
  initNonce: {
    name: "EVP_CipherInit_ex",
    parameters: ["pointer", "pointer", "pointer", "pointer", "buffer", "i32"],
    result: "i32",
  },
  associate: {
    name: "EVP_CipherUpdate",
    parameters: ["pointer", "pointer", "buffer", "buffer", "i32"],
    result: "i32",
  },
  update: {
    name: "EVP_CipherUpdate",
    parameters: [
      "pointer", /* EVP_CIPHER_CTX* */
      "buffer", /* unsigned char* out */
      "buffer", /* int* outl */
      "buffer", /* const unsigned char* in */
      "i32", /* int inl */
    ],
    result: "i32",
  },
  final: { name: "EVP_CipherFinal_ex", parameters: ["pointer", "buffer", "buffer"], result: "i32" },
  control: {
    name: "EVP_CIPHER_CTX_ctrl",
    parameters: ["pointer", "i32", "i32", "buffer"],
    result: "i32",
  },
} as const;

type LibCrypto = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** Names under which distributions install it. */
const LIBRARIES = ["libcrypto.so.3", "libcrypto.so.1.1"];
const CTRL_GET_TAG = 0x10, CTRL_SET_TAG = 0x11;

/** `int *outl`, and what the final call of a stream cipher never writes. */
const writtenLength = new Uint8Array(4);
const writtenFinal = new Uint8Array(32);

class OpensslKey implements CipherKey {
  readonly #crypto: LibCrypto;
  readonly #isSealing: boolean;
  #context: Deno.PointerValue;

  constructor(crypto: LibCrypto, key: Uint8Array, isSealing: boolean) {
    this.#crypto = crypto;
    this.#isSealing = isSealing;
    this.#context = crypto.contextNew();
    if (this.#context === null) throw new Error("openssl: no memory for a cipher context");
    this.#check(
      crypto.initKey(
        this.#context,
        crypto.aes256Gcm(),
        null,
        key as Uint8Array<ArrayBuffer>,
        null,
        isSealing ? 1 : 0,
      ),
    );
  }

  begin(nonce: Uint8Array, associated: Uint8Array): void {
    const context = this.#context;
    if (context === null) throw new Error("openssl: this key was closed");
    if (nonce.length !== NONCE_BYTES) throw new RangeError("openssl: nonce of the wrong length");
    this.#check(
      this.#crypto.initNonce(
        context,
        null,
        null,
        null,
        nonce as Uint8Array<ArrayBuffer>,
        this.#isSealing ? 1 : 0,
      ),
    );
    if (associated.length === 0) return;
    this.#check(
      this.#crypto.associate(
        context,
        null,
        writtenLength,
        associated as Uint8Array<ArrayBuffer>,
        associated.length,
      ),
    );
  }

  update(from: Uint8Array, to: Uint8Array): void {
    if (to.length < from.length) throw new RangeError("openssl: no room for the output");
    if (from.length === 0) return;
    this.#check(
      this.#crypto.update(
        this.#context,
        to as Uint8Array<ArrayBuffer>,
        writtenLength,
        from as Uint8Array<ArrayBuffer>,
        from.length,
      ),
    );
  }

  finish(tag: Uint8Array): boolean {
    const context = this.#context;
    const bytes = tag as Uint8Array<ArrayBuffer>;
    if (tag.length !== TAG_BYTES) throw new RangeError("openssl: tag of the wrong length");
    if (this.#isSealing) {
      this.#check(this.#crypto.final(context, writtenFinal, writtenLength));
      this.#check(this.#crypto.control(context, CTRL_GET_TAG, TAG_BYTES, bytes));
      return true;
    }
    this.#check(this.#crypto.control(context, CTRL_SET_TAG, TAG_BYTES, bytes));
    return this.#crypto.final(context, writtenFinal, writtenLength) === 1;
  }

  close(): void {
    // Clears the key schedule as well (EVP_CIPHER_CTX_free).
    if (this.#context !== null) this.#crypto.contextFree(this.#context);
    this.#context = null;
  }

  #check(result: number): void {
    // All of these can fail for want of memory and wrong arguments only.
    if (result !== 1) throw new Error("openssl: a call that cannot fail has failed");
  }
}

let suite: CipherSuite | null | undefined;

/** The suite, or null where there is no usable libcrypto. */
export function opensslCipherSuite(): CipherSuite | null {
  if (suite === undefined) suite = load();
  return suite;
}

function load(): CipherSuite | null {
  for (const name of LIBRARIES) {
    try {
      const crypto = Deno.dlopen(name, symbols).symbols;
      const loaded: CipherSuite = {
        name: "openssl",
        sealing: (key) => new OpensslKey(crypto, key, true),
        opening: (key) => new OpensslKey(crypto, key, false),
      };
      // A library without the cipher (a crippled build) says so now, not at the first peer.
      loaded.sealing(new Uint8Array(32)).close();
      return loaded;
    } catch {
      continue;
    }
  }
  return null;
}
