"""Ollama's TEMPLATE: Go's text/template applied to a conversation.

The variables that a template uses decide how it is executed:

    .Prompt and .Suffix given   once, for a prompt with a gap to fill
    .Messages used              once, for the whole list
    neither                     "legacy": for each turn, with .System .Prompt .Response; the last turn stays open

The model's capabilities and tags are derived from the template's tree, because no metadata states them.
Source: template/template.go, tools/template.go, thinking/template.go of Ollama v0.33.0-rc2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from ..errors import BadTemplate
from ..go.eval import execute
from ..go.functions import FUNCTIONS
from ..go.limits import Budget
from ..go.parse import (
    ActionNode,
    BranchNode,
    CallNode,
    FieldNode,
    IfNode,
    ListNode,
    PipeNode,
    RangeNode,
    Steps,
    TextNode,
    VariableNode,
    parse_template,
    run_steps,
)
from ..go.text import WHITE_SPACE
from ..go.values import go_value
from .go_data import go_messages, go_tools
from .messages import Message, collate

RESULT_WORDS = ('eq .Role "tool"', "tool_response", "[TOOL_RESULTS]")


@lru_cache(maxsize=64)
def load_template(text: str) -> GoTemplate:
    """Parse a model's template.  Raises: BadTemplate with Go's text"""
    trees = parse_template(text, FUNCTIONS)
    if any(isinstance(node, CallNode) and node.pipe is None for tree in trees.values() for node in _walk(tree)):
        raise BadTemplate("undefined template specified")  # Ollama's words for {{ template "x" }} without an argument
    template = GoTemplate(text, trees)
    if {"messages", "response"} & template.names:
        return template
    response = parse_template("{{ .Response }}", ())[""].nodes
    return GoTemplate(text, {**trees, "": ListNode((*trees[""].nodes, *response))})


def execute_template(text: str, data: Any) -> str:
    """Execute the template `text` with JSON `data`, as text/template does without Ollama.  Raises: BadTemplate"""
    with limit_depth():
        return execute(text, parse_template(text, FUNCTIONS), go_value(data), Budget(data))


@contextmanager
def limit_depth() -> Iterator[None]:
    """Convert a RecursionError, caused by deeply nested values, to BadTemplate."""
    try:
        yield
    except RecursionError:
        raise BadTemplate("template: the data are nested too deeply") from None


@dataclass(frozen=True, eq=False)
class GoTemplate:
    """A parsed template.

    source  its text, to which errors refer
    trees   by name; "" is the template itself, which ends in `{{ .Response }}` if it uses neither that nor .Messages
    """

    source: str
    trees: Mapping[str, ListNode]

    # --- rendering ---

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | str | None = None,
    ) -> str:
        """Render the conversation; a last message of the assistant stays open.

        Raises: BadTemplate
        """
        budget = Budget([*messages, *(tools or ())])
        if "messages" not in self.names:
            return self._turns(collate(messages), think, budget)
        system = [message["content"] for message in messages if message["role"] == "system"]
        with limit_depth():
            data = {
                "System": "\n\n".join(system),
                "Messages": go_messages(collate(messages)),
                "Tools": go_tools(tools),
                "Response": "",
            }
            return execute(self.source, self.trees, data | thinking_variables(think), budget)

    def fill(self, prompt: str, suffix: str, think: bool | str | None = None) -> str:
        """Render the prompt for the text between `prompt` and `suffix`.  Raises: BadTemplate"""
        data = {"Prompt": prompt, "Suffix": suffix, "Response": ""}
        return execute(self.source, self.trees, data | thinking_variables(think), Budget(data))

    def _turns(self, messages: Sequence[Message], think: bool | str | None, budget: Budget) -> str:
        """Render in legacy mode: a turn is written when the next one begins, the last one up to its `.Response`."""
        written, empty = "", {"System": "", "Prompt": "", "Response": ""}
        turn = dict(empty)
        for message in messages:
            begins = {"system": ("Prompt", "Response"), "user": ("Response",)}.get(message["role"], ())
            if any(turn[name] for name in begins):
                written += execute(self.source, self.trees, turn | thinking_variables(think), budget)
                turn = dict(empty)
            name = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(message["role"])
            if name:
                turn[name] = message["content"]
        return written + execute(self.source, {"": self._open}, turn | thinking_variables(think), budget, missing=None)

    @cached_property
    def _open(self) -> ListNode:
        """The tree up to its first `.Response`.

        As in Ollama, it is a separate template: templates from `define` are unavailable, and missingkey=zero is off.
        """
        cut: ListNode = run_steps(_ResponseCut().list(self.trees[""]))
        return cut

    # --- derived properties ---

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables and fields that the template uses, in lower case.  One in `(x).Name` is not found."""
        nodes = [node for tree in self.trees.values() for node in _walk(tree)]
        return frozenset(
            name.lower() for node in nodes if isinstance(node, FieldNode | VariableNode) for name in node.names
        )

    @cached_property
    def capabilities(self) -> list[str]:
        """Capabilities of the template: some of tools, insert, thinking."""
        named = [capability for capability, name in (("tools", "tools"), ("insert", "suffix")) if name in self.names]
        return [*named, *(["thinking"] if all(self.thinking_tags) else [])]

    @cached_property
    def takes_results(self) -> bool:
        """Whether the template renders earlier tool calls and their results."""
        return "toolcalls" in self.names and any(word in self.source for word in RESULT_WORDS)

    @cached_property
    def thinking_tags(self) -> tuple[str, str]:
        """The tags around a thought, such as <think> and </think>; "" if the template does not show them.

        They are the first and last text among the siblings of `.Thinking` in a range over `.Messages`.
        """
        opening = closing = ""
        for node, around in _with_ancestors(self.trees[""]):
            if not (isinstance(node, FieldNode) and node.names[0] == "Thinking"):
                continue
            ranges = [outer for outer in around if isinstance(outer, RangeNode)]
            if not ranges or not any(_is_field(inner, "Messages") for inner in _walk(ranges[-1].pipe)):
                continue
            nodes = next(outer for outer in reversed(around) if isinstance(outer, ListNode)).nodes
            opening = nodes[0].text.strip(WHITE_SPACE) if isinstance(nodes[0], TextNode) else opening
            closing = nodes[-1].text.strip(WHITE_SPACE) if isinstance(nodes[-1], TextNode) else closing
        return opening, closing

    @cached_property
    def tool_tag(self) -> str:
        """The text that a tool call begins with: <tool_call>, [TOOL_CALLS] [, or { if the template does not show it.

        It is the first text in the first `if .ToolCalls`.
        """
        calls = (node for node in _walk(self.trees[""]) if isinstance(node, IfNode) and _tests_tool_calls(node))
        branch = next(calls, None)
        text = _first_text(branch.body) if branch else ""
        return text.replace("\r\n", "\n").partition("{")[0].strip(WHITE_SPACE) or "{"


