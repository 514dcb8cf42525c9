"""`numllama run` on a terminal: a conversation, with a history and a few commands that begin with a slash."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ...engine.errors import EngineError, RequestError
from ...engine.options import AS_USUAL, Wanted
from ...engine.piece import Piece
from ...engine.settings import Settings
from ..client import ServerError
from .find import models_for
from .history import LineHistory
from .slash import command
from .spinner import Spinner
from .tell import Told, tell

if TYPE_CHECKING:
    from .find import Models

HINT = {">>> ": "Send a message (/? for help)", "... ": 'Use """ to end multi-line input'}


@dataclass
class Session:
    """A conversation and how it is to be held.

    wanted     how its answers are
    sees       the model takes images, which are named by their paths
    messages   what was said, and each system message where it was set
    system     the newest of those
    """

    models: Models
    model: str
    wanted: Wanted = AS_USUAL
    kernels: str | None = None
    verbose: bool = False
    wordwrap: bool = True
    hide_thinking: bool = False
    system: str = ""
    sees: bool = False
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    history: LineHistory = field(default_factory=lambda: LineHistory(Path.home() / ".ollama" / "history"))

    def want(self, **how: Any) -> None:
        """Have answers differ from now on."""
        self.wanted = replace(self.wanted, **how)

    def close(self) -> None:
        self.models.close()

    def load(self) -> None:
        """Have the model ready, and show the conversation that it begins with.  Raises: ModelNotFound, ServerError"""
        with Spinner(sys.stderr):
            info = self.models.show(self.model)
            self.sees = "vision" in (info.get("capabilities") or [])
            self.models.generate(self.model, "", Wanted(self.wanted.options, self.wanted.keep_alive))
        for message in info.get("messages") or []:
            match message["role"]:
                case "user":
                    print(f">>> {message['content']}")
                case "assistant":
                    Told(self.wordwrap).put(Piece(f"{message['content']}\n\n"))

    def change(self, model: str) -> None:
        """Begin anew with `model`.  Raises: ModelNotFound, ServerError, and then nothing has changed"""
        other = Session(models_for(model, self.kernels), model, replace(self.wanted, options={}), self.kernels)
        try:
            other.load()
        except BaseException:
            other.close()
            raise
        self.close()
        self.models, self.model, self.wanted, self.system = other.models, model, other.wanted, ""
        self.sees = other.sees
        self.messages.clear()

    def set_system(self, text: str, *, several_lines: bool) -> None:
        """Have `text` said by the system.  It takes the place of one that nothing followed, if it is one line.

        As in Ollama's interactive.go, fb30760, where one of several lines is added to it.
        """
        if self.messages and self.messages[-1]["role"] == "system" and not several_lines:
            self.messages.pop()
        self.system = text
        self.messages.append({"role": "system", "content": text})

    def clear(self) -> None:
        """Forget what was said, but for the system message."""
        self.messages.clear()
        if self.system:
            self.set_system(self.system, several_lines=False)

    def ask(self, text: str) -> None:
        """Say `text`, and show what the model answers.  What Ctrl-C leaves of an answer is remembered as the answer.

        Images that `text` names by their paths are shown to a model that sees.
        """
        message: dict[str, Any] = {"role": "user", "content": text}
        if self.sees:
            from .images import with_images

            try:
                message["content"], message["images"] = with_images(text)
            except RequestError as error:
                print(f"error: {error}", file=sys.stderr)
                return
        self.messages.append(message)
        told = Told(self.wordwrap, self.hide_thinking)
        try:
            tell(lambda: self.models.chat(self.model, self.messages, self.wanted), told, self.verbose)
        except KeyboardInterrupt:
            pass
        except (EngineError, ServerError) as error:
            self.messages.pop()
            print(f"error: {error}", file=sys.stderr)
            return
        thoughts = {"thinking": told.thinking} if told.thinking else {}
        self.messages.append({"role": "assistant", "content": told.text, **thoughts})
        print()


class Typed(NamedTuple):
    """A message or a command; what stood in triple quotes is a message, whatever it begins with."""

    text: str
    is_command: bool


class Prompt:
    """Where people type."""

    def __init__(self, history: LineHistory):
        self.history = history
        self._session: PromptSession[str] = PromptSession(history=history, key_bindings=keys())

    def read(self) -> Typed:
        """The next message or command; triple quotes open one of several lines.  Raises: EOFError, KeyboardInterrupt"""
        line = self._line(">>> ")
        head, quotes, text = line.partition('"""')
        if not quotes or head.strip() not in ("", "/set system"):
            return Typed(line.strip(), line.strip().startswith("/"))
        while not text.endswith('"""'):
            text += "\n" + self._line("... ")
        return Typed(head + text.removesuffix('"""').strip("\n"), bool(head.strip()))

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
    prompt = Prompt(session.history)
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
