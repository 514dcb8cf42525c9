"""Parser for Go templates: tokens to a syntax tree.

    {{ range .Messages }}{{ .Role }}: {{ .Content | printf "%q" }}{{ end }}

    Range(Pipe([Command([Field(Messages)])]),
          List([Action(Pipe([Command([Field(Role)])])), Text(": "), Action(Pipe([Command(...), Command(...)]))]))

Nodes print as in Go, because error messages quote them.  Syntax errors and their texts are those of
text/template/parse, Go 1.26; only the limits are numllama's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadTemplate
from .lex import Lexeme, tokens
from .text import WHITE_SPACE, quote, unquote

MAX_TEXT = 1 << 16  # characters; the longest published one has 12,000
MAX_DEPTH = 1000  # of nested blocks and parentheses


@dataclass(frozen=True, slots=True)
class TextNode:
    """Text outside the braces."""

    start: int
    text: str

    def parts(self) -> Parts:
        return [self.text]


@dataclass(frozen=True, slots=True)
class DotNode:
    """The dot by itself."""

    start: int

    def parts(self) -> Parts:
        return ["."]


@dataclass(frozen=True, slots=True)
class NilNode:
    """The keyword nil."""

    start: int

    def parts(self) -> Parts:
        return ["nil"]


@dataclass(frozen=True, slots=True)
class ConstantNode:
    """A literal: bool, int, float, complex or str.  As in Go, it is untyped until it is used.

    value  None for an integer that does not fit an int
    """

    start: int
    value: bool | int | float | complex | str | None
    text: str

    def parts(self) -> Parts:
        return [self.text]


@dataclass(frozen=True, slots=True)
class FieldNode:
    """A chain of fields of the dot, .A.B"""

    start: int
    names: tuple[str, ...]

    def parts(self) -> Parts:
        return ["".join(f".{name}" for name in self.names)]


@dataclass(frozen=True, slots=True)
class VariableNode:
    """A variable and its fields, $x.A; names[0] is "$x" """

    start: int
    names: tuple[str, ...]

    def parts(self) -> Parts:
        return [".".join(self.names)]


@dataclass(frozen=True, slots=True)
class ChainNode:
    """Fields of another operand, (pipeline).A"""

    start: int
    of: Operand
    names: tuple[str, ...]

    def parts(self) -> Parts:
        return [*_in_parentheses(self.of), *(f".{name}" for name in self.names)]


@dataclass(frozen=True, slots=True)
class FunctionNode:
    """The name of a function."""

    start: int
    name: str

    def parts(self) -> Parts:
        return [self.name]


@dataclass(frozen=True, slots=True)
class CommandNode:
    """One stage of a pipeline: a value, or a function and its arguments."""

    start: int
    args: tuple[Operand, ...]

    def parts(self) -> Parts:
        return [part for arg in self.args for part in (" ", *_in_parentheses(arg))][1:]


@dataclass(frozen=True, slots=True)
class PipeNode:
    """A pipeline, $i, $x := a | b | c

    assigns  `=` instead of `:=`: the variables exist already
    """

    start: int
    commands: tuple[CommandNode, ...]
    variables: tuple[VariableNode, ...] = ()
    assigns: bool = False

    def parts(self) -> Parts:
        variables = [part for variable in self.variables for part in (", ", variable)][1:]
        sign = [" = " if self.assigns else " := "] if variables else []
        return [*variables, *sign, *[part for command in self.commands for part in (" | ", command)][1:]]


@dataclass(frozen=True, slots=True)
class ListNode:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ActionNode:
    """An action {{ pipeline }}; its value is written unless it declares variables."""

    start: int
    pipe: PipeNode

    def parts(self) -> Parts:
        return ["{{", self.pipe, "}}"]


@dataclass(frozen=True, slots=True)
class BranchNode:
    """An if, with or range.  An `else if` is the only node of `otherwise`."""

    start: int
    pipe: PipeNode
    body: ListNode
    otherwise: ListNode | None


class IfNode(BranchNode):
    __slots__ = ()


class WithNode(BranchNode):
    __slots__ = ()


class RangeNode(BranchNode):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class LeaveNode:
    """A break or continue."""

    start: int
    word: str


@dataclass(frozen=True, slots=True)
class CallNode:
    """A call of another template, {{ template "name" pipeline }}"""

    start: int
    name: str
    pipe: PipeNode | None

    def parts(self) -> Parts:
        return [f"{{{{template {quote(self.name)}", *([" ", self.pipe] if self.pipe else []), "}}"]


Parts = list[Any]  # of a printed node: strings, and nodes that print in their place
Operand = DotNode | NilNode | ConstantNode | FieldNode | VariableNode | ChainNode | FunctionNode | PipeNode
Node = TextNode | ActionNode | BranchNode | LeaveNode | CallNode
KINDS: dict[str, type[BranchNode]] = {"if": IfNode, "with": WithNode, "range": RangeNode}


def node_text(node: Any) -> str:
    """Print `node` as Go does: normalized spacing, literals as written."""
    done, parts = list[str](), [node]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            done.append(part)
        else:
            parts += reversed(part.parts())
    return "".join(done)


def _in_parentheses(operand: Operand) -> Parts:
    return ["(", operand, ")"] if isinstance(operand, PipeNode) else [operand]


Steps = Generator[Any, Any, Any]


def run_steps(steps: Steps) -> Any:
    """Run `steps` and return their result; a `yield` of other steps is a call of them.

    The call stack is a list here instead of Python's own, so that templates may nest and recurse up to our own limits.
    """
    waiting, value = [steps], None
    while waiting:
        try:
            called = waiting[-1].send(value)
        except StopIteration as done:
            waiting.pop()
            value = done.value
        else:
            waiting.append(called)
            value = None
    return value


def parse_template(text: str, functions: Collection[str]) -> dict[str, ListNode]:
    """Parse `text` into trees by name: "" is the template itself, the others come from `define` and `block`.

    Raises: BadTemplate
    """
    if len(text) > MAX_TEXT:
        raise BadTemplate(f"template: :1: {len(text)} characters, at most {MAX_TEXT} are allowed")
    parser = _Parser(text, functions)
    run_steps(parser.whole())
    return parser.trees


@dataclass(eq=False)
class _Parser:
    """Recursive descent parser with unlimited lookahead.

    variables  the variables in scope
    n_loops    number of enclosing `range`s, which `break` may leave
    started    the opening braces of the newest action, until another action ends
    """

    text: str
    functions: Collection[str]
    trees: dict[str, ListNode] = field(default_factory=dict)
    variables: list[str] = field(default_factory=lambda: ["$"])
    n_loops: int = 0
    depth: int = 0
    started: Lexeme | None = None

    def __post_init__(self) -> None:
        self.words: Iterator[Lexeme] = tokens(self.text)
        self.ahead: list[Lexeme] = []  # tokens put back; the next one is last
        self.newest = Lexeme("EOF", "EOF", 0)

    # --- words ---

    def next(self) -> Lexeme:
        if self.ahead:
            return self.ahead.pop()
        self.newest = next(self.words, self.newest)
        return self.newest

    def next_word(self) -> Lexeme:
        """Return the next token that is not a blank."""
        while (token := self.next()).kind == "space":
            pass
        return token

    def back(self, *tokens: Lexeme) -> None:
        self.ahead += reversed(tokens)

    def peek(self, blanks: bool = False) -> Lexeme:
        token = self.next() if blanks else self.next_word()
        self.back(token)
        return token

    def line(self, token: Lexeme) -> int:
        return 1 + self.text.count("\n", 0, token.start)

    def error(self, message: str, at: Lexeme | None = None) -> BadTemplate:
        """Return an error in the line of `at`, or of the newest token, even if it was put back: Go's t.token[0]."""
        return BadTemplate(f"template: :{self.line(at or self.newest)}: {message}")

    def unexpected(self, token: Lexeme, where: str) -> BadTemplate:
        if token.kind != "error":
            return self.error(f"unexpected {token} in {where}")
        if not self.started or self.line(self.started) == self.line(token):
            return self.error(token.value)
        where = "started at" if token.value.endswith(" action") else "in action started at"
        return self.error(f"{token.value} {where} :{self.line(self.started)}")

    def expect_end(self, where: str) -> None:
        if (token := self.next_word()).kind != "}}":
            raise self.unexpected(token, where)

    # --- blocks ---

    def whole(self) -> Steps:
        nodes: list[Node] = []
        while (token := self.next()).kind != "EOF":
            if token.kind == "{{" and self.peek().kind == "define":
                self.next_word()
                yield from self._define()
                continue
            self.back(token)
            node = yield from self._node()
            if isinstance(node, Lexeme):
                raise self.error(f"unexpected {_in_braces(node)}")
            nodes.append(node)
        self._add("", ListNode(tuple(nodes)))

    def _list(self) -> Steps:
        """Parse nodes up to the `end` or `else` that closes them; return them and that token."""
        nodes: list[Node] = []
        while self.peek().kind != "EOF":
            node = yield from self._node()
            if isinstance(node, Lexeme):
                return ListNode(tuple(nodes)), node
            nodes.append(node)
        raise self.error("unexpected EOF")

    def _node(self) -> Steps:
        """Parse a node; return the token instead if it is `end` or `else`."""
        token = self.next_word()
        if token.kind == "text":
            return TextNode(token.start, token.value)
        if token.kind != "{{":
            raise self.unexpected(token, "input")
        self.started = token
        node = yield from self._action()
        self.started = None
        return node

    def _action(self) -> Steps:
        word = self.next_word()
        match word.kind:
            case "if" | "with" | "range":
                return (yield from self._branch(word))
            case "end":
                self.expect_end("end")
                return word
            case "else":
                if self.peek().kind not in ("if", "with"):  # `else if` is parsed as a new action
                    self.expect_end("else")
                return word
            case "break" | "continue":
                self.expect_end(f"{{{{{word.value}}}}}")
                if not self.n_loops:
                    raise self.error(f"{{{{{word.value}}}}} outside {{{{range}}}}")
                return LeaveNode(word.start, word.value)
            case "template":
                start, name = self._name("template clause")
                if self.peek().kind == "}}":
                    self.next_word()
                    return CallNode(start, name, None)
                return CallNode(start, name, (yield from self._pipeline("template clause")))
            case "block":
                start, name = self._name("block clause")
                pipe = yield from self._pipeline("block clause")
                yield from self._named(name, "block clause")
                return CallNode(start, name, pipe)
        self.back(word)
        return ActionNode(self.peek().start, (yield from self._pipeline("command")))

    def _branch(self, word: Lexeme) -> Steps:
        known = len(self.variables)
        with self._deeper():
            pipe = yield from self._pipeline(word.kind)
            self.n_loops += word.kind == "range"
            body, ending = yield self._list()
            self.n_loops -= word.kind == "range"
            otherwise = (yield from self._otherwise(word.kind)) if ending.kind == "else" else None
        del self.variables[known:]
        return KINDS[word.kind](word.start, pipe, body, otherwise)

    def _otherwise(self, kind: str) -> Steps:
        if kind in ("if", "with") and self.peek().kind == kind:
            return ListNode(((yield self._branch(self.next_word())),))
        otherwise, ending = yield self._list()
        if ending.kind != "end":
            raise self.error(f"expected end; found {_in_braces(ending)}")
        return otherwise

    def _define(self) -> Steps:
        _, name = self._name("define clause")
        self.expect_end("define clause")
        yield from self._named(name, "define clause")

    def _named(self, name: str, where: str) -> Steps:
        """Parse the body of a named template, which sees no outer variable, loop or action.

        As in Go, an `else` in a block is an error in the line of the block's clause.
        """
        around, clause = (self.variables, self.n_loops), self.newest
        self.variables, self.n_loops, self.started = ["$"], 0, None
        with self._deeper():
            body, ending = yield self._list()
        if ending.kind != "end":
            at = clause if where == "block clause" else None
            raise self.error(f"unexpected {_in_braces(ending)} in {where}", at)
        self.variables, self.n_loops = around
        self._add(name, body)

    def _add(self, name: str, body: ListNode) -> None:
        if _is_blank(self.trees.get(name)):
            self.trees[name] = body
        elif not _is_blank(body):
            raise self.error(f"template: multiple definition of template {quote(name)}")

    def _name(self, where: str) -> tuple[int, str]:
        """Parse a template's name; return its offset and the name."""
        token = self.next_word()
        if token.kind not in ("string", "raw"):
            raise self.unexpected(token, where)
        return token.start, self._unquoted(token)

    # --- pipelines ---

    def _pipeline(self, where: str, end: str = "}}") -> Steps:
        start = self.peek().start
        variables, assigns = self._declared(where)
        commands: list[CommandNode] = []
        while (token := self.next_word()).kind != end:
            if token.kind not in OPERANDS:
                raise self.unexpected(token, where)
            self.back(token)
            commands.append((yield from self._command()))
        if not commands:
            raise self.error(f"missing value for {where}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.args[0], ConstantNode | DotNode | NilNode):
                raise self.error(f"non executable command in pipeline stage {stage}")
        return PipeNode(start, tuple(commands), tuple(variables), assigns)

    def _declared(self, where: str) -> tuple[list[VariableNode], bool]:
        """Parse the variables before := or =, if any."""
        variables: list[VariableNode] = []
        while (token := self.next_word()).kind == "variable":
            after = self.next()
            sign = after if after.kind != "space" else self.next_word()
            if sign.kind not in (":=", "=") and sign.value != ",":
                self.back(*([after, sign] if sign is not after else [sign]))
                break
            variables.append(VariableNode(token.start, (token.value,)))
            self.variables.append(token.value)
            if sign.value != ",":
                return variables, sign.kind == "="
            if where != "range" or len(variables) > 1:
                raise self.error(f"too many declarations in {where}")
            if self.peek().kind not in ("variable", "}}", ")"):
                raise self.error("range can only initialize variables")
        self.back(token)
        return variables, False

    def _command(self) -> Steps:
        start, args = self.peek().start, list[Operand]()
        while True:
            operand = yield from self._operand()
            if operand is not None:
                args.append(operand)
            token = self.next()
            if token.kind != "space":
                break
        if token.kind in ("}}", ")"):
            self.back(token)
        elif token.kind != "|":
            raise self.unexpected(token, "operand")
        if not args:
            raise self.error("empty command")
        return CommandNode(start, tuple(args))

    def _operand(self) -> Steps:
        """Parse an operand; return None if none begins here."""
        term = yield from self._term()
        if term is None or self.peek(blanks=True).kind != "field":
            return term
        start, names = self.peek().start, list[str]()
        while self.peek(blanks=True).kind == "field":
            names.append(self.next().value[1:])
        if isinstance(term, FieldNode | VariableNode):
            return type(term)(start, (*term.names, *names))
        if isinstance(term, ConstantNode | NilNode | DotNode):
            raise self.error(f"unexpected . after term {quote(node_text(term))}")
        return ChainNode(start, term, tuple(names))

    def _term(self) -> Steps:
        token = self.next_word()
        match token.kind:
            case "identifier":
                if token.value not in self.functions:
                    raise self.error(f"function {quote(token.value)} not defined")
                return FunctionNode(token.start, token.value)
            case ".":
                return DotNode(token.start)
            case "nil":
                return NilNode(token.start)
            case "variable":
                if token.value not in self.variables:
                    raise self.error(f"undefined variable {quote(token.value)}")
                return VariableNode(token.start, (token.value,))
            case "field":
                return FieldNode(token.start, (token.value[1:],))
            case "bool":
                return ConstantNode(token.start, token.value == "true", token.value)
            case "number" | "complex" | "char":
                try:
                    return ConstantNode(token.start, _number(token), token.value)
                except ValueError as error:
                    raise self.error(str(error)) from None
            case "string" | "raw":
                return ConstantNode(token.start, self._unquoted(token), token.value)
            case "(":
                with self._deeper():
                    return (yield self._pipeline("parenthesized pipeline", ")"))
        self.back(token)
        return None

    def _unquoted(self, token: Lexeme) -> str:
        try:
            return unquote(token.value)
        except ValueError as error:
            raise self.error(str(error)) from None

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        if self.depth == MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} blocks and parentheses")
        self.depth += 1
        yield
        self.depth -= 1


