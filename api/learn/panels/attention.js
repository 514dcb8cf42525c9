// Panel 3: attention, all heads small and one large.

import { html, useEffect, useState } from "preact";
import { HeatMap, Panel, Token, Waiting, argmax, ink, percent, useStep } from "learn/draw.js";

export function AttentionPanel({ run, token, head, setHead, setGlow, choose }) {
  const [over, setOver] = useState(null);
  const at = Math.max(0, token - 1);
  const [step, error] = useStep(run, at, "attention");
  const heads = (step && step.heads) || (run.prompt && run.prompt.heads) || [];
  const i = Math.max(0, heads.findIndex(([il, h]) => il === head[0] && h === head[1]));
  const row = step && step.attention[i];
  useEffect(() => setGlow(row || null), [row]);
  if (!step) {
    return html`<${Frame}><${Waiting} error=${error} text=${run.stats && !run.prompt?.run ? "The window has shifted: keys are gone." : undefined} /></${Frame}>`;
  }
  const n = run.tokens.length - 1, columns = Math.max(1, ...heads.map(([, h]) => h + 1));
  const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 5);
  const rowsOf = (which) => Array.from({ length: n }, (_, p) => run.steps.get(p)?.attention?.[which]);
  const isFull = run.steps.get(0)?.attention && n <= 300;
  const small = isFull ? Math.max(0.25, Math.min(1.5, 72 / n)) : 0;
  const cell = Math.max(1, Math.min(16, Math.floor(330 / n)));
  const [il, h] = heads[i];
  const version = `${run.prompt.job} ${run.steps.size} ${ink("--accent")}`;
  const hover = (from, to) => {
    const looks = from >= 0 && run.steps.get(from)?.attention?.[i];
    setOver(looks && to < looks.length ? [from, to, looks[to]] : null);
    setGlow(looks || row);
  };
  const strongest = argmax(row);
  return html`<${Frame} look=${html`After ${visibleToken(run, at)}, head ${il}.${h} looks mostly at ${visibleToken(run, strongest)} (${percent(row[strongest])}).`}>
    <div class=${isFull ? "heads" : "heads many"} role="group" aria-label="Heads, layer by layer" style=${{ gridTemplateColumns: `repeat(${columns}, minmax(24px, 1fr))` }}>
      ${heads.map(([l, k], j) => html`<button type="button" key=${j} class="head" aria-pressed=${j === i} aria-label=${`layer ${l}, head ${k}`} title=${`layer ${l}, head ${k}`} onClick=${() => setHead([l, k])}>
        ${isFull ? html`<${HeatMap} rows=${rowsOf(j)} columns=${n} cell=${small} mark=${-1} version=${version} label=${`weights of layer ${l}, head ${k}`} />`
          : html`<span class="strip" style=${{ opacity: 0.15 + 0.85 * step.attention[j][argmax(step.attention[j])] }}></span>`}
        ${columns <= 8 ? html`<small>${l}.${k}</small>` : null}</button>`)}
    </div>
    <div class="two">
      <figure><div class="scroll">${isFull ? html`<${HeatMap} rows=${rowsOf(i)} columns=${n} cell=${cell} mark=${at} version=${`${version} ${i}`} onHover=${hover} onPick=${(from) => choose(from + 1)} label=${`Attention of layer ${il}, head ${h}: a row for each token, a column for each token it looks at`} />`
        : html`<${HeatMap} rows=${[row]} columns=${row.length} cell=${Math.max(1, Math.min(16, 330 / row.length))} mark=${-1} version=${`${version} ${i} ${at}`} label=${`Weights of the chosen token in layer ${il}, head ${h}`} />`}</div>
        <figcaption>layer ${il}, head ${h}: ${over ? html`${visibleToken(run, over[0])} looks at ${visibleToken(run, over[1])}: ${percent(over[2])}` : isFull ? "down, who looks; across, at whom. A click chooses a row." : "the chosen token's row; larger models show a row at a time"}</figcaption></figure>
      <table data-attention><caption>The five strongest keys</caption><thead><tr><th scope="col">place</th><th scope="col">token</th><th scope="col">weight</th></tr></thead>
        <tbody>${order.map((j) => html`<tr><td>${j}</td><td>${visibleToken(run, j)}</td><td class="num">${percent(row[j])}</td></tr>`)}</tbody></table>
    </div>
  </${Frame}>`;
}

const visibleToken = (run, i) => html`<${Token} text=${run.tokens[i] ? run.tokens[i].text : ""} />`;

const Frame = ({ look, children }) => html`<${Panel} id="attention" title="Attention" code="kernels/attention.py: attention_numpy" lesson="3, attention and the cache"
  what="Each head of each layer mixes the values of earlier tokens into the current one, weighted by how well its query matches their keys. Under the tokens above, the bars show the chosen head's weights."
  look=${look} not="A large weight says where a head reads, not what it takes from there or whether it matters; switch the head off to see that. The first token often gets the weight that a head does not need.">${children}</${Panel}>`;
