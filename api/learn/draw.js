// What panels share: tokens as text, bars, heat maps on canvas, parts that stay as they are, and the frame of a panel.

import { Component, html, useLayoutEffect, useMemo, useRef } from "preact";
import { offline } from "learn/run.js";

export const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.1 ? `${(100 * p).toFixed(1)} %` : `${(100 * p).toFixed(2)} %`);
export const number = (x, digits = 3) => (Number.isFinite(x) ? Number(x.toPrecision(digits)).toString() : String(x));
export const bytes = (n) => (n < 1e4 ? `${n} B` : n < 1e7 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 2 ** 20).toFixed(1)} MiB`);

/** Show blanks and line ends of a token. */
export const visible = (text) => (text === "" ? "∅" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣"));

export const Token = ({ text }) => html`<span class="tok">${visible(text)}</span>`;

export function Bar({ value, most, label, negative }) {
  const width = most ? (100 * Math.abs(value)) / most : 0;
  return html`<span class=${negative ? "bar minus" : "bar"} title=${label} style=${{ backgroundSize: `${Math.min(100, width)}% 100%` }}></span>`;
}

/** The colours of the page, read from its style sheet. */
export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A part that is rendered again only when one of `when` changes. */
export class Still extends Component {
  shouldComponentUpdate(next) {
    return next.when.some((x, i) => x !== this.props.when[i]);
  }
  render({ make }) {
    return make();
  }
}

const channels = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** Reduce `rows` to at most `columns` numbers each, and at most `height` rows: the largest of each cell. */
function pooled(rows, n, columns, height) {
  const across = Math.ceil(n / columns), down = Math.ceil(rows.length / height);
  if (across === 1 && down === 1) return [rows, n];
  const cells = Array.from({ length: Math.ceil(rows.length / down) }, () => new Float32Array(Math.ceil(n / across)));
  rows.forEach((row, i) => {
    const cell = cells[Math.floor(i / down)];
    for (let j = 0; row && j < row.length; j++) cell[Math.floor(j / across)] = Math.max(cell[Math.floor(j / across)], row[j]);
  });
  return [cells, Math.ceil(n / across)];
}

/** Draw rows of numbers in 0 .. 1 on a canvas of `width` by `height` pixels.  `mark`: row, or row and column, to outline. */
function drawMap(canvas, { rows, columns, width, height, mark }) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const [cells, n] = pooled(rows, columns, canvas.width, canvas.height);
  const ground = channels(ink("--paper")), colour = channels(ink("--accent"));
  const small = document.createElement("canvas");
  small.width = n;
  small.height = Math.max(1, cells.length);
  const image = new ImageData(small.width, small.height);
  cells.forEach((row, i) => {
    for (let j = 0; j < n; j++) {
      const part = row && row[j] >= 0.002 ? Math.min(1, row[j] ** 0.6) : 0;
      for (let k = 0; k < 3; k++) image.data[4 * (i * n + j) + k] = ground[k] + part * (colour[k] - ground[k]);
      image.data[4 * (i * n + j) + 3] = 255;
    }
  });
  small.getContext("2d").putImageData(image, 0, 0);
  const g = canvas.getContext("2d"), x = canvas.width / n, y = canvas.height / small.height;
  g.imageSmoothingEnabled = false;
  g.drawImage(small, 0, 0, canvas.width, canvas.height);
  g.fillStyle = ink("--paper");
  if (x > 6 * ratio) for (let j = 1; j < n; j++) g.fillRect(Math.round(j * x) - 1, 0, 1, canvas.height);
  if (y > 6 * ratio) for (let i = 1; i < cells.length; i++) g.fillRect(0, Math.round(i * y) - 1, canvas.width, 1);
  const [row, column] = [mark].flat();
  if (row >= 0 && row < rows.length) {
    const tall = canvas.height / rows.length, wide = canvas.width / columns;
    g.strokeStyle = ink("--strong");
    g.lineWidth = 1.5 * ratio;
    const [left, right] = column === undefined ? [0, canvas.width] : [column * wide, wide];
    g.strokeRect(left + 0.75, row * tall + 0.75, right - 1.5, Math.max(tall, 2) - 1);
  }
}

/** A heat map to point at.  `version` changes with the numbers; the rest as drawMap. */
export function HeatMap({ rows, columns, width, height, mark, label, version, onPick, onHover }) {
  const ref = useRef(null);
  useLayoutEffect(() => drawMap(ref.current, { rows, columns, width, height, mark }), [version, columns, rows.length, width, height, String(mark)]);
  const at = (use) => use && ((event) => {
    const box = ref.current.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    use(Math.min(rows.length - 1, Math.floor(y * rows.length)), Math.min(columns - 1, Math.floor(x * columns)));
  });
  return html`<canvas ref=${ref} role="img" aria-label=${label} onClick=${at(onPick)} onMouseMove=${at(onHover)} onMouseLeave=${onHover && (() => onHover(-1, -1))}></canvas>`;
}

/** A heat map to look at: an image, since browsers compose each canvas as a layer of its own, at some cost a frame. */
export function HeatImage({ rows, columns, width, height, label, version }) {
  const url = useMemo(() => {
    const canvas = document.createElement("canvas");
    drawMap(canvas, { rows, columns, width, height });
    return canvas.toDataURL();
  }, [version, columns, rows.length, width, height]);
  return html`<img src=${url} alt=${label} width=${width} height=${height} />`;
}

/** A link to a file of the code, "FILE" or "FILE: NAME, ...", at the first name. */
function Source({ place }) {
  const [file, names] = place.split(": "), name = names && names.split(", ")[0].split(".").pop();
  const at = name ? `#:~:text=${encodeURIComponent(name)}` : "";
  return offline ? html`<code>${place}</code>` : html`<a href=${`/learn/code/${file}${at}`} target="_blank" rel="noopener"><code>${place}</code></a>`;
}

/** The frame of a panel: what it is, what to look for in this run, where the code and the lesson are, its values in llama.cpp, what it leaves out. */
export function Panel({ id, title, what, look, code, lesson, names, not, children }) {
  return html`<section class="panel" id=${id} aria-labelledby=${`${id}-title`} tabindex="-1">
    <h2 id=${`${id}-title`}>${title}</h2>
    <p class="what">${what}</p>
    ${look && html`<p class="look">${look}</p>`}
    <div class="body">${children}</div>
    <p class="foot"><span>Code: ${code.split("; ").map((one, i) => html`${i ? "; " : ""}<${Source} place=${one} />`)}</span>
      <span>Course: ${offline ? lesson : html`<a href=${`/learn/lesson/${lesson[0]}`} target="_blank" rel="noopener">${lesson}</a>`}</span>
      ${names && html`<span>In llama.cpp: <code data-names>${names}</code></span>`}</p>
    ${not && html`<p class="not">${not}</p>`}
  </section>`;
}

export const Waiting = ({ error, text }) => html`<p class="waiting" role="status">${error || text || "Run a prompt to see this."}</p>`;
