// SPDX-License-Identifier: Apache-2.0
// Shows frames and plays sound, both by their presentation times.
//
//   frame ─► decode ─► queue ─► drawn when due ─┐
//                                               ├─ one clock: due(pts)
//   sound ─► scheduled on the AudioContext ─────┘
//
// While the avatar only idles, the clock is performance.now() behind a small buffer, which grows when
// frames come late and shrinks again. While it speaks, the sound is the clock: its pieces are played
// one behind the other, to the sample, and a frame is due when the first sample of its 40 ms comes out
// of the loudspeaker. Without sound (no permission to play yet, or none in the message) pictures keep
// the plain clock.

import { FRAME, IDLE, LAST, REPEATED } from "./media.js";

const MARGIN = 45; // ms to decode and draw, and for an uneven network
const MOST_WAITING = 75; // frames; a page in the background does not draw
const REMEMBERED = 4000; // ms, of how late frames came
const EARLY = 8; // ms: half a screen refresh; a frame is drawn at the refresh nearest to its time

export class Player {
  constructor(canvas, metrics) {
    this.canvas = canvas;
    this.draws = canvas.getContext("2d", { alpha: false });
    this.metrics = metrics;
    this.context = null;
    this.muted = false;
    this.reset();
    this.drawing = () => {
      requestAnimationFrame(this.drawing);
      this.draw(performance.now());
    };
    requestAnimationFrame(this.drawing);
  }

  /** Another session begins, with a clock of its own. */
  reset() {
    for (const frame of this.queue ?? []) frame.bitmap?.close();
    this.queue = [];
    this.base = null; // performance.now() at which pts 0 is due
    this.lags = [];
    this.silence();
    this.hushed = false; // what is said is dropped until the server has heard of the interruption
    this.utterance = null; // the one being shown: {number, pts of its first frame}
  }

  /** Sound can be played from now on: called behind a gesture. */
  useContext(context) {
    this.context = context;
    this.gain = new GainNode(context, { gain: this.muted ? 0 : 1 });
    this.meter = new AnalyserNode(context, { fftSize: 1024 });
    this.gain.connect(this.meter).connect(context.destination);
  }

  mute(muted) {
    this.muted = muted;
    if (this.context) this.gain.gain.setTargetAtTime(muted ? 0 : 1, this.context.currentTime, 0.01);
  }

  get sounding() {
    return this.context?.state === "running";
  }

