"""Plain English, as far as patterns can see it: docs/style.md, "Language".

python scripts/check_language.py [PATH ...]      without paths: all of the code and the documents
"""

import ast
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("numllama", "api", "engine", "kernels", "benchmarks", "tests", "scripts", "examples")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs")
WORDS = re.compile(r"\b(?i:anew|whoever|somebody|nobody|beyond help)\b|\bis none\b|\bis no [a-z]+\b")
START = re.compile(r"\s*(?:What|Raises)\b")
EXEMPT = (
    "tests/golden",
    "examples/train_primer/text/",
    "examples/train_primer/conversations.py",
    "scripts/check_language.py",  # this file and its test name what they refuse
    "tests/test_docs.py",
)
ALLOWED = (  # parts of lines that stay as they are, each for a reason
    'not "is no X" or "is none"',  # docs/style.md names what it refuses
)


def prose(path: Path):
    """(line, text) of comments, strings and docstrings of a source file, or of each line of a page."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                yield from enumerate(token.string.splitlines(), token.start[0])


def complaints(path: Path):
    """Each breach in one file, as "file:line: text"."""
    for line, text in prose(path):
        if not any(part in text for part in ALLOWED):
            yield from (f"{path}:{line}: '{found[0]}'" for found in WORDS.finditer(text))
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if START.match(text := ast.get_docstring(node) or ""):
                    yield f"{path}:{getattr(node, 'lineno', 1)}: a docstring begins '{text.split()[0]}'"


def files(paths: list[str]):
    """Source files and pages at `paths`, except recorded texts."""
    for path in map(Path, paths):
        found = sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md")) if path.is_dir() else [path]
        yield from (p for p in found if not p.resolve().relative_to(ROOT).as_posix().startswith(EXEMPT))


def main(paths: list[str]) -> int:
    """Print all breaches.  -> 1 if there are any"""
    everything = [str(ROOT / name) for name in (*PLACES, *PAGES) if (ROOT / name).exists()]
    found = [line for path in files(paths or everything) for line in complaints(path)]
    print("\n".join(found) or "language: plain")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
