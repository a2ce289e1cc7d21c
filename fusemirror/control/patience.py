"""The patience of a backup: how long a request waits for the primary, and what it gets then.

It waits for `io_timeout`. With `on_degraded = "report"` it does so only as long as the primary may be back in
a moment: once the mirror state is decided (split brain, a primary that said goodbye, or was silent for
`peer_timeout`) requests are refused as they come, and those that wait end. Source: seed [0050], steps 702
and 703.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.links import Links
from fusemirror.errors import CheckReport, NamesMissing, PrimaryAway, PrimaryUnreachable
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.resync import PAUSED
from fusemirror.mirror.states import BackupState
from fusemirror.mirror.waits import Limit, Waits
from fusemirror.settings import OnDegraded, Settings

log = logging.getLogger(__name__)

_LOOKS_PER_TIMEOUT = 20
_UNKNOWN = "it is there, but slow"

T = TypeVar("T")


class Patience:
    """Of one unit. `watch` runs for ever, time after time."""

    def __init__(
        self,
        applier: Applier,
        communication: CommunicationVolume,
        links: Links,
        waits: Waits,
        io_timeout_s: float,
        *,
        may_take_over: bool = False,
    ) -> None:
        """`may_take_over`: this host may become the primary by itself: nothing is in vain before `refuse`."""
        self.io_timeout_s = io_timeout_s
        self.waits = waits
        self._applier = applier
        self._communication = communication
        self._links = links
        self._may_take_over = may_take_over
        self._is_refused = False  # this time apart
        self._reports = False
        self._peer_timeout_s = 0.0
        self._began = trio.current_time()
        self._looked = trio.Event()
        self._has_reported = False

    def configure(self, settings: Settings) -> None:
        """From now on, also for who waits already."""
        self.io_timeout_s = settings.io_timeout
        self._peer_timeout_s = settings.peer_timeout
        self._reports = settings.on_degraded is OnDegraded.REPORT
        self.look()

    def begin_link(self) -> None:
        """The log says anew when there is no answer."""
        self._has_reported = self._is_refused = False
        self.look()

    def refuse(self) -> None:
        """This host may not take over now."""
        self._is_refused = True
        self.look()

    # --- whether it is in vain ------------------------------------------------------------------------------

    @property
    def decided_at(self) -> float:
        """When (trio time) it is, or will be, decided that the primary is away; never while it is met."""
        state, links = self._applier.state, self._links
        if state is BackupState.DIVERGED:
            return -math.inf
        waits_for_witness = self._may_take_over and not self._is_refused
        if state is not BackupState.DISCONNECTED or links.link is not None or waits_for_witness:
            return math.inf
        if self._applier.left:
            return -math.inf
        return (self._began if links.lost_at is None else links.lost_at) + self._peer_timeout_s

    def look(self) -> None:
        """A link is over, or the histories differ: end what waits, if that is in vain now."""
        self.waits.tell(in_vain=self._reports and trio.current_time() >= self.decided_at)
        looked, self._looked = self._looked, trio.Event()
        looked.set()

    async def watch(self) -> None:
        """Look again when it will be decided; return after that, or when something else was news."""
        decided_at = self.decided_at
        ahead = decided_at > trio.current_time()
        with trio.move_on_at(decided_at if ahead else math.inf) as due:
            await self._looked.wait()
        if due.cancelled_caught:
            self.look()

    def check(self) -> None:
        """A check report where what is about to be asked of the primary is in vain (steps 702, 703)."""
        if self.waits.in_vain:
            self.look()  # as it is now
            if self.waits.in_vain:
                raise self.report()

    # --- what it gets ---------------------------------------------------------------------------------------

    def report(self) -> CheckReport:
        """What a request gets that waited too long, or in vain. The log says so once for each time apart."""
        error, reason = self._error()
        if not self._has_reported:
            self._has_reported = True
            log.warning("%s%s", error, reason and f" ({reason})")
        return error

    def _error(self) -> tuple[CheckReport, str]:
        """The error, and the reason that its text does not say."""
        reason = self._applier.reason or self._communication.order.reason or _UNKNOWN
        if self.waits.in_vain:
            return PrimaryAway(reason), ""
        catches_up = self._applier.state is BackupState.CATCHING_UP
        return (NamesMissing if catches_up else PrimaryUnreachable)(self.io_timeout_s), reason

    @property
    def shown_reason(self) -> str | None:
        """Why this host is not well, and what that means for its programs, for people."""
        if self.waits.in_vain:
            return str(self._error()[0])
        resync = self._applier.out_of_sync.resync
        if resync is not None and resync.paused:
            return PAUSED
        waits_here = self._communication.order.reason
        return self._applier.reason or self._applier.declined.reason or waits_here or self._reason_of_age()

    def _reason_of_age(self) -> str | None:
        """A backup that is normal is not well where a request waits for longer than it should."""
        oldest = self._communication.order.oldest_since
        age_s = 0.0 if oldest is None else trio.current_time() - oldest
        if age_s <= self.io_timeout_s:
            return None
        return f"a request has waited for {age_s:.0f} s, longer than io_timeout: the primary is slow"

    # --- waiting --------------------------------------------------------------------------------------------

    def limited(self) -> Limit:
        """What is awaited inside ends after `io_timeout`, or once it is in vain."""
        if self.waits.in_vain:
            self.look()
        return self.waits.limited(self.io_timeout_s)

    async def in_time(self, wait: Callable[[], Awaitable[T]]) -> T:
        """What `wait` returns; a check report where that takes too long, or is in vain."""
        with self.limited():
            return await wait()
        raise self.report()

    async def while_progressing(self, wait: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Wait as long as requests end; a check report once none did for `io_timeout`, or it is in vain."""
        while True:
            retired = self._communication.ended.total
            with self.limited():
                await wait(*arguments)
                return
            if self._communication.ended.total == retired or self.waits.in_vain:
                raise self.report()

    async def pause(self) -> None:
        """Between two looks at who waits too long; a look is due as soon as they wait in vain."""
        pause_s = self.io_timeout_s / _LOOKS_PER_TIMEOUT
        if self.waits.in_vain:
            await trio.sleep(pause_s)
            return
        with self.waits.limited(pause_s):
            await trio.sleep_forever()
