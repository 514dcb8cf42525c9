"""Parsers by name, as a Modelfile's PARSER or a manifest names them: a shape for each, made for one answer.

Names and behaviour are those of Ollama v0.33.0-rc2; tests/golden/recorded/parsers holds what it reads.  The mode
"answer" is text after the thinking, whose first white space is dropped, "content" any other text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .calls import (
    braces_call,
    called_by_header,
    escapes_call,
    function_call,
    invoke_call,
    json_call,
    mended_pairs_call,
    named_call,
    pairs_call,
    python_calls,
    python_lines,
    recipient,
    whole_pairs_call,
)
from .shape import Mode, Read, Shape, Shows
from .values import Tools

Think = bool | str | None
MakeShape = Callable[[Think, bool, bool], Shape]
"""A function of the request's `think`, whether the prompt ends within an answer, and whether there are tools."""


@dataclass(frozen=True)
class NamedParser:
    """A parser, and what a model with it can do.

    tags   the marks that it has to see as text, although they may be control tokens
    """

    shape: MakeShape
    thinking: bool = False
    tools: bool = True
    tags: tuple[str, ...] = ()


THINK = ("<think>", "</think>")
TOOL_CALL = ("<tool_call>", "</tool_call>")
PAIRS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
DEEPSEEK = tuple(f"<｜tool▁{name}｜>" for name in "calls▁begin calls▁end call▁begin call▁end sep".split())
OUTPUTS = tuple(f"<｜tool▁{name}｜>" for name in "output▁begin output▁end outputs▁begin outputs▁end".split())


def qwen(
    read: Read,
    thinks: bool = False,
    *,
    opening: str = "<think>",
    begins: Callable[[Think, bool], bool] = lambda think, is_continued: think is not False and not is_continued,
    skips_blanks: bool = False,
    after: str = "content",
) -> MakeShape:
    """Return Qwen's parsers: calls between <tool_call> and </tool_call>, also within the thinking, which they end.

    opening       a tag that the thinking may begin with
    begins        whether the answer begins with thinking
    skips_blanks  white space before the thinking is dropped
    after         the mode after a call
    """

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        call = {"<tool_call>": "call"}
        modes = {
            "begin": Mode("content", first={opening: "thinking"} if opening else {}, otherwise="thinking"),
            "thinking": Mode("thinking", {"</think>": "answer"} | call, skip_blanks=skips_blanks, hold_blanks=True),
            "answer": Mode("content", call, skip_blanks=True, hold_blanks=True),
            "content": Mode("content", call, hold_blanks=True),
            "call": Mode("calls", {"</tool_call>": after}, read=read, broken="content"),
        }
        first = "begin" if opening else "thinking"
        return Shape(modes, first if thinks and begins(think, is_continued) else "content", end="none")

    return shape


def deepseek(read: Read, thinks: Callable[[Think, bool], bool]) -> MakeShape:
    """Return DeepSeek's parsers: a list of calls, of which the first that cannot be read is the last.

    thinks   whether the answer begins with thinking, by `think` and whether there are tools
    """

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        calls = {"<｜tool▁calls▁begin｜>": "calls"}
        modes = {
            "thinking": Mode("thinking", {"</think>": "answer"}, hold_blanks=True),
            "answer": Mode("content", calls, skip_blanks=True),
            "content": Mode("content", calls),
            "calls": Mode("nothing", {"<｜tool▁call▁begin｜>": "call", "<｜tool▁calls▁end｜>": "content"}),
            "call": Mode("calls", {"<｜tool▁call▁end｜>": "calls"}, read=read, broken="lost"),
            "lost": Mode("nothing", {"<｜tool▁calls▁end｜>": "content"}),
        }
        return Shape(modes, "thinking" if thinks(think, has_tools) and not is_continued else "content", end="content")

    return shape