def thinking_variables(think: bool | str | None) -> dict[str, Any]:
    """Return the template variables for whether and how hard the model should think."""
    level = think if isinstance(think, str) else "medium" if think else ""
    return {"Think": bool(think), "ThinkLevel": level, "IsThinkSet": think is not None}


# --- tree traversal without recursion ---


def _children(node: Any) -> Sequence[Any]:
    match node:
        case ListNode():
            return node.nodes
        case BranchNode():
            return [node.pipe, node.body, *([node.otherwise] if node.otherwise else [])]
        case ActionNode():
            return [node.pipe]
        case CallNode():
            return [node.pipe] if node.pipe else []
        case PipeNode():
            return [arg for command in node.commands for arg in command.args]
    return []


def _with_ancestors(root: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every node with its ancestors, the outermost first, in text order."""
    todo: list[tuple[Any, tuple[Any, ...]]] = [(root, ())]
    while todo:
        node, around = todo.pop()
        yield node, around
        todo += [(child, (*around, node)) for child in reversed(_children(node))]


def _walk(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(_children(node))


def _is_field(node: Any, name: str) -> bool:
    return isinstance(node, FieldNode) and node.names[0] == name


def _tests_tool_calls(node: IfNode) -> bool:
    operands = [arg for command in node.pipe.commands for arg in command.args]
    return any(isinstance(operand, FieldNode) and "ToolCalls" in operand.names for operand in operands)


def _first_text(tree: ListNode) -> str:
    """Return the first text that is not blank, before any action; a block without one ends the search."""
    todo = list(reversed(tree.nodes))
    while todo:
        node = todo.pop()
        if isinstance(node, TextNode) and node.text.strip(WHITE_SPACE):
            return node.text
        if isinstance(node, BranchNode):
            todo = [*reversed(node.otherwise.nodes if node.otherwise else ()), *reversed(node.body.nodes)]
        elif not isinstance(node, TextNode | CallNode):
            return ""
    return ""


class _ResponseCut:
    """Builds a copy of a tree that ends after its first `.Response`; conditions of blocks are not searched."""

    def __init__(self) -> None:
        self.is_met = False

    def list(self, tree: ListNode) -> Steps:
        kept: list[Any] = []
        for node in tree.nodes:
            if self.is_met:
                break
            if isinstance(node, BranchNode):
                body = yield self.list(node.body)
                otherwise = (yield self.list(node.otherwise)) if node.otherwise and not self.is_met else None
                kept.append(replace(node, body=body, otherwise=otherwise))
            elif not isinstance(node, ActionNode):
                kept.append(node)
            elif (pipe := (yield self.pipe(node.pipe))) is not None:
                kept.append(replace(node, pipe=pipe))
        return ListNode(tuple(kept))

    def pipe(self, pipe: PipeNode) -> Steps:
        """Return the kept part of a pipeline, or None if a stage lost all its operands."""
        commands = []
        for command in pipe.commands:
            args: list[Any] = []
            for arg in command.args:
                if self.is_met:
                    break
                if isinstance(arg, FieldNode) and "Response" in arg.names:
                    self.is_met = True
                kept = (yield self.pipe(arg)) if isinstance(arg, PipeNode) else arg
                args += [kept] if kept is not None else []
            if not args:
                return None
            commands.append(replace(command, args=tuple(args)))
        return replace(pipe, commands=tuple(commands))
