// Panel 1: the conversation as one text.

import { html } from "preact";
import { Panel, Waiting } from "learn/draw.js";

export function TemplatePanel({ run, facts }) {
  const prompt = run.prompt;
  const parts = [];
  if (prompt) {
    let at = 0;
    for (const [start, end, role] of prompt.spans) {
      if (start > at) parts.push(["template", prompt.text.slice(at, start)]);
      parts.push([role, prompt.text.slice(start, end)]);
      at = end;
    }
    if (at < prompt.text.length) parts.push(["template", prompt.text.slice(at)]);
  }
  const own = parts.filter(([role]) => role === "template").reduce((n, [, text]) => n + text.length, 0);
  const none = facts && !facts.has_template
    ? "This model has no chat template: a conversation is written in the ChatML form, and a single prompt goes in as it is."
    : null;
  return html`<${Panel} id="template" title="A conversation as text" code="engine/template/messages.py" lesson="1, tokens"
    what="A model knows no messages: a template writes the conversation as one text, with marks for who speaks."
    look=${none || (prompt && `${own} of ${prompt.text.length} characters come from the template; the rest is yours.`)}
    not="The model sees the marks as tokens like any other; only training makes it obey them.">
    ${prompt ? html`<pre class="prompt">${parts.map(([role, text]) => html`<span class=${`said ${role}`}>${text}</span>`)}</pre>
      <ul class="legend">${[...new Set(parts.map(([role]) => role))].map((role) => html`<li><span class=${`said ${role}`}>${role}</span></li>`)}</ul>` : html`<${Waiting} />`}
  </${Panel}>`;
}
