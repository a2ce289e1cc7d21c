"""System calls that Python has no function for."""

import ctypes
import os
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

_AT_FDCWD = -100
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ
_libc = ctypes.CDLL(None, use_errno=True)


class _FileHandle(ctypes.Structure):
    _fields_ = [
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES),
    ]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) itself, without the writes that glibc puts in its place."""
    _checked(_libc.fallocate64(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def name_to_handle(path: Path) -> bytes:
    """A handle that names the file on its filesystem for ever."""
    handle, mount_id = _FileHandle(handle_bytes=_HANDLE_BYTES), ctypes.c_int()
    name = os.fsencode(path)
    _checked(_libc.name_to_handle_at(_AT_FDCWD, name, ctypes.byref(handle), ctypes.byref(mount_id), 0))
    return bytes(handle)


def open_by_handle(mountpoint: Path, handle: bytes, flags: int) -> int:
    """A descriptor of the file with this handle."""
    mount = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _checked(
            _libc.open_by_handle_at(mount, ctypes.byref(_FileHandle.from_buffer_copy(handle)), flags)
        )
    finally:
        os.close(mount)
