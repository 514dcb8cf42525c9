"""Calculations: questions, calls of the tool `calculator` and its results, and sums worked out in thoughts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from random import Random

from topics import Topic, Turn

Calculation = tuple[int, str, int]  # such as (12, "times", 7)

CALCULATOR = "calculator(expression)"
TOOLS = "Tools: "
CALL = '<tool_call>{{"name": "calculator", "arguments": {{"expression": {expression}}}}}</tool_call>'
OPERATIONS = ("plus", "minus", "times", "divided")
MAX_EASY = 99  # sums of numbers up to this are worked out in thoughts


class Arithmetic:
    """Calculations, in the wordings of arithmetic.txt and thoughts.txt."""

    def __init__(self, topics: Mapping[str, Topic], thoughts: Mapping[str, str]):
        self.topics, self.thoughts = topics, thoughts
        self.words = {id: topics[id].names[0] for id in OPERATIONS}
        self.signs = {id: topics[id].names[1] for id in OPERATIONS}

    def texts(self) -> Iterator[str]:
        """Yield what the tokenizer should know; the form of a call often, since it is written often."""
        for pattern in [*self.topics["ask"].questions, *self.topics["answer"].answers]:
            yield pattern.replace("{x}", "").replace("{result}", "")
        yield from self.topics["other_tools"].questions
        yield from self.words.values()
        yield from [CALL.format(expression='""'), TOOLS + CALCULATOR] * 30

    def calculation(self, rng: Random, easy: bool = False) -> Calculation:
        """Return a random calculation; an `easy` one is a sum of two small numbers."""
        if easy:
            return rng.randint(1, MAX_EASY), "plus", rng.randint(1, MAX_EASY)
        a, b = (rng.randint(1, 10 ** rng.choice([1, 2, 2, 2, 3, 3, 4]) - 1) for _ in "ab")
        return a, rng.choice(OPERATIONS), b

    def fill(self, pattern: str, calculation: Calculation, **more: object) -> str:
        """Fill the blanks {a}, {b}, {sign}, {x} and `more` of `pattern`."""
        a, id, b = calculation
        values = {"a": a, "b": b, "sign": self.signs[id], "x": f"{a} {self.words[id]} {b}", **more}
        for name, value in values.items():
            pattern = pattern.replace(f"{{{name}}}", str(value))
        return pattern

    def question(self, calculation: Calculation, rng: Random) -> str:
        """Ask for the calculation, in words or signs."""
        a, id, b = calculation
        written = rng.choice([f"{a} {self.words[id]} {b}", f"{a} {self.signs[id]} {b}", f"{a}{self.signs[id]}{b}"])
        question = rng.choice(self.topics["ask"].questions).replace("{x}", written)
        question = question.lower() if rng.random() < 0.3 else question
        return question.rstrip("?") if rng.random() < 0.3 else question

    def call(self, calculation: Calculation, rng: Random) -> tuple[Turn, Turn]:
        """Return the turn that calls the calculator, and the one that answers from its result.

        Half of the results are random numbers, so that the model repeats the result rather than its own guess.
        """
        a, id, b = calculation
        result = self.result(calculation) if rng.random() < 0.5 else f"{rng.randint(-999, 99999)}"
        if rng.random() < 0.1:
            result = f"{rng.uniform(0, 1000):.{rng.choice([1, 2, 3])}f}"
        expression = json.dumps(f"{a} {self.signs[id]} {b}")
        ask = Turn(
            self.question(calculation, rng),
            CALL.format(expression=expression),
            self.fill(self.thoughts["call"], calculation),
        )
        answers = self.answers(calculation, result)
        answer = rng.choices(answers, [6, 2, 2])[0]
        return ask, Turn(result, answer, self.fill(self.thoughts["result"], calculation, result=result), "tool")

    def result(self, calculation: Calculation) -> str:
        """Compute the calculation, as a calculator writes it: 4 digits after the point at most."""
        a, id, b = calculation
        value = {"plus": a + b, "minus": a - b, "times": a * b, "divided": a / b}[id]
        return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

    def answers(self, calculation: Calculation, result: str = "") -> list[str]:
        """Return the answers that tell the result, by default the right one."""
        result = result or self.result(calculation)
        return [self.fill(pattern, calculation, result=result) for pattern in self.topics["answer"].answers]

    def steps(self, calculation: Calculation) -> str:
        """Return the thought that adds two small numbers, ones and tens apart; "" for other calculations."""
        a, id, b = calculation
        if id != "plus" or max(a, b) > MAX_EASY:
            return ""
        ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
        more = {"ones_a": a % 10, "ones_b": b % 10, "ones": ones, "result": a + b}
        more |= {"tens_a": a // 10 * 10, "tens_b": b // 10 * 10, "tens": tens}
        return self.fill(self.thoughts["sum"], calculation, **more)

    def offer(self, rng: Random) -> tuple[str, bool]:
        """Return the system message that lists tools, and whether the calculator is among them."""
        others = rng.sample(self.topics["other_tools"].questions, rng.choice([0, 0, 0, 1, 1, 2]))
        has_calculator = not others or rng.random() < 0.6
        offered = [*others, CALCULATOR] if has_calculator else others
        rng.shuffle(offered)
        return TOOLS + ", ".join(offered), has_calculator
