"""Lines, end to end: probes, and what has no place on one. Going on over one is in test_moving.py and
test_mover.py."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.lines import Line, Lines
from fusemirror.channel.moving import MovingTransport
from fusemirror.channel.session import shake_hands
from fusemirror.channel.transport import Transport
from fusemirror.errors import ChannelError, ConnectionLost, RemoteProtocolError
from fusemirror.protocol.messages import AnyMessage, Hello, Ping, Resume
from tests.channel.conftest import connect_pair
from tests.memory_network import MemoryNetwork

MakeHello = Callable[..., Hello]


def lose(error: ChannelError) -> None:
    raise AssertionError(error)


async def make_line(
    pair: tuple[Transport, Transport], primary_hello: MakeHello, backup_hello: MakeHello
) -> tuple[Line, Line]:
    """(the end that dialed, the end that accepted)"""
    made: dict[bool, Line] = {}

    async def open_line(transport: Transport, hello: Hello, dialer: bool) -> None:
        made[dialer] = Line(transport, await shake_hands(transport, hello, dialer=dialer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_line, pair[0], primary_hello(line=b"session"), True)
        nursery.start_soon(open_line, pair[1], backup_hello(), False)
    return made[True], made[False]


@pytest.fixture
async def lines(
    memory_pair: tuple[Transport, Transport], primary_hello: MakeHello, backup_hello: MakeHello
) -> tuple[Line, Line]:
    return await make_line(memory_pair, primary_hello, backup_hello)


@pytest.fixture
async def more_lines(
    memory: MemoryNetwork, primary_hello: MakeHello, backup_hello: MakeHello
) -> tuple[Line, Line]:
    pair = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    return await make_line(pair, primary_hello, backup_hello)


@pytest.fixture
async def stream(memory: MemoryNetwork) -> tuple[MovingTransport, MovingTransport]:
    one, other = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    ends = MovingTransport(one, received_bytes=0), MovingTransport(other, received_bytes=0)
    for end in ends:
        end.begin()
    return ends


async def test_a_probe_goes_there_and_back_in_full_size_and_is_timed(
    lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    autojump_clock: trio.testing.MockClock,
) -> None:
    accepted = Lines(stream[1], silence_s=5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accepted.run, lines[1], lose)
        for _ in range(3):
            await lines[0].probe()
        assert lines[0].is_proven
        assert 0 < (lines[0].round_trip_seconds or 0) < 0.01
        assert accepted.spares == [lines[1]]
        nursery.cancel_scope.cancel()
    assert accepted.spares == []


async def test_a_stream_goes_on_over_it(
    lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = stream
    one.try_send([b"lost"])
    one.drop("a test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Lines(other, silence_s=5.0).run, lines[1], lose)
        await lines[0].resume(one, "a test")
        await one.run_resend()
    other.try_send([b"back"])
    assert (await one.receive(100), await other.receive(100)) == (b"back", b"lost")


@pytest.mark.parametrize(
    ("is_numbered", "between_bytes"),
    [(True, 0), (True, 100), (False, 100)],
    ids=["idle", "busy", "earlier version"],
)
async def test_a_resume_that_was_given_up_and_comes_late_ends_its_line_and_nothing_else(
    lines: tuple[Line, Line],
    more_lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    is_numbered: bool,
    between_bytes: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A peer of an earlier version numbers none: there the count tells, where anything has arrived since."""
    one, other = stream
    accepted = Lines(other, silence_s=5.0)
    lost: list[ChannelError] = []
    async with trio.open_nursery() as nursery:
        for line in (lines[1], more_lines[1]):
            nursery.start_soon(accepted.run, line, lost.append)
        # The network holds back what is sent over the first line; its dialer goes on over another.
        arrived = one.drop("a test")
        late = Resume(arrived, one.turn) if is_numbered else Resume(arrived)
        await more_lines[0].resume(one, "a test")
        await one.run_resend()
        other.try_send([bytes(between_bytes)])
        if between_bytes:
            other.confirmed(len(await one.receive(between_bytes)))
        turn = other.turn
        await lines[0]._send(late)
        await trio.sleep(1)
        assert [(type(error), error.why) for error in lost] == [
            (ConnectionLost, "the peer had given it up before its Resume came")
        ]
        assert (other.turn, other.lost_reason) == (turn, None), "the stream stays where it is"
        one.try_send([b"there"])
        other.try_send([b"back"])
        assert (await one.receive(100), await other.receive(100)) == (b"back", b"there")


async def test_a_resume_that_comes_late_but_before_the_next_one_keeps_nobody(
    lines: tuple[Line, Line],
    more_lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = stream
    accepted = Lines(other, silence_s=5.0)
    one.try_send([b"there"])
    async with trio.open_nursery() as nursery:
        for line in (lines[1], more_lines[1]):
            nursery.start_soon(accepted.run, line, lose)
        await lines[0]._send(Resume(one.drop("a test"), one.turn))
        lines[0].close()
        await trio.sleep(1)
        assert other.turn == 1, "it has come, and nobody is at the other end of its line"
        await more_lines[0].resume(one, "a test")
        await one.run_resend()
        other.try_send([b"back"])
        assert (await one.receive(100), await other.receive(100)) == (b"back", b"there")


@pytest.mark.parametrize("message", [Ping(1), Resume(1 << 30)], ids=lambda each: type(each).__name__)
async def test_what_has_no_place_on_it_is_refused(
    lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    message: AnyMessage,
    autojump_clock: trio.testing.MockClock,
) -> None:
    lost: list[ChannelError] = []
    await lines[0]._send(message)
    await Lines(stream[1], silence_s=5.0).run(lines[1], lost.append)
    assert [type(error) for error in lost] == [RemoteProtocolError]


async def test_one_whose_dialer_is_silent_is_closed(
    lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    autojump_clock: trio.testing.MockClock,
) -> None:
    lost: list[ChannelError] = []
    await Lines(stream[1], silence_s=5.0).run(lines[1], lost.append)
    assert [str(error) for error in lost] == [
        f"the connection to {lines[1].peer_name} was lost: the peer said nothing for 5 s"
    ]


async def test_who_dials_too_many_has_the_newest(
    lines: tuple[Line, Line],
    stream: tuple[MovingTransport, MovingTransport],
    autojump_clock: trio.testing.MockClock,
) -> None:
    accepted = Lines(stream[1], silence_s=60.0)
    accepted.spares = [lines[1]] * limits.LINES_MAX
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accepted.run, lines[0], lambda _: None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionLost):
        await lines[1].transport.receive(1)
