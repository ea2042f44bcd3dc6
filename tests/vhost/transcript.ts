/**
 * Conversations as text: what a front end says, what the session answers and does. Kept beside the tests in
 * `transcripts/`, compared line by line, and written anew when `UPDATE_TRANSCRIPTS` is set (then review the change).
 *
 *     # comment                  said by the test
 *     > NAME payload +fd         front end to session; `!` behind the name asks for an acknowledgement
 *     < NAME payload +fd         session to front end
 *     = what                     what the session does to the machine
 *
 * @module
 */
import { requestName } from "../../agent/vhost/message.ts";
import type { Fixture } from "./fixture.ts";
import { checkTranscript } from "../tools/transcript.ts";

const DIRECTORY = new URL("./transcripts/", import.meta.url);

/** Writes down what passes between the parts of a fixture. */
export class Transcript {
  readonly lines: string[] = [];

  /** Listens to a fixture from now on. */
  attach(fixture: Fixture): void {
    const { host, frontEnd, session } = fixture;
    const { lines } = this;
    const say = (line: string) => lines.push(line);
    const describe = (bytes: Uint8Array, fds: readonly number[], arrow: string) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      const needsReply = (view.getUint32(4, true) & 8) !== 0;
      const payload = [...bytes.subarray(12)].map((byte) => byte.toString(16).padStart(2, "0"))
        .join("");
      const words = payload.replaceAll(/(.{16})(?=.)/g, "$1 ");
      say(
        `${arrow} ${requestName(view.getUint32(0, true))}${needsReply ? "!" : ""}` +
          `${words === "" ? "" : ` ${words}`}${fds.length > 0 ? ` +${fds.length}fd` : ""}`,
      );
    };
    const sendBytes = frontEnd.sendBytes.bind(frontEnd);
    frontEnd.sendBytes = (bytes, fds = []) => {
      describe(bytes, fds, ">");
      sendBytes(bytes, fds);
    };
    const send = host.send.bind(host);
    host.send = (to, bytes, fds) => {
      describe(bytes, fds, "<");
      send(to, bytes, fds);
    };
    const map = host.map.bind(host);
    host.map = (fd, offset, length) => {
      say(`= map ${length.toString(16)} bytes at ${offset.toString(16)}`);
      return map(fd, offset, length);
    };
    const unmap = host.unmap.bind(host);
    host.unmap = (pieces) => {
      say(`= unmap ${pieces.reduce((sum, piece) => sum + piece.length, 0).toString(16)} bytes`);
      unmap(pieces);
    };
    const watchKick = host.watchKick.bind(host);
    host.watchKick = (of, index, fd) => {
      say(`= watch kick ${index}`);
      watchKick(of, index, fd);
    };
    const unwatchKick = host.unwatchKick.bind(host);
    host.unwatchKick = (of, index) => {
      say(`= unwatch kick ${index}`);
      unwatchKick(of, index);
    };
    const signal = host.signal.bind(host);
    host.signal = (fd) => {
      say("= call");
      signal(fd);
    };
    host.events.push = (...items: string[]) => {
      for (const item of items) say(`= ${item}`);
      return Array.prototype.push.apply(host.events, items);
    };
    const submit = fixture.target.submit.bind(fixture.target);
    fixture.target.submit = (request) => {
      say(
        `= submit ${["read", "write", "flush", "discard", "zero"][request.kind]} ` +
          `${request.lengthBytes} at ${request.offsetBytes}${
            request.forceUnitAccess ? " durable" : ""
          }`,
      );
      submit(request);
    };
    const kicked = session.kicked.bind(session);
    session.kicked = (index) => {
      say(`> kick ${index}`);
      kicked(index);
    };
  }

  /** A remark of the test. */
  note(text: string): void {
    this.lines.push(`# ${text}`);
  }

  /** Compares with the file of that name, or writes it. */
  check(name: string): void {
    checkTranscript(DIRECTORY, name, this.lines);
  }
}
