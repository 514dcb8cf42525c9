"""The log: one line of key=value pairs per request or event, on standard error.

    time=2026-01-31T12:00:00.123Z level=INFO msg=request method=POST path=/api/chat status=200 duration=1.2s ...

Routes add fields through `request.scope["log"]`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...engine.go.duration import format_duration
from ...engine.go.text import one_line, quote, several_lines
from ...engine.go.times import rfc3339
from ...engine.settings import TRACE
from ..wire.errors import error_response
from .guard import ALLOWED_METHODS

log = logging.getLogger("numllama.request")


class LineFormatter(logging.Formatter):
    """Formats a record as one line of key=value pairs, with its `fields` after the message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": rfc3339(int(record.created * 1000) * 1_000_000),
            "level": record.levelname,
            "source": record.name,
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        line = " ".join(f"{one_line(key)}={_quote_value(value)}" for key, value in fields.items())
        return f"{line}\n{several_lines(self.formatException(record.exc_info))}" if record.exc_info else line


def _quote_value(value: Any) -> str:
    """Write a value as it is, or as a Go literal if it has characters that would end or forge it."""
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) and one_line(text) == text else quote(text)


def start_logging(debug: int) -> None:
    """Set up logging.  `debug` 0: INFO; 1: DEBUG; 2: TRACE, which includes prompts."""
    level = {0: logging.INFO, 1: logging.DEBUG}.get(debug, TRACE)
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "asyncio", "numba", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RequestLog:
    """The outermost ASGI middleware: logs each request in one line, and answers unexpected errors.

    The client never sees a traceback.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter_ns(), 0
        scope["log"] = {}

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        except ClientDisconnect:  # while the body was being read
            status = 499
        except Exception as error:
            answer = error_response(error, path=scope["path"])
            if not status:
                await answer(scope, receive, send_and_record)
        finally:
            duration = format_duration(time.perf_counter_ns() - began)
            facts = {"method": scope["method"], "path": scope["path"], "status": status, "duration": duration}
            log.info("request", extra={"fields": facts | scope["log"]})
            if "app" in scope:
                # known routes and methods only: clients could create any number of label values
                method = scope["method"] if scope["method"] in ALLOWED_METHODS.split(",") else "other"
                route = getattr(scope.get("route"), "path", "other")
                scope["app"].state.metrics.requests.labels(method, route, status).inc()
