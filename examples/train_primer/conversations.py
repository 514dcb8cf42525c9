"""The training text, and the conversations generated from it.

A topic is one answer and the questions that it answers.  In `text/*.txt` the first character of a line is its type:

    [topic] names, a trailing + marks a plural    ? question    = answer    ~ more simply    ! why    > example

This module also varies the wording of questions: "what's {x}", lower case, no question mark, a typing error.
It uses the standard library only, since the tests read the text with it too.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

TEXT = Path(__file__).parent / "text"
SWAPS = [
    ("What is ", "What's "),
    ("How do I ", "How can I "),
    ("How do I ", "How to "),
    ("how do I ", "how can I "),
    ("Why is ", "How come "),
    ("Can you ", "Could you "),
    ("do not", "don't"),
]
FOLLOWUPS = {"simply": "~", "why": "!", "example": ">"}  # kind of follow-up -> mark of the line that answers it


@dataclass
class Topic:
    """One entry of a text file: its questions, and its other lines by mark."""

    id: str
    names: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return self.lines["="]


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
        if topic is None or mark not in "?=~!>":
            raise ValueError(f"{path.name}:{number}: expected a topic or a mark of '? = ~ ! >', found {line!r}")
        if mark == "?":
            topic.questions.append(text)
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


def normalized(question: str) -> str:
    """Return `question` in lower case without punctuation.  Wordings that are then equal are the same question."""
    return " ".join(re.sub(r"[^\w\s]", " ", question.lower()).split())


def made_up_word(rng: Random) -> str:
    """Return a word that does not exist, such as "dolvake"."""
    syllable = ("bdfgklmnprstvwz", "aeiou", ["", "", "l", "n", "r", "x"])
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 3)) for letters in syllable)


def mistyped(text: str, rng: Random) -> str:
    """Swap, drop, double or replace one letter of one longer word of `text`."""
    places = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", text)]
    if not places:
        return text
    start, end = rng.choice(places)
    i = rng.randrange(start, end - 1)
    a, b = text[i], text[i + 1]
    change = rng.choice([b + a, a, b, a + a + b, rng.choice(string.ascii_lowercase) + b])
    return text[:i] + change + text[i + 2 :]


class Text:
    """All topics, stories and wordings; generates questions and conversations."""

    def __init__(self, folder: Path = TEXT):
        self.topics = {
            id: topic
            for name in ("about", "basics", "running", "sampling", "ollama")
            for id, topic in read_topics(folder / f"{name}.txt").items()
        }
        self.stories = read_topics(folder / "stories.txt")
        self.followups = read_topics(folder / "followups.txt")
        self.wordings = {id: topic.questions for id, topic in read_topics(folder / "wordings.txt").items()}
        self.unknown_patterns, self.unknown_words = read_unknown(folder / "unknown.txt")
        self.held_out = {id: topic.questions for id, topic in read_topics(folder / "held_out.txt").items()}
        self.never = {normalized(question) for questions in self.held_out.values() for question in questions}
        for story in self.stories.values():
            story.lines |= self.followups["story"].lines
        self.askable = [id for id, topic in self.topics.items() if topic.questions]

    def texts(self) -> Iterator[str]:
        """Yield every text the model may read or write, once: the tokenizer's training data."""
        for topic in [*self.topics.values(), *self.stories.values(), *self.followups.values()]:
            yield from topic.lines.values()
            for question in [*topic.questions, *topic.names]:
                yield question
                yield question.lower()
        for wordings in [*self.wordings.values(), self.unknown_patterns]:
            yield from (re.sub(r"\{\w+\}", "", wording) for wording in wordings)
        for words in self.unknown_words.values():
            yield from words

    def question(self, id: str, rng: Random) -> str:
        """Return a question about topic, story or follow-up `id` in some wording, never a held-out one."""
        while True:
            plain = self._plain_question(id, rng)
            question = self._spoiled(plain, rng)
            if self.never.isdisjoint((normalized(plain), normalized(question))):
                return question

    def _plain_question(self, id: str, rng: Random) -> str:
        if id in self.stories:
            subject = rng.choice(self.stories[id].names)
            if id == next(iter(self.stories)) and rng.random() < 0.6:
                return rng.choice(self.wordings["story"])
            return rng.choice(self.wordings["story_of"]).replace("{x}", subject)
        if id in self.followups:
            return rng.choice(self.followups[id].questions)
        if id == "no_topic":
            return self._plain_question(rng.choice([*FOLLOWUPS, "another"]), rng)
        if id == "unknown":
            pattern = rng.choice(self.unknown_patterns)
            return re.sub(r"\{(\w+)\}", lambda blank: self._unknown_word(blank[1], rng), pattern)
        topic = self.topics[id]
        if rng.random() < 0.15:  # the first question is the most important one
            return topic.questions[0]
        if topic.names and rng.random() < 0.35:
            name = rng.choice(topic.names)
            wording = rng.choice(self.wordings["many" if name.endswith("+") else "one"])
            return wording.replace("{x}", name.rstrip("+"))
        return rng.choice(topic.questions)

    def _unknown_word(self, blank: str, rng: Random) -> str:
        return made_up_word(rng) if blank == "made_up" else rng.choice(self.unknown_words[blank])

    def _spoiled(self, question: str, rng: Random) -> str:
        """Vary `question` the way people type."""
        for old, new in SWAPS:
            if rng.random() < 0.15:
                question = question.replace(old, new)
        if rng.random() < 0.12:
            question = f"{rng.choice(self.wordings['before'])} {question[0].lower() + question[1:]}"
        if rng.random() < 0.06:
            question = f"{question.rstrip('?')}, {rng.choice(self.wordings['after'])}"
        words = question.split(" ")
        if len(words) > 3 and rng.random() < 0.10:
            short = [i for i, word in enumerate(words) if len(word) <= 4 and word.islower()]
            if short:
                del words[rng.choice(short)]
                question = " ".join(words)
        if rng.random() < 0.12:
            question = mistyped(question, rng)
        if rng.random() < 0.4:
            question = question.lower()
        elif rng.random() < 0.02:
            question = question.upper()
        if rng.random() < 0.4:
            question = question.rstrip("?.! ")
        return question

    def conversation(self, rng: Random) -> Iterator[tuple[str, str]]:
        """Yield (question, answer) turns without end: new topics, and follow-ups that refer to the previous topic."""
        if rng.random() < 0.01:
            yield self.question("no_topic", rng), self.topics["no_topic"].answer
        while True:
            topic = self._next_topic(rng)
            yield self.question(topic.id, rng), topic.answer
            while rng.random() < 0.5:
                if topic.id in self.stories and rng.random() < 0.6:
                    topic = self.story_after(topic)
                    yield self.question("another", rng), topic.answer
                else:
                    kind = rng.choice(list(FOLLOWUPS))
                    yield self.question(kind, rng), topic.lines[FOLLOWUPS[kind]]

    def _next_topic(self, rng: Random) -> Topic:
        chance = rng.random()
        if chance < 0.07:
            return self.topics["unknown"]
        if chance < 0.14:
            stories = list(self.stories.values())
            return stories[0] if rng.random() < 0.2 else rng.choice(stories)
        return self.topics[rng.choice(self.askable)]

    def story_after(self, story: Topic) -> Topic:
        """Return the story for the request "another one"."""
        stories = list(self.stories.values())
        return stories[(stories.index(story) + 1) % len(stories)]

    def system(self, rng: Random) -> str | None:
        """Return a system prompt, or, most of the time, None."""
        return rng.choice(self.wordings["system"]) if rng.random() < 0.1 else None
