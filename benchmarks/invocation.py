"""One call of `numllama bench`: everything that a part gets from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from ..engine.store import LocalModel
from ..engine.store.file import FileModel
from .results import Line, ResultsFile
from .rounds import Plan
from .show import Progress, silent

FindModel = Callable[[str], LocalModel]


@dataclass(frozen=True)
class Invocation:
    """The flags of a part, when it stops, and where it reports.

    open_results   header of a run -> the file that its rounds go to, which may be one that is resumed
    find           name of a model -> its files
    """

    options: argparse.Namespace
    plan: Plan
    open_results: Callable[[Line], ResultsFile]
    progress: Progress = silent
    find: FindModel = FileModel.of
