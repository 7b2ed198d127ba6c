"""Look after a pool: `python -m jobs.pool COMMAND POOL …`, where POOL is a folder or an object store URI.

Every command is safe while stages read and write the pool. Recipes of any pool version keep resolving, except
for pieces of sharers who withdrew and were erased. `COMMAND --help` says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs.cli import DEFECT, DONE, INTERRUPTED, MISTAKE
from jobs.terminal import configure_logging
from perpcs.errors import PerpcsError, StoreError
from storage import describe, transfer, upkeep
from storage.mend import mend
from storage.migrate import migrate
from storage.pool import Pool
from storage.recipes import RecipeStore
from storage.verify import verify
from storage.withdraw import affected_recipes, erase, stale_recipes, withdraw

log = logging.getLogger(__name__)
Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 defect or damage found, 2 a mistake of the caller, 130
    Ctrl-C.
    """
    configure_logging()
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.run(arguments) or DONE)
    except PerpcsError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again\n")
        return INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except Exception:
        log.exception("stopped by an error that is not a mistake of yours:")
        return DEFECT


def show_stats(arguments: Arguments) -> None:
    """Sharers, tags, tables and bytes."""
    _print(describe.stats(Pool.open(arguments.pool)))


def check(arguments: Arguments) -> int:
    """Read every piece and compare it with its checksum; look for rows of erased sharers in every file.

    Exit status 1 when anything is damaged or left over.
    """
    found = verify(Pool.open(arguments.pool), index_folders=arguments.index)
    _print(found)
    return DEFECT if found.problems else DONE


def show_diff(arguments: Arguments) -> None:
    """Sharers added, removed and replaced between two versions or tags; B is the newest version by default."""
    _print(describe.diff(Pool.open(arguments.pool), _version(arguments.a), _version(arguments.b)))


def set_tag(arguments: Arguments) -> None:
    """Name a version (default: the newest); with --delete, forget the name."""
    pool = Pool.open(arguments.pool)
    if arguments.delete:
        describe.untag(pool, arguments.name)
    else:
        _print({"tag": arguments.name, "version": describe.tag(pool, arguments.name, arguments.version)})


def run_compact(arguments: Arguments) -> None:
    """Merge small files now. Commits do this as they go; after many it makes reads a little faster still."""
    tables = upkeep.compact(Pool.open(arguments.pool))
    _print({name: {"fragments_before": before, "after": after} for name, (before, after) in tables.items()})


def run_cleanup(arguments: Arguments) -> None:
    """Remove rows of unfinished commits, old files and strays that are older than --grace; erase the
    withdrawn.
    """
    pool = Pool.open(arguments.pool)
    erased = erase(pool, index_folders=arguments.index)
    cleaned = upkeep.cleanup(pool, grace_s=arguments.grace)
    _print({"erased": dataclasses.asdict(erased), "cleaned": dataclasses.asdict(cleaned)})
    if erased.found:
        raise StoreError(
            f"{erased.found[0]}: still holds bytes of an erased sharer; run clean-up again with --grace 0"
        )


def run_withdraw(arguments: Arguments) -> None:
    """Hide a sharer from new assemblies at once, and list the recipes that use their pieces."""
    pool = Pool.open(arguments.pool)
    recipes = RecipeStore(arguments.recipes).all() if arguments.recipes else []
    affected = affected_recipes(pool, recipes, [arguments.sharer])
    version = withdraw(pool, arguments.sharer, ahead=arguments.ahead)
    _print({"withdrawn": arguments.sharer, "version": version, "recipes": _names(affected)})


def show_stale(arguments: Arguments) -> None:
    """List the recipes that use pieces of sharers who have withdrawn; jobs.rebuild makes them anew."""
    found = stale_recipes(Pool.open(arguments.pool), RecipeStore(arguments.recipes).all())
    _print({"recipes": _names(found)})


