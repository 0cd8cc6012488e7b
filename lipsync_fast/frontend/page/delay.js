// SPDX-License-Identifier: Apache-2.0
// How far behind their coming pictures and sound are played, so that the network may be uneven.
//
// A piece of media that comes at `now` has a lag, now - pts. What is played at base + pts needs a
// base as large as the lags that are to be expected, and a margin. Lags of an uneven network come
// again, so they are remembered for seconds; a stall comes once, and is forgotten as soon as what it
// held up is there, unless stalls come again and again.
//
// Nothing here asks what time it is.

const MARGIN = 45; // ms to decode and draw, and for an uneven network
const DECODED = 20; // ms of these that are left where decoding takes long
const REMEMBERED = 4000; // ms, of how late media came
const UNEVEN = 200; // ms over the best: later than that is a stall
const STALL = 250; // ms for which a stall is remembered
const TOGETHER = 100; // ms: what a stall held up comes without pauses
const STALLS = 3, STALLS_IN = 10_000; // so many in so many ms are the network's way
const DECODINGS = 50;

export class Delay {
  constructor() {
    this.lags = []; // {at, lag, stall}
    this.stalls = []; // {at, lag: the largest of it}
    this.decodings = []; // ms
  }

  /** Media with that presentation time has come; true where no stall has held it up. */
  came(now, pts) {
    this.forget(now);
    const lag = now - pts;
    const best = Math.min(lag, ...this.lags.map((l) => l.lag));
    const before = this.lags.at(-1);
    const late = lag > best + UNEVEN;
    const behind = before?.stall && now - before.at < TOGETHER; // it was held up with that one
    const held = behind && (late || (lag < before.lag && lag > best + DECODED));
    const stall = held || late;
    if (held) this.stalls.at(-1).lag = Math.max(this.stalls.at(-1).lag, lag);
    else if (stall) this.stalls.push({ at: now, lag });
    this.lags.push({ at: now, lag, stall });
    return !stall;
  }

  /** A picture that came in time took so many ms to decode. */
  decoded(took) {
    this.decodings.push(took);
    if (this.decodings.length > DECODINGS) this.decodings.shift();
  }

  /** The base that is wanted; null where nothing has come lately. */
  wanted(now) {
    this.forget(now);
    if (!this.lags.length) return null;
    const best = Math.min(...this.lags.map((l) => l.lag));
    let worst = best;
    for (const { at, lag, stall } of this.lags) {
      const once = stall || lag > best + UNEVEN;
      if (!once || now - at <= STALL) worst = Math.max(worst, lag);
    }
    const stalls = this.stalls.map((s) => s.lag).sort((a, b) => b - a);
    if (stalls.length >= STALLS) worst = Math.max(worst, stalls[STALLS - 1]);
    const sorted = [...this.decodings].sort((a, b) => a - b);
    const slow = sorted[Math.floor(sorted.length * 0.9)] ?? 0;
    return worst + Math.max(MARGIN, slow + DECODED);
  }

  forget(now) {
    while (this.lags.length && this.lags[0].at < now - REMEMBERED) this.lags.shift();
    while (this.stalls.length && this.stalls[0].at < now - STALLS_IN) this.stalls.shift();
  }
}

/**
 * The base after so many ms on its way to the one that is wanted, without a jump: pictures of an
 * avatar at rest run up to 1.85 times as fast, or half as fast; those that speak without sound are
 * not held up as much.
 */
export function steered(base, wanted, elapsed, speaks) {
  const off = wanted - base, time = Math.max(0, Math.min(elapsed, 100));
  if (off > 0) return base + Math.min(off, time * (speaks ? 0.1 : 0.5));
  return base + Math.max(off, -0.85 * time);
}
