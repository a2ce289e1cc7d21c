"""Order: the requests of a communication volume that have not ended, and how far the newest may run ahead.

The primary remembers what became of each request until it hears that all before it have ended. So what may be
staged behind the oldest live one has a limit.
"""

from collections import deque
from collections.abc import Callable, Iterable

from fusemirror.communication.staged import Staged
from fusemirror.identifiers import RequestId
from fusemirror.limits import STAGED_SINCE_OLDEST_MAX


class Order:
    """Of one communication volume."""

    def __init__(self, in_store: Callable[[], Iterable[Staged]]) -> None:
        """`in_store`: what has ended, and the store has not let go of."""
        self._in_store = in_store
        self.staged: dict[RequestId, Staged] = {}
        """What has not ended, the oldest first."""
        self.last_serial = 0
        """Of the request that was staged last."""
        self.last_allowed = 0
        """Nobody need look before that one whether the next has its place behind the oldest live one."""
        self._identities: deque[RequestId] = deque()  # from the oldest on, and of what has ended since
        self._live: Staged | None = None  # the oldest live one, when it was looked last

    def add(self, staged: Staged) -> None:
        """One that was staged last."""
        identity = staged.request.identity
        self.staged[identity] = staged
        self._identities.append(identity)

    @property
    def oldest(self) -> Staged | None:
        # The first item of the dict is not looked for: that goes over the places of all that have ended. An
        # OrderedDict has it at once, and takes a hundred times as long to look at many.
        while self._identities and self._identities[0] not in self.staged:
            self._identities.popleft()
        return self.staged[self._identities[0]] if self._identities else None

    @property
    def oldest_since(self) -> float | None:
        """When the request that waits longest was staged, in trio's time."""
        oldest = self.oldest
        return None if oldest is None else oldest.since

    @property
    def oldest_live(self) -> RequestId | None:
        """Every request staged before this one has ended, and is never taken up again; None: all have."""
        oldest = self._oldest_live()
        return None if oldest is None else oldest.request.identity

    @property
    def newest(self) -> int:
        """All have ended that were staged by now once those up to this serial have; 0: all have."""
        return self.last_serial if self.staged else 0

    def _oldest_live(self) -> Staged | None:
        # It never goes back, so the one of the last look is asked first: each program that waits asks again
        # at each end, and a store that fails may have very many that have ended.
        if self._live is None or not self._is_live(self._live):
            in_store = [staged for staged in self._in_store() if self._is_live(staged)]
            first = self.oldest
            live = in_store if first is None else [*in_store, first]
            self._live = min(live, key=lambda staged: staged.serial, default=None)
        return self._live

    def _is_live(self, staged: Staged) -> bool:
        # What the store has of others is discarded at the next mount. While it fails, it lets go of nothing.
        if staged.retired:
            return staged.request.kept and staged.destaged
        return True

    @property
    def too_far_ahead(self) -> bool:
        """Whether so many were staged behind the oldest live one that the next waits for its end: the primary
        remembers what became of each."""
        if self.last_serial < self.last_allowed:
            return False
        oldest = self._oldest_live()  # it never goes back, so nobody looks again before that many have come
        before = self.last_serial if oldest is None else oldest.serial - 1
        self.last_allowed = before + STAGED_SINCE_OLDEST_MAX
        return self.last_serial >= self.last_allowed

    @property
    def reason(self) -> str | None:
        """Why programs wait for the communication volume, for people."""
        if not self.too_far_ahead:
            return None
        oldest = self._oldest_live()
        if oldest is not None and oldest.retired:
            why = "the disk of the communication volume lets go of no request that has ended"
        else:
            why = "a request is not answered"
        return f"{why}, and {STAGED_SINCE_OLDEST_MAX} came after it: the next ones wait"

    def acknowledged_before(self, serial: int) -> bool:
        """Whether there is a request that stands before this place and that nobody waits for."""
        first = self.oldest
        return first is not None and first.acknowledged and first.serial < serial

    @property
    def has_told(self) -> bool:
        """Whether there is a request that nobody waits for: its program was told of success."""
        return any(staged.acknowledged for staged in self.staged.values())
