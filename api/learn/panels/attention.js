// Panel 3: attention, all heads small and one large.

import { html, useEffect, useLayoutEffect, useState } from "preact";
import { HeatImage, HeatMap, Panel, Still, Token, Waiting, ink, percent, visible } from "learn/draw.js";
import { completeLayer, maps, offline, weightsOf } from "learn/run.js";

const SIDE = 330; // pixels of the large map
const LABEL = 13; // pixels of a token beside it

export function AttentionPanel({ run, token, step, why, head, setHead, setGlow, choose }) {
  const [over, setOver] = useState(null);
  const [, redraw] = useState(0);
  const at = Math.max(0, token - 1), n = run.tokens.length - 1;
  const isWhole = Boolean(run.prompt?.heads.length);
  const [il, h] = isWhole ? run.prompt.heads.find(([l, k]) => l === head[0] && k === head[1]) || run.prompt.heads[0] : head;
  const row = weightsOf(run, at, il, h);
  useLayoutEffect(() => setGlow(row || null), [row]); // before the browser paints, so that it paints once
  useEffect(() => {
    if (step?.peaks && !row) completeLayer(run, at, il).then(() => redraw((k) => k + 1), () => {});
  }, [step, row]);
  if (!step || !(isWhole ? row : step.peaks)) {
    return html`<${Frame}><${Waiting} text=${why} /></${Frame}>`;
  }
  const shared = { run, at, n, il, h, row, setHead, choose, version: `${run.prompt.job} ${isWhole ? run.steps.size : ""} ${ink("--accent")}` };
  shared.hover = (from, to, weight, about = "") => {
    setOver(weight === undefined ? null : { from, to, weight, about });
    setGlow(weightsOf(run, from, il, h) || row);
  };
  const order = row ? [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 5) : [], strongest = order[0];
  const caption = over && html`${visibleToken(run, over.from)} looks at ${visibleToken(run, over.to)}: ${over.about}${percent(over.weight)}`;
  return html`<${Frame} look=${row && html`After ${visibleToken(run, at)}, head ${il}.${h} looks mostly at ${visibleToken(run, strongest)} (${percent(row[strongest])}).`}>
    <${isWhole ? Small : Large} ...${shared} caption=${caption} step=${step} />
    ${row && html`<table data-attention><caption>The five strongest keys</caption><thead><tr><th scope="col">place</th><th scope="col">token</th><th scope="col">weight</th></tr></thead>
      <tbody>${order.map((j) => html`<tr><td>${j}</td><td>${visibleToken(run, j)}</td><td class="num">${percent(row[j])}</td></tr>`)}</tbody></table>`}
  </${Frame}>`;
}

/** The maps of a run that has all weights: a small one of every head, and the chosen one. */
function Small({ run, at, n, il, h, setHead, choose, hover, version, caption }) {
  const heads = run.prompt.heads, columns = Math.max(1, ...heads.map(([, k]) => k + 1));
  const rowsOf = (l, k) => Array.from({ length: n }, (_, p) => weightsOf(run, p, l, k));
  const rows = rowsOf(il, h), side = Math.min(SIDE, 16 * n);
  const isOneLayer = heads.every(([l]) => l === heads[0][0]);
  const isPart = offline && heads.length < offline.model.n_layer * offline.model.n_head;
  return html`${isPart ? html`<p class="note">This file has ${heads.length} of ${offline.model.n_layer * offline.model.n_head} heads: all of them would be too large for it.</p>` : null}
    <div class=${isOneLayer ? "heads layer-heads" : columns <= 8 ? "heads" : "heads many"} role="group" aria-label="Heads, layer by layer" style=${isOneLayer ? {} : { gridTemplateColumns: `repeat(${columns}, minmax(24px, 1fr))` }}>
      ${heads.map(([l, k]) => html`<${HeadButton} key=${`${l}.${k}`} layer=${l} head=${k} isChosen=${l === il && k === h} setHead=${setHead} isNamed=${columns <= 8 || isOneLayer}>
        <${HeatImage} rows=${rowsOf(l, k)} columns=${n} width=${72} height=${72} version=${version} label=${`weights of layer ${l}, head ${k}`} /></${HeadButton}>`)}
    </div>
    <figure><${Axes} run=${run} rows=${[...rows.keys()]} columns=${[...rows.keys()]} side=${side}><${HeatMap} rows=${rows} columns=${n} width=${side} height=${side} mark=${at} version=${`${version} ${il} ${h}`} onHover=${(i, j) => hover(i, j, rows[i]?.[j])} onPick=${(i) => choose(i + 1)}
      label=${`Attention of layer ${il}, head ${h}: a row for each token, a column for each token it looks at`} /></${Axes}>
      <figcaption>layer ${il}, head ${h}: ${caption || "down, who looks; across, at whom. A click chooses a row."}</figcaption></figure>`;
}

