// SPDX-License-Identifier: Apache-2.0
// A session's stream of H.264 by WebCodecs: access units in, pictures out, in the same order.
//
//   access unit ─► waits ─► decoder, a few ahead of what is drawn ─► picture ─► drawn, closed
//
// What the server sends can always be decoded, also behind a gap in the sequence numbers: nothing
// builds on what it has left out. So a key frame has to come first where this page itself has begun
// anew (the start, another connection, seen again, a decoder that has failed), and nowhere else.

import { KEY } from "./media.js";

const AHEAD = 4; // pictures that are being decoded, or not drawn yet: some decoders have no more
const TRIES = 2; // decoders that may fail before this page does without
const TRUSTED = 250; // pictures behind which an earlier failure is forgotten
const PATIENCE = 2000; // ms in which a decoder that has something to decode gives a picture
const HELD_BACK = 250; // the same, before it is fed more: some keep a few pictures until others come
const MOST_HELD = 16;
const ANSWERED = 1000; // ms in which a browser says whether it decodes
const USUAL = "avc1.42c01f"; // constrained baseline, level 3.1: 1280 x 720
const PARAMETERS = 7; // the NAL unit that says what the stream is

const asked = (codec) => ({ codec, avc: { format: "annexb" }, optimizeForLatency: true });

/** Whether this browser decodes such streams; on pages that are not secure, none does. */
export async function decodes() {
  if (!window.VideoDecoder || !window.EncodedVideoChunk) return false;
  const patience = new Promise((resolve) => setTimeout(resolve, ANSWERED, {}));
  try {
    const answer = await Promise.race([VideoDecoder.isConfigSupported(asked(USUAL)), patience]);
    return answer.supported === true;
  } catch {
    return false;
  }
}

/** The codec of a stream, by the parameters in its key frame: "avc1.", profile, constraints, level. */
export function codecOf(unit) {
  for (let i = 0; i + 6 < unit.length; i++) {
    const starts = unit[i] === 0 && unit[i + 1] === 0 && unit[i + 2] === 1;
    if (!starts || (unit[i + 3] & 31) !== PARAMETERS) continue;
    const three = [...unit.subarray(i + 4, i + 7)];
    return `avc1.${three.map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  }
  return USUAL;
}

export class Decoder {
  /** `wantsKey()` asks for a key frame; `failed()` says that this page cannot decode the stream. */
  constructor({ wantsKey, failed }) {
    this.wantsKey = wantsKey;
    this.failed = failed;
    this.decoder = null;
    this.waiting = []; // {frame, key, done, stamp, fed}
    this.inside = []; // the same, fed to the decoder
    this.begun = false; // a key frame has come
    this.given = false; // up
    this.open = 0; // pictures that are not closed yet
    this.held = 0; // pictures that the decoder keeps until others come
    this.livedAt = 0; // when it gave a sign of life
    this.stamp = this.failures = this.decoded = 0;
  }

  /**
   * An access unit: {flags, payload, gone: nobody wants to see it any more}.
   *
   * `done(picture, took)` is called once, in the order of the units: with {image, width, height,
   * close()} and the ms of decoding; with null where there is none. Who gets a picture closes it.
   */
  take(frame, done) {
    const key = (frame.flags & KEY) !== 0;
    if (this.given || !(key || this.begun)) return done(null);
    this.begun = true;
    this.waiting.push({ frame, key, done });
    this.more();
  }

  /** Decode what is needed now; to be called when a frame that waits is gone. */
  more() {
    while (this.waiting.length) {
      const room = this.open + this.inside.length - this.held < AHEAD;
      if (!room && !this.waiting[0].frame.gone) return; // what nobody sees is built on, too
      this.feed(this.waiting.shift());
    }
  }

  feed(unit) {
    const { frame, key } = unit;
    unit.stamp = ++this.stamp;
    unit.fed = performance.now();
    this.inside.push(unit);
    try {
      if (!this.decoder) this.begin(codecOf(frame.payload));
      const type = key ? "key" : "delta";
      this.decoder.decode(new EncodedVideoChunk({ type, timestamp: unit.stamp, data: frame.payload }));
      if (this.inside.length === 1) this.watch();
    } catch {
      this.broken();
    }
  }

  begin(codec) {
    const decoder = (this.decoder = new VideoDecoder({
      output: (image) => (decoder === this.decoder ? this.output(image) : image.close()),
      error: () => decoder === this.decoder && this.broken(),
    }));
    decoder.configure(asked(codec));
  }

  output(image) {
    let unit = this.inside.shift();
    while (unit && unit.stamp !== image.timestamp) {
      unit.done(null); // it was left out by the decoder
      unit = this.inside.shift();
    }
    this.watch();
    if (!unit) return image.close();
    if (++this.decoded === TRUSTED) this.failures = 0;
    this.open++;
    const close = () => {
      image.close();
      this.open--;
      this.more();
    };
    const { displayWidth: width, displayHeight: height } = image;
    unit.done({ image, width, height, close }, performance.now() - unit.fed);
    this.more();
  }

  watch() {
    clearTimeout(this.watching);
    this.livedAt = performance.now();
    if (!this.inside.length) this.held = 0;
    else this.watching = setTimeout(() => this.silent(), HELD_BACK);
  }

  /** Nothing comes: it may need more, or has failed. */
  silent() {
    if (performance.now() - this.livedAt >= PATIENCE) return this.broken();
    this.held = Math.min(MOST_HELD, this.inside.length);
    this.watching = setTimeout(() => this.silent(), HELD_BACK);
    this.more();
  }

  /** The decoder has failed, or is too slow. */
  broken() {
    this.reset();
    this.decoded = 0;
    this.given = ++this.failures >= TRIES;
    if (this.given) this.failed();
    else this.wantsKey();
  }

  /** Forget what waits, and begin anew at the next key frame. */
  reset() {
    clearTimeout(this.watching);
    const { decoder, inside, waiting } = this;
    this.decoder = null;
    this.inside = [];
    this.waiting = [];
    this.begun = false;
    this.held = 0;
    if (decoder && decoder.state !== "closed") decoder.close();
    for (const unit of [...inside, ...waiting]) unit.done(null);
  }
}
