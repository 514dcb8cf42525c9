"""Disturbances of a measurement, read from /proc and /sys: other processes, steal, throttling, swapping.

    others      cores used by processes other than this one, its children and the measured server
    steal       share of this machine's CPU time that its hypervisor gave to others
    throttled   times that a core was slowed for heat, or this control group for its quota
    swapped     MiB written to or read from swap
    mhz         mean clock of all cores, at the end

Each is None where the system does not tell.  `reasons` are those above their limits: they mark a round as disturbed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

MAX_OTHERS_SHARE = 0.1  # of all cores; an idle desktop uses 2 to 5 %
MAX_STEAL_SHARE = 0.02
MAX_SWAPPED_MIB = 1.0
MIN_SECONDS = 0.25  # the system counts CPU time in 1/100 s; of a shorter block, the last quarter of a second is watched
PROC, SYS = Path("/proc"), Path("/sys")


@dataclass
class Disturbance:
    """Disturbances during one measurement."""

    seconds: float = 0.0
    others: float | None = None
    steal: float | None = None
    throttled: int | None = None
    swapped: float | None = None
    mhz: float | None = None

    @property
    def reasons(self) -> list[str]:
        n_core = os.cpu_count() or 1
        found = []
        if (self.others or 0) > MAX_OTHERS_SHARE * n_core:
            found.append(f"others used {self.others:.2g} of {n_core} cores")
        if (self.steal or 0) > MAX_STEAL_SHARE:
            found.append(f"the hypervisor took {self.steal:.0%}")
        if self.throttled:
            found.append(f"throttled {self.throttled} times")
        if (self.swapped or 0) > MAX_SWAPPED_MIB:
            found.append(f"{self.swapped:.3g} MiB swapped")
        return found

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Counters:
    """The system's counters at one moment."""

    at: float
    busy: float | None
    stolen: float | None
    ours: float
    throttled: int | None
    swapped_pages: int | None

    @classmethod
    def read(cls, pids: Sequence[int] = ()) -> Counters:
        busy, stolen = cpu_seconds_of_machine()
        ours = own_cpu_seconds() + sum(cpu_seconds_of(pid) for pid in process_tree(pids))
        return cls(perf_counter(), busy, stolen, ours, throttle_count(), swapped_pages())


@contextmanager
def watch(pids: Callable[[], Sequence[int]] = tuple, visible: bool = True) -> Iterator[Disturbance]:
    """Measure the disturbances during the block.

    pids      processes whose CPU time belongs to the measurement, with their children
    visible   False if a measured server runs on this machine but its processes cannot be seen: `others` is unknown then
    """
    found, before = Disturbance(), Counters.read(pids())
    RECENT.append(before)
    yield found
    after = Counters.read(pids())
    found.seconds = after.at - before.at
    earlier = before if found.seconds > MIN_SECONDS else long_enough_before(after)
    if earlier is not None:
        cores, seconds = os.cpu_count() or 1, after.at - earlier.at
        if visible and after.busy is not None and earlier.busy is not None:
            others = after.busy - earlier.busy - max(0.0, after.ours - earlier.ours)
            found.others = round(max(0.0, others / seconds), 3)
        if after.stolen is not None and earlier.stolen is not None:
            found.steal = round((after.stolen - earlier.stolen) / seconds / cores, 4)
    if after.throttled is not None and before.throttled is not None:
        found.throttled = after.throttled - before.throttled
    if after.swapped_pages is not None and before.swapped_pages is not None:
        found.swapped = (after.swapped_pages - before.swapped_pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
    found.mhz = clock_mhz()


RECENT: deque[Counters] = deque(maxlen=64)
"""The beginnings of the last blocks, for those that are too short to tell."""


def long_enough_before(after: Counters) -> Counters | None:
    """Return the latest recorded counters from MIN_SECONDS to ten times as much before `after`."""
    found = [c for c in RECENT if MIN_SECONDS < after.at - c.at < 10 * MIN_SECONDS]
    return found[-1] if found else None


# --- counters of the machine


def cpu_seconds_of_machine() -> tuple[float | None, float | None]:
    """Return the busy seconds of all cores together, and those that the hypervisor gave to others."""
    try:
        fields = [int(x) for x in (PROC / "stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return None, None
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq) / tick, steal / tick


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and, where the system tells, of its children that have ended."""
    try:
        import resource
    except ImportError:  # Windows
        return process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # in microseconds; os.times() counts in 1/100 s
    return process_time() + children.ru_utime + children.ru_stime


def throttle_count() -> int | None:
    """Return how often cores were slowed for heat, and this control group for its quota, since the start."""
    counts = [
        int(text)
        for path in SYS.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        if (text := system_text(path).strip()).isdigit()
    ]
    for line in system_text(SYS / "fs/cgroup/cpu.stat").splitlines():
        if line.startswith("nr_throttled "):
            counts.append(int(line.split()[1]))
    return sum(counts) if counts else None


def swapped_pages() -> int | None:
    """Return the pages swapped in and out since the start."""
    lines = [line.split() for line in system_text(PROC / "vmstat").splitlines()]
    counts = [int(value) for name, value in lines if name in ("pswpin", "pswpout")]
    return sum(counts) if counts else None


def clock_mhz() -> float | None:
    """Return the mean clock of all cores in MHz."""
    lines = system_text(PROC / "cpuinfo").splitlines()
    values = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(values) / len(values), 1) if values else None


def energy_joules() -> float | None:
    """Return the energy counter of all CPU packages (RAPL), in joules; None where it cannot be read."""
    readings = [system_text(path).strip() for path in SYS.glob("class/powercap/intel-rapl:?/energy_uj")]
    if not readings or not all(text.isdigit() for text in readings):
        return None
    return sum(map(int, readings)) / 1e6


def system_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# --- processes


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds of process `pid` and of its children that have ended; 0 if it has ended itself."""
    fields = system_text(PROC / str(pid) / "stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def is_running(pid: int) -> bool:
    return (PROC / str(pid)).exists()


def resident_mib(pids: Sequence[int], peak: bool = True) -> float | None:
    """Return the memory of the processes and their children in MiB: the peak since their start, or now."""
    key, total = "VmHWM:" if peak else "VmRSS:", 0
    for pid in process_tree(pids):
        for line in system_text(PROC / str(pid) / "status").splitlines():
            if line.startswith(key):
                total += int(line.split()[1])
    return total / 1024 or None


def process_tree(pids: Sequence[int]) -> set[int]:
    """Return the processes and, where the system tells, all their descendants, without this process."""
    if not pids:
        return set()
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit() and (fields := system_text(entry / "stat").rpartition(")")[2].split()):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found and pid != os.getpid():
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def listening_pids(port: int) -> list[int]:
    """Return the processes of this machine that listen on `port`; [] if they cannot be seen."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in system_text(PROC / "net" / table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    found = []
    for folder in PROC.glob("[0-9]*/fd") if inodes else ():
        with suppress(OSError):
            if any(os.readlink(link) in inodes for link in folder.iterdir()):
                found.append(int(folder.parent.name))
    return [pid for pid in found if pid != os.getpid()]
