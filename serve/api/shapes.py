"""OpenAI's response objects, from events. A shape knows one endpoint's form; `serve.api.openai` sends them."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.messages import Done, Event, Piece, TokenText

Json = dict[str, Any]


@dataclass
class Usage:
    """Counts tokens of finished choices."""

    n: int
    prompt: dict[int, int] = field(default_factory=dict)
    completion: int = 0

    def add(self, done: Done) -> None:
        """One choice is done; a prompt with several choices counts once."""
        self.prompt[done.choice // self.n] = done.prompt_tokens
        self.completion += done.completion_tokens

    def json(self) -> Json:
        """As OpenAI's."""
        prompt = sum(self.prompt.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
        }


class Shape(ABC):
    """What completions and chat have in common."""

    prefix, whole, part = "", "", ""

    def __init__(self, model: str, *, logprobs: bool) -> None:
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def answer(self, events: Iterable[Event], n: int) -> Json:
        """The whole answer, from all events."""
        usage, pieces, finish = Usage(n), dict[int, list[Piece]](), dict[int, str]()
        for event in events:
            if isinstance(event, Done):
                usage.add(event)
                finish[event.choice] = event.finish
            else:
                pieces.setdefault(event.choice, []).append(event)
        choices = [self._choice(i, pieces.get(i, []), finish[i]) for i in sorted(finish)]
        return {**self.head, "object": self.whole, "choices": choices, "usage": usage.json()}

    def chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        """One object of a stream."""
        return {**self.head, "object": self.part, "choices": choices, **({"usage": usage} if usage else {})}

    def first(self, choice: int) -> list[Json]:
        """What a stream begins a choice with."""
        return []

    @abstractmethod
    def delta(self, event: Event) -> Json:
        """The choice object of a stream for one event."""

    @abstractmethod
    def _choice(self, index: int, pieces: Sequence[Piece], finish: str) -> Json: ...


class CompletionShape(Shape):
    """`text_completion` objects."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def delta(self, event: Event) -> Json:
        """See `Shape`."""
        if isinstance(event, Done):
            return {"index": event.choice, "text": "", "logprobs": None, "finish_reason": event.finish}
        return {
            "index": event.choice,
            "text": event.text,
            "logprobs": self._logprobs(event.choice, event.tokens),
            "finish_reason": None,
        }

    def _choice(self, index: int, pieces: Sequence[Piece], finish: str) -> Json:
        tokens = [token for piece in pieces for token in piece.tokens]
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[TokenText]) -> Json | None:
        if not self.logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_by_text(token.top) for token in tokens],
            "text_offset": offsets,
        }


def _by_text(top: Sequence[tuple[str, float]]) -> dict[str, float]:
    """As this form has it; of several tokens with the same text (parts of a character) the likeliest."""
    found: dict[str, float] = {}
    for text, logprob in top:
        found[text] = max(logprob, found.get(text, logprob))
    return found


class ChatShape(Shape):
    """`chat.completion` and `chat.completion.chunk` objects."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, choice: int) -> list[Json]:
        """See `Shape`."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}]

    def delta(self, event: Event) -> Json:
        """See `Shape`."""
        if isinstance(event, Done):
            return {"index": event.choice, "delta": {}, "logprobs": None, "finish_reason": event.finish}
        return {
            "index": event.choice,
            "delta": {"content": event.text},
            "logprobs": self._logprobs(event.tokens),
            "finish_reason": None,
        }

    def _choice(self, index: int, pieces: Sequence[Piece], finish: str) -> Json:
        tokens = [token for piece in pieces for token in piece.tokens]
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": finish,
        }

    def _logprobs(self, tokens: Sequence[TokenText]) -> Json | None:
        if not self.logprobs:
            return None
        return {"content": [_chat_token(token) for token in tokens], "refusal": None}


def _chat_token(token: TokenText) -> Json:
    top = [_plain_token(text, logprob) for text, logprob in token.top]
    return {**_plain_token(token.text, token.logprob), "top_logprobs": top}


def _plain_token(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
