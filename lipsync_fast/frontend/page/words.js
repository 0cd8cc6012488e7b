// SPDX-License-Identifier: Apache-2.0
// What the page says: a sentence for each state and each failure, with the way on.

export const STATES = {
  connecting: ["Connecting", "Connecting to the server…"],
  idle: ["Idle", "Ready. Play the sample, speak, or open a sound file."],
  listening: ["Listening", "Listening: say something, and the avatar repeats it."],
  hearing: ["Listening", "I hear you…"],
  speaking: ["Speaking", "Speaking."],
  repeating: ["Speaking", "The avatar repeats what you said."],
  waiting: ["No connection", "Not connected."],
};

/** Failures: [sentence, label of the button that leads on, or none]. */
export const FAILURES = {
  "gone": ["The server does not answer. This page tries again by itself.", "Try now"],
  "starting": ["The server is there, but cannot make pictures yet. This page tries again by itself.", "Try now"],
  "full": ["The server is full or about to stop. This page tries again by itself.", "Try now"],
  "refused": ["The server refuses this page. Open it by the address that the server printed. This page tries again by itself.", "Try now"],
  "token": ["This server asks for a token. Its operator has it: listen.token.", null],
  "wrong-token": ["That token is not the server's. Look for a missing or an extra character, or ask its operator for listen.token.", null],
  "overloaded": ["As many are speaking as the server can serve. Wait a moment, then say it again.", "Say it again"],
  "too-slow": ["The server was too busy to make most of the pictures in time. Say it again, or try later.", "Say it again"],
  "unknown-avatar": ["The avatar “{detail}” cannot be used here; “{instead}” is shown.", null],
  "avatar-failed": ["The avatar “{detail}” could not be shown, and “{instead}” stays: {why}", null],
  "no-avatars": ["The list of avatars could not be read; the default one is shown.", "Try again"],
  "text-failed": ["The text could not be spoken: {detail}", "Say it again"],
  "engine-lost": ["The engine that made the pictures has stopped; another one takes over. Say it again.", "Say it again"],
  "server-error": ["The server could not do that: {detail}", null],
  "mic-denied": ["The microphone is not allowed for this page. Allow it in the browser's address bar, or use a sound file.", "Open a file"],
  "mic-none": ["No microphone was found. Connect one and try again, or use a sound file.", "Open a file"],
  "mic-busy": ["The microphone is used by another program. Close that one and try again.", "Try again"],
  "mic-lost": ["The microphone was disconnected.", "Try again"],
  "mic-taken": ["The device has taken the microphone away, for a call perhaps. It is used again as soon as it can be.", null],
  "mic-insecure": ["Browsers give the microphone to https pages and to localhost alone. Open the page that way, or use a sound file.", "Open a file"],
  "mic-failed": ["The microphone could not be used: {detail}", "Try again"],
  "file-bad": ["No sound could be read from “{detail}”. Try WAV, MP3, OGG, M4A or FLAC.", "Open another"],
  "file-empty": ["“{detail}” holds no sound.", "Open another"],
  "file-large": ["“{detail}” is larger than 200 MB. Cut it into pieces.", "Open another"],
  "sample-missing": ["The sample could not be loaded. Use a sound file instead.", "Open a file"],
  "no-sound": ["The browser does not play sound before you press something on the page.", "Turn sound on"],
  "sound-taken": ["The device has taken the sound away, for a call perhaps. Pictures go on; the sound comes back by itself, or when you press here.", "Turn sound on"],
  "not-opened": ["“{detail}” could not be read from the server.", null],
  "not-copied": ["The browser does not let this page copy. Select the text, and copy it yourself.", null],
  "too-old": ["This browser lacks what the page needs (WebSocket, AudioWorklet, createImageBitmap). Please update it.", null],
};

export function sentence(word, values = {}) {
  return FAILURES[word][0].replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}
