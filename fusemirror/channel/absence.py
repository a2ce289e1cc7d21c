"""Absence: why there is no link to the peer now, for the status, and once in a while for the log."""

import logging
import math

from fusemirror import limits
from fusemirror.errors import ChannelError, ConnectionLost, PeerUnreachable

log = logging.getLogger(__name__)


class Absence:
    """See the module. `reason` is None where there is a link, or nothing was tried yet."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._logged_at = -math.inf  # the last line about a peer that is away

    def report(self, error: PeerUnreachable | ChannelError, now: float) -> None:
        """The peer was tried in vain. Log that, unless it is the same as before, and once a minute at most. A
        peer that is away is no warning: that the mirror was lost is one, where it was."""
        text = str(error)
        if text != self.reason and now - self._logged_at >= limits.AWAY_LOG_INTERVAL_S:
            away = isinstance(error, PeerUnreachable | ConnectionLost)
            log.log(logging.INFO if away else logging.WARNING, "%s", text)
            self._logged_at = now
        self.reason = text

    def note(self, error: ChannelError) -> None:
        """The same where there is no news in it for the log, or the log has it."""
        self.reason = str(error)

    def over(self) -> None:
        """There is a link; when it is lost, the log hears at once why no other comes."""
        self.reason = None
        self._logged_at = -math.inf
