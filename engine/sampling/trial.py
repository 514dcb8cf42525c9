"""Compiling a grammar in a child process first, so that a grammar that breaks llguidance costs only its own request.

    parent                                        child: python -P -m numllama.engine.sampling.trial 3
    Trial.check(grammar)  -- length, text -->     compile it, and try some answers
                          <-- length, error --    "" if all is well
    compile it for the model's vocabulary

llguidance is native code.  A grammar may overflow its stack, exhaust memory or compute for ever, and none of these can
be stopped from within the process.  The child has less stack than a thread of the parent, and limits on memory and CPU
time; if it dies or is late, the grammar is refused, and the next one gets another child.  Verdicts are remembered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from math import ceil, inf
from pathlib import Path
from queue import Empty, LifoQueue, SimpleQueue
from random import Random
from signal import SIG_IGN, SIGINT, signal
from threading import Lock, Thread, stack_size
from time import monotonic, process_time
from typing import IO, TYPE_CHECKING, Any, TypeVar
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ..handle import RequestHandle

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")

MAX_CPU_S = 3  # of one grammar; 2,000 optional properties take 1.5 s
MAX_WALL_S = 60.0  # of one grammar, on a machine that is busy otherwise
MAX_MEMORY_BYTES = 2 << 30  # address space of the child
MAX_STACK_BYTES = 4 << 20  # half of what a thread has on Linux, so that the parent's suffices
MAX_CHILDREN = 2  # grammars on trial at once
MAX_VERDICTS = 256  # remembered
POLL_S = 0.05  # how soon a cancelled request is noticed

LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 2_000_000,
    "step_max_items": 500_000,
    "max_items_in_row": 20_000,
    "verbose_errors": False,
}
N_WALKS, N_WALKS_OF_LARGE = 12, 2  # answers that are tried; each takes 1 ms, with 600 properties 40 ms
MAX_SMALL_CHARS = 10_000  # of a grammar
MAX_STEPS = 60  # tokens of each answer
GOING_ON, CLOSING = frozenset(b'",:'), frozenset(b'",:]}')

TOO_COMPLEX = f"the schema is too complex to compile within {MAX_CPU_S} s and {MAX_MEMORY_BYTES >> 30} GiB"
TOO_COMPLEX_ANSWER = "the schema is too complex: fewer optional properties or simpler patterns are needed"
NO_END = "the schema has answers that cannot be completed"


class Trial:
    """Child processes that compile grammars first.  They start on first use, and end with this process."""

    def __init__(self, max_cpu_s: int = MAX_CPU_S) -> None:
        self._max_cpu_s = max_cpu_s
        self._idle: LifoQueue[_Child | None] = LifoQueue()  # None: a child that is not started, used last
        for _ in range(MAX_CHILDREN):
            self._idle.put(None)
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._lock = Lock()

    def check(self, grammar: str, handle: RequestHandle | None = None) -> str:
        """Compile `grammar` in a child process.  -> the error, "" if it compiles

        Raises: what ended the request, if `handle` is cancelled
        """
        key = sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return self._verdicts[key]
        verdict = self._compile(grammar, handle or RequestHandle())
        with self._lock:
            self._verdicts[key] = verdict
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        return verdict

    def _compile(self, grammar: str, handle: RequestHandle) -> str:
        child = _wait(self._idle, handle)
        try:
            child = child or _Child(self._max_cpu_s)
            return child.compile(grammar, handle)
        except _Died:
            child = None
            return TOO_COMPLEX
        except BaseException:
            if child:
                child.end()
            child = None
            raise
        finally:
            self._idle.put(child)


class _Died(Exception):
    """The child ended, or had to be ended."""


class _Child:
    """One child process, and the thread that reads its answers."""

    def __init__(self, max_cpu_s: int) -> None:
        root = str(Path(sys.modules["numllama"].__path__[-1]).parent)  # works without installation too
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(max_cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._answers: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True).start()
        self.end = finalize(self, _end, self._process)  # also when this process ends

    def compile(self, grammar: str, handle: RequestHandle) -> str:
        """Return the child's answer.  Raises: _Died"""
        try:
            _write(self._process.stdin, grammar)
            answer = _wait(self._answers, handle, MAX_WALL_S)
        except (OSError, Empty):
            answer = None
        if answer is None:
            self.end()
            raise _Died
        return answer


