"""/playground: a page over the public API. It is static, open to anybody, and holds nothing of any user."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.api.context import Hub
from serve.playground.world import world_of

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).resolve().parents[1] / "playground"
_FILES = {"app.js": "text/javascript", "style.css": "text/css"}
PATHS = ("/playground", "/playground/world.json", *(f"/playground/{name}" for name in _FILES))
"""Answered without a token."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}


@router.get("/playground")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(_FOLDER / "page.html", media_type="text/html", headers=_HEADERS)


@router.get("/playground/world.json")
async def world(hub: Hub) -> dict[str, Any]:
    """The prompt's wording and made-up people."""
    return await asyncio.to_thread(world_of, hub.config.experiment)


@router.get("/playground/app.js")
async def script() -> FileResponse:
    """The page's program."""
    return _file("app.js")


@router.get("/playground/style.css")
async def style() -> FileResponse:
    """The page's looks."""
    return _file("style.css")


def _file(name: str) -> FileResponse:
    return FileResponse(_FOLDER / name, media_type=_FILES[name])
