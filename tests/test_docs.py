"""What the documents say is so."""

import doctest
from pathlib import Path

import pytest

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