def glm(thinks: bool) -> MakeShape:
    """Return GLM's parsers; the thinking may be open from the start."""

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        call = {"<tool_call>": "call"}
        modes = {
            "begin": Mode("content", first={"<think>": "thinking"}, otherwise="content"),
            "thinking": Mode("thinking", {"</think>": "answer"}, hold_blanks=True),
            "answer": Mode("content", call, skip_blanks=True, hold_blanks=True),
            "content": Mode("content", call, hold_blanks=True),
            "call": Mode(
                "calls",
                {"</tool_call>": "content"},
                read=mended_pairs_call,
                read_unfinished=whole_pairs_call,
                broken="content",
                unfinished="read without mark",
            ),
        }
        return Shape(modes, "thinking" if thinks and think is not False else "begin", end="none")

    return shape


def laguna(begins: Callable[[Think, bool], bool]) -> MakeShape:
    """Return Laguna's parsers: thinking may come anywhere, and is dropped unless the request asks for it."""

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        marks = {"<think>": "thought", "</think>": "content", "<tool_call>": "call"}
        first = {"</think>": "answer", "<tool_call>": "first call"}
        later = {"</think>": "content", "<tool_call>": "call"}
        spaced = frozenset({"<think>"})
        modes = {
            "begin": Mode("content", first={"<think>": "thinking"}, otherwise="open thinking"),
            "open thinking": Mode("thinking", first, skip_blanks=True, hold_blanks=True),
            "thinking": Mode("thinking", first, hold_blanks=True),
            "thought": Mode("thinking" if think else "nothing", later, hold_blanks=True),
            "answer": Mode("content", marks, skip_blanks=True, hold_blanks=True, spaced=spaced),
            "content": Mode("content", marks, hold_blanks=True, spaced=spaced),
            "first call": Mode("calls", {"</tool_call>": "answer"}, read=pairs_call, unfinished="read"),
            "call": Mode("calls", {"</tool_call>": "content"}, read=pairs_call, unfinished="read"),
        }
        return Shape(modes, "begin" if begins(think, is_continued) else "answer")

    return shape


def gemma4(thinks: bool) -> MakeShape:
    """Return Gemma 4's parsers: channels, which are dropped unless the request asks for thinking."""

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        marks = {"<|channel>": "channel", "<|tool_call>": "call"}
        shows: Shows = "thinking" if thinks and think else "nothing"
        modes = {
            "content": Mode("content", marks),
            "after": Mode("content", marks, skip_blanks=True),
            "channel": Mode("nothing", first={"thought\n": "thinking"}, otherwise="thinking"),
            "thinking": Mode(shows, {"<channel|>": "after"}, skip_blanks=True, hold_blanks=True),
            "call": Mode("calls", {"<tool_call|>": "called"}, read=braces_call, unfinished="read"),
            "called": Mode("nothing", first=marks | {"<|tool_response>": "after"}, otherwise="after"),
        }
        return Shape(modes, "content")

    return shape


