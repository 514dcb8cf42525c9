"""Errors as HTTP responses: one table from the engine's classes to a status, and the body for each API.

ModelNotFound            404        RequestError, subclasses     400, with Ollama's text where clients match on it
NotYet                   501        QueueFull, ShuttingDown, CacheLost   503
BadTemplate              500        ConversationRefused          400, a BadTemplate
BodyTooLarge             413
any other                500

The body is {"error": text}, and under /v1 the error object of OpenAI or Anthropic.
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

STATUS_OF_ERROR: dict[type[Exception], int] = {
    DecodeError: 400,
    BodyTooLarge: 413,
    e.ModelNotFound: 404,
    e.CloudModel: 403,
    e.NotYet: 501,
    e.ConversationRefused: 400,
    e.BadTemplate: 500,
    e.RequestError: 400,
    e.QueueFull: 503,
    e.ShuttingDown: 503,
    e.CacheLost: 503,
    e.Cancelled: 499,  # for the log, as in Ollama; the client has disconnected
    e.EngineError: 500,
}


ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}  # under /v1


def status_of(error: Exception) -> int:
    """Return the status of the nearest base class in the table; 500 for an unexpected error."""
    return next((STATUS_OF_ERROR[cls] for cls in type(error).__mro__ if cls in STATUS_OF_ERROR), 500)


def error_text(error: Exception) -> str:
    """Return the line that the client sees.  An unexpected error is logged with its traceback."""
    if isinstance(error, e.EngineError | DecodeError):
        return str(error)
    log.error("unexpected error", exc_info=error)
    return e.system_error_line(error) or f"internal error: {type(error).__name__}"


JSON_CONTENT_TYPE = "application/json; charset=utf-8"


def json_response(value: object, status: int = 200, content_type: str = JSON_CONTENT_TYPE) -> Response:
    return Response(dumps(value), status, headers={"Content-Type": content_type})


def error_response(error: Exception, content_type: str = JSON_CONTENT_TYPE, path: str = "") -> Response:
    return json_response(error_body(error, path), status_of(error), content_type)


def error_body(error: Exception, path: str) -> dict[str, Any]:
    """Return the JSON body for `error`, in the form of the API that `path` belongs to."""
    if not path.startswith("/v1/"):
        return {"error": error_text(error)}
    text = "EOF" if isinstance(error, NoBody) else error_text(error)
    kind = ERROR_TYPES.get(status_of(error), "api_error")
    if not path.startswith("/v1/messages"):
        return {"error": {"message": text, "type": kind, "param": None, "code": None}}
    details = getattr(error, "details", None)
    sent = {"type": kind, "message": text} | ({"details": details} if details else {})
    return {"type": "error", "error": sent, "request_id": f"req_{secrets.token_hex(12)}"}


async def on_error(request: Request, error: Exception) -> Response:
    return error_response(error, path=request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods as Gin, Ollama's router, does; redirect a path with an extra trailing slash."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (bare := _bare_path(request)):
        return _redirect(request, bare)
    text = {404: "404 page not found", 405: "405 method not allowed"}.get(error.status_code, str(error.detail))
    return Response(text, error.status_code, headers={"Content-Type": "text/plain"})


def _bare_path(request: Request) -> str | None:
    """Return the path without its trailing slash if that path has a route, else None."""
    path = request.url.path.rstrip("/")
    scope = {"type": "http", "path": path, "root_path": "", "method": request.method}
    matches = (route.matches(scope)[0].value for route in request.app.routes)
    return path if path != request.url.path and path and 2 in matches else None  # 2: Match.FULL


def _redirect(request: Request, path: str) -> Response:
    if request.method != "GET":
        return Response(status_code=307, headers={"Location": path})
    body = f'<a href="{path}">Moved Permanently</a>.\n\n'
    return Response(body, 301, headers={"Location": path}, media_type="text/html; charset=utf-8")
