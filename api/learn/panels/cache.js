// Panel 9: the KV cache: slots by positions, bytes, and what it saves.

import { html } from "preact";
import { Bar, Panel, Waiting, bytes, number } from "learn/draw.js";

export function CachePanel({ run }) {
  const c = run.prompt && run.prompt.cache;
  if (!c) return html`<${Frame}><${Waiting} text=${run.prompt ? "This model has no cache." : undefined} /></${Frame}>`;
  const n = run.tokens.length, nPrompt = run.prompt.tokens.length, used = Math.max(0, n - 1);
  const withCache = used - c.reused;
  let without = 0;
  for (let i = nPrompt; i < n; i++) without += i;
  const held = c.held.map((h, i) => (i === c.slot ? 0 : h));
  const size = used * c.bytes_per_position - Math.max(0, used - c.window_positions) * c.window_bytes_per_position;
  const part = (k) => `${(100 * k) / c.n_ctx}%`;
  const reuse = c.reused ? `${c.reused} of the prompt's ${nPrompt} tokens were found in the cache.`
    : c.reusable ? `${c.reusable} of the prompt's ${nPrompt} tokens lay in the cache already; they were computed again, because this page shows each of them.` : "Nothing of this prompt was in the cache.";
  return html`<${Frame} look=${`${used} positions hold ${bytes(size)}. ${reuse}`}>
    <div class="slots" role="img" aria-label=${`${c.n_slot} slots of ${c.n_ctx} positions; this answer has slot ${c.slot}`}>
      ${Array.from({ length: c.n_slot }, (_, i) => html`<div class="layer"><span class="label">slot ${i}</span><span class="lane track">
        ${i === c.slot ? html`<span class="cell prompt" style=${{ width: part(nPrompt) }}></span><span class="cell answer" style=${{ width: part(used - nPrompt) }}></span>`
          : html`<span class="cell other" style=${{ width: part(held[i] || 0) }}></span>`}</span></div>`)}</div>
    <ul class="legend"><li><span class="swatch cell prompt"></span>prompt</li><li><span class="swatch cell answer"></span>answer</li><li><span class="swatch cell other"></span>other conversations</li></ul>
    <table data-cache><tbody>
      <tr><th scope="row">type</th><td>${c.type}, ${c.n_layer} layers</td></tr>
      <tr><th scope="row">one position</th><td>${bytes(c.bytes_per_position)} of keys and values</td></tr>
      ${c.window_bytes_per_position ? html`<tr><th scope="row">windows</th><td>${bytes(c.window_bytes_per_position)} of it in layers that keep the last ${c.window_positions.toLocaleString("en")} positions</td></tr>` : null}
      <tr><th scope="row">reserved</th><td>${bytes(c.bytes)}: ${c.n_slot} slots of ${c.n_ctx.toLocaleString("en")} positions</td></tr>
      <tr><th scope="row">reused</th><td data-reused>${c.reused} tokens</td></tr>
      <tr><th scope="row">computed with it</th><td class="num"><${Bar} value=${withCache} most=${Math.max(without, withCache)} label="" /> <span data-with>${withCache.toLocaleString("en")}</span> positions</td></tr>
      <tr><th scope="row">without it</th><td class="num"><${Bar} value=${without} most=${Math.max(without, withCache)} label="" negative /> <span data-without>${without.toLocaleString("en")}</span> positions, ${number(without / Math.max(1, withCache))} times as many</td></tr></tbody></table>
  </${Frame}>`;
}

const Frame = ({ look, children }) => html`<${Panel} id="cache" title="The KV cache" code="engine/model/cache.py; engine/run/generate.py: generate_uncached" lesson="3, attention and the cache" names="cache_k_l0, cache_v_l0"
  what="Keys and values of a token depend on the tokens up to it alone, so they are kept: each new token is computed once, and a prompt that begins like an earlier one starts where they part."
  look=${look} not="Counts of positions, not time: attention itself grows with the length either way, and a large batch of positions costs less each than one alone.">${children}</${Panel}>`;
