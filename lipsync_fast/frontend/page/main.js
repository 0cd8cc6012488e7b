// SPDX-License-Identifier: Apache-2.0
// The page: wires the session, the player and the sources of sound to what is on the screen.
//
// window.lipsync is for tests and the curious:
//   state          "connecting", "idle", "listening", "hearing", "speaking" or "waiting"
//   started        the last session.started message: avatar, width, height, bounds, …
//   metrics        see metrics.js; metrics.sync() tells picture against sound

import { Metrics } from "./metrics.js";
import { Player } from "./player.js";
import { Session } from "./session.js";
import { decode, FilePlayback, Microphone, SourceError } from "./sources.js";
import { FAILURES, sentence, STATES } from "./words.js";

const RATE = 48_000;
const $ = (id) => document.getElementById(id);
const here = new URL(location.href);
let token = here.searchParams.get("token") ?? "";

const metrics = new Metrics();
const player = new Player($("canvas"), metrics);
const page = (window.lipsync = { state: "connecting", started: null, metrics });
let connection = "connecting"; // or "open", "waiting"
let speaking = false; // the server shows an utterance
let playback = null; // a file on its way
let microphone = null;
let avatars = { default: "", avatars: [] };
let again = null; // says the last file or sample once more

const address = (path) => {
  const url = new URL(path, document.baseURI);
  if (token) url.searchParams.set("token", token);
  return url;
};
const session = new Session(
  () => {
    const url = address("ws");
    url.protocol = url.protocol.replace("http", "ws");
    return url.href;
  },
  {
    avatar: here.searchParams.get("avatar") ?? "",
    audio: { sample_rate: RATE, format: "s16le", channels: 1 },
    pace: "live",
    idle: true,
    echo_audio: true,
  },
  { state: connectionChanged, media: (header) => player.media(header, RATE), message: told },
);

// ---------------------------------------------------------------- what the server says
function connectionChanged(state, detail) {
  connection = state;
  if (state !== "open") {
    speaking = false;
    player.reset();
    metrics.forget();
    stopPlayback();
  }
  if (state === "open") {
    clearNotice("connection");
    if (!avatars.avatars.length) loadAvatars();
  }
  if (state === "waiting") {
    notice(detail.cause, {}, () => session.connect(), "connection");
    $("token-form").hidden = detail.cause !== "token";
  }
  refresh();
}

function told(message) {
  if (message.type === "session.started") {
    page.started = message;
    metrics.plannedMs = message.latency_ms;
    const [x, , width] = message.bounds; // narrow screens show the part around the face
    $("canvas").style.objectPosition = `${(((x + width / 2) / message.width) * 100).toFixed(1)}% 50%`;
    $("canvas").setAttribute("aria-label", `The avatar ${message.avatar}`);
    choose(message.avatar);
  } else if (message.type === "utterance.started") {
    if (player.hushed) return; // of what was interrupted
    speaking = true;
    metrics.begin();
  } else if (message.type === "utterance.ended" || message.type === "session.interrupted") {
    speaking = false;
    metrics.lost += message.dropped ?? 0;
    if (message.dropped > message.frames / 2) notice("too-slow", {}, microphone ? null : again);
    if (message.type === "session.interrupted") player.interrupted();
  } else if (message.type === "session.overloaded") {
    stopPlayback();
    notice("overloaded", {}, again);
  } else if (message.type === "stats") {
    metrics.serverSkipped = message.skipped;
  } else if (message.type === "error") failed(message);
  refresh();
}

function failed({ code, message }) {
  if (code === "unknown_avatar") {
    notice("unknown-avatar", { detail: session.start.avatar });
    session.start.avatar = session.open ? page.started.avatar : "";
    if (!session.open) session.connect();
    else choose(page.started.avatar);
  } else if (code === "engine_lost") notice("engine-lost", {}, again);
  else if (code === "overloaded") notice("overloaded", {}, again);
  else notice("server-error", { detail: message });
}

