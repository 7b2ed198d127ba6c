"""What the service refuses, besides the errors of the parts below. Each survives the way between processes."""

from __future__ import annotations

from perpcs.errors import ConfigError, DataError, PerpcsError
from perpcs.generate.requests import BusyError


class StaleRecipeError(PerpcsError, RuntimeError):
    """The assembled model can no longer be made: a sharer's pieces were erased, or the base is another one."""


class ForgottenError(PerpcsError, RuntimeError):
    """The user was forgotten while the assembly was under way."""


class ReplicaLostError(PerpcsError, RuntimeError):
    """The replica died with the request; nothing was lost but the request."""


READABLE = (ConfigError, DataError, BusyError, StaleRecipeError, ForgottenError)
"""Errors whose text speaks of the request alone, so that a client may see it."""
