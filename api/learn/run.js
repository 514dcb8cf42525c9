// The run: what a server, or the data inside the page, knows about one answer.

const embedded = document.getElementById("data");
export const offline = embedded ? JSON.parse(embedded.textContent) : null;

export const SMALL = 30e6; // weights; a step of a larger model is asked for when its token is chosen, maps when they are seen
const EVERYTHING = { attention: "*", lens: 5, residual: true, neurons: 8 };
const ALWAYS = { sampler: true, logits: 64, time: true, cache: true, merges: true, keep: true, encoding: "f16" };

async function json(path, body) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok || found.error) throw new Error(found.error || answer.statusText);
  return found;
}

export const models = async () => (await json("/api/tags")).models.map((m) => m.name.replace(/:latest$/, ""));
export const facts = (name) => json(`/api/look/model?name=${encodeURIComponent(name)}`);
export const block = (name, tensor, index) =>
  json(`/api/look/model?name=${encodeURIComponent(name)}&tensor=${encodeURIComponent(tensor)}&block=${index}`);
export const timeline = () => json("/api/look/time");
export const again = (run, position, look) => json("/api/look/run", { run, position, look: { encoding: "f16", ...look } });

/** Whether the step at `at` has yet to be asked for. */
export const lacks = (run, at) => Boolean(run.prompt?.run && run.stats && at >= 0 && at < run.tokens.length - 1 && !run.steps.get(at)?.residual);

/** Ask for what panels show of the step at `at`, with one layer's attention and one layer's neurons, and keep it in the run. */
export function complete(run, at, layer, neuronLayer) {
  const look = { peaks: true, attention: [[layer, "*"]], lens: 5, residual: true, neurons: 8, neuron_layers: [neuronLayer], logits: 64 };
  return once(run, `step ${at}`, () => again(run.prompt.run, at, look).then((found) => merge(run, at, found)));
}

/** Ask for the attention of `layer` at `at`, and keep it in the run. */
export const completeLayer = (run, at, layer) =>
  once(run, `step ${at} layer ${layer}`, () => again(run.prompt.run, at, { attention: [[layer, "*"]] }).then((found) => merge(run, at, found)));

/** Ask for the neurons of `layer` at `at`, and keep them in the run. */
export const completeNeurons = (run, at, layer) =>
  once(run, `step ${at} neurons ${layer}`, () => again(run.prompt.run, at, { neurons: 8, neuron_layers: [layer] }).then(({ residual }) => {
    const step = run.steps.get(at), neurons = [...step.residual.neurons, ...residual.neurons];
    run.steps.set(at, { ...step, residual: { ...step.residual, neurons } });
  }));

/** Ask for the small maps of a layer, or for the map of one head: {every, width, rows, maps}. */
export const maps = (run, layer, head) =>
  once(run, `map ${layer} ${head}`, () => json("/api/look/map", { run: run.prompt.run, layer, head }).then((found) => ({ ...found, maps: unpack(found) })));

/** Make a request of this run one time; a failed one may be made again. */
function once(run, key, make) {
  const asked = (run.asked ||= new Map());
  if (!asked.has(key)) {
    asked.set(key, make());
    asked.get(key).catch(() => asked.delete(key));
  }
  return asked.get(key);
}

function merge(run, at, found) {
  const step = run.steps.get(at) || {}, layers = { ...step.layers };
  matrix(found.attention).forEach((row, i) => {
    const [layer, head] = found.heads[i];
    layers[layer] = { ...layers[layer], [head]: row };
  });
  const { attention, heads, ...rest } = found;
  run.steps.set(at, { ...rest, ...step, layers });
}

/** The weights of a head at `at`, if the run has them. */
export function weightsOf(run, at, layer, head) {
  const step = run.steps.get(at);
  return step && (step.layers?.[layer]?.[head] || step.attention?.[run.prompt.index.get(`${layer} ${head}`)]);
}

/** Return the rows of each map, from bytes that hold 255 times the root of a weight. */
function unpack({ shape: [n, height, width], u8 }) {
  const bytes = Uint8Array.from(atob(u8), (c) => c.charCodeAt(0)), squares = Float32Array.from({ length: 256 }, (_, i) => (i / 255) ** 2);
  const row = (i) => Float32Array.from(bytes.subarray(i * width, (i + 1) * width), (x) => squares[x]);
  return Array.from({ length: n }, (_, k) => Array.from({ length: height }, (_, i) => row(k * height + i)));
}

/** Return the body of a request for `state`, with `more` in its look. */
export function requestOf(state, facts, more = {}) {
  const isSmall = facts.n_weight < SMALL;
  const look = { ...(isSmall ? EVERYTHING : {}), ...ALWAYS, prompt: isSmall ? "all" : "last", ...more };
  const options = { temperature: state.temperature, seed: state.seed, num_predict: state.num_predict };
  const body = { model: state.model, options, look };
  if (state.mode === "chat") {
    if (state.think === "off" && facts.capabilities.includes("thinking")) body.think = false;
    const system = state.system ? [{ role: "system", content: state.system }] : [];
    return ["/api/chat", { ...body, messages: [...system, { role: "user", content: state.prompt }] }];
  }
  return ["/api/generate", { ...body, prompt: state.prompt, raw: true }];
}

/** Ask and yield the run as it grows. */
export async function* stream(path, body, signal) {
  const began = performance.now();
  const answer = await fetch(path, { method: "POST", body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const run = emptyRun(body.model);
  let rest = "", shown = 0;
  for (;;) {
    const { value, done } = await reader.read();
    rest += value || "";
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      addLine(run, JSON.parse(line));
      run.bytes += line.length + 1;
    }
    run.client_ms = performance.now() - began;
    if (done) break;
    if (performance.now() - shown > 100) {
      shown = performance.now();
      yield { ...run };
    }
  }
  yield { ...run };
}

export function emptyRun(model) {
  return { model, prompt: null, steps: new Map(), tokens: [], text: "", thinking: "", stats: null, bytes: 0, client_ms: 0 };
}

/** Add one line of the answer to `run`. */
export function addLine(run, line) {
  if (line.error) throw new Error(line.error);
  run.text += line.response || (line.message && line.message.content) || "";
  run.thinking += line.thinking || (line.message && line.message.thinking) || "";
  if (line.done) run.stats = line;
  if (!line.look) return;
  if (line.look.prompt) {
    run.prompt = { ...line.look.prompt, index: new Map(line.look.prompt.heads.map(([layer, head], i) => [`${layer} ${head}`, i])) };
    run.tokens = line.look.prompt.tokens.map(([id, text, kind]) => ({ id, text, kind, sampled: false }));
  }
  for (const step of line.look.steps) {
    if (step.attention) step.attention = matrix(step.attention);
    run.steps.set(step.position, step);
    if (step.sampled) run.tokens[step.position + 1] = { id: step.next[0], text: step.next[1], kind: "", sampled: true };
  }
}

/** Return rows of numbers, from lists or from base64 of f16. */
export function matrix(packed) {
  if (Array.isArray(packed)) return packed;
  const bytes = Uint8Array.from(atob(packed.f16), (c) => c.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer);
  const [n, m] = packed.shape;
  const rows = [];
  if (!allHalves) allHalves = Float32Array.from({ length: 65536 }, (_, bits) => half(bits));
  for (let i = 0; i < n; i++) {
    const row = new Float32Array(m);
    for (let j = 0; j < m; j++) row[j] = allHalves[halves[i * m + j]];
    rows.push(row);
  }
  return rows;
}

let allHalves = null; // each 16-bit float as a number

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}
