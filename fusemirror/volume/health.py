"""Health: whether the disk of a volume still does what it is told.

A full disk is no illness: the change is refused, and the next may be taken. A disk that answers with
an error of its own (EIO, a filesystem that went read-only) is not written to again: what it holds can
no longer be told, so its host stops serving and the other one carries on.
"""

import errno
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import trio

from fusemirror.errors import DiskFailed, DiskFull, HostReplaced

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
P = ParamSpec("P")
T = TypeVar("T")

_BROKEN = frozenset(
    {
        errno.EIO,
        errno.EROFS,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOMEDIUM,
        errno.EBADMSG,
        errno.EUCLEAN,
        errno.EREMOTEIO,
        errno.ESHUTDOWN,
    }
)


def is_of_one_file(error: OSError) -> bool:
    """Whether an error of a disk says nothing of its other files: it is neither full nor broken."""
    return error.errno not in _FULL and error.errno not in _BROKEN


class Health:
    """Well until `note` is told of an error that only a broken disk gives; then never again."""

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why this host serves nothing any more."""
        self.failed = trio.Event()
        self.replaced = False
        """That is so because another host is in this one's place, and the disk is well."""

    def note(self, error: OSError | DiskFailed) -> None:
        """Take in an error that some use of the disk met."""
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno not in _BROKEN):
            return
        self.fail(str(error.args[1]) if isinstance(error, DiskFailed) else str(error))

    def replace(self, peer_name: str) -> None:
        """The peer, called so, has another host in this one's place: what the volume holds is old."""
        self.replaced = self.replaced or self.failure is None
        self.fail(str(HostReplaced(peer_name)))

    def fail(self, reason: str) -> None:
        """Something could not be written without which this host must not go on."""
        if self.failure is None:
            self.failure = reason
            self.failed.set()


def disk_error(directory: Path, error: OSError | DiskFailed) -> DiskFailed:
    """The error of a volume that stands for one of its disk, or is one already."""
    if isinstance(error, DiskFailed):
        return error
    return (DiskFull if error.errno in _FULL else DiskFailed)(directory, error.strerror or str(error))


def noting(method: Callable[P, T]) -> Callable[P, T]:
    """Wrap a method of something that has a `health`, which hears of every error of the disk."""

    @functools.wraps(method)
    def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (OSError, DiskFailed) as error:
            owner: Any = args[0]
            owner.health.note(error)
            raise

    return noted


def noting_async(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same for an async method."""

    @functools.wraps(method)
    async def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except (OSError, DiskFailed) as error:
            owner: Any = args[0]
            owner.health.note(error)
            raise

    return noted
