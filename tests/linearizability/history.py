"""A history: which operations were asked of the mirrored filesystem, when, and what was told.

Times are nanoseconds of CLOCK_MONOTONIC, which all processes of one machine share. On disk a history
is a text file with one operation per line, as JSON.
"""

import errno
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Operation:
    """`returned` is None where the outcome is not known: it took effect at any time since, or never."""

    process: str
    call: str
    arguments: tuple[Any, ...]
    invoked: int
    returned: int | None = None
    result: Any = None
    error: int = 0
    """The errno that was told, or 0."""

    def in_doubt(self) -> Self:
        return replace(self, returned=None, result=None, error=0)

    def __str__(self) -> str:
        words = ", ".join(map(repr, self.arguments))
        outcome = errno.errorcode.get(self.error, str(self.error)) if self.error else repr(self.result)
        outcome = "unknown" if self.returned is None else outcome
        return f"{self.process}: {self.call}({words}) -> {outcome}"


def save(history: Iterable[Operation], path: Path) -> None:
    path.write_text("".join(f"{json.dumps(asdict(operation))}\n" for operation in history))


def load(path: Path) -> list[Operation]:
    """`ValueError` or `TypeError` where a line is none."""
    return [parse(json.loads(line)) for line in path.read_text().splitlines()]


def parse(fields: dict[str, Any]) -> Operation:
    """An operation from what JSON made of it."""
    return Operation(**{key: _tuples(value) for key, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
