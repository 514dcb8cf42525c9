"""`numllama batch`: answer a file of requests, in the lines of OpenAI's batch files.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    {"id": "batch_req_1", "custom_id": "a", "error": null,
     "response": {"status_code": 200, "request_id": "1", "body": {...}}}

Output lines have the order of the input lines.  Each is written as soon as all before it are, so an interrupted run
leaves whole lines, and the same command goes on after them.  Files named .parquet have the same lines as rows; that of
the answers is made at the end, of the lines in OUT.parquet.jsonl.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ...engine.errors import EngineError, RequestError
from ...engine.serve.engine import Engine
from ...engine.settings import Settings, expand_home
from ...engine.store.file import FileModel
from ..scale.parquet import is_parquet, pyarrow, write_answers
from .backend import is_file
from .batch_lines import BatchRequest, answered, check_custom_ids, lines_of, read_requests

AHEAD = 4  # lines read ahead, in multiples of those answered at once


class Answering(Protocol):
    """A place that answers requests: the application in this process, or workers elsewhere."""

    async def post(self, path: str, body: Any) -> tuple[int, Any]: ...

    async def close(self) -> None: ...


def answer_batch(
    source: Path, target: Path, model: str = "", parallel: int = 0, ray: str | None = None, workers: int = 0
) -> int:
    """Answer the requests in `source`, and write the answers to `target`.  -> exit status: 0, 1 or 130

    model      for lines whose body names none; a GGUF file answers all lines
    parallel   requests at once; 0: as many as a model has slots, for each worker
    ray        address of a Ray cluster whose workers answer; "" starts one on this machine; None: this process
    workers    on the cluster; 0: one for each node
    0 if all are answered, 1 if some are errors, 130 after Ctrl-C.
    Raises: RequestError for a file that cannot be read, or a target with other answers; EngineError
    """
    n_lines, lines = check_custom_ids(source), lines_file(target)
    if target != lines:
        pyarrow()  # refuses before anything is asked
    n_done = answered(source, target if target.exists() else lines)
    if n_done == n_lines and target.exists():
        print(f"{target}: all {n_lines} lines are there")
        return 0
    if target != lines and target.exists():
        raise RequestError(f"{target} answers {n_done} of {n_lines} lines; name another file for the answers")
    settings = Settings.from_env()
    n_each = parallel or settings.num_parallel or 4
    counts = {"answered": 0, "errors": 0}
    try:
        with progress_bar(n_lines, n_done) as advance:
            asyncio.run(_run(source, lines, model, n_done, settings, n_each, ray, workers, counts, advance))
    except KeyboardInterrupt:
        n = n_done + counts["answered"] + counts["errors"]
        print(f"interrupted after {n} of {n_lines} lines; the same command goes on from there", file=sys.stderr)
        return 130
    if target != lines:
        write_answers(target, lines_of(lines))
        lines.unlink()
    before = f", {n_done} were there" if n_done else ""
    print(f"{target}: {counts['answered']} answered, {counts['errors']} errors{before}")
    return 1 if counts["errors"] else 0


def lines_file(target: Path) -> Path:
    """Return the file that takes the lines as they are answered: `target` itself, unless it is parquet."""
    return target.with_name(f"{target.name}.jsonl") if is_parquet(target) else target


async def _run(
    source: Path,
    target: Path,
    model: str,
    n_done: int,
    settings: Settings,
    n_each: int,
    ray: str | None,
    workers: int,
    counts: dict[str, int],
    advance: Callable[[dict[str, int]], None],
) -> None:
    """Answer the lines after the first `n_done`."""
    answering, n_worker = start(settings, model, ray, workers, n_each)
    try:
        with open(target, "ab") as file:
            requests = islice(read_requests(source, model), n_done, None)
            async for line in answered_lines(requests, answering, n_each * n_worker):
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                is_good = line["error"] is None and line["response"]["status_code"] == 200
                counts["answered" if is_good else "errors"] += 1
                advance(counts)
            os.fsync(file.fileno())
    finally:
        await answering.close()


def start(settings: Settings, model: str, ray: str | None, workers: int, n_each: int) -> tuple[Answering, int]:
    """Start what answers.  -> it, and how many workers it has"""
    settings, file = replace(settings, num_parallel=n_each), expand_home(model) if is_file(model) else None
    if ray is None:
        from ..server.local import LocalApp

        return LocalApp(Engine(settings, file=FileModel.of(file) if file else None)), 1
    from ..scale.workers import RayWorkers

    answering = RayWorkers(settings, ray, workers, n_each, file)
    return answering, answering.n_worker


async def answered_lines(
    requests: Iterator[BatchRequest], answering: Answering, n_parallel: int
) -> AsyncIterator[dict[str, Any]]:
    """Yield the output lines in the order of `requests`, of which `n_parallel` are answered at once."""
    room, tasks = asyncio.Semaphore(n_parallel), deque[asyncio.Task[dict[str, Any]]]()

    async def answer(request: BatchRequest) -> dict[str, Any]:
        async with room:
            return await answer_request(request, answering)

    try:
        while True:
            for request in islice(requests, AHEAD * n_parallel - len(tasks)):
                tasks.append(asyncio.create_task(answer(request)))
            if not tasks:
                return
            yield await tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()


async def answer_request(request: BatchRequest, answering: Answering) -> dict[str, Any]:
    """Answer one request.  -> its output line"""
    line = {"id": f"batch_req_{request.number}", "custom_id": request.custom_id, "response": None, "error": None}
    if request.wrong:
        return line | {"error": {"code": "invalid_request", "message": f"line {request.number}: {request.wrong}"}}
    try:
        status, body = await answering.post(request.url, request.body)
    except EngineError as error:
        return line | {"error": {"code": "failed", "message": f"line {request.number}: {error}"}}
    return line | {"response": {"status_code": status, "request_id": str(request.number), "body": body}}


@contextmanager
def progress_bar(n_lines: int, n_done: int) -> Iterator[Callable[[dict[str, int]], None]]:
    """Show a bar on standard error, if that is a terminal; yields a function that shows the counts."""
    if not sys.stderr.isatty():
        yield lambda counts: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_lines, completed=n_done)
        yield lambda counts: bar.update(
            task, completed=n_done + sum(counts.values()), description=f"{counts['errors']} errors"
        )
