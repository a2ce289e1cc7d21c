"""The calls of a simulated host that may fail: of its disk, of LMDB, of its channel; the n-th of them does.

The steps of the disk are those of `disk.py`. Here the calls of LMDB and of the channel are counted too, where
the host's room is a `FailingCalls`.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import lmdb

from fusemirror.errors import ConnectionLost
from fusemirror.protocol.framing import Buffer
from fusemirror.volume.catalog_store import CatalogStore
from tests.memory_network import MemoryTransport
from tests.simulation.disk import Room
from tests.simulation.process import current

_SYNCS = frozenset({"fdatasync", "fsync"})
_COMMITS = frozenset({"commit", "store"})
_LMDB = frozenset({"lmdb put", "lmdb delete", "lmdb commit", "store"})
_CHANNEL = frozenset({"send", "receive"})
_OTHERS = _SYNCS | _COMMITS | _LMDB | _CHANNEL
# After an error of taking back nobody knows what the disk holds: the host stops, also where it is full.
_TAKING_BACK = frozenset({"ftruncate", "truncate"})


class Fault(NamedTuple):
    """Which calls are counted, and how one fails. `stops`: the disk is held to be broken."""

    counts: Callable[[str], bool]
    error: Callable[[], Exception]
    stops: bool = False
    of_channel: bool = False


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _broken() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _lost() -> ConnectionLost:
    return ConnectionLost("the peer", "it broke")


FAULTS: dict[str, Fault] = {
    "full": Fault(lambda name: name in _COMMITS or not (name in _OTHERS or name in _TAKING_BACK), _full),
    "write error": Fault(lambda name: name not in _OTHERS, _broken, stops=True),
    "sync error": Fault(lambda name: name in _SYNCS | _COMMITS, _broken, stops=True),
    "map full": Fault(lambda name: name in _LMDB, lambda: lmdb.MapFullError("mdb_put")),
    "lmdb error": Fault(lambda name: name in _LMDB, lambda: lmdb.PanicError("mdb_put"), stops=True),
    "send": Fault(lambda name: name == "send", _lost, of_channel=True),
    "receive": Fault(lambda name: name == "receive", _lost, of_channel=True),
}


class FailingCalls(Room):
    """Of the calls that the fault counts, the n-th after `arm` fails, once."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault
        self._calls_left: int | None = None
        self.fired: str | None = None

    def arm(self, call: int) -> None:
        self._calls_left, self.fired = call, None

    def disarm(self) -> None:
        self._calls_left = None

    def step(self, name: str) -> None:
        """A step of the disk, or another call, is about to be made."""
        if self._calls_left is None or not self._fault.counts(name):
            return
        self._calls_left -= 1
        if self._calls_left == 0:
            self._calls_left = None
            self.refused += 1
            self.fired = name
            raise self._fault.error()


def _call(name: str) -> None:
    process = current.get()
    if process is not None and isinstance(process.disk.room, FailingCalls) and not process.disk.dead:
        process.disk.room.step(name)


class _CountedTransaction:
    """A transaction of the catalog. After a call that failed LMDB takes none but `abort`."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        if self._failed and name != "abort":
            raise lmdb.BadTxnError(name)
        return getattr(self._transaction, name)

    def put(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted("put", *args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted("delete", *args, **kwargs)

    def commit(self) -> None:
        self._counted("commit")

    def _counted(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self._failed:
            raise lmdb.BadTxnError(name)
        try:
            _call(f"lmdb {name}")
        except lmdb.Error:
            self._failed = True
            raise
        return getattr(self._transaction, name)(*args, **kwargs)


def _begin(method: Callable[[CatalogStore], None]) -> Callable[[CatalogStore], None]:
    def begin(store: CatalogStore) -> None:
        method(store)
        store.txn = _CountedTransaction(store.txn)

    return begin


def _break(transport: MemoryTransport) -> None:
    for pipe in (transport._incoming, transport._outgoing):
        pipe.broken = True
        pipe.changed.unpark_all()


def _try_send(method: Callable[..., int]) -> Callable[..., int]:
    def try_send(transport: MemoryTransport, buffers: Sequence[Buffer]) -> int:
        try:
            _call("send")
        except ConnectionLost:
            _break(transport)
            raise
        return method(transport, buffers)

    return try_send


def _receive(method: Callable[..., Any]) -> Callable[..., Any]:
    async def receive(transport: MemoryTransport, bytes_max: int) -> bytes:
        data: bytes = await method(transport, bytes_max)
        try:
            _call("receive")
        except ConnectionLost:
            _break(transport)
            raise
        return data

    return receive


@contextmanager
def counted_calls() -> Iterator[None]:
    """While this lasts, the calls of LMDB and of the channel are counted, beside `disk.counted_steps`."""
    with ExitStack() as stack:
        for owner, name, value in (
            (CatalogStore, "begin", _begin(CatalogStore.begin)),
            (MemoryTransport, "try_send", _try_send(MemoryTransport.try_send)),
            (MemoryTransport, "receive", _receive(MemoryTransport.receive)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
