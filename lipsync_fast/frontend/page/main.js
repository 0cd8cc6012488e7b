// SPDX-License-Identifier: Apache-2.0
// The page: wires the session, the player and the sources of sound to what is on the screen.
//
// window.lipsync is for tests and the curious:
//   state          "connecting", "idle", "listening", "hearing", "speaking" or "waiting"
//   started        the last session.started message: avatar, width, height, bounds, …
//   codec          "h264" or "jpeg": how pictures come
//   metrics        see metrics.js; metrics.sync() tells picture against sound

import { ask, blobOf, hasToken, useToken } from "./access.js";
import { Avatars } from "./avatars.js";
import { showCode } from "./code.js";
import { decodes } from "./decoder.js";
import { chosen, playsBack, showOptions, watchOptions } from "./devices.js";
import { Metrics } from "./metrics.js";
import { clearNotice, notice } from "./notices.js";
import { setText, showNumbers } from "./numbers.js";
import { Player } from "./player.js";
import { Session } from "./session.js";
import { decode, FilePlayback, Microphone, SourceError } from "./sources.js";
import { FAILURES, STATES } from "./words.js";

const RATE = 48_000;
const ASKED = 1000; // ms between attempts to get sound back that the device has taken
const JPEG = { codec: "jpeg" }, STREAM = { codec: "h264" };
const LINKED = 60_000; // ms in which another tab takes what was fetched for it
const $ = (id) => document.getElementById(id);

const metrics = new Metrics();
const player = new Player($("canvas"), metrics);
const page = (window.lipsync = { state: "connecting", started: null, codec: null, metrics });
const asked = new URL(location.href).searchParams;
let connection = "connecting"; // or "open", "waiting"
let speaking = false; // the server shows an utterance
let playback = null; // a file on its way
let microphone = null;
let opening = 0; // counts attempts to open it: the last one counts
let repeats = false; // what is said was heard by the microphone
let typed = false; // a text was sent, and is not spoken yet
let again = null; // says the last file or sample once more
let asking = 0; // for sound that the device has taken

const session = new Session(
  {
    avatar: asked.get("avatar") ?? "",
    audio: { sample_rate: RATE, format: "s16le", channels: 1 },
    video: JPEG, // until it is known that the browser decodes a stream
    pace: "live",
    idle: true,
    echo_audio: true,
    pictures: !document.hidden,
  },
  {
    state: connectionChanged,
    media: (header) => player.media(header, RATE),
    message: told,
    bytes: (count) => metrics.bytes(count, performance.now()),
  },
);
const avatars = new Avatars((name) => session.avatar(name));

// ---------------------------------------------------------------- what the server says
function connectionChanged(state, detail) {
  connection = state;
  if (state !== "open") {
    speaking = typed = false;
    player.reset();
    metrics.forget();
    stopPlayback();
    if (page.started) avatars.show(page.started.avatar);
  }
  if (state === "open") {
    clearNotice("connection");
    if (!avatars.facts.length) loadAvatars();
  }
  if (state === "waiting") {
    notice(detail.cause, {}, () => session.connect(), "connection");
    if (detail.cause === "wrong-token") useToken("");
    if (detail.cause.endsWith("token")) $("token").value = "";
    if (detail.cause === "wrong-token") $("token").focus();
  }
  refresh();
}

function told(message) {
  if (message.type === "session.started") started(message);
  else if (message.type === "utterance.started") {
    if (player.hushed) return; // of what was interrupted
    speaking = true;
    typed = false;
    metrics.begin();
  } else if (message.type === "utterance.ended" || message.type === "session.interrupted") {
    speaking = false;
    metrics.lost += (message.dropped ?? 0) + (message.left_out ?? 0);
    if (message.dropped > message.frames / 2) notice("too-slow", {}, microphone ? null : again);
    if (message.type === "session.interrupted") player.interrupted();
  } else if (message.type === "session.overloaded") {
    typed = false;
    metrics.refused();
    stopPlayback();
    notice("overloaded", {}, again);
  } else if (message.type === "stats") {
    metrics.serverSkipped = message.skipped;
  } else if (message.type === "error") failed(message);
  refresh();
}

function started(message) {
  page.started = message;
  page.codec = message.codec ?? "jpeg";
  session.start.avatar = message.avatar;
  metrics.plannedMs = message.latency_ms;
  const [x, , width] = message.bounds; // narrow screens show the part around the face
  $("canvas").style.objectPosition = `${(((x + width / 2) / message.width) * 100).toFixed(1)}% 50%`;
  $("canvas").setAttribute("aria-label", `The avatar ${message.avatar}`);
  showCode(message.avatar);
  $("text-form").hidden = !message.text;
  if (!avatars.loading) avatars.show(message.avatar);
  else if (avatars.loading === message.avatar) player.awaitPicture(() => seen(message.avatar));
}

