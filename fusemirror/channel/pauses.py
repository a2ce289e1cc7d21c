"""Pauses: how long a host waits before it dials again, and before it meets a peer anew. Pure."""

import trio

from fusemirror import limits


class Pauses:
    """Ever longer ones, each kind up to its limit, until what they are for has gone well."""

    def __init__(self) -> None:
        self.dial_s = limits.RECONNECT_FIRST_S
        """After the next dial that comes to nothing."""
        self.held: trio.Event | None = None
        """Set when links may be made again, while none may be."""
        self._link_s = 0.0  # after the next link that ends at once
        self._refused_s = 0.0  # after the last link that ended by a bad message

    def dial_soon(self) -> None:
        """The peer is there, or something else has changed."""
        self.dial_s = limits.RECONNECT_FIRST_S

    def dialed_in_vain(self) -> None:
        self.dial_s = min(2 * self.dial_s, limits.RECONNECT_MAX_S)

    def after_link(self, lasted_s: float) -> float:
        """Let links that end as soon as they are made follow each other ever more slowly: what ends them,
        a full disk on either host, would else be met thousands of times a second."""
        if lasted_s >= limits.RECONNECT_MAX_S:
            self._link_s = 0.0
            return 0.0
        pause_s = self._link_s
        self._link_s = min(max(2 * pause_s, limits.RECONNECT_FIRST_S), limits.RECONNECT_MAX_S)
        return pause_s

    def after_refused_link(self, lasted_s: float) -> float:
        """The same of links that end by a bad message: each costs both hosts a resync, and the log a line."""
        calm = lasted_s > 2 * limits.REFUSED_REST_MAX_S
        longer_s = limits.RECONNECT_MAX_S if calm else max(2 * self._refused_s, limits.RECONNECT_MAX_S)
        self._refused_s = min(longer_s, limits.REFUSED_REST_MAX_S)
        return self._refused_s
