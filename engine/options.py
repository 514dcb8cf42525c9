"""Ollama's options: their names, defaults, types and ranges.

A request's options come from three layers: the defaults below, the model's parameters, and the request's `options`.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import BadOptions

log = logging.getLogger(__name__)

# Options of older versions of Ollama; they no longer have an effect.
IGNORED_OPTIONS = frozenset("f16_kv logits_all low_vram numa penalize_newline use_mlock vocab_only".split())
# Removed in Ollama 0.7: ignored as a model's parameters, but a request may still set them.
REQUEST_ONLY_OPTIONS = frozenset("tfs_z mirostat mirostat_tau mirostat_eta".split())
# Options that only numllama has; a Modelfile cannot set them.
OWN_OPTIONS = frozenset("logit_bias ignore_eos min_tokens speculate".split())
SPECULATE = "auto", "off", "ngram", "draft"
# A request that differs from the loaded model in one of these reloads it; num_gpu < 0 matches any value.
LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")

_GO_TYPE = {
    "str": "string",
    "int": "integer",
    "float": "float32",
    "bool": "boolean",
    "tuple[str, ...]": "array",
    "LogitBias": "object",
}
LogitBias = tuple[tuple[int, float], ...]  # (token id, number added to its logit)
_MAX_BIAS = 1e30  # small enough for sums of float32 not to overflow
_INT32_MAX = 2**31 - 1
_FLOAT32_MIN, _FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class Options:
    """The options that a request may set, with the names and defaults of Ollama 0.32."""

    # loading
    num_ctx: int = 4096  # context window, in tokens
    num_batch: int = 512  # prompt tokens evaluated at once; does not change the result
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0  # 0: one per core
    draft_num_predict: int = 0
    # length
    num_keep: int = 4  # tokens at the start that a shift of the window keeps
    num_predict: int = -1  # maximum number of tokens to sample; 0 and below: unlimited
    ignore_eos: bool = False  # not in Ollama; never sample an end-of-generation token
    min_tokens: int = 0  # not in Ollama; sample none before this many tokens
    stop: tuple[str, ...] = ()
    # sampling, in the order of the sampler chain
    seed: int = -1  # modulo 2**32; -1: a new one for each request
    logit_bias: LogitBias = ()  # not in Ollama; {"token id": number}, or false to ban the token
    repeat_last_n: int = 64  # window of the penalties, in tokens; 0: off, -1: num_ctx
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 40  # 0 and below: off
    tfs_z: float = 1.0
    typical_p: float = 1.0
    top_p: float = 0.9
    min_p: float = 0.0
    temperature: float = 0.8  # 0 and below: greedy
    mirostat: int = 0  # 0: off; 1 or 2 replace top_k ... min_p
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    # not in Ollama; how tokens are guessed ahead, which changes no bit (run/draft.py); None: auto, without its counts
    speculate: str | None = None

    @classmethod
    def parse(cls, *layers: Mapping[str, Any] | None) -> Options:
        """Merge `layers` over the defaults; the last layer is the request's.

        null leaves an option unset, a float for an integer is truncated toward zero, and a string for `stop` becomes a
        list of one.  Unknown names are ignored and logged.
        Raises: BadOptions for a wrong JSON type, with Ollama's text, and for a value out of range
        """
        chosen: dict[str, Any] = {}
        for number, layer in enumerate(layers, 1):
            for name, value in (layer or {}).items():
                if value is None or name in IGNORED_OPTIONS or (name in REQUEST_ONLY_OPTIONS and number < len(layers)):
                    continue
                if name in KINDS:
                    chosen[name] = _typed(name, KINDS[name], value)
                else:
                    log.warning("invalid option provided: option=%s", name)
        options = cls(**chosen)
        _check_ranges(options)
        return options

    def clamped(self, n_ctx_train: int, n_ctx_min: int = 4) -> Options:
        """Return a copy whose num_ctx lies between `n_ctx_min` and the trained context length `n_ctx_train`."""
        return replace(self, num_ctx=min(max(self.num_ctx, n_ctx_min), n_ctx_train))

    def needs_reload(self, requested: Options) -> bool:
        """Return whether a model loaded with these options must be reloaded for `requested`; both are clamped.

        Values are compared, so a request that leaves num_ctx out asks for its default.
        """
        differing = {name for name in LOAD_OPTIONS if getattr(self, name) != getattr(requested, name)}
        return bool(differing - {"num_gpu"}) or ("num_gpu" in differing and requested.num_gpu >= 0)


@dataclass(frozen=True)
class RequestOptions:
    """Request options common to generate, chat and embed; names and defaults are Ollama's.

    keep_alive    nanoseconds; None keeps the model's current value
    n_logprobs    None: no log-probabilities; 0: those of sampled tokens; n: also those of the n likeliest tokens
    echo          the answer begins with the prompt, see echo.py
    render_only   return the rendered prompt without running the model
    count_only    count the prompt's tokens without running the model
    must_call     a chat's answer is a call of one of its tools, whatever `format` says
    choice        index among the answers to one prompt; added to a seed that is set
    look          what to show of the computation, as JSON has it: see engine/look/request.py
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: int | None = None
    think: bool | str | None = None
    format: Any = None
    truncate: bool = True
    shift: bool = True
    n_logprobs: int | None = None
    echo: bool = False
    render_only: bool = False
    count_only: bool = False
    must_call: bool = False
    choice: int = 0
    look: Any = None