OPERANDS = frozenset("bool char complex . field identifier number nil raw string variable (".split())


def _in_braces(token: Lexeme) -> str:
    return f"{{{{{token.value}}}}}"


def _is_blank(tree: ListNode | None) -> bool:
    """Return whether a template is empty or white space, in which case another definition may replace it."""
    return tree is None or all(isinstance(node, TextNode) and not node.text.strip(WHITE_SPACE) for node in tree.nodes)


# --- numbers ---

_DIGITS = r"(?:{0})(?:_?(?:{0}))*"
_INTEGER = re.compile(
    r"[+-]?(?:0[xX]_?{x}|0[bB]_?{b}|0[oO]_?{o}|0(?:_?{o})?|[1-9](?:_?{d})?)".format(
        x=_DIGITS.format("[0-9a-fA-F]"), b=_DIGITS.format("[01]"), o=_DIGITS.format("[0-7]"), d=_DIGITS.format("[0-9]")
    )
)


# An underscore stands between two digits, or between the prefix 0x and a digit: strconv/atoi.go underscoreOK.
_D, _X = _DIGITS.format("[0-9]"), _DIGITS.format("[0-9a-fA-F]")
_DECIMAL_FLOAT = re.compile(rf"[+-]?(?:{_D}\.?(?:{_D})?|\.{_D})(?:[eE][+-]?{_D})?")
_HEXADECIMAL_FLOAT = re.compile(rf"[+-]?0[xX](?:_?{_X}\.?(?:{_X})?|\.{_X})[pP][+-]?{_D}")
_COMPLEX_PART = (
    r"(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|[0-9_]*(?:\.[0-9_]*)?(?:[eEpP][+-]?[0-9_]*)?)"
)
_COMPLEX = re.compile(rf"([+-]?{_COMPLEX_PART})([+-]{_COMPLEX_PART})i")
_ESCAPED_BYTE = re.compile(r"'\\(?:x([0-9a-fA-F]{2})|([0-7]{3}))")


