"""Bodies of requests. Strict: what is not listed is refused by name, unless it says what happens anyway."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from perpcs.assembly.merge import Merge
from serve.config import RuleName

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "store": (False, None),
    "metadata": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "parallel_tool_calls": (True, False, None),
    "response_format": ({"type": "text"}, None),
    "service_tier": ("auto", "default", None),
    "modalities": (["text"], None),
}
"""Fields of OpenAI's that we do not have, with the values that ask for nothing."""


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can name half of a character ("\\ud800"); no tokenizer takes one.
        raise ValueError("has half a character (a lone surrogate)") from None
    return text


Written = Annotated[str, AfterValidator(_whole_characters)]
"""Text that a model may see."""


class Form(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Form):
    """Of a stream."""

    include_usage: bool = False


class Sampled(Form):
    """What completions and chat have in common; meanings as in OpenAI's reference."""

    model: str = Field(
        description="The base's name, or `user:<name>`.", max_length=256, examples=["quickstart"]
    )
    user: str | None = Field(None, description="Answer with this user's assembled model.", max_length=128)
    temperature: float | None = Field(None, ge=0, le=2, description="0: greedy. Default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: Written | Annotated[list[Written], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if not (k in _NEUTRAL and _is_one(v, _NEUTRAL[k]))}

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _is_one(value: Any, values: tuple[Any, ...]) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Words = Annotated[list[Written], Field(min_length=1)]


class CompletionForm(Sampled):
    """Body of POST /v1/completions."""

    prompt: Written | Words | Ids | Annotated[list[Ids], Field(min_length=1)] = Field(
        examples=["description: a ship"]
    )
    max_tokens: int | None = Field(None, ge=1, description="Default 16, as OpenAI's.")
    logprobs: int | None = Field(None, ge=0, le=5)


class TextPart(Form):
    """A part of a message."""

    type: Literal["text"]
    text: Written


class Message(Form):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Written | Annotated[list[TextPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The whole content."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatForm(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


HistoryItem = dict[Written, Written | int]
"""A past item: the fields of its task as texts, `date` and `id` where there are any."""


class AssemblyForm(Form):
    """Body of PUT /v1/users/{user}/assembly."""

    history: Annotated[list[HistoryItem], Field(min_length=1)] = Field(
        description="Past items, each with the fields of the served task (GET /v1/tasks). Used and dropped.",
        examples=[[{"description": "a ship that leaves the earth", "tag": "sci-fi"}]],
    )
    rule: RuleName | None = Field(None, description="How pieces are chosen.")
    merge: Merge | None = Field(None, description="How pieces become one adapter.")
    top_k: int | None = Field(None, ge=1, le=64, description="Most pieces per projection.")


class AnswerForm(Form):
    """Body of POST /v1/tasks/{task}/answer."""

    input: Written = Field(
        description="The question's text; published LaMP wording is recognised and taken off."
    )
    model: str | None = Field(None, max_length=256, description="As in completions; default: the base.")
    user: str | None = Field(None, max_length=128, description="Answer with this user's assembled model.")
    history: list[HistoryItem] = Field(
        default=[], description="Past items to show in the prompt; used and dropped."
    )
    retrieve: int = Field(0, ge=0, le=64, description="How many of them, nearest first (BM25).")
    profile: bool = Field(False, description="Also a line that says what is usual in them.")
