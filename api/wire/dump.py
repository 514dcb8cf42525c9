"""OLLAMA_DEBUG_LOG_REQUESTS: inference requests saved to files, each with a script that sends it again.

    <temporary folder>/20260131T120000.123456-000001_api_chat_body.json
                       20260131T120000.123456-000001_api_chat_request.sh     curl with this body

Only the user who runs the server can read the files.  They are never deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

INFERENCE_PATHS = (
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
)


class RequestDump:
    """ASGI middleware that saves the bodies of inference requests."""

    def __init__(self, app: ASGIApp):
        self.app, self.number = app, count(1)
        self.folder = Path(tempfile.mkdtemp(prefix="numllama-request-logs-"))
        log.info("saving inference requests with their bodies: folder=%s", self.folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in INFERENCE_PATHS:
            return await self.app(scope, receive, send)
        body = bytearray()

        async def receive_and_record() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        try:
            await self.app(scope, receive_and_record, send)
        finally:
            try:
                self.write(scope, bytes(body))
            except OSError as error:
                log.warning("cannot save a request: %s: %s", error.filename, error.strerror)

    def write(self, scope: Scope, body: bytes) -> None:
        """Write the body and the script of one request.  Raises: OSError"""
        headers, path = Headers(scope=scope), scope["path"]
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{next(self.number):06d}{re.sub('[^a-zA-Z0-9]', '_', path)}"
        content_type = f"Content-Type: {headers.get('content-type') or 'application/json'}"
        url = f"{scope['scheme']}://{headers.get('host', '')}{path}"
        file = f"{name}_body.json"
        curl = f"curl --request {scope['method']} {shlex.quote(url)} --header {shlex.quote(content_type)}"
        script = f'#!/bin/sh\n{curl} --data-binary @"$(dirname -- "$0")/{file}"\n'
        for file_name, content in ((file, body), (f"{name}_request.sh", script.encode())):
            with open(os.open(self.folder / file_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)
        log.info("request saved; to send it again: sh %s", self.folder / f"{name}_request.sh")
