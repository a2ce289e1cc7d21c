"""Dialing: names with several addresses, and the first of them that answers."""

from random import Random

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.admission import HandshakeAdmission
from fusemirror.channel.dialing import Dialing
from fusemirror.errors import PeerUnreachable
from fusemirror.settings import Address
from tests.memory_network import MemoryHost, MemoryNetwork

ONE, TWO = Address("beta", 7000), Address("beta2", 7000)


@pytest.fixture
def alpha(memory: MemoryNetwork) -> MemoryHost:
    return memory.host("alpha", "alpha2")


@pytest.fixture
def admission() -> HandshakeAdmission:
    return HandshakeAdmission(Random(1).randbytes)


async def listen(memory: MemoryNetwork, *names: str) -> None:
    beta = memory.host("beta", "beta2")
    for name in names:
        await beta.listen(name, 7000)


async def test_the_first_of_the_settings_is_taken_where_all_answer(
    alpha: MemoryHost,
    memory: MemoryNetwork,
    admission: HandshakeAdmission,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await listen(memory, "beta", "beta2")
    address, transport = await Dialing(alpha, admission, (ONE, TWO)).connect()
    assert (address, transport.peer_host) == (ONE, "beta")
    assert memory.line("alpha2", "beta2").pipes == [], "the second was not dialed"


async def test_one_that_refuses_or_says_nothing_keeps_none_waiting(
    alpha: MemoryHost,
    memory: MemoryNetwork,
    admission: HandshakeAdmission,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await listen(memory, "beta", "beta2")
    dialing = Dialing(alpha, admission, (ONE, TWO))
    memory.refuse("alpha", "beta")
    began = trio.current_time()
    assert (await dialing.connect())[0] == TWO
    assert trio.current_time() - began < limits.CONNECT_STAGGER_S
    assert dialing.table.rows()[0].reason == "Connection refused"
    memory.stall("alpha", "beta")
    dialing = Dialing(alpha, admission, (ONE, TWO))
    began = trio.current_time()
    assert (await dialing.connect())[0] == TWO
    assert trio.current_time() - began < 2 * limits.CONNECT_STAGGER_S


async def test_where_none_answers_each_has_its_reason(
    alpha: MemoryHost,
    memory: MemoryNetwork,
    admission: HandshakeAdmission,
    autojump_clock: trio.testing.MockClock,
) -> None:
    memory.stall("alpha", "beta")
    dialing = Dialing(alpha, admission, (ONE, TWO))
    with pytest.raises(PeerUnreachable) as caught:
        await dialing.connect()
    assert "beta:7000: no answer for 2 s; beta2:7000: Connection refused" in str(caught.value)
    assert [row.is_up for row in dialing.table.rows()] == [False, False]


async def test_a_name_stands_for_each_of_its_addresses_and_for_what_it_stood_for_while_nobody_knows_it(
    alpha: MemoryHost,
    memory: MemoryNetwork,
    admission: HandshakeAdmission,
    autojump_clock: trio.testing.MockClock,
) -> None:
    name = Address("name", 7000)
    alpha.known["name"] = []
    dialing = Dialing(alpha, admission, (name,))
    with pytest.raises(PeerUnreachable, match="Name or service not known"):
        await dialing.connect()
    alpha.known["name"] = ["beta", "beta2"]
    await listen(memory, "beta2")
    assert (await dialing.connect())[0] == TWO
    assert [row.address for row in dialing.table.rows()] == [ONE, TWO]
    alpha.known["name"] = []
    assert (await dialing.connect())[0] == TWO
    assert admission.is_known("beta")
    assert admission.is_known("beta2")


async def test_another_address_of_the_settings_is_dialed_from_then_on(
    alpha: MemoryHost,
    memory: MemoryNetwork,
    admission: HandshakeAdmission,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await listen(memory, "beta", "beta2")
    dialing = Dialing(alpha, admission, (ONE,))
    assert (await dialing.connect())[0] == ONE
    dialing.meet_at((TWO,))
    assert (await dialing.connect())[0] == TWO
    assert dialing.names == "beta2:7000"
