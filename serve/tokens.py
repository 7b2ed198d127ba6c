"""Make, list and revoke tokens: `python -m serve.tokens new FILE --tenant acme --users alice,bob`.

A running service reads the file again as soon as it changes. A token is printed once, when it is made.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from perpcs.errors import ConfigError, PerpcsError
from serve.identity import ANYBODY, TokenLimits
from serve.token_file import TokenEntry, check, digest, new_secret, read_tokens, spoken, write_tokens

_DAY_S = 86_400


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a mistake, in one line."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except PerpcsError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.tokens",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="new | list | revoke")
    new = commands.add_parser(
        "new", help="make a token and print it", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    new.add_argument("file", metavar="FILE", help="file of tokens; made when there is none")
    new.add_argument("--tenant", default="default", help="whose users it may name")
    new.add_argument("--users", default=ANYBODY, help="names, separated by commas; *: all of the tenant")
    new.add_argument("--scopes", default="generate,assemble", help="of generate, assemble, admin, metrics")
    new.add_argument("--days", type=float, default=90.0, help="until it expires")
    new.add_argument("--rate", type=float, help="requests per second; else the service's")
    new.add_argument("--concurrent", type=int, help="requests at once; else the service's")
    new.add_argument("--max-tokens", type=int, help="longest answer; else the service's")
    new.set_defaults(run=_new)
    listing = commands.add_parser("list", help="what each token allows; secrets are not kept anywhere")
    listing.add_argument("file", metavar="FILE")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="take a token away, at once")
    revoke.add_argument("file", metavar="FILE")
    revoke.add_argument("id", metavar="ID", help="as `list` shows it")
    revoke.set_defaults(run=_revoke)
    return parser


def _new(arguments: argparse.Namespace) -> None:
    if not arguments.days > 0:
        raise ConfigError(f"--days: {arguments.days:g} is not above 0")
    for name in ("rate", "concurrent", "max_tokens"):
        if getattr(arguments, name) is not None and not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(arguments, name):g} is not above 0")
    entries = read_tokens(arguments.file) if Path(arguments.file).exists() else {}
    token_id, secret = new_secret()
    entry = TokenEntry(
        id=token_id,
        sha256=digest(secret),
        tenant=arguments.tenant,
        users=_words(arguments.users),
        scopes=_words(arguments.scopes),
        expires=int(time.time() + arguments.days * _DAY_S),
        limits=TokenLimits(arguments.rate, arguments.concurrent, arguments.max_tokens),
    )
    write_tokens(arguments.file, {**entries, token_id: check(entry, "token")})
    sys.stderr.write(f"token {token_id} added to {arguments.file}; it is shown this once:\n")
    sys.stdout.write(spoken(token_id, secret) + "\n")


def _list(arguments: argparse.Namespace) -> None:
    now = time.time()
    for entry in read_tokens(arguments.file).values():
        left = (entry.expires - now) / _DAY_S
        state = f"{left:.0f} days left" if left > 0 else "expired"
        users, scopes = ",".join(entry.users), ",".join(entry.scopes)
        sys.stdout.write(f"{entry.id}  tenant={entry.tenant}  users={users}  scopes={scopes}  {state}\n")


def _revoke(arguments: argparse.Namespace) -> None:
    entries = read_tokens(arguments.file)
    if arguments.id not in entries:
        raise ConfigError(f"{arguments.file}: no token {arguments.id!r}; `list` shows the ids")
    write_tokens(arguments.file, {key: entry for key, entry in entries.items() if key != arguments.id})
    sys.stderr.write(f"token {arguments.id} is revoked\n")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    sys.exit(main())
