"""The communication volume: one interface, whatever keeps the staged requests.

A request of the backup is held in memory first and written to the store beside its transfer, not
before it (seed [0047], [0048]). It is retired when its answer has arrived.

A *kept* request is one that its program may forget: it is acknowledged as soon as the store holds
it (Fig. 9), all that came together by one commit, and taken up again after a crash of this host.
What else the store holds then was never acknowledged, and is discarded. Where the primary is nearer
than the disk its answer comes first, and acknowledges: the store is then spared, as for all others.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable

import trio

from fusemirror.communication.outstanding import Outstanding
from fusemirror.errors import DiskFailed
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import (
    COMMIT_DELAY_S,
    DESTAGE_AFTER_S,
    DESTAGE_BATCH_BYTES_MAX,
    KIB,
    STAGED_REQUESTS_MAX,
    STORE_RETRY_S,
)
from fusemirror.operations import Operation
from fusemirror.printable import counted
from fusemirror.promise import Promise
from fusemirror.protocol.codec import decode
from fusemirror.protocol.messages import Request

log = logging.getLogger(__name__)

Entry = tuple[int, bytes, bytes]
"""What the store keeps of a request: its serial, the encoded request, and its data."""

_SMOOTHING = 8  # measurements that a smoothed one stands for, as in TCP's round trip
_STORE_REMEMBERED = 0.99  # of what the store took, at each request that spares it: it is tried again one day
_SMALL_BYTES_MAX = 64 * KIB  # what more takes, to be written or to be sent, says nothing of small requests


class Staged(Outstanding[InodeNumber]):
    """A change on its way, and what is known of it here. The answer is the inode concerned, or 0."""

    __slots__ = ("acknowledged", "destaged", "in_doubt", "operation", "time_ns")

    def __init__(self, serial: int, request: Request, data: bytes, since: float, time_ns: int) -> None:
        assert isinstance(request.operation, Operation), "calls are not staged"
        super().__init__(serial, request, data, since)
        self.operation: Operation = request.operation
        self.time_ns = time_ns
        """When it was asked, as the time stamps of files have it."""
        self.destaged = False
        self.acknowledged = False
        """Its program was told success; nobody waits for the answer."""
        self.in_doubt = False
        """It may have taken effect already: in main, and with what was copied since in the subvolume."""


class CommunicationVolume(ABC):
    """What programs change, in the order in which it was staged, until it is retired."""

    kind: str
    """As the setting `communication` has it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.pending_bytes = 0
        self.staged_total = 0
        self.retired_total = 0
        self.destaged_total = 0
        self.retired_at = -math.inf
        """When a request was retired last, in trio's time."""
        self._serial = 0
        self._staged: dict[RequestId, Staged] = {}
        self._writes: dict[InodeNumber, dict[int, Staged]] = {}  # kept writes, by serial
        self._unstored: deque[Staged] = deque()
        self._kept_unstored = 0
        self._kept_together = 1  # by the last commit: about as many programs write at once
        self._store_s = 0.0  # that a commit of kept requests takes,
        self._answer_s = math.inf  # and the primary's answer to one; both smoothed
        self._leaving: list[Staged] = []  # retired, and still in the store
        self._removing: list[Staged] = []  # being removed from it
        self._work: Promise[None] | None = None
        self._idle = False
        self._room = trio.lowlevel.ParkingLot()  # everyone who waits for requests to end

    def __len__(self) -> int:
        return len(self._staged)

    @property
    def oldest_since(self) -> float | None:
        """When the request that waits longest was staged, in trio's time."""
        return next((staged.since for staged in self._staged.values()), None)

    @property
    def oldest_live(self) -> RequestId | None:
        """Every request staged before this one has ended, and is never taken up again; None: all have."""
        first = next(iter(self._staged.values()), None)
        live = [*self._leaving, *self._removing, *([] if first is None else [first])]
        return min(live, key=lambda staged: staged.serial).request.identity if live else None

    @property
    def next_serial(self) -> int:
        """Of the request that is staged next."""
        return self._serial + 1

    def acknowledged_before(self, serial: int) -> bool:
        """Whether there is a request that stands before this place and that nobody waits for."""
        first = next(iter(self._staged.values()), None)
        return first is not None and first.acknowledged and first.serial < serial

    @property
    def answers_first(self) -> bool:
        """The primary is expected to answer a kept request before the store could hold it."""
        return self._answer_s < self._store_s

    # --- room -------------------------------------------------------------------------------------------

    def has_room(self, size_bytes: int) -> bool:
        """Whether a request with so much data fits into the capacity; an empty volume takes any one."""
        if not self._staged:
            return True
        fits = self.pending_bytes + size_bytes <= self.capacity_bytes
        return fits and len(self._staged) < STAGED_REQUESTS_MAX

    async def wait_room(self, size_bytes: int) -> None:
        """Return when there is room for `size_bytes` more."""
        while not self.has_room(size_bytes):
            await self._room.park()

    async def wait_empty(self) -> None:
        """Return when every request staged so far, and since, has ended."""
        while self._staged:
            await self._room.park()

    @property
    def settled(self) -> bool:
        """Every request has ended, and the store holds none."""
        return not self._staged and not self._leaving and not self._removing

    @property
    def keeps_all(self) -> bool:
        """Whether the next mount finds all that is pending, durably, and nobody waits for any of it."""
        return all(staged.acknowledged and staged.destaged for staged in self._staged.values())

    async def wait_settled(self) -> None:
        """Return when every request has ended, and the store holds none."""
        while not self.settled:
            await self._room.park()

    def newest_write(self, inode: InodeNumber) -> int:
        """The serial of the inode's newest kept write that has not ended, or 0."""
        return max(self._writes.get(inode, ()), default=0)

    async def wait_ended(self, inode: InodeNumber, last: int) -> None:
        """Return when every kept write of the inode up to serial `last` has ended."""
        while min(self._writes.get(inode, ()), default=last + 1) <= last:
            await self._room.park()

    @property
    def newest_kept(self) -> int:
        """The serial of the newest kept write that has not ended, or 0."""
        return max((max(writes) for writes in self._writes.values()), default=0)

    async def wait_kept_ended(self, last: int) -> None:
        """Return when every kept write up to serial `last` has ended."""
        while any(min(writes) <= last for writes in self._writes.values()):
            await self._room.park()

    # --- requests ---------------------------------------------------------------------------------------

    def stage(self, request: Request, data: bytes, time_ns: int = 0) -> Staged:
        """Hold a request; it is in the store too, unless it is answered before.

        The answer of a kept one is resolved as soon as the store has it.
        """
        self._serial += 1
        self.staged_total += 1
        staged = Staged(self._serial, request, data, trio.current_time(), time_ns)
        self._hold(staged)
        self._enqueue(staged)
        return staged

    def _hold(self, staged: Staged) -> None:
        self._staged[staged.request.identity] = staged
        self.pending_bytes += len(staged.data)
        if staged.request.kept:
            self._writes.setdefault(staged.operation.image, {})[staged.serial] = staged

    def _take_up(self, entries: Iterable[Entry]) -> list[int]:
        """Hold again what was kept when an earlier process of this host ended, in its order.

        Returns the serials of what was not: nobody was told that it was done.
        """
        discarded = []
        for serial, encoded, data in entries:
            self._serial = max(self._serial, serial)
            request = decode(encoded, "the communication volume", data)
            if isinstance(request, Request) and request.kept:
                staged = Staged(serial, request, data, trio.current_time(), 0)
                staged.destaged = staged.acknowledged = staged.in_doubt = True
                self._hold(staged)
            else:
                discarded.append(serial)
        if self._staged:
            log.info("taken up again: %s of an earlier mount", counted(len(self._staged), "request"))
        if discarded:
            count = counted(len(discarded), "request")
            log.info("discarded: %s of an earlier mount, never acknowledged", count)
        return discarded

    def find(self, identity: RequestId) -> Staged | None:
        return self._staged.get(identity)

    def retire(self, identity: RequestId) -> None:
        """The request has ended: neither memory nor, a little later, the store holds it."""
        staged = self._staged.pop(identity, None)
        if staged is None:
            return
        staged.retired = True
        if staged.when_retired is not None:
            staged.when_retired()
        self.retired_total += 1
        self.retired_at = trio.current_time()
        if staged.request.kept and staged.sent_at is not None and len(staged.data) <= _SMALL_BYTES_MAX:
            self._answer_s = _smoothed(self._answer_s, self.retired_at - staged.sent_at)
            if self.answers_first:
                self._store_s *= _STORE_REMEMBERED
        self.pending_bytes -= len(staged.data)
        self._forget_write(staged)
        self._room.unpark_all()
        if staged.destaged:
            self._leaving.append(staged)
            self._wake(urgent=False)

    def _forget_write(self, staged: Staged) -> None:
        if staged.request.kept:
            inode = staged.operation.image
            writes = self._writes[inode]
            del writes[staged.serial]
            for serial, earlier in writes.items():
                if serial > staged.serial:
                    break
                earlier.in_doubt = True  # requests take effect in their order
            if not writes:
                del self._writes[inode]

    def doubt_sent(self) -> None:
        """The link is over: of what was sent it is not known what took effect."""
        for staged in self._staged.values():
            staged.in_doubt = staged.in_doubt or staged.sent_at is not None
        self._answer_s = math.inf

    def newest_in_doubt(self, inode: InodeNumber) -> int:
        """The serial of the inode's newest kept write that may have taken effect already, or 0."""
        if inode not in self._writes:
            return 0
        return max((serial for serial, staged in self._writes[inode].items() if staged.in_doubt), default=0)

    def pending(self) -> list[Staged]:
        """Everything staged and not retired, oldest first."""
        return list(self._staged.values())

    def writes_of(self, inode: InodeNumber) -> Collection[Staged]:
        """The kept writes of an inode that have not ended, oldest first."""
        writes = self._writes.get(inode)
        return writes.values() if writes is not None else ()

    # --- destaging --------------------------------------------------------------------------------------

    def _enqueue(self, staged: Staged) -> None:
        self._unstored.append(staged)
        self._kept_unstored += staged.request.kept
        hurries = staged.request.kept and not self.answers_first
        self._wake(urgent=hurries and self._kept_unstored >= self._kept_together)

    def _wake(self, *, urgent: bool) -> None:
        if self._work is not None and (urgent or self._idle):
            self._work.resolve(None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Destage for ever. Cancelling it leaves the store as after its last whole batch.

        While the store fails, kept requests are acknowledged by their answer, as all others are.
        """
        failed = False
        task_status.started()
        while True:
            if not self._unstored and not self._leaving:
                self._idle = True
                await self._sleep(math.inf)
                self._idle = False
            if not self._kept_unstored or self.answers_first:
                await self._sleep(DESTAGE_AFTER_S)
            elif self._kept_unstored < self._kept_together:
                await self._sleep(COMMIT_DELAY_S)  # or programs that wrote together would part for ever
            try:
                await self._destage()
                failed = False
            except DiskFailed as error:
                if not failed:
                    log.error("requests are held in memory alone, and acknowledged by the primary: %s", error)
                failed = True
                await trio.sleep(STORE_RETRY_S)

    async def _sleep(self, seconds: float) -> None:
        self._work = Promise()
        with trio.move_on_after(seconds):
            await self._work.wait()
        self._work = None

    async def _destage(self) -> None:
        """Write what is kept or has waited long enough, and remove what has ended, in one transaction."""
        batch = self._next_batch()
        self._removing, self._leaving = self._leaving, []
        for staged in batch:
            staged.destaged = True
        if batch or self._removing:
            entries = [(staged.serial, staged.encoded, staged.data) for staged in batch]
            began = trio.current_time()
            try:
                await self._store(entries, [staged.serial for staged in self._removing])
            except DiskFailed:
                self._take_back(batch)
                raise
            self._removing = []
            self._room.unpark_all()
            self.destaged_total += len(batch)
        kept = [staged for staged in batch if staged.request.kept]
        if kept and sum(len(staged.data) for staged in kept) <= _SMALL_BYTES_MAX:
            self._store_s = _smoothed(self._store_s, trio.current_time() - began)
        self._kept_together = max(1, len(kept))
        for staged in kept:
            self._acknowledge(staged)

    def _take_back(self, batch: list[Staged]) -> None:
        """The store has not got the batch, and still holds what it should have let go of."""
        self._leaving, self._removing = self._removing + self._leaving, []
        self._leaving = [staged for staged in self._leaving if staged not in batch]
        for staged in reversed(batch):
            staged.destaged = False
            self._unstored.appendleft(staged)
            self._kept_unstored += staged.request.kept

    def _next_batch(self) -> list[Staged]:
        before = trio.current_time() - DESTAGE_AFTER_S
        hurries = not self.answers_first
        batch: list[Staged] = []
        size = 0
        while self._unstored and size <= DESTAGE_BATCH_BYTES_MAX:
            if not (self._kept_unstored and hurries) and self._unstored[0].since > before:
                break
            staged = self._unstored.popleft()
            self._kept_unstored -= staged.request.kept
            if not staged.retired:
                batch.append(staged)
                size += len(staged.data)
                if staged.since <= before:
                    self._answer_s = max(self._answer_s, DESTAGE_AFTER_S)  # at least so long
        return batch

    def _acknowledge(self, staged: Staged) -> None:
        staged.acknowledged = True
        staged.answer.resolve(staged.operation.image)

    @abstractmethod
    async def _store(self, entries: Iterable[Entry], ended: Iterable[int]) -> None:
        """Keep the entries and forget the ended serials, durably and in one step."""

    @abstractmethod
    def stored_count(self) -> int:
        """How many requests the store holds now."""

    @abstractmethod
    def close(self) -> None:
        """Release the store; what it holds stays."""


def _smoothed(before: float, measured: float) -> float:
    """Seconds; nothing was measured before where that is 0 or infinite."""
    return before + (measured - before) / _SMOOTHING if 0 < before < math.inf else measured
