"""Models between the disk and a registry: POST /api/pull and /api/push."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ...engine.errors import RequestError
from ..wire.request import Context, body
from ..wire.schema import PullRequest, PushRequest
from .create import send_progress

router = APIRouter()


@router.post("/api/pull")
async def pull(request: Annotated[PullRequest, body(PullRequest)], visit: Context) -> Response:
    statuses = await visit.run(visit.engine.pull, request.model, request.insecure, visit.handle)
    return await send_progress(visit, statuses, request.stream)


@router.post("/api/push")
async def push(request: Annotated[PushRequest, body(PushRequest)], visit: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    statuses = await visit.run(visit.engine.push, request.model, request.insecure, visit.handle)
    return await send_progress(visit, statuses, request.stream)
