"""What the primary tells its backup besides changes: of leases, locks, access and statuses."""

from collections.abc import Callable

from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.mirror.applying import Handler
from fusemirror.protocol.messages import (
    AccessInEffect,
    DiskSpace,
    FreeNames,
    HoldNames,
    KeyNews,
    LendNames,
    LockAnswer,
    LocksListed,
    LocksReclaimed,
    Modes,
    RecallNames,
    ShareNames,
    StatusTaken,
    TakeStatus,
)
from fusemirror.settings import Access


class PrimaryWords:
    """To one backup; `serves` says whether its programs read and write."""

    def __init__(
        self,
        host: HostState,
        landing: Landing,
        lease_requests: LeaseRequests,
        asking: Asking,
        serves: Callable[[], bool],
    ) -> None:
        self._host = host
        self._landing = landing
        self._lease_requests = lease_requests
        self._asking = asking
        self._serves = serves

    def handlers(self) -> dict[type, Handler]:
        """Who takes which message."""
        news, leases, locks = self._host.news, self._lease_requests, self._asking
        return {
            LendNames: leases.granted,
            HoldNames: leases.taken,
            ShareNames: leases.shared,
            RecallNames: leases.recalled,
            FreeNames: leases.freed,
            DiskSpace: lambda message, *_: news.disks.hear(message),
            Modes: lambda message, *_: news.modes.hear(message),
            KeyNews: lambda message, _, session: news.renewal.take(message, session),
            AccessInEffect: lambda message, *_: self._take_access(message.access),
            TakeStatus: lambda message, _, session: self._take_status(message, session),
            LockAnswer: locks.answered,
            LocksReclaimed: locks.taken,
            LocksListed: locks.listed,
        }

    def _take_access(self, access: Access) -> None:
        self._host.access.take(access)
        if access is Access.ROUTED:
            self._landing.forget_early()

    def _take_status(self, message: TakeStatus, session: Session) -> None:
        if self._serves():  # else nobody here reads or writes
            self._landing.command(message)
            if message.answers:
                # The kernel first: the primary's program goes on by this word.
                self._host.volume.invalidator.data_changed(message.inode, own=False)
                session.send(StatusTaken(message.number))
