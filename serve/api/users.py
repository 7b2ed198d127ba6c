"""/v1/users: assemble a model from a history, look at it, take it away, forget it."""

from __future__ import annotations

import asyncio
import io
import logging
import zipfile
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from perpcs.assembly.assembler import FITTED
from perpcs.errors import PerpcsError
from perpcs.lora.peft_files import CONFIG, WEIGHTS
from serve.api.context import Hub, Service, UserName, caller, owner_of, unless_gone
from serve.api.forms import AssemblyForm
from serve.api.history import read_history
from serve.api.problems import Problem
from serve.api.views import Assembly, Forgotten, Ticket, UserList
from serve.identity import ANYBODY, Identity
from serve.messages import Order
from serve.recipes import Owner

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/users", tags=["Users"])
Assembling = Annotated[Identity, Depends(caller("assemble"))]
Detail = Annotated[
    Literal["pieces"] | None, Query(description="pieces: also what was chosen at each projection.")
]


@router.put(
    "/{user}/assembly",
    response_model=Assembly,
    response_model_exclude_unset=True,
    responses={202: {"model": Ticket, "description": "Under way; see Location."}},
)
async def assemble(
    user: UserName,
    form: AssemblyForm,
    request: Request,
    hub: Hub,
    who: Assembling,
    detail: Detail = None,
    wait: Annotated[bool, Query(description="false: answer 202 at once, with a ticket.")] = True,
    prefer: Annotated[str | None, Header(description="respond-async: as wait=false.")] = None,
) -> Any:
    """Assemble the user's model from a history, in place of the one before; the history is used and dropped. The
    fitted rules train the weights of the chosen pieces, no other rule trains anything."""
    order = await _order(owner_of(who, user), form, hub)
    if not wait or "respond-async" in (prefer or ""):
        return await _later(order, hub)
    work = hub.backend.assemble(order, detail=detail is not None)
    return await unless_gone(request, work, seconds=hub.config.limits.request_seconds)


@router.get("/{user}/assembly", response_model=Assembly, response_model_exclude_unset=True)
async def assembly(user: UserName, hub: Hub, who: Assembling, detail: Detail = None) -> Any:
    """What the user's model is made of."""
    return await hub.backend.assembly(owner_of(who, user), detail=detail is not None)


@router.delete("/{user}/assembly", response_model=Forgotten)
async def forget(user: UserName, hub: Hub, who: Assembling) -> Any:
    """Forget everything about the user. The answer is the same whether there was anything."""
    await hub.backend.forget(owner_of(who, user))
    return {"object": "user.forgotten", "user": user}


@router.get("/{user}/assembly/tickets/{ticket}", response_model=Ticket, response_model_exclude_unset=True)
async def ticket(
    user: UserName, ticket: Annotated[str, Path(max_length=64)], hub: Hub, who: Assembling
) -> Any:
    """How far an assembly is that nobody waits for."""
    found = await hub.backend.progress(owner_of(who, user), ticket)
    if found is None:
        raise Problem(404, "there is no such ticket", param="ticket", code="not_found")
    return found


@router.get(
    "/{user}/adapter",
    response_class=Response,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def adapter(user: UserName, hub: Hub, who: Assembling) -> Response:
    """The user's model as an adapter in PEFT's format: a zip archive of its two files."""
    files = await hub.backend.export(owner_of(who, user))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(CONFIG, files.config)
        archive.writestr(WEIGHTS, files.weights)
    named = {"Content-Disposition": f'attachment; filename="{user}.zip"'}
    return Response(sink.getvalue(), media_type="application/zip", headers=named)


@router.get("", response_model=UserList)
async def users(hub: Hub, who: Annotated[Identity, Depends(caller("admin"))]) -> Any:
    """The tenant's users with an assembled model, for its administrators."""
    there = await hub.backend.users(who.tenant)
    return {"object": "list", "data": [u for u in there if ANYBODY in who.users or u in who.users]}


async def _order(owner: Owner, form: AssemblyForm, hub: Service) -> Order:
    card, defaults = await hub.card(), hub.config.assembly
    top_k = form.top_k or defaults.top_k
    rule = form.rule or defaults.rule
    merge = form.merge or ("average" if rule == "gate_batches" else defaults.merge)
    if top_k > defaults.max_top_k:
        raise Problem(400, f"top_k: {top_k} is more than this service's {defaults.max_top_k}", param="top_k")
    if rule == "gate_batches" and merge == "concat":
        raise Problem(
            400, "merge: gate_batches joins pieces of many batches; use average or svd", param="merge"
        )
    if rule in FITTED and merge == "average":
        raise Problem(400, f"merge: {rule} fits weights of the exact sum; use svd or concat", param="merge")
    # Reading dates and fields of a long history takes a while.
    items = await asyncio.to_thread(read_history, form.history, card.task, hub.config.limits)
    return Order(owner, items, rule, merge, top_k)


async def _later(order: Order, hub: Service) -> JSONResponse:
    ticket = await hub.backend.ticket(order.owner)
    task = asyncio.create_task(_quietly(hub, order, ticket))
    hub.background.add(task)
    task.add_done_callback(hub.background.discard)
    where = f"/v1/users/{order.owner.user}/assembly/tickets/{ticket}"
    body = {"object": "assembly.ticket", "id": ticket, "status": "waiting"}
    return JSONResponse(body, 202, headers={"Location": where})


async def _quietly(hub: Service, order: Order, ticket: str) -> None:
    try:
        await hub.backend.assemble(order, ticket=ticket)
    except PerpcsError:
        pass  # the ticket says it, or is lost in a minute where no replica took it: then too the history is sent again
    except Exception as error:
        log.error("an assembly failed: %s", type(error).__name__)
