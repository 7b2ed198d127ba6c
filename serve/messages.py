"""What passes between the HTTP layer and an engine replica: frozen values that survive the way between processes.

Whatever users wrote is left out of every repr, so that no log line can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from perpcs.errors import PerpcsError
from perpcs.generate.sampling import Sampling
from perpcs.records import Item
from serve.recipes import Owner

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Text:
    """A prompt as it stands."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class TokenIds:
    """A prompt in the base's own tokens."""

    ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Chat:
    """(role, content) of each message, oldest first."""

    messages: tuple[tuple[str, str], ...] = field(repr=False)


@dataclass(frozen=True)
class Question:
    """An input of the experiment's task; the prompt shows what is nearest in `history`, and a profile line of it."""

    input: str = field(repr=False)
    history: tuple[Item, ...] = field(default=(), repr=False)
    retrieve: int = 0
    profile: bool = False


Prompt = Text | TokenIds | Chat | Question


@dataclass(frozen=True)
class Ask:
    """Answers to generate: `n` for each prompt; choice i belongs to prompt i // n."""

    prompts: tuple[Prompt, ...]
    owner: Owner | None = None
    """Whose model; None: the base."""
    n: int = 1
    max_tokens: int | None = None
    """None: the task's longest answer for a Question, the service's limit otherwise."""
    stop: tuple[str, ...] = field(default=(), repr=False)
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class TokenText:
    """One token with its log-probability in nats, and the most likely ones at its place."""

    text: str = field(repr=False)
    logprob: float
    top: tuple[tuple[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Piece:
    """More text of one choice."""

    choice: int
    text: str = field(repr=False)
    tokens: tuple[TokenText, ...] = field(default=(), repr=False)
    """Empty unless log-probabilities were asked for."""


@dataclass(frozen=True)
class Done:
    """The end of one choice."""

    choice: int
    finish: Finish
    prompt_tokens: int
    completion_tokens: int


Event = Piece | Done


@dataclass(frozen=True)
class Order:
    """A history to assemble from, oldest item first."""

    owner: Owner
    items: tuple[Item, ...] = field(repr=False)
    rule: str
    merge: str
    top_k: int
    """Most pieces per projection; 0: as many as the rule chooses in the experiment."""


@dataclass(frozen=True)
class ModelCard:
    """What a replica serves."""

    name: str
    created: int
    task: str
    fields: tuple[str, ...]
    """Fields of a history item."""
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """An error of ours on its way to the HTTP layer, as an answer: were it raised on a replica, Ray would log a
    traceback for every ordinary 4xx."""

    error: PerpcsError


Summary = dict[str, Any]
"""An assembly as the API shows it (docs/http-api.md)."""
