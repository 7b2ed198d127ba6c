"""From items and queries to token ids, with the history and the profile that may be shown.

prompt = [BOS] [profile line] [history lines, nearest last] instruction and input, answer marker
label  = " " + output, EOS

The last `max_label` tokens of the budget belong to the label whether it needs them or not: a prompt's length
must not tell how long its answer is, and the same prompt is used for training and for generation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from perpcs.config.schema import PromptConfig
from perpcs.errors import ConfigError, ModelError
from perpcs.population.profile import label_profile
from perpcs.population.retrieval import retrieve
from perpcs.population.tasks import ANSWER, Task
from perpcs.records import Item, Query, User

log = logging.getLogger(__name__)

MARKER = f"\n{ANSWER}"
_LEAST_TEXT = 4
"""A cut history line with fewer tokens of text than this is left out: it says nothing. Nor would such a question."""


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""


@dataclass(frozen=True)
class Context:
    """What a prompt shows of the user's visible past: `retrieve` BM25 items (RAG), a profile line (PAG)."""

    retrieve: int = 0
    profile: bool = False


PLAIN = Context()


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of its label (EOS included; empty when there is no gold)."""

    prompt: tuple[int, ...]
    label: tuple[int, ...]


@dataclass(frozen=True)
class PromptText:
    """The pieces of a prompt before they are cut to length."""

    profile: str
    """'' when none is shown."""
    history: tuple[tuple[str, str], ...]
    """(text, answer) of each shown item, nearest first."""
    question: str

    def __str__(self) -> str:
        lines = [self.profile] if self.profile else []
        lines += ["".join(parts) for parts in reversed(self.history)]
        return "\n".join([*lines, self.question]) + MARKER


class Prompter:
    """Turns one task's items and queries into token ids within `cfg.max_length`.

    `profile(items)` replaces the statistics line, e.g. by one that a model wrote. Raises ModelError when the
    tokenizer has no EOS, ConfigError when marker and instruction leave no room for what is asked.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        cfg: PromptConfig,
        *,
        profile: Callable[[Sequence[Item]], str] | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer: has no EOS token; set eos_token in its tokenizer_config.json")
        self.task, self.cfg = task, cfg
        self._tokenizer: Tokenizer = tokenizer
        self._profile = profile
        self._bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self._marker = self._ids(MARKER)
        self._room = cfg.max_length - cfg.max_label - len(self._bos) - len(self._marker)
        if self._room < 1:
            raise ConfigError(
                f"prompt.max_length={cfg.max_length}: leaves no room for a prompt beside "
                f"prompt.max_label={cfg.max_label}; raise it"
            )
        words = len(self._ids(task.prompt("", cfg.instruction)))
        if cfg.instruction == "full" and self._room < words + _LEAST_TEXT:
            raise ConfigError(
                f"prompt.max_length={cfg.max_length}: the full instruction of {task.name} has {words} tokens, which leaves "
                f"no room for what is asked; use at least {cfg.max_length - self._room + 2 * words}, or "
                "prompt.instruction=short"
            )

    def item(self, user: User, index: int, *, context: Context = PLAIN) -> Encoded | None:
        """Training example from history[index], which sees history[:index] only; None without an output."""
        variable, output = self.task.example(user.history[index])
        if not output:
            return None
        prompt = self.prompt(variable, user.history[:index], context=context, past=True)
        return Encoded(prompt, self.label(output))

    def query(self, user: User, query: Query, *, context: Context = PLAIN) -> Encoded:
        """A question with its gold as the label; sees what was visible when it was asked."""
        prompt = self.prompt(self.task.variable(query.input), user.history[: query.visible], context=context)
        return Encoded(prompt, self.label(query.gold) if query.gold.strip() else ())

    def history(self, user: User, *, context: Context = PLAIN, max_items: int = 0) -> list[Encoded]:
        """Examples of user.known, oldest first: the newest `max_items` (0: all), without empty outputs."""
        count = len(user.known)
        first = max(0, count - max_items) if max_items else 0
        found = [self.item(user, i, context=context) for i in range(first, count)]
        kept = [example for example in found if example is not None]
        if len(kept) < len(found):
            log.info("user %s: left out %d items without output", user.id, len(found) - len(kept))
        return kept

    def text(
        self, variable: str, visible: Sequence[Item] = (), *, context: Context = PLAIN, past: bool = False
    ) -> PromptText:
        """The pieces in words, for reports and serving. `visible`: what may be shown, oldest first."""
        near = retrieve(self.task, variable, visible, context.retrieve)
        return PromptText(
            profile=self._profile_line(visible) if context.profile or self.cfg.profile else "",
            history=tuple(self.task.history_parts(item) for item in near),
            question=self.task.prompt(variable, self.cfg.instruction, past=past),
        )

    def prompt(
        self, variable: str, visible: Sequence[Item] = (), *, context: Context = PLAIN, past: bool = False
    ) -> tuple[int, ...]:
        """Token ids, at most max_length - max_label: the input keeps its head, the marker is whole.

        Shown history and profile get what the input leaves and at least half: a long input would otherwise
        turn the RAG and PAG rows into the plain one without a word.
        """
        pieces = self.text(variable, visible, context=context, past=past)
        question = self._ids(pieces.question)
        shown = self._fit(pieces, max(self._room - len(question), self._room // 2))
        return self._bos + shown + question[: self._room - len(shown)] + self._marker

    def label(self, output: str) -> tuple[int, ...]:
        """Token ids of an output, cut to max_label with EOS always at the end."""
        return (
            *self._ids(" " + output.strip())[: self.cfg.max_label - 1],
            int(self._tokenizer.eos_token_id or 0),
        )

    def _profile_line(self, visible: Sequence[Item]) -> str:
        if self._profile is not None:
            return " ".join(self._profile(visible).split())
        return label_profile(self.task, visible, self.cfg.profile_labels)

    def _fit(self, pieces: PromptText, room: int) -> tuple[int, ...]:
        """Profile line, then whole items while they fit, nearest first; only the nearest may be cut."""
        profile = _cut(self._ids(pieces.profile), self._ids("\n"), room) if pieces.profile else ()
        room -= len(profile)
        lines: list[tuple[int, ...]] = []
        for text, answer in pieces.history:
            head, tail = self._ids(text), self._ids(f"{answer}\n")
            if len(head) + len(tail) > room and (lines or room < len(tail) + _LEAST_TEXT):
                break
            lines.append(_cut(head, tail, room))
            room -= len(lines[-1])
        return profile + tuple(token for line in reversed(lines) for token in line)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def _cut(head: tuple[int, ...], tail: tuple[int, ...], room: int) -> tuple[int, ...]:
    """head + tail within `room` tokens: the head loses its end, the tail is whole or nothing is."""
    return head[: room - len(tail)] + tail if len(tail) <= room else ()
