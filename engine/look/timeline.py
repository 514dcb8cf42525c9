"""The timeline of a scheduler: its last steps, and who took part in each with how much; also for Perfetto.

Perfetto reads Chrome's JSON trace events: complete events ("ph": "X") with times in microseconds, by process and
thread, whose names come from metadata events ("ph": "M").  Source: "Trace Event Format", Google 2016.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

N_KEPT = 2000  # steps


class StepShare(NamedTuple):
    """The part of one request in a step: its number, its slot, how many tokens, and whether they are of its prompt."""

    job: int
    slot: int
    n_token: int
    is_prefill: bool


class ScheduledStep(NamedTuple):
    """A step of the scheduler: its start (perf_counter_ns), its duration in nanoseconds, and who shared it."""

    began: int
    duration: int
    shares: tuple[StepShare, ...]


class Timeline(deque[tuple[int, ...]]):
    """The last steps, the newest last: began, duration, then four numbers for each share.

    Flat tuples of numbers: nested ones cost a token of a small model another 0.8 % of its time.
    """

    def __init__(self) -> None:
        super().__init__(maxlen=N_KEPT)

    def steps(self) -> list[dict[str, Any]]:
        """Return the steps as objects, times in microseconds since the first."""
        steps = self.snapshot()
        start = steps[0].began if steps else 0
        return [
            {
                "at_us": (step.began - start) // 1000,
                "us": step.duration // 1000,
                "shares": [
                    {
                        "job": s.job,
                        "slot": s.slot,
                        "tokens": s.n_token,
                        "phase": "prefill" if s.is_prefill else "decode",
                    }
                    for s in step.shares
                ],
            }
            for step in steps
        ]

    def trace_events(self, name: str, pid: int = 1) -> list[dict[str, Any]]:
        """Return the steps as trace events: the model is a process, a slot is a thread."""
        steps = self.snapshot()
        slots = sorted({share.slot for step in steps for share in step.shares})
        events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}]
        for slot in slots:
            named = {"name": f"slot {slot}"}
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": slot + 1, "args": named})
        for step in steps:
            for share in step.shares:
                phase = "prefill" if share.is_prefill else "decode"
                others = [other.job for other in step.shares if other is not share]
                event: dict[str, Any] = {
                    "ph": "X",
                    "name": f"{phase} {share.n_token}",
                    "cat": phase,
                    "pid": pid,
                    "tid": share.slot + 1,
                }
                event |= {"ts": step.began / 1000, "dur": step.duration / 1000}
                args: dict[str, Any] = {"request": share.job, "tokens": share.n_token, "shared_with": others}
                events.append(event | {"args": args})
        return events

    def snapshot(self) -> list[ScheduledStep]:
        """Copy the steps while the runner's thread may add one."""
        while True:
            try:
                steps = list(self)
            except RuntimeError:  # mutated during iteration
                continue
            return [ScheduledStep(began, took, shares_of(flat)) for began, took, *flat in steps]


def shares_of(flat: Sequence[int]) -> tuple[StepShare, ...]:
    """Return the shares of a step that the timeline keeps as four numbers each."""
    fours = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    return tuple(StepShare(job, slot, n_token, bool(is_prefill)) for job, slot, n_token, is_prefill in fours)
