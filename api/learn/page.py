"""The page as files of a server, and as one file with its data inside.

On a server the import map points to /learn/NAME.  In one file it holds every module as a data: URL, so that the page
needs neither server nor network.  Either way the Content-Security-Policy allows nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]  # of the source tree, or of the installed package
COURSE = (ROOT / "docs" / "course", ROOT / "course")
CODE = re.compile(r"(?:api|engine|kernels)(?:/\w+)+\.py")
CONTENT_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "txt": "text/plain"}
VENDORED = {"preact": "vendor/htm-preact.js"}  # import name -> file
SERVER_MAP = {**{name: f"/learn/{path}" for name, path in VENDORED.items()}, "learn/": "/learn/"}


@cache
def asset(path: str) -> bytes | None:
    """Return a file of the page by its path; None for any other path."""
    return (FOLDER / path).read_bytes() if path in asset_paths() else None


@cache
def asset_paths() -> frozenset[str]:
    """Return the paths of the page's files, below this folder."""
    files = [path for path in FOLDER.rglob("*") if path.suffix[1:] in CONTENT_TYPES]
    return frozenset(path.relative_to(FOLDER).as_posix() for path in files)


def import_map(urls: dict[str, str]) -> str:
    """Return the script element of an import map."""
    return f'<script type="importmap">{json.dumps({"imports": urls})}</script>'


def referred_file(path: str) -> bytes | None:
    """Return a file that panels refer to, code of this package or a lesson by its number; None for any other path."""
    kind, _, name = path.partition("/")
    if kind == "code" and CODE.fullmatch(name) and (ROOT / name).is_file():
        return (ROOT / name).read_bytes()
    if kind == "lesson" and re.fullmatch("[1-9]", name):
        return next((page.read_bytes() for folder in COURSE for page in folder.glob(f"{name}-*.md")), None)
    return None


@cache
def page_html() -> str:
    """Return the page as a server sends it."""
    head = f'<link rel="stylesheet" href="/learn/style.css">\n{import_map(SERVER_MAP)}'
    body = '<script type="module" src="/learn/main.js"></script>'
    return _filled(head, body)


def policy(html: str) -> str:
    """Return the Content-Security-Policy of `html`: this origin alone, and of inline scripts only its import map."""
    inline = html.partition('<script type="importmap">')[2].partition("</script>")[0]
    digest = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def file_html(data: dict[str, Any]) -> str:
    """Return the page as one file, with `data`: {"model": facts, "request": ..., "lines": [...]}."""
    paths = sorted(path for path in asset_paths() if path.endswith(".js"))
    urls = {f"learn/{path}": _data_url(path) for path in paths} | {n: _data_url(p) for n, p in VENDORED.items()}
    policy = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:"
    styles = (FOLDER / "style.css").read_text(encoding="utf-8")
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{styles}</style>\n{import_map(urls)}'
    )
    text = json.dumps(data).replace("<", "\\u003c")  # so that no text can end the element
    body = f'<script type="application/json" id="data">{text}</script>\n'
    return _filled(head, body + '<script type="module">import "learn/main.js";</script>')


def _data_url(path: str) -> str:
    return "data:text/javascript;base64," + b64encode((FOLDER / path).read_bytes()).decode()


def _filled(head: str, body: str) -> str:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    before, _, rest = html.partition("<!--head-->")
    middle, _, after = rest.partition("<!--body-->")
    return f"{before}{head}{middle}{body}{after}"
