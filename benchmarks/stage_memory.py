"""A model under a limit of memory for each process that one process cannot keep, and stages can.

    python -m numllama.benchmarks.stage_memory FILE.gguf [--limit 448] [--stages 3]     (root; Linux)

Each process is in a control group of its own whose memory the kernel limits.  One process generates ids without a limit
and with it; then a driver and its stages do with it.  Shown are their peak resident memory (VmHWM) and how they ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..engine.distributed.cluster import join_cluster
from ..engine.distributed.pipeline import StagedCache
from ..engine.distributed.stage import Stage
from ..engine.model.load import load_model
from ..engine.options import Options
from ..engine.run.request import complete
from .table import markdown

GROUPS = Path("/sys/fs/cgroup")
N_CTX, N_TOKEN = 128, 16


def limit_memory(name: str, n_byte: int) -> Path:
    """Move this process into a new control group with this limit.  -> its folder.  Raises: OSError"""
    is_v1 = (GROUPS / "memory").is_dir()
    group = GROUPS / ("memory" if is_v1 else "") / f"numllama-{name}-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(n_byte))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


def peak_resident() -> int:
    """Return the most bytes of memory that this process has occupied."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def limited_stage(n_byte: int) -> type[Stage]:
    """Return a class of stages whose processes have a limit."""

    class LimitedStage(Stage):
        def __init__(self, *arguments: Any):
            self.group = limit_memory("stage", n_byte)
            super().__init__(*arguments)

        def peak(self) -> tuple[int, str]:
            """Return this process's peak memory, and its control group."""
            return peak_resident(), str(self.group)

    return LimitedStage


def run_role(path: Path, n_byte: int, n_stage: int) -> dict[str, Any]:
    """Generate ids in this process, or in stages.  -> ids, peaks and control groups"""
    if n_stage:
        join_cluster()  # before the limit, which is not for Ray's own processes
    groups = [str(limit_memory("process", n_byte))] if n_byte else []
    model, cache = load_model(path, {}), None
    if n_stage:
        make = limited_stage(n_byte)
        cache = StagedCache([], model, N_CTX, 1, "f16", n_stage=n_stage, stage_class=make)
    options = Options(num_ctx=N_CTX, num_predict=N_TOKEN, temperature=0.0, ignore_eos=True)
    ids = [piece.token for piece in complete(model, [1, 300, 400], options, cache=cache)]
    peaks = [peak_resident()]
    if cache:
        for peak, group in join_cluster().get([stage.peak.remote() for stage in cache.stages]):
            peaks.append(peak)
            groups.append(group)
        cache.close()
    return {"ids": ids, "peaks": peaks, "groups": groups}


def outcome(name: str, arguments: list[str]) -> tuple[list[dict[str, str]], list[int]]:
    """Run a role in a process of its own.  -> lines of the table, the ids that it generated"""
    command = [sys.executable, "-P", "-m", __spec__.name, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate()
    found = {"groups": [str(path) for path in GROUPS.glob(f"**/numllama-process-{process.pid}")]}
    if not process.returncode:
        found = json.loads(out.splitlines()[-1])
    for group in found["groups"]:
        Path(group).rmdir()
    if status := process.returncode:
        how = f"ended by signal {-status}" if status < 0 else err.strip().splitlines()[-1]
        return [{"": name, "peak": "", "end": how}], []
    names = [name, *(f"  stage {i}" for i in range(len(found["peaks"]) - 1))]
    peaks = zip(names, found["peaks"], strict=True)
    return [{"": one, "peak": f"{peak >> 20} MiB", "end": "done"} for one, peak in peaks], found["ids"]


def main(arguments: list[str] | None = None) -> int:
    """Print the table.  -> exit status: 1 unless one process fails under the limit and stages answer as one without"""
    parser = argparse.ArgumentParser(prog="python -m numllama.benchmarks.stage_memory")
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--limit", type=int, default=448, metavar="MIB", help="MiB of each process (448)")
    parser.add_argument("--stages", type=int, default=3, metavar="N", help="stages (3)")
    parser.add_argument("--role", nargs=2, type=int, help=argparse.SUPPRESS)  # bytes, stages: this process has a part
    options = parser.parse_args(arguments)
    if options.role:
        print(json.dumps(run_role(options.file, *options.role)))
        return 0
    n_byte = options.limit << 20

    def role(*values: int) -> list[str]:
        return [str(options.file), "--role", *map(str, values)]

    free, expected = outcome("one process, no limit", role(0, 0))
    single, alone = outcome(f"one process, {options.limit} MiB", role(n_byte, 0))
    staged, ids = outcome(f"driver, {options.limit} MiB each", role(n_byte, options.stages))
    print(markdown([*free, *single, *staged], ["", "peak", "end"]))
    is_shown = not alone and bool(ids) and ids == expected
    print(f"\nstages answer as one process: {ids == expected}; one process fails under the limit: {not alone}")
    return int(not is_shown)


if __name__ == "__main__":
    sys.exit(main())
