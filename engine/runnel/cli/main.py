"""The command `runnel`. Only the chosen subcommand's module is loaded."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Protocol, cast

from .. import __version__, shown
from ..errors import RunnelError, nearest

# Each command's module has HELP (one line), add_arguments(parser) and run(args) -> exit status. It imports
# heavy packages inside `run`: a device that serves never loads torch.
COMMANDS = {
    "export": "export",
    "verify": "verify",
    "inspect": "inspect",
    "run": "run",
    "plot": "plot",
    "check": "check",
    "serve": "serve",
    "feed": "feed",
    "bench": "bench",
    "top": "top",
    "keys": "keys",
    "plugins": "plugins",
    "demo": "demo",
}

_EXIT_ERROR = 2  # an error of runnel's own tree, and argparse's own status for a bad command line
_EXIT_INTERRUPTED = 130  # as a shell reports SIGINT
_EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE
_EXIT_TERMINATED = 143  # as a shell reports SIGTERM
_QUIET = (
    "print only results, warnings and errors"  # every command takes it, even one that prints nothing more
)
_TRACEBACK = "show where an error was raised"


class Command(Protocol):
    """The interface of a command's module."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status.

    An error of `RunnelError`'s tree is one line on stderr and status 2 (`--traceback` shows its origin). Any
    other exception is a fault in the program and keeps its traceback. SIGTERM raises SystemExit, so that
    files and streams are closed.
    """
    with shown.guarded():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        print(f"runnel: no command {name!r}{nearest(name, list(COMMANDS))}", file=sys.stderr)
        return _EXIT_ERROR
    commands = {key: _load(key) for key in ([name] if name else COMMANDS if _wants_help(words) else [])}
    parser = _parser(commands)
    args = parser.parse_args(words)
    if name is None:
        parser.print_help()
        return _EXIT_ERROR
    try:
        with _unwound_by_sigterm():
            status = commands[name].run(args)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
    except RunnelError as error:
        if args.traceback:
            traceback.print_exc()
        text = str(error).replace("\n", "\n  ")  # indent, so that no line looks like one of ours
        print(f"runnel: {text}", file=sys.stderr)
        return _EXIT_ERROR
    except KeyboardInterrupt as stop:
        print(", ".join(["runnel: stopped", *map(str, stop.args)]), file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone. The interpreter flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    except OSError as error:
        if args.traceback:
            traceback.print_exc()
        if error.errno != errno.ENOSPC:
            raise
        # A full disk is no fault of the program. What stdout still holds cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("runnel: no space left on the device that the output goes to", file=sys.stderr)
        return _EXIT_ERROR
    return status


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Within the context SIGTERM raises SystemExit, unless it has a handler or is ignored."""
    in_main = threading.current_thread() is threading.main_thread()  # only the main thread may set a handler
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(_EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _load(name: str) -> Command:
    return cast(Command, import_module(f".{COMMANDS[name]}", __package__))


def _wants_help(words: list[str]) -> bool:
    return not words or "-h" in words or "--help" in words


def _parser(commands: dict[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runnel",
        description="Recurrent models on live data: export, certify, run, serve.",
        epilog="`runnel COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"runnel {__version__}")
    parser.add_argument("--traceback", action="store_true", help=_TRACEBACK)
    choices = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command in commands.items():
        sub = choices.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # Accepted after the command too. SUPPRESS keeps it from resetting one given before.
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=_TRACEBACK)
        command.add_arguments(sub)
        with suppress(argparse.ArgumentError):  # most commands define it themselves
            sub.add_argument("-q", "--quiet", action="store_true", help=_QUIET)
    return parser


if __name__ == "__main__":
    sys.exit(main())
