"""Which communication volume a host uses: that of its settings, once no other holds requests."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fusemirror.communication import subvolume_volume
from fusemirror.communication.lmdb_volume import LmdbCommunicationVolume
from fusemirror.communication.memory_volume import MemoryCommunicationVolume
from fusemirror.communication.place import is_place_of, leave_place, take_place
from fusemirror.communication.subvolume_volume import SubvolumeCommunicationVolume
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.printable import counted
from fusemirror.seams import Seams
from fusemirror.settings import Communication, Settings
from fusemirror.volume.identity import Identity
from fusemirror.volume.space import Space
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

_DIRECTORIES = {Communication.LMDB: "communication", Communication.SUBVOLUME: "staged"}
"""Where in the volume's directory each durable kind keeps its requests, if it has no place of its own."""


@dataclass(frozen=True)
class Stores:
    """The communication volumes that the volume in `directory` may have. `space`: of its disk."""

    directory: Path
    capacity_bytes: int
    memory_bytes: int
    seams: Seams
    space: Space | None = None

    def place_of(self, kind: Communication, own_place: Path | None) -> Path:
        """Where one of a durable kind is."""
        return own_place or self.directory / _DIRECTORIES[kind]

    def open_kind(self, kind: Communication, own_place: Path | None = None) -> CommunicationVolume:
        """That of one kind, with the kept requests that it holds. DiskFailed, OSError."""
        if kind is Communication.MEMORY:
            return MemoryCommunicationVolume(self.capacity_bytes)
        place = self.place_of(kind, own_place)
        if kind is Communication.SUBVOLUME:
            return SubvolumeCommunicationVolume(place, self.memory_bytes, self.seams, self.space)
        space, applies_here = self.space, True
        if own_place is not None and own_place.stat().st_dev != self.directory.stat().st_dev:
            space, applies_here = Space(own_place, self.seams.statvfs), False
        return LmdbCommunicationVolume(
            place, self.capacity_bytes, self.memory_bytes, self.seams, space, applies_here=applies_here
        )

    def open_wanted(
        self, wanted: Communication, own_place: Path | None = None
    ) -> tuple[Communication, CommunicationVolume]:
        """That of the wanted kind, in a place of its own if it has one; but another one in the volume where
        an earlier mount left kept requests in it."""
        # Before anything is looked for there, or made: else what the repair kept would be passed over.
        subvolume_volume.finish_repair(self.place_of(Communication.SUBVOLUME, None))
        for kind, name in _DIRECTORIES.items():
            is_wanted = kind is wanted and own_place is None
            if not is_wanted and (self.directory / name).is_dir():
                left = self.open_kind(kind)
                if len(left):
                    count = counted(len(left), "request")
                    log.info("communication = %s after the end of %s in %s", wanted, count, kind)
                    return kind, left
                left.close()
        return wanted, self.open_kind(wanted, own_place)


def open_communication(chosen: Settings, volume: Volume, seams: Seams) -> CommunicationVolume:
    """The communication volume of a host. RefusedForSafety where its place cannot be used, or where another
    place may hold requests and is not there; DiskFailed, OSError.
    """
    stores = Stores(
        Path(chosen.volume), chosen.communication_capacity, chosen.communication_memory, seams, volume.space
    )
    has_own = chosen.communication is Communication.LMDB and chosen.communication_directory
    wanted = Path(chosen.communication_directory) if has_own else None
    recorded = volume.identity.communication_directory
    used = Path(recorded) if recorded else None
    if used is not None and used != wanted:
        _take(used, volume.identity, was_in_use=True)
        left = stores.open_kind(Communication.LMDB, used)
        if len(left):
            count = counted(len(left), "request")
            log.info("communication_directory = %s after the end of %s in %s", wanted or "", count, used)
            return left
        left.close()
        # Before the place is left: one that has this host's mark and is not spoken of is taken again one day.
        # Spoken of without a mark, it would be a disk that is not there, and no mount would go on.
        volume.update_identity(communication_directory="")
        leave_place(used)
    if wanted is not None:
        _take(wanted, volume.identity, was_in_use=wanted == used)
        if wanted != used:
            volume.update_identity(communication_directory=str(wanted))  # before anything is staged there
    return stores.open_wanted(chosen.communication, wanted)[1]


def _take(place: Path, identity: Identity, *, was_in_use: bool) -> None:
    if take_place(place, identity, was_in_use=was_in_use):
        log.warning("others could get at %s, and cannot now: what is secret in it may be known", place)


def check_staged(directory: Path, *, repair: bool, report: Callable[[str], None]) -> bool:
    """Whether what is staged for the volume in `directory` can be read; with `repair` it can be then, and
    what was staged on a disk that is not there is given up. See `subvolume_volume.check_staged`.

    Nobody has the volume open.
    """
    identity = Identity.load(directory)
    place = identity.communication_directory
    is_there = not place or is_place_of(Path(place), identity)
    if not is_there:
        what = f"requests may be staged in {place}, and its disk, with this host's mark, is not there"
        report(f"{what}: given up, with what was acknowledged early and staged there" if repair else what)
        if repair:
            msgspec.structs.replace(identity, communication_directory="").store(directory)
    staged = directory / _DIRECTORIES[Communication.SUBVOLUME]
    return subvolume_volume.check_staged(staged, repair=repair, report=report) and is_there
