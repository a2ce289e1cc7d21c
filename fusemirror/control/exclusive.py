"""Exclusive access at one host: each write takes the exclusive status of its bytes, or stands by.

`steps.py` has the steps of Fig. 17, `ranges.py` who holds which bytes; here both are joined to the
reservations and to the operations. The primary asks about main, the backup about the subvolume. Data
is what is exclusive: requests that change names are put in order by the primary alone.

Neither the order of changes nor what a crash leaves rests on this: they rest on the numbers that the
primary gives. So a host that takes exclusive statuses and one that does not work together, and the
setting can be changed with requests under way. Source: seed [0072]-[0079].
"""

import errno

from fusemirror.control.ranges import Claim, Ranges
from fusemirror.control.reservations import holder_against
from fusemirror.control.steps import RESETS, Found, Step, Table, next_step
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation
from fusemirror.volume.volume import Volume


class ExclusiveWrite:
    """One write of `host` on its way through the steps; a step that resets the status releases its claim."""

    __slots__ = ("_access", "_host", "_operation", "claim", "step")

    def __init__(self, access: "ExclusiveAccess", operation: Operation, host: bytes, claim: Claim) -> None:
        self.claim = claim
        self.step = Step.ANALYSED
        self._access = access
        self._operation = operation
        self._host = host

    def meet(self, found: Found) -> None:
        """Go on to the step that follows."""
        self.step = next_step(self._access.table, self.step, found)
        self._access.given_up_total += self.step is Step.GIVEN_UP
        if self.step in RESETS:
            self._access.ranges.release(self.claim)

    def check(self) -> None:
        """From ANALYSED to CONFLICT, STANDING_BY or TRANSFERRING."""
        if self._access.is_reserved(self._operation, self._host):
            self.meet(Found.RESERVED)
        elif self.claim.held:
            self.meet(Found.FREE)
        else:
            self._access.stood_by_total += 1
            self.meet(Found.EXCLUSIVE)

    async def take_turn(self) -> None:
        """On return this host's volume is exclusive for the write. EBUSY for a reservation conflict.

        Cancelled, the claim is released.
        """
        while self.step is Step.STANDING_BY:
            try:
                await self.claim.wait()
            except BaseException:
                self.meet(Found.FAILED)
                raise
            self.meet(Found.RELEASED)
            self.check()
        if self.step is Step.CONFLICT:
            raise OperationFailed(errno.EBUSY)

    def transferred(self, acknowledged: bool = True) -> None:
        """Both volumes hold it; or the backup is lost, and the primary has gone on without."""
        self.meet(Found.TRANSFERRED if acknowledged else Found.FAILED)


class ExclusiveAccess:
    """The exclusive statuses of one volume: of main by the table MAIN, of the subvolume by SUBVOLUME."""

    def __init__(self, volume: Volume, table: Table) -> None:
        self.table = table
        self.ranges = Ranges()
        self.stood_by_total = 0
        self.given_up_total = 0
        self._volume = volume

    def begin(self, operation: Operation, length: int, host: bytes) -> ExclusiveWrite | None:
        """The write that `operation` is, checked; None where it touches no data. `length`: of its data."""
        wanted = operation.touched_range(self._volume.catalog, length)
        if wanted is None:
            return None
        write = ExclusiveWrite(self, operation, host, self.ranges.claim(*wanted))
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

    async def stand_by(self, inode: InodeNumber, start: int, end: int) -> Claim | None:
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