def _wait(queue: SimpleQueue[T] | LifoQueue[T], handle: RequestHandle, seconds: float = inf) -> T:
    """Take the next item.  Raises: Empty after `seconds`, what ended the request if `handle` is cancelled"""
    until = monotonic() + seconds
    while True:
        handle.check()
        with suppress(Empty):
            return queue.get(timeout=POLL_S)
        if monotonic() > until:
            raise Empty


def _read_answers(pipe: IO[bytes], answers: SimpleQueue[str | None]) -> None:
    """Read until the child ends, which is reported by None."""
    with suppress(OSError, ValueError):
        while (answer := _read(pipe)) is not None:
            answers.put(answer)
    answers.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]


def _write(pipe: IO[bytes] | None, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert pipe
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> str | None:
    """Return the next text, None at the end."""
    head = pipe.read(4)
    n = int.from_bytes(head, "little")
    data = pipe.read(n)
    return data.decode("utf-8", "surrogatepass") if len(head) == 4 and len(data) == n else None


# --- in the child ---


class _Bytes:
    """A vocabulary of the 256 bytes and an end."""

    bos_token_id, eos_token_id, special_token_ids = None, 256, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile `grammar` and compute its first mask, which finds some of the errors."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def progress_of(piece: bytes) -> int:
    """Return 2 for a token that closes strings or separates parts of JSON, 1 if it closes arrays or objects, else 0."""
    return bool(piece) and GOING_ON.issuperset(piece) + CLOSING.issuperset(piece)


def explore(matcher: LLMatcher, progress: NDArray[np.int8], end: frozenset[int], n_walks: int) -> str:
    """Try `n_walks` answers.  -> what breaks them off, "" if nothing does

    progress  i8 [n_vocab]: progress_of each token; half of the time one that makes progress is tried, every other walk
              rather one that leaves arrays and objects open
    end       tokens that end an answer
    """
    for seed in range(n_walks):
        walk, random = matcher.deep_copy(), Random(seed)
        for _ in range(MAX_STEPS):
            bits = np.unpackbits(np.frombuffer(walk.compute_bitmask(), np.uint8), bitorder="little")
            if walk.is_error():
                return NO_END if "NoExtension" in walk.get_error() else TOO_COMPLEX_ANSWER
            allowed = np.flatnonzero(bits[: len(progress)])
            if not len(allowed):
                return NO_END
            made = progress[allowed]
            preferred = allowed[made == 2 if seed % 2 and 2 in made else made > 0]
            token = int(random.choice(preferred if len(preferred) and random.random() < 0.5 else allowed))
            if token in end:
                break
            walk.consume_token(token)
    return ""


def serve(requests: IO[bytes], answers: IO[bytes], max_cpu_s: int) -> None:
    """Compile grammars until `requests` ends."""
    from llguidance import LLTokenizer, TokenizerWrapper

    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=[256])
    progress = np.array([*map(progress_of, _Bytes.tokens)], np.int8)
    _limit("AS", MAX_MEMORY_BYTES)
    _limit("CORE", 0)
    while (grammar := _read(requests)) is not None:
        _limit("CPU", ceil(process_time()) + max_cpu_s)
        matcher = compiled(grammar, tokenizer)
        error = matcher.get_error() if matcher.is_error() else ""
        n_walks = N_WALKS if len(grammar) < MAX_SMALL_CHARS else N_WALKS_OF_LARGE
        error = error or explore(matcher, progress, frozenset([256]), n_walks)
        _write(answers, error)


def _limit(name: str, most: int) -> None:
    """Set a soft limit on a resource of this process, where the system has such limits."""
    with suppress(ImportError):
        import resource

        of = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(of)
        resource.setrlimit(of, (most, hard))


def main() -> None:
    """Serve the parent in a thread with a small stack."""
    signal(SIGINT, SIG_IGN)  # Ctrl-C in a terminal also goes to the child; it ends when its input does
    stack_size(MAX_STACK_BYTES)
    thread = Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1])))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
