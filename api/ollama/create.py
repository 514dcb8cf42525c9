"""POST /api/create, and HEAD and POST /api/blobs/:digest for the files that a model is created from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from ..wire.errors import error_response, json_response
from ..wire.request import Context, RequestContext, body
from ..wire.schema import CreateRequest
from ..wire.stream import NDJSONResponse

router = APIRouter()

JSON_WITHOUT_CHARSET = "application/json"  # the content type of Ollama's progress


@router.head("/api/blobs/{digest}")
async def has_blob(digest: str, context: Context) -> Response:
    exists = await context.run_in_thread(context.engine.store.has_blob, digest)
    return Response() if exists else json_response({"error": f"blob {digest} not found"}, 404)


@router.post("/api/blobs/{digest}")
async def put_blob(digest: str, request: Request, context: Context) -> Response:
    """Store the body as it arrives.  An existing blob is not read again."""
    store = context.engine.store
    if await context.run_in_thread(store.offer_blob, digest):
        return Response()
    with await context.run_in_thread(store.blob_writer) as writer:
        async for chunk in request.stream():
            await context.run_in_thread(writer.write, chunk)
        await context.run_in_thread(writer.commit, digest)
    return Response(status_code=201)


@router.post("/api/create")
async def create(request: Annotated[CreateRequest, body(CreateRequest)], context: Context) -> Response:
    quantize = request.quantize or request.quantization
    if (request.modelfile or request.path) and not request.from_ and request.files is None:
        arguments = (request.model, request.modelfile, request.path, quantize)
        statuses = await context.run_transfer(context.engine.create_from_modelfile, *arguments, context.handle)
        return await send_progress(context, statuses, request.stream)
    statuses = await context.run_transfer(
        context.engine.create,
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
        draft_files=request.draft_files,
        draft_quantize=request.draft_quantize,
        handle=context.handle,
    )
    return await send_progress(context, statuses, request.stream)


async def send_progress(context: RequestContext, statuses: Iterator[dict[str, Any]], stream: bool) -> Response:
    """Send each status as a line, or only the last one.  An error before the first line sets the HTTP status."""
    lines = _in_threads(context, statuses)
    try:
        if stream:
            return NDJSONResponse(await anext(lines), lines)
        return json_response([line async for line in lines][-1], content_type=JSON_WITHOUT_CHARSET)
    except Exception as error:
        return error_response(error, JSON_WITHOUT_CHARSET)


async def _in_threads(
    context: RequestContext, statuses: Iterator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield each status, computed in a worker thread.  If the client disconnects, the transfer is cancelled."""
    with context.cancel_on_disconnect():
        while (status := await context.run_transfer(next, statuses, None)) is not None:
            yield status
