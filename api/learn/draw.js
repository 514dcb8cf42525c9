// What panels share: tokens as text, bars, heat maps on canvas, and the frame of a panel.

import { html, useEffect, useRef, useState } from "preact";
import { again, matrix } from "learn/run.js";

export const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.1 ? `${(100 * p).toFixed(1)} %` : `${(100 * p).toFixed(2)} %`);
export const number = (x, digits = 3) => (Number.isFinite(x) ? Number(x.toPrecision(digits)).toString() : String(x));
export const bytes = (n) => (n < 1e4 ? `${n} B` : n < 1e7 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 2 ** 20).toFixed(1)} MiB`);

/** Show blanks and line ends of a token. */
export const visible = (text) => (text === "" ? "∅" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣"));

export const Token = ({ text }) => html`<span class="tok">${visible(text)}</span>`;

export function Bar({ value, most, label, negative }) {
  const width = most ? (100 * Math.abs(value)) / most : 0;
  return html`<span class="bar" title=${label}><span class=${negative ? "fill minus" : "fill"} style=${{ width: `${Math.min(100, width)}%` }}></span></span>`;
}

/** The colours of the page, read from its style sheet. */
export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A heat map: rows of numbers in 0 .. 1, a cell each.  `mark`: row to outline; `version`: changes with the numbers. */
export function HeatMap({ rows, columns, cell, mark, label, version, onPick, onHover }) {
  const ref = useRef(null);
  useEffect(() => {
    const canvas = ref.current, ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, columns * cell), height = Math.max(1, rows.length * cell);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.fillStyle = ink("--paper");
    g.fillRect(0, 0, width, height);
    g.fillStyle = ink("--accent");
    rows.forEach((row, i) => {
      for (let j = 0; row && j < row.length; j++) {
        if (row[j] < 0.002) continue;
        g.globalAlpha = Math.min(1, row[j] ** 0.6);
        g.fillRect(j * cell, i * cell, Math.max(1, cell - (cell > 6 ? 1 : 0)), Math.max(1, cell - (cell > 6 ? 1 : 0)));
      }
    });
    g.globalAlpha = 1;
    if (mark >= 0 && mark < rows.length) {
      g.strokeStyle = ink("--strong");
      g.lineWidth = 1.5;
      g.strokeRect(0.75, mark * cell + 0.75, width - 1.5, Math.max(cell, 2) - 1);
    }
  }, [version, columns, rows.length, cell, mark]);
  const at = (use) => use && ((event) => {
    const box = ref.current.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    use(Math.min(rows.length - 1, Math.floor(y * rows.length)), Math.min(columns - 1, Math.floor(x * columns)));
  });
  return html`<canvas ref=${ref} role="img" aria-label=${label} onClick=${at(onPick)} onMouseMove=${at(onHover)} onMouseLeave=${onHover && (() => onHover(-1, -1))}></canvas>`;
}

/** The step at `at` with its part `key`; a step that the run lacks is asked for, with all parts, and kept in the run. */
export function useStep(run, at, key) {
  const [, redraw] = useState(0);
  const [error, setError] = useState("");
  const step = run.steps.get(at);
  const missing = !step || (key && !step[key]);
  useEffect(() => {
    let isCurrent = true;
    setError("");
    if (missing && run.prompt && run.prompt.run && run.stats && at >= 0 && at < run.tokens.length - 1) {
      const pending = (run.pending ||= new Map());
      const want = { attention: "*", lens: 5, residual: true, neurons: 2, sampler: true, logits: 64 };
      if (!pending.has(at)) pending.set(at, again(run.prompt.run, at, want));
      pending.get(at).then(
        (found) => {
          merge(run, at, found);
          if (isCurrent) redraw((n) => n + 1);
        },
        (problem) => isCurrent && setError(problem.message),
      );
    }
    return () => (isCurrent = false);
  }, [run, at, missing, run.stats]);
  return [missing ? null : step, error];
}

function merge(run, at, found) {
  if (found.attention && !Array.isArray(found.attention)) found.attention = matrix(found.attention);
  run.steps.set(at, { ...found, ...(run.steps.get(at) || {}) });
}

/** The frame of a panel: what it is, what to look for in this run, where the code and the lesson are, what it leaves out. */
export function Panel({ id, title, what, look, code, lesson, not, children }) {
  return html`<section class="panel" id=${id} aria-labelledby=${`${id}-title`} tabindex="-1">
    <h2 id=${`${id}-title`}>${title}</h2>
    <p class="what">${what}</p>
    ${look && html`<p class="look">${look}</p>`}
    <div class="body">${children}</div>
    <p class="foot"><span>Code: <code>${code}</code></span><span>Course: ${lesson}</span></p>
    ${not && html`<p class="not">${not}</p>`}
  </section>`;
}

export const Waiting = ({ error, text }) => html`<p class="waiting" role="status">${error || text || "Run a prompt to see this."}</p>`;

/** The index of the largest number. */
export const argmax = (row) => row.reduce((best, x, i) => (x > row[best] ? i : best), 0);