/** A picture of that avatar is on the screen. */
function seen(name) {
  if (avatars.loading === name) avatars.show(name);
}

function failed({ code, message }) {
  const detail = avatars.loading;
  if (code === "unsupported_video") {
    session.video(JPEG);
    if (detail) session.avatar(detail);
  } else if (detail) {
    // Whatever went wrong, the one that was chosen is not on its way any more.
    const instead = page.started.avatar;
    avatars.show(instead);
    if (code === "unknown_avatar") notice("unknown-avatar", { detail, instead });
    else notice("avatar-failed", { detail, instead, why: message });
  } else if (code === "unknown_avatar") {
    const wanted = session.start.avatar;
    session.start.avatar = "";
    avatars.show(avatars.default);
    notice("unknown-avatar", { detail: wanted, instead: avatars.default || "the default one" });
    session.connect();
  } else if (code === "speech_failed") {
    typed = false;
    notice("text-failed", { detail: message }, again);
  } else if (code === "engine_lost") notice("engine-lost", {}, again);
  else if (code === "overloaded") notice("overloaded", {}, again);
  else notice("server-error", { detail: message });
}

async function loadAvatars() {
  try {
    await avatars.load();
  } catch {
    if (connection === "open") notice("no-avatars", {}, loadAvatars);
    return;
  }
  avatars.show(page.started?.avatar || avatars.default);
}

// ---------------------------------------------------------------- what the page says
function refresh() {
  let state = connection === "open" ? "idle" : connection;
  if (state === "idle" && microphone) state = microphone.speaking ? "hearing" : "listening";
  if (connection === "open" && (speaking || playback)) state = "speaking";
  page.state = state;
  const [short, long] = STATES[state === "speaking" && repeats ? "repeating" : state];
  const open = connection === "open";
  setText("state-short", short);
  setText("state-text", long);
  setText("n-session", short);
  $("stage").dataset.state = state === "hearing" ? "listening" : state;
  for (const id of ["sample", "mic", "open", "say-text"]) $(id).disabled = !open;
  const stops = open && Boolean(speaking || typed || playback || microphone);
  if (!stops && document.activeElement === $("stop")) $("sample").focus(); // not lost with it
  $("stop").disabled = !stops;
  $("mic").setAttribute("aria-pressed", String(Boolean(microphone)));
  setText("mic-text", microphone ? "Mic is on" : "Microphone");
}

