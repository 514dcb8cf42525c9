"""What the documents say is so."""

import doctest
from pathlib import Path

import pytest

from tiny import CHAT_TEMPLATE, tiny_gguf

ROOT = Path(__file__).parents[1]


class _Resolved:
    def __init__(self, path):
        self.weights = path


@pytest.mark.parametrize(("page", "least"), [("walkthrough", 30), ("compare", 8)])
def test_a_page_with_code_runs_as_it_stands(page, least, tmp_path, monkeypatch):
    """On a tiny model with a template, in place of the built-in one."""
    path = tiny_gguf(tmp_path / "tiny.gguf", quant="Q8_0", chat_template=CHAT_TEMPLATE)
    monkeypatch.setattr("numllama.engine.store.Store.resolve", lambda self, name: _Resolved(path))
    failed, tried = doctest.testfile(str(ROOT / f"docs/{page}.md"), module_relative=False, verbose=False)
    assert tried >= least and failed == 0


def test_the_format_that_is_added_means_what_gguf_says():
    failed, tried = doctest.testfile(str(ROOT / "docs/add-a-format.md"), module_relative=False, verbose=False)
    assert tried > 8 and failed == 0


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## Where things are") : text.index("## Sets of kernels")]
    names = {word for word in tree.replace(",", " ").split() if word.endswith((".py", ".md"))}
    found = {path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".md")}
    missing = {name for name in names if Path(name).name not in found}
    assert len(names) > 10 and not missing
