// The spine: every token of prompt and answer.  The chosen one is the token whose making all panels show.

import { html, useLayoutEffect, useMemo, useRef } from "preact";
import { Still, number, percent, visible } from "learn/draw.js";

/** The role of each token: a message's, or the template's, by where its text lies in the prompt. */
export function rolesOf(prompt) {
  let at = 0;
  return prompt.tokens.map(([, text, kind]) => {
    const bare = text.startsWith(" ") ? text.slice(1) : text; // a blank that the tokenizer added
    const near = prompt.text.slice(at, at + text.length + 4);
    const found = [text, bare].map((t) => [near.indexOf(t), t.length]).find(([i]) => i >= 0);
    const [start, length] = found && text !== "" ? [at + found[0], found[1]] : [at, 0];
    at = start + length;
    if (kind === "control") return "special";
    if (kind === "image") return "image";
    const span = prompt.spans.find(([a, b]) => start < b && start + length > a);
    return span ? span[2] : "template";
  });
}

/** Show the weights of a row of attention under the tokens; null takes them away. */
export function glow(row) {
  document.querySelectorAll("#spine .token").forEach((button, i) => {
    const shadow = row && row[i] > 0.01 ? `inset 0 -${Math.ceil(1 + 7 * row[i])}px 0 var(--glow)` : "";
    if (button.glow !== shadow) button.style.boxShadow = button.glow = shadow;
  });
}

export function Spine({ run, token, choose }) {
  const roles = useMemo(() => (run.prompt ? rolesOf(run.prompt) : []), [run.prompt]);
  const chosen = useRef(null);
  useLayoutEffect(() => {
    const button = chosen.current;
    if (button && button.scrollIntoView) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [token]);
  const move = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(run.tokens.length - 1, token + by));
    choose(next);
    const button = event.currentTarget.querySelectorAll("button")[next];
    if (button) button.focus();
  };
  const of = (i, step) => {
    const before = step && step.sampler && step.sampler[0].top.find(([id]) => id === run.tokens[i].id);
    return before ? `, ${percent(before[3])} before sampling` : "";
  };
  return html`<nav class="spine" aria-label="Tokens">
    <div class="tokens" role="group" aria-label="Tokens of prompt and answer; arrow keys move" onKeyDown=${move}>
      ${run.tokens.map((t, i) => {
        const role = t.sampled ? "answer" : roles[i] || "template";
        const step = run.steps.get(i - 1), isChosen = i === token;
        return html`<${Still} key=${i} when=${[t, role, step?.sampler, isChosen]} make=${() => {
          const name = `token ${i}: ${visible(t.text)}, ${role}${of(i, step)}`;
          return html`<button type="button" class=${`token ${role}`} ref=${isChosen ? chosen : undefined} aria-pressed=${isChosen} aria-label=${name} title=${name}
            tabindex=${isChosen ? 0 : -1} onClick=${() => choose(i)}>${visible(t.text)}</button>`;
        }} />`;
      })}
    </div>
    <${Times} run=${run} />
  </nav>`;
}

function Times({ run }) {
  if (!run.stats) return html`<p class="times" role="status">${run.prompt ? "computing" : ""}</p>`;
  const s = run.stats, ms = (ns) => number((ns || 0) / 1e6);
  const perToken = s.eval_count > 1 ? `, ${ms(s.eval_duration / (s.eval_count - 1))} ms each with all that is shown here` : "";
  return html`<p class="times" role="status">
    <span>prefill ${s.prompt_eval_count} tokens ${ms(s.prompt_eval_duration)} ms</span>
    <span>decode ${s.eval_count} tokens ${ms(s.eval_duration)} ms${perToken}</span>
    ${run.prompt.changed.length ? html`<span class="changed">changed: ${run.prompt.changed.join("; ")}</span>` : null}
  </p>`;
}