def run_migrate(arguments: Arguments) -> None:
    """Bring a pool of an older release to this one's schema; run again after an interruption.

    Stop programs of the older release first.
    """
    before, now = migrate(arguments.pool)
    _print({"schema_version_before": before, "now": now})


def run_mend(arguments: Arguments) -> None:
    """Without any history: take the pieces of sharers who withdrew out of the recipes, and scale the others up.

    Such a recipe is not what assembly would choose now; its `extra` says "mended". With the histories at hand,
    python -m jobs.rebuild assembles anew. Recipes of which nothing would be left stay as they are, and are named.
    """
    pool, store = Pool.open(arguments.pool), RecipeStore(arguments.recipes)
    mended, empty = mend(pool, store.all())
    store.put(mended)
    _print({"mended": _names(mended), "assemble_anew": _names(empty)})


def run_export(arguments: Arguments) -> None:
    """Write a version as Parquet files to a new folder."""
    view = Pool.open(arguments.pool).view(_version(arguments.version))
    count = transfer.export_pool(view, arguments.folder)
    _print({"sharers": count, "folder": arguments.folder})


def run_import(arguments: Arguments) -> None:
    """Add the sharers of an export to a pool, which is made if there is none."""
    header = transfer.read_header(arguments.folder)
    pool = Pool.open_or_create(arguments.pool, spec=header.spec, dtype=header.dtype)
    _print({"added": transfer.import_pool(pool, arguments.folder), "version": pool.view().version})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage."""
        raise PerpcsError(f"{self.prog}: {message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m jobs.pool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Arguments], Any]) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        made = commands.add_parser(
            name, help=text.split("\n\n")[0].rstrip("."), description=inspect.cleandoc(text)
        )
        made.add_argument("pool", metavar="POOL", help="folder or URI, e.g. runs/quickstart/pool")
        made.set_defaults(run=run)
        return made

    def add_index(made: argparse.ArgumentParser) -> None:
        text = "folder with cached indexes, e.g. runs/quickstart/indexes; may be repeated"
        made.add_argument("--index", action="append", default=[], metavar="FOLDER", help=text)

    command("stats", show_stats)
    add_index(command("verify", check))
    made = command("diff", show_diff)
    made.add_argument("a", metavar="A", help="version or tag")
    made.add_argument("b", metavar="B", nargs="?", help="version or tag; default: the newest")
    made = command("tag", set_tag)
    made.add_argument("name", metavar="NAME")
    made.add_argument("--version", type=int, help="default: the newest")
    made.add_argument("--delete", action="store_true", help="forget the name; the version stays")
    command("migrate", run_migrate)
    command("compact", run_compact)
    made = command("cleanup", run_cleanup)
    made.add_argument("--grace", type=float, default=86_400.0, metavar="SECONDS", help="default: one day")
    add_index(made)
    made = command("withdraw", run_withdraw)
    made.add_argument("sharer", metavar="SHARER", help="the user's id")
    made.add_argument("--recipes", metavar="TABLE", help="e.g. runs/quickstart/recipes.lance")
    made.add_argument(
        "--ahead", action="store_true", help="also where they are no sharer yet: never train or take them"
    )
    made = command("stale", show_stale)
    made.add_argument("recipes", metavar="RECIPES", help="e.g. runs/quickstart/recipes.lance")
    made = command("mend", run_mend)
    made.add_argument("recipes", metavar="RECIPES", help="e.g. runs/quickstart/recipes.lance")
    made = command("export", run_export)
    made.add_argument("folder", metavar="FOLDER", help="a new local folder")
    made.add_argument("--version", help="version or tag; default: the newest")
    made = command("import", run_import)
    made.add_argument("folder", metavar="FOLDER", help="made by export")
    return parser


def _version(text: str | None) -> int | str | None:
    """A version, a tag, or nothing for the newest."""
    return int(text) if text and text.isdigit() else text


def _names(recipes: Sequence[Any]) -> list[dict[str, str]]:
    return [{"user": recipe.user_id, "method": recipe.method} for recipe in recipes]


def _print(value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
