"""Destaging: requests are written to the store beside their transfer, and removed when they have ended.

What waits for the store, as a kept request does, is written at once, with all that came together; the rest
only where its answer is late. Where the primary is nearer than the disk the store is spared: both are
measured.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from fusemirror.communication.held_data import HeldData
from fusemirror.communication.staged import Staged, StoredEntry
from fusemirror.errors import DiskFailed, StoreInDoubt
from fusemirror.limits import COMMIT_DELAY_S, DESTAGE_AFTER_S, DESTAGE_BATCH_BYTES_MAX, KIB, STORE_RETRY_S
from fusemirror.promise import Promise

log = logging.getLogger(__name__)

_SMOOTHING = 8  # measurements that a smoothed one stands for, as in TCP's round trip
_STORE_COSTS = 2.0  # times what it takes: its work holds up the writes that come next, and their answers
_STORE_REMEMBERED = 0.999  # of what the store took, at each request that spares it: it is tried again one day
SMALL_BYTES_MAX = 64 * KIB
"""What more takes, to be written or to be sent, says nothing of small requests."""

Store = Callable[[list[StoredEntry], list[int]], Awaitable[None]]
"""Keeps the entries and forgets the serials that have ended, durably and in one step. DiskFailed: none of the
entries is found again, whatever comes. StoreInDoubt: they may be, until a later call has forgotten them."""


class Destaging:
    """That of one communication volume. `ended` wakes whoever waits there."""

    def __init__(
        self,
        store: Store,
        held: HeldData,
        ended: trio.lowlevel.ParkingLot,
        take_room: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """`take_room`: whether the disk has room for so much data, which then counts as taken. OSError."""
        self._store = store
        self._take_room = take_room
        self._held = held
        self._ended = ended
        self.total = 0
        """How many requests were stored."""
        self._unstored: deque[Staged] = deque()
        self._kept_unstored = 0
        self._kept_together = 1  # by the last commit: about as many programs write at once
        self._store_s = 0.0  # that a commit of kept requests takes,
        self._answer_s = math.inf  # and the primary's answer to one at best; both smoothed
        self._leaving: list[Staged] = []  # retired, and still in the store
        self._removing: list[Staged] = []  # being removed from it
        self._work: Promise[None] | None = None
        self._idle = False

    @property
    def answers_first(self) -> bool:
        """The primary is expected to answer a kept request before the store could hold it, or so soon after
        that to store it is not worth its work."""
        return self._answer_s < self._store_s * _STORE_COSTS

    def add(self, staged: Staged) -> None:
        """Store it, unless it is answered before."""
        self._unstored.append(staged)
        self._kept_unstored += staged.request.kept
        hurries = staged.request.kept and not self.answers_first
        self._wake(urgent=hurries and self._kept_unstored >= self._kept_together)

    def leave(self, staged: Staged) -> None:
        """A request that the store has was retired: it is removed a little later."""
        self._leaving.append(staged)
        self._wake(urgent=False)

    def note_answer(self, seconds: float) -> None:
        """The primary took so long to answer a small kept request."""
        # What is gathered, or meets the store at work, is answered later than the distance makes it.
        self._answer_s = min(seconds, _smoothed(self._answer_s, seconds))
        if self.answers_first:
            self._store_s *= _STORE_REMEMBERED

    def forget_answers(self) -> None:
        """The link is over: how long an answer takes is not known any more."""
        self._answer_s = math.inf

    @property
    def in_store(self) -> list[Staged]:
        """What was retired, and is in the store still."""
        return self._leaving + self._removing

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
        fresh = [staged for staged in batch if not staged.destaged]  # the others may be there since a failure
        for staged in fresh:
            staged.destaged = True
        if batch or self._removing:
            entries: list[StoredEntry] = []
            for staged in batch:
                assert staged.data is not None, "memory lets go of nothing that the store has not"
                entries.append((staged.serial, staged.encoded, staged.data))
            began = trio.current_time()
            try:
                await self._store(entries, [staged.serial for staged in self._removing])
            except DiskFailed as error:
                for staged in fresh:
                    staged.destaged = isinstance(error, StoreInDoubt)
                self._take_back(batch)
                raise
            for staged in self._removing:
                staged.destaged = False
            self._removing = []
            for staged in batch:
                staged.stored = True
                if not staged.retired:
                    self._held.spare(staged)
            self._ended.unpark_all()
            self.total += len(batch)
        kept = [staged for staged in batch if staged.request.kept]
        if kept and sum(staged.data_bytes for staged in kept) <= SMALL_BYTES_MAX:
            self._store_s = _smoothed(self._store_s, trio.current_time() - began)
        self._kept_together = max(1, len(kept))
        for staged in kept:
            staged.acknowledge()

    def _take_back(self, batch: list[Staged]) -> None:
        """The store is to get the batch again, and still holds what it should have let go of.

        What may be in it is removed from it, too, once it has ended: until then the primary must not forget
        it (`oldest_live`), or one that the next mount finds would be carried out twice (G4). What is not
        there for certain ends with its answer, or a disk that stays full would have the primary remember all.
        """
        self._leaving = [staged for staged in self._removing + self._leaving if staged.destaged]
        self._removing = []
        for staged in reversed(batch):
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
            # What nobody was told of needs no store. Room for the rest was taken when it was staged.
            if not staged.retired and (staged.request.kept or self._has_room(staged)):
                batch.append(staged)
                size += staged.data_bytes
                if staged.since <= before:
                    self._answer_s = max(self._answer_s, DESTAGE_AFTER_S)  # at least so long
        return batch

    def _has_room(self, staged: Staged) -> bool:
        try:
            return self._take_room(staged.data_bytes)
        except OSError:
            # A disk that cannot be asked has no room, and that is all: nobody waits for this one to be
            # stored, and programs wait for what is in the batch already. The status tells of the disk.
            return False


def _smoothed(before: float, measured: float) -> float:
    """Seconds; nothing was measured before where that is 0 or infinite."""
    return before + (measured - before) / _SMOOTHING if 0 < before < math.inf else measured
