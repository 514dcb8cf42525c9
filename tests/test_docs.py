"""Tests that the documents agree with the code."""

import doctest
import re
import runpy
import tokenize
from pathlib import Path

import pytest
from typer.testing import CliRunner

from numllama.api.cli.commands import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("numllama", "api", "engine", "kernels", "benchmarks")
CODE = ("numllama", "api", "engine", "kernels", "benchmarks", "tests", "scripts", "examples")
COMPATIBILITY = "docs/compatibility.md"
NUMBER = re.compile(r"""(?:^|[\s"(,])\[(\d{1,3})\](?=[\s",.:;)]|$)""", re.MULTILINE)  # [38], not x[38]
TITLE = re.compile(r'docs/([\w-]+)\.md, "([^"]+)"')
PATH = re.compile(rf"(?<![/\w.-])(?:{'|'.join((*CODE, 'docs'))})/[\w/.-]*\w")


@pytest.mark.parametrize(("page", "min_examples"), [("walkthrough", 40), ("compare", 8), ("add-a-format", 9)])
def test_a_page_s_code_runs(page, min_examples, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))  # so that primer is the built-in one
    monkeypatch.delenv("NUMLLAMA_BUILTIN", raising=False)
    failed, tried = doctest.testfile(str(ROOT / f"docs/{page}.md"), module_relative=False, verbose=False)
    assert tried >= min_examples and failed == 0


def named_files(tree):
    """Yield the paths, without suffix, that a drawn tree names.

    A line is a folder `name/`, or names of files separated by single blanks; two blanks end the names.  Lines indented
    by 30 or more continue a clause.  A file belongs to the nearest folder above it that is indented less.
    """
    folders = []  # (indent, name)
    for line in tree.splitlines():
        line = line.replace("*", " ")
        indent = len(line) - len(line.lstrip())
        names = re.split(r"  +", line.strip())[0].split(" ")
        if not line.strip() or indent >= 30:
            continue
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if names[0].endswith("/"):
            folders.append((indent, names[0].rstrip("/")))
        else:
            yield from ("/".join([*(folder for _, folder in folders), name]) for name in names)


def test_the_tree_is_read_as_it_is_drawn():
    tree = (
        "    a/      one\n      b/      two\n        c d   three\n"
        + " " * 31
        + "more\n    * e     four\n    f/\n      g.md  five"
    )
    assert list(named_files(tree)) == ["a/b/c", "a/b/d", "a/e", "f/g.md"]


def test_the_readmes_tree_names_every_source_file_and_no_other():
    text = (ROOT / "README.md").read_text()
    named = list(named_files(text[text.index("    numllama/ ") : text.index("## Sets of kernels")]))
    sources = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__"
    }
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith("docs/decisions/")}
    assert len(named) == len(set(named))
    assert set(named) - sources - pages == set(), "named, but not there"
    assert (sources | pages) - set(named) == set(), "there, but not named"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_every_path_in_a_document_exists(page):
    text = (ROOT / page).read_text()
    paths = {path for path in PATH.findall(text) if "<" not in path}
    assert {path for path in paths if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()} == set()
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert {path for path in linked if not ((ROOT / page).parent / path).exists()} == set()


def test_the_picture_has_the_levels_that_the_tests_hold():
    levels = runpy.run_path(str(ROOT / "tests/test_layers.py"))["LEVELS"]
    page = (ROOT / "docs/architecture.md").read_text()
    lines = [set(re.findall(r"\w+", line)) for line in page.split("## The picture")[1].split("```")[1].splitlines()]
    drawn = [
        i for level in levels["api"][::-1] + levels["engine"][::-1] for i in range(len(lines)) if set(level) <= lines[i]
    ]
    assert len(drawn) == len(levels["api"]) + len(levels["engine"]) and drawn == sorted(drawn)


def test_language_that_the_style_refuses_is_found_with_its_line(tmp_path):
    check = runpy.run_path(str(ROOT / "scripts/check_language.py"))["complaints"]
    wrong, right = tmp_path / "wrong.py", tmp_path / "right.py"
    wrong.write_text('"""What it does."""\n\nx = f"{1} is no number"  # nobody knows\n')
    right.write_text('"""Do it."""\n\nx = "nobodys" if None is None else 1  # nothing\n')
    assert [line.removeprefix(f"{wrong}:") for line in check(wrong)] == [
        "3: 'is no number'",
        "3: 'nobody'",
        "1: a docstring begins 'What'",
    ]
    assert list(check(right)) == []


def prose(path):
    """Comments and strings of a source file: where it can quote a document."""
    with tokenize.open(path) as file:
        return [
            t.string for t in tokenize.generate_tokens(file.readline) if t.type in (tokenize.COMMENT, tokenize.STRING)
        ]


def source_files():
    here = Path(__file__)
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py")) if path != here]


def test_every_fact_that_is_quoted_by_number_is_in_compatibility_md():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", (ROOT / COMPATIBILITY).read_text(), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    quoted = {
        (path.name, int(n))
        for path in source_files()
        if COMPATIBILITY in path.read_text()
        for text in prose(path)
        for n in NUMBER.findall(text)
    }
    assert len(quoted) > 60 and {quote for quote in quoted if quote[1] not in numbers} == set()


def test_a_file_that_quotes_facts_by_number_says_where_they_are():
    for path in source_files():
        source = path.read_text()
        assert COMPATIBILITY in source or not re.search(r'"""\[\d{1,3}\]', source), path


def test_every_section_that_is_quoted_by_title_is_there():
    quoted = [(path.name, *quote) for path in source_files() for quote in TITLE.findall(path.read_text())]
    titles = {
        page.stem: re.findall(r"^##+ (.+)$", page.read_text(), re.MULTILINE) for page in (ROOT / "docs").glob("*.md")
    }
    assert len(quoted) > 5 and [quote for quote in quoted if quote[2] not in titles.get(quote[1], [])] == []


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
