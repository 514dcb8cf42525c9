"""`numllama learn`: open the page /learn in a browser; start a server where none runs."""

from __future__ import annotations

import threading
import webbrowser
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlencode

import httpx

from ...engine.errors import ModelNotFound, RequestError
from ...engine.serve.engine import Engine
from ...engine.settings import Settings, expand_home
from ...engine.store.file import FileModel
from .backend import connect_if_running, is_file
from .serve import serve_forever


def learn_page(model: str, browser: bool) -> None:
    """Open the page, for `model` if it is not empty.

    A server that runs is used; otherwise one starts here until Ctrl-C.  A GGUF file gets a server of its own.
    Raises: RequestError if the server has no such page, ModelNotFound
    """
    settings = Settings.from_env()
    if model and is_file(model):
        file = FileModel.of(expand_home(model))
        own = replace(settings, host=replace(settings.host, port=0))
        engine = Engine(own, file=file)
        return serve_forever(own, engine=engine, ready=lambda url: open_page(page_url(url, file.path.name), browser))
    if client := connect_if_running():
        with closing(client):
            url = settings.host.reachable.url
            check_page(url)
            if model:
                client.show(model)
        return open_page(page_url(url, model), browser)
    engine = Engine(settings)
    if model:
        try:
            engine.show(model)
        except ModelNotFound:
            engine.close()
            raise
    serve_forever(settings, engine=engine, ready=lambda url: open_page(page_url(url, model), browser))


def page_url(url: str, model: str) -> str:
    """Return the page's address, for `model` if it is not empty."""
    return f"{url.rstrip('/')}/learn" + (f"#{urlencode({'model': model})}" if model else "")


def check_page(url: str) -> None:
    """Check that the server has the page.  Raises: RequestError"""
    try:
        status = httpx.get(f"{url.rstrip('/')}/learn", timeout=10).status_code
    except httpx.HTTPError as error:
        raise RequestError(f"{url}/learn: {error}") from None
    if status != 200:
        raise RequestError(f"the server at {url} has no page /learn (status {status}); stop it, or set OLLAMA_HOST")


def open_page(url: str, browser: bool) -> None:
    """Print the address and open it in a browser, if there is one."""
    print(url, flush=True)
    if browser:  # in a thread: a browser in the terminal would keep the server from starting
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
