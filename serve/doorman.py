"""Decides who a request is from, and whether its token is within its limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from perpcs.errors import ConfigError
from serve.config import ServeConfig
from serve.identity import ANYBODY, SCOPES, Identity
from serve.jwt_auth import JwtVerifier
from serve.throttle import Allowance
from serve.token_file import TokenBook
from storage.layout import Paths

DEVELOPER = Identity("dev", "dev", (ANYBODY,), SCOPES)
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "testserver")


class Doorman:
    """Made once per process of the HTTP layer."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises ConfigError for tokens or keys that cannot be read."""
        self.config = config
        auth = config.auth
        self.open = auth.open_on_loopback
        self._jwt = JwtVerifier(auth.jwt) if auth.jwt.key_file else None
        path = auth.tokens or Paths.of(config.experiment).tokens
        # With signed tokens there need be no file, unless one is named.
        needed = not self.open and (self._jwt is None or bool(auth.tokens))
        self._book = TokenBook(path) if needed else None
        if self.open and self._jwt is not None:
            raise ConfigError("auth.open_on_loopback: signed tokens are configured too; choose one")

    def identify(self, authorization: str | None) -> Identity | None:
        """Whose request it is, by its Authorization header alone; None: nobody's."""
        if self.open:
            return DEVELOPER
        kind, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            return None
        if self._book is not None and token.startswith("ppcs_"):
            return self._book.find(token)
        return self._jwt.find(token) if self._jwt is not None else None

    def lets_in(self, client: str | None, headers: Mapping[str, str]) -> bool:
        """Without tokens, only this machine is answered: no forwarded request, and no name that a page elsewhere may
        have given this address."""
        if not self.open:
            return True
        if any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
            return False
        name = headers.get("host", "")
        bare = name if name.endswith("]") else name.rsplit(":", 1)[0] if ":" in name else name
        return is_loopback(client or "") and bare in _LOCAL_NAMES

    def allowance(self, identity: Identity) -> Allowance:
        """The token's own limits, or the service's; shared out among the replicas of the HTTP layer."""
        limits, own, share = self.config.limits, identity.limits, self.config.replicas.ingress
        rate = own.requests_per_second or limits.requests_per_second
        burst = max(rate, limits.burst) if own.requests_per_second is None else max(rate, 1.0)
        concurrent = own.concurrent or limits.concurrent
        return Allowance(rate / share, max(burst / share, 1.0), max(1, -(-concurrent // share)))

    def max_tokens(self, identity: Identity) -> int:
        """Longest answer that the token may ask for."""
        most = self.config.limits.max_tokens
        return min(most, identity.limits.max_tokens or most)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host in ("localhost", "testclient"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(config: ServeConfig, hosts: Iterable[str]) -> None:
    """Raises ConfigError when the service would be open to others."""
    if config.auth.open_on_loopback:
        for host in hosts:
            if not is_loopback(host):
                raise ConfigError(
                    f"auth.open_on_loopback: the service would listen on {host} without asking for tokens; "
                    "listen on 127.0.0.1, or make tokens (python -m serve.tokens new)"
                )
