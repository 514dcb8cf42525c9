"""The conversations that the model is trained on, generated from the training text.

topics.py reads the text, questions.py varies the wording of questions, arithmetic.py makes calculations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

from arithmetic import Arithmetic
from questions import made_up_word, normalized, spoiled
from topics import Topic, Turn, read_topics, read_unknown

TEXT = Path(__file__).parent / "text"
FILES = ("about", "basics", "running", "sampling", "ollama")
FOLLOWUPS = {"simply": "~", "why": "!", "example": ">"}  # kind of follow-up -> mark of the line that answers it
KINDS = {  # kind of conversation -> its share
    "plain": 43,
    "neutral": 4,
    "one_word": 7,
    "briefly": 4,
    "examples": 5,
    "pirate": 4,
    "renamed": 6,
    "sums": 8,
    "tools": 16,
    "repeat": 3,
}
COPYING = {"plain": 30, "renamed": 12, "sums": 12, "tools": 22, "repeat": 24}
ADDING = KINDS | {"plain": 39, "sums": 13, "renamed": 7}
RECALL = KINDS | {"plain": 22, "recall": 28, "examples": 6, "sums": 10, "tools": 11}  # "recall" asks "why?" more often
LAST = RECALL | {"plain": 20, "recall": 18, "pirate": 5, "renamed": 10, "sums": 22}
PIRATE = "Arr, matey!"
WORDING_WEIGHTS = (0.5, 0.3, 0.2)  # of a topic's answers; the first stays the likeliest
THINKS = 0.3  # share of the turns with thinking
GREETINGS = ("hello", "who_are_you")  # topics whose answers hold the model's name


class Text:
    """All topics, stories and wordings; generates questions and conversations."""

    def __init__(self, folder: Path = TEXT):
        files = {name: read_topics(folder / f"{name}.txt") for name in FILES}
        for name, topics in files.items():
            for topic in topics.values():
                if name != "about":  # there the simple line does not lead to the answer
                    topic.answers.append(f"{topic.lines['~']} {topic.answer}")
        self.topics = {id: topic for topics in files.values() for id, topic in topics.items()}
        self.stories = read_topics(folder / "stories.txt")
        self.followups = read_topics(folder / "followups.txt")
        self.instructions = read_topics(folder / "instructions.txt")
        self.thoughts = {id: topic.questions[0] for id, topic in read_topics(folder / "thoughts.txt").items()}
        self.wordings = {id: topic.questions for id, topic in read_topics(folder / "wordings.txt").items()}
        self.arithmetic = Arithmetic(read_topics(folder / "arithmetic.txt"), self.thoughts)
        self.repeat = read_topics(folder / "repeat.txt")
        self.unknown_patterns, self.unknown_words = read_unknown(folder / "unknown.txt")
        self.held_out = {id: topic.questions for id, topic in read_topics(folder / "held_out.txt").items()}
        self.never = {normalized(question) for questions in self.held_out.values() for question in questions}
        for story in self.stories.values():
            story.lines |= self.followups["story"].lines
        self.askable = [id for id, topic in self.topics.items() if topic.questions]

    def texts(self) -> Iterator[str]:
        """Yield every text the model may read or write, once: the tokenizer's training data."""
        entries = (self.topics, self.stories, self.followups, self.instructions)
        for topic in [topic for entry in entries for topic in entry.values()]:
            yield from topic.answers
            yield from topic.lines.values()
            for question in [*topic.questions, *topic.names]:
                yield question
                yield question.lower()
        for wordings in [*self.wordings.values(), self.unknown_patterns, self.thoughts.values()]:
            yield from (re.sub(r"\{[^}]+\}", "", wording) for wording in wordings)
        for words in self.unknown_words.values():
            yield from words
        yield from (question.replace("{x}", "") for topic in self.repeat.values() for question in topic.questions)
        yield from self.arithmetic.texts()
        yield PIRATE

    def question(self, id: str, rng: Random) -> str:
        """Return a question about topic, story or follow-up `id` in some wording, never a held-out one."""
        while True:
            plain = self._plain_question(id, rng)
            question = spoiled(plain, self.wordings, rng)
            if self.never.isdisjoint((normalized(plain), normalized(question))):
                return question

    def _plain_question(self, id: str, rng: Random) -> str:
        if id in self.stories:
            return rng.choice(self.wordings["story_of"]).replace("{x}", rng.choice(self.stories[id].names))
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

    def conversation(self, rng: Random, kinds: Mapping[str, int] = KINDS) -> tuple[list[str], Iterator[Turn]]:
        """Return the system messages of a conversation, of a random one of `kinds`, and its turns, endless."""
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "repeat":
            return [], self._repeats(rng)
        if kind == "recall":
            return [], self._turns("plain", "", rng, more=0.7)
        if kind == "neutral":
            return [rng.choice(self.wordings["system"])], self._turns("plain", "", rng)
        if kind == "sums":
            return [], self._sums(rng)
        if kind == "tools":
            offered, has_calculator = self.arithmetic.offer(rng)
            return [offered], self._with_tools(has_calculator, rng)
        if kind not in self.instructions:
            return [], self._turns(kind, "", rng)
        name = self._name(rng) if kind == "renamed" else ""
        while True:
            system = rng.choice(self.instructions[kind].questions).replace("{x}", name)
            if normalized(system) not in self.never:
                return [_typed(system, rng)], self._turns(kind, name, rng)

    def _name(self, rng: Random) -> str:
        known = self.instructions["renamed"].names
        return rng.choice(known) if rng.random() < 0.4 else made_up_word(rng).capitalize()

    def _turns(self, kind: str, name: str, rng: Random, more: float = 0.0) -> Iterator[Turn]:
        """Yield turns without end: new topics, and follow-ups that refer to the previous topic.

        more   the chance of another follow-up; 0: that of the kind
        """
        more = more or (0.5 if kind in ("plain", "pirate") else 0.25)
        if kind == "plain" and rng.random() < 0.01:
            yield self.turn("no_topic", kind, name, rng)
        while True:
            id = self._next_topic(kind, rng)
            yield self.turn(id, kind, name, rng)
            topic = self.stories.get(id) or self.topics[id]
            while rng.random() < more:
                if topic.id in self.stories and rng.random() < 0.6:
                    topic = self.story_after(topic)
                    thought = self.thoughts["another"].replace("{x}", topic.names[0])
                    yield self._turn(self.question("another", rng), answer_as(topic.answer, kind), thought, rng)
                else:
                    yield self.followup(topic, rng.choice(list(FOLLOWUPS)), kind, rng)

    def _next_topic(self, kind: str, rng: Random) -> str:
        chance = rng.random()
        if kind == "renamed" and chance < 0.6:
            return rng.choice(GREETINGS)
        if chance < 0.08:
            return "unknown"
        if chance < 0.16 and kind in ("plain", "pirate"):
            return rng.choice(list(self.stories))
        return rng.choice(self.askable)

    def turn(self, id: str, kind: str, name: str, rng: Random) -> Turn:
        """Return a turn about topic or story `id` in a conversation of `kind`."""
        if id in self.stories:
            if rng.random() < 0.15:  # any story
                question = spoiled(rng.choice(self.wordings["story"]), self.wordings, rng)
                if normalized(question) in self.never:
                    return self.turn(id, kind, name, rng)
                id = next(iter(self.stories)) if rng.random() < 0.2 else id
                return self._turn(question, answer_as(self.stories[id].answer, kind), self.thought(id), rng)
            return self._turn(self.question(id, rng), answer_as(self.stories[id].answer, kind), self.thought(id), rng)
        wordings = self.answers(id, kind, name)
        answer = rng.choices(wordings, WORDING_WEIGHTS[: len(wordings)])[0]
        return self._turn(self.question(id, rng), answer, self.thought(id), rng)

    def answers(self, id: str, kind: str = "plain", name: str = "") -> list[str]:
        """Return the answers to topic `id`, in a conversation of `kind`, of a model named `name`."""
        topic = self.topics[id]
        if kind == "one_word":
            return [topic.lines["-"]]
        if kind == "briefly":
            return [topic.lines["~"]]
        if kind == "examples":
            return [f"{answer} {topic.lines['>']}" for answer in topic.answers[:2]]
        if kind == "pirate":
            return [answer_as(answer, kind) for answer in topic.answers[:2]]
        if name and id in GREETINGS:
            return [answer.replace("primer", name) for answer in topic.answers]
        return topic.answers

    def followup(self, topic: Topic, mark_of: str, kind: str, rng: Random) -> Turn:
        """Return a question of kind `mark_of` about the previous `topic`, and the line that answers it."""
        answer = answer_as(topic.lines[FOLLOWUPS[mark_of]], kind)
        if kind == "one_word":
            answer = "Because." if mark_of == "why" else topic.lines["-"]
        return self._turn(self.question(mark_of, rng), answer, self.thoughts[mark_of], rng)

    def thought(self, id: str) -> str:
        """Return the thinking before an answer about topic or story `id`."""
        if id in self.stories:
            return self.thoughts["story"].replace("{x}", self.stories[id].names[0])
        topic = self.topics[id]
        if id in self.thoughts:
            return self.thoughts[id]
        pattern = self.thoughts["named" if topic.label else "unnamed"]
        return pattern.replace("{x}", topic.label).replace("{~}", topic.lines["~"])

    def _turn(self, question: str, answer: str, thought: str, rng: Random) -> Turn:
        return Turn(question, answer, thought if rng.random() < THINKS else "")

    def _sums(self, rng: Random) -> Iterator[Turn]:
        """Yield calculations without a calculator, most of them sums with thinking, between other questions."""
        while True:
            if rng.random() < 0.2:
                yield self.turn(self._next_topic("plain", rng), "plain", "", rng)
                continue
            calculation = self.arithmetic.calculation(rng, easy=rng.random() < 0.75)
            question = self.arithmetic.question(calculation, rng)
            if rng.random() < 0.25:
                answers = self.topics["sums"].answers
                yield Turn(question, rng.choices(answers, WORDING_WEIGHTS[: len(answers)])[0])
            else:
                yield self.worked_out(calculation, question)

    def worked_out(self, calculation: tuple[int, str, int], question: str) -> Turn:
        """Return the turn in which the model adds two small numbers by thinking, or says that it cannot."""
        thought = self.arithmetic.steps(calculation)
        if thought:
            return Turn(question, self.arithmetic.answers(calculation)[0], thought)
        return Turn(question, self.topics["sums"].answer, self.arithmetic.fill(self.thoughts["hard"], calculation))

    def _repeats(self, rng: Random) -> Iterator[Turn]:
        """Yield texts to repeat, between other questions."""
        while True:
            if rng.random() < 0.1:
                yield self.turn(self._next_topic("plain", rng), "plain", "", rng)
            else:
                yield self.repeated(rng)

    def repeated(self, rng: Random) -> Turn:
        """Return a request to repeat a few words and numbers, and the repetition."""
        kinds = [made_up_word, lambda rng: str(rng.randrange(10 ** rng.randint(1, 5))), self._known_word]
        said = " ".join(rng.choice(kinds)(rng) for _ in range(rng.randint(1, 4)))
        question = rng.choice(self.repeat["repeat"].questions).replace("{x}", said)
        return self._turn(question, said, self.repeat["thought"].questions[0], rng)

    def _known_word(self, rng: Random) -> str:
        return rng.choice(self.unknown_words[rng.choice(["country", "thing"])])

    def _with_tools(self, has_calculator: bool, rng: Random) -> Iterator[Turn]:
        """Yield calls of the calculator and answers from their results, between other questions."""
        while True:
            if rng.random() < 0.3 or not has_calculator:
                if not has_calculator and rng.random() < 0.3:
                    calculation = self.arithmetic.calculation(rng)
                    yield Turn(self.arithmetic.question(calculation, rng), self.topics["sums"].answer)
                yield self.turn(self._next_topic("plain", rng), "plain", "", rng)
                continue
            calculation = self.arithmetic.calculation(rng)
            asked, result = self.arithmetic.call(calculation, rng)
            thinks = rng.random() < THINKS
            yield asked if thinks else replace(asked, thought="")
            yield result if thinks else replace(result, thought="")

    def story_after(self, story: Topic) -> Topic:
        """Return the story for the request "another one"."""
        stories = list(self.stories.values())
        return stories[(stories.index(story) + 1) % len(stories)]


def answer_as(answer: str, kind: str) -> str:
    """Return `answer` in the manner of a conversation of `kind`."""
    return f"{PIRATE} {answer}" if kind == "pirate" else answer


def _typed(system: str, rng: Random) -> str:
    """Vary a system prompt the way people type."""
    if rng.random() < 0.15:
        system = system[0].lower() + system[1:]
    return system.rstrip(".") if rng.random() < 0.3 else system
