"""Health, readiness and metrics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from perpcs.errors import PerpcsError
from serve.api.context import Hub, caller
from serve.api.problems import Problem
from serve.api.views import Health
from serve.identity import Identity

router = APIRouter(tags=["Operation"])


@router.get("/healthz", response_model=Health)
async def healthz() -> Any:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Health)
async def readyz(hub: Hub) -> Any:
    """An engine replica answers too."""
    try:
        await hub.ready()
    except (TimeoutError, PerpcsError) as error:
        raise Problem(503, "no engine answers yet", type="server_error", code="not_ready").retry_after(
            2
        ) from error
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(hub: Hub, who: Annotated[Identity, Depends(caller("metrics"))]) -> Response:
    """For a Prometheus scraper, with a token of scope `metrics`."""
    return Response(await hub.backend.exposition(), media_type="text/plain; version=0.0.4")
