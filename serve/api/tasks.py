"""/v1/tasks: ask the experiment's task; the prompt is built here."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from serve.api.asking import check_size
from serve.api.context import Hub, caller, named_owner
from serve.api.forms import AnswerForm
from serve.api.history import read_history
from serve.api.problems import Problem
from serve.api.shapes import Usage
from serve.api.streaming import whole
from serve.api.views import Answer, TaskList
from serve.identity import Identity
from serve.messages import Ask, Done, Question

router = APIRouter(prefix="/v1/tasks", tags=["Tasks"])
Generating = Annotated[Identity, Depends(caller("generate"))]


@router.get("", response_model=TaskList)
async def tasks(hub: Hub, who: Generating) -> Any:
    """The served task: the fields of its history items, and its labels where there are any."""
    card = await hub.card()
    data = [{"name": card.task, "fields": list(card.fields), "labels": list(card.labels)}]
    return {"object": "list", "data": data}


@router.post("/{task}/answer", response_model=Answer)
async def answer(
    task: Annotated[str, Path(max_length=64)],
    form: AnswerForm,
    request: Request,
    hub: Hub,
    who: Generating,
) -> Any:
    """Answer a question of the task, greedily, as the evaluation asks it."""
    card = await hub.card()
    if task.replace("_", "-") != card.task:
        raise Problem(404, f"this service answers {card.task}", param="task", code="not_found")
    owner = named_owner(who, form.model or card.name, form.user, card.name)
    if not form.input.strip():
        raise Problem(400, "input: is empty", param="input", code="invalid_value")
    if form.history and not (form.retrieve or form.profile):
        raise Problem(400, "history: nothing of it would be shown; set retrieve or profile", param="history")
    items = await asyncio.to_thread(read_history, form.history, card.task, hub.config.limits)
    question = Question(form.input, items, form.retrieve, form.profile)
    check_size((question,), hub)
    events = await whole(request, hub, Ask((question,), owner))
    usage = Usage(1)
    for event in events:
        if isinstance(event, Done):
            usage.add(event)
    text = "".join(event.text for event in events if not isinstance(event, Done))
    return {
        "object": "task.answer",
        "task": card.task,
        "model": card.name if owner is None else f"user:{owner.user}",
        "answer": text.strip(),
        "usage": usage.json(),
    }
