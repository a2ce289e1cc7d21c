"""Changing settings: in the config file, where a person's comments stay, and in the mount that runs.

The file is written first, so that one that cannot be written changes nothing; where the mount refuses the
values, the file is put back as it was.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit

from fusemirror import settings
from fusemirror.admin.client import ask
from fusemirror.errors import NotMounted, UsageError
from fusemirror.volume.durable import replace_file

SILENCE_TIMEOUT_S = 120.0
"""The backup asks the primary for another access, and gives up after its `io_timeout`."""

LISTS = ("listen", "peer")
"""Keys that may be given again for a further value."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by key of words such as `io_timeout=5`; UsageError for what is none."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UsageError(f"`{assignment}` is not KEY=VALUE")
        try:
            value = tomlkit.value(text).unwrap()
        except (tomlkit.exceptions.ParseError, ValueError):
            value = text  # a word, or a size with its unit
        values[key] = [*_listed(values[key]), value] if key in LISTS and key in values else value
    return values


def change(config: Path, runtime_dir: Path, name: str, assignments: Sequence[str]) -> dict[str, Any] | None:
    """Change settings of `name`, now and for later mounts. The status of the mount, None if there is none.

    UsageError where a key or a value cannot be used, CommandFailed where the mount refuses, OSError where the
    file cannot be written: nothing is changed then. The file keeps its owner and its mode.
    """
    values = parse_assignments(assignments)
    settings.changed(settings.load(config), values)
    with ExitStack() as undoing:
        undoing.callback(write_settings(config, values))
        status = _tell_mount(runtime_dir, name, values)
        undoing.pop_all()
    return status


def write_settings(config: Path, values: dict[str, Any]) -> Callable[[], None]:
    """Put values, which were checked, into the file; it keeps its owner and its mode, and what else it says.

    What undoes that. OSError: nothing was changed.
    """
    with _alone(config):
        before, owner = config.read_bytes(), config.stat()
        document = tomlkit.parse(before.decode())
        document.update(values)
        replace_file(config, tomlkit.dumps(document).encode(), like=owner)
    return partial(replace_file, config, before, like=owner)


@contextmanager
def _alone(config: Path) -> Iterator[None]:
    """While this lasts nobody else changes the file, whose changes would be lost. OSError."""
    while True:
        with config.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), config.stat()):  # else another has replaced it
                yield
                return


def _tell_mount(runtime_dir: Path, name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = ask(
            runtime_dir, name, "set", {"values": values}, timeout_s=SILENCE_TIMEOUT_S
        )
    except NotMounted:
        return None
    return status