  /** From a time of the AudioContext to performance.now(), when it comes out of the loudspeaker. */
  heardAt(time) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp?.() ?? {};
    let offset = performanceTime - contextTime * 1000;
    if (!performanceTime) {
      const latency = this.context.outputLatency || this.context.baseLatency || 0;
      offset = performance.now() - (this.context.currentTime - latency) * 1000;
    }
    // What the browser reads is coarse: it is smoothed, but followed at once when it jumps.
    const off = offset - this.offset;
    this.offset = Math.abs(off) < 80 ? this.offset + off * 0.05 : offset;
    return time * 1000 + this.offset;
  }

  // ---------------------------------------------------------------- sound
  sound({ pts, utterance, payload }, rate) {
    if (this.hushed || !this.sounding) return;
    const count = payload.length >> 1;
    if (count === 0) return;
    const samples = new Int16Array(payload.slice(0, count * 2).buffer);
    const buffer = new AudioBuffer({ length: count, numberOfChannels: 1, sampleRate: rate });
    const channel = buffer.getChannelData(0);
    for (let i = 0; i < count; i++) channel[i] = samples[i] / 32768;
    const soonest = this.context.currentTime + 0.004;
    if (this.base === null) this.base = performance.now() + MARGIN - pts;
    let anchor = this.anchor;
    const due = (p) => anchor.time + (p - anchor.pts) / 1000;
    if (!anchor || anchor.utterance !== utterance) {
      // To output at base + pts; in whole samples, so that pieces join without a click.
      const wanted = (this.base + pts - this.heardAt(0)) / 1000;
      const time = Math.ceil(Math.max(soonest, wanted) * rate) / rate;
      anchor = this.anchor = { utterance, pts, time };
    } else if (due(pts) < soonest) {
      this.metrics.soundGaps++;
      anchor.time += Math.ceil((soonest + 0.02 - due(pts)) * rate) / rate;
    }
    const time = due(pts);
    const node = new AudioBufferSourceNode(this.context, { buffer });
    node.connect(this.gain);
    node.onended = () => this.nodes.delete(node);
    node.start(time);
    this.nodes.add(node);
    this.played.set(pts, time);
    if (this.played.size > 500) this.played.delete(this.played.keys().next().value);
  }

  silence() {
    for (const node of this.nodes ?? []) node.stop();
    this.nodes = new Set();
    this.anchor = null;
    this.played = new Map(); // pts of a piece of sound -> time of the AudioContext at which it began
    this.offset = this.offset ?? 0;
  }

  // ---------------------------------------------------------------- pictures
  frame(header) {
    const now = performance.now();
    if (header.utterance && this.hushed) return;
    this.keepClock(header, now);
    const frame = { ...header, bitmap: null, failed: false };
    this.queue.push(frame);
    if (this.queue.length > MOST_WAITING) this.leaveOut(this.queue.shift());
    if (document.hidden && this.queue.length > 1) {
      frame.failed = true; // nobody sees it
      return;
    }
    createImageBitmap(new Blob([header.payload], { type: "image/jpeg" })).then(
      (bitmap) => {
        if (frame.gone) bitmap.close();
        frame.bitmap = bitmap;
      },
      () => (frame.failed = true),
    );
    frame.payload = null;
  }

  /** How much later than at its best a frame came decides how far behind pictures are shown. */
  keepClock({ pts, flags }, now) {
    const lag = now - pts;
    this.lags.push([now, lag]);
    while (this.lags[0][0] < now - REMEMBERED) this.lags.shift();
    let worst = -Infinity;
    for (const [, l] of this.lags) worst = Math.max(worst, l);
    const output = this.sounding ? (this.context.outputLatency || 0) * 1000 : 0;
    const wanted = worst + MARGIN + output;
    if (this.base === null) this.base = wanted;
    else if (this.anchor) this.followSound();
    else if (wanted > this.base) this.base = Math.min(wanted, this.base + (flags & IDLE ? 20 : 4));
    else this.base -= Math.min(1, this.base - wanted);
    this.metrics.bufferMs = this.base - lag;
  }

  followSound() {
    this.base = this.heardAt(this.anchor.time) - this.anchor.pts;
  }

  leaveOut(frame) {
    frame.gone = true;
    frame.bitmap?.close();
    if (!document.hidden && !frame.failed) this.metrics.skipped++;
  }

  draw(now) {
    if (this.base === null) return;
    if (this.anchor) this.followSound();
    let shown = null;
    while (this.queue.length && this.base + this.queue[0].pts <= now + EARLY) {
      const head = this.queue[0];
      if (!head.bitmap && !head.failed) {
        const next = this.queue[1];
        if (!next || this.base + next.pts > now + EARLY) break; // it is being decoded
      }
      this.queue.shift();
      if (!head.bitmap) this.leaveOut(head);
      else {
        if (shown) this.leaveOut(shown);
        shown = head;
      }
      this.follow(head);
    }
    if (shown) this.show(shown, now);
  }

  follow({ utterance, flags, pts }) {
    if (utterance && this.utterance?.number !== utterance) this.utterance = { number: utterance, pts };
    if (flags & LAST || (flags & IDLE && this.anchor && !this.nodes.size)) this.anchor = null;
  }

  show(frame, now) {
    const { bitmap, pts, utterance, flags } = frame;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.draws.drawImage(bitmap, 0, 0);
    bitmap.close();
    const m = this.metrics;
    m.drawn++;
    m.times.push(now);
    if (m.times.length > 100) m.times.shift();
    if (utterance && !(flags & REPEATED)) {
      m.spokenDrawn++;
      const began = this.played.get(pts);
      if (began !== undefined && this.sounding) m.addSync(now - this.heardAt(began));
      this.onspoken?.(pts - this.utterance.pts, now);
    }
  }

  /** Show and play no more of what was being said; until interrupted(), nothing of it is taken. */
  interrupt() {
    this.hushed = true;
    this.silence();
    this.queue = this.queue.filter((frame) => {
      if (!frame.utterance) return true;
      frame.gone = true;
      frame.bitmap?.close();
      return false;
    });
  }

  interrupted() {
    this.hushed = false;
  }

  /** A media message; `rate` is that of the sound. */
  media(header, rate) {
    if (header.type === FRAME) this.frame(header);
    else this.sound(header, rate);
  }
}
