"""Sending: what the stream takes goes at once, the rest in its order, and nobody waits for ever."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.sending import Sending
from fusemirror.channel.transport import Transport
from fusemirror.errors import ConnectionLost
from fusemirror.protocol.framing import Buffer


class Taking(Transport):
    """Takes as many bytes as it is let."""

    peer_name = "beta:7000"

    def __init__(self) -> None:
        self.taken = b""
        self.calls = 0
        self.confirmed = 0
        self._allowed = 0
        self._more = trio.lowlevel.ParkingLot()

    def allow(self, count: int) -> None:
        self._allowed += count
        self._more.unpark_all()

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        self.calls += 1
        whole = b"".join(map(bytes, buffers))[: self._allowed]
        self.taken += whole
        self._allowed -= len(whole)
        return len(whole)

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._allowed:
            await self._more.park()

    def acknowledged_bytes(self) -> int:
        return self.confirmed

    async def receive(self, bytes_max: int) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def transport() -> Taking:
    return Taking()


@pytest.fixture
def sending(transport: Taking) -> Sending:
    return Sending(transport)


def test_what_the_stream_takes_is_gone_at_once(sending: Sending, transport: Taking) -> None:
    transport.allow(7)
    sending.send([b"abc", b"d"], 4)
    assert (transport.taken, sending.backlog_bytes) == (b"abcd", 0)
    sending.send([b"efgh"], 4)
    assert (transport.taken, sending.backlog_bytes) == (b"abcdefg", 1)
    sending.send([b"i"], 1)
    assert sending.backlog_bytes == 2
    assert transport.calls == 2, "what waits goes first"


async def test_the_writer_sends_the_rest_in_its_order(
    sending: Sending, transport: Taking, nursery: trio.Nursery
) -> None:
    nursery.start_soon(sending.run, 5.0)
    for letter in b"abcdef":
        sending.send([b"%c" % letter], 1)
    for _ in range(3):
        transport.allow(2)
        await trio.testing.wait_all_tasks_blocked()
    assert (transport.taken, sending.backlog_bytes) == (b"abcdef", 0)


def test_what_is_corked_goes_by_one_call(sending: Sending, transport: Taking) -> None:
    transport.allow(10)
    sending.cork()
    for letter in b"abc":
        sending.send([b"%c" % letter], 1)
    assert (transport.calls, sending.backlog_bytes) == (0, 3)
    sending.uncork()
    assert (transport.calls, transport.taken, sending.backlog_bytes) == (1, b"abc", 0)


async def test_a_stream_that_takes_nothing_is_lost(
    sending: Sending, autojump_clock: trio.testing.MockClock
) -> None:
    sending.send([b"a"], 1)
    with pytest.raises(ConnectionLost, match="the peer took nothing for 5 s"):
        await sending.run(5.0)


async def test_a_stream_is_not_lost_while_what_it_took_before_arrives(
    sending: Sending, transport: Taking, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """On a slow network the system takes nothing more for as long as it takes to send what it has taken."""
    sending.send([b"a"], 1)

    @nursery.start_soon
    async def arrive() -> None:
        for _ in range(5):
            await trio.sleep(4.0)
            transport.confirmed += 100

    began = trio.current_time()
    with pytest.raises(ConnectionLost, match="the peer took nothing for 5 s"):
        await sending.run(5.0)
    assert trio.current_time() - began == pytest.approx(25, abs=5 / limits.LOOKS_PER_PATIENCE)


async def test_who_waits_for_room_goes_on_when_there_is_some_and_at_the_end(
    sending: Sending, transport: Taking, nursery: trio.Nursery
) -> None:
    nursery.start_soon(sending.run, 5.0)
    size = limits.BACKLOG_BYTES_MAX + 1
    passed: list[int] = []

    async def wait(bytes_max: int) -> None:
        await sending.wait_within(bytes_max)
        passed.append(bytes_max)

    sending.send([bytes(size)], size)
    for bytes_max in (limits.BACKLOG_BYTES_MAX, 0):
        nursery.start_soon(wait, bytes_max)
    await trio.testing.wait_all_tasks_blocked()
    assert passed == []
    transport.allow(1)
    await trio.testing.wait_all_tasks_blocked()
    assert passed == [limits.BACKLOG_BYTES_MAX]
    sending.end()
    await trio.testing.wait_all_tasks_blocked()
    assert (passed, sending.backlog_bytes) == ([limits.BACKLOG_BYTES_MAX, 0], 0)


async def test_before_there_is_a_writer_somebody_may_wait_until_all_has_gone(
    sending: Sending, transport: Taking, nursery: trio.Nursery
) -> None:
    sending.send([b"abc"], 3)
    nursery.start_soon(sending.run_out)
    await trio.testing.wait_all_tasks_blocked()
    transport.allow(3)
    await trio.testing.wait_all_tasks_blocked()
    assert (transport.taken, sending.backlog_bytes) == (b"abc", 0)
