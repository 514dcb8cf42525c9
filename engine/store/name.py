"""Model names as Ollama reads and shows them.

    [scheme://][host/][namespace/]model[:tag]        registry.ollama.ai / library / llama3.2 : latest

What is missing has a default, so `llama3.2` and `registry.ollama.ai/library/llama3.2:latest` are one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadName
from ..go.text import WHITE_SPACE

HOST, NAMESPACE, TAG, SCHEME = "registry.ollama.ai", "library", "latest", "https"

# A part never starts with a dot, a dash or a separator: as a folder name it can neither hide nor climb.
GRAMMAR = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


@dataclass(frozen=True, order=True)
class ModelName:
    """A name that the grammar accepts; every part is filled in."""

    host: str
    namespace: str
    model: str
    tag: str
    scheme: str = SCHEME

    def __post_init__(self):
        for part, pattern in GRAMMAR.items():
            if not pattern.fullmatch(getattr(self, part)):
                raise BadName(str(self))

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """The name that `text` spells; it is read from the right.

        Raises: BadName, also for a separator with nothing beside it.
        """
        rest, colon, tag = text.rpartition(":")
        if not colon or "/" in tag:
            rest, colon, tag = text, "", TAG
        rest, slash, model = rest.rpartition("/")
        namespace, scheme, host = NAMESPACE, SCHEME, HOST
        if slash:
            rest, slash, namespace = rest.rpartition("/")
        if slash and not rest:
            raise BadName(text)
        if rest:
            before, separator, after = rest.partition("://")
            scheme, host = (before or SCHEME, after or HOST) if separator else (SCHEME, rest)
        try:
            return cls(host, namespace, model, tag, scheme)
        except BadName:
            raise BadName(text) from None

    @classmethod
    def parse_request(cls, text: str) -> tuple[ModelName, str]:
        """The name that a request means, and the source it asks for: "local", "cloud" or "".

        `:local` is taken off; a cloud name keeps its spelling, since a model of exactly that name may be in the store.
        """
        base, source = split_source(text)
        return cls.parse(base if source == "local" else text.strip(WHITE_SPACE)), source

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """What people are shown: without the default host, then without the default namespace."""
        shown = f"{self.model}:{self.tag}"
        if self.host.lower() != HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        return shown if self.namespace.lower() == NAMESPACE else f"{self.namespace}/{shown}"

    @property
    def path(self) -> Path:
        """Where the manifest lies, below `manifests/`."""
        return Path(self.host, self.namespace, self.model, self.tag)

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def respelled(self, existing: Iterable[ModelName]) -> ModelName:
        """This name in the spelling that `existing` ones already have: case never tells two models apart.

        A whole name that differs in case only wins; else each part takes the spelling it has in any of them.
        """
        existing = list(existing)
        if self in existing:
            return self
        for other in existing:
            if other.folded == self.folded:
                return replace(other, scheme=self.scheme)
        parts = {}
        for part in GRAMMAR:
            mine, spellings = getattr(self, part), {getattr(other, part) for other in existing}
            same = sorted(spelling for spelling in spellings if spelling.lower() == mine.lower())
            parts[part] = mine if mine in spellings or not same else same[0]
        return replace(self, **parts)

    @property
    def folded(self) -> str:
        """Equal for names that are the same model."""
        return str(self).lower()


def split_source(text: str) -> tuple[str, str]:
    """A request's name without its source suffix, and that source: "local", "cloud" or "".

    `m:local` -> (m, local), `m:cloud` -> (m, cloud), `m:8b-cloud` -> (m:8b, cloud).  In any case of letters.
    Raises: BadName when one suffix follows another.
    """
    text = text.strip(WHITE_SPACE)
    base, source = _cut_source(text)
    if source and _cut_source(base)[1]:
        raise BadName(text, f'use either :local or :cloud, not both: "{text}"')
    return base, source


def _cut_source(text: str) -> tuple[str, str]:
    rest, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, ""
    if tag.lower() in ("local", "cloud"):
        return rest, tag.lower()
    return (text[: -len("-cloud")], "cloud") if tag.lower().endswith("-cloud") else (text, "")
