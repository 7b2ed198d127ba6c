"""An adapter on its way into a slot: read by a loader thread, checked, copied; whatever fails is one line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from perpcs.errors import ModelError, PerpcsError
from perpcs.generate.requests import UnknownUserError
from perpcs.lora.bank import Adapter, AdapterBank

AdapterOf = Callable[[str], Adapter]
"""User -> adapter in units of the bank's scale; KeyError for a user that has none. Called in loader threads."""


def read(adapter_of: AdapterOf, user: str, bank: AdapterBank) -> Adapter:
    """In a loader thread: the user's adapter, checked against the bank. Raises ModelError for one that does not fit."""
    adapter = adapter_of(user)
    try:
        bank.check(adapter)
    except (ValueError, RuntimeError) as err:
        raise _unfit(err) from err
    return adapter


def fill(bank: AdapterBank, slot: int, future: Future[Adapter]) -> PerpcsError | None:
    """Between two steps: copy what was read into a slot; the error when there is nothing that can be used."""
    error = _read_error(future)
    if error is not None:
        return error
    try:
        bank.load(slot, future.result(), checked=True)
    except (PerpcsError, KeyError, ValueError, RuntimeError) as err:
        return _unfit(err)
    return None


def _unfit(err: Exception) -> ModelError:
    reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
    return ModelError(f"adapter: does not fit this engine's bank ({reason}); make it for this base model")


def _read_error(future: Future[Adapter]) -> PerpcsError | None:
    err = future.exception()
    if err is None or isinstance(err, PerpcsError):
        return err
    if isinstance(err, KeyError):
        return UnknownUserError("user: has no adapter; assemble or train one first")
    # Whatever the reader said may hold paths or names; the kind of error is enough for the one who asked.
    return ModelError(f"adapter: could not be read ({type(err).__name__}); try again, then look at the store")
