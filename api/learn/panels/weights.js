// Panel 5: the file: tensors by bytes, and one block of weights.

import { html, useEffect, useState } from "preact";
import { Bar, Panel, Waiting, bytes, number } from "learn/draw.js";
import { block, offline } from "learn/run.js";

/** Group tensors by layer, the others by their name. */
export function groups(tensors) {
  const found = new Map();
  for (const t of tensors) {
    const layer = /^blk\.(\d+)\./.exec(t.name);
    const key = layer ? `layer ${layer[1]}` : t.name.replace(/\.weight$/, "");
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(t);
  }
  return [...found];
}

export function WeightsPanel({ facts }) {
  const [name, setName] = useState("");
  const [index, setIndex] = useState(0);
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const tensor = facts && (facts.tensors.find((t) => t.name === name) || facts.tensors.find((t) => /attn_q|ffn_up/.test(t.name)) || facts.tensors[0]);
  useEffect(() => {
    let isCurrent = true;
    setError("");
    const kept = offline && offline.block;
    if (!tensor) return;
    if (offline) setFound(kept);
    else block(facts.name, tensor.name, Math.min(index, tensor.blocks - 1)).then((b) => isCurrent && setFound(b), (e) => isCurrent && setError(e.message));
    return () => (isCurrent = false);
  }, [tensor, index]);
  if (!facts) return html`<${Frame}><${Waiting} text="Choose a model." /></${Frame}>`;
  const rows = groups(facts.tensors), most = Math.max(...rows.map(([, list]) => list.reduce((n, t) => n + t.bytes, 0)));
  const formats = Object.entries(facts.formats).sort((a, b) => b[1].bytes - a[1].bytes);
  const bits = (8 * facts.bytes) / facts.n_weight;
  return html`<${Frame} look=${`${facts.n_weight.toLocaleString("en")} weights in ${bytes(facts.bytes)}: ${bits.toFixed(2)} bits each. As F32 they would take ${bytes(4 * facts.n_weight)}.`}>
    <ul class="legend">${formats.map(([f, about], i) => html`<li><span class=${`swatch f${i % 6}`}></span>${f}: ${about.n} tensors, ${bytes(about.bytes)}</li>`)}</ul>
    <div class="map" role="group" aria-label="Tensors by bytes">
      ${rows.map(([label, list]) => html`<div class="layer"><span class="label">${label}</span><span class="lane">
        ${list.map((t) => html`<button type="button" class=${`swatch f${formats.findIndex(([f]) => f === t.format) % 6}`} aria-pressed=${t === tensor} aria-label=${`${t.name}, ${t.format}, ${t.shape.join(" x ")}, ${bytes(t.bytes)}`}
          title=${`${t.name} ${t.format} ${t.shape.join(" x ")} ${bytes(t.bytes)}`} style=${{ width: `${Math.max(0.6, (100 * t.bytes) / most)}%` }} onClick=${() => { setName(t.name); setIndex(0); }}></button>`)}</span></div>`)}
    </div>
    <h3>One block of <code>${found ? found.tensor : tensor.name}</code></h3>
    ${!offline && html`<label>Block <input type="number" min="0" max=${tensor.blocks - 1} value=${index} onInput=${(e) => setIndex(Math.max(0, Math.min(tensor.blocks - 1, +e.target.value || 0)))} /> of ${tensor.blocks.toLocaleString("en")}</label>`}
    ${error && html`<${Waiting} error=${error} />`}
    ${found && html`<${Block} found=${found} />`}
  </${Frame}>`;
}

function Block({ found }) {
  const most = Math.max(1e-12, ...found.numbers.map(Math.abs));
  const field = (i) => found.fields.findIndex((f) => i >= f.offset && i < f.offset + f.bytes);
  return html`<p class="note">${found.format}: ${found.block_bytes} bytes for ${found.block_size} weights, ${number(found.bits_per_weight)} bits each;
      ${found.fields.map((f, i) => html` <span class=${`field g${i % 4}`}>${f.name}</span> ${f.bytes} B`)}</p>
    <p class="hex bytes" data-bytes>${found.bytes.slice(0, 320).map((b, i) => html`<span class=${`g${Math.max(0, field(i)) % 4}`}>${b.toString(16).padStart(2, "0")}</span>`)}</p>
    <div class="numbers" data-numbers=${JSON.stringify(found.numbers)} role="img" aria-label=${`The numbers: ${found.numbers.slice(0, 8).map((x) => number(x)).join(", ")} and so on`}>
      ${found.numbers.slice(0, 256).map((x) => html`<span title=${number(x, 5)} class=${x < 0 ? "minus" : ""} style=${{ height: `${Math.max(1, (34 * Math.abs(x)) / most)}px` }}></span>`)}</div>
    <table><caption>The same numbers rounded to other formats</caption><thead><tr><th scope="col">format</th><th scope="col">bits</th><th scope="col">root mean square error</th><th scope="col"><span class="hidden">error as a bar</span></th></tr></thead><tbody>
      ${Object.entries(found.rounded).map(([name, r]) => html`<tr><th scope="row">${name}</th><td class="num">${number(r.bits_per_weight)}</td><td class="num">${number(r.rms_error)}</td>
        <td><${Bar} value=${r.rms_error} most=${Math.max(1e-12, ...Object.values(found.rounded).map((o) => o.rms_error))} label="" /></td></tr>`)}</tbody></table>`;
}

const Frame = ({ look, children }) => html`<${Panel} id="weights" title="The file, and one block of weights" code="kernels/quants/block32.py" lesson="2, weights and quantization"
  what="A GGUF file holds tensors in blocks: a few weights share one scale and keep only small integers of their own. A click on a bar takes a block of that tensor."
  look=${look} not="The errors are those of rounding once more what the file has: how far it is from the weights before quantization, the file does not know.">${children}</${Panel}>`;
