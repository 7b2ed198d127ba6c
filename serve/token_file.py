"""The file of tokens: who each belongs to, and a hash of its secret, never the secret.

A token is `ppcs_<id>_<secret>`; the secret has 256 random bits, so a plain SHA-256 of it tells nobody anything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perpcs.errors import ConfigError, StoreError
from serve.identity import ANYBODY, SCOPES, TENANT, USER, Identity, TokenLimits
from storage.files import read_json, write_json

_FORM = re.compile(r"ppcs_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"").hexdigest()
VERSION = 1


@dataclass(frozen=True)
class TokenEntry:
    """One token as the file has it."""

    id: str
    sha256: str = field(repr=False)
    tenant: str
    users: tuple[str, ...]
    scopes: tuple[str, ...]
    expires: int
    """Seconds since 1970."""
    limits: TokenLimits = field(default_factory=TokenLimits)

    def identity(self) -> Identity:
        """What it allows."""
        return Identity(self.id, self.tenant, self.users, self.scopes, self.limits)


def new_secret() -> tuple[str, str]:
    """(id, secret) of a new token."""
    return secrets.token_hex(6), secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What the file keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def spoken(token_id: str, secret: str) -> str:
    """The token as its owner sends it."""
    return f"ppcs_{token_id}_{secret}"


def check(entry: TokenEntry, where: str) -> TokenEntry:
    """Raises ConfigError for an entry that says something impossible."""
    if not TENANT.fullmatch(entry.tenant):
        raise ConfigError(f"{where}: tenant {entry.tenant!r}: use letters, digits, '.', '_' and '-'")
    for user in entry.users:
        if user != ANYBODY and not USER.fullmatch(user):
            raise ConfigError(
                f"{where}: user {user!r}: use letters, digits and . _ @ + -, or * for all of the tenant"
            )
    for scope in entry.scopes:
        if scope not in SCOPES:
            raise ConfigError(f"{where}: scope {scope!r} is not one of {', '.join(SCOPES)}")
    if not entry.scopes:
        raise ConfigError(f"{where}: has no scope; name some of {', '.join(SCOPES)}")
    return entry


def read_tokens(path: str) -> dict[str, TokenEntry]:
    """Entries by id. Raises ConfigError for a file that is missing or malformed; no secret is ever in a message."""
    if not Path(path).is_file():
        raise ConfigError(
            f"auth.tokens: {path}: no such file; make a token: python -m serve.tokens new {path}"
        )
    try:
        raw = read_json(path)
    except StoreError as error:
        raise ConfigError(f"auth.tokens: {error}") from error
    if not isinstance(raw, dict) or raw.get("version") != VERSION or not isinstance(raw.get("tokens"), list):
        raise ConfigError(f"auth.tokens: {path}: is no file of tokens of version {VERSION}")
    entries = [_entry(record, f"{path}: token number {i + 1}") for i, record in enumerate(raw["tokens"])]
    return {entry.id: entry for entry in entries}


def write_tokens(path: str, entries: Mapping[str, TokenEntry]) -> None:
    """Write the file whole or not at all, for its owner's eyes only. Raises StoreError when it cannot be written."""
    write_json(path, {"version": VERSION, "tokens": [asdict(entry) for entry in entries.values()]})
    Path(path).chmod(0o600)


def _entry(record: Any, where: str) -> TokenEntry:
    try:
        limits = TokenLimits(**(record.get("limits") or {}))
        known = {key: value for key, value in record.items() if key != "limits"}
        entry = TokenEntry(
            **known | {"users": tuple(known["users"]), "scopes": tuple(known["scopes"])}, limits=limits
        )
        if not isinstance(entry.expires, int) or not re.fullmatch("[0-9a-f]{64}", entry.sha256):
            raise TypeError
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"auth.tokens: {where}: is malformed; make it anew: python -m serve.tokens"
        ) from error
    return check(entry, f"auth.tokens: {where}")


class TokenBook:
    """The tokens that count now: the file is read again when it changes. Thread-safe."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError for a file that is missing or malformed."""
        self.path = path
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._entries = read_tokens(path)

    def find(self, token: str) -> Identity | None:
        """Whose token this is; None for one that is unknown, revoked or expired.

        A file that has become unreadable or malformed counts as empty: nobody gets in by damaging it.
        """
        self._reload()
        form = _FORM.fullmatch(token)
        entry = self._entries.get(form[1]) if form else None
        # Compared in constant time, and also when there is no such id.
        right = hmac.compare_digest(digest(form[2] if form else ""), entry.sha256 if entry else _NOBODY)
        if entry is None or not right or entry.expires <= time.time():
            return None
        return entry.identity()

    def _reload(self) -> None:
        with self._lock:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            try:
                self._entries = read_tokens(self.path)
            except ConfigError:
                self._entries = {}

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
