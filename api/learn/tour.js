// The guided tour: a stop at the spine and at each panel; arrow keys move, except in what has arrow keys of its own; Escape ends it.

import { html, useEffect, useRef } from "preact";

export const STOPS = [
  ["spine", "Every token of the prompt and the answer. Click one, or use the arrow keys: all panels show how that token came to be."],
  ["template", "Begin with the text. What you typed is only a part of what the model reads."],
  ["tokens", "Move the slider from 0: the word starts as single characters and grows by merges."],
  ["weights", "What the model knows are these numbers. Take a block and see how few bits it has."],
  ["attention", "Pick heads one after the other. Some look at the token before, some at a name far back, some at the start."],
  ["feedforward", "Between the looks back, each position thinks for itself, with a few strong neurons."],
  ["residual", "All of it is added up. Which block speaks for the next token, which against?"],
  ["lens", "Read the sum after each layer: when does the model know?"],
  ["sampler", "Knowing is not yet saying. Raise the temperature and draw again."],
  ["cache", "Why is the next token so quick? Because nothing is computed twice."],
  ["time", "And where do the milliseconds go?"],
  ["students", "Ask two questions at once and see who waits for whom."],
  ["try", "Now break something. Which head can the model not do without?"],
];

export function Tour({ stop, go, end }) {
  const ref = useRef(null);
  const [id, text] = STOPS[stop];
  useEffect(() => {
    const target = document.getElementById(id);
    if (target) target.scrollIntoView({ block: "center", behavior: "instant" });
    document.querySelectorAll(".toured").forEach((e) => e.classList.remove("toured"));
    if (target) target.classList.add("toured");
    ref.current.focus();
  }, [stop]);
  useEffect(() => {
    const key = (event) => {
      const isOwn = event.target.closest?.("input, select, .tokens"); // arrow keys move a slider, or choose another token
      if (event.key === "Escape") end();
      else if (isOwn) return;
      else if (event.key === "ArrowRight") go((now) => Math.min(now + 1, STOPS.length - 1));
      else if (event.key === "ArrowLeft") go((now) => Math.max(now - 1, 0));
      else return;
      event.preventDefault();
      event.stopPropagation();
    };
    window.addEventListener("keydown", key, true);
    return () => window.removeEventListener("keydown", key, true);
  }, []);
  useEffect(() => () => document.querySelectorAll(".toured").forEach((e) => e.classList.remove("toured")), []);
  return html`<aside class="tour" role="region" aria-label="Tour" tabindex="-1" ref=${ref}>
    <p aria-live="polite"><b>${stop + 1} of ${STOPS.length}</b> ${text}</p>
    <p><button type="button" disabled=${stop === 0} onClick=${() => go(stop - 1)}>Back</button>
      ${stop < STOPS.length - 1 ? html`<button type="button" onClick=${() => go(stop + 1)}>Next</button>` : null}
      <button type="button" onClick=${end}>End the tour</button></p>
  </aside>`;
}
