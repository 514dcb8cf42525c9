// Panel 12: change something, run again, and see where the answers part.

import { html, useEffect, useState } from "preact";
import { Panel, Token, Waiting, visible } from "learn/draw.js";
import { offline, requestOf, stream } from "learn/run.js";

export function TryPanel({ run, state, facts, models, head }) {
  const [kind, setKind] = useState("head");
  const [layer, setLayer] = useState(0);
  const [which, setWhich] = useState(0);
  const [other, setOther] = useState("What is a token?");
  const [model, setModel] = useState("");
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => (setLayer(head[0]), setWhich(head[1])), [head[0], head[1]]);
  useEffect(() => (setFound(null), setError("")), [run.prompt]);
  const nLayer = (facts && facts.n_layer) || 1, nHead = (facts && facts.n_head) || 1;
  const go = async () => {
    setBusy(true);
    setError("");
    const change = {
      head: { ablate: [{ layer, head: which }] },
      attn: { ablate: [{ layer, block: "attn" }] },
      ffn: { ablate: [{ layer, block: "ffn" }] },
      layer: { ablate: [{ layer, block: "layer" }] },
      patch: { patch: [{ name: "l_out", layer, row: -1, from: other }] },
      model: {},
    }[kind];
    const [path, body] = requestOf({ ...state, seed: run.prompt.seed }, facts, change);
    const parts = { sampler: true, prompt: "last", ...change };
    try {
      let last;
      for await (const now of stream(path, { ...body, model: kind === "model" ? model || models[0] : body.model, look: parts })) last = now;
      setFound(last);
    } catch (problem) {
      setError(problem.message);
    }
    setBusy(false);
  };
  const mine = run.tokens.filter((t) => t.sampled), theirs = found ? found.tokens.filter((t) => t.sampled) : [];
  let parted = 0;
  while (parted < mine.length && parted < theirs.length && mine[parted].id === theirs[parted].id) parted++;
  const same = found && parted === mine.length && parted === theirs.length;
  const side = (tokens) => tokens.map((t, i) => html`<span class=${found && i === parted && !same ? "said answer parted" : "plain"}>${found && i === parted && !same ? visible(t.text) : t.text}</span>`);
  return html`<${Panel} id="try" title="Try it: switch something off" code="engine/look/request.py: Ablation, Patch" lesson="6, a bug"
    what="The best way to learn what a part does is to take it away. The same prompt and the same random numbers, with one thing changed."
    look=${found && (same ? "Nothing changed: the model can do without it here." : `The answers part at token ${parted + 1} of the answer.`)}
    not="Other parts were trained with this one present; what breaks without it shows that it is used, not that it alone does the work. Other kernels: numllama run --kernels exact.">
    ${offline ? html`<${Waiting} text="Needs a server: numllama learn." />` : !run.stats ? html`<${Waiting} />` : html`
      <div class="controls"><label>Change <select value=${kind} onChange=${(e) => setKind(e.target.value)}>
        <option value="head">without one head</option><option value="attn">without one layer's attention</option><option value="ffn">without one layer's feed-forward</option>
        <option value="layer">without a layer</option><option value="patch">patch a layer's output from another prompt</option>${models.length > 1 ? html`<option value="model">another model, or another format of it</option>` : null}</select></label>
      ${kind !== "model" && html`<label>Layer <select value=${layer} onChange=${(e) => setLayer(+e.target.value)}>${Array.from({ length: nLayer }, (_, i) => html`<option value=${i}>${i}</option>`)}</select></label>`}
      ${kind === "head" && html`<label>Head <select value=${which} onChange=${(e) => setWhich(+e.target.value)}>${Array.from({ length: nHead }, (_, i) => html`<option value=${i}>${i}</option>`)}</select></label>`}
      ${kind === "patch" && html`<label>Other prompt <input type="text" value=${other} onInput=${(e) => setOther(e.target.value)} /></label>`}
      ${kind === "model" && html`<label>Model <select value=${model || models[0]} onChange=${(e) => setModel(e.target.value)}>${models.map((m) => html`<option value=${m}>${m}</option>`)}</select></label>`}
      <button type="button" disabled=${busy} onClick=${go}>${busy ? "Running" : "Run changed"}</button></div>
      ${error && html`<${Waiting} error=${error} />`}
      <div class="two"><div><h3>As it is</h3><p class="text" data-plain>${side(mine)}</p></div>
        ${found && html`<div><h3>${found.prompt.changed.join("; ") || found.model}</h3><p class="text" data-changed>${side(theirs)}</p></div>`}</div>`}
  </${Panel}>`;
}
