"""`numllama run` on a terminal: a conversation, with a history and a few commands that begin with a slash."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ...engine.errors import EngineError
from ...engine.settings import Settings
from .client import ServerError
from .history import LineHistory
from .session import Session
from .slash import command

if TYPE_CHECKING:
    pass

HINT = {">>> ": "Send a message (/? for help)", "... ": 'Use """ to end multi-line input'}


class TypedText(NamedTuple):
    """A message or a command; what stood in triple quotes is a message, whatever it begins with."""

    text: str
    is_command: bool


class ReplPrompt:
    """Where people type."""

    def __init__(self, history: LineHistory):
        self.history = history
        self._session: PromptSession[str] = PromptSession(history=history, key_bindings=keys())

    def read(self) -> TypedText:
        """The next message or command; triple quotes open one of several lines.  Raises: EOFError, KeyboardInterrupt"""
        line = self._line(">>> ")
        head, quotes, text = line.partition('"""')
        if not quotes or head.strip() not in ("", "/set system"):
            return TypedText(line.strip(), line.strip().startswith("/"))
        while not text.endswith('"""'):
            text += "\n" + self._line("... ")
        return TypedText(head + text.removesuffix('"""').strip("\n"), bool(head.strip()))

    def is_empty(self) -> bool:
        """Whether nothing had been typed when the last `read` was broken off."""
        return not self._session.default_buffer.text

    def _line(self, prompt: str) -> str:
        line = self._session.prompt(prompt, placeholder=partial(hint, prompt))
        self.history.remember(line)
        return line


def hint(prompt: str) -> ANSI:
    """What stands in an empty line, in grey, until the line is done."""
    return ANSI("" if get_app().is_done else f"\x1b[38;5;245m{HINT[prompt]}\x1b[0m")


def keys() -> KeyBindings:
    """What prompt_toolkit does not bind by itself: Ctrl-G opens an editor."""
    bindings = KeyBindings()

    @bindings.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return bindings


def converse(session: Session) -> None:
    """Talk until /bye or Ctrl-D."""
    settings = Settings.from_env()
    session.history.enabled = not settings.nohistory
    if settings.editor:
        os.environ["VISUAL"] = settings.editor  # what prompt_toolkit looks at first
    session.load()
    prompt = ReplPrompt(session.history)
    while True:
        try:
            typed = prompt.read()
        except KeyboardInterrupt:
            if prompt.is_empty():
                print("Use Ctrl + d or /bye to exit.")
            continue
        except EOFError:
            return
        if typed.is_command:
            try:
                if not command(session, typed.text):
                    return
            except (EngineError, ServerError) as error:
                print(f"error: {error}", file=sys.stderr)
        elif typed.text.strip():
            session.ask(typed.text)
