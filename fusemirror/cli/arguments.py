"""What the commands share: places, names, and the one point where an error becomes a line and a code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from math import isnan
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from fusemirror import settings
from fusemirror.cli.completing import complete_name
from fusemirror.errors import FusemirrorError, PermissionRefused
from fusemirror.printable import printable
from fusemirror.settings import Settings


class Places:
    """Where configurations and sockets are, and whether a bug hunter wants tracebacks."""

    def __init__(self, config_dir: Path, runtime_dir: Path, *, debug: bool) -> None:
        self.config_dir = config_dir
        self.runtime_dir = runtime_dir
        self.debug = debug

    def load(self, name: str) -> Settings:
        """The settings of `name`; ConfigMissing, BadConfig."""
        return settings.load(settings.config_path(self.config_dir, name))

    def keys_dir(self, name: str) -> Path:
        """Where the keys of `name` are."""
        return self.config_dir / name


path_type = click.Path(readable=False, path_type=Path)
"""What may not be read is told by the command that reads it, with its own exit code. click would call it bad
usage, also where the command needs nothing of it."""

TIMEOUT_S_MAX = 1_000_000.0  # eleven days; poll(2) takes twenty-four


class _Seconds(click.FloatRange):
    """A time to wait that the system can be told; `nan` is in no range and out of none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        return self.fail(f"{value} is no number of seconds.", param, ctx) if isnan(seconds) else seconds


seconds_type = _Seconds(min=0, max=TIMEOUT_S_MAX)

pass_places = click.make_pass_decorator(Places)


def _remember_subject(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Errors from here on begin with the name that the command is about."""
    if value is not None:
        settings.config_path(Path(), value)
        set_subject(context, value)
    return value


def set_subject(context: click.Context, name: str) -> None:
    """What the command is about, for its messages."""
    context.find_root().meta["subject"] = name


name_argument = click.argument("name", callback=_remember_subject, shell_complete=complete_name)
optional_name_argument = click.argument(
    "name", required=False, callback=_remember_subject, shell_complete=complete_name
)


class Program(click.Group):
    """The command line as a whole: every way to fail ends here, in one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
                raise
            debug = isinstance(ctx.obj, Places) and ctx.obj.debug
            ctx.exit(report(error, ctx.meta.get("subject"), debug=debug))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Runs the command and exits with its code."""
        try:
            code = super().main(args, *rest, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = error.exit_code
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f"; see `{context.command_path} --help`" if context else ""
            say(error.format_message().rstrip(".") + hint)
            code = error.exit_code
        except click.Abort:
            say("interrupted")
            code = 130
        except OSError as error:  # of --help and --version, which are no commands
            code = report(error, None, debug=False)
        drop_unwritten()
        sys.exit(code if isinstance(code, int) else 0)


def prepare_process() -> None:
    """Begin a command: nothing that it makes is for others, its standard streams are there, and whoever ends
    it by a signal gets what Ctrl-C does: what it began is undone, and a mount process that it started ends.

    A stream that its caller closed is opened: else the next file gets its number, such as the lock of a
    volume, and whatever is written to that stream, or put in its place, hits the file.
    """
    os.umask(0o077)
    for ends in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ends) == signal.SIG_DFL:  # nohup(1) has SIGHUP ignored
            signal.signal(ends, _interrupt)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free: this one
            os.set_inheritable(null, True)
            setattr(sys, name, open(null, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.encoding != "utf-8":
            stream.reconfigure(errors="backslashreplace")  # a name of characters that a locale has not


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """As SIGINT would: trio has a handler of its own for that, which spares its inner workings."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def drop_unwritten() -> None:
    """Drop what a full disk, or a closed pipe, did not take: Python would try once more, complain, and exit
    with 120, which is no exit code of ours."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def say(message: str, subject: str | None = None) -> None:
    """One line on stderr, whatever the message holds of what users chose."""
    line = printable(" ".join(message.split()))
    _complain(f"fusemirror: {subject}: {line}" if subject else f"fusemirror: {line}")


def _complain(*lines: str) -> None:
    """Lines on stderr; where it takes none, the exit code is left to tell."""
    with suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr)


def tell(line: str, *, err: bool = False) -> None:
    """One line on stdout, or stderr: escaped too."""
    click.echo(printable(line), err=err)


def attempt(action: Callable[[], int], code_of: Callable[[Exception], int], *, debug: bool = False) -> int:
    """What `action` returns; where it fails, its error is reported and `code_of` decides the exit code."""
    try:
        return action()
    except Exception as error:
        report(error, None, debug=debug)
        return code_of(error)


def explain(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error, expected or not."""
    match error:
        case FusemirrorError():
            return str(error), error.exit_code
        case PermissionError():
            refused = PermissionRefused(f"{_text(error)}; run it as root, or as the owner of the files")
            return str(refused), refused.exit_code
        case OSError():
            return _text(error), 1
        case _:
            return f"internal error: {error!r}; please report it with the lines above", 1


def _text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def report(error: Exception, subject: str | None, *, debug: bool) -> int:
    """Say what went wrong, with a traceback for bugs or on `debug`; the exit code."""
    if debug or not isinstance(error, FusemirrorError | OSError):
        lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
        _complain(*map(printable, lines))
    message, code = explain(error)
    say(message, subject)
    return code