/** The maps of a large model: each head's largest weight, then the maps of one layer, computed when they are seen. */
function Large({ run, at, n, il, h, row, step, setHead, choose, hover, version, caption }) {
  const { weight, place } = step.peaks, nHead = weight[0].length, cell = SIDE / nHead;
  const [peak, setPeak] = useState(null);
  const [small, smallError] = useMaps(run, il, null), [large, largeError] = useMaps(run, il, h);
  const choice = (name, value, count, pick) => html`<label>${name} <select value=${value} onChange=${(e) => pick(+e.target.value)}>${Array.from({ length: count }, (_, i) => html`<option value=${i}>${i}</option>`)}</select></label>`;
  const error = smallError || largeError, rows = large && large.maps[0], columns = large && large.shape[2];
  const about = large && (large.every > 1 || large.width > 1)
    ? `${n} tokens are too many for a row each: every ${ordinal(large.every)} has one${large.width > 1 ? `, and a cell is the largest weight of ${large.width} keys` : ""}.` : "";
  return html`<p class="controls">${choice("Layer", il, weight.length, (l) => setHead([l, h]))} ${choice("Head", h, nHead, (k) => setHead([il, k]))}</p>
    <figure><${HeatMap} rows=${weight} columns=${nHead} width=${SIDE} height=${Math.min(16, Math.max(5, cell)) * weight.length} mark=${[il, h]} version=${`${version} peaks ${at}`} onPick=${(l, k) => setHead([l, k])} onHover=${(l, k) => setPeak(l < 0 ? null : [l, k])}
      label=${`The largest weight of each of ${nHead} heads in ${weight.length} layers, a row for each layer`} />
      <figcaption>${peak ? html`head ${peak[0]}.${peak[1]} looks mostly at ${visibleToken(run, place[peak[0]][peak[1]])}: ${percent(weight[peak[0]][peak[1]])}` : "a row for each layer, a cell for each head: how much of its attention goes to one token. A click chooses a head."}</figcaption></figure>
    ${small ? html`<div class="heads layer-heads" role="group" aria-label=${`Heads of layer ${il}`}>
      ${small.maps.map((map, k) => html`<${HeadButton} key=${k} layer=${il} head=${k} isChosen=${k === h} setHead=${setHead}>
        <${HeatImage} rows=${map} columns=${small.shape[2]} width=${48} height=${48} version=${`${version} ${il}`} label=${`weights of layer ${il}, head ${k}`} /></${HeadButton}>`)}</div>` : html`<${Waiting} error=${error} text=${`The maps of layer ${il} are being computed.`} />`}
    ${large ? html`<figure data-map><${Axes} run=${run} rows=${large.rows} columns=${Array.from({ length: columns }, (_, j) => j * large.width)} side=${SIDE}><${HeatMap} rows=${rows} columns=${columns} width=${SIDE} height=${SIDE} mark=${Math.min(rows.length - 1, Math.round(at / large.every))} version=${`${version} ${il} ${h}`}
      onPick=${(i) => choose(large.rows[i] + 1)} onHover=${(i, j) => hover(large.rows[i], j * large.width, j * large.width > large.rows[i] ? undefined : rows[i]?.[j], "about ")}
      label=${`Attention of layer ${il}, head ${h}: a row for every ${ordinal(large.every)} token, a column for ${large.width} tokens it looks at`} /></${Axes}>
      <figcaption>layer ${il}, head ${h}: ${caption || `down, who looks; across, at whom. A click chooses a row. ${about}`}</figcaption></figure>` : null}
    ${row && html`<figure><${HeatMap} rows=${[row]} columns=${row.length} width=${SIDE} height=${14} version=${`${version} ${il} ${h} ${at}`} label=${`Weights of the chosen token in layer ${il}, head ${h}`} />
      <figcaption>the chosen token's own row</figcaption></figure>`}`;
}

