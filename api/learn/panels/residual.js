// Panel 6: the residual stream: what each block adds to the chosen token's logit.

import { html } from "preact";
import { Bar, Panel, Token, Waiting, number } from "learn/draw.js";

export function ResidualPanel({ run, token, step, why }) {
  const at = Math.max(0, token - 1);
  const r = step && step.residual, next = run.tokens[at + 1];
  const names = r ? ["embedding", ...r.stream.slice(1).flatMap((_, il) => [`attention ${il}`, `feed-forward ${il}`])] : [];
  const most = r ? Math.max(...r.adds.map(Math.abs)) : 1, widest = r ? Math.max(...r.norms) : 1;
  const best = r ? r.adds.indexOf(Math.max(...r.adds)) : 0;
  return html`<${Panel} id="residual" title="The residual stream" code="engine/model/decoder.py: layer_by_layer" lesson="3, attention and the cache" names="embd, ffn_inp, l_out"
    what="Nothing is replaced on the way through the layers: each block reads the stream and adds to it. So the logit of the next token is a sum, and each block has a part of it."
    look=${r && next && html`For <${Token} text=${next.text} />, ${names[best]} adds most: ${number(r.adds[best])} of ${number(r.adds.reduce((a, b) => a + b, 0))}.`}
    not="A block may write what a later one reads, and so matter far more than its own part; the parts are measured with the last norm's scale held fixed. A soft-cap of logits comes after the sum.">
    ${r ? html`<div class="scroll"><table data-residual><thead><tr><th scope="col">block</th><th scope="col">length of what it adds</th><th scope="col">its part of the logit</th></tr></thead>
      <tbody>${names.map((name, i) => html`<tr><th scope="row">${name}</th><td class="num"><${Bar} value=${r.norms[i]} most=${widest} label="" /> ${number(r.norms[i])}</td>
        <td class="num"><${Bar} value=${r.adds[i]} most=${most} negative=${r.adds[i] < 0} label="" /> ${number(r.adds[i])}</td></tr>`)}</tbody></table></div>`
      : html`<${Waiting} text=${why} />`}
  </${Panel}>`;
}
