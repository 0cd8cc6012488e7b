// SPDX-License-Identifier: Apache-2.0
// The microphone's AudioWorklet: mono, brought to the session's rate, posted in pieces of 20 ms as
// s16le with their loudness (root mean square, 0 to 1).

class Recorder extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.rate = options.processorOptions.rate;
    this.step = sampleRate / this.rate;
    this.at = 0; // of the next sample to give, counted from the end of `before`
    this.before = 0;
    this.piece = new Int16Array(Math.round(this.rate / 50));
    this.filled = 0;
    this.energy = 0;
  }

  process([input]) {
    if (!input || input.length === 0) return true;
    const mono = input[0]; // the node asks for one channel
    // Positions are counted so that 0 is the last sample of the call before, 1 the first of this.
    for (; this.at < mono.length; this.at += this.step) {
      const whole = Math.floor(this.at), part = this.at - whole;
      const left = whole === 0 ? this.before : mono[whole - 1];
      this.give(left + (mono[whole] - left) * part);
    }
    this.at -= mono.length;
    this.before = mono[mono.length - 1];
    return true;
  }

  give(value) {
    const loud = Math.max(-1, Math.min(1, value));
    this.energy += loud * loud;
    this.piece[this.filled++] = Math.round(loud * 32767);
    if (this.filled < this.piece.length) return;
    const level = Math.sqrt(this.energy / this.filled);
    this.port.postMessage({ pcm: this.piece, level }, [this.piece.buffer]);
    this.piece = new Int16Array(Math.round(this.rate / 50));
    this.filled = 0;
    this.energy = 0;
  }
}

registerProcessor("recorder", Recorder);
