"""The field `look` of a request: which values of an answer are wanted, and what is changed in it.

{"lens": 5, "attention": [[0, 1], [3, "*"]], "values": ["l_out-*", "ffn_swiglu-2"], "sampler": true, "logits": 64,
 "residual": true, "neurons": 8, "neuron_layers": [-1], "peaks": true, "time": true, "cache": true, "merges": true,
 "prompt": "all", "keep": true, "ablate": [{"layer": 3, "head": 1}, {"layer": 2, "block": "ffn"}],
 "patch": [{"name": "l_out", "layer": 1, "row": -1, "from": "another prompt"}], "encoding": "f16"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from ..errors import LookTooLarge, RequestError
from ..model.hparams import Hparams
from ..model.trace import INSIDE_ATTENTION

BLOCKS = ("attn", "ffn", "layer")
NUMBER_BYTES = {"": 8, "f16": 3}  # of one number as text, "-0.1234,", and of two bytes in base64
MAX_TOP = 1000  # tokens in a lens, neurons in a layer
FLAGS = ("peaks", "sampler", "residual", "time", "cache", "merges", "keep")


@dataclass(frozen=True)
class Ablation:
    """A part of the model that is switched off: a head, or what a block adds to the residual stream."""

    layer: int
    head: int | None = None
    block: str = ""

    def __str__(self) -> str:
        part = f"head {self.head}" if self.head is not None else self.block
        return f"layer {self.layer}" if part == "layer" else f"layer {self.layer}, {part}"


@dataclass(frozen=True)
class Patch:
    """A value that is replaced at one row of the prompt by the same value of another prompt.

    row, from_row   tokens of this prompt and of the other; below 0 they count from the end
    """

    name: str
    layer: int
    text: str
    row: int = -1
    from_row: int = -1

    def __str__(self) -> str:
        return f"{self.name}-{self.layer} of token {self.row} from token {self.from_row} of {self.text!r}"


@dataclass(frozen=True)
class LookRequest:
    """The values that a request wants to see.

    attention   pairs (layer, head) whose weights are shown
    peaks       the largest weight of every head, and where it is
    lens        tokens that each layer's output would predict
    logits      largest logits before sampling; -1: all
    neurons     strongest neurons of each layer, or of neuron_layers alone, with what each adds to the chosen token
    values      patterns of labels such as "l_out-3"
    prompt      "all": each token of the prompt is looked at, and computed even if it is cached; "last": its last token
    keep        keep the keys and values, so that any position can be looked at again
    encoding    "": numbers with four digits; "f16": base64
    """

    attention: tuple[tuple[int, int], ...] = ()
    lens: int = 0
    sampler: bool = False
    logits: int = 0
    residual: bool = False
    neurons: int = 0
    neuron_layers: tuple[int, ...] = ()
    peaks: bool = False
    values: tuple[str, ...] = ()
    time: bool = False
    cache: bool = False
    merges: bool = False
    prompt: str = "all"
    keep: bool = False
    encoding: str = ""
    ablate: tuple[Ablation, ...] = ()
    patch: tuple[Patch, ...] = ()

    @property
    def wants_rows(self) -> bool:
        """Whether each token of the prompt must be computed: a cached one shows nothing."""
        rows = self.attention or self.peaks or self.lens or self.residual or self.neurons or self.values
        return bool(self.ablate or self.patch or (rows and self.prompt == "all"))

    @classmethod
    def parse(cls, value: Any, hp: Hparams) -> LookRequest:
        """Read the field as JSON has it, for a model of dimensions `hp`.  Raises: RequestError"""
        known = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping):
            raise RequestError(f"look: expected an object with some of {', '.join(known)}, got {value!r}")
        for name in value:
            if name not in known:
                raise RequestError(f"look: unknown field '{name}'; known are {', '.join(known)}")
        got = {name: given for name, given in value.items() if given is not None}
        return cls(
            attention=heads_of(got.get("attention", []), hp),
            lens=_count(got, "lens", 0, MAX_TOP),
            logits=_count(got, "logits", -1, hp.n_vocab),
            neurons=_count(got, "neurons", 0, MAX_TOP),
            neuron_layers=_layers(got.get("neuron_layers", []), hp),
            values=_patterns(got.get("values", [])),
            prompt=_choice(got, "prompt", ("all", "last")),
            encoding=_choice(got, "encoding", ("", "f16")),
            ablate=tuple(_ablation(item, hp) for item in _list(got, "ablate")),
            patch=tuple(_patch(item, hp) for item in _list(got, "patch")),
            **{name: _flag(got, name) for name in FLAGS},
        )

    def sizes(self, n_prompt: int, n_token: int, hp: Hparams) -> dict[str, int]:
        """Estimate the bytes of each part for `n_prompt` tokens and `n_token` more."""
        first = 0 if self.prompt == "all" else n_prompt - 1
        n_row = n_prompt + n_token - first
        number = NUMBER_BYTES[self.encoding]
        keys = (n_prompt + n_token) * (n_prompt + n_token + 1) // 2 - first * (first + 1) // 2
        labels = labels_of(hp) if self.values else []
        widths = [width_of(name, hp) for name in labels if any(fnmatchcase(name, pattern) for pattern in self.values)]
        n_logits = hp.n_vocab if self.logits < 0 else self.logits
        parts = {
            "attention": len(self.attention) * keys * number,
            "peaks": n_row * hp.n_layer * hp.n_head * 12 * self.peaks,
            "lens": n_row * hp.n_layer * self.lens * 24,
            "logits": max(n_token, 1) * n_logits * 15,
            "neurons": n_row * (len(self.neuron_layers) or hp.n_layer) * self.neurons * 24,
            "values": n_row * sum(widths) * number,
        }
        return {name: n for name, n in parts.items() if n}


def check_sizes(sizes: Mapping[str, int], limit: int) -> None:
    """Check that the parts together stay within `limit` bytes.  Raises: LookTooLarge, which names each part's size"""
    if (total := sum(sizes.values())) > limit:
        listed = ", ".join(f"{name} {_mib(n)}" for name, n in sorted(sizes.items(), key=lambda item: -item[1]))
        needed = -(-total // (1 << 20))
        raise LookTooLarge(
            needed,
            f"look: {listed}: together over the limit of {_mib(limit)} (OLLAMA_LOOK_LIMIT={needed} allows it); ask for "
            'fewer heads, layers or tokens (num_predict), for "prompt": "last", or for "encoding": "f16"',
        )


def _mib(n: int) -> str:
    return f"{n / 2**20:.1f} MiB"


def heads_of(wanted: Any, hp: Hparams) -> tuple[tuple[int, int], ...]:
    """Expand [[layer, head], ...], where "*" means each, or "*" for all.  Raises: RequestError"""
    if wanted == "*":
        wanted = [["*", "*"]]
    if not isinstance(wanted, list | tuple):
        raise RequestError(f'look.attention: expected a list of [layer, head], or "*", got {wanted!r}')
    found: dict[tuple[int, int], None] = {}
    for item in wanted:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise RequestError(f'look.attention: expected [layer, head] with numbers or "*", got {item!r}')
        layers, heads = (
            _index("look.attention", name, one, n)
            for name, one, n in (("layer", item[0], hp.n_layer), ("head", item[1], hp.n_head))
        )
        found |= {(il, h): None for il in layers for h in heads}
    return tuple(found)


def labels_of(hp: Hparams) -> list[str]:
    """Return the labels of values by layer that every decoder has."""
    names: tuple[str, ...] = (
        "attn_norm",
        "Qcur",
        "Kcur",
        "Vcur",
        "kqv_out",
        "attn_out",
        "ffn_inp",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
    )
    names += ("ffn_swiglu", "ffn_out", "l_out")
    return [f"{name}-{il}" for il in range(hp.n_layer) for name in names]


def width_of(label: str, hp: Hparams) -> int:
    """Return how many numbers a token has in the value `label`."""
    name = label.rpartition("-")[0]
    if name in ("ffn_gate", "ffn_up", "ffn_swiglu"):
        return hp.n_ff
    heads = {"Qcur": hp.n_head, "kqv_out": hp.n_head, "Kcur": hp.n_head_kv, "Vcur": hp.n_head_kv}
    return heads[name] * hp.n_head_dim if name in heads else hp.n_embd


def _index(where: str, name: str, value: Any, n: int) -> range:
    if value == "*":
        return range(n)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n:
        raise RequestError(f'{where}: {name} {value!r} does not exist, expected 0 to {n - 1} or "*"')
    return range(value, value + 1)


def _layer(where: str, item: Mapping[str, Any], hp: Hparams) -> int:
    value = item.get("layer")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < hp.n_layer:
        raise RequestError(f"{where}: layer {value!r} does not exist, expected 0 to {hp.n_layer - 1}")
    return value


def _layers(value: Any, hp: Hparams) -> tuple[int, ...]:
    n = hp.n_layer
    if not isinstance(value, list | tuple):
        raise RequestError(f"look.neuron_layers: expected a list of layers, got {value!r}")
    for il in value:
        if not isinstance(il, int) or isinstance(il, bool) or not -n <= il < n:
            raise RequestError(f"look.neuron_layers: layer {il!r} does not exist, expected {-n} to {n - 1}")
    return tuple(il % n for il in value)


def _list(got: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = got.get(name, [])
    if not isinstance(items, list | tuple) or not all(isinstance(item, Mapping) for item in items):
        raise RequestError(f"look.{name}: expected a list of objects, got {items!r}")
    return list(items)


def _ablation(item: Mapping[str, Any], hp: Hparams) -> Ablation:
    layer, head, block = _layer("look.ablate", item, hp), item.get("head"), item.get("block", "")
    if unknown := set(item) - {"layer", "head", "block"}:
        raise RequestError(f"look.ablate: unknown field '{min(unknown)}'; known are layer, head, block")
    if (head is None) == (block == ""):
        raise RequestError(f'look.ablate: expected "head" or "block" beside "layer", got {dict(item)!r}')
    if head is not None:
        if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head < hp.n_head:
            raise RequestError(f"look.ablate: head {head!r} does not exist, expected 0 to {hp.n_head - 1}")
        return Ablation(layer, head)
    if block not in BLOCKS:
        raise RequestError(f"look.ablate: unknown block {block!r}; choose from {', '.join(BLOCKS)}")
    return Ablation(layer, block=block)


def _patch(item: Mapping[str, Any], hp: Hparams) -> Patch:
    if unknown := set(item) - {"name", "layer", "row", "from", "from_row"}:
        raise RequestError(f"look.patch: unknown field '{min(unknown)}'; known are name, layer, row, from, from_row")
    name, layer, text, row = item.get("name"), _layer("look.patch", item, hp), item.get("from"), item.get("row", -1)
    from_row = item.get("from_row", row)
    if not isinstance(name, str) or name in INSIDE_ATTENTION:
        raise RequestError(f'look.patch: expected a value by its name, such as "l_out", got {name!r}')
    if not isinstance(text, str) or not text:
        raise RequestError(f'look.patch: expected another prompt\'s text in "from", got {text!r}')
    for key, number in (("row", row), ("from_row", from_row)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise RequestError(f'look.patch: expected a token\'s number in "{key}", got {number!r}')
    return Patch(name, layer, text, row, from_row)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(pattern, str) for pattern in value):
        raise RequestError(f'look.values: expected a list of labels such as "l_out-*", got {value!r}')
    for pattern in value:
        if pattern.rpartition("-")[0] in INSIDE_ATTENTION:
            raise RequestError(f'look.values: {pattern!r} exists only inside attention; "attention" shows its weights')
    return tuple(value)


def _count(got: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = got.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"look.{name}: expected a number from {least} to {most}, got {value!r}")
    return min(value, most)


def _flag(got: Mapping[str, Any], name: str) -> bool:
    value = got.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"look.{name}: expected true or false, got {value!r}")
    return value


def _choice(got: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = got.get(name, choices[0])
    if value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise RequestError(f"look.{name}: expected {listed}, got {value!r}")
    return str(value)
