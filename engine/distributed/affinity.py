"""Which replica has read the beginning of a prompt before, and so has it in its cache.

    model     chunk 0          chunk 1            chunk 2
    m         You are a cat.   Say miau to all.   What do you eat?      a key for each, of all text up to its end
    A, B, C   A, B             B                  -                     sent to these replicas: B is best

A sender remembers what it has sent where.  That is a guess about caches: a replica may have discarded the beginning,
and then computes it again.  It is also how a model meets a replica that has loaded it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

CHUNK_CHARS = 128  # some 30 tokens, the fewest that a model's own cache keeps
MAX_CHUNKS = 512
MAX_KEYS = 1 << 17  # remembered, the least recently used are dropped first: 30 MB


@dataclass(frozen=True)
class Beginning:
    """The model of a request and the beginning of its prompt.

    keys   of the model, then of each whole chunk of the text; each depends on everything before it
    """

    model: str
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, model: str, text: str = "") -> Beginning:
        """Return the beginning of `text`, a prompt for `model`."""
        keys = [_key(b"", model)]
        for at in range(0, min(len(text), MAX_CHUNKS * CHUNK_CHARS) - CHUNK_CHARS + 1, CHUNK_CHARS):
            keys.append(_key(keys[-1], text[at : at + CHUNK_CHARS]))
        return cls(model, tuple(keys))


def _key(before: bytes, text: str) -> bytes:
    return blake2b(before + text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class SentBeginnings:
    """The beginnings that one sender has sent, and to which replicas."""

    def __init__(self, max_keys: int = MAX_KEYS):
        self.max_keys = max_keys
        self._replicas: OrderedDict[bytes, set[str]] = OrderedDict()

    def record(self, beginning: Beginning, replica: str) -> None:
        """Remember that `replica` was sent `beginning`."""
        for key in beginning.keys:
            self._replicas.setdefault(key, set()).add(replica)
            self._replicas.move_to_end(key)
        while len(self._replicas) > self.max_keys:
            self._replicas.popitem(last=False)

    def n_known(self, beginning: Beginning, replicas: Collection[str]) -> dict[str, int]:
        """Count the keys of `beginning`, from the first without a gap, that each of `replicas` was sent."""
        known, left = dict.fromkeys(replicas, 0), set(replicas)
        for key in beginning.keys:
            left &= self._replicas.get(key, set())
            if not left:
                break
            for replica in left:
                known[replica] += 1
        return known

    def forget_all_but(self, replicas: Collection[str]) -> None:
        """Forget the replicas that have ended."""
        for key, found in list(self._replicas.items()):
            found &= set(replicas)
            if not found:
                del self._replicas[key]


def preferred(queues: Mapping[str, int], known: Mapping[str, int], slack: int, model: str = "") -> Sequence[str]:
    """Order replicas, the best first.

    queues   requests under way at each
    known    how much of the request's beginning each knows
    slack    how much longer the queue of one that knows more may be than the shortest
    model    spreads models over replicas that are equal otherwise
    """
    limit = min(queues.values(), default=0) + slack

    def place(replica: str) -> tuple[bool, int, int, bytes]:
        is_near = queues[replica] <= limit
        return not is_near, -known.get(replica, 0) if is_near else 0, queues[replica], _key(replica.encode(), model)

    return sorted(queues, key=place)
