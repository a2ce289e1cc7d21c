"""The communication volume: one interface, whatever keeps the staged requests.

A request of the backup is held in memory first and written to the store beside its transfer, not
before it (seed [0047], [0048]). It is retired when its answer has arrived.

A *kept* request is one that its program may forget: it is acknowledged as soon as the store holds
it (Fig. 9), all that came together by one commit, and taken up again after a crash of this host.
What else the store holds then was never acknowledged, and is discarded. Where the primary is nearer
than the disk its answer comes first, and acknowledges: the store is then spared, as for all others.
"""

import errno
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import trio

from fusemirror.communication.destaging import SMALL_BYTES_MAX, Destaging
from fusemirror.communication.ended import Ended
from fusemirror.communication.held_data import HeldData
from fusemirror.communication.kept_writes import KeptWrites
from fusemirror.communication.order import Order
from fusemirror.communication.outstanding import Outstanding
from fusemirror.communication.staged import Staged, StoredEntry, StoredRequest
from fusemirror.communication.staging_space import LARGE_BYTES, StagingSpace
from fusemirror.identifiers import RequestId
from fusemirror.limits import STAGED_REQUESTS_MAX
from fusemirror.printable import counted
from fusemirror.protocol.codec import decode
from fusemirror.protocol.messages import Request
from fusemirror.seams import Seams

log = logging.getLogger(__name__)


