// Panel 10: where the time of one token goes.

import { html } from "preact";
import { Bar, Panel, Waiting, number } from "learn/draw.js";
import { offline } from "learn/run.js";

/** Sum the microseconds of a pass by operation, in order, outer operations first. */
export function byOperation(time) {
  const sums = new Map();
  for (const [name, , us] of time.us) sums.set(name, (sums.get(name) || 0) + us);
  return [...sums];
}

export function TimePanel({ run, token }) {
  const at = Math.max(0, token - 1);
  let position = at;
  while (position < run.tokens.length && !(run.steps.get(position) && run.steps.get(position).time)) position++;
  const step = run.steps.get(position);
  if (!step || !run.stats) return html`<${Frame}><${Waiting} /></${Frame}>`;
  const sums = byOperation(step.time), total = sums.reduce((n, [, us]) => n + us, 0), most = Math.max(...sums.map(([, us]) => us));
  const s = run.stats, ms = (ns) => number((ns || 0) / 1e6);
  const [top] = [...sums].sort((a, b) => b[1] - a[1]);
  const perPrompt = s.prompt_eval_duration / Math.max(1, s.prompt_eval_count), perToken = s.eval_duration / Math.max(1, s.eval_count - 1);
  let start = 0;
  const rest = Math.max(0, run.client_ms - (s.total_duration || 0) / 1e6);
  return html`<${Frame} look=${`This pass of ${step.time.n_tok} ${step.time.n_tok === 1 ? "token" : "tokens"} took ${number(total / 1000)} ms, most of it for ${top[0]} (${number((100 * top[1]) / total)} %). A token of the prompt took ${number(perPrompt / 1e6)} ms, one of the answer ${number(perToken / 1e6)} ms.`}>
    <div class="scroll"><table class="fall" data-time><caption>One pass, operation by operation, all layers together</caption><thead><tr><th scope="col">value computed</th><th scope="col">when</th><th scope="col">µs</th></tr></thead><tbody>
      ${sums.map(([name, us]) => {
        const left = start;
        start += us;
        return html`<tr><th scope="row">${name}</th><td><span class="rail"><span class="fill" style=${{ marginLeft: `${(100 * left) / total}%`, width: `${Math.max(0.5, (100 * us) / total)}%` }}></span></span></td><td class="num">${number(us)}</td></tr>`;
      })}</tbody></table></div>
    <table><caption>The whole request</caption><tbody>
      <tr><th scope="row">load</th><td class="num">${ms(s.load_duration)} ms</td></tr><tr><th scope="row">prefill</th><td class="num">${ms(s.prompt_eval_duration)} ms for ${s.prompt_eval_count} tokens</td></tr>
      <tr><th scope="row">decode</th><td class="num">${ms(s.eval_duration)} ms for ${s.eval_count} tokens</td></tr><tr><th scope="row">in the server</th><td class="num">${ms(s.total_duration)} ms</td></tr>
      ${offline ? null : html`<tr><th scope="row">on the way</th><td class="num">${number(rest)} ms, ${number(run.bytes / 1024)} KiB</td></tr>`}</tbody></table>
    ${offline ? null : html`<p><a href="/api/look/time?format=perfetto" download="numllama-trace.json">The server's last steps as a file</a> for ui.perfetto.dev.</p>`}
  </${Frame}>`;
}

const Frame = ({ look, children }) => html`<${Panel} id="time" title="Where the time goes" code="engine/look/collector.py: LookTap; engine/run/scheduler.py" lesson="5, two students"
  what="Prefill sees all tokens of the prompt at once, so each weight that is read serves many; decoding reads every weight for a single token."
  look=${look} not="Measured while values are shown, step by step in Python; without a look, a whole layer is one call and small models are several times faster.">${children}</${Panel}>`;
