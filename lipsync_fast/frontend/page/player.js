// SPDX-License-Identifier: Apache-2.0
// Shows frames and plays sound, both by their presentation times.
//
//   frame ─► decoded ─► queue ─► drawn when due ──────────┐
//                                                         ├─ one clock: due(pts)
//   sound ─► waits ─► placed (soundtrack.js) ─► played ───┘
//
// While the avatar only idles, the clock is performance.now() behind a small buffer, which grows when
// frames come late and shrinks again (delay.js). While it speaks, the sound is the clock: its pieces
// are played one behind the other, to the sample, and a frame is due when the first sample of its
// 40 ms comes out of the loudspeaker. Sound that lies further behind than need be, behind a stall of
// the network, is played a little shorter, piece by piece, until it does not; pictures follow it.
// Without sound (no permission to play yet, none in the message, taken away by the device, not to be
// heard) pictures keep the plain clock.
//
// JPEGs are decoded as they come, a stream of H.264 a few pictures ahead (decoder.js).

import { Decoder } from "./decoder.js";
import { Delay, steered } from "./delay.js";
import { AUDIO, FRAME, H264, IDLE, LAST, REPEATED } from "./media.js";
import { Soundtrack } from "./soundtrack.js";

const MOST_WAITING = 75; // frames
const EARLY = 8; // ms: half a screen refresh; a frame is drawn at the refresh nearest to its time
const OUT_OF_STEP = 38; // ms behind its sound, beyond which a frame is left out for the next one
const STANDING = 200; // ms for which the picture may stand still for that
const STANDING_MOST = 2000; // the same, where it is that much behind and the next one is being decoded
const TOO_SLOW = 2000; // ms in which each picture of a stream is due before it is decoded
const PLACED = 0.2; // seconds before it is heard that sound gets its place; what waits may be shortened
const AWAY = 1000; // ms in which nothing came, so that the clock begins anew

export class Player {
  constructor(canvas, metrics) {
    this.canvas = canvas;
    this.draws = canvas.getContext("2d", { alpha: false });
    this.metrics = metrics;
    this.context = null;
    this.muted = false;
    this.audible = true; // what is said now is to be heard, too
    this.offset = 0; // from the AudioContext's time to performance.now()
    this.decoder = new Decoder({
      wantsKey: () => this.onkeyframe?.(),
      failed: () => this.onundecoded?.(),
    });
    this.reset();
    this.drawing = () => {
      requestAnimationFrame(this.drawing);
      this.draw(performance.now());
    };
    requestAnimationFrame(this.drawing);
  }

  /** Another session begins, with a clock of its own. */
  reset() {
    this.empty();
    this.decoder.reset();
    this.base = null; // performance.now() at which pts 0 is due
    this.steeredAt = this.cameAt = 0;
    this.delay = new Delay();
    this.silence();
    this.hushed = false; // what is said is dropped until the server has heard of the interruption
    this.begins = new Map(); // utterance -> pts of its first frame
    this.drawnAt = 0;
    this.behind = null; // since when pictures are due before they are decoded
    this.awaited = null;
  }

  /** Have that called when a picture is drawn that comes from now on, of an avatar at rest. */
  awaitPicture(callback) {
    this.awaited = callback;
  }

  /** No more frames wait. */
  empty() {
    for (const frame of this.queue ?? []) this.leaveOut(frame, false);
    this.queue = [];
  }

  /** Sound can be played from now on: called behind a gesture. */
  useContext(context) {
    this.context = context;
    this.gain = new GainNode(context, { gain: this.muted ? 0 : 1 });
    this.meter = new AnalyserNode(context, { fftSize: 1024 });
    this.gain.connect(this.meter).connect(context.destination);
    context.onstatechange = () => {
      // What was to be heard meanwhile is not heard later: pictures go on without it.
      if (context.state !== "running") this.silence();
      this.onsound?.(context.state);
    };
  }

  mute(muted) {
    this.muted = muted;
    if (this.context) this.gain.gain.setTargetAtTime(muted ? 0 : 1, this.context.currentTime, 0.01);
  }

  get sounding() {
    return this.context?.state === "running";
  }

  /** The page is seen again, or no more: then nothing is drawn, and sound goes on. */
  visible(seen) {
    if (!seen) this.empty();
    this.decoder.reset();
    this.behind = null;
    if (seen) this.onkeyframe?.();
    this.place();
  }