// ---------------------------------------------------------------- what the page says
function refresh() {
  let state = connection === "open" ? "idle" : connection;
  if (state === "idle" && microphone) state = microphone.speaking ? "hearing" : "listening";
  if (connection === "open" && (speaking || playback)) state = "speaking";
  page.state = state;
  const [short, long] = STATES[state];
  const open = connection === "open";
  setText("state-short", short);
  setText("state-text", long);
  setText("n-session", short);
  $("stage").dataset.state = state === "hearing" ? "listening" : state;
  for (const id of ["sample", "mic", "open"]) $(id).disabled = !open;
  $("stop").disabled = !open || !(speaking || playback || microphone);
  $("mic").setAttribute("aria-pressed", String(Boolean(microphone)));
  setText("mic-text", microphone ? "Mic is on" : "Microphone");
}

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Show a failure with its way on. `topic` tells apart what may be cleared by itself. */
function notice(word, values = {}, action = null, topic = "") {
  const [, label] = FAILURES[word];
  const ways = { "Open a file": openFile, "Open another": openFile };
  const run = ways[label] ?? action;
  setText("notice-text", sentence(word, values));
  $("notice").dataset.topic = topic;
  $("notice").dataset.word = word;
  $("notice").hidden = false;
  $("notice-action").hidden = !label || !run;
  setText("notice-action", label ?? "");
  $("notice-action").onclick = () => {
    $("notice").hidden = true;
    run();
  };
  $("token-form").hidden = true;
}

function clearNotice(topic) {
  if ($("notice").dataset.topic === topic) $("notice").hidden = true;
}

const numbers = { signed: (ms) => `${ms < 0 ? "−" : "+"}${Math.abs(ms).toFixed(0)} ms` };
setInterval(() => {
  const m = metrics;
  setText("n-fps", connection === "open" ? m.fps(performance.now()).toFixed(0) : "–");
  setText("n-latency", m.latencyMs === null ? "–" : `${m.latencyMs.toFixed(0)} ms`);
  const sync = m.sync();
  setText("n-sync", sync.count ? numbers.signed(sync.median) : "–");
  setText("n-dropped", String(m.dropped));
  setText("n-buffer", connection === "open" ? `${m.bufferMs.toFixed(0)} ms` : "–");
  if (player.meter && !microphone) showLevel(loudness());
}, 250);

const heard = new Float32Array(1024);
function loudness() {
  player.meter.getFloatTimeDomainData(heard);
  return Math.sqrt(heard.reduce((sum, v) => sum + v * v, 0) / heard.length);
}

function showLevel(level) {
  const share = Math.min(1, Math.sqrt(level) * 1.6);
  $("level").style.transform = `scaleX(${share < 0.05 ? 0 : share.toFixed(3)})`;
}

// ---------------------------------------------------------------- avatars
async function loadAvatars() {
  try {
    const answer = await fetch(address("v1/avatars"));
    if (!answer.ok) throw new Error(answer.statusText);
    avatars = await answer.json();
  } catch {
    if (connection === "open") notice("no-avatars", {}, loadAvatars);
    return;
  }
  for (const link of document.querySelectorAll("footer a")) link.href = address(link.getAttribute("href"));
  $("avatars").replaceChildren(...avatars.avatars.map(avatarCard));
  choose(page.started?.avatar || avatars.default);
}

function avatarCard({ name, thumbnail }) {
  const label = document.createElement("label"), text = document.createElement("span");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value: name });
  const image = Object.assign(document.createElement("img"), { alt: "", src: address(thumbnail.slice(1)), loading: "lazy" });
  label.className = "avatar";
  text.textContent = name;
  input.onchange = () => session.update({ avatar: name });
  label.append(input, image, text);
  return label;
}

function choose(name) {
  for (const input of document.querySelectorAll("#avatars input")) input.checked = input.value === name;
  const facts = avatars.avatars.find((a) => a.name === name);
  $("about").hidden = !facts;
  if (!facts) return;
  const lines = [
    facts.synthetic ? "A synthetic person." : "A real person, animated.",
    facts.provenance,
    facts.consent && `Consent: ${facts.consent}`,
    facts.licence && `Licence: ${facts.licence}`,
    `${facts.width} × ${facts.height}, ${facts.frames} frames at ${facts.fps} a second.`,
  ];
  const paragraph = (text) => Object.assign(document.createElement("p"), { textContent: text });
  $("about-text").replaceChildren(...lines.filter(Boolean).map(paragraph));
}

