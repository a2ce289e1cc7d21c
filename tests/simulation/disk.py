"""The disk of a simulated host: a process can be killed before any step by which it changes the disk.

A killed process writes nothing more, whatever of its code still runs. Which host's process a step
belongs to is known from the context that its tasks inherit.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from fusemirror.volume import durable, images, journal, regions
from fusemirror.volume.catalog import Catalog
from tests.simulation.process import current

_SYNCS = frozenset({"fdatasync", "fsync"})
_STEPS = frozenset(
    {"ftruncate", "mkdir", "pwrite", "rename", "replace", "truncate", "unlink", "utime", "write", *_SYNCS}
)
_MODULES: tuple[ModuleType, ...] = (durable, images, journal, regions)


class Killed(BaseException):
    """The process ended here."""


class Disk:
    """What one process does to its disk, from its start to its end."""

    def __init__(self, on_kill: Callable[[], None]) -> None:
        self.steps = 0
        self.syncs = 0
        self.dead = False
        self._kill_at: int | None = None
        self._on_kill = on_kill

    def kill_after(self, steps: int) -> None:
        """Let the process do so many steps more."""
        self._kill_at = self.steps + steps

    def kill_never(self) -> None:
        """Take `kill_after` back."""
        self._kill_at = None

    def step(self, name: str) -> None:
        """Called before the process changes its disk; `Killed` if it does not live to do that."""
        if not self.dead and self.steps == self._kill_at:
            self._on_kill()
        if self.dead:
            raise Killed(name)
        self.steps += 1
        self.syncs += name in _SYNCS


def step(name: str) -> None:
    """A step of whatever process the caller belongs to."""
    process = current.get()
    if process is not None:
        process.disk.step(name)


def no_sync(_descriptor: int) -> None:
    """Takes the place of fsync and fdatasync: no host loses its power here."""
    step("fsync")


class _CountedOs:
    """The module `os`, with a step before each call that changes the disk."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name in _SYNCS:
            value = no_sync
        elif name in _STEPS:
            value = _counted(name, value)
        setattr(self, name, value)
        return value


def _counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        step(name)
        return call(*args, **kwargs)

    return counted


@contextmanager
def counted_steps() -> Iterator[None]:
    """While this lasts, all volumes of this process count their steps."""
    counted_os = _CountedOs()
    with ExitStack() as stack:
        for module in _MODULES:
            stack.enter_context(mock.patch.object(module, "os", counted_os))
        stack.enter_context(mock.patch.object(Catalog, "commit", _counted("commit", Catalog.commit)))
        yield
