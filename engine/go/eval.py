"""Execution of a parsed Go template.

    dot     the value that `.A` looks into; `range` and `with` move it, `$` is its initial value
    scope   variables by name, the newest last; a block removes its own at its end
    at      the node that an error message names
    values  as in values.py: an element of a list or map is in an Interface until a pipeline unwraps it

Methods that can recurse through the template are written as Steps (parse.run_steps), where a `yield` is a call.
The order of evaluation and the error texts are those of text/template, Go 1.26.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadTemplate
from . import parse as syntax
from .fmt import sprint
from .functions import FUNCTIONS, FunctionError
from .limits import Budget, BudgetExceeded
from .parse import Steps, node_text, run_steps
from .text import quote
from .values import Interface, Struct, element, is_true, pointee, type_name, unwrapped

MAX_CALL_DEPTH = 100_000  # of templates that call templates; exec.go maxExecDepth
NIL = Interface(None)
ABSENT: Any = object()  # the first stage of a pipeline has no piped value


def execute(
    source: str,
    trees: Mapping[str, syntax.ListNode],
    data: Any,
    budget: Budget,
    missing: Any = NIL,
) -> str:
    """Execute the template "" of `trees` with `data` and return its output; `source` is the text that was parsed.

    missing  the value of a key that a map lacks: NIL, whose fields cannot be read (Go's missingkey=zero), or
             None, whose fields are None too (missingkey=default)
    Raises: BadTemplate with Go's text, or if the template exceeds its budget
    """
    running = _Run(source, trees, budget, missing)
    try:
        run_steps(running.walk(trees[""].nodes, data, _Frame("", [("$", data)])))
    except BudgetExceeded as error:
        raise BadTemplate(f"template: {error}") from None
    return "".join(running.written)


@dataclass(slots=True)
class _Frame:
    """One call of a template; it does not see its caller's variables."""

    name: str
    scope: list[tuple[str, Any]]
    depth: int = 0


@dataclass(eq=False)
class _Run:
    source: str
    trees: Mapping[str, syntax.ListNode]
    budget: Budget
    missing: Any
    written: list[str] = field(default_factory=list)
    at: Any = None
    name: str = ""

    def error(self, message: str) -> BadTemplate:
        before = self.source[: self.at.start]
        line, column = 1 + before.count("\n"), len(before[before.rfind("\n") + 1 :].encode())
        where = f"executing {quote(self.name)} at <{node_text(self.at)}>"
        return BadTemplate(f"template: :{line}:{column}: {where}: {message}")

    def write(self, text: str) -> None:
        self.budget.charge(len(text))
        self.written.append(text)

    # --- actions ---

    def walk(self, nodes: Sequence[syntax.Node], dot: Any, frame: _Frame) -> Steps:
        """Write the output of `nodes`; return "break" or "continue" where one was met."""
        for node in nodes:
            self.at, self.name = node, frame.name
            self.budget.tick()
            left = None
            match node:
                case syntax.TextNode():
                    self.write(node.text)
                case syntax.ActionNode():
                    value = yield from self.pipe(node.pipe, dot, frame)
                    if not node.pipe.variables:
                        self.write("<no value>" if value is None else sprint([pointee(value)]))
                case syntax.IfNode() | syntax.WithNode():
                    left = yield from self.choose(node, dot, frame)
                case syntax.RangeNode():
                    left = yield from self.loop(node, dot, frame)
                case syntax.LeaveNode():
                    return node.word
                case syntax.CallNode():
                    yield (yield from self.call(node, dot, frame))
            if left:
                return left

    def choose(self, node: syntax.IfNode | syntax.WithNode, dot: Any, frame: _Frame) -> Steps:
        outer, left = len(frame.scope), None
        value = yield from self.pipe(node.pipe, dot, frame)
        if is_true(value):
            left = yield self.walk(node.body.nodes, value if isinstance(node, syntax.WithNode) else dot, frame)
        elif node.otherwise:
            left = yield self.walk(node.otherwise.nodes, dot, frame)
        del frame.scope[outer:]
        return left

    def loop(self, node: syntax.RangeNode, dot: Any, frame: _Frame) -> Steps:
        outer = len(frame.scope)
        value = yield from self.pipe(node.pipe, dot, frame)
        inner, is_empty, left = len(frame.scope), True, None
        for pair in self.pairs(unwrapped(value), len(node.pipe.variables)):
            is_empty = False
            self.budget.tick()
            for i, variable in enumerate(reversed(node.pipe.variables), 1):
                if node.pipe.assigns:
                    self.assign(variable, pair[-i], frame)
                else:  # by position, because both variables may have the same name
                    frame.scope[inner - i] = (variable.names[0], pair[-i])
            if (yield self.walk(node.body.nodes, pair[1], frame)) == "break":
                break
            del frame.scope[inner:]
        if is_empty and node.otherwise:
            left = yield self.walk(node.otherwise.nodes, dot, frame)
        del frame.scope[outer:]
        return left if left == "continue" else None  # a break in `else` ends this range

    def pairs(self, value: Any, n_variables: int) -> Iterable[tuple[Any, Any]]:
        """Return the pairs of index and element that `range` assigns to its variables; a map is ordered by key."""
        if value is None:
            return ()
        if isinstance(value, int) and not isinstance(value, bool):
            if n_variables > 1:
                raise self.error(f"can't use {value} to iterate over more than one variable")
            return ((None, i) for i in range(value))
        if isinstance(value, list):
            return ((i, element(value, i)) for i in range(len(value)))
        if isinstance(value, dict):
            return ((key, element(value, key)) for key in sorted(value))
        raise self.error(f"range can't iterate over {sprint([pointee(value)])}")

    def call(self, node: syntax.CallNode, dot: Any, frame: _Frame) -> Steps:
        """Return the steps of the template that `node` calls; the caller runs them."""
        tree = self.trees.get(node.name)
        if tree is None:
            raise self.error(f"template {quote(node.name)} not defined")
        if frame.depth == MAX_CALL_DEPTH:
            raise self.error(f"exceeded maximum template depth ({MAX_CALL_DEPTH})")
        value = (yield from self.pipe(node.pipe, dot, frame)) if node.pipe else None
        return self.walk(tree.nodes, value, _Frame(node.name, [("$", value)], frame.depth + 1))

    # --- pipelines ---

    def pipe(self, pipe: syntax.PipeNode, dot: Any, frame: _Frame) -> Steps:
        self.at = pipe
        value = ABSENT
        for command in pipe.commands:
            value = unwrapped((yield from self.command(command, dot, frame, value)))
        for variable in pipe.variables:
            if pipe.assigns:
                self.assign(variable, value, frame)
            else:
                frame.scope.append((variable.names[0], value))
        return value

    def command(self, command: syntax.CommandNode, dot: Any, frame: _Frame, piped: Any) -> Steps:
        """Evaluate one stage; `piped` is the result of the stage before."""
        first, *args = command.args
        has_args = bool(args) or piped is not ABSENT
        match first:
            case syntax.FunctionNode():
                return (yield from self.function(first, args, dot, frame, piped, command))
            case syntax.ChainNode():
                self.at = first
                return self.fields((yield from self.operand(first.of, dot, frame)), first.names, has_args)
            case syntax.FieldNode() | syntax.VariableNode():
                return self.named(first, dot, frame, has_args)
        if not isinstance(first, syntax.PipeNode):
            self.at = first
        if has_args:
            raise self.error(f"can't give argument to non-function {node_text(first)}")
        if isinstance(first, syntax.NilNode):
            raise self.error("nil is not a command")
        return (yield self.pipe(first, dot, frame)) if isinstance(first, syntax.PipeNode) else self.plain(first, dot)

    def operand(self, node: syntax.Operand, dot: Any, frame: _Frame, kind: str = "value") -> Steps:
        """Evaluate an argument for a parameter of type `kind`."""
        self.at = node
        match node:
            case syntax.PipeNode():
                value = yield self.pipe(node, dot, frame)
            case syntax.FunctionNode():
                value = yield from self.function(node, [], dot, frame, ABSENT, node)
            case syntax.ChainNode():
                value = self.fields((yield from self.operand(node.of, dot, frame)), node.names)
            case syntax.FieldNode() | syntax.VariableNode():
                value = self.named(node, dot, frame)
            case syntax.NilNode() if kind == "string":
                raise self.error("cannot assign nil to string")
            case syntax.NilNode():
                return None
            case syntax.ConstantNode() if kind == "string" and not isinstance(node.value, str):
                raise self.error(f"expected string; found {node.text}")
            case _:
                value = self.plain(node, dot)
        return self.fit(value, kind)

    def fit(self, value: Any, kind: str) -> Any:
        """Check and convert `value` for a parameter of type `kind`."""
        inner = unwrapped(value)
        if kind == "string" and value is None:
            raise self.error("invalid value; expected string")
        if kind == "string" and not isinstance(inner, str):
            found = type_name(value if inner is None else inner)
            raise self.error(f"wrong type for value; expected string; got {found}")
        return value if kind == "value" else inner

    def plain(self, node: syntax.Operand, dot: Any) -> Any:
        if isinstance(node, syntax.DotNode):
            return dot
        assert isinstance(node, syntax.ConstantNode)
        if node.value is None:
            raise self.error(f"{node.text} overflows int")
        return node.value

    def function(
        self, function: syntax.FunctionNode, args: list[syntax.Operand], dot: Any, frame: _Frame, piped: Any, whole: Any
    ) -> Steps:
        """Call a function; `piped` is its last argument."""
        self.at, name = function, function.name
        known = FUNCTIONS[name]
        kinds, n_args = known.takes, len(args) + (piped is not ABSENT)
        if known.variadic and n_args < len(kinds) - 1:
            raise self.error(f"wrong number of args for {name}: want at least {len(kinds) - 1} got {len(args)}")
        if not known.variadic and n_args != len(kinds):
            raise self.error(f"wrong number of args for {name}: want {len(kinds)} got {n_args}")
        values = []
        for i, arg in enumerate(args):
            values.append((yield from self.operand(arg, dot, frame, kinds[min(i, len(kinds) - 1)])))
            if name in ("and", "or") and is_true(values[-1]) == (name == "or"):
                return values[-1]
        if piped is not ABSENT:
            values.append(self.fit(piped, kinds[min(len(args), len(kinds) - 1)]))
        if name in ("and", "or"):
            return values[-1]
        if name == "call":
            values.insert(0, node_text(args[0]) if args else str(piped))
        try:
            made = known.call(values, self.budget.charge) if known.sized else known.call(values)
        except FunctionError as error:
            self.at = whole
            raise self.error(f"error calling {name}: {error}") from None
        if isinstance(made, str | list):
            self.budget.charge(len(made))
        return made

    # --- names ---

    def named(
        self, node: syntax.FieldNode | syntax.VariableNode, dot: Any, frame: _Frame, has_args: bool = False
    ) -> Any:
        self.at = node
        if isinstance(node, syntax.FieldNode):
            return self.fields(dot, node.names, has_args)
        name, *names = node.names
        value = frame.scope[self.place(name, frame)][1]
        if has_args and not names:
            raise self.error(f"can't give argument to non-function {name}")
        return self.fields(value, names, has_args)

    def place(self, name: str, frame: _Frame) -> int:
        for i in range(len(frame.scope) - 1, -1, -1):
            if frame.scope[i][0] == name:
                return i
        raise self.error(f"undefined variable: {name}")

    def assign(self, variable: syntax.VariableNode, value: Any, frame: _Frame) -> None:
        frame.scope[self.place(variable.names[0], frame)] = (variable.names[0], value)

    def fields(self, value: Any, names: Sequence[str], has_args: bool = False) -> Any:
        for i, name in enumerate(names, 1):
            value = self.field(value, name, has_args and i == len(names))
        return value

    def field(self, value: Any, name: str, has_args: bool) -> Any:
        """Return a field of a struct, an element of a map, or the result of a method."""
        if value is None:
            return None
        go_type, holder = type_name(value), unwrapped(value)
        match holder:
            case None:
                raise self.error(f"nil pointer evaluating {go_type}.{name}")
            case Struct() if name in holder.fields:
                if has_args:
                    raise self.error(f"{name} has arguments but cannot be invoked as function")
                found = holder.fields[name]
                return Interface(found) if found is None or type(found) is dict else found
            case Struct() if name in holder.methods:
                return holder.methods[name]()
            case dict():
                if has_args:
                    raise self.error(f"{name} is not a method but has arguments")
                return element(holder, name) if name in holder else self.missing
        if name == "String" and getattr(holder, "as_text", None):
            return holder.as_text(holder)
        raise self.error(f"can't evaluate field {name} in type {go_type}")
