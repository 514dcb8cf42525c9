"""A chat with the engine, as requested by all three APIs in the form of Ollama's request."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ...engine.serve.answer import Answer
from .answer import request_options
from .request import RequestContext
from .schema import ChatRequest


async def answer_chat(context: RequestContext, request: ChatRequest, **more: Any) -> Answer:
    """Start the engine's answer to `request`, whichever API it came through.

    more   fields of RequestOptions that Ollama's requests lack: must_call, choice, count_only
    """
    context.log["model"] = request.model
    options = replace(request_options(request), **more)

    def chat(**arguments: Any) -> Answer:
        """Start the answer, in a worker thread: a conversation may have many messages to convert."""
        messages, tools = ([asdict(item) for item in items] for items in (request.messages, request.tools))
        return context.engine.chat(request.model, messages, options, tools=tools, **arguments)

    return await context.start_answer(chat)
