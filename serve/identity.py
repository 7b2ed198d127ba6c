"""Who a request comes from: what its token says, and nothing else in the request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["generate", "assemble", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""generate: answers and the list of models. assemble: make, look at, export and forget assemblies. admin: list the
tenant's users. metrics: read /metrics."""
ANYBODY = "*"

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")


@dataclass(frozen=True)
class TokenLimits:
    """A token's own limits; None: the service's."""

    requests_per_second: float | None = None
    concurrent: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Identity:
    """What a valid token allows."""

    token_id: str
    tenant: str
    users: tuple[str, ...]
    """Names within the tenant, or `*`."""
    scopes: tuple[str, ...]
    limits: TokenLimits = field(default_factory=TokenLimits)

    def may(self, scope: Scope) -> bool:
        """Whether the token has a scope."""
        return scope in self.scopes

    def may_be(self, user: str) -> bool:
        """Whether the token may act for a user of its tenant. Does not depend on who exists."""
        return ANYBODY in self.users or user in self.users
