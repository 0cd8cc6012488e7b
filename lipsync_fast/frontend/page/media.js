// SPDX-License-Identifier: Apache-2.0
// The header of lipsync.v1's binary messages: 40 bytes, little-endian, then the payload.

export const FRAME = 1, AUDIO = 3, H264 = 4;
export const IDLE = 1, FIRST = 2, LAST = 4, REPEATED = 8, KEY = 16;
const MAGIC = 0x3146534c; // "LSF1"

/** Header and payload of a message, or null where it is none that this page knows. */
export function parse(buffer) {
  if (buffer.byteLength < 40) return null;
  const view = new DataView(buffer);
  const length = view.getUint16(6, true), size = view.getUint32(36, true);
  if (view.getUint32(0, true) !== MAGIC || length < 40) return null;
  if (buffer.byteLength !== length + size) return null;
  return {
    type: view.getUint8(4),
    flags: view.getUint8(5),
    sequence: view.getUint32(8, true),
    utterance: view.getUint32(12, true),
    pts: Number(view.getBigUint64(16, true)) / 1000, // milliseconds from the session's start
    avatarFrame: view.getUint32(24, true), // the avatar's own picture under this one
    payload: new Uint8Array(buffer, length, size),
  };
}
