"""Variations of a question: "what's {x}", lower case, no question mark, a typing error."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from random import Random

SWAPS = [
    ("What is ", "What's "),
    ("How do I ", "How can I "),
    ("How do I ", "How to "),
    ("how do I ", "how can I "),
    ("Why is ", "How come "),
    ("Can you ", "Could you "),
    ("do not", "don't"),
]


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


def spoiled(question: str, wordings: Mapping[str, list[str]], rng: Random) -> str:
    """Vary `question` the way people type; `wordings` has phrases "before" and "after" it."""
    for old, new in SWAPS:
        if rng.random() < 0.15:
            question = question.replace(old, new)
    if rng.random() < 0.12:
        question = f"{rng.choice(wordings['before'])} {question[0].lower() + question[1:]}"
    if rng.random() < 0.06:
        question = f"{question.rstrip('?')}, {rng.choice(wordings['after'])}"
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
