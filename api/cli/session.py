"""The state of an interactive conversation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...engine.errors import EngineError, RequestError
from ...engine.go.text import one_line, several_lines
from ...engine.options import DEFAULT_REQUEST, RequestOptions
from ...engine.run.piece import Piece
from .backend import backend_for
from .client import ServerError
from .display import AnswerDisplay, print_answer
from .history import LineHistory
from .spinner import Spinner

if TYPE_CHECKING:
    from .backend import Backend


@dataclass
class Session:
    """A conversation and its settings.

    request      options of all requests
    has_vision   the model accepts images, given by path in a message
    messages     the history, with each system message at the place where it was set
    system       the latest system message
    """

    backend: Backend
    model: str
    request: RequestOptions = DEFAULT_REQUEST
    kernels: str | None = None
    verbose: bool = False
    wordwrap: bool = True
    hide_thinking: bool = False
    system: str = ""
    has_vision: bool = False
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    history: LineHistory = field(default_factory=LineHistory.of_user)

    def update_request(self, **changes: Any) -> None:
        """Change the options of the following requests."""
        self.request = replace(self.request, **changes)

    def close(self) -> None:
        self.backend.close()

    def load(self) -> None:
        """Load the model, and print the messages that it comes with.  Raises: ModelNotFound, ServerError"""
        with Spinner(sys.stderr):
            info = self.backend.show(self.model)
            self.has_vision = "vision" in (info.get("capabilities") or [])
            self.backend.generate(self.model, "", RequestOptions(self.request.options, self.request.keep_alive))
        for message in info.get("messages") or []:
            match message["role"]:
                case "user":
                    print(f">>> {several_lines(message['content'])}")
                case "assistant":
                    AnswerDisplay(self.wordwrap).put(Piece(f"{message['content']}\n\n"))

    def switch_model(self, model: str) -> None:
        """Start a new conversation with `model`.  On an error nothing changes.  Raises: ModelNotFound, ServerError"""
        other = Session(backend_for(model, self.kernels), model, replace(self.request, options={}), self.kernels)
        try:
            other.load()
        except BaseException:
            other.close()
            raise
        self.close()
        self.backend, self.model, self.request, self.system = other.backend, model, other.request, ""
        self.has_vision = other.has_vision
        self.messages.clear()

    def set_system(self, text: str, *, multiline: bool) -> None:
        """Add `text` as a system message.

        A single-line message replaces a system message at the end of the history; a multi-line one is added after it.
        As in Ollama's interactive.go, fb30760.
        """
        if self.messages and self.messages[-1]["role"] == "system" and not multiline:
            self.messages.pop()
        self.system = text
        self.messages.append({"role": "system", "content": text})

    def clear(self) -> None:
        """Clear the history, except for the system message."""
        self.messages.clear()
        if self.system:
            self.set_system(self.system, multiline=False)

    def ask(self, text: str) -> None:
        """Send `text`, with the images whose paths are in it if the model has vision, and print the answer.

        After Ctrl-C, the part received so far counts as the answer.
        """
        message: dict[str, Any] = {"role": "user", "content": text}
        if self.has_vision:
            from .images import extract_images

            try:
                message["content"], message["images"] = extract_images(text)
            except RequestError as error:
                print(f"error: {one_line(str(error))}", file=sys.stderr)
                return
        self.messages.append(message)
        display = AnswerDisplay(self.wordwrap, self.hide_thinking)
        try:
            print_answer(lambda: self.backend.chat(self.model, self.messages, self.request), display, self.verbose)
        except KeyboardInterrupt:
            pass
        except (EngineError, ServerError) as error:
            self.messages.pop()
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            return
        thinking = {"thinking": display.thinking} if display.thinking else {}
        self.messages.append({"role": "assistant", "content": display.text, **thinking})
        print()
