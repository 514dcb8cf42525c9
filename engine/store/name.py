"""Model names, parsed and displayed as Ollama does.

    [scheme://][host/][namespace/]model[:tag]        registry.ollama.ai / library / llama3.2 : latest

Missing parts have defaults, so `llama3.2` and `registry.ollama.ai/library/llama3.2:latest` are the same name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BadName
from ..go.text import WHITE_SPACE

HOST, NAMESPACE, TAG, SCHEME = "registry.ollama.ai", "library", "latest", "https"

COLON = "%3A" if os.name == "nt" else ":"  # of host:port in a folder's name, where Windows allows no colon
# A part cannot start with a dot, a dash or a separator, so it is safe as a folder name.
GRAMMAR = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


@dataclass(frozen=True, order=True)
class ModelName:
    """A valid model name, with all of its parts."""

    host: str
    namespace: str
    model: str
    tag: str
    scheme: str = SCHEME

    def __post_init__(self) -> None:
        for part, pattern in GRAMMAR.items():
            if not pattern.fullmatch(getattr(self, part)):
                raise BadName(str(self))

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse `text`, from the right.

        Raises: BadName, also for a separator without text beside it
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
        """Parse the name in a request; return it and its source suffix: "local", "cloud" or "".

        `:local` is removed.  A cloud suffix is kept, since the store may have a model of exactly that name.
        """
        base, source = split_source(text)
        return cls.parse(base if source == "local" else text.strip(WHITE_SPACE)), source

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The name for display: without the default host, then without the default namespace."""
        shown = f"{self.model}:{self.tag}"
        if self.host.lower() != HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        return shown if self.namespace.lower() == NAMESPACE else f"{self.namespace}/{shown}"

    @property
    def path(self) -> Path:
        """The path of the manifest, relative to `manifests/`."""
        return Path(self.host.replace(":", COLON), self.namespace, self.model, self.tag)

    @classmethod
    def from_path(cls, path: Path) -> ModelName:
        """Return the name of the manifest at `path`, the inverse of `path`.  Raises: BadName"""
        host, *rest = path.parts[-4:]
        return cls(host.replace(COLON, ":"), *rest)

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def respelled(self, existing: Iterable[ModelName]) -> ModelName:
        """Return this name with the upper and lower case of the `existing` names, because names are case-insensitive.

        A name that differs in case only is preferred; else each part takes the case it has in any existing name.
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
        """The name in lower case, which is equal for names of the same model."""
        return str(self).lower()


def split_source(text: str) -> tuple[str, str]:
    """Split a name into the name without its source suffix, and the source: "local", "cloud" or "".

    `m:local` -> (m, local), `m:cloud` -> (m, cloud), `m:8b-cloud` -> (m:8b, cloud).  Suffixes are case-insensitive.
    Raises: BadName for two suffixes in a row
    """
    text = text.strip(WHITE_SPACE)
    base, source = _cut_source(text)
    if source and _cut_source(base)[1]:
        raise BadName(text, f'use either :local or :cloud, not both: "{text}"')
    return base, source


def _cut_source(text: str) -> tuple[str, str]:
    rest, colon, tag = text.rpartition(":")
    tag = tag.strip(WHITE_SPACE)  # "m: cloud" too
    if not colon or "/" in tag:
        return text, ""
    if tag.lower() in ("local", "cloud"):
        return rest, tag.lower()
    return (f"{rest}:{tag[: -len('-cloud')]}", "cloud") if tag.lower().endswith("-cloud") else (text, "")