// ---------------------------------------------------------------- speaking
/** Sound may be played behind a gesture alone; called by every one. */
async function wakeSound() {
  if (!player.context) player.useContext(new AudioContext({ sampleRate: RATE, latencyHint: "interactive" }));
  const context = player.context;
  if (context.state === "running") return;
  const patience = new Promise((resolve) => setTimeout(resolve, 400));
  await Promise.race([context.resume().catch(() => {}), patience]);
  if (context.state !== "running") notice("no-sound", {}, wakeSound, "sound");
  else clearNotice("sound");
}

const sink = {
  send(piece, at) {
    const taken = session.hear(piece);
    if (taken) metrics.sent(piece.length / RATE, at);
    return taken;
  },
  end() {
    session.say({ type: "utterance.end" });
    metrics.ended();
    playback = null;
    refresh();
  },
};

function stopPlayback() {
  playback?.stop();
  playback = null;
}

/** Say what `load()` gives: bytes of a sound file. */
async function say(load, name) {
  again = () => say(load, name);
  await wakeSound();
  try {
    const pcm = await decode(await load(), RATE);
    if (connection !== "open") return;
    interrupt();
    closeMicrophone();
    clearNotice("");
    playback = new FilePlayback(pcm, RATE, sink);
    playback.start(); // a short one ends at once
  } catch (error) {
    if (!(error instanceof SourceError)) throw error;
    notice(error.word, { detail: name });
  }
  refresh();
}

async function loadSample() {
  try {
    const answer = await fetch(address("v1/sample.wav"));
    if (!answer.ok) throw new Error(answer.statusText);
    return await answer.arrayBuffer();
  } catch {
    throw new SourceError("sample-missing");
  }
}

const sayFile = (file) => file && say(() => file.arrayBuffer(), file.name);
const openFile = () => $("file").click();

async function openMicrophone() {
  await wakeSound();
  const opened = new Microphone(RATE, {
    send: sink.send,
    end: sink.end,
    level(level) {
      showLevel(level);
      refresh();
    },
    lost() {
      closeMicrophone();
      notice("mic-lost", {}, openMicrophone);
    },
  });
  try {
    await opened.open();
  } catch (error) {
    if (!(error instanceof SourceError)) throw error;
    notice(error.word, { detail: error.detail }, openMicrophone);
    return;
  }
  interrupt();
  clearNotice("");
  microphone = opened;
  refresh();
}

function closeMicrophone() {
  microphone?.close();
  microphone = null;
  showLevel(0);
}

/** Barge in: nothing more of what is being said is shown, played or sent. */
function interrupt() {
  const busy = speaking || playback || metrics.open;
  stopPlayback();
  if (busy && session.open) {
    session.say({ type: "session.interrupt" });
    player.interrupt();
    metrics.forget();
  }
  speaking = false;
}

function stop() {
  interrupt();
  closeMicrophone();
  refresh();
}

player.onspoken = (position, now) => metrics.shown(position, now);
$("sample").onclick = () => say(loadSample, "sample");
$("mic").onclick = () => {
  if (!microphone) return openMicrophone();
  closeMicrophone();
  refresh();
};
$("open").onclick = openFile;
$("stop").onclick = stop;
$("mute").onclick = () => {
  player.mute(!player.muted);
  $("mute").setAttribute("aria-pressed", String(player.muted));
  $("mute").setAttribute("aria-label", player.muted ? "Unmute" : "Mute");
};
$("file").onchange = () => {
  sayFile($("file").files[0]);
  $("file").value = "";
};
$("notice-close").onclick = () => ($("notice").hidden = true);
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value;
  session.connect();
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("stop").disabled) stop();
});
let dragged = 0;
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++dragged > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --dragged > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", (dragged = 0) > 0);
  if (connection === "open") sayFile(event.dataTransfer.files[0]);
});
addEventListener("online", () => connection === "waiting" && session.connect());

if (!window.WebSocket || !window.AudioWorkletNode && window.isSecureContext || !window.createImageBitmap) {
  notice("too-old");
} else {
  session.connect();
}
