"""Exclusive access at one host: each write takes the exclusive status of its bytes, or stands by.

`steps.py` has the steps of Fig. 17, `ranges.py` who holds which bytes; here both are joined to the
reservations and to the operations. The primary asks about main, the backup about the subvolume; what
main's right does to the subvolume's statuses is in `landing.py`. Data is what is exclusive: requests
that change names are put in order by the primary alone.

Neither the order of changes nor what a crash leaves rests on this: they rest on the numbers that the
primary gives. So a host that takes exclusive statuses and one that does not work together, and the
setting can be changed with requests under way. Source: seed [0072]-[0079].
"""

import errno

from fusemirror.control.ranges import RangeClaim, Ranges
from fusemirror.control.reservations import holder_against
from fusemirror.control.steps import RESETS, WriteEvent, WriteState, next_state
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation
from fusemirror.volume.volume import Volume

_STANDING_BY = frozenset({WriteState.STANDING_BY, WriteState.STANDING_BY_AT_MAIN})


class ExclusiveWrite:
    """One write of `host` on its way through the steps; a state without the status releases its claim."""

    __slots__ = ("_access", "_host", "_operation", "claim", "state")

    def __init__(
        self,
        access: "ExclusiveAccess",
        operation: Operation,
        host: bytes,
        claim: RangeClaim,
        state: WriteState,
    ) -> None:
        self.claim = claim
        self.state = state
        self._access = access
        self._operation = operation
        self._host = host

    def meet(self, event: WriteEvent) -> None:
        """Go on to the state that follows."""
        # The table moves it, and the claim follows: no other place takes a status or gives one up.
        before, self.state = self.state, next_state(self.state, event)
        self._access.given_up_total += self.state is WriteState.GIVEN_UP is not before
        if self.state in RESETS:
            self._access.ranges.release(self.claim)

    def check(self) -> None:
        """From an analysed write to one in conflict, one that stands by, or one that has the status."""
        # First of all, as in Fig. 17: a conflict is told at once, and waits for nobody.
        if self._access.is_reserved(self._operation, self._host):
            self.meet(WriteEvent.RESERVED)
        elif self.claim.held:
            self.meet(WriteEvent.FREE)
        else:
            self._access.stood_by_total += 1
            self.meet(WriteEvent.EXCLUSIVE)

    @property
    def stands_by(self) -> bool:
        return self.state in _STANDING_BY

    async def take_turn(self) -> None:
        """On return this host's volume is exclusive for the write. EBUSY for a reservation conflict.

        Cancelled, the claim is released.
        """
        while self.stands_by:
            try:
                await self.claim.wait()
            except BaseException:
                self.meet(WriteEvent.FAILED)
                raise
            # Checked anew: a reservation may have been made while it stood by.
            self.meet(WriteEvent.RELEASED)
            self.check()
        if self.state is WriteState.CONFLICT:
            raise OperationFailed(errno.EBUSY)

    def land(self, claim: RangeClaim | None) -> None:
        """Main is exclusive for it, and so is the subvolume now: by `claim` where it had given that up."""
        if claim is not None:
            # The new one is held before the old one goes, so that nobody gets in between.
            before, self.claim = self.claim, claim
            self._access.ranges.release(before)
        self.meet(WriteEvent.MAIN_TAKEN)

    def end(self, event: WriteEvent) -> None:
        """Its program hears of the end. Nothing where it has landed, and ended by that."""
        # The mirrored change and the answer come by two paths, in either order.
        if self.state is not WriteState.ENDED:
            self.meet(event)

    def transferred(self, acknowledged: bool = True) -> None:
        """Both volumes hold it; or the backup is lost, and the primary has gone on without."""
        self.meet(WriteEvent.TRANSFERRED if acknowledged else WriteEvent.FAILED)


class ExclusiveAccess:
    """The exclusive statuses of one volume: of main, or of the subvolume."""

    def __init__(self, volume: Volume, *, of_main: bool) -> None:
        self.ranges = Ranges()
        self.stood_by_total = 0
        self.given_up_total = 0
        self._volume = volume
        self._analysed = WriteState.ANALYSED_BY_MAIN if of_main else WriteState.ANALYSED

    def begin(self, operation: Operation, length: int, host: bytes) -> ExclusiveWrite | None:
        """The write that `operation` is, checked; None where it touches no data. `length`: of its data."""
        wanted = operation.touched_range(self._volume.catalog, length)
        if wanted is None:
            return None
        write = ExclusiveWrite(self, operation, host, self.ranges.claim(*wanted), self._analysed)
        write.check()
        return write

    def is_reserved(self, operation: Operation, host: bytes) -> bool:
        catalog = self._volume.catalog
        return bool(catalog.reservations) and holder_against(catalog, operation, host) is not None

    def is_idle(self) -> bool:
        """Nothing is exclusive, and nobody stands by."""
        return not len(self.ranges) and not self.ranges.standing_by

    def status(self) -> dict[str, int]:
        """Claims held and claims that wait now; how many ever waited; how often the backup gave way."""
        return {
            "held": len(self.ranges),
            "standing_by": self.ranges.standing_by,
            "stood_by_total": self.stood_by_total,
            "given_up_total": self.given_up_total,
        }

    async def stand_by(self, inode: InodeNumber, start: int, end: int) -> RangeClaim | None:
        """For a read: on return nobody else holds these bytes until the claim is released; None: nobody did.

        Readers take their turn among the writers, or writers in a row could keep them off for ever.
        """
        if not self.ranges.is_exclusive(inode, start, end):
            return None
        self.stood_by_total += 1
        claim = self.ranges.claim(inode, start, end)
        try:
            await claim.wait()
        except BaseException:
            self.ranges.release(claim)
            raise
        return claim
