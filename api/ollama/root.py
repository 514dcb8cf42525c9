"""The heartbeat, the version, and that there is no cloud."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..wire.errors import reply

OLLAMA_VERSION = "0.33.0"  # the Ollama whose API this is: clients compare it

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
async def root() -> Response:
    return Response("Ollama is running", media_type="text/plain; charset=utf-8")


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    return reply({"version": OLLAMA_VERSION})


@router.get("/api/status")
async def status() -> Response:
    return reply({"cloud": {"disabled": True, "source": "env"}})
