"""A communication volume of its own, in LMDB (seed 603, first example).

Keys are serials in the order of staging (u64, big endian); a value is the length of the encoded
request (u32), the request, and its data. Transactions are LMDB's defaults, so what the store
acknowledged survives a power cut.

LMDB maps its file into memory. Pages that were looked at there count as memory of this process until the
kernel needs it, so after every few MiB this process lets go of them; the page cache keeps them.
"""

import errno
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import lmdb

from fusemirror.communication.staged import StoredEntry, StoredRequest
from fusemirror.communication.staging_space import StagingSpace
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import DiskFailed, StoreInDoubt
from fusemirror.limits import DESTAGE_BATCH_BYTES_MAX, KIB, MIB, PAGES_LOOKED_AT_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.mapped import let_go_of_pages
from fusemirror.volume.space import Space

_KEY = struct.Struct(">Q")
_LENGTH = struct.Struct("<I")

_FAULT_BYTES = 64 * KIB  # the kernel maps so much around a page that is looked at
_PAGES_OVERHEAD = 64 * MIB  # LMDB keeps the pages of two transactions, and its tree, beside the data


class LmdbCommunicationVolume(CommunicationVolume):
    """The default kind."""

    kind = "lmdb"

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int,
        memory_bytes: int,
        seams: Seams,
        space: Space | None = None,
        *,
        applies_here: bool = True,
    ) -> None:
        """`space` of its disk; `applies_here`: that is the subvolume's. DiskFailed, OSError."""
        room = None
        if space is not None:
            room = StagingSpace(space, applies_here=applies_here, spare_bytes=self._spare_bytes)
        super().__init__(capacity_bytes, memory_bytes, seams, room)
        self._directory = directory
        self.directory = str(directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        self._map_bytes = _map_bytes(capacity_bytes)
        # The map is made larger only while nobody reads in it.
        self._reading = threading.Lock()
        self._looked_at_bytes = 0  # in the map, since it was let go of
        try:
            self._environment = lmdb.open(
                str(directory),
                map_size=self._map_bytes,
                max_spare_txns=1,
                readahead=False,
                mode=0o600,
            )
        except lmdb.Error as error:
            raise DiskFailed(directory, error) from error
        try:
            # What it acknowledges must be found after a power cut, and so by its name.
            sync_directory(directory)
            sync_directory(directory.parent)
            # And nothing else may be: where the last page of a commit failed LMDB wrote back what stood
            # there, and did not sync it.
            self._environment.sync(True)
            self._discard(self._take_up(self._entries()))
        except lmdb.Error as error:
            self._environment.close()
            raise DiskFailed(directory, error) from error
        except BaseException:
            self._environment.close()
            raise

    def _entries(self) -> list[StoredRequest]:
        """All that it holds, but for the data."""
        found = []
        with self._environment.begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                start = _data_start(value)
                request = bytes(value[_LENGTH.size : start])
                found.append((_KEY.unpack(key)[0], request, len(value) - start))
                self._looked_at(_FAULT_BYTES)
        return found

    def _read(self, serial: int, start: int, end: int) -> bytes:
        try:
            with self._reading, self._environment.begin(buffers=True) as transaction:
                value = memoryview(transaction.get(_KEY.pack(serial), b""))
                at = _data_start(value) if value else 0
                data = bytes(value[at + start : at + end])
        except lmdb.Error as error:
            raise OSError(errno.EIO, str(error)) from error
        self._looked_at(end - start + _FAULT_BYTES)
        return data

    def _looked_at(self, size_bytes: int) -> None:
        self._looked_at_bytes += size_bytes
        if self._looked_at_bytes >= PAGES_LOOKED_AT_BYTES:
            self._looked_at_bytes = 0
            let_go_of_pages(self._directory / "data.mdb")

    def _discard(self, serials: list[int]) -> None:
        with self._environment.begin(write=True) as transaction:
            for serial in serials:
                transaction.delete(_KEY.pack(serial))

    async def _store(self, entries: Iterable[StoredEntry], ended: Iterable[int]) -> None:
        await self._seams.run_blocking(self._store_blocking, list(entries), list(ended))

    def _store_blocking(self, entries: list[StoredEntry], ended: list[int]) -> None:
        try:
            self._make_room()
            with self._environment.begin(write=True) as transaction:
                for serial, request, data in entries:
                    transaction.put(
                        _KEY.pack(serial), _LENGTH.pack(len(request)) + request + data, append=True
                    )
                for serial in ended:
                    transaction.delete(_KEY.pack(serial))
        except lmdb.PanicError as error:  # it begins no transaction any more
            raise DiskFailed(self._directory, error) from error
        except lmdb.Error as error:
            raise (StoreInDoubt if self._is_in_doubt() else DiskFailed)(self._directory, error) from error
        self._looked_at(sum(len(data) for _, _, data in entries))  # its pages, as they are freed one day

    def _is_in_doubt(self) -> bool:
        """Whether the disk may have the transaction that failed last."""
        # It has none of it before its meta page is written. Where that fails the disk has the page or not,
        # and LMDB begins no other transaction until it is opened again.
        try:
            self._environment.begin(write=True).abort()
        except lmdb.Error:
            return True
        return False

    def _make_room(self) -> None:
        """The capacity may have been raised since the last transaction; a lower one needs nothing."""
        wanted_bytes = _map_bytes(self.capacity_bytes)
        if wanted_bytes > self._map_bytes:
            with self._reading:
                self._environment.set_mapsize(wanted_bytes)
            self._map_bytes = wanted_bytes

    def _spare_bytes(self) -> int:
        """Free in the file, but for what a transaction may need that goes before others are over."""
        tree, file = self._environment.stat(), self._environment.info()
        used = 2 + tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"]
        return max(0, (file["last_pgno"] + 1 - used) * tree["psize"] - DESTAGE_BATCH_BYTES_MAX)

    def stored_count(self) -> int:
        return int(self._environment.stat()["entries"])

    def close(self) -> None:
        self._environment.close()


def _map_bytes(capacity_bytes: float) -> int:
    """How much address space the store takes, none of it memory or disk."""
    return 2 * int(capacity_bytes) + _PAGES_OVERHEAD


def _data_start(value: memoryview) -> int:
    """Where in a value the data begins."""
    return _LENGTH.size + int(_LENGTH.unpack_from(value)[0])