  // ---------------------------------------------------------------- time
  /** A media message; `rate` is that of the sound. */
  media(header, rate) {
    const now = performance.now();
    const { utterance, pts } = header;
    if (utterance && this.hushed) return this.pass(header);
    const inTime = this.delay.came(now, pts);
    if (now - this.cameAt > AWAY && this.track.empty) this.base = null;
    this.cameAt = now;
    this.keepClock(now);
    if (utterance && !this.begins.has(utterance)) this.begins.set(utterance, pts);
    if (this.begins.size > 8) this.begins.delete(this.begins.keys().next().value);
    this.metrics.bufferMs = this.due(pts) - now;
    if (header.type === AUDIO) this.sound(header, rate);
    else if (header.type === FRAME || header.type === H264) this.frame(header, now, inTime);
  }

  /** The base at which what comes now should be played. */
  wanted(now) {
    const network = this.delay.wanted(now);
    if (network === null) return this.base; // nothing has come lately: it stays
    return network + (this.sounding ? (this.context.outputLatency || 0) * 1000 : 0);
  }

  keepClock(now) {
    if (this.sounding) this.readOffset(now);
    if (!this.track.empty) {
      this.followSound();
      this.metrics.excessMs = this.base - this.wanted(now);
      return;
    }
    const wanted = this.wanted(now);
    if (this.base === null) this.base = wanted;
    if (wanted === null) return;
    this.base = steered(this.base, wanted, now - this.steeredAt, this.speaks);
    this.steeredAt = now;
    this.metrics.excessMs = this.base - wanted;
  }

  followSound() {
    const { end, until } = this.track.last;
    this.base = this.heardAt(end / this.track.rate) - until;
  }

  /** performance.now() at which a presentation time is due. */
  due(pts) {
    return this.track.empty ? this.base + pts : this.heardAt(this.track.timeOf(pts));
  }

  /** From a time of the AudioContext to performance.now(), when it comes out of the loudspeaker. */
  heardAt(time) {
    return time * 1000 + this.offset;
  }

