"""`numllama course`: the lessons of docs/course as notebooks.

A lesson is Markdown with cells of code, in the form that jupytext reads: a block of python is a cell, the text after
"python" has its tags.  "solution" is the solution of an exercise, "check" asserts it, "picture" needs matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...engine.errors import RequestError
from ...engine.settings import expand_home

ROOT = Path(__file__).parents[2]  # of the source tree, or of the installed package
FOLDERS = (ROOT / "docs" / "course", ROOT / "course")
BLOCK = re.compile(r"^```python(?: tags=(\[[^\n]*\]))?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
ON_PAGES = re.compile(r"^(?:</?details>|!\[).*\n?", re.MULTILINE)  # folds a solution, or shows what a cell draws
LESSON_LINK = re.compile(r"\]\((\d-[a-z]+)\.md\)")
PAGE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
YOUR_TURN = "# your turn\n"


class Cell(NamedTuple):
    """A cell of a lesson: Markdown or code."""

    is_code: bool
    text: str
    tags: Sequence[str] = ()


def lesson_files() -> list[Path]:
    """Return the lessons' files, in order."""
    return sorted(path for folder in FOLDERS for path in folder.glob("[0-9]-*.md"))


def lesson_cells(text: str) -> Iterator[Cell]:
    """Yield the cells of a lesson."""
    end = 0
    for block in BLOCK.finditer(text):
        yield from _markdown(text[end : block.start()])
        yield Cell(True, block[2], json.loads(block[1] or "[]"))
        end = block.end()
    yield from _markdown(text[end:])


def _markdown(text: str) -> Iterator[Cell]:
    text = ON_PAGES.sub("", text).strip("\n")
    if text:
        yield Cell(False, text + "\n")


def notebook_of(cells: Sequence[Cell], with_solutions: bool) -> dict[str, Any]:
    """Return a notebook of `cells` (nbformat 4.5), with the solutions or with an empty cell for each."""
    written = []
    for i, cell in enumerate(cells):
        text = cell.text if with_solutions or "solution" not in cell.tags else YOUR_TURN
        if not cell.is_code:
            text = PAGE_LINK.sub(r"\1", LESSON_LINK.sub(r"](\1.ipynb)", text))
        entry: dict[str, Any] = {"cell_type": "code" if cell.is_code else "markdown", "id": f"cell-{i}"}
        entry |= {"metadata": {"tags": list(cell.tags)} if cell.tags else {}}
        entry |= {"source": text.rstrip("\n").splitlines(keepends=True)}
        written.append(entry | {"execution_count": None, "outputs": []} if cell.is_code else entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def write_course(folder: str) -> None:
    """Write the lessons to `folder` and the same with solutions to `folder`/solutions, and print their paths.

    Raises: RequestError if a notebook is there already, which may have been worked on
    """
    target, lessons = expand_home(folder), lesson_files()
    notebooks = {}
    for path in lessons:
        cells = list(lesson_cells(path.read_text(encoding="utf-8")))
        for part, with_solutions in ((target, False), (target / "solutions", True)):
            notebooks[part / f"{path.stem}.ipynb"] = notebook_of(cells, with_solutions)
    there = next((path for path in notebooks if path.exists()), None)
    if there:
        raise RequestError(f"{there} exists already; choose another folder")
    try:
        (target / "solutions").mkdir(parents=True, exist_ok=True)
        for path, notebook in notebooks.items():
            path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write to {error.filename}: {error.strerror}") from error
    for path in notebooks:
        print(path)
    print(f"\njupyter lab {target}    (pip install 'numllama[notebook]' jupyterlab)")
