// SPDX-License-Identifier: Apache-2.0
// The one notice of the page: a failure in a sentence, and the way on. It lies over the picture, so
// that no button moves under a finger.

import { FAILURES, sentence } from "./words.js";

const $ = (id) => document.getElementById(id);
const WITH_TOKEN = ["token", "wrong-token"];

/**
 * Show a failure. `run` is what its button does, where it has one; `topic` tells apart what may be
 * cleared by itself.
 */
export function notice(word, values = {}, run = null, topic = "") {
  const [, label] = FAILURES[word];
  $("notice-text").textContent = sentence(word, values);
  $("notice").dataset.topic = topic;
  $("notice").dataset.word = word;
  $("notice-action").hidden = !label || !run;
  $("notice-action").textContent = label ?? "";
  $("notice-action").onclick = () => {
    hide();
    run();
  };
  $("token-form").hidden = !WITH_TOKEN.includes(word);
  $("token").setAttribute("aria-invalid", String(word === "wrong-token"));
  $("notice").hidden = false;
}

/** The notice of that topic is true no more. */
export function clearNotice(topic) {
  if ($("notice").dataset.topic === topic) hide();
}

function hide() {
  const held = $("notice").contains(document.activeElement);
  $("notice").hidden = true;
  delete $("notice").dataset.word;
  if (held) $("controls").focus(); // else the keyboard would begin at the page's top again
}

$("notice-close").onclick = hide;
