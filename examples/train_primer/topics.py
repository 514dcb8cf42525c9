"""The training text: topics, read from files in which the first character of a line is its type.

    [topic] names, a trailing + marks a plural
    ? question    = answer, in one or more wordings    - in one word    ~ more simply    ! why    > example

Standard library only, as in conversations.py, questions.py and arithmetic.py, since the tests read the text with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Topic:
    """One entry of a text file: its questions, its answers, and its other lines by mark."""

    id: str
    names: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def label(self) -> str:
        """The topic's first name, "" if it has no name."""
        return self.names[0].rstrip("+") if self.names else ""


@dataclass(frozen=True)
class Turn:
    """A message that the model reads, a user's or a tool's result, and its answer.

    thought   the thinking before the answer; "" if thinking is off
    """

    asked: str
    answer: str
    thought: str = ""
    role: str = "user"


def read_topics(path: Path) -> dict[str, Topic]:
    """Read the topics of a text file, by id, in the file's order."""
    topics: dict[str, Topic] = {}
    topic = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\w+)\] ?(.*)", line):
            id, names = match.groups()
            if id in topics:
                raise ValueError(f"{path.name}:{number}: topic {id!r} occurs twice")
            topic = topics[id] = Topic(id, [name.strip() for name in names.split("|") if name.strip()])
            continue
        mark, _, text = line.partition(" ")
        if topic is None or mark not in "?=-~!>":
            raise ValueError(f"{path.name}:{number}: expected a topic or a mark of '? = - ~ ! >', found {line!r}")
        if mark == "?":
            topic.questions.append(text)
        elif mark == "=":
            topic.answers.append(text)
        else:
            topic.lines[mark] = text
    return topics


def read_unknown(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Read the question patterns of unknown.txt, and the words for each of their blanks."""
    patterns, words = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("? "):
            patterns.append(line[2:])
        elif line.startswith("{"):
            blank, _, values = line.partition(": ")
            words[blank.strip("{}")] = values.split(", ")
    return patterns, words
