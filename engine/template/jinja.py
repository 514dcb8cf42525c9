"""Chat templates in Jinja, rendered as by Hugging Face, whose renderer the models were trained with.

The environment is that of transformers 5.23: jinja2's immutable sandbox, blocks trimmed, `{% break %}`,
`{% generation %}`, `tojson` without HTML escapes, `raise_exception`, `strftime_now`.  go/limits.py defines the
limits on a template's time and memory.
"""

from __future__ import annotations

import copy
import functools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from ..errors import BadTemplate, ConversationRefused
from ..go.limits import MAX_NODES, MAX_TEXT, MAX_TOKENS, Budget, BudgetExceeded

MARK = "\ue000continue here\ue000 "  # appended to the text to continue; its blank shows whether the template trims


class Generation(jinja2.ext.Extension):
    """The block `{% generation %}...{% endgeneration %}`, a mark for training, which renders as its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Metered(NodeTransformer):
    """A tree transformer that passes every output, loop, concatenation, slice and comparison through a filter of ours.

    The filters return their value unchanged and charge the budget.  Constant folding at compile time is prevented too.
    """

    def visit_TemplateData(self, node: Any) -> Any:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it passes through _finalize like any other value

    def visit_For(self, node: Any) -> Any:
        node = self.generic_visit(node)
        node.iter = _filter("_looped", node.iter)
        return node

    def visit_Concat(self, node: Any) -> Any:
        node = self.generic_visit(node)
        return _filter("_concat", node.nodes[0], *node.nodes[1:])

    def visit_Getitem(self, node: Any) -> Any:
        node = self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter("_slice", node.node, *(bound or nodes.Const(None, lineno=node.lineno) for bound in bounds))

    def visit_Compare(self, node: Any) -> Any:
        node = self.generic_visit(node)
        node.expr = _filter("_compared", node.expr)
        for operand in node.ops:
            operand.expr = _filter("_compared", operand.expr)
        return node

    def visit_Pair(self, node: Any) -> Any:
        node = self.generic_visit(node)
        node.key = _filter("_compared", node.key)
        return node


def _filter(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Hugging Face's environment, with every operation charged to the rendering's budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=_finalize,
            optimized=False,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"_looped": _looped, "_concat": _concat, "_slice": _slice, "_compared": _compared}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _dict}
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_TEXT:
            raise BudgetExceeded(f"{len(source)} characters, at most {MAX_TEXT} are allowed")
        if any(count >= MAX_TOKENS for count, _ in enumerate(self.lex(source))):
            raise BudgetExceeded(f"more than {MAX_TOKENS} tokens")
        tree = super()._parse(source, name, filename)
        if any(count >= MAX_NODES for count, _ in enumerate(tree.find_all(nodes.Node))):
            raise BudgetExceeded(f"more than {MAX_NODES} nodes")
        metered: nodes.Template = Metered().visit(tree)
        return metered

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _budget.get().operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.tick()
        if isinstance(obj, BuiltinMethodType):
            args = budget.method(obj.__self__, obj.__name__, args)
        return budget.charge_for(super().call(context, obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        _budget.get().weight(argument)  # looking up a nested tuple takes time
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return functools.partial(_formatted, value.__self__, wrapped) if wrapped else None


_budget: ContextVar[Budget] = ContextVar("budget")


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> str:
    """Finalize the value of `{{ value }}` as text."""
    budget = _budget.get()
    budget.tick()
    budget.charge(budget.weight(value))
    return str(value)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the filter `name` to charge for its result; some of jinja2's filters take a context before the value."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.tick()
        paid = budget.filter(name, args[first:], kwargs)
        return budget.charge_for(function(*args[:first], *paid, **kwargs))

    return metered


def _looped(value: Any) -> Any:
    _budget.get().tick()
    return value


def _concat(*values: Any) -> str:
    budget = _budget.get()
    budget.charge(budget.weight(values))
    return "".join(map(str, values))


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    taken = value[start:stop:step]
    _budget.get().charge(len(taken))
    return taken


def _compared(value: Any) -> Any:
    """Charge for comparing or hashing `value`, which takes time for every occurrence of a repeated part."""
    if not isinstance(value, str):
        _budget.get().tick()
        _budget.get().weight(value)
    return value


def _formatted(form: str, function: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """Call str.format, unless a width in the format is large or taken from a value."""
    for _, _, spec, _ in string.Formatter().parse(form):
        if spec and ("{" in spec or any(len(digits) > 4 for digits in _digits(spec))):
            raise BudgetExceeded(f"a width in the format {form[:40]!r} is too large or taken from a value")
    budget = _budget.get()
    budget.charge(len(form) + budget.weight([*args, *kwargs.values()]))
    return function(*args, **kwargs)


def _digits(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)  # the class itself would expose methods that modify messages


def _strftime_now(form: str) -> str:
    if len(form) > 1000:
        raise BudgetExceeded("a date's format is longer than 1000 characters")
    return datetime.now().strftime(form)


def render_jinja(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """Render the conversation by the template `text`.

    add_generation_prompt   end the text where the model's answer begins
    continue_final_message  end the text where the last message ends, so that the model continues it
    variables               bos_token, eos_token, enable_thinking, ...: variables that the template may use
    Raises: BadTemplate; ConversationRefused if the template calls raise_exception
    """
    own = [_prepared(message) for message in messages]
    if continue_final_message:
        own = _marked(own)
    variables = {"messages": own, "tools": tools, "documents": None, **variables}
    previous = _budget.set(Budget(variables))
    try:
        rendered = _compiled(text).render(add_generation_prompt=add_generation_prompt, **variables)
        rendered.encode()  # raises for a lone surrogate
    except Exception as error:  # the template's code may raise anything
        if type(error) is jinja2.TemplateError:  # by raise_exception
            raise ConversationRefused(_one_line(error)) from error
        raise BadTemplate(_one_line(error)) from error
    finally:
        _budget.reset(previous)
    return _cut(rendered) if continue_final_message else rendered


_OWN_FILTERS: dict[str, Callable[..., Any]] = {}


def add_filters(filters: Mapping[str, Callable[..., Any]]) -> None:
    """Add filters for the templates that render_own() renders."""
    _OWN_FILTERS.update(filters)


def render_own(text: str, variables: Mapping[str, Any]) -> str:
    """Render a template of this package, with filters of its own, under the limits of all others.

    Raises: BadTemplate; ConversationRefused if the template calls raise_exception
    """
    previous = _budget.set(Budget(dict(variables)))
    try:
        return _compiled_own(text).render(**variables)
    except Exception as error:  # as for render_jinja
        if type(error) is jinja2.TemplateError:
            raise ConversationRefused(_one_line(error)) from error
        raise BadTemplate(_one_line(error)) from error
    finally:
        _budget.reset(previous)


@lru_cache(maxsize=32)
def _compiled_own(text: str) -> jinja2.Template:
    environment = Environment()
    environment.filters |= {name: _metered(name, function) for name, function in _OWN_FILTERS.items()}
    return environment.from_string(text)


def compiles(text: str) -> bool:
    """Return whether the template `text` compiles."""
    try:
        _compiled(text)
    except Exception:  # jinja2's parser and compiler may raise anything
        return False
    return True


@lru_cache(maxsize=32)
def _compiled(text: str) -> jinja2.Template:
    return Environment().from_string(text)


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `message` for use by the template; reasoning appears under both of its common names."""
    copied = {key: copy.deepcopy(value) for key, value in message.items() if value is not None}
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in copied:
            return {"thinking": copied[key], "reasoning_content": copied[key]} | copied
    return copied


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append MARK to the last text in `messages`.  Raises: ConversationRefused if they have none"""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], messages[-1] | {"content": content + MARK}]
    for part in reversed(content or []):
        if isinstance(part, dict) and "text" in part:
            part["text"] += MARK
            return messages
    raise ConversationRefused("the last message has no text to continue")


def _cut(rendered: str) -> str:
    before, mark, after = rendered.rpartition(MARK.rstrip())
    if not mark:
        raise ConversationRefused("the last message cannot be continued: the chat template does not render it")
    return before if after.startswith(" ") else before.rstrip()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    _budget.get().weight(message)
    raise jinja2.TemplateError(str(message))


def _one_line(error: Exception) -> str:
    """Format the error in one line with the template's line number; an error that the template raises stays as is."""
    message = " ".join(str(error).split())[:500] or type(error).__name__
    if type(error) is jinja2.TemplateError:
        return message
    line, frame = getattr(error, "lineno", None), error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return f"chat template, line {line}: {message}" if line else f"chat template: {message}"