class CommunicationVolume(ABC):
    """What programs change, in the order in which it was staged, until it is retired."""

    kind: str
    """As the setting `communication` has it."""
    directory: str | None = None
    """Where the store is."""

    def __init__(
        self, capacity_bytes: float, memory_bytes: float, seams: Seams, room: StagingSpace | None = None
    ) -> None:
        """`memory_bytes` bounds what is held in memory; see `held_data.py`. `room`: of the disk, if any."""
        self.capacity_bytes = capacity_bytes
        self._seams = seams
        self._room = room
        self.held = HeldData(memory_bytes)
        self.pending_bytes = 0
        self.staged_total = 0
        self.order = Order(lambda: self.destaging.in_store)
        self._staged = self.order.staged
        self.ended = Ended(self.order)
        self.kept = KeptWrites(self.ended.waiting)
        self.destaging = Destaging(self._store, self.held, self.ended.waiting, self.reserve_disk)

    def __len__(self) -> int:
        return len(self._staged)

    # --- room -------------------------------------------------------------------------------------------

    def has_room(self, size_bytes: int) -> bool:
        """Whether a request with so much data fits into capacity and memory; an empty volume takes any
        that is not `too_far_ahead`."""
        order = self.order
        if order.last_serial >= order.last_allowed and order.too_far_ahead:
            return False
        if not self._staged:
            return True
        fits = self.pending_bytes + size_bytes <= self.capacity_bytes and self.held.has_room(size_bytes)
        return fits and len(self._staged) < STAGED_REQUESTS_MAX

    def configure(self, capacity_bytes: float, memory_bytes: float) -> None:
        """Other bounds from now on. What is pending beyond them stays, and writers wait for room."""
        self.capacity_bytes = capacity_bytes
        self.held.bytes_max = memory_bytes
        self.ended.waiting.unpark_all()

    def reserve_disk(self, data_bytes: int) -> bool:
        """Whether the disk has room for one more with so much data; it then counts as taken. OSError."""
        return self._room is None or self._room.take(data_bytes, self.pending_bytes)

    def status(self) -> dict[str, Any]:
        """What is known of the store and its disk."""
        available = failure = None
        try:
            if self._room is not None:
                available = self._room.available_bytes(self.pending_bytes)
        except OSError as error:
            failure = str(error)
        bounded = self.capacity_bytes < math.inf
        return {
            "capacity_bytes": int(self.capacity_bytes) if bounded else self.pending_bytes + (available or 0),
            "directory": self.directory,
            "available_bytes": available,
            "full": available is not None and available < LARGE_BYTES,
            "failure": failure,
            "memory_bytes": self.held.bytes,
            "memory_peak_bytes": self.held.peak_bytes,
            "read_back_bytes": self.held.read_back_total,
            "stored_requests": self.stored_count(),
        }

    async def wait_room(self, size_bytes: int, check: Callable[[], None] = lambda: None) -> None:
        """Return when there is room for `size_bytes` more, or raise as `check` does, after each end."""
        while not self.has_room(size_bytes):
            await self.ended.waiting.park()
            check()

    async def wait_empty(self) -> None:
        """Return when every request staged so far, and since, has ended."""
        while self._staged:
            await self.ended.waiting.park()

    @property
    def keeps_all(self) -> bool:
        """Whether the next mount finds all that is pending, durably, and nobody waits for any of it."""
        return all(staged.acknowledged and staged.destaged for staged in self._staged.values())

    # --- requests ---------------------------------------------------------------------------------------

    def stage(
        self, request: Request, data: bytes, time_ns: int = 0, *, awaits_status: bool = False
    ) -> Staged:
        """Hold a request; it is in the store too, unless it is answered before.

        The answer of a kept one is resolved as soon as the store has it, and main the status that it awaits.
        """
        self.order.last_serial += 1
        self.staged_total += 1
        now = trio.current_time()
        staged = Staged(self.order.last_serial, request, data, now, time_ns, awaits_status=awaits_status)
        self._hold(staged)
        self._destage(staged)
        return staged

    def _hold(self, staged: Staged) -> None:
        self.order.add(staged)
        self.pending_bytes += staged.data_bytes
        self.held.add(staged)
        if staged.request.kept:
            self.kept.add(staged)

    def _take_up(self, entries: Iterable[StoredRequest]) -> list[int]:
        """Hold again what was kept when an earlier process of this host ended, in its order. The data stays
        where it is.

        Returns the serials of what was not: nobody was told that it was done.
        """
        discarded = []
        # One that a version before stored again after a failure stands in it twice, and the later one counts.
        once = {entry[0]: entry for entry in entries}
        for serial, (_, encoded, data_bytes) in sorted(once.items()):
            self.order.last_serial = max(self.order.last_serial, serial)
            request = decode(encoded, "the communication volume", data_bytes)
            if isinstance(request, Request) and request.kept:
                staged = Staged(serial, request, None, trio.current_time(), 0, data_bytes)
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
        self.ended.total += 1
        self.ended.last_at = trio.current_time()
        if staged.request.kept and staged.sent_at is not None and staged.data_bytes <= SMALL_BYTES_MAX:
            self.destaging.note_answer(self.ended.last_at - staged.sent_at)
        self.pending_bytes -= staged.data_bytes
        assert self.pending_bytes >= 0, "what ended was pending"
        self.held.remove(staged)
        if staged.request.kept:
            self.kept.remove(staged)
        if self.ended.waiting:
            self.ended.waiting.unpark_all()
        if staged.destaged:
            self.destaging.leave(staged)

    def doubt_sent(self) -> None:
        """The link is over: of what was sent it is not known what took effect."""
        for staged in self._staged.values():
            staged.in_doubt = staged.in_doubt or staged.sent_at is not None
        self.destaging.forget_answers()

    def pending(self) -> list[Staged]:
        """Everything staged and not retired, oldest first."""
        return list(self._staged.values())

    # --- data -------------------------------------------------------------------------------------------

    def data_of(self, outstanding: Outstanding[Any], start: int = 0, end: int | None = None) -> bytes:
        """The data of a pending request, or a part of it; read back where memory has let go of it.

        OSError: the store cannot be read.
        """
        end = outstanding.data_bytes if end is None else end
        if outstanding.data is None:
            return self._read_back(outstanding.serial, start, end)
        return outstanding.data if end - start == outstanding.data_bytes else outstanding.data[start:end]

    async def read_ahead(self, queue: Iterable[Outstanding[Any]], size_bytes: int) -> None:
        """Have in memory again what is first in the queue, so much data of it. OSError. Cancelled, it is not.

        Whoever sends it says so to `held.spare`.
        """
        wanted: list[Staged] = []
        for outstanding in queue:
            if size_bytes <= 0:
                break
            size_bytes -= outstanding.data_bytes
            if type(outstanding) is Staged and outstanding.data is None and not outstanding.retired:
                wanted.append(outstanding)
        if not wanted:
            return

        def read() -> list[bytes | None]:
            # One may have ended meanwhile, and left the store.
            return [
                None if staged.retired else self._read_back(staged.serial, 0, staged.data_bytes)
                for staged in wanted
            ]

        for staged, data in zip(wanted, await self._seams.run_blocking(read), strict=True):
            if data is not None and staged.data is None and not staged.retired:
                self.held.take_back(staged, data)

    def _read_back(self, serial: int, start: int, end: int) -> bytes:
        try:
            data = self._read(serial, start, end)
        except OSError as error:
            raise OSError(errno.EIO, f"a staged request cannot be read back: {error}") from error
        if len(data) != end - start:
            raise OSError(errno.EIO, "a staged request cannot be read back: it is not whole")
        self.held.read_back_total += len(data)
        return data

    # --- destaging --------------------------------------------------------------------------------------

    def _destage(self, staged: Staged) -> None:
        self.destaging.add(staged)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Destage for ever. Cancelling it leaves the store as after its last whole batch."""
        await self.destaging.run(task_status=task_status)

    @abstractmethod
    async def _store(self, entries: Iterable[StoredEntry], ended: Iterable[int]) -> None:
        """Keep the entries and forget the ended serials, durably and in one step. See `destaging.Store`."""

    @abstractmethod
    def _read(self, serial: int, start: int, end: int) -> bytes:
        """These bytes of the data of a request that the store has; from any thread. OSError."""

    @abstractmethod
    def stored_count(self) -> int:
        """How many requests the store holds now."""

    @abstractmethod
    def close(self) -> None:
        """Release the store; what it holds stays."""
