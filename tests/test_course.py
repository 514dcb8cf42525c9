"""The lessons run as they stand, their exercises have solutions, and `numllama course` writes them as notebooks."""

import ast
import importlib.util
import json

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from numllama.api.cli.commands import app
from numllama.api.cli.course import lesson_cells, lesson_files
from numllama.engine.errors import RequestError

LESSONS = lesson_files()
SLOW = "6-oracle"  # the oracle tries every cause: half a minute


def lesson_parameters():
    return [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem == SLOW else ()) for path in LESSONS]


def run_cell(text, names):
    """Run a cell as a notebook does: the last expression is shown, here as text and as HTML."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last:
        shown = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        html = getattr(shown, "_repr_html_", None)  # a figure has one that returns None where no notebook runs
        assert repr(shown) and (html is None or html() != "")


@pytest.mark.parametrize("path", lesson_parameters())
def test_a_lesson_runs_and_its_checks_hold_for_its_solutions_alone(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))  # so that primer is the built-in one
    monkeypatch.delenv("NUMLLAMA_BUILTIN", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    draws = importlib.util.find_spec("matplotlib") is not None
    cells = [cell for cell in lesson_cells(path.read_text(encoding="utf-8")) if cell.is_code]
    names = {"__name__": "__main__"}
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "solution" in cell.tags:
            with pytest.raises((AssertionError, NameError)):  # before the exercise is solved
                exec(after.text, dict(names))
        if draws or "picture" not in cell.tags:
            run_cell(cell.text, names)
    names["model" if "loaded" not in names else "loaded"].close()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_a_picture_and_three_exercises_with_a_solution_and_a_check(path):
    tags = [cell.tags for cell in lesson_cells(path.read_text(encoding="utf-8")) if cell.tags]
    assert ["picture"] in tags
    exercises = [tag for (tag,) in tags if tag != "picture"]
    assert exercises == ["solution", "check"] * 3


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_cells_are_those_that_jupytext_reads(path):
    text = path.read_text(encoding="utf-8")
    read = [cell for cell in jupytext.reads(text, fmt="md").cells if cell.cell_type == "code"]
    ours = [cell for cell in lesson_cells(text) if cell.is_code]
    assert [(cell.source, cell.metadata.get("tags", [])) for cell in read] == [
        (cell.text.rstrip("\n"), list(cell.tags)) for cell in ours
    ]


def test_the_course_is_written_as_notebooks_with_the_solutions_apart(tmp_path):
    folder = tmp_path / "lessons"
    result = CliRunner().invoke(app, ["course", str(folder)])
    assert result.exit_code == 0 and str(folder / "1-tokens.ipynb") in result.output
    for path in LESSONS:
        asked, solved = (
            nbformat.read(part / f"{path.stem}.ipynb", as_version=4) for part in (folder, folder / "solutions")
        )
        nbformat.validate(asked)
        nbformat.validate(solved)
        differing = [(a, b) for a, b in zip(asked.cells, solved.cells, strict=True) if a.source != b.source]
        assert len(differing) == 3 and {a.source for a, _ in differing} == {"# your turn"}
        assert all(b.metadata["tags"] == ["solution"] for _, b in differing)
        text = json.dumps(asked.cells)
        assert "details>" not in text and ".md)" not in text
        assert "".join(cell.source for cell in asked.cells if cell.cell_type == "markdown").count("Solution") == 0


def test_a_notebook_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "3-attention.ipynb").write_text("mine")
    with pytest.raises(RequestError, match=r"3-attention\.ipynb exists already; choose another folder"):
        CliRunner().invoke(app, ["course", str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["3-attention.ipynb"]


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot write to .*file"):
        CliRunner().invoke(app, ["course", str(tmp_path / "file")], catch_exceptions=False)
