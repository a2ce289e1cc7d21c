"""Moving a session: both paths of a link go on over other connections, and the link knows nothing of it."""

import logging
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from fusemirror import limits
from fusemirror.channel.link import Link
from fusemirror.channel.session import LARGE_ONES_LOST, Session
from fusemirror.errors import ChannelError
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.protocol.messages import Applied, Hello, RegionData
from tests.channel.test_link import PEER_TIMEOUT, Host, running
from tests.memory_network import MemoryNetwork

MakeHello = Callable[..., Hello]
FIRST, SECOND = ("alpha", "beta"), ("alpha2", "beta2")
GOAL_S = 1.0  # no program waits longer for another path
LARGE = RegionData(InodeNumber(2), 0)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """At once: each host looks at its paths several times a second."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def hosts(memory: MemoryNetwork, primary_hello: MakeHello, backup_hello: MakeHello) -> tuple[Host, Host]:
    """With two addresses each."""
    of_alpha, of_beta = "alpha:7000,alpha2:7000", "beta:7000,beta2:7000"
    return (
        Host(memory.host(*FIRST[:1], "alpha2"), of_alpha, of_beta, primary_hello, takes_moves=True),
        Host(memory.host("beta", "beta2"), of_beta, of_alpha, backup_hello, takes_moves=True),
    )


@pytest.fixture
def single(memory: MemoryNetwork, primary_hello: MakeHello, backup_hello: MakeHello) -> tuple[Host, Host]:
    """With one address each."""
    return (
        Host(memory.host("alpha"), "alpha:7000", "beta:7000", primary_hello, takes_moves=True),
        Host(memory.host("beta"), "beta:7000", "alpha:7000", backup_hello, takes_moves=True),
    )


class Traffic:
    """Numbers, one after the other, both ways over both paths of a link; the longest wait for one."""

    def __init__(self, one: Link, other: Link) -> None:
        self.longest_s = 0.0
        self.large = False
        self.one, self.other = one, other
        self._sessions = [
            pair
            for path in ("mirror", "forward")
            for pair in (
                (getattr(one, path), getattr(other, path)),
                (getattr(other, path), getattr(one, path)),
            )
        ]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for sender, receiver in self._sessions:
                nursery.start_soon(self._send, sender)
                nursery.start_soon(self._receive, receiver)

    async def _send(self, session: Session) -> None:
        number = 0
        while True:
            number += 1
            session.send(Applied(ChangeNumber(number)))
            if self.large:
                session.send(LARGE, bytes(4_000))
            await trio.sleep(0.05)

    async def _receive(self, session: Session) -> None:
        number, last = 0, trio.current_time()
        while True:
            for message, _ in await session.receive():
                if message == LARGE:
                    continue
                number += 1
                assert message == Applied(ChangeNumber(number)), "once, and in its order"
                self.longest_s = max(self.longest_s, trio.current_time() - last)
                last = trio.current_time()


@pytest.fixture
async def traffic(hosts: tuple[Host, Host], clock: trio.testing.MockClock) -> AsyncIterator[Traffic]:
    async with running(*hosts) as nursery:
        made = Traffic(await hosts[0].link(), await hosts[1].link())
        nursery.start_soon(made.run)
        await trio.sleep(1)
        yield made
        assert not made.one.closed
        assert not made.other.closed


def addresses(host: Host) -> dict[str, tuple[bool, str | None]]:
    """Of the peer: whether each is up, and why not."""
    return {row.address.host: (row.is_up, row.reason) for row in host.linker.dialing.table.rows()}


def in_use(host: Host) -> str | None:
    used = host.linker.dialing.table.in_use
    return None if used is None else used.host


async def test_a_broken_connection_is_replaced_and_the_other_path_stays(
    traffic: Traffic, clock: trio.testing.MockClock, hosts: tuple[Host, Host], memory: MemoryNetwork
) -> None:
    turns = [session.moving.turn for session in (traffic.one.mirror, traffic.one.forward)]  # type: ignore[union-attr]
    assert turns == [0, 0]
    memory.line(*FIRST).pipes[0].broken = memory.line(*FIRST).pipes[1].broken = True
    for pipe in memory.line(*FIRST).pipes:
        pipe.changed.unpark_all()
    await trio.sleep(3)
    turns = [session.moving.turn for session in (traffic.one.mirror, traffic.one.forward)]  # type: ignore[union-attr]
    assert sorted(turns)[0] == 0, "one was broken"
    assert sorted(turns)[1] > 0
    assert traffic.longest_s < 0.5


@pytest.mark.parametrize("senders", [("alpha", "beta"), ("alpha",), ("beta",)], ids="-".join)
async def test_an_address_that_is_lost_either_way_is_left_for_the_other_in_time(
    traffic: Traffic,
    clock: trio.testing.MockClock,
    hosts: tuple[Host, Host],
    memory: MemoryNetwork,
    senders: tuple[str, ...],
) -> None:
    if len(senders) == 2:
        memory.stall(*FIRST)
    else:
        memory.stall_one_way(*senders, *(name for name in FIRST if name not in senders))
    await trio.sleep(4)
    assert traffic.longest_s < GOAL_S
    assert [in_use(host) for host in hosts] == ["beta2", "alpha2"]
    assert addresses(hosts[0])["beta"] == (False, "no answer for 0.375 s")
    memory.heal(*FIRST)
    await trio.sleep(1)
    assert addresses(hosts[0]) == {"beta": (True, None), "beta2": (True, None)}, "a spare within a second"
    memory.stall(*SECOND)
    await trio.sleep(4)
    assert [in_use(host) for host in hosts] == ["beta", "alpha"]
    assert traffic.longest_s < GOAL_S


async def test_addresses_may_come_and_go(
    traffic: Traffic, clock: trio.testing.MockClock, hosts: tuple[Host, Host], memory: MemoryNetwork
) -> None:
    for number in range(16):
        lost = (FIRST, SECOND)[number % 2]
        (memory.stall if number % 3 else memory.cut)(*lost)
        await trio.sleep(2.5)
        memory.heal(*lost)
        await trio.sleep(1.5)
    assert traffic.longest_s < GOAL_S


async def test_a_peer_whose_packets_become_too_large_for_its_network_is_reached_by_the_other(
    traffic: Traffic, clock: trio.testing.MockClock, hosts: tuple[Host, Host], memory: MemoryNetwork
) -> None:
    memory.narrow(*FIRST)
    traffic.large = True
    await trio.sleep(5)
    assert addresses(hosts[0])["beta"] == addresses(hosts[1])["alpha"] == (False, LARGE_ONES_LOST)
    assert traffic.longest_s < GOAL_S


async def test_over_a_network_that_loses_large_packets_no_link_is_made(
    single: tuple[Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    memory.narrow(*FIRST)
    async with running(*single):
        with trio.move_on_after(30):
            await single[0].link()
            pytest.fail("programs would wait for it")
        assert LARGE_ONES_LOST in str(single[0].linker.last_error)
        memory.heal(*FIRST)
        await single[0].link()


async def test_with_one_address_a_broken_connection_is_replaced_too(
    single: tuple[Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    async with running(*single) as nursery:
        made = Traffic(await single[0].link(), await single[1].link())
        nursery.start_soon(made.run)
        for _ in range(20):
            await trio.sleep(1)
            memory.break_one(*FIRST)
        await trio.sleep(1)
        assert not made.one.closed
        assert made.longest_s < 0.5


async def test_a_peer_that_is_silent_everywhere_is_lost_after_peer_timeout(
    hosts: tuple[Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    async with running(*hosts) as nursery:
        link = await hosts[0].link()
        nursery.start_soon(hosts[1].use_links)
        await trio.sleep(1)
        memory.stall(*FIRST)
        memory.stall(*SECOND)
        began = trio.current_time()
        await hosts[0].lost(link)
        assert PEER_TIMEOUT - 1 < trio.current_time() - began < PEER_TIMEOUT + 1


async def test_a_peer_whose_process_is_gone_is_lost_at_once(
    hosts: tuple[Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    async with running(*hosts) as nursery:
        link = await hosts[0].link()
        nursery.start_soon(hosts[1].use_links)
        await trio.sleep(1)
        hosts[1].stop()
        began = trio.current_time()
        await hosts[0].lost(link)
        assert trio.current_time() - began < 0.05


async def test_a_process_that_dies_and_ends_its_listeners_last_is_lost_with_them(
    hosts: tuple[Host, Host],
    memory: MemoryNetwork,
    clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(*hosts) as nursery:
        link = await hosts[0].link()
        nursery.start_soon(hosts[1].use_links)
        await trio.sleep(1)
        reception = hosts[1].linker.reception
        with monkeypatch.context() as context:
            context.setattr(Session, "_say_over", lambda _: None)
            context.setattr(reception, "close", lambda: None)
            hosts[1].stop()
            await trio.sleep(0.01)
        assert not link.closed, "somebody might listen there"
        reception.close()
        began = trio.current_time()
        await hosts[0].lost(link)
        assert trio.current_time() - began < 0.1


async def test_a_session_that_one_end_has_ended_is_over_at_once_at_the_other(
    hosts: tuple[Host, Host], clock: trio.testing.MockClock
) -> None:
    async with running(*hosts):
        one, other = await hosts[0].link(), await hosts[1].link()
        await trio.sleep(1)
        began = trio.current_time()
        other.close("enough")
        assert "the peer ended it" in await hosts[0].lost(one)
        assert trio.current_time() - began < 0.1


@pytest.mark.parametrize("older", ["alpha", "beta"])
async def test_a_peer_of_an_earlier_version_has_its_links_as_before(
    hosts: tuple[Host, Host], memory: MemoryNetwork, older: str, clock: trio.testing.MockClock
) -> None:
    hosts[older == "beta"].hello["takes_moves"] = False
    async with running(*hosts) as nursery:
        one, other = await hosts[0].link(), await hosts[1].link()
        made = Traffic(one, other)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(made.run)
                await trio.sleep(30)
                scope.cancel()
        nursery.start_soon(hosts[1].use_links)
        memory.cut(*FIRST)
        await hosts[0].lost(one)


async def test_the_log_says_where_a_path_went_and_why(
    traffic: Traffic, clock: trio.testing.MockClock, memory: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    memory.stall(*FIRST)
    await trio.sleep(3)
    lines = [record.getMessage() for record in caplog.records if "path goes by" in record.getMessage()]
    assert sorted(lines) == [
        "the forward path goes by alpha2:7000 now: no answer for 0.75 s",
        "the mirror path goes by beta2:7000 now: no answer for 0.75 s",
    ]


async def test_a_line_of_a_session_that_is_over_is_refused(
    hosts: tuple[Host, Host], clock: trio.testing.MockClock
) -> None:
    async with running(*hosts):
        one, _ = await hosts[0].link(), await hosts[1].link()
        line = await hosts[0].linker._open_line(hosts[0].linker.dialing.table.order()[1], one.mirror)
        await line.probe()
        hosts[1].linker._link = None  # as if it had ended, and nobody here had heard of it
        other = await hosts[0].linker._open_line(hosts[0].linker.dialing.table.order()[1], one.mirror)
        with pytest.raises(ChannelError, match="that session is over"):
            await other.probe()
        for each in (line, other):
            each.close()


async def test_a_session_that_its_peer_does_not_know_any_more_is_over(
    single: tuple[Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    async with running(*single) as nursery:
        link, _ = await single[0].link(), await single[1].link()
        nursery.start_soon(single[1].use_links)
        await trio.sleep(1)
        single[1].linker._link = None  # as if it had ended, and nobody here had heard of it
        for _ in range(2):  # one of each path
            memory.break_one(*FIRST)
        began = trio.current_time()
        await single[0].lost(link)
        assert trio.current_time() - began < 0.1


@pytest.fixture
def foreign(
    memory: MemoryNetwork, primary_hello: MakeHello, backup_hello: MakeHello
) -> tuple[Host, Host, Host]:
    """Hosts of two addresses, or so the primary says: at the second one there is somebody else."""
    return (
        Host(memory.host("alpha"), "alpha:7000", "beta:7000,gamma:7000", primary_hello, takes_moves=True),
        Host(memory.host("beta"), "beta:7000", "alpha:7000", backup_hello, takes_moves=True),
        Host(memory.host("gamma"), "gamma:7000", "nowhere:7000", backup_hello, takes_moves=True),
    )


ANOTHER_FILESYSTEM = {"filesystem": b"another", "host": b"host of gamma", "peer": b"its peer"}
ANOTHER_PROCESS = {"instance": b"of a copy of beta"}


@pytest.mark.expects_warnings  # of the one at the second address
@pytest.mark.parametrize(
    ("other", "reason"),
    [(ANOTHER_FILESYSTEM, "another filesystem"), (ANOTHER_PROCESS, "that session is over")],
    ids=["another filesystem", "another process"],
)
async def test_who_refuses_at_one_address_ends_no_session_that_goes_by_another(
    foreign: tuple[Host, Host, Host], other: dict[str, bytes], reason: str, clock: trio.testing.MockClock
) -> None:
    alpha, beta, gamma = foreign
    gamma.hello.update(other)
    async with running(beta, alpha, gamma) as nursery:
        made = Traffic(await alpha.link(), await beta.link())
        nursery.start_soon(made.run)
        await trio.sleep(30)
        assert not made.one.closed
        assert in_use(alpha) == "beta"
        is_up, why = addresses(alpha)["gamma"]
        assert not is_up
        assert reason in (why or "")


@pytest.mark.expects_warnings
async def test_a_process_that_is_gone_is_lost_at_once_where_somebody_else_has_an_address_of_it(
    foreign: tuple[Host, Host, Host], clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, beta, gamma = foreign
    gamma.hello.update(ANOTHER_FILESYSTEM)
    async with running(beta, alpha, gamma) as nursery:
        link = await alpha.link()
        nursery.start_soon(beta.use_links)
        await trio.sleep(1)
        with monkeypatch.context() as context:
            context.setattr(Session, "_say_over", lambda _: None)
            beta.stop()
            await trio.sleep(0.01)
        began = trio.current_time()
        await alpha.lost(link)
        assert trio.current_time() - began < 0.1


@pytest.mark.expects_warnings
async def test_a_peer_that_began_anew_is_met_at_once_although_an_address_of_it_does_not_answer(
    foreign: tuple[Host, Host, Host], memory: MemoryNetwork, clock: trio.testing.MockClock
) -> None:
    alpha, beta, gamma = foreign
    gamma.hello.update(ANOTHER_PROCESS)
    async with running(beta, alpha, gamma) as nursery:
        link = await alpha.link()
        nursery.start_soon(beta.use_links)
        await trio.sleep(1)
        for _ in range(2):  # one of each path
            memory.break_one("alpha", "beta")
        memory.stall("alpha", "beta")
        began = trio.current_time()
        await alpha.lost(link)
        assert trio.current_time() - began < limits.PATH_TIMEOUT_S


def test_limits_let_both_paths_of_every_address_in() -> None:
    assert limits.PEER_HANDSHAKES_PER_S >= 2 * limits.DIALS_PER_PATH_TIMEOUT * limits.ADDRESSES_MAX
