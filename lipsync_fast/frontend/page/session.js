// SPDX-License-Identifier: Apache-2.0
// A session of lipsync.v1 that comes back by itself: connects, starts, reconnects with back-off.

import { address, ask, hasToken, protocols } from "./access.js";
import { parse } from "./media.js";

const FIRST_WAIT = 500, LONGEST_WAIT = 10_000;
const SILENT = 6_000; // an idle avatar sends 25 frames a second: silence means that it is gone
const SILENT_HIDDEN = 40_000; // without pictures there is little to say, and timers are slow
const CONNECT = 8_000, BEGIN = 40_000;
const PING = 20_000;

/**
 * `on` is called with what happens:
 *   state(name, detail)   "connecting", "open", "waiting" {wait: ms, cause}
 *   media(header)         a frame or a piece of sound
 *   message(object)       any other message of the server
 *   bytes(count)          so many came
 * A cause is one of: gone, starting, full, token, wrong-token, refused.
 */
export class Session {
  constructor(start, on) {
    this.start = start; // session.start without its type; changed by update()
    this.on = on;
    this.wait = FIRST_WAIT;
    this.open = false;
    this.socket = null;
    this.timer = 0;
  }

  connect() {
    clearTimeout(this.timer);
    this.drop();
    this.on.state("connecting");
    const url = address("ws");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(url, protocols()));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.begin();
    socket.onmessage = (event) => this.received(event.data);
    socket.onclose = (event) => this.lost(event);
    this.watch(CONNECT);
  }

  begin() {
    this.socket.send(JSON.stringify({ type: "session.start", ...this.start }));
  }

  /** Forget the present connection, without a word to anybody. */
  drop() {
    clearInterval(this.pinging);
    clearTimeout(this.watching);
    const socket = this.socket;
    this.socket = null;
    this.open = false;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  watch(patience) {
    clearTimeout(this.watching);
    this.watching = setTimeout(() => this.lost({ code: 1006, reason: "" }), patience);
  }

  received(data) {
    this.watch(!this.open ? BEGIN : document.hidden ? SILENT_HIDDEN : SILENT);
    this.on.bytes(data.byteLength ?? data.length);
    if (typeof data !== "string") {
      const header = parse(data);
      if (header) this.on.media(header);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "session.started" && !this.open) {
      this.open = true;
      this.wait = FIRST_WAIT;
      this.pinging = setInterval(() => this.say({ type: "ping" }), PING);
      this.on.state("open");
    }
    this.on.message(message);
  }

  async lost(event) {
    this.drop();
    const socketWas = this.socket;
    const cause = event.code === 1013 ? "full" : await this.cause();
    if (this.socket !== socketWas) return; // connected anew meanwhile
    const wait = this.wait * (0.8 + 0.4 * Math.random());
    this.wait = Math.min(LONGEST_WAIT, this.wait * 2);
    this.on.state("waiting", { wait, cause });
    clearTimeout(this.timer);
    if (!cause.endsWith("token")) this.timer = setTimeout(() => this.connect(), wait);
  }

  /** Why there is no connection; a browser does not say what an upgrade was answered with. */
  async cause() {
    try {
      const options = { cache: "no-store", signal: AbortSignal.timeout(3000) };
      const health = await ask("health", options);
      const list = await ask("v1/avatars", options);
      if (list.status === 401) return hasToken() ? "wrong-token" : "token";
      if (!list.ok) return "refused";
      return health.ok ? "full" : "starting";
    } catch {
      return "gone";
    }
  }

  say(message) {
    if (this.open) this.socket.send(JSON.stringify(message));
  }

  /** Send sound; false where it could not be, since the connection is full or lost. */
  hear(pcm) {
    if (!this.open || this.socket.bufferedAmount > 1 << 20) return false;
    this.socket.send(pcm);
    return true;
  }

  /** Have pictures sent, or none: while nobody sees them. Sound and messages go on. */
  pictures(wanted) {
    this.start.pictures = wanted;
    this.say({ type: "session.update", pictures: wanted });
    if (!this.open) return;
    this.watch(wanted ? SILENT : SILENT_HIDDEN);
  }

  /** Have pictures of another form sent, now and whenever a session begins. */
  video(format) {
    this.start.video = format;
    if (this.open) this.say({ type: "session.update", video: format });
    else if (this.socket?.readyState === WebSocket.OPEN) this.begin();
  }

  /** Have a key frame sent, to decode anew from. */
  keyFrame() {
    this.say({ type: "video.keyframe" });
  }

  /** Have another avatar shown; answered by session.started, or by an error. */
  avatar(name) {
    this.say({ type: "session.update", avatar: name });
  }
}
