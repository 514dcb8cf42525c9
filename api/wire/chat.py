"""A chat with the engine, as requested by all three APIs in the form of Ollama's request."""

from __future__ import annotations

from dataclasses import asdict, replace

from ...engine.serve.answer import Answer
from .answer import request_options
from .request import RequestContext
from .schema import ChatRequest


async def answer_chat(context: RequestContext, request: ChatRequest, must_call: bool = False) -> Answer:
    """Start the engine's answer to `request`, whichever API it came through.

    must_call   the answer is a call of one of the request's tools
    """
    context.log["model"] = request.model
    return await context.start_answer(
        context.engine.chat,
        request.model,
        [asdict(message) for message in request.messages],
        replace(request_options(request), must_call=must_call),
        tools=[asdict(tool) for tool in request.tools],
    )
