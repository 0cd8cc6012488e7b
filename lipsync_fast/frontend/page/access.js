// SPDX-License-Identifier: Apache-2.0
// The token that a server may ask for, and requests that show it: in a header, and to the WebSocket,
// which takes none from a page, among the subprotocols. It is never part of an address: addresses
// end up in histories, logs and messages. It is kept as long as the tab is open.

const KEPT = "lipsync-fast.token " + new URL(".", document.baseURI).pathname;
const PATIENCE = 20_000;
let token = taken() || stored();

/** A token that came with the page's address is taken over, and taken out of it. */
function taken() {
  const here = new URL(location.href), found = here.searchParams.get("token");
  if (found === null) return "";
  here.searchParams.delete("token");
  history.replaceState(history.state, "", here);
  if (found) keep(found);
  return found;
}

function stored() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return ""; // the browser keeps nothing for this page
  }
}

function keep(value) {
  try {
    if (value) sessionStorage.setItem(KEPT, value);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // It has to be typed again then.
  }
}

export const hasToken = () => token !== "";

/** Show that token from now on; none where empty. */
export function useToken(value) {
  token = value.trim();
  keep(token);
}

/** Subprotocols to offer: a server that asks for a token finds it behind the dot. */
export function protocols() {
  if (!token) return ["lipsync.v1"];
  const bytes = String.fromCharCode(...new TextEncoder().encode(token));
  const word = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return ["lipsync.v1", `lipsync.token.${word}`];
}

export const address = (path) => new URL(path, document.baseURI);

/** fetch, with the token. */
export function ask(path, options = {}) {
  // What is typed may hold letters that no header takes: they are shown by the bytes of their UTF-8.
  const word = String.fromCharCode(...new TextEncoder().encode(token));
  const headers = token ? { Authorization: `Bearer ${word}` } : {};
  return fetch(address(path), { signal: AbortSignal.timeout(PATIENCE), ...options, headers });
}

/** An address within this page of what a request gives: for pictures and other tabs. */
export async function blobOf(path) {
  const answer = await ask(path);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return URL.createObjectURL(await answer.blob());
}
