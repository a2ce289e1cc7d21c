"""The communication volume: one interface, whatever keeps the staged requests.

A request of the backup is held in memory first and written to the store beside its transfer, not
before it (seed [0047], [0048]). It is retired when its answer has arrived. What the store holds
after a crash of this host was never acknowledged in synchronous mode, so it is not taken up again.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import trio

from fusemirror.identifiers import RequestId
from fusemirror.limits import DESTAGE_AFTER_S, DESTAGE_BATCH_BYTES_MAX
from fusemirror.promise import Promise
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Request


class Staged:
    """One request on its way: what was asked, its data, and the answer that its program waits for."""

    __slots__ = (
        "abandoned",
        "answer",
        "data",
        "destaged",
        "request",
        "retired",
        "sent_over",
        "serial",
        "since",
    )

    def __init__(self, serial: int, request: Request, data: bytes, since: float) -> None:
        self.serial = serial
        self.request = request
        self.data = data
        self.since = since
        self.answer: Promise[object] = Promise()
        self.destaged = False
        self.retired = False
        self.sent_over: object = None
        """The link over which it was sent last: over each link it goes once."""
        self.abandoned = False
        """Its program was told a check report; the data is kept as long as a change may need it."""


class CommunicationVolume(ABC):
    """Requests in the order in which they were staged, until they are retired."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.pending_bytes = 0
        self.staged_total = 0
        self.retired_total = 0
        self.destaged_total = 0
        self._serial = 0
        self._staged: dict[RequestId, Staged] = {}
        self._destaged_and_retired: list[int] = []
        self._work: Promise[None] | None = None
        self._room = trio.lowlevel.ParkingLot()  # everyone who waits for requests to end

    def __len__(self) -> int:
        return len(self._staged)

    @property
    def oldest_since(self) -> float | None:
        """When the request that waits longest was staged, in trio's time."""
        return next((staged.since for staged in self._staged.values()), None)

    async def wait_room(self, size_bytes: int) -> None:
        """Return when `size_bytes` more fit into the capacity; an empty volume takes any one request."""
        while self._staged and self.pending_bytes + size_bytes > self.capacity_bytes:
            await self._room.park()

    async def wait_empty(self) -> None:
        """Return when every request staged so far, and since, has ended."""
        while self._staged:
            await self._room.park()

    def stage(self, request: Request, data: bytes) -> Staged:
        """Hold a request; it is in the store too, unless it is answered before."""
        self._serial += 1
        self.staged_total += 1
        staged = Staged(self._serial, request, data, trio.current_time())
        self._staged[request.identity] = staged
        self.pending_bytes += len(data)
        if self._work is not None:
            self._work.resolve(None)
        return staged

    def find(self, identity: RequestId) -> Staged | None:
        return self._staged.get(identity)

    def retire(self, identity: RequestId) -> None:
        """The request has ended: neither memory nor, a little later, the store holds it."""
        staged = self._staged.pop(identity, None)
        if staged is None:
            return
        staged.retired = True
        self.retired_total += 1
        self.pending_bytes -= len(staged.data)
        self._room.unpark_all()
        if staged.destaged:
            self._destaged_and_retired.append(staged.serial)
            if self._work is not None:
                self._work.resolve(None)

    def pending(self) -> list[Staged]:
        """Everything staged and not retired, oldest first."""
        return list(self._staged.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Destage for ever. Cancelling it leaves the store as after its last whole batch."""
        task_status.started()
        while True:
            if not self._staged and not self._destaged_and_retired:
                self._work = Promise()
                await self._work.wait()
                self._work = None
            await trio.sleep(DESTAGE_AFTER_S)
            await self._destage()

    async def _destage(self) -> None:
        """Write what has waited long enough, and remove what has ended, in one transaction."""
        before = trio.current_time() - DESTAGE_AFTER_S
        batch: list[Staged] = []
        size = 0
        for staged in self._staged.values():
            if staged.since > before or size > DESTAGE_BATCH_BYTES_MAX:
                break
            if not staged.destaged:
                staged.destaged = True
                batch.append(staged)
                size += len(staged.data)
        ended, self._destaged_and_retired = self._destaged_and_retired, []
        if batch or ended:
            entries = [(staged.serial, encode(staged.request), staged.data) for staged in batch]
            await self._store(entries, ended)
            self.destaged_total += len(batch)

    @abstractmethod
    async def _store(self, entries: Iterable[tuple[int, bytes, bytes]], ended: Iterable[int]) -> None:
        """Keep the entries (serial, request, data) and forget the ended serials, in one step."""

    @abstractmethod
    def stored_count(self) -> int:
        """How many requests the store holds now."""

    @abstractmethod
    def close(self) -> None:
        """Release the store; what it holds stays."""
