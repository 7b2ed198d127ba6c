"""Decides who a request is from, and whether its token is within its limits."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping

from perpcs.errors import ConfigError
from serve.config import ServeConfig
from serve.identity import ANYBODY, SCOPES, Identity
from serve.jwt_auth import JwtVerifier
from serve.throttle import Allowance
from serve.token_file import TokenBook
from storage.files import is_remote
from storage.layout import Paths

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
DEVELOPER = Identity("dev", "dev", (ANYBODY,), SCOPES)
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Doorman:
    """Made once per process of the HTTP layer."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises ConfigError for tokens or keys that cannot be read."""
        self.config = config
        auth = config.auth
        self.open = auth.open_on_loopback
        self._jwt = JwtVerifier(auth.jwt) if auth.jwt.key_file else None
        # With signed tokens there need be no file, unless one is named.
        needed = not self.open and (self._jwt is None or bool(auth.tokens))
        self._book = TokenBook(_token_file(config)) if needed else None
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
        # A page from elsewhere that is open in this machine's browser names itself.
        origin = headers.get("origin")
        names = [headers.get("host", ""), *([] if origin is None else [origin.partition("://")[2]])]
        return is_loopback(client or "") and all(_without_port(name) in _LOCAL_NAMES for name in names)

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


def _token_file(config: ServeConfig) -> str:
    path = config.auth.tokens or Paths.of(config.experiment).tokens
    if is_remote(path):
        raise ConfigError(
            f"auth.tokens: {path}: tokens are read from a file of this machine; make one (python -m serve.tokens new "
            "tokens.json) and name it"
        )
    return path


def _without_port(name: str) -> str:
    return name if name.endswith("]") else name.rsplit(":", 1)[0] if ":" in name else name


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(config: ServeConfig, hosts: Iterable[str]) -> None:
    """Raises ConfigError when the service would be open to others."""
    if config.auth.open_on_loopback:
        if os.environ.get(HA_PROXY) == "1":
            raise ConfigError(
                f"auth.open_on_loopback: with {HA_PROXY}=1 replicas listen on all interfaces; unset it, or make tokens"
            )
        for host in hosts:
            if not is_loopback(host):
                raise ConfigError(
                    f"auth.open_on_loopback: the service would listen on {host} without asking for tokens; "
                    "listen on 127.0.0.1, or make tokens (python -m serve.tokens new)"
                )
