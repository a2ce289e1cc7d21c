"""The clocks of both hosts: says in the log, once each time, where they are too far apart.

Changes have times of the primary's clock. A file that was written in the future stays newer than whatever is
written today, so people are told; `volume.set_back` puts the clock of the changes right by itself.
"""

import logging

from fusemirror.limits import CLOCK_DIFFERENCE_MAX_S
from fusemirror.protocol.messages import Hello
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


class Clocks:
    """What is known of this host's clock, whichever role it has."""

    def __init__(self, volume: Volume) -> None:
        self.ahead_s: float | None = None
        """How far the peer's clock was ahead of this host's when the two met last."""
        self._volume = volume
        self._is_behind = self._differ = False  # the log says so already

    def look(self) -> None:
        """Warn, once each time, where this host's clock is too far behind the newest change."""
        behind_s = self._volume.clock.behind_s()
        is_behind = behind_s > CLOCK_DIFFERENCE_MAX_S
        if is_behind and not self._is_behind:
            log.warning(
                "this host's clock is %s behind the newest change: one of the hosts had a wrong time; new "
                "changes get the time of the primary's clock, see that both hosts have the right one",
                in_words(behind_s),
            )
        self._is_behind = is_behind

    def compare(self, peer: Hello) -> None:
        """Warn, once each time, where the clocks of the two hosts differ by too much."""
        if not peer.clock_ns:
            return  # of an earlier version
        ahead_s = (peer.clock_ns - self._volume.clock.now_ns()) / 1e9
        self.ahead_s = round(ahead_s, 3)
        differ = abs(ahead_s) > CLOCK_DIFFERENCE_MAX_S
        if differ and not self._differ:
            log.warning(
                "the clock of %s is %s %s this host's: set both by the same time service",
                self._volume.identity.only_peer.name,
                in_words(abs(ahead_s)),
                "ahead of" if ahead_s > 0 else "behind",
            )
        self._differ = differ


def in_words(seconds: float) -> str:
    """A time span as people say it."""
    for name, length_s in (("years", 365.25 * 86_400), ("days", 86_400.0), ("hours", 3_600.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {name}"
    return f"{seconds:.0f} s"
