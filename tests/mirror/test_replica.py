"""A replica: what is known of one peer, over its links and after them."""

import itertools
from typing import cast

import pytest
import trio

from fusemirror.change import NamespaceChange, WriteChange
from fusemirror.channel.link import Link
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import BACKLOG_BYTES_MAX, REGION_BYTES
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PrimaryEvent, PrimaryState, Taking, TakingEvent
from fusemirror.mirror.window import InFlight
from fusemirror.protocol.messages import Applied, Room
from fusemirror.volume.volume import Volume
from tests.mirror.replicas import FakeLink, FakeSession, replica_in

FILE = InodeNumber(7)
WRITE = WriteChange(ChangeNumber(5), NO_REQUEST, 0, FILE, REGION_BYTES, 10)


def in_flight(number: int, inode: int = FILE) -> InFlight:
    return InFlight(ChangeNumber(number), (), InodeNumber(inode), 0, 10, 0.0, 10)


def marked(replica: Replica) -> list[tuple[int, int]]:
    return replica.out_of_sync.ranges(FILE, 100 * REGION_BYTES)


def unknown_to(replica: Replica, *instances: bytes) -> list[ChangeNumber]:
    return [replica.progress.held_unknown_to(each) for each in instances]


# --- what it is sent ------------------------------------------------------------------------------------


def test_a_change_is_sent_where_there_is_a_feed_and_marked_where_there_is_none(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    replica.take(WRITE, b"encoded", b"data")
    assert session.sent == [(b"encoded", b"data")]
    assert not marked(replica)
    replica, session = replica_in(volume, PrimaryState.RECOVERING)
    replica.take(WRITE, b"encoded", b"data")
    assert not session.sent
    assert marked(replica) == [(1, 2)]


def test_after_a_change_that_could_not_be_sent_none_is(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    session.close_reason = "cut"
    replica.take(WRITE, b"encoded", b"data")
    assert marked(replica) == [(1, 2)]
    session.close_reason = None
    replica.take(WRITE, b"later", b"data")
    assert not session.sent


def test_another_process_of_the_peer_may_hold_what_one_before_it_was_sent(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    replica.take(WRITE, b"encoded", b"data")
    assert unknown_to(replica, b"one", b"two") == [0, WRITE.number]
    replica.lost("cut", [], permitted=True)
    replica.take(WriteChange(ChangeNumber(6), NO_REQUEST, 0, FILE, 0, 10), b"not sent", b"data")
    session = FakeSession()
    session.peer.instance = b"two"
    replica.linked(cast(Link, FakeLink(session)))
    assert unknown_to(replica, b"one", b"two") == [0, WRITE.number]
    replica.open_feed()
    replica.take(WriteChange(ChangeNumber(7), NO_REQUEST, 0, FILE, 0, 10), b"later", b"data")
    assert unknown_to(replica, b"two", b"three") == [WRITE.number, 7]


def test_it_is_congested_where_its_session_holds_more_than_it_should(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    seen = [replica.congested]
    session.sending.backlog_bytes = BACKLOG_BYTES_MAX + 1
    seen.append(replica.congested)
    replica.lost("cut", [], permitted=True)
    seen.append(replica.congested)
    assert seen == [False, True, False]


# --- how far it is --------------------------------------------------------------------------------------


def test_progress_is_what_it_says_but_for_what_is_held_back(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.NORMAL)
    assert replica.take_applied(Applied(ChangeNumber(8)), ChangeNumber(9)) == 8
    replica.progress.hold_back(ChangeNumber(6))
    replica.progress.hold_back(ChangeNumber(7))
    assert replica.progress.number == 5
    assert replica.take_applied(Applied(ChangeNumber(9)), ChangeNumber(9)) == 5
    replica.progress.release()
    assert replica.progress.number == 9


def test_nobody_acknowledges_what_was_never_made(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.NORMAL)
    with pytest.raises(RemoteProtocolError, match="no such change"):
        replica.take_applied(Applied(ChangeNumber(10)), ChangeNumber(9))


# --- a link that ends -----------------------------------------------------------------------------------


def test_what_is_under_way_when_a_link_ends_is_marked_and_held_back(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    session.heartbeat.answered_until = 77.0
    event = replica.lost("cut", [in_flight(5), in_flight(6, inode=0)], permitted=True)
    assert event is PrimaryEvent.LOST
    assert marked(replica) == [(0, 1)]
    assert replica.progress.held_back == 5
    assert replica.hold_until == 77.0
    assert session.close_reason == "cut"
    assert (replica.link, replica.stream, replica.feed) == (None, None, None)


def test_a_backup_that_only_caught_up_is_not_waited_for(volume: Volume) -> None:
    replica, session = replica_in(volume, PrimaryState.RECOVERING)
    session.heartbeat.answered_until = 77.0
    replica.lost("cut", [in_flight(5)], permitted=True)
    assert replica.hold_until == 0.0
    assert replica.progress.held_back is None


async def test_one_that_has_left_is_left_at_once_if_this_host_may(volume: Volume) -> None:
    for permitted, event in ((True, PrimaryEvent.SAID_BYE), (False, PrimaryEvent.LOST)):
        replica, session = replica_in(volume, PrimaryState.NORMAL)
        session.heartbeat.answered_until = trio.current_time() + 77
        replica.leaves("it was unmounted")
        replica.room.go(TakingEvent.LEFT)
        assert replica.lost("cut", [], permitted=permitted) is event
        if not permitted:
            assert replica.hold_until <= trio.current_time(), "its next process may take over"


def test_what_a_backup_took_or_did_not_ends_with_its_link(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.NORMAL)
    replica.take_room(Room(100))
    assert not replica.room.has(101)
    replica.leaves("it was unmounted")
    seen = [replica.takes_nothing]
    replica.lost("cut", [], permitted=True)
    assert [*seen, replica.takes_nothing] == [True, False]
    assert replica.room.has(101)
    replica.go(PrimaryEvent.LOST, "cut", is_meant=True)
    replica.linked(cast(Link, FakeLink(FakeSession())))
    assert replica.room.taking is Taking.TAKES


@pytest.mark.expects_warnings
def test_a_full_disk_is_the_reason_until_there_is_room(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.NORMAL)
    replica.take_room(Room(-1, full=True))
    seen = [(replica.takes_nothing, bool(replica.reason))]
    replica.take_room(Room(-1))
    assert [*seen, (replica.takes_nothing, bool(replica.reason))] == [(True, True), (False, False)]


# --- its states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "now"), list(itertools.product(PrimaryState, (0.0, 2.0))))
def test_it_may_be_left_once_nothing_is_read_there(volume: Volume, state: PrimaryState, now: float) -> None:
    replica, _ = replica_in(volume, state)
    apart = state in (PrimaryState.ALONE, PrimaryState.REJOINING, PrimaryState.DIVERGED)
    if state is PrimaryState.HOLDING:
        replica.hold(1.0, "taken over")
        apart = now >= 1.0
    assert replica.may_be_left(now) is apart


def test_a_change_without_data_marks_nothing(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.ALONE)
    replica.mark(NamespaceChange(ChangeNumber(5), NO_REQUEST, 0, InodeNumber(0), ()))
    assert not replica.out_of_sync
