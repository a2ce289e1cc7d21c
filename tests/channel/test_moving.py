"""The stream that outlives its connections: what was sent arrives, once and in its order."""

import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror import hot, limits
from fusemirror.channel.moving import MovingTransport
from fusemirror.channel.tls import TlsNetwork
from fusemirror.channel.transport import Network, SocketTransport, TcpNetwork, Transport
from fusemirror.errors import ConnectionLost, RemoteProtocolError
from fusemirror.identifiers import ChangeNumber
from fusemirror.protocol.messages import Applied, Ping
from tests.channel.conftest import Both, TransportPair, connect_pair, open_pair, shake_hands
from tests.memory_network import MemoryNetwork


class Ends:
    """Both ends of a stream, and what arrived at each."""

    def __init__(self, networks: Sequence[Network], one: Transport, other: Transport) -> None:
        self._networks = networks
        self._random = Random(1)
        self.ends = MovingTransport(one, received_bytes=0), MovingTransport(other, received_bytes=0)
        for end in self.ends:
            end.begin()
        self.arrived = bytearray(), bytearray()

    async def send(self, end: int, data: bytes) -> None:
        left = [memoryview(data)]
        while left:
            size = self.ends[end].try_send(left)
            left = [left[0][size:]] if size < len(left[0]) else []
            if left:
                await self.ends[end].wait_writable()

    async def receive(self, end: int, size: int, *, hot: bool) -> None:
        def take(data: bytes) -> bool:
            assert data, "the stream ended"
            self.arrived[end].extend(data)
            self.say(end)
            return len(self.arrived[end]) >= size

        while len(self.arrived[end]) < size:
            if hot:
                await self.ends[end].receive_with(limits.RECEIVE_BYTES, take)
            else:
                take(await self.ends[end].receive(limits.RECEIVE_BYTES))

    def say(self, end: int) -> None:
        """As a session does, sometimes, with what has arrived or had."""
        arrived_bytes = len(self.arrived[end])
        if self._random.random() < 0.4:
            said_bytes = self._random.choice((arrived_bytes, self._random.randint(0, arrived_bytes)))
            self.ends[1 - end].confirmed(said_bytes)

    async def move(self) -> None:
        """To a new connection, with what both say to have."""
        pair = await open_pair(await connect_pair(self._networks[0], self._networks[1], "beta"))
        counts = [end.drop("a test") for end in self.ends]
        for end, connection, theirs in zip(self.ends, pair, reversed(counts), strict=True):
            end.go_on(connection, theirs, turn=end.turn)
        async with trio.open_nursery() as nursery:
            for end in self.ends:
                nursery.start_soon(end.run_resend)


@pytest.fixture
def networks(memory: MemoryNetwork) -> list[Network]:
    return [memory.host("alpha"), memory.host("beta")]


