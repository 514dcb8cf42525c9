"""Chat templates in Jinja, as Hugging Face renders them: with those a model's makers trained it.

The environment is Hugging Face's (transformers 5.23): jinja2's immutable sandbox, blocks trimmed, `{% break %}`,
`{% generation %}`, `tojson` without HTML escapes, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from ..errors import BadTemplate

MARK = "\ue000continue here\ue000 "  # follows the text to be continued; the blank shows whether the template trims


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model says, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The conversation as the template `text` writes it.

    add_generation_prompt   the text ends where the model's answer begins
    continue_final_message  the text ends where the last message does, so that the model goes on with it
    variables               bos_token, eos_token, enable_thinking, ...: whatever the template may ask for
    Raises: BadTemplate
    """
    own = [_prepared(message) for message in messages]
    if continue_final_message:
        own = _marked(own)
    variables = {"documents": None} | variables
    try:
        rendered = _compiled(text).render(
            messages=own, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
    except Exception as error:  # whatever the template's own code runs into
        raise BadTemplate(_one_line(error)) from error
    return _cut(rendered) if continue_final_message else rendered


@lru_cache(maxsize=32)
def _compiled(text: str) -> jinja2.Template:
    return environment().from_string(text)


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that the template may have for itself; reasoning is there under both names that templates use."""
    copied = {key: copy.deepcopy(value) for key, value in message.items() if value is not None}
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in copied:
            return {"thinking": copied[key], "reasoning_content": copied[key]} | copied
    return copied


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`messages`, whose last text is followed by MARK.  Raises: BadTemplate where there is no text"""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], messages[-1] | {"content": content + MARK}]
    for part in reversed(content or []):
        if isinstance(part, dict) and "text" in part:
            part["text"] += MARK
            return messages
    raise BadTemplate("the last message has no text that could be continued")


def _cut(rendered: str) -> str:
    before, mark, after = rendered.rpartition(MARK.rstrip())
    if not mark:
        raise BadTemplate("the last message cannot be continued: the chat template leaves it out")
    return before if after.startswith(" ") else before.rstrip()


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _one_line(error: Exception) -> str:
    """What went wrong and on which line of the template; what the template itself raises stands alone."""
    message = " ".join(str(error).split())[:500] or type(error).__name__
    if type(error) is jinja2.TemplateError:
        return message
    line, frame = getattr(error, "lineno", None), error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return f"chat template, line {line}: {message}" if line else f"chat template: {message}"
