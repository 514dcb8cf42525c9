"""A chat with the engine, which all three wires ask for in the form of Ollama's request."""

from __future__ import annotations

from dataclasses import asdict

from ...engine.serve.answer import Answer
from .answer import request_options
from .request import RequestContext
from .schema import ChatRequest


async def answer_chat(visit: RequestContext, request: ChatRequest) -> Answer:
    """Start the engine's answer to `request`, whichever wire the request came by."""
    visit.log["model"] = request.model
    return await visit.ask(
        visit.engine.chat,
        request.model,
        [asdict(message) for message in request.messages],
        request_options(request),
        tools=[asdict(tool) for tool in request.tools],
    )
