"""What an answer is made of, wherever it comes from: text as it comes, and the figures at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..parse import ParsedCall

if TYPE_CHECKING:  # a client of a server reads pieces and samples nothing
    from ..sampling import Logprob


@dataclass(frozen=True)
class Timings:
    """Counts of tokens, and durations in nanoseconds, under Ollama's names.

    prompt_eval_duration  spent on the prompt
    eval_duration         from the end of the prompt to the last token
    prompt_eval_cached_count   tokens of the prompt that the cache knew from before
    n_whole               tokens of the prompt before it was cut; 0 where it was not
    """

    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    prompt_eval_cached_count: int = 0
    n_whole: int = 0


@dataclass(frozen=True)
class Piece:
    """What a stream is made of: one for each sampled token, then a last one with `done_reason` and `timings`.

    text        what can be shown now; maybe empty, while half a character, a possible stop string or tag is held back
    token       the sampled id, None in the last piece and wherever no token belongs
    logprob     of that token, where logprobs were asked for
    met         the stop string that ended it, in the last piece
    thinking    what the model thinks, which comes before what it says
    tool_calls  that became complete; there is no text in such a piece
    embeddings  the vectors of texts that were only read, in the last piece: f32 [n_embd], from a server a list each
    """

    text: str
    token: int | None = None
    logprob: Logprob | None = None
    done_reason: str | None = None
    timings: Timings | None = None
    met: str | None = None
    thinking: str = ""
    tool_calls: tuple[ParsedCall, ...] = ()
    embeddings: tuple[Any, ...] = ()
