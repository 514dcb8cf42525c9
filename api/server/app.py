"""The ASGI application: routes, middleware and error handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ...engine.errors import EngineError
from ...engine.go.json import DecodeError
from ...engine.serve.engine import Engine
from ..anthropic import routes as anthropic
from ..learn import routes as learn
from ..ollama import chat, create, embed, generate, models, root, tokens, transfer
from ..openai import routes as openai
from ..wire.dump import RequestDump
from ..wire.errors import on_error, on_http_error
from . import metrics
from .guard import Guard
from .log import RequestLog
from .metrics import Metrics

ROUTERS = [
    module.router
    for module in (root, generate, chat, embed, models, create, transfer, tokens, metrics, openai, anthropic, learn)
]


def create_app(engine: Engine, door: Callable[[ASGIApp], ASGIApp] | None = None) -> FastAPI:
    """Build the ASGI application that serves `engine`.

    door   wraps the routes in middleware that has other processes answer some of them
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        for threads in (app.state.threads, app.state.answer_threads, app.state.transfer_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="numllama", redirect_slashes=False, openapi_url=None, lifespan=lifespan)
    app.state.engine = engine
    app.state.metrics = Metrics(engine)
    # What may take long has threads of its own, so that it keeps nothing else waiting: answers, each of which occupies
    # one while its model loads, hence more of them than the load queue holds; and transfers, which others' servers
    # may stall.
    app.state.threads = ThreadPoolExecutor(64, thread_name_prefix="request")
    app.state.answer_threads = ThreadPoolExecutor(engine.settings.max_queue + 64, thread_name_prefix="request-answer")
    app.state.transfer_threads = ThreadPoolExecutor(64, thread_name_prefix="request-transfer")
    for router in ROUTERS:
        app.include_router(router)
    for error in (EngineError, DecodeError):
        app.add_exception_handler(error, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    if door:
        app.add_middleware(door)
    if engine.settings.debug_log_requests:
        app.add_middleware(RequestDump)
    app.add_middleware(Guard, settings=engine.settings)
    app.add_middleware(RequestLog)
    return app
