"""What the documents say is so."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from numllama.api.cli.commands import app

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("page", "least"), [("walkthrough", 40), ("compare", 8), ("add-a-format", 9)])
def test_a_page_with_code_runs_as_it_stands(page, least, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))  # so that primer is the built-in one
    monkeypatch.delenv("NUMLLAMA_BUILTIN", raising=False)
    failed, tried = doctest.testfile(str(ROOT / f"docs/{page}.md"), module_relative=False, verbose=False)
    assert tried >= least and failed == 0


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## Where things are") : text.index("## Sets of kernels")]
    names = {word for word in tree.replace(",", " ").split() if word.endswith((".py", ".md"))}
    found = {path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".md")}
    missing = {name for name in names if Path(name).name not in found}
    assert len(names) > 10 and not missing


@pytest.mark.parametrize("page", ["cli", "http"])
def test_the_reference_is_what_the_code_says(page):
    write = runpy.run_path(str(ROOT / "scripts/reference.py"))[f"{page}_document"]
    assert (ROOT / f"docs/reference/{page}.md").read_text() == write(), "run python scripts/reference.py"


def test_every_flag_of_help_is_in_the_reference():
    """Against the text that --help prints, which the generator does not read."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    for section in text.split("\n## ")[1:]:
        verb = section.split("\n")[0]
        if verb in ("bench", "help"):  # bench hands its flags on; help has none
            continue
        shown = CliRunner().invoke(app, [verb, "--help"], prog_name="numllama").output
        flags = set(re.findall(r"^  (?:-\w, )?(--[a-z]+)", shown, flags=re.MULTILINE)) - {"--help"}
        assert flags == set(re.findall(r"`(--[a-z]+)", section))
