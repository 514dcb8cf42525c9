r"""The form of a model's tool calls and thoughts, found by rendering some with its template.

A call of a known name with known arguments of every type, two calls, a thought: where these stand in what is rendered,
and the text between them, is the form.

    <tool_call>\n<function=probe_one>\n<parameter=a_text>\nfirst\n</parameter>\n ... </function>\n</tool_call>
    head        NAME                  pre      KEY    mid  value  post               tail
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from ..errors import BadTemplate
from ..go.text import WHITE_SPACE
from ..parse.form import ID, NAME, CallForm
from ..parse.found import Thoughts
from .rendered_call import ARGUMENTS, ONE, TWO, form_of, shared_prefix, shared_suffix

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""A function that renders messages and tools; with a last message of the user, up to where the answer begins."""

IDS = ("abcdef123", "bcdefg234")
TEXT, THOUGHT = "probed words", "probed thought"
WORD = {"a_word": "third value"}
TYPES = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object"}
USER = {"role": "user", "content": "u"}


def _tool(name: str, arguments: Mapping[str, Any], types: Mapping[type, str]) -> dict[str, Any]:
    properties = {
        key: {"type": types.get(type(value), "string"), "description": "d"}
        | ({"items": {"type": "string"}} if types.get(type(value)) == "array" else {})
        for key, value in arguments.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


TOOLS = [_tool(ONE, ARGUMENTS, TYPES), _tool(TWO, WORD, TYPES)]
TEXT_TOOLS = [_tool(ONE, ARGUMENTS, {}), _tool(TWO, WORD, {})]  # for templates that fail on objects or arrays


@dataclass(frozen=True)
class Probed:
    """The result of the probes of a template.

    form       the form of its calls, or None
    thoughts   the tags around thinking and text, or None
    as_text    the template takes the arguments of a call as a string of JSON
    """

    form: CallForm | None = None
    thoughts: Thoughts | None = None
    as_text: bool = False


def probe(render: Render) -> Probed:
    """Find the form of the calls and the thoughts that `render` shows."""
    if _rendered(render) is None:
        given = render

        def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            return given(messages, TEXT_TOOLS)

    for as_text in (False, True):
        for ids in (IDS, (f"functions.{ONE}:0", f"functions.{TWO}:1")):
            if form := probe_calls(render, as_text, ids):
                mark = (form.open or form.head.partition(NAME)[0]).strip(WHITE_SPACE)
                return Probed(form, probe_thoughts(render, mark), as_text)
    return Probed(None, probe_thoughts(render))


# --- rendering ---


def _message(content: str = "", calls: Sequence[dict[str, Any]] = (), thinking: str = "") -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = list(calls)
    if thinking:
        message["thinking"] = thinking
    return message


def _call(name: str, arguments: Mapping[str, Any], id: str, as_text: bool) -> dict[str, Any]:
    given = json.dumps(arguments) if as_text else dict(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": given}}


def _rendered(render: Render, *messages: dict[str, Any], tools: list[dict[str, Any]] = TOOLS) -> str | None:
    try:
        return render([USER, *messages], tools)
    except BadTemplate:
        return None


# --- thoughts ---


def probe_thoughts(render: Render, call: str = "") -> Thoughts | None:
    """Find the tags around the thinking before an answer; None if the template shows no thinking.

    call   a mark of calls, which may stand between the thinking and the text
    """
    asked = _rendered(render)
    tool = {"role": "tool", "content": "r", "name": ONE, "tool_call_id": IDS[0]}
    called = [_call(ONE, ARGUMENTS, IDS[0], False)]
    conversations: list[list[dict[str, Any]]] = [
        [_message(TEXT, thinking=THOUGHT)],
        [_message(TEXT, called, THOUGHT), tool],
        [_message("", called, THOUGHT), tool],
    ]
    shown = [_rendered(render, *messages) for messages in conversations]
    for text in shown[:2]:
        before, found, after = (text or "").partition(THOUGHT)
        if not found or asked is None or TEXT not in after:
            continue
        gaps = [
            _gap(after, call),
            *(_gap(other.partition(THOUGHT)[2], call) for other in shown if other and THOUGHT in other),
        ]
        close = thinking_tag(whole_tags(reduce(shared_prefix, gaps)) or gaps[0])
        rest = after.partition(TEXT)[2]
        text_open = gaps[0][len(close) :].strip(WHITE_SPACE) if not call or call not in after.partition(TEXT)[0] else ""
        text_close = (re.match(r"(?:<[^<>\s]*>[\w]*)+", rest) or [""])[0] if text_open else ""
        return Thoughts(
            _opening(asked, before, close.strip(WHITE_SPACE)),
            close.strip(WHITE_SPACE),
            text_open,
            _text_close(text_close, text_open),
        )
    return None


def _gap(after: str, call: str) -> str:
    """Return the text between a thought and what comes next, the answer's text or a call."""
    ends = [at for at in (after.find(TEXT), after.find(call) if call else -1, after.find(ONE)) if at >= 0]
    return after[: min(ends)] if ends else after


def whole_tags(text: str) -> str:
    """Drop a tag that `text` does not end."""
    return re.sub(r"(?:<[^<>]*|\[[^\[\]]*)\Z", "", text)


def thinking_tag(text: str) -> str:
    """Keep the first tag, and the word and tag after it, where one of these names thinking."""
    word = re.match(r"\s*(?:<[^<>]*>\s*)?[^<>]*(?:think|thought|reason)[^<>]*(?:<[^<>]*>|>)?", text, re.IGNORECASE)
    return word[0] if word else text


def _text_close(close: str, opening: str) -> str:
    """Return the closing tag that belongs to an opening one, such as <|END_TEXT|> to <|START_TEXT|>."""
    tags = re.findall(r"<[^<>\s]*>[\w]*", close)
    n = len(re.findall(r"<[^<>\s]*>[\w]*", opening))
    return "".join(tags[:n])


def _opening(asked: str, before: str, close: str) -> str:
    """Return the tag before a thought: what follows the prompt, or what the prompt itself ends with."""
    if asked.startswith(before) and asked[len(before) :].strip(WHITE_SPACE).startswith(close):
        asked = before  # the prompt closes an empty thought
    start = whole_tags(shared_prefix(asked, before))
    if len(start) < len(before) and len(shared_suffix(asked, before)) < min(12, len(before)):
        opening = before[len(start) :].strip(WHITE_SPACE)
        if opening:
            return opening
    end = asked if asked.startswith(before) else before
    line = end.rstrip(WHITE_SPACE).rpartition("\n")[2].strip(WHITE_SPACE)
    tags = re.findall(r"<[^<>\s]*>|\[[A-Z_]+\]", line)
    if tags and line.endswith(tags[-1]) and re.search("think|thought|reason", tags[-1], re.IGNORECASE):
        return str(tags[-1])
    run = re.search(r"(?:<[^<>\s]*>[^<>\s]*)+\Z", line)
    return run[0] if run else line


# --- calls ---


def probe_calls(render: Render, as_text: bool, ids: Sequence[str]) -> CallForm | None:
    """Find the form of calls; None if the template does not show them."""
    one = _call(ONE, ARGUMENTS, ids[0], as_text)
    two = _call(TWO, WORD, ids[1], as_text)
    asked, answered = _rendered(render), _rendered(render, _message(TEXT))
    called = _rendered(render, _message("", [one])) or _rendered(render, _message(TEXT, [one]))
    if asked is None or answered is None or called is None or called.count(ONE) <= asked.count(ONE):
        return None
    region = _region(asked, answered, called)
    both = _rendered(render, _message("", [one, two]))
    second = _region(asked, answered, both) if both else ""
    if second.count(TWO) < 1 or ONE not in second:
        second = ""
    region, second = _placed(region, ids), _placed(second, ids)
    form = form_of(region, second)
    return without_end_of_turn(form, answered.partition(TEXT)[2].strip(WHITE_SPACE)) if form else None


def without_end_of_turn(form: CallForm, end: str) -> CallForm:
    """Remove the end of the turn that some templates write before a call, as if it were a message of its own."""
    begins = (form.open or form.head).lstrip(WHITE_SPACE)
    if not end or not begins.startswith(end):
        return form
    rest = begins.removeprefix(end)
    lead = end + rest[: len(rest) - len(rest.lstrip(WHITE_SPACE))]
    rest = rest.lstrip(WHITE_SPACE)
    return replace(form, open=rest, lead=lead) if form.open else replace(form, head=rest, lead=lead)


def _region(asked: str, answered: str, called: str) -> str:
    """Cut the calls out of a rendered conversation: what comes after the prompt, without the end of the turn."""
    before, _, after = answered.partition(TEXT)
    start = before if called.startswith(before) else whole_tags(shared_prefix(asked, called))
    region = called[len(start) :]
    if region.endswith(after) and after:
        region = region[: -len(after)]
    return region.replace(TEXT, "", 1) if region.lstrip(WHITE_SPACE).startswith(TEXT) else region


def _placed(text: str, ids: Sequence[str]) -> str:
    for id in ids:
        text = text.replace(id, ID) if ONE not in id and TWO not in id else text
    return text
