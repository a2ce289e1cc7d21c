"""Place: a directory of its own for a communication volume, on another disk than the subvolume.

A mark in it says whose requests it holds: no two filesystems share it, and where its disk is not mounted the
mount point is not taken for it. The volume's identity says where requests may be, so a directory that was in
use is never passed over for one that a setting names later.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from fusemirror.errors import RefusedForSafety
from fusemirror.limits import MARK_BYTES_MAX
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import replace_file
from fusemirror.volume.identity import Identity
from fusemirror.volume.private import make_private

MARK = "communication.json"
_OF_LMDB = ("data.mdb", "lock.mdb")


class _Mark(msgspec.Struct, frozen=True):
    """Whose requests are in the directory; identities in hexadecimal."""

    filesystem: str
    host: str
    name: str = ""  # of the filesystem, for people


def take_place(directory: Path, identity: Identity, *, was_in_use: bool) -> bool:
    """On return the directory is for the requests of this host alone, and nobody else gets at it; whether
    others could before. `was_in_use`: requests may be there, so its mark must be.

    RefusedForSafety says what is wrong with it, and nothing is changed; OSError.
    """
    if not os.path.lexists(directory):
        raise RefusedForSafety(_missing(directory, identity, was_in_use=was_in_use))
    was_open = make_private(directory)
    if not directory.is_dir():
        raise RefusedForSafety(f"communication_directory: {directory} is not a directory")
    wanted = _Mark(identity.filesystem, identity.host, identity.name)
    found = _read_mark(directory)
    if found is None:
        if was_in_use:
            raise RefusedForSafety(_missing(directory, identity, was_in_use=True))
        if any(path.name != "lost+found" for path in directory.iterdir()):
            raise RefusedForSafety(
                f"communication_directory: {directory} is not empty, and no communication volume; choose"
                " another"
            )
        replace_file(directory / MARK, msgspec.json.encode(wanted))
    elif not _is_of(found, identity):
        raise RefusedForSafety(
            f"communication_directory: {directory} holds the requests of another filesystem or host"
            f" ({found.name or 'its name is unknown'}); choose another"
        )
    for name in _OF_LMDB:
        if os.path.lexists(directory / name):
            make_private(directory / name)
    return was_open


def is_place_of(directory: Path, identity: Identity) -> bool:
    """Whether the directory is there, with this host's mark. RefusedForSafety, OSError: it cannot be read."""
    found = _read_mark(directory) if directory.is_dir() else None
    return found is not None and _is_of(found, identity)


def leave_place(directory: Path) -> None:
    """Nothing is staged there, and it is for anybody again. OSError."""
    for name in (*_OF_LMDB, MARK):  # the mark last: what is left of it still says whose it is
        with contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()


def _is_of(mark: _Mark, identity: Identity) -> bool:
    return (mark.filesystem, mark.host) == (identity.filesystem, identity.host)


def _read_mark(directory: Path) -> _Mark | None:
    try:
        return msgspec.json.decode(read_plain(directory / MARK, MARK_BYTES_MAX), type=_Mark)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedForSafety(
            f"communication_directory: {directory / MARK} cannot be read: {error}"
        ) from None


def _missing(directory: Path, identity: Identity, *, was_in_use: bool) -> str:
    if not was_in_use:
        return f"communication_directory: {directory} is not there; make it, or mount its disk"
    return (
        f"requests of {identity.name} may be staged in {directory}, and its disk is not there; mount that"
        " first, or give up what was staged there with `fusemirror fsck --repair`, if it is lost for good"
    )
