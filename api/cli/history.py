"""The input history of conversations, in the file that Ollama also uses: the latest hundred lines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

from ...engine.settings import home_folder

MAX_LINES = 100


class LineHistory(History):
    """A history in the file `path`, readable by its owner only; None: in memory.

    While `enabled` is False, no lines are added.

    Lines are added by `remember`, not by prompt_toolkit, which would skip repeated lines.
    """

    def __init__(self, path: Path | None, enabled: bool = True):
        super().__init__()
        self.path, self.enabled = path, enabled

    @classmethod
    def of_user(cls) -> LineHistory:
        """Return the history that Ollama also uses, in memory for a user without a home folder."""
        home = home_folder()
        return cls(home / ".ollama/history" if home else None)

    def load_history_strings(self) -> Iterable[str]:
        """Return all lines, newest first."""
        return reversed(self._lines())

    def append_string(self, string: str) -> None:
        pass

    def store_string(self, string: str) -> None:
        pass

    def remember(self, line: str) -> None:
        """Add `line` to the history and to its file."""
        if not self.enabled or not line:
            return
        self._loaded_strings.insert(0, line)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(self.path.name + ".tmp")
            temporary.unlink(missing_ok=True)
            lines = "".join(f"{line}\n" for line in [*self._lines(), line][-MAX_LINES:])
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(lines)
            os.replace(temporary, self.path)
        except OSError:
            self.enabled = False  # an unwritable home must not end the conversation

    def _lines(self) -> list[str]:
        if self.path is None:
            return []
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line for line in text.split("\n") if line]
