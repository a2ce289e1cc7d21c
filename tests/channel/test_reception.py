"""Reception: listens on every address, also on one that comes later. What it does with strangers is in
test_link.py."""

from collections.abc import Callable
from random import Random

import pytest
import trio
import trio.testing

from fusemirror.background import Background
from fusemirror.channel.admission import HandshakeAdmission
from fusemirror.channel.lines import Line
from fusemirror.channel.reception import Reception
from fusemirror.channel.session import Session, open_session
from fusemirror.channel.transport import Transport
from fusemirror.errors import AddressMissing, ListenFailed, SameRole
from fusemirror.protocol.messages import Hello
from fusemirror.settings import Address
from tests.memory_network import MemoryHost, MemoryListener, MemoryNetwork

MakeHello = Callable[..., Hello]
ONE, TWO = Address("beta", 7000), Address("beta2", 7000)


class LateHost(MemoryHost):
    """One that lacks an address for so many attempts to listen there."""

    missing = 0

    async def listen(self, host: str, port: int) -> MemoryListener:
        if host == "beta2" and self.missing:
            self.missing -= 1
            raise AddressMissing(f"{host}:{port}", "Cannot assign requested address")
        return await super().listen(host, port)


class Guests:
    """A reception of beta, and who came in."""

    def __init__(self, network: MemoryHost, backup_hello: MakeHello) -> None:
        self.sessions: list[Session] = []
        self._hello = backup_hello()
        self.reception = Reception(
            network,
            (ONE, TWO),
            HandshakeAdmission(Random(1).randbytes),
            self._shake_hands,
            self.sessions.append,
            self._keep_line,
            self._met_same_role,
        )

    async def _shake_hands(self, transport: Transport) -> Session:
        return await open_session(transport, self._hello, dialer=False, peer_timeout=5.0)

    async def _keep_line(self, line: Line) -> None:
        raise AssertionError(line)

    async def _met_same_role(self, error: SameRole) -> None:
        raise AssertionError(error)


async def dial(memory: MemoryNetwork, address: Address, primary_hello: MakeHello) -> Session:
    transport = await memory.host("alpha", "alpha2").connect(*address)
    return await open_session(transport, primary_hello(), dialer=True, peer_timeout=5.0)


async def test_who_dials_any_of_the_addresses_is_let_in(
    memory: MemoryNetwork,
    primary_hello: MakeHello,
    backup_hello: MakeHello,
    autojump_clock: trio.testing.MockClock,
) -> None:
    guests = Guests(memory.host("beta", "beta2"), backup_hello)
    await guests.reception.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.reception.run, Background())
        for address in (ONE, TWO):
            (await dial(memory, address, primary_hello)).close("enough")
        nursery.cancel_scope.cancel()
    assert [session.peer_name.partition(":")[0] for session in guests.sessions] == ["alpha", "alpha2"]
    assert memory.listeners == {}


@pytest.mark.expects_warnings
async def test_an_address_that_is_not_there_yet_is_waited_for(
    memory: MemoryNetwork,
    primary_hello: MakeHello,
    backup_hello: MakeHello,
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = LateHost(memory, "beta", "beta2")
    host.missing = 100
    background = Background()
    guests = Guests(host, backup_hello)
    assert len(await guests.reception.listen()) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.reception.run, background)
        await trio.testing.wait_all_tasks_blocked()
        assert [each["task"] for each in background.status(0)] == ["listening on beta2:7000"]
        (await dial(memory, ONE, primary_hello)).close("enough")
        await trio.sleep(60)
        assert background.status(0) == []
        (await dial(memory, TWO, primary_hello)).close("enough")
        nursery.cancel_scope.cancel()


async def test_an_address_in_use_stops_it_and_leaves_no_listener(
    memory: MemoryNetwork, backup_hello: MakeHello, autojump_clock: trio.testing.MockClock
) -> None:
    taken = await memory.host("beta2").listen(*TWO)
    with pytest.raises(ListenFailed, match="beta2:7000"):
        await Guests(memory.host("beta", "beta2"), backup_hello).reception.listen()
    taken.close()
    assert memory.listeners == {}
