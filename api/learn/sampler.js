// The sampler's chain from one row of logits, as engine/sampling/ has it: the same steps in the same order, in float32.

const f = Math.fround;

/** Softmax of `logits` in float32, summed from first to last. */
export function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const e = logits.map((x) => f(Math.exp(f(x - top))));
  const sum = e.reduce((a, b) => f(a + b), 0);
  return e.map((x) => f(x / sum));
}

const sorted = (c) => [...c].sort((a, b) => b.logit - a.logit || a.place - b.place);
const logits = (c) => c.map((x) => x.logit);

export function topK(c, k) {
  return k <= 0 ? c : sorted(c).slice(0, k);
}

export function typicalP(c, p) {
  if (p >= 1 || p <= 0) return c;
  c = sorted(c);
  const probs = softmax(logits(c)), surprise = probs.map((x) => -Math.log(Math.max(x, 2 ** -149)));
  const entropy = probs.reduce((sum, x, i) => f(sum + f(x * surprise[i])), 0);
  const order = probs.map((_, i) => i).sort((a, b) => Math.abs(surprise[a] - entropy) - Math.abs(surprise[b] - entropy) || a - b);
  let sum = 0, n = 0;
  while (n < order.length) {
    sum = f(sum + probs[order[n++]]);
    if (sum > f(p)) break;
  }
  return order.slice(0, n).map((i) => c[i]);
}

export function topP(c, p) {
  if (p >= 1) return c;
  const probs = softmax(logits(c));
  const order = c.map((x, i) => ({ x, p: probs[i] })).sort((a, b) => b.x.logit - a.x.logit || a.x.place - b.x.place);
  let sum = 0, n = 0;
  while (n < order.length) {
    sum = f(sum + order[n++].p);
    if (sum >= f(p)) break;
  }
  return order.slice(0, n).map((one) => one.x);
}

export function minP(c, p) {
  if (f(p) <= 0) return c;
  const least = f(Math.max(...logits(c)) + f(Math.log(f(Math.min(p, 1)))));
  return c.filter((x) => x.logit >= least);
}

export function temperature(c, t) {
  if (f(t) > 0) return c.map((x) => ({ ...x, logit: f(x.logit / f(t)) }));
  return [sorted(c)[0]];
}

/** The index that `u` selects from the cumulative distribution. */
export function dist(c, u) {
  const top = Math.max(...logits(c));
  let sum = 0;
  const running = c.map((x) => (sum += f(Math.exp(f(x.logit - top)))));
  const at = (u || 2 ** -65) * sum;
  const i = running.findIndex((x) => x >= at);
  return i < 0 ? c.length - 1 : i;
}

/** Run the chain.  candidates: [{id, text, logit, place}] -> {steps: [{name, parameter, c}], chosen} */
export function ledger(candidates, o, u) {
  let c = candidates;
  const steps = [{ name: "logits", parameter: "", c }];
  const apply = (name, parameter, next) => steps.push({ name, parameter, c: (c = next) });
  apply("top_k", o.top_k, topK(c, o.top_k));
  apply("typical_p", o.typical_p, typicalP(c, o.typical_p));
  apply("top_p", o.top_p, topP(c, o.top_p));
  apply("min_p", o.min_p, minP(c, o.min_p));
  apply("temperature", o.temperature, temperature(c, o.temperature));
  return { steps, chosen: c[dist(c, u)], last: c };
}
