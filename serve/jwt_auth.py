"""Signed tokens (JWT) of an identity provider. Algorithm, key, audience and issuer are the service's settings; the
token's own header decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perpcs.errors import ConfigError
from serve.config import JwtConfig
from serve.identity import ANYBODY, SCOPES, TENANT, USER, Identity

LEEWAY_S = 5
LONGEST = 8192
"""Characters of a token; nothing longer is looked into."""


class JwtVerifier:
    """Claims: `sub`, `tenant`, `users` (a list of names, or "*"), `scope` (words), `exp`, `aud`."""

    def __init__(self, config: JwtConfig) -> None:
        """Raises ConfigError for a key that cannot be read, or one that does not fit the algorithm."""
        self.config = config
        try:
            self._key = Path(config.key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"auth.jwt.key_file: {config.key_file}: cannot be read; name a key file"
            ) from error
        self._check_key()

    def find(self, token: str) -> Identity | None:
        """What the token allows; None when anything about it is not right."""
        import jwt

        if len(token) > LONGEST:
            return None
        options: Any = {"require": ["exp", "aud", "sub", *(["iss"] if self.config.issuer else [])]}
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[self.config.algorithm], audience=self.config.audience,
                issuer=self.config.issuer or None, options=options, leeway=LEEWAY_S,
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        return _identity(claims)

    def _check_key(self) -> None:
        import jwt

        public = self._key.startswith("-----BEGIN PUBLIC KEY")
        if self.config.algorithm == "HS256":
            if self._key.startswith("-----BEGIN") or len(self._key) < 32:
                raise ConfigError("auth.jwt.key_file: HS256 needs a secret of at least 32 characters")
        elif not public:
            raise ConfigError(f"auth.jwt.key_file: {self.config.algorithm} needs a public key in PEM form")
        try:
            jwt.get_algorithm_by_name(self.config.algorithm).prepare_key(self._key)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise ConfigError(
                f"auth.jwt.key_file: {self.config.key_file}: is no key for {self.config.algorithm}; name another"
            ) from error


def _identity(claims: dict[str, Any]) -> Identity | None:
    tenant, users, scope = claims.get("tenant"), claims.get("users"), claims.get("scope")
    if users == ANYBODY:
        users = [ANYBODY]
    if not (isinstance(tenant, str) and TENANT.fullmatch(tenant) and isinstance(scope, str)):
        return None
    if not isinstance(users, list) or not all(
        isinstance(u, str) and (u == ANYBODY or USER.fullmatch(u)) for u in users
    ):
        return None
    scopes = tuple(word for word in scope.split() if word in SCOPES)
    return Identity(f"jwt:{tenant}:{claims['sub']}", tenant, tuple(users), scopes)
