"""`numllama run` on a terminal: the interactive conversation, with an input history and slash commands."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ...engine.errors import EngineError
from ...engine.go.text import one_line
from ...engine.settings import Settings
from .client import ServerError
from .history import LineHistory
from .images import begins_with_image
from .session import Session
from .slash import run_command

PLACEHOLDERS = {">>> ": "Send a message (/? for help)", "... ": 'Use """ to end multi-line input'}


class TypedText(NamedTuple):
    """A message or a slash command.  Text in triple quotes is always a message."""

    text: str
    is_command: bool


class ReplPrompt:
    """The input prompt."""

    def __init__(self, history: LineHistory):
        self.history = history
        self._session: PromptSession[str] = PromptSession(
            history=history, key_bindings=key_bindings(), enable_suspend=True
        )

    def read(self) -> TypedText:
        """Read a message or command; triple quotes start a multi-line one.  Raises: EOFError, KeyboardInterrupt"""
        line = self._line(">>> ")
        head, quotes, text = line.partition('"""')
        if not quotes or head.strip() not in ("", "/set system"):
            return TypedText(line.strip(), line.strip().startswith("/"))
        while not text.endswith('"""'):
            text += "\n" + self._line("... ")
        return TypedText(head + text.removesuffix('"""').strip("\n"), bool(head.strip()))

    def is_empty(self) -> bool:
        """Return whether the line was empty when the last `read` was interrupted."""
        return not self._session.default_buffer.text

    def _line(self, prompt: str) -> str:
        line = self._session.prompt(prompt, placeholder=partial(placeholder, prompt))
        self.history.remember(line)
        return line


def placeholder(prompt: str) -> ANSI:
    """Return the grey text shown in an empty line, or nothing once the line is entered."""
    return ANSI("" if get_app().is_done else f"\x1b[38;5;245m{PLACEHOLDERS[prompt]}\x1b[0m")


def key_bindings() -> KeyBindings:
    """Return the bindings that prompt_toolkit lacks by default: Ctrl-G opens an editor."""
    bindings = KeyBindings()

    @bindings.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return bindings


def converse(session: Session) -> None:
    """Run the conversation until /bye or Ctrl-D."""
    settings = Settings.from_env()
    session.history.enabled = not settings.nohistory
    if settings.editor:
        os.environ["VISUAL"] = settings.editor  # the first variable that prompt_toolkit checks
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
        if typed.is_command and not (session.has_vision and begins_with_image(typed.text)):
            try:
                if not run_command(session, typed.text):
                    return
            except (EngineError, ServerError) as error:
                print(f"error: {one_line(str(error))}", file=sys.stderr)
        elif typed.text.strip():
            session.ask(typed.text)
