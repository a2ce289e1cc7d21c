"""A communication volume of its own, in LMDB (seed 603, first example).

Keys are serials in the order of staging (u64, big endian); a value is the length of the encoded
request (u32), the request, and its data. Transactions are LMDB's defaults, so what the store
acknowledged survives a power cut.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import lmdb

from fusemirror.communication.volume import CommunicationVolume, Entry
from fusemirror.errors import DiskFailed
from fusemirror.limits import MIB
from fusemirror.seams import Seams

_KEY = struct.Struct(">Q")
_LENGTH = struct.Struct("<I")

_PAGES_OVERHEAD = 64 * MIB  # LMDB keeps the pages of two transactions, and its tree, beside the data


class LmdbCommunicationVolume(CommunicationVolume):
    """The default kind."""

    kind = "lmdb"

    def __init__(self, directory: Path, capacity_bytes: int, seams: Seams) -> None:
        super().__init__(capacity_bytes)
        self._directory = directory
        self._seams = seams
        directory.mkdir(mode=0o700, exist_ok=True)
        self._environment = lmdb.open(
            str(directory),
            map_size=2 * capacity_bytes + _PAGES_OVERHEAD,
            max_spare_txns=1,
            readahead=False,
            mode=0o600,
        )
        self._discard(self._take_up(self._entries()))

    def _entries(self) -> list[Entry]:
        with self._environment.begin() as transaction:
            return [_unpack(bytes(key), bytes(value)) for key, value in transaction.cursor()]

    def _discard(self, serials: list[int]) -> None:
        with self._environment.begin(write=True) as transaction:
            for serial in serials:
                transaction.delete(_KEY.pack(serial))

    async def _store(self, entries: Iterable[Entry], ended: Iterable[int]) -> None:
        await self._seams.run_blocking(self._store_blocking, list(entries), list(ended))

    def _store_blocking(self, entries: list[Entry], ended: list[int]) -> None:
        try:
            with self._environment.begin(write=True) as transaction:
                for serial, request, data in entries:
                    transaction.put(
                        _KEY.pack(serial), _LENGTH.pack(len(request)) + request + data, append=True
                    )
                for serial in ended:
                    transaction.delete(_KEY.pack(serial))
        except lmdb.Error as error:
            raise DiskFailed(self._directory, error) from error

    def stored_count(self) -> int:
        return int(self._environment.stat()["entries"])

    def close(self) -> None:
        self._environment.close()


def _unpack(key: bytes, value: bytes) -> Entry:
    end = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    return _KEY.unpack(key)[0], value[_LENGTH.size : end], value[end:]
