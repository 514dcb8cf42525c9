"""A build of llama.cpp, that is a folder of programs and libraries: its version, and the start time of its server."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from ..engine.errors import RequestError

PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")


def about(programs: Path) -> dict[str, str]:
    """Return the build's commit and the CPU features it uses."""
    output = subprocess.run([programs / "llama-server", "--version"], capture_output=True, text=True)
    commit = re.search(r"commit:? (\w+)", output.stdout + output.stderr)
    return {"commit": commit[1] if commit else "unknown", "features": " ".join(features(programs))}


def features(programs: Path) -> list[str]:
    """Return the CPU features of the build, [] if its library is missing.

    Runs in a process of its own, since a loaded library cannot be unloaded.
    """
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    names = [str(programs / f"lib{name}.{suffix}") for name in ("ggml-base", "ggml-cpu", "ggml", "llama")]
    program = (
        "import ctypes, sys\n"
        "for name in sys.argv[1:]: library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)\n"
        "library.llama_print_system_info.restype = ctypes.c_char_p\n"
        "print(library.llama_print_system_info().decode())"
    )
    output = subprocess.run([sys.executable, "-P", "-c", program, *names], capture_output=True, text=True).stdout
    return re.findall(r"(\w+) = 1", output)


def seconds_until_healthy(programs: Path, path: str) -> float:
    """Return the seconds from the start of llama-server until it is healthy.  Raises: RequestError if it exits"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(programs / "llama-server"), "-m", path, "--port", str(port)]
    began = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_healthy(port):
            if server.poll() is not None:
                raise RequestError(f"{' '.join(command)} exited with {server.returncode}")
            time.sleep(0.002)
        return time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


def _is_healthy(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
    except OSError:  # HTTPError, for a status like 503, is a subclass
        return False
