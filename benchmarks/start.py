"""The cost of a model before its first token: seconds until it is ready, and peak memory.

load    load_duration of a running engine with compiled kernels; for llama-server from its start until /health is ok
rss     peak memory of a process with a prompt of 20 tokens that generates 20; of llama-bench with the same
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..engine.errors import RequestError
from ..engine.model.load import load_model
from ..engine.options import Options, RequestOptions
from ..engine.run.request import complete
from ..engine.serve.engine import Engine
from ..engine.settings import Settings
from ..engine.store import LocalModel
from ..engine.store.file import FileModel

N_TOKENS = 20  # tokens of the prompt, and of the answer


class Loader:
    """A running engine that loads a model again and again."""

    def __init__(self, files: LocalModel):
        self.engine = Engine(Settings(), file=FileModel.of(files.weights, files.adapters))
        self.seconds()  # compiles

    def seconds(self) -> float:
        """Load the model, return the seconds it took, and unload it."""
        answer = self.engine.generate("")
        self.engine.generate("", request=RequestOptions(keep_alive=0))
        return answer.load_duration / 1e9

    def close(self) -> None:
        self.engine.close()


MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""


def peak_memory(command: list[str]) -> int:
    """Run `command` and return its peak memory in bytes.  Raises: RequestError

    The system counts the memory of the process that starts it as its own too, so a small one does.
    """
    output = subprocess.run(
        [sys.executable, "-P", "-S", "-c", MEASURE, *command], check=True, capture_output=True, text=True
    )
    status, peak = map(int, output.stdout.split())
    if status:
        raise RequestError(f"{' '.join(command)} exited with {status}")
    return peak * (1 if sys.platform == "darwin" else 1024)


def peak_memory_ours(files: LocalModel) -> int:
    """Return the peak memory in bytes of a process that finds its kernels compiled: the first of two compiles them."""
    command = [sys.executable, "-P", "-m", __spec__.name, *map(str, [files.weights, *files.adapters])]
    return min(peak_memory(command) for _ in range(2))


def peak_memory_of_llama_bench(programs: Path, path: str) -> int:
    return peak_memory([str(programs / "llama-bench"), "-m", path, "-p", str(N_TOKENS), "-n", str(N_TOKENS), "-r", "1"])


if __name__ == "__main__":
    for _ in complete(
        load_model(sys.argv[1], dict.fromkeys(sys.argv[2:], 1.0)),
        [1] * N_TOKENS,
        Options(num_predict=N_TOKENS, num_ctx=4 * N_TOKENS),
    ):
        pass
