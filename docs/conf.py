"""Configuration of the documentation site: the chapters in docs/ and the API reference from the docstrings.

sphinx-build -W docs site
"""

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"  # kernels stay plain functions, whose docstrings and signatures can be read

from numllama import __version__

project = "numllama"
author = "The numllama authors"
copyright = "2026, The numllama authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"numllama {version}"
templates_path = ["_templates"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

suppress_warnings = [
    "ref.python",  # two classes of one name, as a name and its re-export: the link goes to the first
]
autosummary_generate = True
autodoc_mock_imports = [name for name in ("ray", "grpc") if not find_spec(name)]  # engine/distributed/router.py
shutil.rmtree(Path(__file__).parent / "reference/python", ignore_errors=True)  # pages of modules that are gone
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}

LITERAL = re.compile(r" {3}|->|^\s|^(?:>>>|\|)| = |[\[{].*[\]}]")  # a block that the eye reads by its columns


def setup(app):
    """Register the reader of docstrings."""
    app.connect("autodoc-process-docstring", docstring_to_rst)


def docstring_to_rst(app, what, name, obj, options, lines):
    """Turn a docstring of this project into reStructuredText, in place.

    Docstrings are plain text with `code` in backquotes.  A paragraph becomes prose; shape lines, formulas, drawings and
    tables keep their columns as a literal block.
    """
    if not name.startswith("numllama"):
        return
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    lines[:] = []
    for i, block in enumerate(blocks):
        rows = block.strip("\n").split("\n")
        if i and any(LITERAL.search(row) for row in rows):
            lines += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            lines += [*(prose(row.strip()) for row in rows), ""]


def prose(text: str) -> str:
    """A line of plain text as reStructuredText: `code` literal, everything else as it stands."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # code that goes on in the next line
        return escaped(text)
    is_code = [i % 2 == 1 and part != "" and part.strip() == part for i, part in enumerate(parts)]
    return "".join(f"``{part}``" if code else escaped(part) for part, code in zip(parts, is_code, strict=True))


def escaped(text: str) -> str:
    return re.sub(r"([\\*`_|<>:\[\].+\-#=~^\"'])", r"\\\1", text)