  readOffset(now) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp?.() ?? {};
    let offset = performanceTime - contextTime * 1000;
    if (!performanceTime) {
      const latency = this.context.outputLatency || this.context.baseLatency || 0;
      offset = now - (this.context.currentTime - latency) * 1000;
    }
    // What the browser reads is coarse: it is smoothed, but followed at once when it jumps.
    const off = offset - this.offset;
    this.offset = Math.abs(off) < 80 ? this.offset + off * 0.1 : offset;
  }

  // ---------------------------------------------------------------- sound
  sound({ pts, utterance, payload }, rate) {
    const count = payload.length >> 1;
    if (!this.sounding || !this.audible || count === 0) return;
    if (this.track.rate !== rate) this.silence(rate);
    const pcm = new Int16Array(payload.slice(0, count * 2).buffer);
    const samples = new Float32Array(count);
    for (let i = 0; i < count; i++) samples[i] = pcm[i] / 32768;
    this.unplaced.push({ pts, utterance, samples });
    this.place();
  }

  /** Have pieces played that are heard soon; all of them where nobody would be there to do it later. */
  place() {
    const { context, track } = this;
    while (this.unplaced.length && this.sounding) {
      const piece = this.unplaced[0], now = performance.now();
      if (this.base === null) return;
      // An utterance behind a pause takes the clock of the pictures up to it.
      if (!track.empty && !this.nodes.size && track.last.utterance !== piece.utterance) this.leaveTrack();
      this.readOffset(now);
      const first = (this.base + piece.pts - this.offset) / 1000;
      const at = track.empty ? first : track.timeOf(piece.pts);
      if (!document.hidden && at > context.currentTime + PLACED) return;
      this.unplaced.shift();
      const wanted = this.wanted(now);
      const { time, samples, late } = track.place(piece, {
        first,
        soonest: context.currentTime + 0.004,
        excess: (t) => this.heardAt(t) - piece.pts - wanted,
      });
      if (late) this.metrics.soundGaps++;
      this.metrics.shortenedMs += ((piece.samples.length - samples.length) / track.rate) * 1000;
      this.play(time, samples);
    }
  }

  play(time, samples) {
    const buffer = new AudioBuffer({ length: samples.length, sampleRate: this.track.rate });
    buffer.copyToChannel(samples, 0);
    const node = new AudioBufferSourceNode(this.context, { buffer });
    node.connect(this.gain);
    node.onended = () => {
      this.nodes.delete(node);
      this.place();
    };
    node.start(time);
    this.nodes.add(node);
  }

  silence(rate = this.track?.rate) {
    for (const node of this.nodes ?? []) {
      node.onended = null;
      node.stop();
    }
    this.nodes = new Set();
    this.unplaced = []; // pieces of sound: {pts, utterance, samples}
    this.track = new Soundtrack(rate ?? 48_000);
  }

  /** What was said is over: the plain clock goes on where the sound's has ended. */
  leaveTrack() {
    this.followSound();
    this.track.clear();
    this.steeredAt = performance.now();
  }

  // ---------------------------------------------------------------- pictures
  frame(header, now, inTime) {
    if (document.hidden) return; // nobody sees it
    const frame = { ...header, picture: null, failed: false, gone: false };
    frame.awaited = header.flags & IDLE ? this.awaited : null;
    this.queue.push(frame);
    if (this.queue.length > MOST_WAITING) this.leaveOut(this.queue.shift());
    this.decode(frame, (picture, took) => {
      if (!picture) frame.failed = true;
      else if (frame.gone) picture.close();
      else frame.picture = picture;
      if (picture && inTime) this.delay.decoded(took);
    });
  }

  /** `done(picture, took)`: {image, width, height, close()} and ms, or null; who gets one closes it. */
  decode(frame, done) {
    if (frame.type === H264) return this.decoder.take(frame, done);
    const now = performance.now();
    createImageBitmap(new Blob([frame.payload], { type: "image/jpeg" })).then(
      (image) => {
        const { width, height } = image;
        done({ image, width, height, close: () => image.close() }, performance.now() - now);
      },
      () => done(null),
    );
  }

  /** Nobody is to see or hear that; but what comes behind it in a stream builds on it. */
  pass(header) {
    if (header.type !== H264 || document.hidden) return;
    this.decoder.take({ ...header, gone: true }, (picture) => picture?.close());
  }

  leaveOut(frame, counts = true) {
    frame.gone = true;
    frame.picture?.close();
    if (counts && !frame.failed) this.metrics.skipped++;
    this.decoder.more();
  }

  draw(now) {
    if (this.base === null || document.hidden) return;
    this.keepClock(now);
    this.place();
    let shown = null;
    while (this.queue.length && this.due(this.queue[0].pts) <= now + EARLY) {
      const head = this.queue[0];
      if (!head.picture && !head.failed) {
        const next = this.queue[1];
        if (!next || this.due(next.pts) > now + EARLY) break; // it is being decoded
      }
      this.queue.shift();
      if (!head.picture) this.leaveOut(head);
      else {
        if (shown) this.leaveOut(shown);
        shown = head;
      }
      this.follow(head);
    }
    if (!shown) return this.waits(now);
    this.behind = null;
    if (this.outOfStep(shown, now)) this.leaveOut(shown);
    else this.show(shown, now);
  }

  /** Nothing can be drawn: a decoder that never comes in time is no use. */
  waits(now) {
    const [head] = this.queue;
    if (head?.type !== H264 || head.failed || this.due(head.pts) > now + EARLY) return;
    this.behind ??= now;
    if (now - this.behind < TOO_SLOW) return;
    this.behind = null;
    this.decoder.broken();
  }

  /** Whether a spoken picture is so late that the next one is better. */
  outOfStep({ pts }, now) {
    if (!this.speaks || this.track.empty) return false;
    const late = now - this.due(pts), stands = now - this.drawnAt;
    const comes = this.queue.length > 0 && this.due(this.queue[0].pts) <= now + EARLY;
    if (late > STANDING && comes) return stands < STANDING_MOST;
    return late > OUT_OF_STEP && stands < STANDING;
  }

  follow({ utterance, flags, pts }) {
    this.speaks = utterance > 0 && !(flags & LAST);
    const over = this.nodes.size === 0 && this.unplaced.length === 0;
    if (!this.track.empty && over && pts >= this.track.last.until - 0.01) this.leaveTrack();
  }

  show(frame, now) {
    const { picture, pts, utterance, flags } = frame;
    const { image, width, height } = picture;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.draws.drawImage(image, 0, 0);
    picture.close();
    this.drawnAt = now;
    const m = this.metrics;
    m.drawn++;
    m.times.push(now);
    if (m.times.length > 100) m.times.shift();
    m.spokenFrame = -1;
    m.avatarFrame = frame.avatarFrame;
    if (frame.awaited && frame.awaited === this.awaited) {
      this.awaited = null;
      frame.awaited();
    }
    if (!utterance || flags & REPEATED) return;
    const position = pts - this.begins.get(utterance);
    m.spokenDrawn++;
    m.spokenFrame = Math.round(position / 40);
    const began = this.track.empty ? undefined : this.track.began(pts);
    if (began !== undefined && this.sounding) m.addSync(now - this.heardAt(began));
    this.onspoken?.(position, now);
  }

  /** Show and play no more of what was being said; until interrupted(), nothing of it is taken. */
  interrupt() {
    this.hushed = true;
    this.silence();
    this.queue = this.queue.filter((frame) => {
      if (frame.utterance) this.leaveOut(frame, false);
      return !frame.utterance;
    });
  }

  interrupted() {
    this.hushed = false;
  }
}
