"""Examinations: questions with all answers that are right, by what they examine.

train.py asks them after training, tests/examples/test_primer.py asks the shipped file.  Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from arithmetic import CALCULATOR, TOOLS
from conversations import FOLLOWUPS, Text
from topics import Turn

NEW_NAMES = ["Wilma", "Bruno", "Tarik", "Sunny", "Petra", "Lotte"]  # none of them in the training text
N_CALCULATIONS = 60


@dataclass(frozen=True)
class Question:
    """A last turn to answer, after the earlier ones, and every answer that is right."""

    turn: Turn
    answers: Sequence[str]
    earlier: Sequence[Turn] = ()
    system: Sequence[str] = ()


def examinations(text: Text, whole: bool = False) -> Iterator[tuple[str, list[Question]]]:
    """Yield examinations by name: questions as in the training text, then others that are not in it.

    whole   ask every written wording, not only every fourth
    """
    asked = {id: text.topics[id].questions for id in text.askable}
    topics = {**text.topics, **text.stories}
    held_out = [(id, q) for id, questions in text.held_out.items() if id in topics for q in questions]
    some_story = [story.answer for story in text.stories.values()]

    def answers(id: str, question: str = "", kind: str = "plain", name: str = "") -> list[str]:
        if id in text.stories:
            is_any = not any(name in question for name in text.stories[id].names)
            return some_story if is_any else text.stories[id].answers
        return text.answers(id, kind, name)

    def ask(id: str, question: str, kind: str = "plain", system: str = "", thought: str = "") -> Question:
        right = answers(id, question, kind)
        return Question(Turn(question, right[0], thought), right, system=[system] if system else [])

    yield "first questions", [ask(id, questions[0]) for id, questions in asked.items()]
    written = [(id, q) for id, questions in asked.items() for q in questions]
    yield "written questions", [ask(id, q) for id, q in written[:: 1 if whole else 4]]
    yield "held-out questions", [ask(id, q) for id, q in held_out]
    yield "follow-ups", list(_followups(text))
    yield (
        "first questions, thinking",
        [ask(id, questions[0], thought=text.thought(id)) for id, questions in asked.items()],
    )
    yield "held-out questions, thinking", [ask(id, q, thought=text.thought(id)) for id, q in held_out]
    for kind in ("one_word", "briefly", "examples", "pirate"):
        systems = text.held_out[kind]
        asks = [ask(id, questions[0], kind, systems[i % 2]) for i, (id, questions) in enumerate(asked.items())]
        yield f"system prompt: {kind}", asks
    yield (
        "system prompt: a new name",
        [
            Question(Turn(question, ""), text.answers(id, "renamed", name), system=[system.replace("{x}", name)])
            for name in NEW_NAMES
            for system in text.held_out["renamed"]
            for id, question in (
                ("hello", "Hello"),
                ("who_are_you", "Who are you?"),
                ("who_are_you", "What is your name?"),
            )
        ],
    )
    yield from _calculations(text)
    rng = Random(8)
    repeated = [replace(text.repeated(rng), thought="") for _ in range(N_CALCULATIONS)]
    yield "texts repeated", [Question(turn, [turn.answer]) for turn in repeated]


def _followups(text: Text) -> Iterator[Question]:
    for id in text.askable:
        topic = text.topics[id]
        earlier = [Turn(topic.questions[0], topic.answer)]
        for kind, mark in FOLLOWUPS.items():
            for question in text.held_out[kind]:
                line = topic.lines[mark]
                yield Question(Turn(question, line), [line], earlier)


def _calculations(text: Text) -> Iterator[tuple[str, list[Question]]]:
    arithmetic, rng = text.arithmetic, Random(7)
    drawn = [arithmetic.calculation(rng) for _ in range(N_CALCULATIONS)]
    easy = [arithmetic.calculation(rng, easy=True) for _ in range(N_CALCULATIONS)]
    offered, calls = [TOOLS + CALCULATOR], [(c, *arithmetic.call(c, rng)) for c in drawn]
    cannot = text.topics["sums"].answers
    for thinks in (False, True):
        with_thoughts = ", thinking" if thinks else ""
        pairs = [(c, *(turn if thinks else replace(turn, thought="") for turn in turns)) for c, *turns in calls]
        yield (
            f"calculator called{with_thoughts}",
            [Question(call, [call.answer], system=offered) for _, call, _ in pairs],
        )
        yield (
            f"calculator's result told{with_thoughts}",
            [Question(result, arithmetic.answers(c, result.asked), [call], offered) for c, call, result in pairs],
        )
    yield (
        "tools offered, another question",
        [
            Question(Turn(text.topics[id].questions[0], ""), text.topics[id].answers, system=offered)
            for id in text.askable[::3]
        ],
    )
    worked_out = [text.worked_out(c, arithmetic.question(c, rng)) for c in easy]
    yield "sums worked out, thinking", [Question(turn, [turn.answer]) for turn in worked_out]
    yield "sums refused", [Question(replace(turn, thought=""), cannot) for turn in worked_out]
