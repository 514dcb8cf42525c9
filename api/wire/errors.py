"""What an error is to a client: one table from the engine's classes to a status, and the body that carries it.

ModelNotFound            404        RequestError and its kin     400, in Ollama's words where clients match on them
NotYet                   501        QueueFull, ShuttingDown      503
BadTemplate              500        BodyTooLarge                 413
everything else          500

The body is {"error": text}, and under /v1 what OpenAI's or Anthropic's clients look for.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from ...engine import errors as e
from ...engine.go.json import BodyTooLarge, DecodeError, NoBody, dumps

log = logging.getLogger(__name__)

STATUS: dict[type[Exception], int] = {
    DecodeError: 400,
    BodyTooLarge: 413,
    e.ModelNotFound: 404,
    e.CloudModel: 403,
    e.NotYet: 501,
    e.BadTemplate: 500,
    e.RequestError: 400,
    e.QueueFull: 503,
    e.ShuttingDown: 503,
    e.Cancelled: 499,  # as Ollama logs it; nobody reads it
    e.EngineError: 500,
}


KIND = {400: "invalid_request_error", 404: "not_found_error"}  # under /v1


def status_of(error: Exception) -> int:
    """The status of the nearest class in the table; 500 for what no one raised on purpose."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def error_text(error: Exception) -> str:
    """The one line that a client may see.  An error nobody foresaw goes to the log, with its traceback."""
    if isinstance(error, e.EngineError | DecodeError):
        return str(error)
    log.error("unforeseen error", exc_info=error)
    return f"internal error: {type(error).__name__}"


JSON = "application/json; charset=utf-8"


def reply(value: object, status: int = 200, content_type: str = JSON) -> Response:
    return Response(dumps(value), status, headers={"Content-Type": content_type})


def refusal(error: Exception, content_type: str = JSON, path: str = "") -> Response:
    return reply(body_of(error, path), status_of(error), content_type)


def body_of(error: Exception, path: str) -> dict[str, Any]:
    """What carries `error` on the wire that is spoken at `path`."""
    if not path.startswith("/v1/"):
        return {"error": error_text(error)}
    text = "EOF" if isinstance(error, NoBody) else error_text(error)
    kind = KIND.get(status_of(error), "api_error")
    if not path.startswith("/v1/messages"):
        return {"error": {"message": text, "type": kind, "param": None, "code": None}}
    details = getattr(error, "details", None)
    told = {"type": kind, "message": text} | ({"details": details} if details else {})
    return {"type": "error", "error": told, "request_id": f"req_{secrets.token_hex(12)}"}


async def on_error(request: Request, error: Exception) -> Response:
    return refusal(error, path=request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the words of Go's router; a path with a slash too many is sent to the bare one."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (bare := _bare_path(request)):
        return _redirect(request, bare)
    text = {404: "404 page not found", 405: "405 method not allowed"}.get(error.status_code, str(error.detail))
    return Response(text, error.status_code, headers={"Content-Type": "text/plain"})


def _bare_path(request: Request) -> str | None:
    """The route that `request` would be without its trailing slash, if there is one."""
    path = request.url.path.rstrip("/")
    scope = {"type": "http", "path": path, "root_path": "", "method": request.method}
    matches = (route.matches(scope)[0].value for route in request.app.routes)
    return path if path != request.url.path and path and 2 in matches else None  # 2: Match.FULL


def _redirect(request: Request, path: str) -> Response:
    if request.method != "GET":
        return Response(status_code=307, headers={"Location": path})
    body = f'<a href="{path}">Moved Permanently</a>.\n\n'
    return Response(body, 301, headers={"Location": path}, media_type="text/html; charset=utf-8")
