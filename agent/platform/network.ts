/**
 * The network as the pure parts see it: sealed streams between data workers, small control messages and datagrams
 * between main threads.
 *
 *     one configured address host:port    UDP port     gossip            Datagrams
 *                                         TCP port     control messages  ControlChannel
 *                                         TCP port+1   data              PeerTransport
 *
 * `platform/linux` implements them with io_uring and the runtime's sockets, `tests/simulator/network.ts` with a seed.
 *
 * Rules that every implementation keeps:
 *
 * 1. Nothing is delivered from inside a call of the receiver's own (`send`, `pause`, `setPeer`, …): it comes later, from the
 *    loop that owns the platform.
 * 2. What is delivered came from somebody who knows the cluster's secret, unchanged, at most once per connection and in
 *    order for links; datagrams alone are raw (gossip seals its own), and may be lost, doubled and reordered.
 * 3. Every queue is bounded. A link says so (`send` returns false); a control message or datagram too many is dropped.
 *
 * @module
 */

/** Bytes of the fixed part of a peer message's head. */
export const PEER_HEAD_BYTES = 64;
/** Most bytes of a peer message's head with its extra part. */
export const PEER_HEAD_BYTES_MAX = 8192;
/** Most bytes of data of a peer message; always whole blocks of 4096. */
export const PEER_DATA_BYTES_MAX = 1024 * 1024;
/** Most bytes of a control message. */
export const CONTROL_BYTES_MAX = 1024 * 1024;
/** Most bytes of a datagram: fits an Ethernet frame with IPv6 and UDP heads, so it is never split on the way. */
export const DATAGRAM_BYTES_MAX = 1400;
/** The data workers' port lies this far above the configured one. */
export const DATA_PORT_OFFSET = 1;

/**
 * Messages between data workers: a fixed head of {@linkcode PEER_HEAD_BYTES}, then an extra part (checksums, lists), then data
 * (whole blocks, in the arena at both ends).
 *
 * A *link* is one authenticated connection. Its number is not used again before `linkDown` of it was delivered.
 */
export interface PeerTransport {
  /**
   * Keeps a connection to this node open, with back-off after failures, or gives it up. The number of the node is checked against
   * what the other end proves to be.
   *
   * @param node 1…65535
   * @param address numeric `ip:dataPort` (IPv6 in brackets), resolved by the main thread; null: close it (`linkDown` follows)
   */
  setPeer(node: number, address: string | null): void;
  /**
   * Sends a message. Everything is copied or sealed before it returns; what one turn of the loop sends goes out together.
   *
   * @param head the fixed head and the extra part
   * @param headBytes bytes of `head` to send, {@linkcode PEER_HEAD_BYTES}…{@linkcode PEER_HEAD_BYTES_MAX}
   * @param dataOffset where the data lies in the arena (any, when there is none)
   * @param dataBytes 0, or a multiple of 4096 up to {@linkcode PEER_DATA_BYTES_MAX}
   * @returns false: the link is down or has too much queued, nothing was sent; then `linkReady` (or `linkDown`) follows
   */
  send(
    link: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): boolean;
  /** Ends a connection whose other end does not keep to the rules; `linkDown` follows. One of ours is made anew. */
  drop(link: number): void;
  /** Stops or continues delivering from this link. Messages that came sealed together (up to 64 KiB of heads) still come. */
  pause(link: number, paused: boolean): void;
}

/** Told what a {@linkcode PeerTransport} receives. */
export interface PeerListener {
  /**
   * A connection is authenticated.
   *
   * @param link its number
   * @param node who is at the other end
   * @param isOutgoing asked for with `setPeer`; otherwise the other node made it for its own requests
   * @param incarnation of the other node
   */
  linkUp(link: number, node: number, isOutgoing: boolean, incarnation: number): void;
  /** The link is gone, with everything that was in flight on it. */
  linkDown(link: number): void;
  /** There is room to send again; only after `send` returned false. */
  linkReady(link: number): void;
  /**
   * A message came.
   *
   * @param head fixed head and extra part, valid during the call only
   * @param headBytes bytes of `head` that belong to the message
   * @param dataOffset an arena buffer of `dataBytes`, which belongs to the listener from now on (`arena.release`)
   * @param dataBytes 0: there is no buffer
   */
  received(
    link: number,
    head: Uint8Array,
    headBytes: number,
    dataOffset: number,
    dataBytes: number,
  ): void;
}

/** Who is at the other end of a control connection, proved by the handshake. */
export interface ControlPeer {
  /** Node uuid, 32 hex digits. */
  readonly uuid: string;
  /** Node id; 0: the map does not know it yet. */
  readonly node: number;
  /** Incarnation; 0: none yet. */
  readonly incarnation: number;
  /** Cluster id, 32 hex digits; null: it has not joined one yet. */
  readonly clusterId: string | null;
  /** Where it says it listens, `host:port`: where an answer goes. */
  readonly address: string;
}

/**
 * Small messages between main threads, fire and forget: one that cannot be delivered is lost without notice. Messages to one
 * address arrive in order, at most once each, as long as the connection holds.
 */
export interface ControlChannel {
  /**
   * @param address `host:port` as configured; a connection is made when there is none
   * @param bytes 1…{@linkcode CONTROL_BYTES_MAX}; copied
   * @returns false: dropped at once since too much is queued for this address
   */
  send(address: string, bytes: Uint8Array): boolean;
}

/** Told what a {@linkcode ControlChannel} receives. */
export interface ControlListener {
  /** @param bytes belongs to the listener */
  controlReceived(peer: ControlPeer, bytes: Uint8Array): void;
}

/** Datagrams, unreliable. */
export interface Datagrams {
  /**
   * @param address `host:port`
   * @param bytes 1…{@linkcode DATAGRAM_BYTES_MAX}; copied
   */
  send(address: string, bytes: Uint8Array): void;
}

/** Told what {@linkcode Datagrams} receive. */
export interface DatagramListener {
  /**
   * @param from numeric `ip:port` it came from (IPv6 in brackets): not proved in any way
   * @param bytes belongs to the listener
   */
  datagramReceived(from: string, bytes: Uint8Array): void;
}
