"""Pieces of an answer: its text token by token, then counts and durations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..parse import ParsedCall

if TYPE_CHECKING:  # the client needs pieces, but no sampler
    from ..look.step import LookPart
    from ..sampling import Logprob


@dataclass(frozen=True)
class Timings:
    """Counts of tokens, and durations in nanoseconds, under Ollama's names.

    prompt_eval_duration       prefill
    eval_duration              from the end of prefill to the last token
    prompt_eval_cached_count   tokens of the prompt that were found in the cache
    draft_tokens               guesses at the next tokens that were computed (draft.py)
    draft_accepted_tokens      those of them that were right
    tells_drafts               whether the answer tells these two, as the request set `speculate`
    n_whole                    tokens of the prompt before it was truncated; 0 if it was not
    """

    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    prompt_eval_cached_count: int = 0
    draft_tokens: int = 0
    draft_accepted_tokens: int = 0
    tells_drafts: bool = False
    n_whole: int = 0


@dataclass(frozen=True)
class Piece:
    """One element of an answer's stream: one for each sampled token, then a last one with `done_reason` and `timings`.

    text        text to show now; empty while half a character, a possible stop string or a possible tag is held back
    token       the sampled id; None in the last piece and in pieces without a token of their own
    logprob     its log-probability, if requested
    met         the stop string that ended the answer, in the last piece
    thinking    thinking to show now; it precedes the text
    tool_calls  tool calls that are now complete; such a piece has neither text nor thinking
    embeddings  vectors of embedded texts, in the last piece: f32 [n_embd] each, or a list from a server
    look        what a look found at the token's position, and with the first piece about the prompt
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
    look: LookPart | None = None
