"""Ollama's options: names, defaults, types and ranges, in one place.

Three layers make the options of a request: the defaults below, the model's parameters, the request's own `options`.
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

# Read by older Ollamas; today they change nothing, whatever their value.
IGNORED = frozenset("f16_kv logits_all low_vram numa penalize_newline use_mlock vocab_only".split())
# Gone from Ollama since 0.7, so a model's own are ignored; a request that names them gets them.
REQUEST_ONLY = frozenset("tfs_z mirostat mirostat_tau mirostat_eta".split())
# A loaded model serves only requests that agree with it in these; num_gpu < 0 agrees with any.
LOAD = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")

_GO_TYPE = {"int": "integer", "float": "float32", "bool": "boolean", "tuple[str, ...]": "array", "LogitBias": "object"}
LogitBias = tuple[tuple[int, float], ...]  # what is added to the logits of these tokens
_MAX_BIAS = 1e30  # far from where sums of float32 overflow
_INT32_MAX = 2**31 - 1
_FLOAT32_MIN, _FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class Options:
    """What a request may set, under Ollama's names and with Ollama's defaults (0.32)."""

    # how the model is loaded
    num_ctx: int = 4096  # the window, in tokens
    num_batch: int = 512  # prompt tokens evaluated at once; never changes a result
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0  # 0: as many as there are cores
    draft_num_predict: int = 0
    # how long it speaks
    num_keep: int = 4  # tokens at the front that a shift of the window spares
    num_predict: int = -1  # tokens to sample at most; 0 and below: no limit of its own
    stop: tuple[str, ...] = ()
    # which token comes next, in the order of the chain
    seed: int = -1  # taken modulo 2**32; -1: another one for every request
    logit_bias: LogitBias = ()  # ours; {"token id": number}, or false for a token that must not come
    repeat_last_n: int = 64  # how far the penalties look back; 0: not at all, -1: num_ctx
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 40  # 0 and below: off
    tfs_z: float = 1.0
    typical_p: float = 1.0
    top_p: float = 0.9
    min_p: float = 0.0
    temperature: float = 0.8  # 0 and below: greedy
    mirostat: int = 0  # 0: off; 1 or 2 take the place of top_k ... min_p
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    @classmethod
    def parse(cls, *layers: Mapping[str, Any] | None) -> Options:
        """The defaults, overridden layer by layer; the last layer is the request's.

        null skips an option, a float for an integer is truncated toward zero, one string for `stop` is a list of one.
        An unknown name is ignored, with a line in the log.
        Raises: BadOptions in Ollama's words for a wrong JSON type; for a value out of range in our own.
        """
        chosen: dict[str, Any] = {}
        for number, layer in enumerate(layers, 1):
            for name, value in (layer or {}).items():
                if value is None or name in IGNORED or (name in REQUEST_ONLY and number < len(layers)):
                    continue
                if name in KINDS:
                    chosen[name] = _typed(name, KINDS[name], value)
                else:
                    log.warning("invalid option provided: option=%s", name)
        options = cls(**chosen)
        _check_ranges(options)
        return options

    def clamped(self, n_ctx_train: int, n_ctx_min: int = 4) -> Options:
        """The same with a num_ctx that the model can have: at least `n_ctx_min`, at most what it was trained on."""
        return replace(self, num_ctx=min(max(self.num_ctx, n_ctx_min), n_ctx_train))

    def needs_reload(self, wanted: Options) -> bool:
        """Whether a model loaded with these options has to be loaded anew for `wanted`; both of them clamped.

        Values are compared, not names: a request that does not name num_ctx wants the default.
        """
        differing = {name for name in LOAD if getattr(self, name) != getattr(wanted, name)}
        return bool(differing - {"num_gpu"}) or ("num_gpu" in differing and wanted.num_gpu >= 0)


@dataclass(frozen=True)
class RequestOptions:
    """How an answer is wanted, whatever it answers; names and defaults are Ollama's.

    keep_alive    nanoseconds; None leaves it as it is
    n_logprobs    None: no log-probabilities; 0: the sampled token's; n: also the n likeliest
    echo          the answer begins with the prompt, see echo.py
    render_only   the prompt, and nothing else
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


DEFAULT_REQUEST = RequestOptions()
KINDS = {option.name: str(option.type).removesuffix(" | None") for option in fields(Options)}


TRUE, FALSE = "1 t T TRUE true True".split(), "0 f F FALSE false False".split()


def option_from_text(name: str, texts: Sequence[str]) -> Any:
    """The value of option `name` as people type it: of several texts the last one counts, `stop` has them all.

    Numbers are Go's: an integer is decimal, a float may be hexadecimal and is rounded to float32.
    Raises: BadOptions in Ollama's words; ranges are looked at when the options are used
    """
    kind = KINDS.get(name)
    if kind is None or kind == "LogitBias":
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
            from numpy import float32  # for this alone, which most commands do without

            return float(str(float32(value)))
    raise wrong


def _typed(name: str, kind: str, value: Any) -> Any:
    """`value` as the option's type.  bool is no number here, as in JSON."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    match kind:
        case "int" if number:
            return int(value)
        case "float" if number:
            return float(value)
        case "bool" if isinstance(value, bool):
            return value
        case "tuple[str, ...]" if isinstance(value, str):
            return (value,) if value else ()
        case "tuple[str, ...]" if isinstance(value, list | tuple):
            if not all(isinstance(text, str) for text in value):
                raise BadOptions(name, f'option "{name}" must be of an array of strings')
            return tuple(text for text in value if text)  # an empty one would stop everything at once
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
        wanted = f"numbers up to {_MAX_BIAS:g} or false for values"
        raise BadOptions(name, f'option "{name}" must have {wanted}, got {bias!r}')
    return float(bias)


def _check_ranges(o: Options) -> None:
    """Raises: BadOptions for a value that nothing could be computed with; any other means something or is off."""
    for option in fields(o):
        if option.type == "float" and abs(value := getattr(o, option.name)) > _FLOAT32_MAX:
            raise BadOptions(option.name, f'option "{option.name}" must fit into float32, got {value}')
    if o.repeat_penalty < _FLOAT32_MIN:
        raise BadOptions("repeat_penalty", f'option "repeat_penalty" must be greater than 0, got {o.repeat_penalty}')
    for name, low, high in (("repeat_last_n", -1, _INT32_MAX), ("num_batch", 1, _INT32_MAX), ("mirostat", 0, 2)):
        if not low <= (value := getattr(o, name)) <= high:
            raise BadOptions(name, f'option "{name}" must be between {low} and {high}, got {value}')
