"""Looking at a forward pass: every named value passes through a `tap`, an expression that returns its argument.

    h = tap("attn_norm", il, kernels.rms_norm(...))

Names are llama.cpp's callback names, so a trace lines up with another engine's dump.  A tap may return something else
than it was given: ablation and patching come free.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ...kernels import Kernels
from ..errors import RequestError

Tap = Callable[[str, int, np.ndarray], np.ndarray]

INSIDE_ATTENTION = ("kq", "kq_soft_max")


def no_tap(name: str, il: int, value: np.ndarray) -> np.ndarray:
    """The tap that sees nothing.  About 80 ns."""
    return value


class Watch:
    """A tap that is told how far the forward pass is, and looks at no value: `look(il)` may end the pass by raising.

    So it need not see all of them: a layer may be one call.
    """

    def __init__(self, look: Callable[[int], None]):
        self.look = look

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        self.look(il)
        return value


def sees_values(tap: Tap) -> bool:
    """Whether `tap` wants every value, so that no layer may be one call."""
    return tap is not no_tap and not isinstance(tap, Watch)


class Trace:
    """A tap that keeps a copy of every value whose name matches one of `patterns` ("*" and "?" as in a shell).

    values   (name, il) -> array, in order of computation; il is -1 outside the layers

    Raises RequestError for a name that only exists inside a kernel that `kernels` does not let look.
    """

    def __init__(self, *patterns: str, kernels: Kernels | None = None):
        self.patterns = patterns or ("*",)
        self.values: dict[tuple[str, int], np.ndarray] = {}
        if kernels is not None:
            for name in INSIDE_ATTENTION:
                if name in self.patterns and name not in kernels.inside:
                    raise RequestError(
                        f"'{name}' lies inside attention, where '{kernels.name}' kernels do not look; numpy's do"
                    )

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray:
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.values[name, il] = value.copy()
        return value

    def save(self, path: str | os.PathLike[str], **about: str) -> None:
        """All values as safetensors by their `label`, with `about` as metadata.

        Raises: RequestError where the file cannot be written
        """
        try:
            save_file({label(*key): value for key, value in self.values.items()}, path, about)
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{os.fspath(path)} cannot be written: {error}") from None


def label(name: str, il: int) -> str:
    """A value's name in llama.cpp's dumps: "attn_norm-0", "result_output"."""
    return name if il < 0 else f"{name}-{il}"


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.  Raises: RequestError"""
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:  # the last two: of a type that NumPy lacks
        raise RequestError(f"{os.fspath(path)} cannot be read as safetensors: {error}") from None
