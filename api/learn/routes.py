"""GET /learn, the page; GET /api/look/model and /api/look/time, POST /api/look/run and /api/look/map, which it reads.

The page is a folder of ES modules and a style sheet.  Its modules name one another by an import map, so that the same
files also make a page without a server (page.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ...engine.errors import RequestError
from ..wire.errors import json_response
from ..wire.look import LookWriter, attention_map_json, encoding_of
from ..wire.request import Context, body
from ..wire.schema import LookAgainRequest, LookMapRequest
from .page import CONTENT_TYPES, asset, page_html, policy, referred_file

router = APIRouter()


@router.api_route("/learn", methods=["GET", "HEAD"])
async def learn() -> Response:
    html = page_html()
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Response(html, headers=headers, media_type="text/html; charset=utf-8")


@router.api_route("/learn/{path:path}", methods=["GET", "HEAD"])
async def learn_file(path: str) -> Response:
    content, kind = asset(path), CONTENT_TYPES.get(path.rpartition(".")[2], "")
    if content is None:
        content, kind = referred_file(path), "text/plain; charset=utf-8"
    if content is None:
        return Response("404 page not found", 404, media_type="text/plain")
    return Response(
        content, headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}, media_type=kind
    )


@router.get("/api/look/model")
async def look_model(context: Context, name: str = "", tensor: str = "", block: str = "0") -> Response:
    if not name:
        raise RequestError("name is required: /api/look/model?name=primer")
    context.log["model"] = name
    if not tensor:
        return json_response(await context.run_in_thread(context.engine.model_facts, name))
    if not block.isdecimal():
        raise RequestError(f"block must be a number from 0, got '{block}'")
    return json_response(await context.run_in_thread(context.engine.tensor_block, name, tensor, int(block)))


@router.get("/api/look/time")
async def look_time(context: Context, format: str = "") -> Response:
    timelines = context.engine.timelines()
    if format == "perfetto":
        events = [
            event for pid, (name, line) in enumerate(timelines.items(), 1) for event in line.trace_events(name, pid)
        ]
        return json_response({"traceEvents": events, "displayTimeUnit": "ms"})
    if format:
        raise RequestError(f"unknown format '{format}'; choose perfetto, or leave it out")
    return json_response({"models": {name: line.steps() for name, line in timelines.items()}})


@router.post("/api/look/run")
async def look_run(request: Annotated[LookAgainRequest, body(LookAgainRequest)], context: Context) -> Response:
    def again() -> dict[str, Any]:
        model, step = context.engine.look_again(request.run, request.position, request.look or {})
        return LookWriter(model.tokenizer, encoding_of(request.look)).step(step)

    return json_response(await context.run_in_thread(again))


@router.post("/api/look/map")
async def look_map(request: Annotated[LookMapRequest, body(LookMapRequest)], context: Context) -> Response:
    found = await context.run_in_thread(context.engine.look_at_maps, request.run, request.layer, request.head)
    return json_response(attention_map_json(found))
