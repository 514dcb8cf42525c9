"""Forms of calls that are known by their words, for templates that do not render a call, or fail on it."""

from __future__ import annotations

from ..parse.form import ARGUMENTS, INDEX, NAME, PLAIN_FORM, CallForm


def _object(open: str = "", close: str = "", head: str = "", tail: str = "", between: str = "") -> CallForm:
    return CallForm(
        "object",
        head=head,
        tail=tail,
        open=open,
        close=close,
        between=between,
        body=f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}',
        name_path=("name",),
        arguments_path=("arguments",),
    )


KNOWN: list[tuple[tuple[str, ...], CallForm]] = [  # the first of which the template has all words
    (
        ("<|tool_calls_section_begin|>",),  # Kimi K2
        CallForm(
            "named",
            head=f"<|tool_call_begin|>functions.{NAME}:{INDEX}<|tool_call_argument_begin|>",
            tail="<|tool_call_end|>",
            open="<|tool_calls_section_begin|>",
            close="<|tool_calls_section_end|>",
        ),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "```json"),  # DeepSeek R1 and V3
        CallForm(
            "named",
            head=f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{NAME}\n```json\n",
            tail="\n```<｜tool▁call▁end｜>",
            between="\n",
            open="<｜tool▁calls▁begin｜>",
            close="<｜tool▁calls▁end｜>",
        ),
    ),
    (
        ("<｜tool▁calls▁begin｜>",),  # DeepSeek V3.1
        CallForm(
            "named",
            head=f"<｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>",
            tail="<｜tool▁call▁end｜>",
            open="<｜tool▁calls▁begin｜>",
            close="<｜tool▁calls▁end｜>",
        ),
    ),
    (("<|tool_list_start|>",), CallForm("python", head=f"<|tool_call_start|>[{NAME}", tail="]<|tool_call_end|>")),
    (("List of tools: [",), CallForm("python", head=f"<|tool_call_start|>[{NAME}", tail="]<|tool_call_end|>")),
    (("<|tool_call|>",), _object(open="<|tool_call|>[", close="]", between=", ")),  # Granite 3
    (("functools[",), _object(open=" functools[", close="]", between=", ")),
    (("<tool_call>",), _object(head="<tool_call>\n", tail="\n</tool_call>", between="\n")),
    (("Action:", "```json"), _object(open="Action:\n```json\n[\n", close="\n]```", between=",\n")),
]
NAMED_BY_WORDS = {"harmony": ("<|channel|>", "<|message|>", "<|start|>"), "glimmer": ("<atem:function_calls>",)}
"""Parsers that have a name, for templates with these words: their answers are messages with headers."""


def known_form(text: str) -> CallForm:
    """Return the form of the calls of a template that shows none."""
    return next((form for words, form in KNOWN if all(word in text for word in words)), PLAIN_FORM)


def known_parser(text: str) -> str:
    """Return the name of the parser for a template whose answers are messages with headers, or ""."""
    return next((name for name, words in NAMED_BY_WORDS.items() if all(word in text for word in words)), "")
