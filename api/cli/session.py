"""A conversation on the command line, and how it is held."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import EngineError, RequestError
from ...engine.options import DEFAULT_REQUEST, RequestOptions
from ...engine.run.piece import Piece
from .client import ServerError
from .find import models_for
from .history import LineHistory
from .spinner import Spinner
from .tell import Told, tell

if TYPE_CHECKING:
    from .find import Models


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
    request: RequestOptions = DEFAULT_REQUEST
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
        self.request = replace(self.request, **how)

    def close(self) -> None:
        self.models.close()

    def load(self) -> None:
        """Have the model ready, and show the conversation that it begins with.  Raises: ModelNotFound, ServerError"""
        with Spinner(sys.stderr):
            info = self.models.show(self.model)
            self.sees = "vision" in (info.get("capabilities") or [])
            self.models.generate(self.model, "", RequestOptions(self.request.options, self.request.keep_alive))
        for message in info.get("messages") or []:
            match message["role"]:
                case "user":
                    print(f">>> {message['content']}")
                case "assistant":
                    Told(self.wordwrap).put(Piece(f"{message['content']}\n\n"))

    def change(self, model: str) -> None:
        """Begin anew with `model`.  Raises: ModelNotFound, ServerError, and then nothing has changed"""
        other = Session(models_for(model, self.kernels), model, replace(self.request, options={}), self.kernels)
        try:
            other.load()
        except BaseException:
            other.close()
            raise
        self.close()
        self.models, self.model, self.request, self.system = other.models, model, other.request, ""
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
            tell(lambda: self.models.chat(self.model, self.messages, self.request), told, self.verbose)
        except KeyboardInterrupt:
            pass
        except (EngineError, ServerError) as error:
            self.messages.pop()
            print(f"error: {error}", file=sys.stderr)
            return
        thoughts = {"thinking": told.thinking} if told.thinking else {}
        self.messages.append({"role": "assistant", "content": told.text, **thoughts})
        print()
