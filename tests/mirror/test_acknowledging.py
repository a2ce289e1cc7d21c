"""What the backup acknowledges: once, and never ahead of what it holds."""

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.channel.session import Session
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import APPLIED_DELAY_S
from fusemirror.mirror.acknowledging import Acknowledging
from fusemirror.protocol.messages import Applied
from fusemirror.volume.volume import Volume
from tests.mirror.replicas import FakeSession


def applied(session: FakeSession) -> list[Any]:
    return [message.number for message, _ in session.sent if type(message) is Applied]


def test_all_that_came_together_is_acknowledged_by_one_word(volume: Volume) -> None:
    acknowledging, session = Acknowledging(volume), FakeSession()
    begin = volume.number
    assert not acknowledging.acknowledge(cast(Session, session))
    volume.advance(ChangeNumber(begin + 3))
    assert acknowledging.acknowledge(cast(Session, session))
    assert not acknowledging.acknowledge(cast(Session, session)), "it was said"
    assert applied(session) == [begin + 3]


def test_what_came_otherwise_is_not_said_again_and_never_ahead(volume: Volume) -> None:
    acknowledging, session = Acknowledging(volume), FakeSession()
    ahead = ChangeNumber(volume.number + 1)
    with pytest.raises(AssertionError, match="is here"):
        acknowledging.caught_up(ahead, cast(Session, session))
    volume.advance(ahead)
    acknowledging.caught_up(ahead, cast(Session, session))
    assert not acknowledging.acknowledge(cast(Session, session))
    assert applied(session) == [ahead]


async def test_an_answer_waits_for_the_change_that_it_stands_on(volume: Volume) -> None:
    acknowledging, session = Acknowledging(volume), FakeSession()
    wanted, seen = ChangeNumber(volume.number + 2), list[ChangeNumber]()

    async def wait() -> None:
        await acknowledging.wait_applied(wanted)
        seen.append(volume.number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for number in (wanted - 1, wanted):
            volume.advance(ChangeNumber(number))
            acknowledging.acknowledge(cast(Session, session))
            await wait_all_tasks_blocked()
    assert seen == [wanted]


async def test_who_was_cancelled_waiting_may_wait_again(volume: Volume) -> None:
    acknowledging = Acknowledging(volume)
    wanted = ChangeNumber(volume.number + 1)
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await acknowledging.wait_applied(wanted)
        assert scope.cancelled_caught


# --- what nobody waits for --------------------------------------------------------------------------------


@pytest.fixture
async def delayed(
    volume: Volume, mock_clock: MockClock, nursery: trio.Nursery
) -> tuple[Acknowledging, FakeSession]:
    """A change of this host's own program is applied, and the primary has heard of what was before."""
    acknowledging, session = Acknowledging(volume), FakeSession()
    acknowledging.caught_up(volume.number, cast(Session, session))
    acknowledging.is_waited_for = False
    session.sent.clear()
    nursery.start_soon(acknowledging.run, cast(Session, session))
    await wait_all_tasks_blocked()
    volume.advance(ChangeNumber(volume.number + 1))
    assert acknowledging.acknowledge(cast(Session, session))
    await wait_all_tasks_blocked()
    assert applied(session) == []
    return acknowledging, session


async def test_the_word_of_it_comes_in_time_and_is_one(
    volume: Volume, mock_clock: MockClock, delayed: tuple[Acknowledging, FakeSession]
) -> None:
    acknowledging, session = delayed
    for _ in range(2):
        mock_clock.jump(APPLIED_DELAY_S / 4)
        volume.advance(ChangeNumber(volume.number + 1))
        acknowledging.acknowledge(cast(Session, session))
        await wait_all_tasks_blocked()
        assert applied(session) == []
    mock_clock.jump(APPLIED_DELAY_S)
    await wait_all_tasks_blocked()
    assert applied(session) == [volume.number]


async def test_it_comes_with_a_change_that_is_waited_for(
    volume: Volume, mock_clock: MockClock, delayed: tuple[Acknowledging, FakeSession]
) -> None:
    acknowledging, session = delayed
    volume.advance(ChangeNumber(volume.number + 1))
    acknowledging.is_waited_for = True
    acknowledging.acknowledge(cast(Session, session))
    mock_clock.jump(2 * APPLIED_DELAY_S)
    await wait_all_tasks_blocked()
    assert applied(session) == [volume.number], "and is not said again"


async def test_it_comes_before_what_this_host_asks_of_the_primary(
    volume: Volume, delayed: tuple[Acknowledging, FakeSession]
) -> None:
    acknowledging, session = delayed
    acknowledging.say_delayed(cast(Session, session))
    acknowledging.say_delayed(cast(Session, session))
    assert applied(session) == [volume.number]


async def test_it_is_not_delayed_for_a_primary_that_does_not_ask(volume: Volume) -> None:
    acknowledging, session = Acknowledging(volume), FakeSession()
    session.peer.takes_delays = acknowledging.is_waited_for = False
    volume.advance(ChangeNumber(volume.number + 1))
    acknowledging.acknowledge(cast(Session, session))
    assert applied(session) == [volume.number]


async def test_what_was_delayed_over_a_session_that_was_lost_is_not_said_while_the_next_catches_up(
    volume: Volume, delayed: tuple[Acknowledging, FakeSession]
) -> None:
    acknowledging, session = delayed
    acknowledging.begin()
    acknowledging.say_delayed(cast(Session, session))
    assert applied(session) == []
