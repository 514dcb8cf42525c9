// Panel 2: text to tokens, merge by merge.

import { html, useLayoutEffect, useState } from "preact";
import { Panel, Still, Token, Waiting } from "learn/draw.js";

const MOST = 200; // rows of the table

const short = (text) => (text.length > 40 ? `${text.slice(0, 38)}\u2026` : text); // some tokenizers cut no words: all of the prompt is one
const plain = (symbol) => symbol.replace(/[Ġ▁]/g, " ").replace(/Ċ/g, "\n");

/** The symbols after the first `n` merges of `word`: undo the later ones. */
export function symbolsAfter(word, n) {
  let symbols = [...word.symbols];
  for (const [left, right] of word.merges.slice(n).reverse()) {
    const i = symbols.lastIndexOf(left + right);
    if (i >= 0) symbols.splice(i, 1, left, right);
  }
  return symbols;
}

export function TokensPanel({ run, token }) {
  const words = run.prompt && run.prompt.merges;
  const starts = [];
  let n = run.prompt && words ? run.prompt.tokens.length - words.reduce((sum, word) => sum + word.ids.length, 0) : 0;
  for (const word of words || []) {
    starts.push(n);
    n += word.ids.length;
  }
  const under = words ? words.findIndex((word, i) => token >= starts[i] && token < starts[i] + word.ids.length) : -1;
  const [picked, setPicked] = useState(-1);
  useLayoutEffect(() => setPicked(under), [under, run.prompt]);
  const longest = words ? words.reduce((best, word, i) => (word.merges.length > words[best].merges.length ? i : best), 0) : 0;
  const index = words && picked >= 0 && picked < words.length ? picked : longest;
  const word = words && words[index];
  const [kept, setKept] = useState(1e9);
  useLayoutEffect(() => setKept(1e9), [index, run.prompt]);
  const count = word ? Math.min(kept, word.merges.length) : 0;
  const now = word && word.merges[count - 1];
  return html`<${Panel} id="tokens" title="Text to tokens" code="engine/tokenizer/explain.py" lesson="1, tokens"
    what="The text is cut into words, and in each word the best pair of neighbours becomes one symbol, again and again. What is left are tokens, each a row of the vocabulary."
    look=${word && `"${short(plain(word.text).trim())}" starts as ${word.merges.length + word.symbols.length} symbols and ends, after ${word.merges.length} merges, as ${word.ids.length} ${word.ids.length === 1 ? "token" : "tokens"}.`}
    not="The order of the merges comes from counting pairs in some text, once, before training; the model has no part in it.">
    ${word ? html`
      <label>Word <select value=${index} onChange=${(e) => setPicked(+e.target.value)}>
        ${words.map((w, i) => html`<option value=${i}>${short(plain(w.text)) || w.text}</option>`)}</select></label>
      <p class="symbols" aria-live="polite" tabindex="0" role="group" aria-label="Symbols of the word">${symbolsAfter(word, count).map((s) => html`<${Token} text=${plain(s)} />`)}</p>
      <label class="slide">Merges ${count} of ${word.merges.length}
        <input type="range" min="0" max=${word.merges.length} value=${count} onInput=${(e) => setKept(+e.target.value)} /></label>
      <p class="note">${now ? html`last: <${Token} text=${plain(now[0])} /> + <${Token} text=${plain(now[1])} />, ${now[2] >= 0 ? "rank" : "score"} ${now[2]}` : "no merge yet"}</p>
      <div class="scroll"><table><caption>${run.prompt.tokens.length > MOST ? `The first ${MOST} of the ${run.prompt.tokens.length} tokens of the prompt` : "Tokens of the prompt"}</caption><thead><tr><th scope="col">place</th><th scope="col">id</th><th scope="col">text</th><th scope="col">bytes</th><th scope="col">kind</th></tr></thead>
      <tbody>${run.prompt.tokens.slice(0, MOST).map(([id, text, kind], i) => html`<${Still} key=${i} when=${[run.prompt, i === token]} make=${() => html`<tr class=${i === token ? "on" : ""}><td>${i}</td><td>${id}</td><td><${Token} text=${text} /></td>
        <td class="hex">${[...new TextEncoder().encode(text)].slice(0, 12).map((b) => b.toString(16).padStart(2, "0")).join(" ")}</td><td>${kind || "text"}</td></tr>`} />`)}</tbody></table></div>`
      : html`<${Waiting} text=${run.prompt && "The prompt has no words to merge."} />`}
  </${Panel}>`;
}
