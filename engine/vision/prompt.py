"""Images in a prompt: rows of the vision tower replace token embeddings where the text says [img-0].

    USER: [img-0] What is this?
    1 3148 1001 29901 29871   -1 -2 -3 ... -64   1724 338 445 29973

A row has an id below 0 that identifies the image and the row.  Code that compares tokens, such as the search for a
cached prefix, thus treats images like text.  Ids are never reused: the same id never names a different image, even
across requests.  One id is skipped between two images, so that a prompt is never cut within one.
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
MAX_CACHED_BYTES = 128 << 20  # of rows; an image of LLaVA 1.5 7B takes 9 MB


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image's rows, float [n_rows, n_embd].  Their ids are first, first - 1, ..."""

    first: int
    rows: np.ndarray

    @property
    def ids(self) -> range:
        return range(self.first, self.first - len(self.rows), -1)


class Images:
    """A loaded model's encoder for images, with a cache by content.

    Images are encoded in the caller's thread, one at a time, while the runner's thread continues to decode.
    max_bytes   of cached rows; beyond it the least recently used images are dropped
    """

    def __init__(self, vision: Vision, kernels: Kernels, max_bytes: int = MAX_CACHED_BYTES):
        self.vision, self.kernels, self.max_bytes = vision, kernels, max_bytes
        self._cached: OrderedDict[bytes, EncodedImage] = OrderedDict()  # the least recently used first
        self._next_id = -1
        self._encode_lock = Lock()

    def prompt(
        self, tokenizer: Tokenizer, text: str, images: Sequence[bytes], handle: RequestHandle | None = None
    ) -> tuple[list[int], dict[int, np.ndarray]]:
        """Return the ids of `text`, with an image's ids in place of its mark, and the row [n_embd] of each image id.

        Each text between images is tokenized alone, as in llama.cpp; a mark without an image stays text.
        Raises: BadImage, Cancelled
        """
        handle, encoded = handle or RequestHandle(), dict[int, EncodedImage]()
        ids = [] if tokenizer.first is None else [tokenizer.first]
        rows: dict[int, np.ndarray] = {}
        begin = 0
        for mark in MARK.finditer(text):
            if (n := int(mark[1])) >= len(images):
                continue
            image = encoded[n] = encoded.get(n) or self.encode(images[n], handle)
            ids += [*tokenizer.encode(text[begin : mark.start()], False, check=handle.check), *image.ids]
            rows |= zip(image.ids, image.rows, strict=True)
            begin = mark.end()
        ids += tokenizer.encode(text[begin:], False, check=handle.check)
        return ids if tokenizer.last is None else [*ids, tokenizer.last], rows

    def encode(self, image: bytes, handle: RequestHandle) -> EncodedImage:
        """Encode an image, or return it from the cache.  Raises: BadImage, Cancelled"""

        def tap(name: str, il: int, value: np.ndarray) -> np.ndarray:
            handle.check()
            self.vision.file.check()
            return value

        key = sha256(image).digest()
        while not self._encode_lock.acquire(timeout=0.1):
            handle.check()
        try:
            if key not in self._cached:
                self.vision.file.check()
                rows = self.vision.encode(image, self.kernels, tap)
                self._cached[key] = EncodedImage(self._next_id, rows)
                self._next_id -= len(rows) + 1
            self._cached.move_to_end(key)
            while len(self._cached) > 1 and sum(image.rows.nbytes for image in self._cached.values()) > self.max_bytes:
                self._cached.popitem(last=False)
            return self._cached[key]
        finally:
            self._encode_lock.release()
