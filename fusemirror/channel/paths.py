"""Paths: the addresses of the peer, how each stands, and which is used next. One table; no I/O, no clock.

A path to the peer uses one address at a time. The others are spares, as far as they can be reached; which
one follows when that of the path is lost is decided here, and nowhere else. Preferred are addresses that
were reached and were not lost since, in the order of the settings; then those that nobody has tried; then
the one whose failure is longest ago, so that each has its turn however many fail.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from fusemirror.errors import IllegalTransition
from fusemirror.settings import Address


class AddressState(Enum):
    """How an address stands."""

    UNTRIED = auto()
    SPARE = auto()
    """It was reached, and carries nothing."""
    IN_USE = auto()
    DOWN = auto()
    """It could not be reached, or was lost; the reason stands beside it."""


class AddressEvent(Enum):
    REACHED = auto()
    TAKEN = auto()  # the path goes by it from now on
    LEFT = auto()  # it carries nothing any more
    FAILED = auto()


_S, _N = AddressState, AddressEvent

ADDRESS_STATES: dict[AddressState, dict[AddressEvent, AddressState]] = {
    # No LEFT in the others: only what is in use can be left, and to leave it says nothing against it.
    _S.UNTRIED: {_N.REACHED: _S.SPARE, _N.TAKEN: _S.IN_USE, _N.FAILED: _S.DOWN},
    _S.SPARE: {_N.REACHED: _S.SPARE, _N.TAKEN: _S.IN_USE, _N.FAILED: _S.DOWN},
    # A second connection to the address in use says nothing new of it.
    _S.IN_USE: {_N.REACHED: _S.IN_USE, _N.TAKEN: _S.IN_USE, _N.LEFT: _S.UNTRIED, _N.FAILED: _S.DOWN},
    # It is tried again and again, or a cable that is back would help nobody until the next link.
    _S.DOWN: {_N.REACHED: _S.SPARE, _N.TAKEN: _S.IN_USE, _N.FAILED: _S.DOWN},
}


def next_address_state(standing: AddressState, news: AddressEvent) -> AddressState:
    """How an address stands after `news`; `IllegalTransition` where the table has no such pair."""
    try:
        return ADDRESS_STATES[standing][news]
    except KeyError:
        raise IllegalTransition(standing.name, news.name) from None


@dataclass
class KnownAddress:
    """One address. `since` is when it began to stand so, in the caller's time."""

    address: Address
    standing: AddressState = AddressState.UNTRIED
    since: float = 0.0
    reason: str | None = None
    round_trip_seconds: float | None = None
    local: str | None = None
    failed_at: float = 0.0

    @property
    def is_up(self) -> bool:
        return self.standing in (AddressState.SPARE, AddressState.IN_USE)


class Addresses:
    """All that are known of the peer, in the order of the settings. At most one is in use."""

    def __init__(self) -> None:
        self._rows: dict[Address, KnownAddress] = {}

    def __contains__(self, address: Address) -> bool:
        return address in self._rows

    def rows(self) -> list[KnownAddress]:
        """A row for each address."""
        return list(self._rows.values())

    @property
    def in_use(self) -> Address | None:
        return next((row.address for row in self._rows.values() if row.standing is AddressState.IN_USE), None)

    def know(self, addresses: Iterable[Address], now: float) -> None:
        """These there are from now on, in this order. What was known of those that stay is kept; one that is
        in use stays until it is lost, whatever names stand for now."""
        before, self._rows = self._rows, {}
        for address in addresses:
            self._rows[address] = before.get(address) or KnownAddress(address, since=now)
        for row in before.values():
            if row.standing is AddressState.IN_USE:
                self._rows.setdefault(row.address, row)

    def order(self, *, without: Address | None = None) -> list[Address]:
        """All but one, the one to be used next first."""

        def rank(row: KnownAddress) -> tuple[int, float]:
            if row.is_up:
                return 0, 0.0
            return (1, 0.0) if row.standing is AddressState.UNTRIED else (2, row.failed_at)

        return [row.address for row in sorted(self._rows.values(), key=rank) if row.address != without]

    def spare(self) -> Address | None:
        """Where the path goes next, if there is a place that was reached."""
        return next((row.address for row in self._rows.values() if row.standing is AddressState.SPARE), None)

    def reached(self, address: Address, now: float, *, local: str | None = None) -> None:
        """It answers. Nothing for one that is not known any more, as for all that follow."""
        self._hear(address, AddressEvent.REACHED, now, local=local)

    def taken(self, address: Address, now: float, *, local: str | None = None) -> None:
        """The path goes by it from now on, and by no other."""
        used = self.in_use
        if used is not None and used != address:
            self._hear(used, AddressEvent.LEFT, now)
        self._hear(address, AddressEvent.TAKEN, now, local=local)

    def left(self, now: float) -> None:
        """The path has ended; how its address stands nobody knows until it is tried again."""
        used = self.in_use
        if used is not None:
            self._hear(used, AddressEvent.LEFT, now)

    def failed(self, address: Address, reason: str, now: float) -> None:
        """It was lost, or cannot be reached."""
        self._hear(address, AddressEvent.FAILED, now, reason=reason)

    def measured(self, address: Address, round_trip_seconds: float | None) -> None:
        """How long an answer from there takes."""
        if address in self._rows:
            self._rows[address].round_trip_seconds = round_trip_seconds

    def _hear(
        self,
        address: Address,
        news: AddressEvent,
        now: float,
        *,
        reason: str | None = None,
        local: str | None = None,
    ) -> None:
        row = self._rows.get(address)
        if row is None:
            return
        was_up, row.standing = row.is_up, next_address_state(row.standing, news)
        if row.is_up != was_up or row.since == 0.0:
            row.since = now
        row.reason = reason
        if row.is_up:
            row.local = local or row.local
        else:
            row.failed_at = now
            row.round_trip_seconds = row.local = None
