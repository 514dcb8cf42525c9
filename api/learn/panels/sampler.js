// Panel 8: the sampler's ledger, and sliders that draw again from the same logits.

import { html, useEffect, useState } from "preact";
import { Bar, Panel, Token, Waiting, number, percent } from "learn/draw.js";
import { again, floats, offline } from "learn/run.js";
import { ledger, softmax } from "learn/sampler.js";

const SLIDERS = [
  ["temperature", 0, 2, 0.05, "divides the logits: above 1 flatter, towards 0 only the likeliest"],
  ["top_k", 0, 100, 1, "keeps the k likeliest; 0 keeps all"],
  ["top_p", 0.05, 1, 0.01, "keeps the likeliest until they have this much probability; 1 keeps all"],
  ["min_p", 0, 1, 0.01, "drops tokens less likely than this part of the likeliest"],
  ["typical_p", 0.05, 1, 0.01, "keeps those whose surprise is nearest to the average; 1 keeps all"],
  ["draw", 0, 0.999, 0.001, "the random number in 0 to 1 that picks the token"],
];

const WHOLE = 40000, MOST = 4096; // the sliders work with all logits of so large a vocabulary; of a larger one, with the largest

/** Candidates from the logits of a step: all, or the largest and how many are missing. */
export function candidatesOf(logits, texts) {
  if (logits.f32) return { c: [...floats(logits.f32)].map((logit, id) => ({ id, text: texts.get(id), logit, place: id })), missing: 0 };
  return { c: logits.top.map(([id, text, logit]) => ({ id, text, logit, place: id })), missing: logits.n_rest };
}

/** The probability of the tokens that are not among the largest logits. */
function restOf({ top, log_sum_rest: rest }) {
  const most = Math.max(rest, ...top.slice(0, 1).map(([, , logit]) => logit));
  const sum = top.reduce((n, [, , logit]) => n + Math.exp(logit - most), 0);
  return Math.exp(rest - most) / (sum + Math.exp(rest - most));
}

export function SamplerPanel({ run, token, step, facts }) {
  const at = Math.max(0, token - 1);
  const used = step && step.sampler ? Object.fromEntries(step.sampler.map((s) => [s.name, s.parameter])) : null;
  const [changed, setChanged] = useState(null);
  const [all, setAll] = useState(null);
  useEffect(() => (setChanged(null), setAll(null)), [at, run.prompt]);
  if (!step || !step.sampler || !step.logits) {
    return html`<${Frame}><${Waiting} text=${run.tokens.length ? "This token is of the prompt: it was given, not drawn. Choose one of the answer." : undefined} /></${Frame}>`;
  }
  const drawn = step.sampler[step.sampler.length - 1], next = run.tokens[token];
  const texts = new Map(step.logits.top ? step.logits.top.map(([id, text]) => [id, text]) : []);
  const { c, missing } = candidatesOf(all || step.logits, texts);
  const o = changed || { temperature: used.temperature ?? 0.8, top_k: used.top_k ?? 0, top_p: used.top_p ?? 1, min_p: used.min_p ?? 0, typical_p: used.typical_p ?? 1, draw: drawn.parameter };
  const redrawn = changed && ledger(c, o, o.draw);
  const left = missing && restOf(all || step.logits);
  const needsAll = missing > 0 && (o.top_k <= 0 || o.top_k > c.length);
  const set = (name, value) => {
    setChanged({ ...o, [name]: value });
    if (!offline && missing > 0 && !all && run.prompt.run) again(run.prompt.run, at, { logits: facts.n_vocab > WHOLE ? MOST : -1 }).then((found) => setAll(found.logits), () => {});
  };
  const before = step.sampler[0].top, likeliest = before[0];
  const probs = redrawn && softmax(redrawn.last.map((x) => x.logit));
  const shown = redrawn && redrawn.last.map((x, i) => ({ ...x, p: probs[i] })).sort((a, b) => b.p - a.p).slice(0, 8);
  return html`<${Frame} look=${html`Of ${step.sampler[0].n.toLocaleString("en")} tokens ${step.sampler[step.sampler.length - 2].n} were left; the draw ${drawn.parameter.toFixed(3)} picked <${Token} text=${next.text} />${likeliest[0] === next.id ? ", the likeliest." : html`, though <${Token} text=${likeliest[1]} /> was likelier.`}`}>
    <div class="scroll tall"><table data-ledger><caption>The ledger of this token</caption><thead><tr><th scope="col">step</th><th scope="col">setting</th><th scope="col">left</th><th scope="col">keeps</th><th scope="col">likeliest</th></tr></thead><tbody>
      ${step.sampler.map((s, i) => {
        const before = step.sampler[i - 1];
        const isIdle = before && before.n === s.n && before.top[0][2] === s.top[0][2] && s.name !== "dist";
        return html`<tr class=${isIdle ? "idle" : ""}><th scope="row">${s.name}</th><td class="num">${s.name === "logits" ? "" : number(s.parameter)}</td><td class="num">${s.n.toLocaleString("en")}</td><td class="num">${percent(s.kept)}</td>
          <td class="guesses">${isIdle ? "no change" : s.top.slice(0, 4).map(([, text, , p]) => html`<span class="guess"><${Token} text=${text} /> ${percent(p)}</span>`)}</td></tr>`;
      })}</tbody></table></div>
    <h3>Draw again from the same logits</h3>
    <div class="sliders">${SLIDERS.map(([name, low, high, by, hint]) => html`<label class="slide" title=${hint}><span>${name} <output>${number(o[name])}</output></span>
      <input type="range" name=${name} min=${low} max=${high} step=${by} value=${o[name]} onInput=${(e) => set(name, +e.target.value)} aria-describedby=${`hint-${name}`} /><small id=${`hint-${name}`}>${hint}</small></label>`)}</div>
    ${redrawn ? html`<p class="note" aria-live="polite" data-redrawn=${redrawn.chosen.id}>It would be <${Token} text=${redrawn.chosen.text ?? `token ${redrawn.chosen.id}`} />, out of ${redrawn.last.length}. <button type="button" onClick=${() => setChanged(null)}>As it was</button></p>
      <table data-shown><caption>What the draw chooses from</caption><thead><tr><th scope="col">token</th><th scope="col">probability</th></tr></thead><tbody>${shown.map((x) => html`<tr class=${x.id === redrawn.chosen.id ? "on" : ""}><td><${Token} text=${x.text ?? `token ${x.id}`} /></td><td class="num"><${Bar} value=${x.p} most=${1} label="" /> ${percent(x.p)}</td></tr>`)}</tbody></table>
      ${needsAll ? html`<p class="not" data-missing=${missing}>Among the ${c.length.toLocaleString("en")} largest logits: ${missing.toLocaleString("en")} others, with ${percent(left)} of the probability, are left out here.</p>` : null}`
      : html`<p class="note">Move a slider: the model does not run again.</p>`}
  </${Frame}>`;
}

const Frame = ({ look, children }) => html`<${Panel} id="sampler" title="The sampler's ledger" code="engine/sampling/sampler.py: Sampler.sample" lesson="4, sampling" names="result_output"
  what="The model gives a number for every token; the sampler drops most of them, step by step, and draws one of the rest."
  look=${look} not="Penalties and a grammar, where a request has them, count in the ledger above but not in the sliders, which begin at the model's own logits.">${children}</${Panel}>`;
