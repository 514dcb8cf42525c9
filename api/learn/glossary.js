// The glossary: short answers to the words of the page.

import { html, useEffect, useRef } from "preact";

export const TERMS = [
  ["token", "A piece of text with a number: a word, a part of one, or a byte. Models read and write nothing else."],
  ["vocabulary", "All tokens that a model knows. Its size is n_vocab."],
  ["embedding", "The vector with which a token enters the model: its row of token_embd."],
  ["residual stream", "The vector of a position that runs through all layers; each block reads it and adds to it. llama.cpp calls it l_out after a layer."],
  ["layer", "An attention block and a feed-forward block. In GGUF, blk.0, blk.1 and so on."],
  ["head", "One of the n_head parts of an attention block, with queries, keys and values of its own. Several query heads may share a key head (n_head_kv)."],
  ["query, key, value", "Three projections of the stream: what a position looks for, what it offers, and what it gives. Qcur, Kcur, Vcur."],
  ["RoPE", "Rotates queries and keys by their position, so that their product depends on the distance."],
  ["feed-forward", "Expands the stream to n_ff neurons, applies the activation function, and projects back."],
  ["logit", "A number for each token of the vocabulary before it becomes a probability by softmax."],
  ["softmax", "Turns numbers into probabilities: exp of each, divided by their sum."],
  ["logit lens", "Reads each layer's stream as if it were the last one's."],
  ["prefill", "Computing all tokens of the prompt, many at once."],
  ["decode", "Computing the answer, one token a step."],
  ["KV cache", "Keys and values of earlier positions, kept so that each token is computed once."],
  ["slot", "Room in the cache for one conversation."],
  ["batch", "The tokens of one forward pass, possibly of several conversations."],
  ["quantization", "Storing weights in few bits: blocks of small integers under a common scale, as in Q4_0."],
  ["GGUF", "The file format of llama.cpp: key-values, then tensors."],
  ["temperature", "Divides the logits before the draw. 0 always takes the likeliest token."],
  ["top_k, top_p, min_p", "Ways to drop unlikely tokens before the draw."],
  ["seed", "Where the random numbers start: the same seed draws the same answer."],
  ["ablation", "Switching a part off to see what it does."],
  ["patching", "Putting a value of one run into another to see what it carries."],
];

export function Glossary({ close }) {
  const ref = useRef(null);
  useEffect(() => {
    ref.current.showModal();
  }, []);
  return html`<dialog ref=${ref} class="glossary" aria-labelledby="glossary-title" onClose=${close} onClick=${(e) => e.target === ref.current && ref.current.close()}>
    <div><h2 id="glossary-title">Glossary</h2><button type="button" onClick=${() => ref.current.close()}>Close</button></div>
    <dl tabindex="0" aria-label="Terms">${TERMS.map(([term, text]) => html`<dt>${term}</dt><dd>${text}</dd>`)}</dl>
  </dialog>`;
}
