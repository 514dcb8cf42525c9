// The page: the state, the question, the spine and the panels.

import { Component, html, render, useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact";
import { Glossary } from "learn/glossary.js";
import { AttentionPanel } from "learn/panels/attention.js";
import { CachePanel } from "learn/panels/cache.js";
import { FeedForwardPanel } from "learn/panels/feedforward.js";
import { LensPanel } from "learn/panels/lens.js";
import { ResidualPanel } from "learn/panels/residual.js";
import { SamplerPanel } from "learn/panels/sampler.js";
import { StudentsPanel } from "learn/panels/students.js";
import { TemplatePanel } from "learn/panels/template.js";
import { TimePanel } from "learn/panels/time.js";
import { TokensPanel } from "learn/panels/tokens.js";
import { TryPanel } from "learn/panels/tryit.js";
import { WeightsPanel } from "learn/panels/weights.js";
import { SMALL, addLine, complete, emptyRun, facts as factsOf, models as modelsOf, lacks, offline, requestOf, stream } from "learn/run.js";
import { Spine, glow } from "learn/spine.js";
import { Tour } from "learn/tour.js";

const DEFAULTS = { model: "", mode: "chat", think: "", system: "", prompt: "Why is the grass green?", temperature: 0.8, seed: 1, num_predict: 80, token: -1, panel: "" };

/** Read the state of a link: the page's address after #. */
function fromLink() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const state = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    if (!(name in DEFAULTS)) continue;
    const isNumber = typeof DEFAULTS[name] === "number";
    if (!isNumber || Number.isFinite(+value)) state[name] = isNumber ? +value : value;
  }
  return state;
}

function toLink(state) {
  const given = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name] || name === "model" || name === "prompt");
  return `#${new URLSearchParams(given)}`;
}

function offlineRun() {
  const run = emptyRun(offline.model.name);
  offline.lines.forEach((line) => addLine(run, line));
  return run;
}

/** The number of columns that the window has room for; panels keep their column when others grow. */
function useColumns() {
  const count = () => (innerWidth >= 2400 ? 4 : innerWidth >= 1240 ? 3 : innerWidth >= 820 ? 2 : 1);
  const [columns, setColumns] = useState(count);
  useEffect(() => {
    const resized = () => setColumns(count());
    addEventListener("resize", resized);
    return () => removeEventListener("resize", resized);
  }, []);
  return columns;
}

// The panels in the order of their columns, each with the parts of the page's state that it shows.
const PANELS = [
  [TemplatePanel, "run", "facts"], [TokensPanel, "run", "token", "step"], [AttentionPanel, "run", "token", "step", "why", "head"],
  [SamplerPanel, "run", "token", "step", "facts"], [LensPanel, "run", "token", "step", "why"], [ResidualPanel, "run", "token", "step", "why"],
  [FeedForwardPanel, "run", "token", "step", "why", "facts", "neuronLayer"], [WeightsPanel, "facts"], [CachePanel, "run"],
  [TimePanel, "run", "token", "step"], [StudentsPanel, "run", "state", "facts"], [TryPanel, "run", "state", "facts", "models", "head"],
];

/** A panel that is rendered again only when what it shows changes. */
class Shown extends Component {
  shouldComponentUpdate(next) {
    return next.parts.some((name) => next.shared[name] !== this.props.shared[name]);
  }
  render({ panel, shared }) {
    return html`<${panel} ...${shared} />`;
  }
}

/** The token that panels show: the chosen one, once its step is there.  A step that the run lacks is asked for.  -> [token, waits, problem] */
function useShown(run, token, layer, neuronLayer) {
  const at = Math.max(0, token - 1), key = `${run.prompt?.run} ${at}`, shown = useRef(token), [failed, setFailed] = useState({});
  const waits = lacks(run, at) && failed.key !== key;
  if (!waits) shown.current = token;
  useLayoutEffect(() => { // before the browser paints: the server computes meanwhile
    if (!waits) return;
    let isCurrent = true;
    const done = (problem) => isCurrent && setFailed(problem ? { key, message: problem.message } : {});
    complete(run, at, layer, neuronLayer).then(() => done(null), done);
    return () => (isCurrent = false);
  }, [run, at, waits]);
  return [Math.min(shown.current, Math.max(0, run.tokens.length - 1)), waits, failed.key === key ? failed.message : ""];
}

