"""Bodies of answers, for the OpenAPI description; what is sent is made in `serve.api.shapes` and `serve.assembling`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serve.api.problems import ErrorAnswer


class View(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid")


class Usage(View):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(View):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(View):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(View):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(View):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(View):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(View):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(View):
    """A page of models."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool


class Pick(View):
    """A sharer's piece, or all of them, with its weight."""

    sharer: str
    weight: float


class ProjectionPicks(View):
    """What was chosen at one projection."""

    name: str
    layer: int
    kind: str
    picks: list[Pick]


class Assembly(View):
    """A user's recipe."""

    object: Literal["assembly"]
    user: str
    model: str
    version: str
    created: int
    rule: str
    merge: str
    top_k: int
    history_items: int
    pool_version: int
    bytes: int
    sharers: list[Pick]
    projections: list[ProjectionPicks] | None = None
    seconds: dict[str, float] | None = None


class Ticket(View):
    """State of an assembly that nobody waits for."""

    id: str
    object: Literal["assembly.ticket"]
    status: Literal["waiting", "running", "done", "failed", "lost"]
    version: str | None = None
    error: str | None = None


class Forgotten(View):
    """A user is forgotten, or was never there."""

    object: Literal["user.forgotten"]
    user: str


class UserList(View):
    """Users of the tenant with an assembled model."""

    object: Literal["list"]
    data: list[str]


class Answer(View):
    """Answer of POST /v1/tasks/{task}/answer."""

    object: Literal["task.answer"]
    task: str
    model: str
    answer: str
    usage: Usage


class Task(View):
    """A task that is served."""

    name: str
    fields: list[str]
    labels: list[str]


class TaskList(View):
    """The served tasks."""

    object: Literal["list"]
    data: list[Task]


class Health(View):
    """A word."""

    status: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "Malformed, or over a limit.",
        401: "No valid token.",
        403: "The token does not allow this.",
        404: "No such model, ticket or address.",
        405: "Not with this method.",
        409: "Assemble again.",
        413: "The body is too large.",
        429: "Over a limit of the token, or too busy; see Retry-After.",
        500: "A defect.",
        503: "Not ready; see Retry-After.",
        504: "Not done in time.",
    }.items()
}


def streams() -> dict[int | str, dict[str, Any]]:
    """The answer may also be a stream."""
    return {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
