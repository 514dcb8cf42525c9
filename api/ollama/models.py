"""Models on disk and in memory: list, ps, show, copy, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ...engine.errors import BadName, ModelNotFound, RequestError
from ...engine.store import ModelName
from ..wire.errors import json_response
from ..wire.request import Context, body
from ..wire.schema import CopyRequest, DeleteRequest, ShowRequest

router = APIRouter()


@router.api_route("/api/tags", methods=["GET", "HEAD"])
async def tags(context: Context) -> Response:
    return json_response({"models": await context.run_in_thread(context.engine.list)})


@router.get("/api/ps")
async def ps(context: Context) -> Response:
    return json_response({"models": await context.run_in_thread(context.engine.ps)})


@router.post("/api/show")
async def show(request: Annotated[ShowRequest, body(ShowRequest)], context: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    shown = context.engine.show
    return json_response(
        await context.run_in_thread(shown, request.model, request.verbose, request.system, request.options)
    )


@router.post("/api/copy")
async def copy(request: Annotated[CopyRequest, body(CopyRequest)], context: Context) -> Response:
    for what, name in (("source", request.source), ("destination", request.destination)):
        _check_name(name, f'{what} "{name}" is invalid')
    try:
        await context.run_in_thread(context.engine.copy, request.source, request.destination)
    except ModelNotFound:
        raise ModelNotFound(request.source, f'model "{request.source}" not found') from None
    return Response()


@router.delete("/api/delete")
async def delete(request: Annotated[DeleteRequest, body(DeleteRequest)], context: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    _check_name(request.model, f'name "{request.model}" is invalid')
    await context.run_in_thread(context.engine.delete, request.model)
    return Response()


def _check_name(name: str, refusal: str) -> None:
    """Check that `name` is valid.  Raises: BadName with the text `refusal`, or with the parser's text about a suffix"""
    try:
        ModelName.parse_request(name)
    except BadName as error:
        suffixes = str(error).startswith("use either")
        raise BadName(name, str(error) if suffixes and refusal.startswith("name") else refusal) from None
