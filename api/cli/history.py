"""What was typed, line by line, in the file that Ollama keeps too: the newest hundred lines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

LIMIT = 100


class LineHistory(History):
    """Lines in `path`, one on each; with `enabled` off, nothing is remembered and nothing written.

    A line is remembered when `remember` is told, and not by the prompt, which leaves repetitions out.
    """

    def __init__(self, path: Path, enabled: bool = True):
        super().__init__()
        self.path, self.enabled = path, enabled

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        return reversed(self._lines())

    def append_string(self, string: str) -> None:
        pass

    def store_string(self, string: str) -> None:
        pass

    def remember(self, line: str) -> None:
        if not self.enabled or not line:
            return
        self._loaded_strings.insert(0, line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(self.path.name + ".tmp")
            temporary.write_text("".join(f"{line}\n" for line in [*self._lines(), line][-LIMIT:]), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            self.enabled = False  # a home that cannot be written is no reason not to talk

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
