"""What every transport keeps, over TCP and in memory; and the addresses."""

import socket

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusemirror import limits
from fusemirror.channel.transport import (
    TcpNetwork,
    Transport,
    drop_sent,
)
from fusemirror.errors import AddressMissing, ConnectionLost, ListenFailed, PeerUnreachable
from tests.channel.conftest import receive_bytes

Pair = tuple[Transport, Transport]


PIECE = bytes(64 * limits.KIB)


def fill(transport: Transport) -> int:
    """Send until nothing more is taken; return how much was. What comes next begins with a piece."""
    sent = 0
    while taken := transport.try_send([PIECE[sent % len(PIECE) :]]):
        sent += taken
    return sent


async def test_buffers_arrive_in_order_in_both_directions(transport_pair: Pair) -> None:
    for sender, receiver in (transport_pair, transport_pair[::-1]):
        assert sender.try_send([b"header", memoryview(b"body"), b"data"]) == 14
        assert await receive_bytes(receiver, 14) == b"headerbodydata"


async def test_a_full_stream_takes_nothing_and_does_not_wait(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    sent = fill(sender)
    rest = PIECE[sent % len(PIECE) :]
    assert sender.try_send([rest, b"more"]) == 0
    received = await receive_bytes(receiver, sent)
    await sender.wait_writable()
    assert sender.try_send([rest, b"more"]) == len(rest) + 4
    received += await receive_bytes(receiver, sent + len(rest) + 4 - len(received))
    assert received == bytes(sent + len(rest)) + b"more"


async def test_send_all_waits_for_room_and_leaves_nothing(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    data = b"0123456789abcdef" * limits.MIB
    received = b""

    async def receive() -> None:
        nonlocal received
        received = await receive_bytes(receiver, len(data) + 3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await sender.send_all([data, b"end"])
    assert received == data + b"end"


async def test_no_more_is_received_than_asked_for(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    sender.try_send([b"abc"])
    assert [await receiver.receive(2), await receiver.receive(2)] == [b"ab", b"c"]


async def test_the_end_comes_after_all_bytes_and_stays(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    sender.try_send([b"last"])
    sender.close()
    assert await receive_bytes(receiver, 4) == b"last"
    assert await receiver.receive(1) == b""
    assert await receiver.receive(1) == b""


async def test_sending_to_an_end_that_is_gone_becomes_an_error(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    receiver.close()
    with pytest.raises(ConnectionLost, match=r"Connection reset|Broken pipe"):
        await sender.send_all([bytes(64 * limits.MIB)])


async def test_close_wakes_whoever_waits_here(transport_pair: Pair) -> None:
    transport, _ = transport_pair
    fill(transport)

    async def lose_receiving() -> None:
        with pytest.raises(ConnectionLost, match="closed on this host"):
            await transport.receive(1)

    async def lose_sending() -> None:
        with pytest.raises(ConnectionLost, match="closed on this host"):
            await transport.wait_writable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose_receiving)
        nursery.start_soon(lose_sending)
        await trio.testing.wait_all_tasks_blocked()
        transport.close()


async def test_a_closed_transport_is_of_no_use_and_may_be_closed_again(transport_pair: Pair) -> None:
    transport, _ = transport_pair
    transport.close()
    transport.close()
    with pytest.raises(ConnectionLost, match="closed on this host"):
        transport.try_send([b"data"])
    for _ in range(2):  # trio remembers who ever waited for the descriptor -1
        with pytest.raises(ConnectionLost, match="closed on this host"):
            await transport.receive(1)
        with pytest.raises(ConnectionLost, match="closed on this host"):
            await transport.wait_writable()


async def test_a_cancelled_receive_takes_nothing(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    sender.try_send([b"data"])
    with trio.CancelScope() as scope:
        scope.cancel()
        await receiver.receive(1)
    assert scope.cancelled_caught
    assert await receive_bytes(receiver, 4) == b"data"


async def test_a_cancelled_wait_leaves_the_stream_usable(transport_pair: Pair) -> None:
    sender, receiver = transport_pair
    sent = fill(sender)
    with trio.CancelScope() as scope:
        scope.cancel()
        await sender.wait_writable()
    assert scope.cancelled_caught
    await receive_bytes(receiver, sent)
    rest = PIECE[sent % len(PIECE) :]
    assert sender.try_send([rest, b"x"]) == len(rest) + 1


# --- TCP ------------------------------------------------------------------------------------------


async def test_small_frames_leave_at_once_and_dead_peers_are_noticed() -> None:
    network = TcpNetwork(unacknowledged_s=7.5)
    listener = await network.listen("127.0.0.1", 0)
    dialed = await network.connect("127.0.0.1", listener.port)
    accepted = await listener.accept()
    for transport in (dialed, accepted):
        connected: socket.socket = transport._socket  # type: ignore[attr-defined]
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == limits.UNSENT_BYTES
        transport.close()
    listener.close()


async def test_an_empty_host_listens_on_all_addresses() -> None:
    network = TcpNetwork(unacknowledged_s=1)
    listener = await network.listen("", 0)
    for host in ("127.0.0.1", "::1", "localhost"):
        dialed = await network.connect(host, listener.port)
        (await listener.accept()).close()
        dialed.close()
    listener.close()


async def test_who_is_not_admitted_is_closed_and_keeps_nobody_waiting() -> None:
    network = TcpNetwork(unacknowledged_s=1)
    listener = await network.listen("", 0)
    refused = [await network.connect("::1", listener.port) for _ in range(2 * limits.ACCEPTS_PER_TURN)]
    dialed = await network.connect("127.0.0.1", listener.port)
    with trio.fail_after(10):
        accepted = await listener.accept(lambda host: host == "127.0.0.1")
        assert accepted.peer_host == dialed.peer_host == "127.0.0.1", "however the listener sees IPv4"
        for stranger in refused:
            with pytest.raises(ConnectionLost, match="reset"):
                await stranger.receive(1)
    for transport in (*refused, dialed, accepted):
        transport.close()
    listener.close()


async def test_a_port_in_use_is_said_in_one_line() -> None:
    network = TcpNetwork(unacknowledged_s=1)
    listener = await network.listen("127.0.0.1", 0)
    with pytest.raises(
        ListenFailed, match=rf"cannot listen on 127.0.0.1:{listener.port}: Address already in use"
    ):
        await network.listen("127.0.0.1", listener.port)
    listener.close()


async def test_an_address_that_is_not_ours_is_said_in_one_line() -> None:
    with pytest.raises(AddressMissing, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        await TcpNetwork(unacknowledged_s=1).listen("192.0.2.1", 0)
    with pytest.raises(AddressMissing, match=r"no\.such\.name\.invalid:0: "):
        await TcpNetwork(unacknowledged_s=1).listen("no.such.name.invalid", 0)


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example"])
async def test_what_is_no_name_of_a_host_is_said_in_one_line(name: str) -> None:
    network = TcpNetwork(unacknowledged_s=1)
    for kind, ask in (PeerUnreachable, network.look_up), (PeerUnreachable, network.connect):
        with pytest.raises(kind, match="it is no name of a host"):
            await ask(name, 1)
    with pytest.raises(ListenFailed, match="it is no name of a host"):
        await network.listen(name, 0)


async def test_a_peer_that_does_not_listen_is_said_in_one_line() -> None:
    with pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused; check"):
        await TcpNetwork(unacknowledged_s=1).connect("127.0.0.1", 1)


async def test_closing_a_listener_wakes_who_accepts() -> None:
    listener = await TcpNetwork(unacknowledged_s=1).listen("127.0.0.1", 0)

    async def lose() -> None:
        with pytest.raises(ConnectionLost, match="closed on this host"):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    listener.close()
    with pytest.raises(ConnectionLost):
        await listener.accept()


@given(st.lists(st.binary(max_size=10)), st.integers(min_value=0, max_value=100))
def test_what_is_left_of_buffers_is_what_was_not_sent(buffers: list[bytes], sent_bytes: int) -> None:
    whole = b"".join(buffers)
    left = drop_sent(buffers, min(sent_bytes, len(whole)))
    assert b"".join(left) == whole[sent_bytes:]
    assert not left or left[0], "nothing empty stands first, or sending would never end"
