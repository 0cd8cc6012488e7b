// SPDX-License-Identifier: Apache-2.0
// "Right now": the page's figures as people read them.

const NONE = "–";
const signed = (ms) => `${ms < 0 ? "−" : "+"}${Math.abs(ms).toFixed(0)} ms`;
const whole = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });

export function setText(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Show what was measured; some of it only where there is a connection. */
export function showNumbers(metrics, open) {
  const now = performance.now(), sync = metrics.sync();
  setText("n-fps", open ? metrics.fps(now).toFixed(0) : NONE);
  setText("n-latency", metrics.latencyMs === null ? NONE : `${metrics.latencyMs.toFixed(0)} ms`);
  setText("n-sync", sync.count ? signed(sync.median) : NONE);
  setText("n-dropped", String(metrics.dropped));
  setText("n-buffer", open ? `${metrics.bufferMs.toFixed(0)} ms` : NONE);
  setText("n-bandwidth", open ? `${whole(metrics.kbits(now))} kbit/s` : NONE);
}
