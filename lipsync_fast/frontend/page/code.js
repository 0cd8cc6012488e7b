// SPDX-License-Identifier: Apache-2.0
// "Use it from code": what to copy, with this server's address. A token is never part of it.

import { address, hasToken } from "./access.js";
import { notice } from "./notices.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 2000; // ms

function python(avatar) {
  const url = address("ws");
  url.protocol = url.protocol.replace("http", "ws");
  const [imports, token] = hasToken() ? ["asyncio, os, sys, wave", ', token=os.environ["LIPSYNC_TOKEN"]'] : ["asyncio, sys, wave", ""];
  return `import ${imports}

import lipsync_fast
from lipsync_fast.client import SessionOverloaded, UtteranceEnded, VideoFrame

SERVER = ${JSON.stringify(url.href)}

async def speak(session, pcm):
    await session.send(pcm)  # any amount, as it comes
    await session.end_utterance()

async def main(path):
    with wave.open(path) as file:  # 16 bits, one channel or two
        sound = {"sample_rate": file.getframerate(), "channels": file.getnchannels()}
        pcm = file.readframes(file.getnframes())
    avatar = lipsync_fast.connect(SERVER, avatar=${JSON.stringify(avatar)}, idle=False, **sound${token})
    async with avatar as session, asyncio.TaskGroup() as tasks:
        tasks.create_task(speak(session, pcm))
        async for event in session:
            if isinstance(event, VideoFrame):
                print(f"{float(event.pts):.2f} s: a JPEG of {len(event.jpeg)} bytes")
            elif isinstance(event, UtteranceEnded):
                break
            elif isinstance(event, SessionOverloaded):
                raise SystemExit(event.message)

asyncio.run(main(sys.argv[1]))
`;
}

function shell() {
  const quoted = `'${address("v1/sample.wav").href.replaceAll("'", "'\\''")}'`;
  if (!hasToken()) return `curl -fO ${quoted}\npython3 speak.py sample.wav\n`;
  return `export LIPSYNC_TOKEN='…'  # the server's
curl -fO -H "Authorization: Bearer $LIPSYNC_TOKEN" ${quoted}
python3 speak.py sample.wav
`;
}

/** Show what to run for the avatar that is seen. */
export function showCode(avatar) {
  for (const [id, text] of [["python", python(avatar)], ["shell", shell()]]) {
    if ($(id).textContent !== text) $(id).textContent = text;
  }
}

async function copy(button) {
  const code = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Not over https, or not allowed: as a hand would do it.
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) return notice("not-copied");
  }
  button.textContent = "Copied";
  $("copied").textContent = `${button.dataset.copies} copied`;
  setTimeout(() => {
    button.textContent = "Copy";
    $("copied").textContent = "";
  }, SHOWN);
}

for (const button of document.querySelectorAll("[data-copies]")) button.onclick = () => copy(button);
