// SPDX-License-Identifier: Apache-2.0
// What the page has measured of itself since it was opened.
//
//   drawn, spokenDrawn   frames drawn; of these, with speech
//   skipped              frames left out here: they came or were decoded too late
//   lost, serverSkipped  spoken frames that the server dropped or did not make; that it left out for a
//                        slow reader
//   soundGaps            pieces of sound that came too late to join the one before
//   shortenedMs          of sound that were left out to catch up
//   received             bytes, of pictures, sound and messages
//   kbits()              of them, kbit/s, lately
//   bufferMs             from a frame's coming to its being due
//   excessMs             how much more that is than the network needs, as it has been lately
//   spokenFrame          which frame of its utterance is on the screen; -1 where none is spoken
//   avatarFrame          which of the avatar's own frames is under it; -1 before there was one
//   latencyMs            from a sound (as it is spoken or read) to the picture that shows it, median
//   plannedMs            the part of that which the server plans
//   sync()               {count, median, worst, within}: milliseconds by which spoken frames were drawn
//                        behind (+) or ahead (-) of the moment at which the first sample of their 40 ms
//                        came out of the loudspeaker, by the AudioContext's clock; `within` is the
//                        share of them that were less than 40 ms off; of the last 250

const KEPT = 250;
const LATELY = 3840; // ms: two key frames of a stream that speaks

export class Metrics {
  constructor() {
    Object.assign(this, { drawn: 0, spokenDrawn: 0, skipped: 0, lost: 0, serverSkipped: 0 });
    Object.assign(this, { soundGaps: 0, shortenedMs: 0, bufferMs: 0, excessMs: 0 });
    Object.assign(this, { spokenFrame: -1, avatarFrame: -1, latencyMs: null, plannedMs: null });
    this.received = 0;
    this.came = []; // [ms, bytes], lately
    this.times = [];
    this.offsets = [];
    this.open = false; // an utterance is being sent
    this.log = []; // of the utterance being sent: [seconds before it, when it was heard]
    this.waiting = []; // logs of utterances that were sent and not shown yet
    this.showing = null;
    this.delays = [];
  }

  get dropped() {
    return this.skipped + this.lost + this.serverSkipped;
  }

  fps(now) {
    return this.times.filter((t) => t > now - 1000).length;
  }

  /** So many bytes came. */
  bytes(count, now) {
    this.received += count;
    this.since ??= now;
    this.came.push([now, count]);
    while (this.came[0][0] < now - LATELY) this.came.shift();
  }

  /** Bits that come, kbit/s. */
  kbits(now) {
    const lately = Math.min(LATELY, now - this.since);
    const count = this.came.reduce((sum, [at, n]) => sum + (at > now - lately ? n : 0), 0);
    return lately > 0 ? (count * 8) / lately : 0;
  }

  /** Sound of so many seconds was sent; its first sample was heard at that time. */
  sent(seconds, at) {
    if (!this.open) {
      this.open = true;
      this.log = [];
      this.seconds = 0;
      this.waiting.push(this.log);
    }
    if (!this.log) return;
    this.log.push([this.seconds, at]);
    this.seconds += seconds;
    if (this.log.length > 3000) this.log.splice(0, 1000);
  }

  ended() {
    this.open = false;
  }

  /** The utterance that was begun last is refused, and the rest of it is dropped. */
  refused() {
    this.waiting.pop();
    this.log = null;
  }

  /** Something was sent and is not shown yet. */
  get owed() {
    return this.open || this.waiting.length > 0;
  }

  /** What was sent is not shown. */
  forget() {
    this.open = false;
    this.waiting = [];
    this.showing = null;
  }

  /** The server begins to show an utterance. */
  begin() {
    this.showing = this.waiting.shift() ?? [];
  }

  /** A spoken frame was drawn: `position` in ms from its utterance's first one. */
  shown(position, now) {
    const seconds = position / 1000;
    const entry = this.showing?.findLast(([before]) => before <= seconds);
    if (!entry) return;
    const delay = now - (entry[1] + (seconds - entry[0]) * 1000);
    this.latencyMs = median(keep(this.delays, delay, 50));
  }

  addSync(offset) {
    keep(this.offsets, offset, KEPT);
  }

  sync() {
    const sizes = this.offsets.map(Math.abs);
    return {
      count: sizes.length,
      median: median(this.offsets),
      worst: Math.max(0, ...sizes),
      within: sizes.length ? sizes.filter((s) => s < 40).length / sizes.length : 1,
    };
  }
}

function keep(list, value, most) {
  list.push(value);
  if (list.length > most) list.shift();
  return list;
}

function median(list) {
  if (!list.length) return 0;
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}
