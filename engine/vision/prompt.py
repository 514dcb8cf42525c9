"""Images in a prompt: where the text says [img-0], rows of the vision tower stand in for token embeddings.

    USER: [img-0] What is this?
    1 3148 1001 29901 29871   -1 -2 -3 ... -64   1724 338 445 29973

A row's id is below 0, and says which image's and which row it is: so whatever compares tokens, such as the search for a
beginning that the cache knows, treats images as it treats text.  An id is only told once: not even in another request
does it mean another picture.  Between the ids of two images one is left out, by which a cut knows where one ends.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock

import numpy as np

from ...kernels import Kernels
from ..handle import RequestHandle
from ..tokenizer import Tokenizer
from .tower import Vision

MARK = re.compile(r"\[img-([0-9]{1,9})\]")
KEPT = 128 << 20  # bytes of rows that are kept; an image of LLaVA 1.5 7B is 9 MB


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the vision tower made of an image.  rows float [n_rows, n_embd], named first, first - 1, ..."""

    first: int
    rows: np.ndarray

    @property
    def ids(self) -> range:
        return range(self.first, self.first - len(self.rows), -1)


class Images:
    """The images that one loaded model has seen, by content; the last ones are kept.

    They are encoded in the thread of whoever asks, one at a time, while those in the runner's thread go on speaking.
    """

    def __init__(self, vision: Vision, kernels: Kernels, most: int = KEPT):
        self.vision, self.kernels, self.most = vision, kernels, most
        self._known: OrderedDict[bytes, Encoded] = OrderedDict()  # the one that was used least recently first
        self._next = -1
        self._one_at_a_time = Lock()

    def prompt(
        self, tokenizer: Tokenizer, text: str, images: Sequence[bytes], handle: RequestHandle | None = None
    ) -> tuple[list[int], dict[int, np.ndarray]]:
        """`text` as ids, with those of an image where its mark stands; and the rows of these.

        The text between images is encoded piece by piece, as llama.cpp does; a mark without an image stays text.
        Raises: BadImage, Cancelled
        """
        handle, encoded = handle or RequestHandle(), dict[int, Encoded]()
        ids = [] if tokenizer.first is None else [tokenizer.first]
        rows: dict[int, np.ndarray] = {}
        begin = 0
        for mark in MARK.finditer(text):
            if (n := int(mark[1])) >= len(images):
                continue
            image = encoded[n] = encoded.get(n) or self.encode(images[n], handle)
            ids += [*tokenizer.encode(text[begin : mark.start()], False), *image.ids]
            rows |= zip(image.ids, image.rows, strict=True)
            begin = mark.end()
        ids += tokenizer.encode(text[begin:], False)
        return ids if tokenizer.last is None else [*ids, tokenizer.last], rows

    def encode(self, image: bytes, handle: RequestHandle) -> Encoded:
        """Raises: BadImage, Cancelled"""

        def tap(name: str, il: int, value: np.ndarray) -> np.ndarray:
            handle.check()
            return value

        key = sha256(image).digest()
        while not self._one_at_a_time.acquire(timeout=0.1):
            handle.check()
        try:
            if key not in self._known:
                rows = self.vision.encode(image, self.kernels, tap)
                self._known[key] = Encoded(self._next, rows)
                self._next -= len(rows) + 1
            self._known.move_to_end(key)
            while len(self._known) > 1 and sum(one.rows.nbytes for one in self._known.values()) > self.most:
                self._known.popitem(last=False)
            return self._known[key]
        finally:
            self._one_at_a_time.release()