setInterval(() => {
  showNumbers(metrics, connection === "open");
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

// ---------------------------------------------------------------- sound of the device
/** Sound may be played behind a gesture alone; called by every one. */
async function wakeSound() {
  if (!player.context) player.useContext(new AudioContext({ sampleRate: RATE, latencyHint: "interactive" }));
  const context = player.context;
  if (context.state === "running") return;
  const patience = new Promise((resolve) => setTimeout(resolve, 400));
  await Promise.race([context.resume().catch(() => {}), patience]);
  if (context.state === "running") clearNotice("sound");
  else notice(asking ? "sound-taken" : "no-sound", {}, wakeSound, "sound");
}

/** A call, another program or the system has taken the sound, or given it back. */
player.onsound = (state) => {
  clearInterval(asking);
  asking = 0;
  if (state === "running") clearNotice("sound");
  else if (state !== "closed") {
    asking = setInterval(() => player.context.resume().catch(() => {}), ASKED);
    notice("sound-taken", {}, wakeSound, "sound");
  }
};

function askForSound() {
  if (asking) player.context.resume().catch(() => {});
}

// ---------------------------------------------------------------- speaking
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

/** What is said from now on comes from the microphone, or not: one's own voice is not played back. */
function saysFrom(source) {
  repeats = source === "microphone";
  player.audible = !repeats || playsBack();
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
    saysFrom("file");
    playback = new FilePlayback(pcm, RATE, sink);
    playback.start(); // a short one ends at once
  } catch (error) {
    if (!(error instanceof SourceError)) throw error;
    notice(error.word, { detail: name }, openFile);
  }
  refresh();
}

/** Have the server speak a text. */
async function sayText(text) {
  again = () => sayText(text);
  await wakeSound();
  if (connection !== "open") return;
  interrupt();
  closeMicrophone();
  clearNotice("");
  saysFrom("file");
  typed = true;
  session.say({ type: "utterance.say", text });
  refresh();
}

async function loadSample() {
  try {
    const answer = await ask("v1/sample.wav");
    if (!answer.ok) throw new Error(answer.statusText);
    return await answer.arrayBuffer();
  } catch {
    throw new SourceError("sample-missing");
  }
}

const sayFile = (file) => file && say(() => file.arrayBuffer(), file.name);
const openFile = () => $("file").click();

async function openMicrophone() {
  const mine = ++opening;
  await wakeSound();
  const opened = new Microphone(RATE, chosen(), {
    send: sink.send,
    end: sink.end,
    level(level) {
      showLevel(level);
      refresh();
    },
    lost() {
      closeMicrophone();
      notice("mic-lost", {}, openMicrophone);
      refresh();
    },
    deaf: openMicrophone,
    taken(away) {
      if (away) notice("mic-taken", {}, null, "microphone");
      else clearNotice("microphone");
      refresh();
    },
  });
  try {
    await opened.open();
  } catch (error) {
    if (!(error instanceof SourceError)) throw error;
    const retry = FAILURES[error.word][1] === "Try again";
    if (mine === opening) notice(error.word, { detail: error.detail }, retry ? openMicrophone : openFile);
    return;
  }
  if (mine !== opening) return opened.close(); // it was asked for something else meanwhile
  interrupt();
  closeMicrophone(); // pressed twice, or another one was picked
  clearNotice("");
  saysFrom("microphone");
  microphone = opened;
  showOptions(true, opened.device);
  refresh();
}

function closeMicrophone() {
  opening++;
  microphone?.close();
  microphone = null;
  showOptions(false);
  showLevel(0);
  clearNotice("microphone");
}

/** Barge in: nothing more of what is being said is shown, played or sent. */
function interrupt() {
  const busy = speaking || typed || playback || metrics.owed;
  stopPlayback();
  if (busy && session.open) {
    session.say({ type: "session.interrupt" });
    player.interrupt();
    metrics.forget();
  }
  speaking = typed = false;
}

function stop() {
  interrupt();
  closeMicrophone();
  refresh();
}

// ---------------------------------------------------------------- what is pressed
player.onkeyframe = () => page.codec === "h264" && session.keyFrame();
player.onundecoded = () => session.video(JPEG);
player.onspoken = (position, now) => metrics.shown(position, now);
$("sample").onclick = () => say(loadSample, "sample");
$("mic").onclick = () => {
  if (!microphone) return openMicrophone();
  closeMicrophone();
  refresh();
};
watchOptions(openMicrophone, () => repeats && saysFrom("microphone"));
$("open").onclick = openFile;
$("stop").onclick = stop;
$("mute").onclick = () => {
  player.mute(!player.muted);
  $("mute").setAttribute("aria-pressed", String(player.muted));
};
$("full").hidden = !document.fullscreenEnabled;
$("full").onclick = () => {
  const whole = document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen();
  whole.catch(() => {});
};
addEventListener("fullscreenchange", () => {
  $("full").setAttribute("aria-pressed", String(Boolean(document.fullscreenElement)));
});
$("file").onchange = () => {
  sayFile($("file").files[0]);
  $("file").value = "";
};
$("text-form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && connection === "open") sayText(text);
};
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  useToken($("token").value);
  session.connect();
};
for (const link of document.querySelectorAll("footer a")) {
  link.onclick = async (event) => {
    if (!hasToken()) return;
    // An address cannot show the token: what is behind it is fetched, and shown from here.
    event.preventDefault();
    const tab = open("", "_blank");
    try {
      const url = await blobOf(link.getAttribute("href"));
      if (tab) tab.location.replace(url);
      setTimeout(() => URL.revokeObjectURL(url), LINKED);
    } catch {
      tab?.close();
      notice("not-opened", { detail: link.textContent });
    }
  };
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("stop").disabled) stop();
});
for (const kind of ["pointerdown", "keydown", "focus"]) addEventListener(kind, askForSound, true);
document.addEventListener("visibilitychange", () => {
  session.pictures(!document.hidden);
  player.visible(!document.hidden);
  if (!document.hidden) askForSound();
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

showCode("");
if (!window.WebSocket || !window.AudioWorkletNode && window.isSecureContext || !window.createImageBitmap) {
  notice("too-old");
} else {
  if (asked.get("codec") !== "jpeg" && (await decodes())) session.start.video = STREAM;
  session.connect();
}
