"""Tracing a forward pass: every named value passes through a `tap`, an expression that returns its argument.

    h = tap("attn_norm", il, kernels.rms_norm(...))

Names are llama.cpp's callback names, so a trace lines up with another engine's dump.  A tap may return a
different value, which is all that ablation and patching need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from html import escape

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ...kernels import Kernels
from ..errors import RequestError

Tap = Callable[[str, int, np.ndarray], np.ndarray]

INSIDE_ATTENTION = ("kq", "kq_soft_max")


def no_tap(name: str, il: int, value: np.ndarray) -> np.ndarray:
    """Return `value`: the tap that does nothing.  About 80 ns."""
    return value


class Watch:
    """A tap that reads no value: it calls `check(il)`, which may end the pass by raising.

    Unlike other taps it does not need every value, so that whole layers may run as one call.
    """

    def __init__(self, check: Callable[[int], None]):
        self.check = check

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        self.check(il)
        return value


def sees_values(tap: Tap) -> bool:
    """Return whether `tap` needs every value, so that layers must run in steps."""
    return tap is not no_tap and not isinstance(tap, Watch)


class Trace:
    """A tap that copies every value whose name matches one of `patterns` ("*" and "?" as in a shell).

    values   (name, il) -> array, in order of computation; il is -1 outside the layers

    trace["Qcur", 0] is layer 0's query; trace["result_output"] a value outside the layers.  A notebook shows a table.
    Raises: RequestError for a name that exists only inside a kernel, if `kernels` cannot show it
    """

    def __init__(self, *patterns: str, kernels: Kernels | None = None):
        self.patterns = patterns or ("*",)
        self.values: dict[tuple[str, int], np.ndarray] = {}
        if kernels is not None:
            for name in INSIDE_ATTENTION:
                if name in self.patterns and name not in kernels.inside:
                    raise RequestError(
                        f"'{name}' is computed inside attention, where '{kernels.name}' kernels have no taps; "
                        "use numpy-float32"
                    )

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.values[name, il] = value.copy()
        return value

    def __getitem__(self, key: str | tuple[str, int]) -> np.ndarray:
        return self.values[(key, -1) if isinstance(key, str) else key]

    def __repr__(self) -> str:
        names = list(dict.fromkeys(name for name, _ in self.values))
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return f"<Trace: {len(self.values)} values: {shown}>"

    def _repr_html_(self) -> str:
        """A table for notebooks: name, layer, shape, mean, standard deviation, range."""
        head = "".join(f"<th>{title}</th>" for title in ("name", "layer", "shape", "mean", "std", "min", "max"))
        rows = []
        for (name, il), value in self.values.items():
            figures = [f"{f(value):.4g}" for f in (np.mean, np.std, np.min, np.max)] if value.size else [""] * 4
            cells = [escape(name), "" if il < 0 else str(il), " x ".join(map(str, value.shape)), *figures]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def save(self, path: str | os.PathLike[str], **about: str) -> None:
        """Write all values as safetensors under their labels, with `about` as metadata.

        Raises: RequestError if the file cannot be written
        """
        try:
            save_file({label(*key): value for key, value in self.values.items()}, path, about)
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{os.fspath(path)} cannot be written: {error}") from None


def label(name: str, il: int) -> str:
    """Return a value's name in llama.cpp's dumps: "attn_norm-0", "result_output"."""
    return name if il < 0 else f"{name}-{il}"
