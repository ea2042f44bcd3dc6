/**
 * What can go wrong between this front end and a back end, as one class with a kind.
 *
 * @module
 */

/**
 * - `connect`: nobody listens on the socket
 * - `protocol`: the back end broke the protocol, refused a message or reports a broken queue
 * - `disconnected`: the back end went away
 * - `stalled`: the back end is there and does not answer
 * - `io`: a request failed with VIRTIO_BLK_S_IOERR
 * - `unsupported`: the back end does not offer it, or answered VIRTIO_BLK_S_UNSUPP
 */
export type BackEndErrorKind =
  | "connect"
  | "protocol"
  | "disconnected"
  | "stalled"
  | "io"
  | "unsupported";

/** A failure of the back end, or of the way to it. */
export class BackEndError extends Error {
  override readonly name = "BackEndError";

  constructor(readonly kind: BackEndErrorKind, message: string) {
    super(message);
  }
}