DEFAULT_REQUEST = RequestOptions()
KINDS = {option.name: str(option.type).removesuffix(" | None") for option in fields(Options)}


TRUE, FALSE = "1 t T TRUE true True".split(), "0 f F FALSE false False".split()


def option_from_text(name: str, texts: Sequence[str]) -> Any:
    """Parse the value of option `name` from text; `stop` takes all `texts`, other options the last one.

    Numbers are read as Go reads them: integers are decimal, floats may be hexadecimal and are rounded to float32.
    Ranges are checked later, by `Options.parse`.
    Raises: BadOptions, with Ollama's text
    """
    kind = KINDS.get(name)
    if kind is None or name in OWN_OPTIONS:
        raise BadOptions(name, f"unknown parameter '{name}'")
    if kind.startswith("tuple"):
        return list(texts)
    text = texts[-1]
    wrong = BadOptions(name, f"invalid {kind} value [{text}]")
    if kind == "bool" and text in TRUE + FALSE:
        return text in TRUE
    if kind == "int" and re.fullmatch(r"[+-]?[0-9]{1,19}", text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if kind == "float" and text.strip() == text:
        try:
            value = float.fromhex(text) if "x" in text.lower() else float(text)
        except (ValueError, OverflowError):
            raise wrong from None
        if abs(value) <= _FLOAT32_MAX:
            from numpy import float32  # imported late: most commands do not need NumPy

            return float(str(float32(value)))
    raise wrong


def _typed(name: str, kind: str, value: Any) -> Any:
    """Convert `value` to the option's type.  As in JSON, a bool is not a number."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    match kind:
        case "int" if number:
            return int(value)
        case "float" if number:
            return float(value)
        case "bool" if isinstance(value, bool):
            return value
        case "str" if isinstance(value, str):
            return value
        case "tuple[str, ...]" if isinstance(value, str):
            return (value,) if value else ()
        case "tuple[str, ...]" if isinstance(value, list | tuple):
            if not all(isinstance(text, str) for text in value):
                raise BadOptions(name, f'option "{name}" must be of an array of strings')
            return tuple(text for text in value if text)  # an empty string would match at once
        case "LogitBias" if isinstance(value, dict):
            return tuple((_token(name, id), _bias(name, bias)) for id, bias in value.items() if bias is not None)
    raise BadOptions(name, f'option "{name}" must be of type {_GO_TYPE[kind]}')


def _token(name: str, id: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", id):
        raise BadOptions(name, f'option "{name}" must have token ids for keys, got "{id}"')
    return int(id)


def _bias(name: str, bias: Any) -> float:
    if bias is False:
        return -math.inf
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) <= _MAX_BIAS:
        expected = f"numbers up to {_MAX_BIAS:g} or false for values"
        raise BadOptions(name, f'option "{name}" must have {expected}, got {bias!r}')
    return float(bias)


def _check_ranges(o: Options) -> None:
    """Check that every value can be computed with.  Raises: BadOptions"""
    for option in fields(o):
        if option.type == "float" and abs(value := getattr(o, option.name)) > _FLOAT32_MAX:
            raise BadOptions(option.name, f'option "{option.name}" must fit into float32, got {value}')
    if o.repeat_penalty < _FLOAT32_MIN:
        raise BadOptions("repeat_penalty", f'option "repeat_penalty" must be greater than 0, got {o.repeat_penalty}')
    if o.speculate not in (None, *SPECULATE):
        choices = " or ".join(map(repr, SPECULATE)).replace("'", '"')
        raise BadOptions("speculate", f'option "speculate" must be {choices}, got {o.speculate!r}')
    for name, low, high in (("repeat_last_n", -1, _INT32_MAX), ("num_batch", 1, _INT32_MAX), ("mirostat", 0, 2)):
        if not low <= (value := getattr(o, name)) <= high:
            raise BadOptions(name, f'option "{name}" must be between {low} and {high}, got {value}')
