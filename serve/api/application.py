"""The FastAPI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve.api import openai, playground, problems, tasks, upkeep, users
from serve.api.context import Service
from serve.api.gate import OPEN, Gate
from serve.api.views import ERRORS
from serve.backend import Backend
from serve.config import ServeConfig
from serve.doorman import Doorman
from serve.throttle import Throttle

TITLE = "perpcs"
VERSION = "1"
_ABOUT = """Personal models for very many users: a history goes in, and the user's model answers.

Completions and chat are OpenAI's: its clients work by changing the base URL. Everything but `/healthz`, `/readyz` and
this description needs `Authorization: Bearer …`; the token alone says who is asking."""


def build_api(config: ServeConfig, backend: Backend) -> FastAPI:
    """One process of the HTTP layer over a backend. Raises ConfigError for tokens that cannot be read."""
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(
        title=TITLE, version=VERSION, description=_ABOUT, docs_url=None, redoc_url=None, responses=ERRORS,
        redirect_slashes=False, openapi_tags=[],
    )  # fmt: skip
    service = Service(config, backend, Doorman(config))
    app.state.service = service
    problems.install(app)
    for part in (openai, users, tasks, upkeep, playground):
        app.include_router(part.router)
    app.add_middleware(Gate, service=service, throttle=Throttle(), open_paths=playground.PATHS)
    app.openapi = lambda: _openapi(app, FastAPI.openapi(app))  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, made: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description, with our security, and without its own form of validation errors."""
    made["components"].setdefault("securitySchemes", {"bearer": {"type": "http", "scheme": "bearer"}})
    for path, item in made["paths"].items():
        for operation in item.values():
            operation["responses"].pop("422", None)
            if path not in OPEN:
                operation["security"] = [{"bearer": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(name, None)
    return made
