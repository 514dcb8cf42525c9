"""What a model costs before its first token: seconds until it is ready; memory at the most.

load    load_duration of an engine that runs and has its kernels; llama-server from its start until /health is fine
rss     the most memory of a process that reads 20 tokens and says 20; llama-bench doing the same
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..engine.model.load import load_model
from ..engine.options import Options, RequestOptions
from ..engine.run.request import complete
from ..engine.serve.engine import Engine
from ..engine.settings import Settings
from ..engine.store import LocalModel
from ..engine.store.file import FileModel

N = 20  # tokens read, and said, at the most of memory


class Loader:
    """An engine that runs, in which a model is loaded anew and anew."""

    def __init__(self, files: LocalModel):
        self.engine = Engine(Settings(), file=FileModel.of(files.weights, files.adapters))
        self.seconds()  # compiles

    def seconds(self) -> float:
        """Of one load, after which the model is unloaded again."""
        answer = self.engine.generate("")
        self.engine.generate("", request=RequestOptions(keep_alive=0))
        return answer.load_duration / 1e9

    def close(self) -> None:
        self.engine.close()


def most_memory(command: list[str]) -> int:
    """Bytes that the process of `command` had at once.  Raises: RuntimeError

    The system counts what this process has now as the other's too, so this one must be small.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def most_memory_ours(files: LocalModel) -> int:
    return most_memory([sys.executable, "-m", __spec__.name, *map(str, [files.weights, *files.adapters])])


def most_memory_of_llama_bench(programs: Path, path: str) -> int:
    return most_memory([str(programs / "llama-bench"), "-m", path, "-p", str(N), "-n", str(N), "-r", "1"])


if __name__ == "__main__":
    for _ in complete(
        load_model(sys.argv[1], dict.fromkeys(sys.argv[2:], 1.0)), [1] * N, Options(num_predict=N, num_ctx=4 * N)
    ):
        pass
