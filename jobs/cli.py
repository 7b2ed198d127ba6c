"""The command line that all stages share: `python -m jobs.<stage> CONFIG key=value…`.

Exit status 0: done. 1: a defect of ours, with traceback. 2: a mistake that the user can mend, one line on
standard error. 130: interrupted (Ctrl-C), 143: terminated; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.terminal import configure_logging
from perpcs.config import ExperimentConfig, Setting, describe, load_config
from perpcs.errors import PerpcsError
from storage.files import is_remote, read_text

DONE, DEFECT, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

Stage = Callable[[ExperimentConfig], Any]
Listing = tuple[str, Callable[[], str]]
"""(help text, function that makes the text to print)."""

log = logging.getLogger(__name__)


def stage_main(
    stage: Stage,
    *,
    description: str,
    listings: Mapping[str, Listing] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, load the config, run the stage; returns the exit status (see the module).

    description: the stage's docstring. listings: further flags that print something and end, by name, as
    `--keys` does. argv: arguments instead of the process's own.
    """

    def work() -> None:
        arguments = config_parser(description, listings or {}).parse_args(argv)
        stage(read_config(arguments.config, arguments.overrides))

    return guarded(work)


def guarded(work: Callable[[], int | None]) -> int:
    """Do a program's work; returns what it returns (None: 0), or the status of its end (see the module)."""
    configure_logging()
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        return work() or DONE
    except PerpcsError as error:
        return _say(_one_line(error), MISTAKE)
    except _Terminated:
        return _say("terminated; run the same command again to go on", TERMINATED)
    except KeyboardInterrupt:
        return _say("interrupted; run the same command again to go on", INTERRUPTED)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except Exception:
        log.exception("stopped by an error that is not a mistake of yours:")
        return DEFECT
    finally:
        signal.signal(signal.SIGTERM, before)


def read_config(path: str, overrides: Sequence[str]) -> ExperimentConfig:
    """The config of a file, or of an object such as an experiment's own config.yaml."""
    if not is_remote(path):
        return load_config(path, overrides)
    with tempfile.TemporaryDirectory(prefix="perpcs-") as folder:
        copy = Path(folder, path.rsplit("/", 1)[-1])
        copy.write_text(read_text(path), "utf-8")
        return load_config(copy, overrides)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as `ray job stop` sends it: unwinds like Ctrl-C, so that everything is closed on the way."""


def _on_sigterm(signum: int, frame: object) -> NoReturn:
    raise _Terminated


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    wanted = "name a config file, e.g. {} configs/quickstart.yaml"
    """What to say when an argument is missing; {} is the program."""

    def error(self, message: str) -> NoReturn:
        """Raises PerpcsError."""
        if message.startswith("the following arguments are required"):
            message = self.wanted.format(self.prog)
        raise PerpcsError(f"{self.prog}: {message}; see --help")


def config_parser(description: str, listings: Mapping[str, Listing]) -> argparse.ArgumentParser:
    """A config file and `key=value` settings; `listings` as for `stage_main`."""
    parser = Parser(
        prog=_program(),
        description=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from the file; key=value changes them for this run, e.g. seed=1 lora.rank=4.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that differ from the file's"
    )
    for name, (text, make) in {
        "keys": ("list every setting with its default and meaning", keys_text),
        **listings,
    }.items():
        parser.add_argument(f"--{name}", action=_Listing, make=make, nargs=0, help=text)
    return parser


class _Listing(argparse.Action):
    """A flag that prints a text and ends, like --help."""

    def __init__(self, *args: Any, make: Callable[[], str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make = make

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(self._make().rstrip() + "\n")
        parser.exit()


def _program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec else sys.argv[0]


def keys_text(settings: Iterable[Setting] | None = None) -> str:
    """Every setting: key, default, type and meaning, under the heading of its section."""
    lines = []
    for setting in settings or describe():
        if setting.type == "section":
            lines.append(f"\n{setting.key}: {setting.doc}")
            continue
        default = ",".join(setting.default) if isinstance(setting.default, tuple) else repr(setting.default)
        lines.append(f"  {setting.key}={default}  ({setting.type})")
        if setting.doc:
            lines.append(f"      {setting.doc}")
    return "\n".join(lines)


def _one_line(error: PerpcsError) -> str:
    return " ".join(str(error).split())


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"{text}\n")
    return status
