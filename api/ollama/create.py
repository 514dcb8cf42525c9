"""POST /api/create, and the blobs that a model is made of: HEAD and POST /api/blobs/:digest."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from ..wire.errors import refusal, reply
from ..wire.request import Context, RequestContext, body
from ..wire.schema import CreateRequest
from ..wire.stream import Lines

router = APIRouter()

JSON = "application/json"  # progress has no charset


@router.head("/api/blobs/{digest}")
async def has_blob(digest: str, visit: Context) -> Response:
    there = await visit.run(visit.engine.store.has_blob, digest)
    return Response() if there else reply({"error": f"blob {digest} not found"}, 404)


@router.post("/api/blobs/{digest}")
async def put_blob(digest: str, request: Request, visit: Context) -> Response:
    """The body is written as it comes; one that is there already is not even read."""
    store = visit.engine.store
    if await visit.run(store.has_blob, digest):
        return Response()
    with await visit.run(store.blob_writer) as writer:
        async for chunk in request.stream():
            await visit.run(writer.write, chunk)
        await visit.run(writer.commit, digest)
    return Response(status_code=201)


@router.post("/api/create")
async def create(request: Annotated[CreateRequest, body(CreateRequest)], visit: Context) -> Response:
    quantize = request.quantize or request.quantization
    if (request.modelfile or request.path) and not request.from_ and request.files is None:
        asked = (request.model, request.modelfile, request.path, quantize)
        statuses = await visit.run(visit.engine.create_from_modelfile, *asked, visit.handle)
        return await send_progress(visit, statuses, request.stream)
    statuses = await visit.run(
        visit.engine.create,
        request.model,
        request.from_,
        request.files,
        system=request.system,
        template=request.template,
        parameters=request.parameters,
        messages=[asdict(message) for message in request.messages],
        license=request.license,
        renderer=request.renderer,
        parser=request.parser,
        requires=request.requires,
        info=request.info,
        quantize=quantize,
        adapters=request.adapters,
        handle=visit.handle,
    )
    return await send_progress(visit, statuses, request.stream)


async def send_progress(visit: RequestContext, statuses: Iterator[dict[str, Any]], stream: bool) -> Response:
    """Each status on a line, or the last one alone; what goes wrong before the first line has a status of its own."""
    lines = _in_threads(visit, statuses)
    try:
        if stream:
            return Lines(await anext(lines), lines)
        return reply([line async for line in lines][-1], content_type=JSON)
    except Exception as error:
        return refusal(error, JSON)


async def _in_threads(
    visit: RequestContext, statuses: Iterator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """A client that leaves cancels its call, which a transfer hears."""
    with visit.watched():
        while (status := await visit.run(next, statuses, None)) is not None:
            yield status
