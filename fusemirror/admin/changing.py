"""Changing settings: in the config file, where a person's comments stay, and in the mount that runs.

The mount is asked first: what it refuses does not get into the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit

from fusemirror import settings
from fusemirror.admin.client import ask
from fusemirror.errors import NotMounted, UsageError
from fusemirror.volume.durable import replace_file


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by key of words such as `io_timeout=5`; UsageError for what is none."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UsageError(f"`{assignment}` is not KEY=VALUE")
        try:
            values[key] = tomlkit.value(text).unwrap()
        except (tomlkit.exceptions.ParseError, ValueError):
            values[key] = text  # a word, or a size with its unit
    return values


def change(config: Path, runtime_dir: Path, name: str, assignments: Sequence[str]) -> dict[str, Any] | None:
    """Change settings of `name`, now and for later mounts. The status of the mount, None if there is none.

    UsageError, and nothing is changed, where a key or a value cannot be used; CommandFailed where the
    mount refuses. The file keeps its owner and its mode. OSError: the mount has changed, the file has not.
    """
    values = parse_assignments(assignments)
    settings.changed(settings.load(config), values)
    status = _tell_mount(runtime_dir, name, values)
    document = tomlkit.parse(config.read_text(encoding="utf-8"))
    document.update(values)
    replace_file(config, tomlkit.dumps(document).encode(), like=config.stat())
    return status


def _tell_mount(runtime_dir: Path, name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = ask(runtime_dir, name, "set", {"values": values})
    except NotMounted:
        return None
    return status
