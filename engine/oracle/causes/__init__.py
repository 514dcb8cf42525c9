"""The causes: usual mistakes, each one thing done otherwise in our own computation, a table for each kind.

A cause is a change of kernels, hyperparameters or weights.  If a value of another engine has the bits of a right one
under a changed computation, that change is its cause.  `explains` lists the values whose operation it changes; a value
that a dump lacks passes on to the next.  Some causes are arithmetics: they explain rounding, and nothing is wrong.
"""

from .arithmetic import ARITHMETIC
from .attention import ATTENTION
from .cause import Cause
from .decoding import DECODING
from .embedding import EMBEDDING
from .experts import EXPERTS
from .feed_forward import FEED_FORWARD, RESIDUAL
from .formats import FORMAT_CAUSES
from .matrices import MATRICES
from .norm import NORM
from .rope import ROPE

CAUSES: tuple[Cause, ...] = (
    *ROPE,
    *NORM,
    *ATTENTION,
    *DECODING,
    *FEED_FORWARD,
    *RESIDUAL,
    *EXPERTS,
    *EMBEDDING,
    *MATRICES,
    *FORMAT_CAUSES,
    *ARITHMETIC,
)

__all__ = ["CAUSES", "Cause"]
