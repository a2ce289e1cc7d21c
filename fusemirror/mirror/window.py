"""The window: changes that main holds and the backup has not acknowledged, and who waits for that.

Acknowledgements are cumulative, because the subvolume is always a prefix of main: one number says how far.
Whoever would show an effect of a later change (a read, a lookup, an error) waits for it first: that is G2 at
the primary. A change that is in doubt (main has it, and nobody knows whether the other host has) ends the
wait too. Who looks may be shown it, as main goes on showing it; only its own program must hear of the doubt.

The backup delays the word of what its own programs wrote, as nobody waits for that here. Where somebody does
(a read of those bytes), it is asked for.

No I/O, and no time but what its callers say: `sending.py` decides when a number is acknowledged.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from fusemirror.change import AnyChange
from fusemirror.errors import CheckReport, RoleChanged
from fusemirror.identifiers import NO_CHANGE, NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.promise import Promise

Doubt = Callable[[], CheckReport]
"""Makes what who asked for a change is told that may or may not have taken effect."""


class InFlight(msgspec.Struct, gc=False):
    """A change that the backup has not acknowledged; for one of data, the bytes that it shows anew."""

    number: ChangeNumber
    keys: tuple[Any, ...]
    inode: InodeNumber
    start: int
    end: int
    since: float
    length: int  # bytes of data that came with it
    before: "InFlight | None" = None  # the change of the same image's data before it


class Window:
    """See the module. `acknowledged_number` never goes back."""

    def __init__(self, number: ChangeNumber, ask: Callable[[], None] = lambda: None) -> None:
        """Every change up to `number` counts as acknowledged: an earlier process showed them.

        `ask()` asks the backup for the word that it may have delayed. It must not change the window.
        """
        self.acknowledged_number = number
        self._ask = ask
        self._prompt_number = number  # up to here the word comes by itself, or has been asked for
        self.in_flight: deque[InFlight] = deque()
        # Of changes under way: who looks must not go through all of them, which may be very many.
        self._newest: dict[Any, ChangeNumber] = {}  # by key
        self._newest_of_data: dict[InodeNumber, InFlight] = {}
        # A list, and no dict by number: acknowledgements are cumulative, so whoever waits for less is ready
        # too.
        # The last says whether the change is the waiting program's own.
        self._waiting: list[tuple[ChangeNumber, Promise[Doubt | None], bool]] = []
        self._actions: list[tuple[ChangeNumber, Callable[[bool], None]]] = []
        self._doubts: dict[ChangeNumber, Doubt] = {}  # of changes that are not acknowledged yet
        self._is_closed = False
        self._perhaps = NO_CHANGE
        self._doubt: Callable[[], Exception] = RoleChanged

    def add(self, change: AnyChange, keys: tuple[Any, ...], old_size_bytes: int, now: float) -> None:
        """A change was made. One of data beyond the end of its file shows zeros from `old_size_bytes` on."""
        number, length = change.number, change.length
        inode, start, end = change.data_range()
        entry = InFlight(number, keys, inode, min(start, old_size_bytes), end, now, length)
        # A gap or a repetition here would settle a program's change by the acknowledgement of another.
        assert number > (self.in_flight[-1].number if self.in_flight else self.acknowledged_number)
        self.in_flight.append(entry)
        for key in keys:
            self._newest[key] = number
        if inode:
            entry.before = self._newest_of_data.get(inode)
            self._newest_of_data[inode] = entry
        # A change of this host's own programs is acknowledged at once, and with it all before it.
        if change.request == NO_REQUEST:
            self._prompt_number = number

    async def acknowledged(self, number: ChangeNumber) -> None:
        """Return when the backup holds change `number`, or the primary goes on without it. A write waits for
        nothing after this (`Promise.wait_last`).

        A check report that it is in doubt where the primary may not, or cannot, go on without it;
        `RoleChanged` where this host became the backup first, and nobody holds the change.
        """
        # An acknowledgement that came before the question is the common case, and costs no promise.
        if number > self.acknowledged_number:
            await self.acknowledgement(number).wait_last()

    def acknowledgement(self, number: ChangeNumber, *, is_own: bool = True) -> Promise[Doubt | None]:
        """`acknowledged` of a change that is not yet, as a promise: rejected with what that raises. Where it
        is another program's (not `is_own`), the doubt is its result.
        """
        # The new primary may go on without it, so to wait here could be to wait for ever.
        if self._is_closed:
            raise RoleChanged
        promise: Promise[Doubt | None] = Promise()
        self._waiting.append((number, promise, is_own))
        if number > self._prompt_number:
            self._hurry(number)
        return promise

    async def settled(self, number: ChangeNumber) -> bool:
        """Return when change `number` may be shown: it is acknowledged (True), or in doubt for ever."""
        return (
            number <= self.acknowledged_number
            or await self.acknowledgement(number, is_own=False).wait() is None
        )

    def _hurry(self, number: ChangeNumber) -> None:
        """Somebody waits for this one, whose word may be delayed."""
        # One question is enough for all that is under way: its answer counts for everything before it.
        self._prompt_number = max(number, self.in_flight[-1].number if self.in_flight else number)
        self._ask()

    def when_settled(self, number: ChangeNumber, action: Callable[[bool], None]) -> None:
        """Call `action` as soon as `settled` returns, with its result. It must not change the mirror.

        Never, where this host becomes the backup first.
        """
        if number > self.acknowledged_number:
            self._actions.append((number, action))
            if number > self._prompt_number:
                self._hurry(number)
        else:
            action(True)

    def unsettled(self, key: object) -> ChangeNumber:
        """The newest change under way that touches `key`, or 0."""
        # The newest: who has seen that has seen all before it.
        return self._newest.get(key, NO_CHANGE)

    def unsettled_range(self, inode: InodeNumber, start: int, end: int) -> ChangeNumber:
        """The newest change under way of these bytes of an image, or 0."""
        entry = self._newest_of_data.get(inode)
        while entry is not None and entry.number > self.acknowledged_number:
            if entry.start < end and start < entry.end:
                return entry.number
            entry = entry.before
        return NO_CHANGE

    def acknowledge(self, number: ChangeNumber, doubt: Doubt | None = None) -> None:
        """Every change up to `number` is held by the other host, or in doubt; who waits for one hears of it.

        Nothing for a number that was acknowledged before.
        """
        # One after the other: a change before the doubtful one is acknowledged without a doubt, and so is the
        # next one behind it.
        while self._doubts and (first := min(self._doubts)) <= number:
            own = self._doubts.pop(first)
            self.acknowledge(ChangeNumber(first - 1))
            self.acknowledge(first, own)
        if number <= self.acknowledged_number:
            return
        # Before anybody wakes: whoever does may ask at once what is acknowledged.
        self.acknowledged_number = number
        while self.in_flight and self.in_flight[0].number <= number:
            self._forget(self.in_flight.popleft())
        if self._waiting:
            waiting = self._waiting
            # Before anybody is woken, here and below: who goes on at once may come to wait for the next
            # change.
            self._waiting = [each for each in waiting if each[0] > number]
            for its_number, promise, is_own in waiting:
                if its_number > number:
                    continue
                if doubt is not None and is_own:
                    promise.reject(doubt())
                else:
                    promise.resolve(doubt)
        if self._actions:
            ready = [action for action in self._actions if action[0] <= number]
            self._actions = [action for action in self._actions if action[0] > number]
            for _, action in ready:
                action(doubt is None)

    def _forget(self, entry: InFlight) -> None:
        """A change is not under way any more; it was the oldest."""
        for key in entry.keys:
            if self._newest.get(key) == entry.number:
                del self._newest[key]
        if self._newest_of_data.get(entry.inode) is entry:
            del self._newest_of_data[entry.inode]
        entry.before = None  # the next one may keep this one, and so no more than that

    def doubt(self, number: ChangeNumber, doubt: Doubt) -> None:
        """This change alone is in doubt, as soon as it would be acknowledged."""
        if number > self.acknowledged_number:
            self._doubts[number] = doubt

    def close(
        self,
        known: ChangeNumber,
        perhaps: ChangeNumber = NO_CHANGE,
        doubt: Callable[[], Exception] = RoleChanged,
    ) -> None:
        """This host is the primary no more. The new one holds every change up to `known`; those who wait for
        later ones, and whoever asks from now on, get `RoleChanged`.

        It may hold writes up to `perhaps`, too, of which it has no record; whose program waits gets `doubt`.
        """
        # In this order: whoever wakes by the acknowledgement and asks again must find it closed.
        assert not self._is_closed, "a role ends once"
        self._is_closed = True
        self.acknowledge(known)
        # Behind the acknowledgement: only what is under way by now is in question.
        self._perhaps, self._doubt = min(perhaps, self._last_before_record(known)), doubt
        waiting, self._waiting = self._waiting, []
        for number, promise, is_own in waiting:
            # Who only looks asks the new primary, which shows what it holds, whatever that is.
            promise.reject(self.end_of(number) if is_own else RoleChanged())

    def end_of(self, number: ChangeNumber) -> Exception:
        """What the program gets whose change was not acknowledged before this was closed."""
        return self._doubt() if number <= self._perhaps else RoleChanged()

    def _last_before_record(self, number: ChangeNumber) -> ChangeNumber:
        """The last change under way before the next one that every host keeps a record of."""
        for entry in self.in_flight:
            # Records outlive a process, and changes are applied in their order: where a record is missing
            # nothing behind it was applied, either.
            if not entry.inode:
                break
            number = entry.number
        return number

    def status(self, now: float) -> dict[str, float]:
        """The counts of the field `communication` of the primary's status. Data counts in bytes."""
        oldest_s = now - self.in_flight[0].since if self.in_flight else 0.0
        return {
            "pending_requests": len(self.in_flight),
            "pending_bytes": sum(entry.length for entry in self.in_flight),
            "oldest_seconds": round(oldest_s, 3),
        }
