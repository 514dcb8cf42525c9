// Panel 11: two students ask at once and share the steps of one scheduler.

import { html, useState } from "preact";
import { Panel, Token, Waiting, number } from "learn/draw.js";
import { addLine, emptyRun, offline, timeline } from "learn/run.js";

async function ask(model, prompt, seed) {
  const look = { cache: true };
  const body = { model, messages: [{ role: "user", content: prompt }], look, options: { seed, num_predict: 60 } };
  const answer = await fetch("/api/chat", { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const run = emptyRun(model);
  for (const line of (await answer.text()).split("\n")) if (line) addLine(run, JSON.parse(line));
  return run;
}

export function StudentsPanel({ run, state, facts }) {
  const [questions, setQuestions] = useState([state.prompt, "What is a token?"]);
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const model = facts ? facts.name : run.model;
  const go = async () => {
    setBusy(true);
    setError("");
    try {
      const answers = await Promise.all(questions.map((q, i) => ask(model, q, state.seed + i)));
      const lines = (await timeline()).models;
      const jobs = answers.map((a) => a.prompt.job);
      const all = Object.values(lines).find((steps) => steps.some((s) => s.shares.some((x) => x.job === jobs[0]))) || [];
      setFound({ answers, jobs, steps: all.filter((s) => s.shares.some((x) => jobs.includes(x.job))) });
    } catch (problem) {
      setError(problem.message);
    }
    setBusy(false);
  };
  const shared = found ? found.steps.filter((s) => found.jobs.every((j) => s.shares.some((x) => x.job === j))).length : 0;
  const began = found && found.steps.length ? found.steps[0].at_us : 0;
  const end = found && found.steps.length ? found.steps[found.steps.length - 1].at_us + found.steps[found.steps.length - 1].us : 1;
  return html`<${Panel} id="students" title="Two students ask at once" code="engine/run/scheduler.py: Scheduler.step" lesson="5, two students"
    what="The server has one model and a slot for each conversation. In each step it takes a token of everyone who is answered, and a piece of a prompt that waits: the weights are read once for all."
    look=${found && `${shared} of ${found.steps.length} steps served both; the answers took ${number((end - began) / 1000)} ms together.`}
    not="Both answers are bit for bit what each student alone would get: sharing a step changes the time, never the numbers.">
    ${offline ? html`<${Waiting} text="Needs a server: numllama learn." />` : html`
      ${questions.map((q, i) => html`<label>Student ${"AB"[i]} <input type="text" value=${q} onInput=${(e) => setQuestions(questions.map((old, j) => (j === i ? e.target.value : old)))} /></label>`)}
      <p><button type="button" disabled=${busy || !model} onClick=${go}>${busy ? "Asking" : "Ask both"}</button></p>
      ${error && html`<${Waiting} error=${error} />`}
      ${found && html`<div class="lanes" data-shared=${shared} role="img" aria-label=${`${found.steps.length} steps of the scheduler, ${shared} of them shared`}>
        ${found.jobs.map((job, i) => html`<div class="layer"><span class="label">${"AB"[i]}</span><span class="lane track">${found.steps.map((s) => {
          const share = s.shares.find((x) => x.job === job);
          if (!share) return null;
          const both = s.shares.length > 1;
          return html`<span class=${`beat ${share.phase}${both ? " both" : ""}`} title=${`${share.phase} ${share.tokens}, ${s.us} µs${both ? ", shared" : ""}`}
            style=${{ left: `${(100 * (s.at_us - began)) / (end - began)}%`, width: `${Math.max(0.3, (100 * s.us) / (end - began))}%` }}></span>`;
        })}</span></div>`)}</div>
        <ul class="legend"><li><span class="swatch beat prefill"></span>prompt</li><li><span class="swatch beat decode"></span>answer, alone</li><li><span class="swatch beat decode both"></span>answer, in a shared step</li></ul>
        ${found.answers.map((a, i) => html`<p class="said answer"><b>${"AB"[i]}</b> ${a.thinking ? html`<i>${a.thinking} </i>` : null}${a.text}</p>`)}`}`}
  </${Panel}>`;
}