def functiongemma(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    modes = {
        "content": Mode("content", {"<start_function_call>": "call"}),
        "call": Mode("calls", {"<end_function_call>": "content"}, read=escapes_call),
    }
    return Shape(modes, "content", end="none")


def lfm2(thinks: bool) -> MakeShape:
    """Return LFM2's parsers; nothing comes after a call that cannot be read."""

    def shape(think: Think, is_continued: bool, has_tools: bool) -> Shape:
        call = {"<|tool_call_start|>": "call"}
        modes = {
            "begin": Mode("content", first={"<think>": "thinking"}, otherwise="answer"),
            "thinking": Mode("thinking", {"</think>": "answer"}, skip_blanks=True, hold_blanks=True),
            "answer": Mode("content", call, skip_blanks=True),
            "content": Mode("content", call),
            "call": Mode("calls", {"<|tool_call_end|>": "content"}, read=python_calls, broken="lost"),
            "lost": Mode("nothing"),
        }
        return Shape(modes, "begin" if thinks and think and not is_continued else "content", end="content")

    return shape


def olmo3(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    """Return the shape of OLMo 3's answers; a second list of calls, with nothing between them, is text."""
    calls = "<function_calls>"
    modes = {
        "content": Mode("content", {calls: "call"}),
        "call": Mode("calls", {"</function_calls>": "after"}, read=python_lines),
        "after": Mode("content", first={calls: "rest"}, otherwise="content", is_tight=True, kept=frozenset({calls})),
        "rest": Mode("content"),
    }
    return Shape(modes, "content", end="none")


def olmo3_think(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    modes = {
        "thinking": Mode("thinking", {"</think>": "answer"}, hold_blanks=True),
        "answer": Mode("content", skip_blanks=True),
        "content": Mode("content"),
    }
    return Shape(modes, "content" if is_continued else "thinking", end="content")


def ministral(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    marks = {"[TOOL_CALLS]": "name", "[THINK]": "thinking"}
    modes = {
        "content": Mode("content", marks, hold_blanks=True),
        "thinking": Mode("thinking", {"[/THINK]": "content"}, hold_blanks=True),
        "name": Mode("nothing", {"[ARGS]": "call"}, choose=lambda header, tools: "call"),
        "call": Mode("calls", read=called_by_header, brackets=True, otherwise="content", broken="content"),
    }
    return Shape(modes, "content", end="none")


def cohere(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    """Return the shape of Command A's answers: thinking, then texts and lists of actions."""
    opens = {"<|START_TEXT|>": "text", "<|START_RESPONSE|>": "text", "<|START_ACTION|>": "actions"}
    closes = {"<|END_TEXT|>": "open", "<|END_RESPONSE|>": "open"}
    read = json_call("tool_name", "parameters")
    modes = {
        "thinking": Mode("thinking", {"<|END_THINKING|>": "open"}, hold_blanks=True),
        "open": Mode("content", first=opens, otherwise="answer"),
        "answer": Mode("content", closes, skip_blanks=True),
        "text": Mode("content", closes),
        "actions": Mode("nothing", {"{": "call", "<|END_ACTION|>": "open"}, kept=frozenset("{")),
        "call": Mode("calls", brackets=True, otherwise="actions", read=read, broken="lost"),
        "lost": Mode("nothing", {"<|END_ACTION|>": "open"}),
    }
    return Shape(modes, "text" if is_continued else "thinking" if think is not False else "open", end="content")


def glimmer(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    """Return the shape of Glimmer's answers: messages to the user, to itself, or to a tool."""
    ends = {"<|eom|>": "header", "<|eot|>": "header", "<|start|>": "header"}
    modes = {
        "header": Mode("nothing", {"<|message|>": ""}, choose=_addressed_to, unfinished="show"),
        "thinking": Mode("thinking" if think is not False else "nothing", ends),
        "content": Mode("content", ends),
        "call": Mode("calls", ends, read=invoke_call, broken="content", unfinished="read"),
    }
    return Shape(modes, "header")


def _addressed_to(header: str, tools: Tools) -> str:
    to = re.fullmatch(r"\s*to=(\S+)", header)
    if to and to[1] == "self":
        return "thinking"
    return "call" if to and to[1] in tools else "content"


def harmony(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    """Return the shape of answers of gpt-oss: messages, whose header has a channel and perhaps a recipient."""
    modes = {
        "header": Mode("nothing", {"<|message|>": ""}, choose=_channel),
        "thinking": Mode("thinking", {"<|end|>": "between"}),
        "content": Mode("content", {"<|end|>": "between"}),
        "call": Mode(
            "calls", {"<|end|>": "between"}, read=called_by_recipient, broken="content", unfinished="read without mark"
        ),
        "between": Mode("nothing", {"<|start|>": "header"}),
    }
    return Shape(modes, "content" if is_continued else "header", end="none")


def called_by_recipient(text: str, tools: Tools, header: str) -> list[tuple[str, dict[str, object]]] | None:
    """Read the arguments of the function that the header addresses."""
    name = recipient(header).removeprefix("functions.")
    return called_by_header(text, {name: {}}, name)


def _channel(header: str, tools: Tools) -> str:
    name = (header.partition("<|channel|>")[2].split() or [""])[0]
    if name in ("analysis", "commentary") and recipient(header):
        return "call"
    return "thinking" if name == "analysis" else "content"


def passthrough(think: Think, is_continued: bool, has_tools: bool) -> Shape:
    return Shape({"content": Mode("content")}, "content")


COGITO_CALL = named_call(r"function<｜tool▁sep｜>(.+?)\n```json\n(.*?)\n```")
DEEPSEEK_CALL = named_call(r"(.*?)<｜tool▁sep｜>(.*)")
LAGUNA_TAGS = (*THINK, *TOOL_CALL, "<user>", "</user>", *PAIRS)
GEMMA_TAGS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", '<|"|>')
LFM2_TAGS = (*THINK, "<|tool_call_start|>", "<|tool_call_end|>")
COHERE_TAGS = tuple(
    f"<|{end}_{kind}|>" for kind in ("THINKING", "TEXT", "ACTION", "RESPONSE") for end in ("START", "END")
)
VL_TAGS = ("</think>", *TOOL_CALL)

PARSERS: dict[str, NamedParser] = {
    "cogito": NamedParser(
        deepseek(COGITO_CALL, lambda think, tools: bool(think) and not tools),
        thinking=True,
        tags=("</think>", *DEEPSEEK, *OUTPUTS),
    ),
    "cohere": NamedParser(cohere, thinking=True, tags=COHERE_TAGS),
    "deepseek3": NamedParser(
        deepseek(DEEPSEEK_CALL, lambda think, tools: bool(think)),
        thinking=True,
        tags=("</think>", *DEEPSEEK, *OUTPUTS[:2]),
    ),
    "functiongemma": NamedParser(functiongemma, tags=("<start_function_call>", "<end_function_call>")),
    "gemma4": NamedParser(gemma4(True), thinking=True, tags=GEMMA_TAGS),
    "gemma4-no-thinking": NamedParser(gemma4(False), tags=GEMMA_TAGS),
    "glimmer": NamedParser(glimmer, thinking=True, tags=("<|start|>", "<|message|>", "<|eom|>", "<|eot|>")),
    "glm-4.7": NamedParser(glm(True), thinking=True, tags=(*THINK, *TOOL_CALL, *PAIRS)),
    "glm-ocr": NamedParser(glm(False), tags=(*THINK, *TOOL_CALL, *PAIRS)),
    "harmony": NamedParser(
        harmony, thinking=True, tags=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")
    ),
    "laguna": NamedParser(
        laguna(lambda think, is_continued: bool(think) and not is_continued), thinking=True, tags=LAGUNA_TAGS
    ),
    "lfm2": NamedParser(lfm2(False), tags=LFM2_TAGS),
    "lfm2-thinking": NamedParser(lfm2(True), thinking=True, tags=LFM2_TAGS),
    "ministral": NamedParser(ministral, tags=("[TOOL_CALLS]", "[THINK]", "[/THINK]", "[ARGS]")),
    "nemotron-3-nano": NamedParser(qwen(function_call, True, skips_blanks=True), True, tags=(*THINK, *TOOL_CALL)),
    "nemotron-3.5-nano": NamedParser(qwen(function_call, True, skips_blanks=True), True, tags=(*THINK, *TOOL_CALL)),
    "olmo3": NamedParser(olmo3, tags=("<function_calls>", "</function_calls>")),
    "olmo3-think": NamedParser(olmo3_think, thinking=True, tools=False, tags=("</think>",)),
    "ornith": NamedParser(qwen(function_call, True), thinking=True, tags=(*THINK, *TOOL_CALL)),
    "passthrough": NamedParser(passthrough, tools=False),
    "poolside-v1": NamedParser(laguna(lambda think, is_continued: bool(think)), thinking=True, tags=LAGUNA_TAGS),
    "qwen3": NamedParser(qwen(json_call()), tags=(*THINK, *TOOL_CALL)),
    "qwen3-coder": NamedParser(qwen(function_call), tags=TOOL_CALL),
    "qwen3-thinking": NamedParser(
        qwen(json_call(), True, begins=lambda think, is_continued: think is not False),
        thinking=True,
        tags=(*THINK, *TOOL_CALL),
    ),
    "qwen3-vl-instruct": NamedParser(qwen(json_call(), after="answer"), tags=VL_TAGS),
    "qwen3-vl-thinking": NamedParser(
        qwen(json_call(), True, opening="", begins=lambda think, is_continued: not is_continued, after="answer"),
        thinking=True,
        tags=VL_TAGS,
    ),
    "qwen3.5": NamedParser(qwen(function_call, True), thinking=True, tags=(*THINK, *TOOL_CALL)),
}