/** Scroll to a panel, and follow it while maps that arrive later move it, until the page is touched or at rest. */
function reveal(id) {
  const panel = document.getElementById(id);
  if (!panel) return;
  const observer = new ResizeObserver(() => (panel.scrollIntoView(), settle()));
  let timer = 0;
  const end = () => (clearTimeout(timer), observer.disconnect());
  const settle = () => (clearTimeout(timer), (timer = setTimeout(end, 3000)));
  ["wheel", "pointerdown", "keydown", "touchstart"].forEach((kind) => window.addEventListener(kind, end, { once: true }));
  observer.observe(document.querySelector("main"));
  settle();
}

/** A panel's place in the grid, whose rows are a pixel each: below the one before it in its column, however high that is. */
function Cell({ column, children }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const cell = ref.current;
    const fit = () => (cell.style.gridRow = `span ${Math.ceil(cell.firstElementChild.getBoundingClientRect().height) + 14}`);
    const observer = new ResizeObserver(fit);
    observer.observe(cell.firstElementChild);
    fit();
    return () => observer.disconnect();
  }, []);
  return html`<div ref=${ref} style=${{ gridColumn: String(column) }}>${children}</div>`;
}

function App() {
  const [state, setState] = useState(() => (offline ? { ...DEFAULTS, ...offline.state, ...pick(fromLink(), "token", "panel") } : fromLink()));
  const [models, setModels] = useState([]);
  const [facts, setFacts] = useState(offline ? offline.model : null);
  const [run, setRun] = useState(() => (offline ? offlineRun() : emptyRun("")));
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const [head, setHead] = useState([0, 0]);
  const [neuronLayer, setNeuronLayer] = useState(-1); // the last
  const [stop, setStop] = useState(-1);
  const [glossary, setGlossary] = useState(false);
  const columns = useColumns();
  const cancel = useRef(null);
  const set = (changes) => setState((old) => ({ ...old, ...changes }));
  const choose = useCallback((i) => set({ token: i }), []);
  const nPrompt = run.prompt ? run.prompt.tokens.length : 0;
  const token = state.token >= 0 ? Math.min(state.token, Math.max(0, run.tokens.length - 1)) : Math.min(nPrompt, Math.max(0, run.tokens.length - 1));

  const [shown, isBusy, problem] = useShown(run, token, head[0], neuronLayer);

  const load = async (name) => {
    setError("");
    try {
      const found = { ...(await factsOf(name)), asked: name };
      setFacts(found);
      setHead([0, 0]);
      setNeuronLayer(-1);
      return found;
    } catch (problem) {
      setError(problem.message);
      setFacts(null);
    }
  };
  const ask = async (now, about) => {
    if (cancel.current) cancel.current.abort();
    const controller = (cancel.current = new AbortController());
    setBusy(true);
    setError("");
    try {
      if (!about.capabilities.includes("completion")) throw new Error(`${about.name} is an encoder: it turns a text into a vector and writes no answer. Its file can be looked at below.`);
      const [path, body] = requestOf(now, about);
      for await (const part of stream(path, body, controller.signal)) setRun({ ...part, isSmall: about.n_weight < SMALL });
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem.message);
    }
    if (cancel.current === controller) setBusy(false);
  };

  useEffect(() => {
    if (offline) return reveal(state.panel);
    modelsOf().then(async (names) => {
      setModels(names);
      if (!names.length) return setError("This server has no models: numllama pull, or unset NUMLLAMA_BUILTIN.");
      if (state.model && !names.includes(state.model)) setModels([state.model, ...names]);
      const name = state.model || (names.includes("primer") ? "primer" : names[0]);
      set({ model: name });
      const about = await load(name);
      if (about && (location.hash || about.n_weight < SMALL)) await ask({ ...state, model: name }, about);
      reveal(state.panel);
    }, (problem) => setError(problem.message));
  }, []);
  useEffect(() => {
    if (run.prompt) history.replaceState(null, "", offline ? `#${new URLSearchParams(pick(state, "token", "panel"))}` : toLink(state));
  }, [state, run.prompt]);
  useEffect(() => {
    const key = (event) => {
      if (event.key === "?" && !/INPUT|TEXTAREA|SELECT/.test(event.target.tagName)) setGlossary(true);
    };
    const hash = () => location.hash !== toLink(state) && location.reload();
    window.addEventListener("keydown", key);
    window.addEventListener("hashchange", hash);
    return () => (window.removeEventListener("keydown", key), window.removeEventListener("hashchange", hash));
  }, [state]);

  const step = run.steps.get(Math.max(0, shown - 1));
  const why = !run.stats || step?.residual ? "" : problem || (run.prompt?.run ? "" : "The window has shifted: keys are gone, and this token cannot be computed again.");
  const shared = { run, token: shown, step, why, facts, state: asked(state), models, head, setHead, neuronLayer, setNeuronLayer, setGlow: glow, choose };
  const submit = async (event) => {
    event.preventDefault();
    const about = facts && facts.name && facts.asked === state.model ? facts : await load(state.model);
    if (about) ask({ ...state, token: -1 }, about);
    set({ token: -1 });
  };
  const themes = () => {
    const root = document.documentElement, dark = getComputedStyle(root).colorScheme.includes("dark");
    root.dataset.theme = dark ? "light" : "dark";
    setRun({ ...run });
  };
  return html`
    <header>
      <h1>numllama <span>what a model computes</span></h1>
      ${offline ? html`<p class="asked" tabindex="0"><b>${offline.model.name}</b> ${state.prompt}</p>` : html`<form onSubmit=${submit} aria-label="Ask">
        <label>Model <select name="model" value=${state.model} onChange=${(e) => { set({ model: e.target.value }); load(e.target.value); }}>${models.map((m) => html`<option value=${m}>${m}</option>`)}</select></label>
        <label class="grow"><span class="hidden">Prompt</span><input type="text" name="prompt" aria-label="Prompt" value=${state.prompt} onInput=${(e) => set({ prompt: e.target.value })} /></label>
        <label><span class="hidden">Form</span><select name="mode" aria-label="Form" value=${state.mode} onChange=${(e) => set({ mode: e.target.value })}><option value="chat">chat</option><option value="raw">raw</option></select></label>
        ${facts && facts.capabilities.includes("thinking") && state.mode === "chat" ? html`<label><span class="hidden">Thinking</span><select name="think" aria-label="Thinking" value=${state.think} onChange=${(e) => set({ think: e.target.value })}><option value="">thinks first</option><option value="off">answers at once</option></select></label>` : null}
        <label>temperature <input type="number" name="temperature" min="0" max="5" step="0.1" value=${state.temperature} onInput=${(e) => set({ temperature: +e.target.value })} /></label>
        <label>seed <input type="number" name="seed" min="0" step="1" value=${state.seed} onInput=${(e) => set({ seed: +e.target.value })} /></label>
        <label>tokens <input type="number" name="num_predict" min="1" max="2000" step="1" value=${state.num_predict} onInput=${(e) => set({ num_predict: Math.max(1, +e.target.value || 1) })} /></label>
        ${busy ? html`<button type="button" onClick=${() => cancel.current.abort()}>Stop</button>` : html`<button type="submit" class="primary">Run</button>`}
      </form>`}
      <p class="tools"><button type="button" onClick=${() => setStop(0)}>Tour</button><button type="button" onClick=${() => setGlossary(true)}>Glossary</button><button type="button" onClick=${themes}>Light or dark</button></p>
    </header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${facts && facts.capabilities.includes("vision") ? html`<p class="hint">This model sees images; this page sends text alone.</p>` : null}
    ${facts && facts.n_weight >= SMALL && !offline ? html`<p class="hint">A large model: of the prompt, a token is computed again when you choose it, with all that the panels show.</p>` : null}
    <div id="spine"><${Spine} run=${run} token=${token} choose=${choose} /></div>
    <main aria-busy=${isBusy} style=${{ gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))` }} onfocusin=${(e) => { const panel = e.target.closest(".panel"); if (panel && panel.id !== state.panel) set({ panel: panel.id }); }}>
      ${PANELS.map(([panel, ...parts], i) => html`<${Cell} key=${panel.name} column=${(i % columns) + 1}><${Shown} panel=${panel} parts=${parts} shared=${shared} /></${Cell}>`)}
    </main>
    ${stop >= 0 && html`<${Tour} stop=${stop} go=${setStop} end=${() => setStop(-1)} />`}
    ${glossary && html`<${Glossary} close=${() => setGlossary(false)} />`}`;
}

let lastAsked = {};
/** The state without what a click changes; the same object while nothing else changes. */
function asked({ token, panel, ...rest }) {
  if (Object.keys(rest).some((name) => rest[name] !== lastAsked[name])) lastAsked = rest;
  return lastAsked;
}

const pick = (from, ...names) => Object.fromEntries(names.map((name) => [name, from[name]]));

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
