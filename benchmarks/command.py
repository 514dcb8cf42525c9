"""`numllama bench`: runs a part of the harness; flags.py lists the parts with their flags."""

from __future__ import annotations

import argparse
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from time import perf_counter

from ..engine.store.file import FileModel
from .disturbance import energy_joules
from .flags import build_parser
from .invocation import FindModel, Invocation
from .results import Line, ResultsFile
from .rounds import Plan
from .show import budget_bar

PARTS = {  # name: the module with its function bench_NAME
    "model": "decode",
    "serve": "serve",
    "formats": "formats",
    "embed": "embed",
    "vision": "vision",
    "stages": "stages",
    "long": "long",
    "kernels": "kernels",
    "speculate": "speculate",
    "compare": "compare",
    "report": "chart",
    "self": "harness",
}
INTERRUPTED = 130
USUAL_BUDGET_S = 300.0


def plan_from(options: argparse.Namespace) -> Plan:
    """Return the plan of the flags: no limit for --rounds without --budget; CPU seconds count on a busy machine."""
    usual = math.inf if options.rounds else USUAL_BUDGET_S
    busy = options.busy or getattr(options, "cpu", False)
    return Plan(options.budget or usual, options.within, options.rounds, busy, options.seed or 0, perf_counter())


def run_part(argv: Sequence[str], find: FindModel = FileModel.of, prog: str = "numllama bench") -> int:
    """Run a part with its arguments and print its report.  -> exit status; 130 after Ctrl-C.  Raises: EngineError"""
    argv = list(argv)
    if argv and argv[0] not in PARTS and argv[0] not in ("-h", "--help"):
        argv.insert(0, "model")
    options = build_parser(prog).parse_args(argv)
    module = import_module(f"{__package__}.{PARTS[options.part]}")
    if options.part in ("stages", "long", "compare", "report", "self"):
        with interruptible():
            return int(getattr(module, f"bench_{options.part}")(options) or 0)
    if options.html is not None:
        import_module(f"{__package__}.chart").require_plotly()
    plan = plan_from(options)
    opened: list[ResultsFile] = []

    def open_results(header: Line) -> ResultsFile:
        how = {name: getattr(plan, name) for name in ("within", "rounds", "busy")}
        opened.append(ResultsFile(options.jsonl, header | {"plan": how, "arguments": argv}))
        if opened[0].is_resumed:
            done = len({(line["cell"], line["round"]) for line in opened[0].run.rounds})
            print(f"resuming {options.jsonl}: {done} rounds are there")
        if energy_joules() is None:
            opened[0].say("energy: not readable here")
        return opened[0]

    interrupted = False
    with budget_bar() as progress, interruptible():
        try:
            bench: Callable[[Invocation], ResultsFile] = getattr(module, f"bench_{options.part}")
            bench(Invocation(options, plan, open_results, progress, find))
        except KeyboardInterrupt:
            if not opened:
                raise
    if opened:
        interrupted = opened[0].run.end is None
        print_results(opened[0], options)
    return INTERRUPTED if interrupted else 0


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block by KeyboardInterrupt.

    asyncio cancels its tasks at Ctrl-C only if the handler is Python's own; else it leaves a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    if before[0] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def print_results(results: ResultsFile, options: argparse.Namespace) -> None:
    """Print the report, and write the files that were asked for."""
    from . import chart, report

    print(report.to_text(results.run))
    if results.run.end is None:
        kept = f"; the same command resumes it from {options.jsonl}" if options.jsonl else ""
        print(f"\ninterrupted: these are the rounds that were complete{kept}")
    chart.write_files([results.run], options.html, options.csv)