/** A map with tokens on both axes, as many as there is room for; `rows` and `columns` are their places. */
function Axes({ run, rows, columns, side, children }) {
  const labels = (places, edge) => {
    const every = Math.ceil((places.length * LABEL) / side);
    return places.filter((_, i) => i % every === 0).map((place, k) => html`<span style=${{ [edge]: `${(100 * (k * every + 0.5)) / places.length}%` }}>${visible(run.tokens[place]?.text ?? "")}</span>`);
  };
  return html`<div class="axes">
    <${Still} when=${[run.prompt, rows.length, columns.length]} make=${() => html`<div class="across" aria-hidden="true">${labels(columns, "left")}</div><div class="down" aria-hidden="true">${labels(rows, "top")}</div>`} />
    ${children}</div>`;
}

function HeadButton({ layer, head, isChosen, setHead, isNamed, children }) {
  const name = `layer ${layer}, head ${head}`;
  return html`<button type="button" class="head" aria-pressed=${isChosen} aria-label=${name} title=${name} onClick=${() => setHead([layer, head])}>${children}${isNamed ? html`<small>${layer}.${head}</small>` : null}</button>`;
}

/** The maps of a layer, or of a head; asked for once the panel is seen.  The last ones stay until others are there. */
function useMaps(run, layer, head) {
  const [found, setFound] = useState([null, ""]);
  const isSeen = useSeen("attention");
  useEffect(() => {
    let isCurrent = true;
    if (isSeen && run.stats && run.prompt?.run) maps(run, layer, head).then((got) => isCurrent && setFound([got, ""]), (problem) => isCurrent && setFound([null, problem.message]));
    return () => (isCurrent = false);
  }, [isSeen, run.prompt, run.stats, layer, head]);
  return found[0] && (found[0].layer !== layer || (head !== null && found[0].heads[0] !== head)) ? [null, ""] : found;
}

/** Whether the panel `id` has been on the screen. */
function useSeen(id) {
  const [isSeen, setSeen] = useState(false);
  useEffect(() => {
    const observer = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && setSeen(true));
    observer.observe(document.getElementById(id));
    return () => observer.disconnect();
  }, []);
  return isSeen;
}

const ordinal = (n) => (n === 1 ? "" : n === 2 ? "2nd" : n === 3 ? "3rd" : `${n}th`);
const visibleToken = (run, i) => html`<${Token} text=${run.tokens[i] ? run.tokens[i].text : ""} />`;

const Frame = ({ look, children }) => html`<${Panel} id="attention" title="Attention" code="kernels/attention.py: attention_numpy" lesson="3, attention and the cache" names="kq_soft_max"
  what="Each head of each layer mixes the values of earlier tokens into the current one, weighted by how well its query matches their keys. Under the tokens above, the bars show the chosen head's weights."
  look=${look} not="A large weight says where a head reads, not what it takes from there or whether it matters; switch the head off to see that. The first token often gets the weight that a head does not need.">${children}</${Panel}>`;
