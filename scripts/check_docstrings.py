"""A check of docstrings: public functions and classes with methods have one, and its shapes name parameters.

    x f32 [n_tok, n_embd], weight f32 [n_embd] -> as x        x and weight must be parameters

Also reported: a first line that begins with the function's own name.  Nested and very short functions need none.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "engine", "api", "benchmarks")
MAX_SHORT_LINES = 12  # a function of so few lines needs no docstring
DTYPE = r"(?:f16|f32|f64|i8|i16|i32|i64|u8|u16|u32|bool|float|int|Tensor)"
SHAPE = re.compile(rf"\b(\w+(?:(?:, | and )\w+)*) {DTYPE}(?: or {DTYPE})* \[")


FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt]):
    """Yield the public functions and classes of a module, and the public methods of its classes."""
    for node in body:
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def complaints(path: Path):
    """Yield each breach in one file, as "file:line: text"."""
    for node in public(ast.parse(path.read_text()).body):
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        text = ast.get_docstring(node)
        if text is None:
            if not trivial(node):
                yield f"{where} has no docstring"
            continue
        if re.match(rf"{re.escape(node.name)}\b", text):
            yield f"{where}: the first line repeats the name"
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args
        names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        before_arrow = "\n".join(line.split("->")[0] for line in text.splitlines()[1:])
        for match in SHAPE.finditer(before_arrow):
            for name in re.split(r", | and ", match[1]):
                if name not in names and not name[0].isdigit():
                    yield f"{where}: a shape is given for '{name}', not a parameter"


def trivial(node: ast.stmt) -> bool:
    """Tell whether `node` is a class of fields alone, a route (its decorator describes it), or a short function."""
    if isinstance(node, ast.ClassDef):
        return not any(isinstance(child, FUNCTION) for child in node.body)
    if any(ast.unparse(decorator).startswith("router.") for decorator in node.decorator_list):
        return True
    return node.end_lineno is not None and node.end_lineno - node.lineno <= MAX_SHORT_LINES


def main() -> int:
    """Print all breaches.  -> 1 if there are any"""
    found = [line for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) for line in complaints(path)]
    print("\n".join(found) or "docstrings: in order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
