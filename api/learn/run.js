// The run: what a server, or the data inside the page, knows about one answer.

const embedded = document.getElementById("data");
export const offline = embedded ? JSON.parse(embedded.textContent) : null;

export const SMALL = 30e6; // weights; a larger model shows attention of the chosen token alone, asked for on a click
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
    run.prompt = line.look.prompt;
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
  for (let i = 0; i < n; i++) rows.push(Float32Array.from(halves.subarray(i * m, (i + 1) * m), half));
  return rows;
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}
