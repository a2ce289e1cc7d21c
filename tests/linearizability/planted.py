"""A mount with a bug planted, to see that the checker finds it.

    python -m tests.linearizability.planted BUG mount ...

Each bug takes away one of the waits that make sync routed access linearizable, or lets a kernel keep what
has changed. News reach the backup a little late, so that it shows for longer; nothing but that happens where
the BUG is "slow".
"""

import sys
from collections.abc import Callable
from typing import Any

import trio

from fusemirror.change import NamespaceChange, TruncateChange, WriteChange
from fusemirror.channel.session import Session
from fusemirror.cli.main import main
from fusemirror.coherence import directory_leases
from fusemirror.control.backup_reads import BackupReads
from fusemirror.control.local_reads import read_here
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.primary_reads import PrimaryReads
from fusemirror.errors import ConnectionLost
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.kernel_pages import Pages
from fusemirror.filesystem.notifier import Notifier
from fusemirror.identifiers import NO_REQUEST
from fusemirror.volume.inode import Inode


def plant(owner: Any, name: str, value: Any) -> None:
    """Put a bug in the place of what is there."""
    assert hasattr(owner, name), f"{owner} has no {name}: what the bug replaces is called otherwise now"
    setattr(owner, name, value)


def early_acknowledgement() -> None:
    """The primary tells its programs of success before the backup has the change."""

    async def perform(self: PrimaryUnit, operation: Any, data: bytes = b"") -> Inode | None:
        return self.volume.catalog.inode(self.admission.decisions.make(operation, data, NO_REQUEST))

    plant(PrimaryUnit, "perform", perform)


def unsettled_names() -> None:
    """The primary shows names and attributes that the backup does not have yet."""

    async def at_once(*_: Any) -> None: ...

    plant(PrimaryReads, "showable", at_once)


def unsettled_data() -> None:
    """The primary shows data that the backup does not have yet."""

    async def read(self: PrimaryReads, inode: Any, offset: int, length: int) -> bytes:
        return read_here(self._host, inode, offset, length)

    plant(PrimaryReads, "read", read)


def no_lease() -> None:
    """The backup shows what it has for as long as it believes in its link."""

    async def showable(self: BackupReads, _: Any, *, content: bool = False) -> None:
        if self._links.link is None or not self._applier.serves:
            await self._wait_readable()

    plant(BackupReads, "showable", showable)


def kept_pages() -> None:
    """A kernel is told the same time of change as before, and keeps the pages that it has."""
    tell = KernelCache.tell
    times: dict[int, int] = {}

    def tell_old(
        self: KernelCache, inode: Inode, lifetime_s: float, *, asked: bool = False
    ) -> tuple[float, int]:
        lifetime_s, mtime_ns = tell(self, inode, lifetime_s, asked=asked)
        return lifetime_s, times.setdefault(inode.number, mtime_ns)

    plant(KernelCache, "tell", tell_old)
    plant(Pages, "refresh", lambda *_: None)


def kept_attributes() -> None:
    """A kernel is not told to ask again for attributes that it may keep."""
    plant(Notifier, "take_back_attributes", lambda *_: None)
    plant(Pages, "refresh", lambda *_: None)  # dropping pages takes back attributes, too


def eager_names() -> None:
    """No bug: kernels keep the names of a directory from the first look on, however it is used."""
    for name, value in EAGER.items():
        plant(directory_leases, name, value)


def names_given_up_at_once() -> None:
    """What a kernel keeps of names is not waited for."""
    eager_names()

    async def at_once(_: float) -> None: ...

    plant(directory_leases, "_until", at_once)


EAGER = {
    "LOOKS_TO_KEEP": 1,
    "DIRECTORY_REST_S": 0.02,
    "DIRECTORY_BACK_OFF_MAX_S": 0.02,
    "NAME_LIFETIME_S": 0.2,
    "SHARED_NAME_LIFETIME_S": 0.1,
}
LATE_S = 0.005
LATE_TO_LOSE_S = 0.1


def slow() -> None:
    """No bug: the backup takes its time, also to notice that its link is lost."""
    receive = Session.receive

    async def receive_late(self: Session, _: object = None) -> list[Any]:
        try:
            received = await receive(self)
        except ConnectionLost:
            await trio.sleep(LATE_TO_LOSE_S)
            raise
        if any(
            isinstance(message, NamespaceChange | TruncateChange | WriteChange) for message, _ in received
        ):
            await trio.sleep(LATE_S)
        return received

    plant(Session, "receive", receive_late)


BUGS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        *(early_acknowledgement, names_given_up_at_once, no_lease, unsettled_data, unsettled_names),
        *(kept_pages, kept_attributes),
    )
}

if __name__ == "__main__":
    slow()
    {**BUGS, "eager_names": eager_names, "slow": slow}[sys.argv.pop(1)]()
    main()
