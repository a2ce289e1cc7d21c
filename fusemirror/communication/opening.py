"""Which communication volume a host uses: that of its settings, once no other holds requests."""

import logging
from collections.abc import Callable
from pathlib import Path

from fusemirror.communication import subvolume_volume
from fusemirror.communication.lmdb_volume import LmdbCommunicationVolume
from fusemirror.communication.memory_volume import MemoryCommunicationVolume
from fusemirror.communication.subvolume_volume import SubvolumeCommunicationVolume
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.printable import counted
from fusemirror.seams import Seams
from fusemirror.settings import Communication

log = logging.getLogger(__name__)

_DIRECTORIES = {Communication.LMDB: "communication", Communication.SUBVOLUME: "staged"}
"""Where in the volume's directory each durable kind keeps its requests."""


def open_kind(kind: Communication, directory: Path, capacity_bytes: int, seams: Seams) -> CommunicationVolume:
    """The communication volume of one kind, with the kept requests that it holds. DiskFailed, OSError."""
    if kind is Communication.MEMORY:
        return MemoryCommunicationVolume(capacity_bytes)
    place = directory / _DIRECTORIES[kind]
    if kind is Communication.LMDB:
        return LmdbCommunicationVolume(place, capacity_bytes, seams)
    return SubvolumeCommunicationVolume(place, capacity_bytes, seams)


def open_wanted(
    wanted: Communication, directory: Path, capacity_bytes: int, seams: Seams
) -> tuple[Communication, CommunicationVolume]:
    """That of the wanted kind; but one of another kind where an earlier mount left kept requests in it."""
    for kind, name in _DIRECTORIES.items():
        if kind is not wanted and (directory / name).is_dir():
            left = open_kind(kind, directory, capacity_bytes, seams)
            if len(left):
                count = counted(len(left), "request")
                log.info("communication = %s after the end of %s in %s", wanted, count, kind)
                return kind, left
            left.close()
    return wanted, open_kind(wanted, directory, capacity_bytes, seams)


def check_staged(directory: Path, *, repair: bool, report: Callable[[str], None]) -> bool:
    """Whether what is staged in files of the volume in `directory` can be read; with `repair` it can be then.

    See `subvolume_volume.check_staged`. Nobody has the volume open.
    """
    place = directory / _DIRECTORIES[Communication.SUBVOLUME]
    return subvolume_volume.check_staged(place, repair=repair, report=report)
