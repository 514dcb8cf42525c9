"""POST /api/pull and /api/push: download and upload of models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ...engine.errors import RequestError
from ..wire.request import Context, body
from ..wire.schema import PullRequest, PushRequest
from .create import send_progress

router = APIRouter()


@router.post("/api/pull")
async def pull(request: Annotated[PullRequest, body(PullRequest)], context: Context) -> Response:
    statuses = await context.run_transfer(context.engine.pull, request.model, request.insecure, context.handle)
    return await send_progress(context, statuses, request.stream)


@router.post("/api/push")
async def push(request: Annotated[PushRequest, body(PushRequest)], context: Context) -> Response:
    if not request.model:
        raise RequestError("model is required")
    statuses = await context.run_transfer(context.engine.push, request.model, request.insecure, context.handle)
    return await send_progress(context, statuses, request.stream)
