"""What programs asked of the mirrored filesystem, what they were told, and in which order.

This is the record that a run is judged by. It is kept apart from the product: an operation begins
before the product hears of it, and ends after the product has answered.
"""

import itertools
from dataclasses import dataclass
from typing import Any

DOUBT = "doubt"
"""The result of an operation that was never answered, or got a check report: done wholly, or not at all."""

_OBSERVERS = frozenset({"flush", "get", "listing", "lookup", "nlink", "read", "seek", "size"})

Target = tuple[str, int]
"""What an operation is about, by itself: ("names", 0), ("file", TAG), ("mode", TAG), ("xattr", TAG),
("flags", TAG), ("guarded", SPACE OF LOCKS)."""


@dataclass
class Operation:
    """`began` and `ended` are places in one order; `result` is a value, a negative errno, or DOUBT.

    `host` is where it was asked; from `seen` on the other host must see it too. With synchronous
    acknowledgement that is when it ended; with asynchronous (`early`), once a flush or a close covered it.
    """

    index: int
    client: str
    target: Target
    name: str
    arguments: tuple[Any, ...]
    began: int
    ended: int | None = None
    result: Any = DOUBT
    refused: bool = False
    host: str = ""
    early: bool = False
    seen: int | None = None
    failed_late: int | None = None
    """Where it was refused after it had been acknowledged: nothing of it is left, and its host said so."""
    shows_from: int | None = None
    """Where it looked at a name that its kernel keeps while a call there changed it: when that call began. It
    was shown what was before the call, whose effect link counts may have shown already.
    """

    @property
    def looks(self) -> bool:
        """It was to change nothing."""
        return self.name in _OBSERVERS

    @property
    def changes_nothing(self) -> bool:
        """It was answered, and it only looked or it failed."""
        failed = isinstance(self.result, int) and self.result < 0
        return self.ended is not None and (failed or self.looks)

    def __str__(self) -> str:
        arguments = ", ".join(short(argument) for argument in self.arguments)
        return f"#{self.index} {self.client} {self.target[0]} {self.target[1]}: {self.name}({arguments})"


def short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 24:
        return f"{value[:12]!r}..{len(value)}"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"  # in the same order in every process
    return repr(value)


class History:
    """All operations of a run. An operation's index is its tag: nothing else ever has the same."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.loss: Operation | None = None
        self._order = itertools.count()

    @property
    def next_index(self) -> int:
        return len(self.operations) + 1

    def begin(
        self, client: str, target: Target, name: str, *arguments: Any, host: str = "", early: bool = False
    ) -> Operation:
        began = next(self._order)
        operation = Operation(self.next_index, client, target, name, arguments, began, host=host, early=early)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, result: Any) -> None:
        operation.result = result
        if result != DOUBT:
            operation.ended = next(self._order)
            if not operation.early:
                operation.seen = operation.ended

    def now(self) -> int:
        """A place in the order."""
        return next(self._order)

    def lose_power(self) -> None:
        """From here on what was not durable may be gone."""
        self.loss = Operation(
            0, "the world", ("power", 0), "loss", (), next(self._order), next(self._order), ""
        )
        self.loss.seen = self.loss.ended

    def settle(self, host: str, target: Target | None, before: int) -> None:
        """What ended on a host before that place is from now on seen on the other too."""
        now = next(self._order)
        for operation in self.operations:
            about = target is None or operation.target == target
            if operation.host == host and about and operation.seen is None and operation.ended is not None:
                operation.seen = now if operation.ended < before else None

    def refuse(self, operation: Operation) -> None:
        """It was refused before anything was done: it has no effect, now or later."""
        operation.refused = True

    def fail_late(self, host: str, target: Target, offset: int, data: bytes) -> None:
        """A write acknowledged early, or in doubt, came to nothing: nobody sees it from here on. It may do so
        again after a kill, where the disk had not yet forgotten it."""
        now = next(self._order)
        writes = [
            operation
            for operation in self.operations
            if (operation.host, operation.target, operation.name) == (host, target, "write")
            and operation.arguments == (offset, data)
        ]
        assert writes, f"a write of {target} at {host} failed late that nobody had asked for"
        for operation in [each for each in writes if each.failed_late is None][-1:]:
            operation.failed_late = now

    def by_target(self) -> dict[Target, list[Operation]]:
        targets: dict[Target, list[Operation]] = {}
        for operation in self.operations:
            if operation.refused:
                continue
            targets.setdefault(operation.target, []).append(operation)
        return targets
