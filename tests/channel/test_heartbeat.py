"""Heartbeat: what answers show of the peer, and what its silence does."""

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.heartbeat import Heartbeat
from fusemirror.protocol.messages import Ping, Pong

TIMEOUT = 10.0


@pytest.fixture
def heartbeat() -> Heartbeat:
    return Heartbeat(peer_timeout=TIMEOUT, their_timeout=TIMEOUT)


def test_an_answer_shows_the_round_trip_and_renews_the_lease_from_when_its_ping_was_sent(
    heartbeat: Heartbeat,
) -> None:
    serials = [heartbeat.ping(now).serial for now in (100.0, 102.0)]
    assert serials == [1, 2]
    heartbeat.answered(1, 103.0)
    lease_s = TIMEOUT * (1 - limits.LEASE_CLOCK_MARGIN)
    assert (heartbeat.round_trip_seconds, heartbeat.lease_until) == (3.0, 100.0 + lease_s)
    heartbeat.answered(2, 103.0)
    assert (heartbeat.round_trip_seconds, heartbeat.lease_until) == (1.0, 102.0 + lease_s)


def test_an_answer_that_others_have_overtaken_changes_nothing(heartbeat: Heartbeat) -> None:
    for now in (100.0, 102.0):
        heartbeat.ping(now)
    heartbeat.answered(2, 103.0)
    before = heartbeat.lease_until
    heartbeat.answered(1, 104.0)
    heartbeat.answered(2, 105.0)
    assert (heartbeat.round_trip_seconds, heartbeat.lease_until) == (1.0, before)


@pytest.mark.parametrize("serial", [0, 2, -1])
def test_an_answer_to_what_was_not_sent_is_refused(heartbeat: Heartbeat, serial: int) -> None:
    heartbeat.ping(100.0)
    with pytest.raises(ValueError, match="no such Ping"):
        heartbeat.answered(serial, 101.0)
    assert heartbeat.lease_until == 0.0


def test_the_lease_is_over_by_the_shorter_of_both_settings() -> None:
    heartbeat = Heartbeat(peer_timeout=TIMEOUT, their_timeout=3.0)
    heartbeat.ping(100.0)
    heartbeat.answered(1, 100.5)
    assert heartbeat.lease_until < 103.0
    heartbeat.pinged(Ping(1), 100.0, taken_bytes=0)
    assert heartbeat.answered_until == 110.0, "the peer may go by ours"


def test_who_takes_no_answers_gets_no_more(heartbeat: Heartbeat) -> None:
    for number in range(limits.PONGS_UNSENT_MAX):
        assert heartbeat.pinged(Ping(number), 100.0, taken_bytes=0) == Pong(number)
        heartbeat.sent_pong(10 * (number + 1))
    assert heartbeat.pinged(Ping(7), 200.0, taken_bytes=9) is None
    assert heartbeat.answered_until == 100.0 + TIMEOUT, "this host is held to what it has answered"
    assert heartbeat.pinged(Ping(7), 200.0, taken_bytes=10) == Pong(7)


def test_pings_follow_each_other_so_that_some_may_be_lost() -> None:
    assert Heartbeat(peer_timeout=TIMEOUT, their_timeout=3.0).interval_s == 2.0
    quick = Heartbeat(peer_timeout=TIMEOUT, their_timeout=3.0, interval_max_s=0.25)
    assert quick.interval_s == 0.25
    for number in range(200):
        quick.ping(number * 0.25)
    quick.answered(1, 50.0)
    assert quick.lease_until == 0.0, "it came too late to renew anything"
    quick.answered(200, 50.0)
    assert quick.lease_until > 50.0


def test_silence_counts_while_somebody_listens(heartbeat: Heartbeat) -> None:
    assert not heartbeat.is_silent(1000.0), "nobody listened"
    heartbeat.listen(100.0)
    assert not heartbeat.is_silent(109.0)
    assert heartbeat.is_silent(110.0)
    heartbeat.listen(109.0)
    assert not heartbeat.is_silent(118.0), "it was heard"
    heartbeat.stop_listening()
    assert not heartbeat.is_silent(1000.0)


async def test_who_waits_for_the_lease_is_woken_by_an_answer_and_by_the_end(
    heartbeat: Heartbeat, nursery: trio.Nursery
) -> None:
    woken: list[str] = []

    async def wait(name: str) -> None:
        await heartbeat.wait_lease()
        woken.append(name)

    nursery.start_soon(wait, "by an answer")
    await trio.testing.wait_all_tasks_blocked()
    assert woken == []
    heartbeat.ping(100.0)
    heartbeat.answered(1, 101.0)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(wait, "by the end")
    await trio.testing.wait_all_tasks_blocked()
    assert woken == ["by an answer"]
    heartbeat.end()
    await trio.testing.wait_all_tasks_blocked()
    await wait("after it")
    assert woken == ["by an answer", "by the end", "after it"]
