// Panel 4: what comes next, layer by layer.

import { html } from "preact";
import { Bar, Panel, Token, Waiting, percent } from "learn/draw.js";

export function LensPanel({ run, token, step, why }) {
  const at = Math.max(0, token - 1);
  const lens = step && step.lens;
  const first = lens ? lens.rank.findIndex((_, il) => lens.rank.slice(il).every((r) => r === 0)) : -1;
  const next = run.tokens[at + 1];
  const look = lens && next && (first >= 0
    ? html`<${Token} text=${next.text} /> is the first guess from layer ${first} on${lens.rank[0] ? `; after layer 0, ${lens.rank[0]} ${lens.rank[0] === 1 ? "token was" : "tokens were"} before it` : ""}.`
    : html`<${Token} text=${next.text} /> follows, though ${lens.rank[lens.rank.length - 1]} ${lens.rank[lens.rank.length - 1] === 1 ? "token was" : "tokens were"} likelier at the end.`);
  return html`<${Panel} id="lens" title="What comes next, layer by layer" code="engine/look/collector.py: Collector._lens" lesson="3, attention and the cache" names="l_out, result_norm, result_output"
    what="The logit lens: after each layer, the residual stream goes through the last norm and the output matrix, as if the model ended there."
    look=${look}
    not="A raw lens drifts: early layers keep their stream in coordinates that the output matrix was not trained to read. A strange guess there need not be the layer's opinion.">
    ${lens ? html`<div class="scroll"><table data-lens><thead><tr><th scope="col">layer</th><th scope="col">likeliest tokens</th><th scope="col">p of next</th><th scope="col">rank</th></tr></thead>
      <tbody>${lens.top.map((top, il) => html`<tr><th scope="row">${il}</th>
        <td class="guesses">${top.slice(0, lens.top.length > 8 ? 2 : 5).map(([id, text, p]) => html`<span class=${next && id === next.id ? "guess right" : "guess"}><${Token} text=${text} /> ${percent(p)}</span>`)}</td>
        <td class="num"><${Bar} value=${lens.p_next[il]} most=${1} label="" /> ${percent(lens.p_next[il])}</td><td class="num">${lens.rank[il] + 1}</td></tr>`)}</tbody></table></div>`
      : html`<${Waiting} text=${why} />`}
  </${Panel}>`;
}
