"""The disk of a simulated host: a process can end before any step by which it changes the disk.

A process that has ended writes nothing more, whatever of its code still runs. A full disk refuses each step
that needs room, a broken one each step; a short one says that little more than its reserve is free. What is
left when the power goes is the matter of `power.py`, which hears of every sync.
Which host's process a step belongs to is known from the context that its tasks inherit.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import lmdb

from fusemirror.communication import subvolume_volume
from fusemirror.communication.lmdb_volume import LmdbCommunicationVolume
from fusemirror.errors import DiskFailed
from fusemirror.promise import Promise
from fusemirror.volume import (
    beneath,
    discarded,
    disk_limits,
    durable,
    identity,
    image_content,
    image_files,
    images,
    journal,
    open_images,
    recovery,
    regions,
    spares,
    unsynced,
)
from fusemirror.volume import check as check_module
from fusemirror.volume import volume as volume_module
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.health import disk_error
from tests.simulation.power import Surface
from tests.simulation.process import current

_SYNCS = frozenset({"fdatasync", "fsync"})
_OF_NAMES = frozenset({"link", "mkdir", "open", "rename", "replace", "rmtree", "unlink"})
_STEPS = frozenset(
    {"copy_file_range", "ftruncate", "pwrite", "truncate", "utime", "write", *_SYNCS, *_OF_NAMES}
)
_NEED_ROOM = frozenset({"commit", "copy_file_range", "link", "mkdir", "pwrite", "write"})
_ROOMY_BYTES = 1 << 40
_OF_IMAGES = (discarded, disk_limits, image_content, image_files, images, open_images, spares, unsynced)
_MODULES: tuple[ModuleType, ...] = (beneath, durable, *_OF_IMAGES, journal, regions, subvolume_volume)


class Killed(BaseException):
    """The process ended here."""


class Room:
    """Whether a host's disk has room, and works, over all lives of its process."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0
        self.free_bytes = _ROOMY_BYTES
        """What the disk says; to see how full it is takes more than that."""
        self._error = errno.ENOSPC
        self._steps_left: int | None = None

    def full_after(self, steps: int) -> None:
        """Be full after so many steps more, until `has_room`."""
        self._steps_left = steps

    def broken_after(self, steps: int) -> None:
        """Answer each step with EIO after so many steps more, until `has_room`."""
        self._steps_left, self._error = steps, errno.EIO

    def has_room(self) -> None:
        """The disk is as it was in the beginning."""
        self.full, self._steps_left, self._error = False, None, errno.ENOSPC
        self.free_bytes = _ROOMY_BYTES

    def step(self, name: str) -> None:
        """OSError for a step that needs room where there is none, and for every one of a broken disk."""
        if self._steps_left is not None:
            self._steps_left -= 1
            self.full = self._steps_left < 0
        if self.full and (name in _NEED_ROOM or self._error == errno.EIO):
            self.refused += 1
            raise OSError(self._error, os.strerror(self._error))


class Disk:
    """What one process does to its disk, from its start to its end. `surface` is None if power never goes."""

    def __init__(self, on_kill: Callable[[], None], room: Room, surface: Surface | None, boot: int) -> None:
        self.steps = 0
        self.syncs = 0
        self.dead = False
        self.room = room
        self.surface = surface
        self.boot = boot
        self._kill_at: int | None = None
        self._on_kill = on_kill

    def kill_after(self, steps: int) -> None:
        """Let the process do so many steps more."""
        self._kill_at = self.steps + steps

    def kill_never(self) -> None:
        """Take `kill_after` back."""
        self._kill_at = None

    def step(self, name: str) -> None:
        """Called before the process changes its disk. `Killed` if it does not live to do that; OSError."""
        if not self.dead and self.steps == self._kill_at:
            self._on_kill()
        if self.dead:
            raise Killed(name)
        self.steps += 1
        self.syncs += name in _SYNCS
        self.room.step(name)


def _disk() -> Disk | None:
    process = current.get()
    return None if process is None else process.disk


def step(name: str) -> None:
    """A step of whatever process the caller belongs to."""
    disk = _disk()
    if disk is not None:
        disk.step(name)


def _names_changed() -> None:
    disk = _disk()
    if disk is not None and disk.surface is not None and not disk.dead:
        disk.surface.names_changed()


def sync(descriptor: int) -> None:
    """Takes the place of fsync."""
    _sync(descriptor, times=True)


def sync_data(descriptor: int) -> None:
    """Takes the place of fdatasync."""
    _sync(descriptor, times=False)


def begin_sync(descriptor: int, *, data_only: bool) -> Promise[None]:
    """Takes the place of the kernel's own: it ends at once, as one that nothing comes between."""
    begun = Promise[None]()
    try:
        _sync(descriptor, times=not data_only)
    except OSError as error:
        begun.reject(error)
    else:
        begun.resolve(None)
    return begun


def _sync(descriptor: int, *, times: bool) -> None:
    step("fsync")
    disk = _disk()
    if disk is not None and disk.surface is not None:
        disk.surface.synced(descriptor, times=times)


