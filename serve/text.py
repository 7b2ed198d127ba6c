"""From prompts to tokens, and from a stream of tokens to a stream of text that is never taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perpcs.errors import DataError
from perpcs.population.prompts import MARKER, Context, Prompter
from perpcs.population.retrieval import forget
from serve.messages import Chat, Prompt, Question, TokenIds

BROKEN = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character yet."""


class Reader:
    """Prompts of every kind as token ids."""

    def __init__(self, tokenizer: Any, prompter: Prompter) -> None:
        self.tokenizer, self.prompter = tokenizer, prompter
        self._bos = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Raises DataError for one that says nothing, or that the chat template refuses."""
        if isinstance(prompt, TokenIds):
            return prompt.ids
        if isinstance(prompt, Question):
            return self._question(prompt)
        return self._chat(prompt.messages) if isinstance(prompt, Chat) else self._plain(prompt.text)

    def _plain(self, text: str) -> tuple[int, ...]:
        return self._bos + tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        if not getattr(self.tokenizer, "chat_template", None):
            # As the base was trained to be asked: the texts, then the mark before an answer.
            return self._plain("\n".join(content for _, content in messages) + MARKER)
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program of the model's makers
            raise DataError(
                "messages: the model's chat template refuses them; check the order of roles"
            ) from error
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _question(self, question: Question) -> tuple[int, ...]:
        context = Context(retrieve=question.retrieve, profile=question.profile)
        try:
            variable = self.prompter.task.variable(question.input)
            return self.prompter.prompt(variable, question.history, context=context)
        finally:
            if question.history:
                forget()


class Writer:
    """One answer's text. Tokens go in; out comes text that is final: whole characters, and nothing that may turn out
    to be the beginning of a stop text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._read = self._shown = 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token makes final."""
        self._ids.append(token)
        # A token's text may depend on the one before it, so a window of both is decoded: with and without the new.
        before = self._decode(self._ids[self._read : self._shown])
        now = self._decode(self._ids[self._read :])
        if now.endswith(BROKEN):
            return ""
        self._read, self._shown = self._shown, len(self._ids)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """What was held back, when the answer ends by itself."""
        if self.stopped:
            return ""
        rest = self._decode(self._ids[self._read :])[len(self._decode(self._ids[self._read : self._shown])) :]
        text = self._release(rest)
        return text if self.stopped else text + self._held

    def one(self, token: int) -> str:
        """A single token's text, for lists of log-probabilities."""
        return str(self.tokenizer.decode([token]))

    def _release(self, text: str) -> str:
        held = self._held + text
        ends = [place for s in self.stop if (place := held.find(s)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return held[: min(ends)]
        keep = max((_overlap(held, s) for s in self.stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
