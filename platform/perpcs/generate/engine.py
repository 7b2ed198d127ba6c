"""The generation engine: many users' requests in one batch, each with its own adapter.

A request waits until a bank slot and room in the cache are free; a user whose adapter is not in the bank has it read
by a loader thread while the batch goes on, and only the copy into the slot happens between two steps. Prompts, answers
and user names never reach the log.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from perpcs.errors import ModelError, PerpcsError
from perpcs.generate.limits import EngineConfig, Stats
from perpcs.generate.loading import AdapterOf, fill, read
from perpcs.generate.packed import BASE
from perpcs.generate.paged import PagedRunner
from perpcs.generate.requests import BusyError, Finish, Handle, Listener, Request, check
from perpcs.generate.sampling import Token, choose
from perpcs.generate.slots import SlotTable
from perpcs.generate.waiting import Waiting
from perpcs.lora.bank import Adapter, AdapterBank
from perpcs.lora.inject import BankedModel

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    id: str
    request: Request
    handle: Handle
    slot: int = BASE
    count: int = 0
    held: int = 0
    """Cache tokens that it takes while it runs."""
    started: bool = False
    """Holds its part of the cache and a pin on its slot."""


class Engine:
    """Owns a model and a bank while it is open: nothing else may run the model. Use as a context manager."""

    def __init__(
        self,
        model: BankedModel,
        bank: AdapterBank,
        adapter_of: AdapterOf,
        *,
        config: EngineConfig | None = None,
    ) -> None:
        """Starts the thread. Raises ModelError when the model has no continuous batching."""
        self.config = config or EngineConfig()
        self._bank, self._adapter_of = bank, adapter_of
        self._runner = PagedRunner(model, self.config.pages, bank=bank)
        context = getattr(model.model.config, "max_position_embeddings", None) or self._runner.capacity
        self._room_of_one = min(int(context), self._runner.capacity)
        self._vocabulary = int(model.model.get_input_embeddings().num_embeddings)
        self._table = SlotTable(bank.slots)
        self._waiting: Waiting[_Entry] = Waiting(self.config.patience)
        self._active: dict[str, _Entry] = {}
        self._loading: dict[int, list[_Entry]] = {}
        self._entry_of: dict[Handle, _Entry] = {}
        self._reserved = self._requests = self._tokens = self._steps = self._failed_steps = self._users = 0
        self._todo: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = self._room = False
        self._pool = ThreadPoolExecutor(self.config.loaders, thread_name_prefix="perpcs-load")
        self._thread = threading.Thread(target=self._loop, name="perpcs-engine", daemon=True)
        self._thread.start()

    # Any thread

    def submit(self, request: Request, *, listener: Listener | None = None) -> Handle:
        """Queue a request. Raises DataError for one that can never run and BusyError when the queue is full."""
        check(request, max_new=self.config.max_new, room=self._room_of_one, vocabulary=self._vocabulary)
        handle = Handle(self._cancel, listener)
        with self._wake:
            if self._closing:
                raise BusyError("the engine is closed; start a new one")
            if len(self._entry_of) >= self.config.waiting + self.config.pages.requests:
                raise BusyError(f"{len(self._entry_of)} requests are waiting or running; try again later")
            entry = _Entry(f"r{self._requests}", request, handle)
            entry.held = self._runner.pages(len(request.prompt) + request.max_new)
            self._requests += 1
            self._entry_of[handle] = entry
            self._todo.append(lambda: self._waiting.push(entry))
            self._wake.notify()
        return handle

    def forget(self, user: str) -> None:
        """The user's adapter has changed or is gone: requests from now on load it anew, those under way end with the
        old one, and the old one is wiped after the last of them."""
        self._do(lambda: self._wipe(self._table.forget(user)))

    def stats(self) -> Stats:
        """Counters; cheap enough for every scrape."""
        table = self._table
        return Stats(
            requests=self._requests,
            tokens=self._tokens,
            steps=self._steps,
            failed_steps=self._failed_steps,
            active=len(self._active),
            waiting=len(self._entry_of) - len(self._active),
            users_in_batch=self._users,
            slot_hits=table.hits,
            slot_misses=table.misses,
            evictions=table.evictions,
        )

    @property
    def resident(self) -> tuple[str, ...]:
        """Users whose adapters are in the bank or on their way into it."""
        return self._table.resident

    @property
    def alive(self) -> bool:
        """The thread is running."""
        return self._thread.is_alive()

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Stop; requests under way are cancelled, or finished first with `drain`. The model is free afterwards."""
        with self._wake:
            self._closing = True
            if not drain:
                self._todo.append(self._cancel_all)
            self._wake.notify()
        self._thread.join(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cancel(self, handle: Handle) -> None:
        self._do(lambda: self._end(self._entry_of.get(handle), "cancelled"))

    def _do(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._todo.append(action)
            self._wake.notify()

    # The engine's thread

    def _loop(self) -> None:
        try:
            while self._next():
                self._room = False
                self._waiting.start(self._try_start)
                if self._active:
                    self._step()
        finally:
            with self._wake:
                self._closing = True
            self._cancel_all()
            self._runner.close()

    def _next(self) -> bool:
        """Do what was asked for; sleep while there is nothing to generate. False when it is time to end."""
        with self._wake:
            while not (self._todo or self._active or self._room or (self._closing and not self._entry_of)):
                self._wake.wait()
            todo, self._todo = self._todo, deque()
        for action in todo:
            action()
        return bool(self._entry_of) or not self._closing

    def _try_start(self, entry: _Entry) -> bool:
        if len(self._active) + sum(map(len, self._loading.values())) >= self.config.pages.requests:
            return False
        if self._reserved + entry.held > self._runner.capacity:
            return False
        if entry.request.user is None:
            self._reserve(entry)
            self._begin(entry)
            return True
        claim = self._table.claim(entry.request.user)
        if claim is None:
            return False
        entry.slot = claim.slot
        self._reserve(entry)
        if claim.fresh:
            self._loading[claim.slot] = []
            self._load(entry.request.user, claim.slot)
        if claim.slot in self._loading:
            self._loading[claim.slot].append(entry)
        else:
            self._begin(entry)
        return True

    def _reserve(self, entry: _Entry) -> None:
        entry.started = True
        self._reserved += entry.held

    def _load(self, user: str, slot: int) -> None:
        # Its own pin: were all its requests cancelled, the slot must still not go to somebody else before the load ends.
        self._table.hold(slot)
        self._pool.submit(read, self._adapter_of, user, self._bank).add_done_callback(
            lambda future: self._do(lambda: self._loaded(user, slot, future))
        )

    def _loaded(self, user: str, slot: int, future: Future[Adapter]) -> None:
        entries = self._loading.pop(slot)
        error = fill(self._bank, slot, future)
        if error is not None and self._table.slot_of(user) == slot:
            self._table.forget(user)
        for entry in entries:
            if error is None:
                self._begin(entry)
            else:
                self._end(entry, "failed", error)
        if self._table.release(slot):
            self._wipe(slot)

    def _begin(self, entry: _Entry) -> None:
        self._active[entry.id] = entry
        self._runner.add(entry.id, entry.request.prompt, max_new=entry.request.max_new, slot=entry.slot)

    def _step(self) -> None:
        tokens: dict[str, Token] = {}

        def pick(ids: list[str], logits: Tensor) -> list[int]:
            entries = [self._active[i] for i in ids]
            chosen = choose(logits, [e.request.sampling for e in entries], [e.count for e in entries])
            tokens.update(zip(ids, chosen, strict=True))
            return [t.id for t in chosen]

        self._users = len({e.request.user for e in self._active.values()})
        try:
            made = self._runner.step(pick)
        except Exception as err:
            self._fail_step(err)
            return
        self._steps += 1
        self._tokens += len(made)
        for request_id, _ in made:
            self._emit(self._active[request_id], tokens[request_id])

    def _emit(self, entry: _Entry, token: Token) -> None:
        if token.id in entry.request.eos:
            self._end(entry, "stop")
            return
        entry.count += 1
        entry.handle.put(token)
        if entry.count == entry.request.max_new:
            self._end(entry, "length")

    def _fail_step(self, err: Exception) -> None:
        # The message may quote tokens; type and place are enough to find the fault.
        place = traceback.extract_tb(err.__traceback__)[-1]
        log.error("a generation step failed: %s in %s:%s", type(err).__name__, place.name, place.lineno)
        self._failed_steps += 1
        self._runner.reset()
        for entry in list(self._active.values()):
            self._end(
                entry, "failed", ModelError(f"generate: the step failed with {type(err).__name__}; try again")
            )

    def _end(self, entry: _Entry | None, reason: Finish, error: PerpcsError | None = None) -> None:
        """Finish an entry wherever it is: waiting, loading or under way."""
        if entry is None or self._entry_of.pop(entry.handle, None) is None:
            return
        self._waiting.remove(entry)
        if self._active.pop(entry.id, None) is not None:
            self._runner.drop(entry.id)
        elif entry in self._loading.get(entry.slot, []):
            self._loading[entry.slot].remove(entry)
        if entry.started:
            # Somebody who waits may start now, even when nothing else is left to wake the loop.
            self._room = True
            self._reserved -= entry.held
            if entry.slot != BASE and self._table.release(entry.slot):
                self._wipe(entry.slot)
        entry.handle.finish(reason, error)

    def _wipe(self, slot: int | None) -> None:
        if slot is not None:
            self._bank.parameters.flat[slot].zero_()

    def _cancel_all(self) -> None:
        for entry in list(self._entry_of.values()):
            self._end(entry, "cancelled")


def answers(handles: Iterable[Handle]) -> list[list[int]]:
    """Token ids of several requests, in the order of their handles; waits for all."""
    return [handle.result().ids for handle in handles]
