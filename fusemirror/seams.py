"""Seams: the world as the product sees it, so that a simulation can stand in its place.

Time, randomness, threads, disk syncs and the network are reached only through trio or through one
`Seams` value, handed down from `daemon.py`. Durations come from `trio.current_time()`.
"""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from fusemirror.promise import Promise
from fusemirror.threads import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a function that blocks on a disk; on return it has ended, even when cancelled."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Awaitable[T]: ...


class BeginSync(Protocol):
    """Begins an fsync without a thread (`syncs.py`); None where one is needed."""

    def __call__(self, descriptor: int, *, data_only: bool) -> Promise[None] | None: ...


def needs_thread(descriptor: int, *, data_only: bool) -> None:
    """A `BeginSync` of a world in which none begins without a thread."""


@dataclass(frozen=True)
class Seams:
    """What the product needs of the world around it, besides trio's clock."""

    now_ns: Callable[[], int] = time.time_ns
    random_bytes: Callable[[int], bytes] = os.urandom
    run_blocking: RunBlocking = run_in_thread
    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    begin_sync: BeginSync = needs_thread
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
