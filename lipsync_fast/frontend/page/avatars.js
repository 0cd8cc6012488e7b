// SPDX-License-Identifier: Apache-2.0
// The cards of avatars: which there are, which is shown, which is on its way.

import { address, ask, blobOf, hasToken } from "./access.js";

const $ = (id) => document.getElementById(id);

export class Avatars {
  /** `onchoice(name)`: somebody wants to see that one. */
  constructor(onchoice) {
    this.onchoice = onchoice;
    this.default = "";
    this.facts = []; // as in /v1/avatars
    this.loading = ""; // the one that was chosen and is not seen yet
    this.pictures = []; // addresses of thumbnails
  }

  /** Read which there are; throws where that cannot be done. */
  async load() {
    const answer = await ask("v1/avatars");
    if (!answer.ok) throw new Error(answer.statusText);
    const { default: first, avatars } = await answer.json();
    this.default = first;
    this.facts = avatars;
    for (const picture of this.pictures.splice(0)) URL.revokeObjectURL(picture);
    $("avatars").replaceChildren(...avatars.map((facts) => this.card(facts)));
  }

  card({ name, thumbnail }) {
    const label = document.createElement("label"), text = document.createElement("span");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value: name });
    const image = Object.assign(document.createElement("img"), { alt: "" });
    const frame = document.createElement("div");
    label.className = "avatar";
    frame.className = "picture";
    frame.append(image);
    text.textContent = name;
    input.onchange = () => this.choose(name);
    label.append(input, frame, text);
    if (hasToken()) this.fetch(thumbnail, image);
    else Object.assign(image, { loading: "lazy", src: address(thumbnail.slice(1)) });
    return label;
  }

  /** A picture's address cannot show the token; a request can. */
  async fetch(thumbnail, image) {
    const url = await blobOf(thumbnail.slice(1)).catch(() => "");
    if (!url) return; // its name is enough
    this.pictures.push(url);
    image.src = url;
  }

  choose(name) {
    this.mark(name);
    this.onchoice(name);
  }

  /** What is on its way; none where empty. */
  mark(loading) {
    this.loading = loading;
    for (const input of document.querySelectorAll("#avatars input")) {
      const waits = loading !== "" && input.value === loading;
      input.closest("label").toggleAttribute("data-loading", waits);
      input.setAttribute("aria-busy", String(waits));
      input.nextElementSibling.dataset.says = waits ? "Loading…" : "";
      if (waits) input.checked = true;
    }
  }

  /** That one is shown: nothing is on its way any more. */
  show(name) {
    this.mark("");
    for (const input of document.querySelectorAll("#avatars input")) input.checked = input.value === name;
    const facts = this.facts.find((a) => a.name === name);
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
}
