"""The answers of `Operations`, in pyfuse3's types, as the kernel's protocol has them."""

import stat
from collections.abc import Callable, Coroutine
from typing import Any

import pyfuse3

from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, FuseReply, InHeader, Kstatfs

_DEVICE_BITS = 0xFFFFFFFF  # of a device number: what the protocol has room for, and all that Linux has
_TYPE_SHIFT = 12  # from the type in a mode to that of a directory's entry (readdir(3))

Handler = Callable[[InHeader, memoryview], Coroutine[Any, Any, FuseReply]]
"""Answers one kind of request. FUSEError. It copies first what it needs of the bytes after it has waited."""


def attr_of(entry: pyfuse3.EntryAttributes) -> tuple[int, ...]:
    """The fields of `codec.Attr`."""
    atime_s, atime_ns = divmod(entry.st_atime_ns, NS_PER_S)
    mtime_s, mtime_ns = divmod(entry.st_mtime_ns, NS_PER_S)
    ctime_s, ctime_ns = divmod(entry.st_ctime_ns, NS_PER_S)
    return (
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev & _DEVICE_BITS,
        entry.st_blksize,
        0,
    )


def entry_of(entry: pyfuse3.EntryAttributes) -> tuple[int, ...]:
    """The fields of `codec.EntryOut`, then those of `codec.Attr`."""
    return codec.entry_fields(attr_of(entry), entry.entry_timeout, entry.attr_timeout, entry.generation)


def open_flags_of(info: pyfuse3.FileInfo) -> int:
    flags = codec.FOPEN_DIRECT_IO if info.direct_io else 0
    if info.keep_cache:
        flags |= codec.FOPEN_KEEP_CACHE
    return flags | codec.FOPEN_NONSEEKABLE if info.nonseekable else flags


def statfs_of(found: pyfuse3.StatvfsData) -> Kstatfs:
    return Kstatfs(
        blocks=found.f_blocks,
        bfree=found.f_bfree,
        bavail=found.f_bavail,
        files=found.f_files,
        ffree=found.f_ffree,
        bsize=found.f_bsize,
        namelen=found.f_namemax,
        frsize=found.f_frsize,
    )


class Listing:
    """The names that one READDIRPLUS is answered with: pyfuse3's ReaddirToken, in our own session."""

    def __init__(self, size: int) -> None:
        self._room = size
        self._records: list[bytes] = []

    def add(self, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        """Whether there was room for it."""
        kind = stat.S_IFMT(entry.st_mode) >> _TYPE_SHIFT
        record = codec.directory_entry(name, entry_of(entry), next_id, kind)
        if len(record) > self._room:
            return False
        self._room -= len(record)
        self._records.append(record)
        return True

    @property
    def data(self) -> bytes:
        return b"".join(self._records)


def list_entry(
    token: "pyfuse3.ReaddirToken | Listing", name: bytes, entry: pyfuse3.EntryAttributes, next_id: int
) -> bool:
    """Put a name into the answer to a readdir; whether there was room for it."""
    if isinstance(token, Listing):
        return token.add(name, entry, next_id)
    return bool(pyfuse3.readdir_reply(token, name, entry, next_id))
