"""Admission: which of those that dial this host may begin a handshake, and what the log says of the others.

A handshake costs memory, and with TLS a millisecond of the processor on the event loop that serves every
read and write. Anybody who reaches the port can ask for one. So there are two groups. The peer's own
addresses, known because this host reached the peer there or because a handshake from there succeeded, have
places and a rate that nobody else uses up. All others share a few places and a low rate; beyond the rate
they are turned away, and once the places are taken a newcomer takes the place of one chosen by chance (as a
router drops early and at random), so that those who say nothing keep nobody out.

It decides; `link.py` accepts, shakes hands and closes. The peer is known by its certificate, never by its
address: a stranger at an address of the peer's wins a better place in this queue, and nothing else.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from fusemirror import limits
from fusemirror.printable import counted

log = logging.getLogger(__name__)


class Slot:
    """Of a handshake; its scope ends that when the time is over, or when a newcomer takes the place."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + limits.HANDSHAKE_TIMEOUT_S)
        self.given_away = False


class _Group:
    """Places for so many handshakes at once, and tokens for so many a second."""

    def __init__(self, places_max: int, handshakes_per_s: float) -> None:
        self.places: list[Slot] = []
        self._places_max = places_max
        self._rate = handshakes_per_s
        self._tokens = float(places_max)
        self._counted_at = 0.0

    def may_enter(self) -> bool:
        now = trio.current_time()
        self._tokens = min(self._places_max, self._tokens + self._rate * (now - self._counted_at))
        self._counted_at = now
        return self._tokens >= 1

    def enter(self, random_bytes: Callable[[int], bytes]) -> Slot:
        self._tokens -= 1
        if len(self.places) >= self._places_max:
            # Never the newest: a flood would let nobody finish. Modulo is even enough for this.
            chosen = self.places.pop(int.from_bytes(random_bytes(4), "big") % len(self.places))
            chosen.given_away = True
            chosen.scope.cancel()
        place = Slot()
        self.places.append(place)
        return place


class HandshakeAdmission:
    """Decides who may shake hands now. Addresses are without their ports."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self.refusals = Refusals()
        self._random_bytes = random_bytes
        self._known: OrderedDict[str, None] = OrderedDict()  # addresses of the peer, the newest last
        self._peer = _Group(limits.PEER_HANDSHAKES_MAX, limits.PEER_HANDSHAKES_PER_S)
        self._strangers = _Group(limits.STRANGERS_MAX, limits.STRANGER_HANDSHAKES_PER_S)

    def know(self, host: str) -> None:
        """The peer is at this address: it was reached there, or showed there who it is."""
        self._known[host] = None
        self._known.move_to_end(host)
        if len(self._known) > limits.PEER_ADDRESSES_MAX:
            self._known.popitem(last=False)

    def known(self) -> list[str]:
        """Where the peer is known to be."""
        return list(self._known)

    def is_known(self, host: str) -> bool:
        """Whether the peer was met at this address."""
        return host in self._known

    def admits(self, host: str) -> bool:
        """Whether a connection from `host` may shake hands now; one that may not is counted as refused."""
        group = self._group(host)
        if group.may_enter():
            return True
        # Where this host stood still, the peer has dialed in vain all the while, and all that is met at once;
        # nobody need do anything: it dials again within a second.
        level = logging.INFO if group is self._peer else logging.WARNING
        self.refusals.note(host, f"refused a connection of {host}: too many at once", level)
        return False

    @contextmanager
    def handshake(self, host: str) -> Iterator[Slot]:
        """A place for a handshake with `host`, which `admits` let in; perhaps somebody else's."""
        group = self._group(host)
        place = group.enter(self._random_bytes)
        try:
            yield place
        finally:
            if place in group.places:
                group.places.remove(place)

    def _group(self, host: str) -> _Group:
        return self._peer if host in self._known else self._strangers


class Refusals:
    """What the log says of those who were refused: a few lines a minute, and then how many more."""

    def __init__(self) -> None:
        self._logged = 0  # lines in this interval
        self._more = 0  # refusals without a line
        self._level = logging.INFO  # the highest of those
        self._hosts: set[str] = set()  # of those; bounded
        self._last = ""
        self._begun = trio.Event()

    def note(self, host: str, text: str, level: int = logging.WARNING) -> None:
        """Log the refusal `text`, or count it where enough were logged in this minute."""
        self._begun.set()
        if self._logged < limits.REFUSALS_LOGGED_MAX:
            self._logged += 1
            log.log(level, "%s", text)
            return
        self._more += 1
        self._level = max(self._level, level)
        self._last = text
        if len(self._hosts) < limits.REFUSED_HOSTS_MAX:
            self._hosts.add(host)

    async def sum_up(self) -> None:
        """At the end of each interval log how many refusals had no line, if any. Runs until cancelled."""
        while True:
            await self._begun.wait()
            await trio.sleep(limits.REFUSALS_INTERVAL_S)
            if self._more:
                log.log(
                    self._level,
                    "refused %s in %g s, of %s; the last: %s",
                    counted(self._more, "more connection"),
                    limits.REFUSALS_INTERVAL_S,
                    _counted(len(self._hosts)),
                    self._last,
                )
            self._logged = self._more = 0
            self._level = logging.INFO
            self._hosts.clear()
            self._begun = trio.Event()


def _counted(hosts: int) -> str:
    if hosts >= limits.REFUSED_HOSTS_MAX:
        return f"{hosts} addresses or more"
    return counted(hosts, "address", "addresses")
