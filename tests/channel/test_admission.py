"""Admission: strangers share a few places and a low rate; the peer's addresses have their own."""

import logging
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.admission import HandshakeAdmission


def never_random(size: int) -> bytes:
    return bytes(size)


@pytest.fixture
def admission() -> HandshakeAdmission:
    return HandshakeAdmission(never_random)


async def enter_and_leave(admission: HandshakeAdmission, host: str) -> bool:
    if not admission.admits(host):
        return False
    with admission.handshake(host):
        pass
    return True


@pytest.mark.expects_warnings
async def test_strangers_share_a_rate(
    admission: HandshakeAdmission, autojump_clock: trio.testing.MockClock
) -> None:
    entered = [await enter_and_leave(admission, f"10.0.0.{number}") for number in range(200)]
    assert entered == [True] * limits.STRANGERS_MAX + [False] * (200 - limits.STRANGERS_MAX)
    await trio.sleep(1)
    entered = [await enter_and_leave(admission, "10.0.0.1") for _ in range(200)]
    assert sum(entered) == limits.STRANGER_HANDSHAKES_PER_S


@pytest.mark.expects_warnings
async def test_the_peers_addresses_have_a_rate_of_their_own(
    admission: HandshakeAdmission, autojump_clock: trio.testing.MockClock
) -> None:
    admission.know("10.0.0.2")
    while await enter_and_leave(admission, "10.0.0.1"):
        pass
    assert await enter_and_leave(admission, "10.0.0.2")
    while await enter_and_leave(admission, "10.0.0.2"):
        pass
    await trio.sleep(1 / limits.PEER_HANDSHAKES_PER_S)
    assert await enter_and_leave(admission, "10.0.0.2"), "as soon as a peer dials again"


@pytest.mark.expects_warnings
async def test_only_a_stranger_that_is_turned_away_is_a_warning(
    admission: HandshakeAdmission, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Where this host stood still, all that the peer dialed meanwhile is met at once."""
    caplog.set_level(logging.INFO)
    admission.know("10.0.0.2")
    while await enter_and_leave(admission, "10.0.0.2"):
        pass
    assert "refused a connection of 10.0.0.2: too many at once" in caplog.text
    assert not lines_at_warning(caplog)
    while await enter_and_leave(admission, "10.0.0.1"):
        pass
    assert lines_at_warning(caplog) == ["refused a connection of 10.0.0.1: too many at once"]


async def test_a_newcomer_takes_a_place_and_the_others_keep_theirs(
    admission: HandshakeAdmission, autojump_clock: trio.testing.MockClock
) -> None:
    with ExitStack() as stack:
        places = [stack.enter_context(admission.handshake("10.0.0.1")) for _ in range(limits.STRANGERS_MAX)]
        assert not any(place.given_away for place in places)
        newest = stack.enter_context(admission.handshake("10.0.0.9"))
        assert [place.given_away for place in places] == [True] + [False] * (limits.STRANGERS_MAX - 1)
        assert places[0].scope.cancel_called
        assert not newest.given_away
    with admission.handshake("10.0.0.1") as place:
        assert not place.given_away, "everybody has left"


async def test_the_newest_addresses_of_the_peer_are_known(admission: HandshakeAdmission) -> None:
    for number in range(limits.PEER_ADDRESSES_MAX + 1):
        admission.know(f"10.0.0.{number}")
        admission.know("10.0.1.0")
    assert admission._group("10.0.0.0") is admission._group("10.9.9.9"), "the oldest is a stranger again"
    assert admission._group("10.0.1.0") is admission._group(f"10.0.0.{limits.PEER_ADDRESSES_MAX}")


@pytest.mark.expects_warnings
async def test_the_log_says_the_first_and_counts_the_rest(
    admission: HandshakeAdmission, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.refusals.sum_up)
        for number in range(5_000):
            admission.refusals.note(f"10.0.{number % 3}.0", f"refused {number}")
        assert len(caplog.records) == limits.REFUSALS_LOGGED_MAX
        await trio.sleep(limits.REFUSALS_INTERVAL_S + 1)
        last = caplog.records[-1].getMessage()
        more = 5_000 - limits.REFUSALS_LOGGED_MAX
        assert last == f"refused {more} more connections in 60 s, of 3 addresses; the last: refused 4999"
        caplog.clear()
        await trio.sleep(10 * limits.REFUSALS_INTERVAL_S)
        assert not caplog.records, "nothing was refused meanwhile"
        caplog.set_level(logging.INFO, logger="fusemirror")
        for _ in range(2 * limits.REFUSALS_LOGGED_MAX):  # of the peer: nobody need see to it
            admission.refusals.note("10.0.0.1", "refused it again", logging.INFO)
        await trio.sleep(2 * limits.REFUSALS_INTERVAL_S)
        assert caplog.records[-1].getMessage().endswith("the last: refused it again")
        assert not lines_at_warning(caplog)
        nursery.cancel_scope.cancel()


def lines_at_warning(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
