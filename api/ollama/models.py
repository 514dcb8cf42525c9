"""Models on disk and in memory: list, show, ps, copy, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ...engine.errors import BadName, ModelNotFound, RequestError
from ...engine.store import ModelName
from ..wire.errors import reply
from ..wire.request import Context, body
from ..wire.schema import CopyRequest, DeleteRequest, ShowRequest

router = APIRouter()


@router.api_route("/api/tags", methods=["GET", "HEAD"])
async def tags(visit: Context) -> Response:
    return reply({"models": await visit.run(visit.engine.list)})


@router.get("/api/ps")
async def ps(visit: Context) -> Response:
    return reply({"models": await visit.run(visit.engine.ps)})


@router.post("/api/show")
async def show(request: Annotated[ShowRequest, body(ShowRequest)], visit: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    shown = visit.engine.show
    return reply(await visit.run(shown, request.model, request.verbose, request.system, request.options))


@router.post("/api/copy")
async def copy(request: Annotated[CopyRequest, body(CopyRequest)], visit: Context) -> Response:
    for what, name in (("source", request.source), ("destination", request.destination)):
        _parsed(name, f'{what} "{name}" is invalid')
    try:
        await visit.run(visit.engine.copy, request.source, request.destination)
    except ModelNotFound:
        raise ModelNotFound(request.source, f'model "{request.source}" not found') from None
    return Response()


@router.delete("/api/delete")
async def delete(request: Annotated[DeleteRequest, body(DeleteRequest)], visit: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    _parsed(request.model, f'name "{request.model}" is invalid')
    await visit.run(visit.engine.delete, request.model)
    return Response()


def _parsed(name: str, refusal: str) -> None:
    """Raises: BadName with `refusal`, or with what is wrong about a source suffix"""
    try:
        ModelName.parse_request(name)
    except BadName as error:
        suffixes = str(error).startswith("use either")
        raise BadName(name, str(error) if suffixes and refusal.startswith("name") else refusal) from None