def _number(token: Lexeme) -> int | float | complex | None:
    """Return the value of a numeric literal, by the rules of strconv.  Raises: ValueError with Go's text"""
    text = token.value
    if token.kind == "char":
        return _rune(text)
    if token.kind == "complex":
        return _complex(text)
    if text.endswith("i"):
        return complex(0, _number_or_raise(text[:-1], text))
    if _INTEGER.fullmatch(text):
        whole = _integer(text)
        if -(1 << 63) <= whole < 1 << 63:
            return whole
        if text[0] not in "+-" and whole < 1 << 64:
            return None
    value = _number_or_raise(text, text)
    if not set(text) & set(".eEpP"):
        raise ValueError(f"integer overflow: {quote(text)}")
    return value


def _rune(text: str) -> int:
    r"""Return the value of a character constant.  An escaped byte, '\xff', is a number and never a part of UTF-8."""
    if byte := _ESCAPED_BYTE.match(text):
        value, is_whole = int(byte[1] or byte[2], 16 if byte[1] else 8), byte.end() == len(text) - 1
        if value > 255:
            raise ValueError("invalid syntax")
    else:
        value, is_whole = -1, False
        if rune := unquote(text):
            value, is_whole = ord(rune[0]), len(rune) == 1
    if value < 0:
        raise ValueError("invalid syntax")
    if not is_whole:
        raise ValueError(f"malformed character constant: {text}")
    return value


