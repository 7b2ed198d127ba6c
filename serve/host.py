"""One engine replica: base, bank, engine, assembly and the shared store, behind an asynchronous interface.

The HTTP layer calls it directly under a test client, and through Ray Serve in production (`serve.app`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from perpcs.errors import ConfigError, DataError, StoreError
from perpcs.generate.engine import Engine
from perpcs.generate.requests import UnknownUserError
from perpcs.lora.bank import Adapter
from perpcs.lora.peft_export import PeftFiles, export_peft
from perpcs.records import Recipe
from serve.answers import Answers
from serve.assembling import AssemblyDesk, Parts, Room, settled, summary
from serve.config import ServeConfig
from serve.errors import READABLE
from serve.forgotten import Forgotten
from serve.loading import engine_limits, make_bank, open_experiment
from serve.messages import Ask, Event, ModelCard, Order, Summary
from serve.metrics import METRICS
from serve.pool import ServedPool, Sharing
from serve.recipes import Owner, ServedRecipes
from serve.text import Reader
from serve.tickets import Tickets

log = logging.getLogger(__name__)

_SEPARATOR = "\x1f"
"""Between owner and recipe version in the name of a slot."""


class Host:
    """Open it once per process; `close` it at the end."""

    def __init__(self, config: ServeConfig) -> None:
        """Loads everything. Raises ConfigError, StoreError, ModelError or MismatchError for what cannot be served."""
        self.config = config
        self._opened = opened = open_experiment(config)
        self._opened_at = int(time.time())
        folder = config.store.folder or opened.paths.served
        made = opened.experiment
        self._pool = ServedPool(
            opened.paths, opened.base.fingerprint,
            Sharing(made.assembly.sharers, made.assembly.sharing_ratio, made.seed),
            cache_bytes=config.engine.piece_cache_bytes,
        )  # fmt: skip
        self._recipes, self._forgotten = ServedRecipes(folder), Forgotten(folder)
        self._tickets = Tickets(folder)
        parts = Parts(opened, self._pool, self._recipes, self._forgotten)
        self._desk = AssemblyDesk(parts, waiting=config.assembly.waiting)
        bank = make_bank(self._pool.spec, opened.base.model, config)
        self._rank = bank.rank
        self._check_defaults(config)
        self.engine = Engine(opened.base.model, bank, self._adapter_of, config=engine_limits(config))
        self._reader = Reader(opened.base.tokenizer, opened.prompter)
        self._erased = self._pool.erased()
        self._stop = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_up, name="perpcs-serve-upkeep", daemon=True)
        self._upkeep.start()

    # What the HTTP layer calls

    async def card(self) -> ModelCard:
        """What is served."""
        task = self._opened.prompter.task
        return ModelCard(
            name=self._name,
            created=self._opened_at,
            task=task.name,
            fields=task.fields,
            labels=task.labels,
        )

    async def generate(self, ask: Ask) -> AsyncGenerator[list[Event]]:
        """Events of all choices as they come, several at a time where they came together.

        Raises UnknownUserError for an owner without a recipe, DataError for a prompt that cannot be answered,
        BusyError when the queue is full. Ending the iteration cancels what is under way.
        """
        for attempt in range(3):
            slot = None if ask.owner is None else await asyncio.to_thread(self._slot_name, ask.owner)
            answers = Answers(self.engine, self._opened.base, self._reader, ask, slot=slot)
            try:
                # Closed at once, not when somebody collects it: what is under way must be cancelled now.
                async with aclosing(answers.events()) as found:
                    async for events in found:
                        yield events
                return
            except UnknownUserError:
                # Replaced between the look at the store and the load: look again. Nothing was answered yet.
                if attempt == 2 or answers.begun:
                    raise

    async def assemble(self, order: Order, *, detail: bool = False, ticket: str = "") -> Summary:
        """Choose pieces for a history and store the recipe; the history is dropped. ticket: where to say how far it is.

        Raises DataError for a history that nothing can be assembled from, BusyError when too many wait, ForgottenError
        when the owner was forgotten meanwhile.
        """
        # Before the look at the ticket: whoever forgets the owner takes the ticket away first, then leaves a sign.
        sign = await asyncio.to_thread(self._forgotten.sign, order.owner)
        if not ticket:
            return await self._assemble(order, sign, detail=detail)
        await asyncio.to_thread(self._tickets.begin, order.owner, ticket)
        status, more = "failed", {"error": "it was cancelled"}
        try:
            found = await self._assemble(order, sign, detail=detail)
            status, more = "done", {"version": found["version"]}
            return found
        except Exception as error:
            # Our own errors are made to be read; of others the kind is enough.
            more = {"error": str(error) if isinstance(error, READABLE) else type(error).__name__}
            raise
        finally:
            await asyncio.to_thread(partial(self._tickets.end, order.owner, ticket, status, **more))

    async def _assemble(self, order: Order, sign: str, *, detail: bool) -> Summary:
        order = settled(order, self._opened.experiment.assembly, self._room(self.config))
        recipe, seconds = await asyncio.wrap_future(self._desk.submit(order, sign))
        for phase, value in seconds.items():
            METRICS.assembly_seconds.observe(value, phase=phase)
        found = await asyncio.to_thread(self._summary, recipe, order.owner, detail)
        return found | {"seconds": {phase: round(value, 4) for phase, value in seconds.items()}}

    async def ticket(self, owner: Owner) -> str:
        """Name an assembly that is about to be asked for."""
        return await asyncio.to_thread(self._tickets.new, owner)

    async def progress(self, owner: Owner, ticket: str) -> Summary | None:
        """How far that assembly is; None for a name that is not this owner's."""
        return await asyncio.to_thread(self._tickets.read, owner, ticket)

    async def assembly(self, owner: Owner, *, detail: bool = False) -> Summary:
        """The owner's recipe. Raises UnknownUserError when there is none."""
        recipe = await asyncio.to_thread(self._recipe, owner)
        return await asyncio.to_thread(self._summary, recipe, owner, detail)

    async def users(self, tenant: str) -> list[str]:
        """Users of a tenant with a recipe."""
        return await asyncio.to_thread(self._recipes.users, tenant)

    async def forget(self, owner: Owner) -> None:
        """Forget an owner: recipe rows and the files that held them, and what this replica has in memory."""
        await asyncio.to_thread(self._forget, owner)

    async def export(self, owner: Owner) -> PeftFiles:
        """The owner's adapter as PEFT files. Raises UnknownUserError or StaleRecipeError."""
        return await asyncio.to_thread(self._export, owner)

    async def exposition(self) -> bytes:
        """This process's metrics."""
        return METRICS.text()

    def check_health(self) -> None:
        """Raises RuntimeError when the engine's thread or the upkeep's has ended: only a new replica helps then."""
        if not self.engine.alive:
            raise RuntimeError("the engine has stopped")
        if not self._upkeep.is_alive():
            raise RuntimeError("the upkeep has stopped")

    def reconfigure(self, config: ServeConfig) -> None:
        """Take over what may change while it runs. What a request names nothing for is the HTTP layer's to say."""
        self.config = config
        self._desk.waiting = config.assembly.waiting

    def close(self) -> None:
        """End the threads; answers under way are cancelled."""
        self._stop.set()
        self._desk.close()
        self.engine.close(timeout=10)
        self._upkeep.join(10)

    # Threads

    def _room(self, config: ServeConfig) -> Room:
        return Room(config.assembly.max_top_k, self._rank, self._pool.spec.rank)

    def _check_defaults(self, config: ServeConfig) -> None:
        a = config.assembly
        merge = "average" if a.rule == "gate_batches" else a.merge
        plain = Order(Owner("", ""), (), a.rule, merge, a.top_k)
        try:
            settled(plain, self._opened.experiment.assembly, self._room(config))
        except DataError as error:
            raise ConfigError(f"assembly.{error}, or raise assembly.max_top_k or engine.rank") from error

    @property
    def _name(self) -> str:
        return self.config.model or self._opened.paths.root.rstrip("/").rpartition("/")[2]

    def _slot_name(self, owner: Owner) -> str:
        version = self._recipes.current(owner)
        if version is None:
            raise UnknownUserError("user: has no assembled model")
        return f"{owner.id}{_SEPARATOR}{version}"

    def _adapter_of(self, slot: str) -> Adapter:
        """In a loader thread. KeyError when that version is no longer the owner's."""
        owner, version = _owner_and_version(slot)
        started = time.perf_counter()
        recipe = self._recipes.get(owner)
        if recipe is None or recipe.extra["version"] != version:
            raise KeyError(slot)
        read = time.perf_counter()
        adapter = self._pool.adapter(recipe)
        METRICS.load_seconds.observe(read - started, phase="recipe")
        METRICS.load_seconds.observe(time.perf_counter() - read, phase="pieces")
        return adapter

    def _recipe(self, owner: Owner) -> Recipe:
        recipe = self._recipes.get(owner)
        if recipe is None:
            raise UnknownUserError("user: has no assembled model")
        return recipe

    def _summary(self, recipe: Recipe, owner: Owner, detail: bool) -> Summary:
        ids = self._pool.at(recipe.pool_version).ids
        # A sharer is a person; the place in the pool tells chosen ones apart without a name.
        named = self.config.assembly.sharer_names
        names = tuple(user_id if named else f"s{i}" for i, user_id in enumerate(ids))
        return summary(recipe, names, self._pool.spec.projections, owner=owner, detail=detail)

    def _export(self, owner: Owner) -> PeftFiles:
        spec = self._pool.spec
        adapter = self._pool.adapter(self._recipe(owner))
        return export_peft(
            adapter, scale=spec.alpha / spec.rank, base=self._name, fingerprint=spec.fingerprint
        )

    def _forget(self, owner: Owner) -> None:
        self._tickets.forget(owner)
        self._forgotten.mark(owner)
        self._recipes.erase(owner)
        self._drop_old_slots()

    def _drop_old_slots(self) -> None:
        """Wipe adapters of recipes that are no longer current, which could not be asked for but would stay in memory; after
        an erasure all, since some hold what was erased: they are made anew, or refused as stale."""
        if self._pool.erased() != self._erased:
            self._erased = self._pool.erased()
            for slot in self.engine.resident:
                self.engine.forget(slot)
        held = {slot: _owner_and_version(slot) for slot in self.engine.resident}
        current = self._recipes.all_current(owner for owner, _ in held.values())
        for slot, (owner, version) in held.items():
            if current[owner] != version:
                self.engine.forget(slot)

    def _keep_up(self) -> None:
        tidied = time.monotonic()
        while not self._stop.wait(self.config.store.poll_s):
            try:
                self._drop_old_slots()
                self._tickets.keep_alive()
                METRICS.engine(self.engine.stats(), self._desk.busy)
                if time.monotonic() - tidied > self.config.store.tidy_s:
                    tidied = time.monotonic()
                    self._recipes.tidy()
                    self._forgotten.tidy()
                    self._tickets.tidy()
            except StoreError as error:
                log.warning("upkeep put off: %s", error)
            except Exception as error:  # whatever it is, the next round may get past it
                log.error("upkeep put off: %s", type(error).__name__)


def _owner_and_version(slot: str) -> tuple[Owner, str]:
    name, _, version = slot.partition(_SEPARATOR)
    tenant, _, user = name.partition("/")
    return Owner(tenant, user), version
