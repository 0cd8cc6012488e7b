// SPDX-License-Identifier: Apache-2.0
// Where sound comes from: a file or the sample, sent as it would be spoken; or the microphone, sent
// while somebody speaks. Each calls `send(Int16Array, performance.now() of its first sample)`, which
// returns false where the sound cannot be taken, and `end()` behind an utterance.

const PIECE = 0.1; // seconds that are sent at a time
const AHEAD = 1.5; // seconds that a file is sent before they are spoken
const LARGEST = 200 << 20;

const HANG = 0.7; // seconds of quiet that end an utterance
const BEFORE = 10; // pieces (20 ms) from before the voice was noticed
const QUIETEST = 0.004;
const ASKED = 1000; // ms between attempts to get a microphone back that the device has taken
const DEAF = 3000; // ms in which nothing comes, not even silence: it has to be opened anew

/** A failure that has a sentence: see words.js. */
export class SourceError extends Error {
  constructor(word, detail = "") {
    super(word);
    this.word = word;
    this.detail = detail;
  }
}

/** Mono s16le at a rate, from the bytes of a sound or video file. */
export async function decode(bytes, rate) {
  if (bytes.byteLength === 0) throw new SourceError("file-empty");
  if (bytes.byteLength > LARGEST) throw new SourceError("file-large");
  const context = new OfflineAudioContext(1, 1, rate);
  let sound;
  try {
    sound = await context.decodeAudioData(bytes);
  } catch {
    throw new SourceError("file-bad");
  }
  if (sound.length === 0) throw new SourceError("file-empty");
  const pcm = new Int16Array(sound.length);
  const channels = [];
  for (let c = 0; c < sound.numberOfChannels; c++) channels.push(sound.getChannelData(c));
  for (let i = 0; i < pcm.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    const value = sum / channels.length;
    pcm[i] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
  }
  return pcm;
}

/** Sends PCM in the time that it takes to speak it, a little ahead; tells when all is sent. */
export class FilePlayback {
  constructor(pcm, rate, { send, end }) {
    Object.assign(this, { pcm, rate, send, end });
    this.sent = 0;
  }

  start() {
    this.began = performance.now();
    this.timer = setInterval(() => this.go(), (PIECE * 1000) / 2);
    this.go();
  }

  go() {
    const due = ((performance.now() - this.began) / 1000 + AHEAD) * this.rate;
    while (this.sent < Math.min(due, this.pcm.length)) {
      const piece = this.pcm.slice(this.sent, this.sent + Math.round(PIECE * this.rate));
      const at = this.began + (this.sent / this.rate) * 1000;
      if (!this.send(piece, at)) {
        // Not taken: what follows is spoken later, not faster.
        this.began = performance.now() + (AHEAD - this.sent / this.rate) * 1000;
        return;
      }
      this.sent += piece.length;
    }
    if (this.sent < this.pcm.length) return;
    this.stop();
    this.end();
  }

  stop() {
    clearInterval(this.timer);
  }
}

/** Finds where a voice begins and ends, by its loudness over that of the room. */
export class VoiceGate {
  constructor() {
    this.floor = 0.01;
    this.open = false;
    this.quiet = 0;
  }

  /** Loudness of 20 ms; true while they belong to an utterance. */
  hear(level) {
    const loud = level > Math.max(QUIETEST, this.floor * (this.open ? 2 : 3));
    this.floor += (level - this.floor) * (level < this.floor ? 0.2 : this.open ? 0.0005 : 0.01);
    this.quiet = loud ? 0 : this.quiet + 0.02;
    this.open = loud || (this.open && this.quiet < HANG);
    return this.open;
  }
}

/**
 * The microphone. `send` and `end` as above; `level(0 to 1)` for a meter; `lost()` when it is gone;
 * `taken(whether)` when the device gives it to something else, and back; `deaf()` when it has to be
 * opened anew. `device` is its id, "" for the one that the device chooses.
 */
export class Microphone {
  constructor(rate, device, on) {
    Object.assign(this, { rate, device, on });
    this.gate = new VoiceGate();
    this.kept = [];
    this.speaking = false;
    this.away = false;
    this.pieces = 0; // that were heard
  }

  async open() {
    if (!navigator.mediaDevices?.getUserMedia) throw new SourceError("mic-insecure");
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true };
    const from = (deviceId) => navigator.mediaDevices.getUserMedia({ audio: { ...audio, deviceId } });
    try {
      const picked = this.device ? from({ exact: this.device }) : from(undefined);
      this.stream = await picked.catch((error) => {
        if (error.name !== "OverconstrainedError") throw error;
        return from(undefined); // the one that was picked is not there any more
      });
    } catch (error) {
      const words = {
        NotAllowedError: "mic-denied",
        SecurityError: "mic-denied",
        NotFoundError: "mic-none",
        NotReadableError: "mic-busy",
        AbortError: "mic-busy",
      };
      throw new SourceError(words[error.name] ?? "mic-failed", error.message);
    }
    try {
      this.context = new AudioContext(); // at the device's rate: the worklet brings it to ours
      await this.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
      const source = this.context.createMediaStreamSource(this.stream);
      this.node = new AudioWorkletNode(this.context, "recorder", {
        numberOfOutputs: 0,
        channelCount: 1,
        channelCountMode: "explicit",
        processorOptions: { rate: this.rate },
      });
      this.node.port.onmessage = ({ data }) => this.heard(data);
      source.connect(this.node);
    } catch (error) {
      this.close();
      throw new SourceError("mic-failed", error.message);
    }
    const [track] = this.stream.getAudioTracks();
    track.onended = () => this.on.lost();
    track.onmute = track.onunmute = this.context.onstatechange = () => this.watch(track);
    this.device = track.getSettings().deviceId ?? "";
    this.heardAt = performance.now();
    this.asking = setInterval(() => this.ask(), ASKED);
  }

  ask() {
    if (this.away) this.context.resume().catch(() => {});
    else if (performance.now() - this.heardAt > DEAF) {
      // Chromium's comes back from a pause without a sound, for one.
      clearInterval(this.asking);
      if (this.pieces) this.on.deaf();
      else this.on.lost();
    }
  }

  /** What a call does to it: it hears nothing, until the device gives it back. */
  watch(track) {
    const taken = track.muted || this.context.state !== "running";
    if (taken && this.speaking) this.hush();
    if (taken !== this.away) this.on.taken(taken);
    this.away = taken;
    this.heardAt = performance.now();
  }

  hush() {
    if (this.speaking) this.on.end();
    this.speaking = false;
    this.kept = [];
    this.gate = new VoiceGate();
  }

  heard({ pcm, level }) {
    const now = (this.heardAt = performance.now());
    this.pieces++;
    this.on.level(level);
    if (!this.gate.hear(level)) {
      if (this.speaking) this.on.end();
      this.speaking = false;
      this.kept.push(pcm);
      if (this.kept.length > BEFORE) this.kept.shift();
      return;
    }
    this.speaking = true;
    this.kept.push(pcm);
    const began = now - 20 * this.kept.length;
    this.kept.forEach((piece, i) => this.on.send(piece, began + 20 * i));
    this.kept = [];
  }

  close() {
    this.hush();
    clearInterval(this.asking);
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = track.onmute = track.onunmute = null;
      track.stop();
    }
    this.node?.port.close();
    if (!this.context) return;
    this.context.onstatechange = null;
    if (this.context.state !== "closed") this.context.close();
  }
}
