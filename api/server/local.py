"""The application in this process, without a socket: the answers that a server would give."""

from __future__ import annotations

from typing import Any

import httpx

from ...engine.serve.engine import Engine
from .app import create_app


class LocalApp:
    """An engine's application, called directly."""

    def __init__(self, engine: Engine):
        self.engine, self._app = engine, create_app(engine)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None)

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send a request.  -> the status and the answer's JSON"""
        answer = await self._client.post(path, json=body)
        return answer.status_code, answer.json()

    async def close(self) -> None:
        """End the client, then the engine with its models."""
        await self._client.aclose()
        self.engine.close()
        for threads in (self._app.state.threads, self._app.state.answer_threads, self._app.state.transfer_threads):
            threads.shutdown(wait=False, cancel_futures=True)