@pytest.fixture
async def ends(networks: list[Network], memory_pair: TransportPair) -> Ends:
    return Ends(networks, *memory_pair)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_or_doubled_however_often_it_moves(
    memory: MemoryNetwork,
    networks: list[Network],
    credentials: Both,
    seed: int,
    encrypted: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    if encrypted:
        networks = [TlsNetwork(*each) for each in zip(networks, credentials, strict=True)]
    ends = Ends(networks, *await open_pair(await connect_pair(networks[0], networks[1], "beta")))
    random = Random(seed)
    memory.short_sends = 0.3
    memory.buffer_bytes = random.choice((20_000, 200_000))  # of two records the first may go alone
    sent = [random.randbytes(random.randrange(300_000)) for _ in ends.ends]

    async def send(end: int) -> None:
        start = 0
        while start < len(sent[end]):
            size = random.randrange(1, 50_000)
            await ends.send(end, sent[end][start : start + size])
            start += size
            await trio.sleep(random.random() * 0.001)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for end in range(2):
                nursery.start_soon(send, end)
                nursery.start_soon(partial(ends.receive, end, len(sent[1 - end]), hot=bool(seed % 2)))
            for _ in range(12):
                await trio.sleep(random.random() * 0.01)
                if random.random() < 0.5:
                    memory.break_one("alpha", "beta")
                await ends.move()
    assert [bytes(arrived) for arrived in reversed(ends.arrived)] == sent


async def test_a_record_that_went_before_its_piece_was_whole_is_not_sent_again(
    memory: MemoryNetwork,
    networks: list[Network],
    credentials: Both,
    autojump_clock: trio.testing.MockClock,
) -> None:
    networks = [TlsNetwork(*each) for each in zip(networks, credentials, strict=True)]
    ends = Ends(networks, *await open_pair(await connect_pair(networks[0], networks[1], "beta")))
    data = bytes(range(256)) * 128  # two records
    memory.buffer_bytes = 20_000
    assert ends.ends[0].try_send([data]) == 0
    await ends.receive(1, 16_000, hot=False)
    ends.ends[0].confirmed(len(ends.arrived[1]))
    memory.buffer_bytes = 100_000
    await ends.move()
    await ends.send(0, data)
    await ends.receive(1, len(data), hot=False)
    assert ends.arrived[1] == data


async def test_it_is_at_its_end_with_its_connection_until_it_is_to_move(
    memory_pair: tuple[Transport, Transport], memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    end = MovingTransport(memory_pair[0], received_bytes=0)
    memory_pair[1].close()
    assert await end.receive(1) == b""
    memory.cut("alpha", "beta")
    with pytest.raises(ConnectionLost):
        await end.receive(1)
    with pytest.raises(ConnectionLost):
        end.try_send([b"x"])


async def test_what_the_other_end_cannot_have_is_refused(
    ends: Ends, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    one, _ = ends.ends
    await ends.send(0, b"12345")
    with pytest.raises(ValueError, match="6 bytes"):
        one.confirmed(6)
    one.confirmed(3)
    one.confirmed(2)  # it was sent before the 3, and again after that
    for theirs in (2, 6):
        one.drop("a test")
        with pytest.raises(RemoteProtocolError):
            one.go_on(memory_end(memory), theirs, turn=one.turn)
    one.drop("a test")
    with pytest.raises(ConnectionLost, match="another connection"):
        one.go_on(memory_end(memory), 3, turn=one.turn - 1)


def memory_end(memory: MemoryNetwork) -> Transport:
    """A connection that nothing is done with."""
    return MovingTransport.__new__(MovingTransport)


async def test_more_than_is_kept_ends_the_stream(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(limits, "RESENT_BYTES_MAX", 100)
    one, other = ends.ends
    await ends.send(0, bytes(300))
    one.drop("a test")
    with pytest.raises(ConnectionLost, match="more was under way"):
        one.go_on(other, 100, turn=one.turn)
    with pytest.raises(ConnectionLost):
        await one.receive(1)


@pytest.mark.parametrize("_", range(6))  # trio shuffles whose turn is first
async def test_what_came_with_the_word_to_go_on_is_no_end_where_that_connection_is_lost_at_once(
    ends: Ends, networks: list[Network], autojump_clock: trio.testing.MockClock, _: int
) -> None:
    one, other = ends.ends
    pair = await open_pair(await connect_pair(networks[0], networks[1], "beta"))
    counts = one.drop("a test"), other.drop("a test")
    one.go_on(pair[0], counts[1], turn=one.turn, rest=b"sent again")
    other.go_on(pair[1], counts[0], turn=other.turn)
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await one.receive(100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.lowlevel.checkpoint()  # it looks at what came, and others have their turn
        one.drop("a test")
        other.drop("a test")
        await trio.testing.wait_all_tasks_blocked()
        assert not received
        await ends.move()
        await ends.send(1, b"sent again")
    assert received == [b"sent again"]


async def test_who_waits_is_told_when_it_is_closed(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    one, _ = ends.ends
    one.drop("a test")
    assert one.try_send([b"x"]) == 0
    async with trio.open_nursery() as nursery:

        async def lost(wait: Callable[[], object]) -> None:
            with pytest.raises(ConnectionLost, match="closed on this host"):
                await wait()  # type: ignore[misc]

        nursery.start_soon(lost, one.wait_writable)
        nursery.start_soon(lost, lambda: one.receive(1))
        await trio.testing.wait_all_tasks_blocked()
        one.close()


async def test_a_message_is_received_though_the_answer_to_the_one_before_it_found_its_connection_broken(
    primary_hello: Any, backup_hello: Any
) -> None:
    """Both came by one call of the hot loop; the stream goes on over another connection, behind them."""
    assert hot.install()
    network = TcpNetwork(unacknowledged_s=5)
    pair = await connect_pair(network, network, "127.0.0.1")
    sender, receiver = await shake_hands(
        pair, primary_hello(takes_moves=True), backup_hello(takes_moves=True)
    )
    assert sender.moving is not None
    assert isinstance(pair[0], SocketTransport)
    sender.moving.begin()
    left: list[object] = []

    async def receive() -> None:
        left.extend(await receiver.receive(lambda received: received))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            with sender.corked():
                sender.send(Ping(1))
                sender.send(Applied(ChangeNumber(1)))
            reset = struct.pack("ii", 1, 0)  # struct linger: on, for no time
            pair[0]._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            sender.moving.drop("a test")
    assert left == [(Applied(ChangeNumber(1)), b"")]
    assert not receiver.closed
    for session in (sender, receiver):
        session.close("a test")