def _complex(text: str) -> complex:
    """Return the value of 1+2i as fmt.Sscan reads it.  Raises: ValueError with its text"""
    parts = _COMPLEX.fullmatch(text)
    if not parts:
        raise ValueError("syntax error scanning complex number")
    return complex(*(_parse_float(part) for part in parts.groups()))


def _number_or_raise(text: str, whole: str) -> float:
    try:
        return _parse_float(text)
    except ValueError:
        raise ValueError(f"illegal number syntax: {quote(whole)}") from None


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign, digits = (-1 if digits[0] == "-" else 1), digits.lstrip("+-")
    octal = digits[0] == "0" and digits[1:].isdecimal()
    return sign * (int(digits, 8) if octal else int(digits, 0))


def _parse_float(text: str) -> float:
    """Parse as strconv.ParseFloat does.  Raises: ValueError with its text"""
    is_hexadecimal = "x" in text.lower()
    form = _HEXADECIMAL_FLOAT if is_hexadecimal else _DECIMAL_FLOAT
    problem = "invalid syntax"
    if form.fullmatch(text):
        digits = text.replace("_", "")
        try:
            value = float.fromhex(digits) if is_hexadecimal else float(digits)
        except OverflowError:
            value = math.inf
        if not math.isinf(value):
            return value
        problem = "value out of range"
    raise ValueError(f"strconv.ParseFloat: parsing {quote(text)}: {problem}")
