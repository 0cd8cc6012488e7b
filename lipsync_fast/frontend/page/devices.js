// SPDX-License-Identifier: Apache-2.0
// Which microphone, and whether one's own voice is played back: asked while the microphone is on,
// and remembered.

const $ = (id) => document.getElementById(id);
const DEVICE = "lipsync-fast.microphone", VOICE = "lipsync-fast.voice-back";

/** The microphone that was picked last, "" for the device's own choice. */
export const chosen = () => read(DEVICE);
export const playsBack = () => $("voice-back").checked;

function read(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return ""; // the browser keeps nothing for this page
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It has to be picked again then.
  }
}

/** Show the options of a microphone that is on, or none. `used` is the one that is. */
export async function showOptions(on, used = "") {
  $("options").hidden = !on;
  $("hint").hidden = on;
  if (!on || !navigator.mediaDevices?.enumerateDevices) return;
  const all = await navigator.mediaDevices.enumerateDevices();
  // "communications" is another name for one of the others.
  const found = all.filter((d) => d.kind === "audioinput" && d.deviceId && d.deviceId !== "communications");
  const option = (d, i) => new Option(d.label || `Microphone ${i + 1}`, d.deviceId);
  $("device").replaceChildren(...found.map(option));
  $("device").value = found.some((d) => d.deviceId === used) ? used : (found[0]?.deviceId ?? "");
  $("device-label").hidden = found.length < 2;
}

/** `pick()` is called when another microphone is wanted, `back()` when the other choice is. */
export function watchOptions(pick, back) {
  $("voice-back").checked = read(VOICE) === "1";
  $("voice-back").onchange = () => {
    write(VOICE, playsBack() ? "1" : "");
    back();
  };
  $("device").onchange = () => {
    write(DEVICE, $("device").value);
    pick();
  };
  navigator.mediaDevices?.addEventListener?.("devicechange", () => {
    if (!$("options").hidden) showOptions(true, $("device").value);
  });
}
