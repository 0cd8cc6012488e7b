// SPDX-License-Identifier: Apache-2.0
// Where in the AudioContext's time the sound of what is said lies, and how it is made shorter.
//
//   presentation times   |--- 40 ms ---|--- 40 ms ---|--- 40 ms ---|
//   the context's time   |--- 40 ms ---|-- 27 --|--- 40 ms ---|        one was shortened
//
// Nothing here plays, or asks what time it is: pieces and times go in, places come out.

const KEPT = 250; // pieces: ten seconds
const LATE = 0.02; // seconds that a piece which comes too late gets, so that the next is in time
const FADE_IN = 0.003; // seconds, behind a gap
const BEGIN = 40, ENOUGH = 5; // ms of excess from which on sound is shortened, and no more

const QUIET = 0.006; // root mean square below which nobody hears what is left out
const QUIET_FADE = 4, QUIET_LEFT = 10; // ms
const FADE = 8; // ms over which a piece goes on at another place
const SHORTEST = 2.5, LONGEST = 20; // ms that are taken out of 40: whole periods of a voice
const ALIKE = 0.1; // places whose likeness differs by less are as good: the one that saves most

export class Soundtrack {
  constructor(rate) {
    this.rate = rate;
    this.clear();
  }

  clear() {
    this.pieces = []; // {pts, until: ms, start, end: samples of the context, utterance}
    this.hurries = false;
  }

  get empty() {
    return this.pieces.length === 0;
  }

  /** What lies last: {pts, until, start, end, utterance}. */
  get last() {
    return this.pieces.at(-1);
  }

  /**
   * Give a piece its place, behind those before it.
   *
   *   first     where it lies when it is the first one, seconds
   *   soonest   before this it cannot be played, seconds
   *   excess    ms that it would be heard later than need be, at a time in seconds
   *
   * Returns {time: seconds, samples: to be played, late: it came too late to join the one before}.
   */
  place({ pts, samples, utterance }, { first, soonest, excess }) {
    const { rate, last } = this;
    const until = pts + (samples.length / rate) * 1000;
    let start = Math.ceil(first * rate), late = false;
    if (last) {
      start = last.end + Math.max(0, Math.round(((pts - last.until) / 1000) * rate));
      let cut = Math.floor(this.hurry(excess(start / rate)) * rate / 1000);
      const pause = Math.min(cut, start - last.end); // between utterances, or where nothing is said
      start -= pause;
      cut -= pause;
      late = start < soonest * rate;
      if (!late && cut > 0) samples = shorten(samples, rate, cut);
    }
    if (start < soonest * rate) start = Math.ceil((soonest + (late ? LATE : 0)) * rate);
    if (late) samples = fadedIn(samples, Math.round(FADE_IN * rate));
    this.pieces.push({ pts, until, start, end: start + samples.length, utterance });
    if (this.pieces.length > KEPT) this.pieces.shift();
    return { time: start / rate, samples, late };
  }

  /** How many of the ms that are too many are to be taken out; none where they are but a few. */
  hurry(excess) {
    this.hurries = excess > BEGIN || (this.hurries && excess > ENOUGH);
    return this.hurries ? excess : 0;
  }

  /** When a presentation time is heard, seconds; before the first piece and behind the last, too. */
  timeOf(pts) {
    const { pieces, rate } = this;
    let i = pieces.length - 1;
    while (i > 0 && pieces[i].pts > pts) i--;
    const piece = pieces[i], next = pieces[i + 1];
    const natural = (ms) => (ms / 1000) * rate;
    if (pts <= piece.pts) return (piece.start + natural(pts - piece.pts)) / rate;
    if (pts < piece.until) {
      const share = (pts - piece.pts) / (piece.until - piece.pts);
      return (piece.start + share * (piece.end - piece.start)) / rate;
    }
    const behind = piece.end + natural(pts - piece.until);
    return (next ? Math.min(behind, next.start) : behind) / rate;
  }

  /** When the piece with just that presentation time begins, seconds; undefined where there is none. */
  began(pts) {
    const piece = this.pieces.findLast((p) => Math.abs(p.pts - pts) < 0.01);
    return piece && piece.start / this.rate;
  }
}

/**
 * The same sound with at most so many samples less, at the same pitch: a whole number of its periods
 * is left out, and what is before goes over into what is behind. Its first and last samples stay, so
 * that it joins its neighbours.
 */
export function shorten(samples, rate, most) {
  const ms = rate / 1000, length = samples.length;
  if (loudness(samples) < QUIET) {
    const fade = Math.round(QUIET_FADE * ms);
    const cut = Math.min(most, length - Math.round(QUIET_LEFT * ms));
    return cut < fade ? samples : spliced(samples, (length - cut - fade) >> 1, cut, fade);
  }
  const fade = Math.round(FADE * ms), shortest = Math.round(SHORTEST * ms);
  const longest = Math.min(most, Math.round(LONGEST * ms), length - fade);
  if (longest < shortest) return samples;
  const from = (length - longest - fade) >> 1;
  const likeness = (cut, stride) => alike(samples, from, from + cut, fade, stride);
  const coarse = Math.max(1, Math.round(ms / 12)); // a twelfth of a millisecond
  const found = [];
  for (let cut = shortest; cut <= longest; cut += coarse) found.push([cut, likeness(cut, coarse)]);
  const best = Math.max(...found.map(([, like]) => like));
  const [near] = found.findLast(([, like]) => like >= best - ALIKE);
  let cut = near, like = -2;
  for (let c = Math.max(shortest, near - coarse); c <= Math.min(longest, near + coarse); c++) {
    const l = likeness(c, 1);
    if (l > like) [cut, like] = [c, l];
  }
  return spliced(samples, from, cut, fade);
}

/** `cut` samples left out at `from`, under a fade of so many. */
function spliced(samples, from, cut, fade) {
  const out = new Float32Array(samples.length - cut);
  out.set(samples.subarray(0, from));
  for (let i = 0; i < fade; i++) {
    const share = (1 - Math.cos((Math.PI * (i + 0.5)) / fade)) / 2;
    out[from + i] = samples[from + i] * (1 - share) + samples[from + cut + i] * share;
  }
  out.set(samples.subarray(from + cut + fade), from + fade);
  return out;
}

/** How alike two stretches are: 1 the same but for their loudness, 0 nothing in common. */
function alike(samples, a, b, count, stride) {
  let both = 0, first = 1e-9, second = 1e-9;
  for (let i = 0; i < count; i += stride) {
    const x = samples[a + i], y = samples[b + i];
    both += x * y;
    first += x * x;
    second += y * y;
  }
  return both / Math.sqrt(first * second);
}

function loudness(samples) {
  let sum = 0;
  for (const value of samples) sum += value * value;
  return Math.sqrt(sum / Math.max(1, samples.length));
}

function fadedIn(samples, count) {
  const out = samples.slice();
  for (let i = 0; i < Math.min(count, out.length); i++) out[i] *= i / count;
  return out;
}
