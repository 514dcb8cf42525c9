"""GET /, /health, /api/version and /api/status: heartbeats, version, and cloud status (always disabled)."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..wire.errors import json_response

OLLAMA_VERSION = "0.33.0"  # the Ollama release whose API this server implements; clients compare it

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
async def root() -> Response:
    return Response("Ollama is running", media_type="text/plain; charset=utf-8")


@router.api_route("/health", methods=["GET", "HEAD"])
async def health() -> Response:
    return json_response({"status": "ok"})


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    return json_response({"version": OLLAMA_VERSION})


@router.get("/api/status")
async def status() -> Response:
    return json_response({"cloud": {"disabled": True, "source": "env"}})
