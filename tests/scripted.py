"""A model that says what a test has it say: everything around it is real."""

from __future__ import annotations

from numllama.engine.piece import Piece, Timings
from numllama.engine.runner import Runner

# Thinks in <think> tags, calls tools in <tool_call> tags.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'tool' %} from {{ m.name }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}({{ reasoning_effort }}){% endif %}{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO = [{"role": "user", "content": "hello"}]


class Script:
    """Called with texts, it makes every model say them, one a token; then it knows what the model was asked.

    prompt    the text it was to go on from
    options   and how
    """

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.prompt, self.options = None, None

    def __call__(self, *texts, done_reason="stop", met=None, error=None):
        """`error` is raised where the last piece would be."""

        def submit(runner, job):
            prompt = runner.model.tokenizer.decode(job.prompt, special=False)
            self.prompt, self.options = prompt.removeprefix(" "), job.options  # the blank is SPM's
            for text in texts:
                job.deliver(Piece(text, token=1))
            job.finished()
            timings = Timings(0, 2, 1, len(texts), 1)
            job.deliver(error or Piece("", done_reason=done_reason, timings=timings, met=met))

        self._monkeypatch.setattr(Runner, "submit", submit)