def _sync_filesystem(_directory: object) -> None:
    step("fsync")
    disk = _disk()
    if disk is not None and disk.surface is not None:
        disk.surface.everything_synced()


def boot_id() -> str:
    """Takes the place of the kernel's: another one after each loss of power."""
    disk = _disk()
    return "world" if disk is None else f"boot {disk.boot}"


# --- putting them in place ----------------------------------------------------------------------------------


def roomy(_directory: Path) -> os.statvfs_result:
    """A disk of a terabyte, whatever this machine has: a seed runs alike everywhere."""
    disk = _disk()
    free = (_ROOMY_BYTES if disk is None else disk.room.free_bytes) // 4096
    return os.statvfs_result((4096, 4096, 1 << 28, free, free, 1 << 20, 1 << 20, 1 << 20, 0, 255))


class _CountedOs:
    """The module `os`, with a step before each call that changes the disk."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name == "fsync":
            value = sync
        elif name == "fdatasync":
            value = sync_data
        elif name == "open":
            value = _counted_open
        elif name in _STEPS:
            value = _counted(name, value)
        setattr(self, name, value)
        return value


def _counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        step(name)
        result = call(*args, **kwargs)
        if name in _OF_NAMES:
            _names_changed()
        return result

    return counted


def _remove_tree(path: Any, ignore_errors: bool = False, **kwargs: Any) -> None:
    """One that is to ignore errors leaves there what it cannot remove."""
    try:
        step("rmtree")
    except OSError:
        if ignore_errors:
            return
        raise
    _RMTREE(path, ignore_errors, **kwargs)
    _names_changed()


def _counted_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
    if not flags & os.O_CREAT:
        return os.open(path, flags, *args, **kwargs)
    step("open")
    descriptor = os.open(path, flags, *args, **kwargs)
    _names_changed()
    return descriptor


def _path_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if "w" not in mode:
        return _PATH_OPEN(path, mode, *args, **kwargs)
    step("write")  # what such a file gets is written at once, and never in part
    file = _PATH_OPEN(path, mode, *args, **kwargs)
    _names_changed()
    return file


_PATH_OPEN = Path.open
_RMTREE = shutil.rmtree


class _Panicked:
    """LMDB after an error of the disk where it wrote its meta page, and not a page of rows."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def begin(self, **_: Any) -> Any:
        raise lmdb.PanicError("mdb_txn_begin")


def _commit(method: Callable[..., None]) -> Callable[..., None]:
    """A commit of LMDB meets a full or broken disk as LMDB does: its transaction is gone."""

    def commit(catalog: Catalog, *args: Any) -> None:
        try:
            step("commit")
        except OSError as error:
            catalog.cache.flush()
            catalog._store.txn.abort()
            disk = _disk()
            if error.errno == errno.EIO and disk is not None and disk.steps % 2:
                catalog._store._environment = _Panicked(catalog._store._environment)
            raise disk_error(catalog._store._directory, error) from error
        method(catalog, *args)

    return commit


def _store(method: Callable[..., None]) -> Callable[..., None]:
    def store(volume: LmdbCommunicationVolume, *args: Any) -> None:
        try:
            step("store")
        except OSError as error:
            raise disk_error(volume._directory, error) from error
        except lmdb.Error as error:
            raise DiskFailed(volume._directory, error) from error
        method(volume, *args)

    return store


def _opened(owner: Any, name: str) -> Callable[..., None]:
    """LMDB makes its files by itself."""
    method = getattr(owner, name)

    def opened(*args: Any, **kwargs: Any) -> None:
        method(*args, **kwargs)
        _names_changed()

    return opened


@contextmanager
def counted_steps() -> Iterator[None]:
    """While this lasts, all volumes of this process count their steps."""
    counted_os = _CountedOs()
    replaced: list[tuple[Any, str, Any]] = [
        *((module, "os", counted_os) for module in _MODULES),
        *(
            (Path, name, _counted(name, getattr(Path, name)))
            for name in ("mkdir", "rename", "replace", "unlink")
        ),
        (Path, "open", _path_open),
        (shutil, "rmtree", _remove_tree),
        (unsynced, "sync_filesystem", _sync_filesystem),
        *(
            (module, name, _counted(step_name, getattr(durable, name)))
            for module in _OF_IMAGES
            for name, step_name in (("punch_hole", "punch"), ("allocate", "allocate"))
            if hasattr(module, name)
        ),
        *((module, "boot_id", boot_id) for module in (identity, recovery, subvolume_volume, volume_module)),
        (check_module, "is_readable", lambda _directory: True),  # a process of its own takes too long here
        (Catalog, "open", _opened(Catalog, "open")),
        (Catalog, "commit", _commit(Catalog.commit)),
        (Catalog, "commit_unfinished", _commit(Catalog.commit_unfinished)),
        (LmdbCommunicationVolume, "__init__", _opened(LmdbCommunicationVolume, "__init__")),
        (LmdbCommunicationVolume, "_store_blocking", _store(LmdbCommunicationVolume._store_blocking)),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
