"""One request's choices through the engine: tokens in, events of text out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from perpcs.errors import DataError
from perpcs.generate.engine import Engine
from perpcs.generate.requests import Completion, Handle, Request
from perpcs.generate.sampling import Token
from perpcs.model.base import Base
from perpcs.seeds import seed_of
from serve.messages import Ask, Done, Event, Finish, Piece, Question, TokenText
from serve.metrics import METRICS
from serve.text import Reader, Writer

_Incoming = tuple[int, Token | Completion]


class Answers:
    """Submits every choice when its events are first asked for, and cancels what is left when that ends."""

    def __init__(self, engine: Engine, base: Base, reader: Reader, ask: Ask, *, slot: str | None) -> None:
        """slot: the name of the adapter to use; None: the base."""
        self.engine, self.base, self.reader, self.ask, self.slot = engine, base, reader, ask, slot
        self.begun = False
        """Something was given out."""

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Raises what `Engine.submit` and a failed request raise."""
        arrived: asyncio.Queue[_Incoming] = asyncio.Queue()
        started = time.perf_counter()
        requests = await asyncio.to_thread(self._requests)
        choices = [_Choice(i, len(r.prompt), self._writer()) for i, r in enumerate(requests)]
        handles: list[Handle] = []
        try:
            for i, request in enumerate(requests):
                handles.append(self.engine.submit(request, listener=_into(arrived, i)))
            left = len(choices)
            while left:
                events, ended = _take(choices, handles, await _some(arrived))
                left -= ended
                if events:
                    if not self.begun:
                        METRICS.first_token_seconds.observe(
                            time.perf_counter() - started, model=self._model()
                        )
                    self.begun = True
                    yield events
        finally:
            for handle in handles:
                handle.cancel()
            METRICS.tokens.add(sum(c.count for c in choices), model=self._model())
            METRICS.prompt_tokens.add(sum(c.prompt_tokens for c in choices), model=self._model())

    def _model(self) -> str:
        return "base" if self.slot is None else "user"

    def _writer(self) -> Writer:
        return Writer(self.base.tokenizer, self.ask.stop)

    def _requests(self) -> list[Request]:
        eos = _end_tokens(self.base)
        made = []
        for prompt in self.ask.prompts:
            ids = self.reader.ids(prompt)
            if not ids:
                raise DataError("prompt: is empty; give at least one character")
            most = self.engine.config.max_new
            if isinstance(prompt, Question):
                most = self.reader.prompter.cfg.max_label
            for i in range(self.ask.n):
                sampling = self.ask.sampling
                if i:
                    sampling = replace(sampling, seed=seed_of(sampling.seed, "choice", i))
                made.append(Request(ids, self.slot, self.ask.max_tokens or most, eos, sampling))
        return made


class _Choice:
    def __init__(self, index: int, prompt_tokens: int, writer: Writer) -> None:
        self.index, self.prompt_tokens, self.writer = index, prompt_tokens, writer
        self.count = 0
        self.done = False
        self.unsent: list[TokenText] = []

    def add(self, token: Token) -> Piece | None:
        self.count += 1
        if token.logprob is not None:
            top = tuple((self.writer.one(i), p) for i, p in token.top)
            self.unsent.append(TokenText(self.writer.one(token.id), token.logprob, top))
        return self._piece(self.writer.add(token.id))

    def end(self, finish: Finish) -> list[Event]:
        self.done = True
        last = self._piece(self.writer.end(), last=True)
        if self.writer.stopped:
            finish = "stop"
        done = Done(self.index, finish, self.prompt_tokens, self.count)
        return [done] if last is None else [last, done]

    def _piece(self, text: str, *, last: bool = False) -> Piece | None:
        # Tokens whose text is held back wait for it, so that text and log-probabilities stay together.
        if not text and not (last and self.unsent):
            return None
        tokens, self.unsent = tuple(self.unsent), []
        return Piece(self.index, text, tokens)


def _take(choices: list[_Choice], handles: list[Handle], arrived: list[_Incoming]) -> tuple[list[Event], int]:
    """Events of what arrived, pieces of one choice joined, and how many choices ended."""
    events: list[Event] = []
    ended = 0
    for i, item in arrived:
        choice = choices[i]
        if choice.done:
            continue
        if isinstance(item, Completion):
            if item.error is not None:
                raise item.error
            if item.finish == "cancelled":
                # Not by us: the replica is closing.
                raise asyncio.CancelledError
            events += choice.end("stop" if item.finish == "stop" else "length")
        else:
            piece = choice.add(item)
            if piece is not None:
                events.append(piece)
            if choice.writer.stopped:
                handles[i].cancel()
                events += choice.end("stop")
        ended += choice.done
    return events, ended


def _into(arrived: asyncio.Queue[_Incoming], index: int) -> Any:
    loop = asyncio.get_running_loop()
    return lambda event: loop.call_soon_threadsafe(arrived.put_nowait, (index, event))


async def _some(arrived: asyncio.Queue[_Incoming]) -> list[_Incoming]:
    found = [await arrived.get()]
    while not arrived.empty():
        found.append(arrived.get_nowait())
    return found


def _end_tokens(base: Base) -> frozenset[int]:
    """The tokenizer's end token, and those that the model's own settings name."""
    named = getattr(base.model.model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    return frozenset(int(i) for i in [*ids, base.tokenizer.eos_token_id] if i is not None)
