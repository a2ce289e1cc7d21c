"""The memory network: latency and order, cut, stall and heal, and the same again for the same seed."""

from random import Random

import pytest
import trio
import trio.testing

from fusemirror.channel.transport import Transport
from fusemirror.errors import ConnectionLost, ListenFailed, PeerUnreachable
from tests.channel.conftest import receive_bytes
from tests.memory_network import MemoryNetwork, MemoryTransport

Pair = tuple[Transport, Transport]


async def test_bytes_take_the_latency_and_keep_their_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = MemoryNetwork(Random(1), latency_s=1.0, jitter_s=1.0)
    listener = await network.host("beta").listen("beta", 7000)
    dialed = await network.host("alpha").connect("beta", 7000)
    accepted = await listener.accept()
    assert 2.0 <= trio.current_time() <= 4.0, "a connection takes a round trip"
    began = trio.current_time()
    for number in range(20):
        dialed.try_send([bytes([number])])
    received = b""
    while len(received) < 20:
        received += await accepted.receive(100)
        assert trio.current_time() >= began + 1.0
    assert received == bytes(range(20))
    assert trio.current_time() <= began + 2.0


async def test_a_cut_breaks_what_there_is_and_refuses_what_comes(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    await memory.host("beta").listen("beta", 7000)
    memory_pair[0].try_send([b"lost"])
    memory.cut("beta", "alpha")
    for transport in memory_pair:
        with pytest.raises(ConnectionLost, match="Connection reset by peer"):
            await transport.receive(1)
        with pytest.raises(ConnectionLost, match="Connection reset by peer"):
            transport.try_send([b"x"])
    with pytest.raises(PeerUnreachable, match="beta:7000"):
        await memory.host("alpha").connect("beta", 7000)
    memory.heal("alpha", "beta")
    (await memory.host("alpha").connect("beta", 7000)).close()


async def test_a_cut_wakes_those_who_wait(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    async def lose() -> None:
        with pytest.raises(ConnectionLost):
            await memory_pair[0].receive(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        await trio.testing.wait_all_tasks_blocked()
        memory.cut("alpha", "beta")


async def test_a_cut_leaves_other_hosts_alone(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    memory.cut("alpha", "gamma")
    memory_pair[0].try_send([b"x"])
    assert await memory_pair[1].receive(1) == b"x"


async def test_a_stalled_line_delivers_nothing_until_it_is_healed(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    await memory.host("beta").listen("beta", 7000)
    memory.stall("alpha", "beta")
    memory_pair[0].try_send([b"late"])
    memory_pair[0].close()
    with trio.move_on_after(1000):
        pytest.fail(f"{await memory_pair[1].receive(100)!r} arrived")
    with trio.move_on_after(1000):
        await memory.host("alpha").connect("beta", 7000)
        pytest.fail("a connection was made")
    memory.heal("alpha", "beta")
    assert await memory_pair[1].receive(100) == b"late"
    assert await memory_pair[1].receive(100) == b""


async def test_a_line_may_be_stalled_one_way_only(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    """The first of the pair is of alpha, the second of beta."""
    memory.stall_one_way("alpha", "beta")
    memory_pair[0].try_send([b"late"])
    memory_pair[1].try_send([b"now"])
    assert await memory_pair[0].receive(100) == b"now"
    with trio.move_on_after(1000):
        pytest.fail(f"{await memory_pair[1].receive(100)!r} arrived")
    memory.heal("alpha", "beta")
    assert await memory_pair[1].receive(100) == b"late"


async def test_a_refusing_line_keeps_the_connections_that_there_are(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    listeners = {name: await memory.host(name).listen(name, 7000) for name in ("alpha", "beta")}
    memory.refuse("alpha", "beta")
    memory_pair[0].try_send([b"x"])
    assert await memory_pair[1].receive(1) == b"x"
    with pytest.raises(PeerUnreachable, match="refused"):
        await memory.host("alpha").connect("beta", 7000)
    await memory.host("beta").connect("alpha", 7000)
    await listeners["alpha"].accept()


async def test_a_slow_line_takes_longer_and_keeps_the_order(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    memory.slow("alpha", "beta", 100.0)
    began = trio.current_time()
    for _ in range(10):
        memory_pair[0].try_send([b"x"])
    memory.heal("alpha", "beta")
    memory_pair[0].try_send([b"y"])
    received = b""
    while len(received) < 11:
        received += await memory_pair[1].receive(100)
    assert received == b"x" * 10 + b"y"
    assert 1.0 < trio.current_time() - began < 101.0


async def test_one_connection_breaks_at_both_ends(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    memory.break_one("alpha", "beta")
    for transport in memory_pair:
        with pytest.raises(ConnectionLost, match="reset"):
            await transport.receive(1)
    memory.break_one("alpha", "beta")


async def test_a_connection_that_its_listener_hears_of_late_may_have_ended_by_then(
    memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    listener = await memory.host("beta").listen("beta", 7000)
    memory.accept_delay = iter((50.0, 1.0)).__next__
    late, soon = [await memory.host("alpha").connect("beta", 7000) for _ in range(2)]
    late.try_send([b"old"])
    late.close()
    soon.try_send([b"new"])
    assert await (await listener.accept()).receive(3) == b"new"
    assert trio.current_time() < 50
    accepted = await listener.accept()
    assert trio.current_time() >= 50
    assert (await accepted.receive(3), await accepted.receive(3)) == (b"old", b"")


async def test_a_host_without_power_says_nothing_until_it_has_power_again(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = memory_pair
    assert isinstance(theirs, MemoryTransport)
    theirs.vanish("beta")
    ours.try_send([b"x"])
    with trio.move_on_after(1000):
        pytest.fail(f"{await ours.receive(100)!r} arrived")
    memory.power_on("beta")
    with pytest.raises(ConnectionLost, match="reset"):
        await ours.receive(100)


async def test_a_sender_into_a_stalled_line_waits_even_if_nobody_is_left_there(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    memory.stall("alpha", "beta")
    memory_pair[1].close()
    while memory_pair[0].try_send([bytes(memory.buffer_bytes)]):
        pass
    with trio.move_on_after(1000):
        await memory_pair[0].wait_writable()
        pytest.fail("there was room")
    memory.heal("alpha", "beta")
    await memory_pair[0].wait_writable()
    with pytest.raises(ConnectionLost, match="reset"):
        memory_pair[0].try_send([b"x"])


async def test_a_stream_holds_no_more_than_its_buffer(memory: MemoryNetwork, memory_pair: Pair) -> None:
    assert memory_pair[0].try_send([bytes(memory.buffer_bytes), b"more"]) == memory.buffer_bytes


async def test_a_short_send_takes_a_part_and_leaves_room(memory_pair: Pair, memory: MemoryNetwork) -> None:
    memory.short_sends = 1.0
    sent = 0
    while sent < 100:
        await memory_pair[0].wait_writable()
        taken = memory_pair[0].try_send([bytes(100 - sent)])
        assert 0 <= taken <= 100 - sent
        sent += taken
    assert await receive_bytes(memory_pair[1], 100) == bytes(100)


async def test_coalesced_bytes_arrive_together(
    memory: MemoryNetwork, memory_pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    memory.coalescing_s = 1.0
    for number in range(5):
        memory_pair[0].try_send([bytes([number])])
        await trio.sleep(0.1)
    assert await memory_pair[1].receive(100) == bytes(range(5))
    assert trio.current_time() % 1.0 == 0.0


async def test_a_host_listens_on_its_own_name_once(memory: MemoryNetwork) -> None:
    host = memory.host("alpha")
    listener = await host.listen("", 7000)
    for name in ("alpha", "beta"):
        with pytest.raises(ListenFailed):
            await host.listen(name, 7000)
    listener.close()
    await host.listen("alpha", 7000)


async def test_who_was_not_accepted_yet_is_lost_with_the_listener(
    memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    listener = await memory.host("beta").listen("beta", 7000)
    dialed = await memory.host("alpha").connect("beta", 7000)
    listener.close()
    assert await dialed.receive(1) == b""
    with pytest.raises(ConnectionLost):
        await listener.accept()
    with pytest.raises(PeerUnreachable, match="refused"):
        await memory.host("alpha").connect("beta", 7000)


def trace_of(seed: int) -> list[str]:
    """A small exchange, with a fault, as the trace hook saw it."""
    trace: list[str] = []

    async def exchange() -> None:
        network = MemoryNetwork(Random(seed), trace=trace.append)
        listener = await network.host("beta").listen("", 7000)
        dialed = await network.host("alpha").connect("beta", 7000)
        accepted = await listener.accept()
        for size in range(1, 5):
            dialed.try_send([bytes(size)])
            await accepted.receive(2)
        network.cut("alpha", "beta")
        with pytest.raises(PeerUnreachable):
            await network.host("alpha").connect("beta", 7000)

    trio.run(exchange, clock=trio.testing.MockClock(autojump_threshold=0))
    return trace


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    assert trace_of(1) == trace_of(1)
    assert trace_of(1) != trace_of(2)
    assert [line.split()[1] for line in trace_of(1)[:3]] == ["connect", "send", "receive"]
