// Panel 7: the feed-forward block's strongest neurons.

import { html, useEffect, useState } from "preact";
import { Bar, Panel, Token, Waiting, number } from "learn/draw.js";
import { completeNeurons } from "learn/run.js";

export function FeedForwardPanel({ run, token, step, why, facts, neuronLayer, setNeuronLayer }) {
  const [, redraw] = useState(0);
  const at = Math.max(0, token - 1), nLayer = step?.residual ? step.residual.stream.length - 1 : 0;
  const il = neuronLayer >= 0 && neuronLayer < nLayer ? neuronLayer : nLayer - 1;
  const rows = nLayer ? run.steps.get(at).residual.neurons.filter(([l]) => l === il) : [], next = run.tokens[at + 1];
  const experts = facts && facts.tensors.some((t) => /_exps/.test(t.name));
  useEffect(() => {
    if (nLayer && !rows.length && !experts && run.prompt.run && run.stats) completeNeurons(run, at, il).then(() => redraw((k) => k + 1), () => {});
  }, [step, il]);
  const most = Math.max(1e-9, ...rows.map((r) => Math.abs(r[2]))), adds = Math.max(1e-9, ...rows.map((r) => Math.abs(r[3])));
  const best = rows.reduce((b, r) => (!b || r[3] > b[3] ? r : b), null);
  return html`<${Panel} id="feedforward" title="Feed-forward: the strongest neurons" code="engine/model/decoder.py: gated" lesson="3, attention and the cache" names="ffn_swiglu, ffn_out"
    what="A feed-forward block is a row of detectors: each neuron compares the stream with a pattern and, as far as it fits, adds a vector of its own."
    look=${best && next && html`Neuron ${best[1]} of layer ${il} speaks most for <${Token} text=${next.text} />: it adds ${number(best[3])} to the logit.`}
    not="The largest activations, not all: many small ones together often do more. A neuron rarely has a single meaning.">
    ${experts ? html`<${Waiting} text="This model has a mixture of experts: each token goes through a few of them, and their neurons are not shown here." />`
      : !nLayer ? html`<${Waiting} text=${why} />` : html`<label>Layer <select value=${il} onChange=${(e) => setNeuronLayer(+e.target.value)}>${Array.from({ length: nLayer }, (_, l) => html`<option value=${l}>${l}</option>`)}</select></label>
        ${rows.length ? html`<div class="scroll"><table data-neurons><thead><tr><th scope="col">neuron</th><th scope="col">activation</th><th scope="col">adds to the logit</th></tr></thead><tbody>
        ${rows.map(([, j, a, d]) => html`<tr><th scope="row">${j}</th><td class="num"><${Bar} value=${a} most=${most} negative=${a < 0} label="" /> ${number(a)}</td>
          <td class="num"><${Bar} value=${d} most=${adds} negative=${d < 0} label="" /> ${number(d)}</td></tr>`)}</tbody></table></div>` : html`<${Waiting} text=${`The neurons of layer ${il} are being computed.`} />`}`}
  </${Panel}>`;
}
