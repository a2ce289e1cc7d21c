"""Links: two hosts meet, lose each other and meet again; strangers are refused and disturb nothing."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusemirror import limits
from fusemirror.background import Background
from fusemirror.channel.link import Encounters, Link, Linker
from fusemirror.channel.session import Session, open_session
from fusemirror.channel.tls import TlsNetwork
from fusemirror.channel.transport import Listener, Network, TcpNetwork, Transport
from fusemirror.errors import (
    AddressMissing,
    ConnectionLost,
    ListenFailed,
    PeerUnreachable,
    RemoteProtocolError,
    SameRole,
)
from fusemirror.identifiers import ChangeNumber
from fusemirror.protocol.messages import Applied, Hello
from fusemirror.settings import Address, parse_address
from tests.channel.conftest import Both
from tests.memory_network import MemoryNetwork

PEER_TIMEOUT = 10.0
MakeHello = Callable[..., Hello]


class Host:
    """A Linker, and the end where its links come out."""

    def __init__(self, network: Network, name: str, peer: str, make_hello: MakeHello, **other: Any) -> None:
        self.hello: dict[str, Any] = other
        self.listeners: list[Listener]
        self._links_in, self.links = trio.open_memory_channel[Link](1)
        self.linker = Linker(
            network,
            tuple(parse_address(each) for each in name.split(",")),
            tuple(parse_address(each) for each in peer.split(",")),
            make_hello=lambda path: make_hello(path=path, **self.hello),
            peer_timeout=PEER_TIMEOUT,
        )
        self.background = Background()
        self.encounters = Encounters()
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            await self.linker.run(self._links_in, self.background, self.encounters, task_status=task_status)

    def stop(self) -> None:
        self._scope.cancel()

    async def link(self) -> Link:
        """The next link that is open when it is taken."""
        while True:
            link = await self.links.receive()
            if not link.closed:
                return link

    async def use_links(self) -> None:
        """Take one link after the other, each until it is over."""
        while True:
            await self.lost(await self.link())

    async def lost(self, link: Link) -> str:
        """Wait until the link is over; return why."""
        while True:
            try:
                await link.mirror.receive()
            except ConnectionLost as error:
                return str(error)


@pytest.fixture
def alpha(memory: MemoryNetwork, primary_hello: MakeHello) -> Host:
    """The primary, not running."""
    return Host(memory.host("alpha"), "alpha:7000", "beta:7000", primary_hello)


@pytest.fixture
def beta(memory: MemoryNetwork, backup_hello: MakeHello) -> Host:
    """The backup, not running."""
    return Host(memory.host("beta"), "beta:7000", "alpha:7000", backup_hello)


@asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            for host in hosts:
                host.listeners = await nursery.start(host.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def assert_linked(one: Link, other: Link) -> None:
    """What is sent on each path of one end arrives on the same path of the other."""
    for path in ("mirror", "forward"):
        for sender, receiver in ((one, other), (other, one)):
            getattr(sender, path).send(Applied(ChangeNumber(1)))
            assert await getattr(receiver, path).receive() == [(Applied(ChangeNumber(1)), b"")]


def open_pipes(memory: MemoryNetwork) -> int:
    """Directions of streams between the two hosts that someone still holds."""
    return sum(not (pipe.ended and pipe.abandoned) for pipe in memory.line("alpha", "beta").pipes)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# --- meeting --------------------------------------------------------------------------------------


async def test_two_hosts_meet_over_both_paths(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        await assert_linked(one, other)
        assert (one.mirror.path, one.forward.path) == ("mirror", "forward")
        assert (one.peer.instance, other.peer.instance) == (b"instance of backup", b"instance of primary")
        assert alpha.linker.last_error is beta.linker.last_error is None


async def test_hosts_of_several_addresses_meet_by_one_that_works(
    memory: MemoryNetwork,
    primary_hello: MakeHello,
    backup_hello: MakeHello,
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = Host(
        memory.host("alpha", "alpha2"), "alpha:7000,alpha2:7000", "beta:7000,beta2:7000", primary_hello
    )
    other = Host(memory.host("beta", "beta2"), "beta:7000,beta2:7000", "alpha:7000,alpha2:7000", backup_hello)
    memory.stall("alpha", "beta")
    async with running(one, other):
        began = trio.current_time()
        for network in (("alpha", "beta"), ("alpha2", "beta2"), ("alpha", "beta")):
            first, second = await one.link(), await other.link()
            await assert_linked(first, second)
            assert network[1] not in first.mirror.peer_name.split(":")
            assert trio.current_time() - began < 2
            memory.heal(*network)
            memory.stall(*({"alpha": ("alpha2", "beta2"), "alpha2": ("alpha", "beta")}[network[0]]))
            await other.lost(second)
            began = trio.current_time()


@pytest.mark.parametrize("tls", [False, True])
async def test_two_hosts_meet_over_tcp(
    primary_hello: MakeHello, backup_hello: MakeHello, credentials: Both, tls: bool
) -> None:
    network = TcpNetwork(unacknowledged_s=PEER_TIMEOUT)
    networks = [TlsNetwork(network, own) if tls else network for own in credentials]
    first: Any = await network.listen("127.0.0.1", 0)
    second: Any = await network.listen("127.0.0.1", 0)
    addresses = [f"127.0.0.1:{listener.port}" for listener in (first, second)]
    first.close()
    second.close()
    alpha = Host(networks[0], addresses[0], addresses[1], primary_hello)
    beta = Host(networks[1], addresses[1], addresses[0], backup_hello)
    async with running(alpha, beta):
        for _ in range(3):
            one, other = await alpha.link(), await beta.link()
            await assert_linked(one, other)
            one.close("again")
            await beta.lost(other)


async def test_a_host_that_comes_late_is_met_at_once(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha) as nursery:
        await trio.sleep(3 * limits.RECONNECT_MAX_S)
        assert "beta:7000 cannot be reached: Connection refused" in str(alpha.linker.last_error)
        await nursery.start(beta.run)
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began < limits.RECONNECT_FIRST_S
        assert alpha.linker.last_error is None


async def test_it_is_started_when_it_listens(
    alpha: Host, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha):
        (await memory.host("beta").connect("alpha", 7000)).close()


async def test_an_address_in_use_stops_it_before_it_starts(memory: MemoryNetwork, alpha: Host) -> None:
    await memory.host("alpha").listen("alpha", 7000)
    with pytest.raises(ListenFailed):
        await alpha.run()


class BootingNetwork(Network):
    """Of a host that has no address yet, or knows no name: `lacks` says why."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.lacks = "Cannot assign requested address"

    async def connect(self, host: str, port: int) -> Transport:
        if self.lacks:
            raise PeerUnreachable(f"{host}:{port}", self.lacks)
        return await self._network.connect(host, port)

    async def listen(self, host: str, port: int) -> Listener:
        if self.lacks:
            raise AddressMissing(f"{host}:{port}", self.lacks)
        return await self._network.listen(host, port)


@pytest.mark.expects_warnings
async def test_a_host_without_its_address_starts_and_meets_its_peer_once_it_has_it(
    alpha: Host,
    backup_hello: MakeHello,
    memory: MemoryNetwork,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = BootingNetwork(memory.host("beta"))
    beta = Host(network, "beta:7000", "alpha:7000", backup_hello)
    async with running(alpha, beta):
        await trio.sleep(60)
        (failing,) = beta.background.status(0)
        assert failing["error"].startswith("cannot listen on beta:7000: Cannot assign requested address; ")
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        network.lacks = ""
        assert not (await alpha.link()).closed
        assert beta.background.status(0) == []


async def test_each_connection_asks_for_a_new_hello(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        assert (await beta.link()).peer.version == ""
        alpha.hello["version"] = "newer"
        (await alpha.link()).close("again")
        assert (await beta.link()).peer.version == "newer"


# --- losing and meeting again ---------------------------------------------------------------------


async def test_a_link_goes_by_what_the_peer_said_last(
    alpha: Host, beta: Host, backup_hello: MakeHello, autojump_clock: trio.testing.MockClock
) -> None:
    """beta says its Hello of the forward path once it has ended what there was before."""
    beta.linker._make_hello = lambda path: backup_hello(path=path, version=path)
    async with running(alpha, beta):
        link = await alpha.link()
        assert link.mirror.peer.version == "mirror"
        assert link.peer.version == "forward"


@pytest.mark.parametrize("path", ["mirror", "forward"])
async def test_a_link_is_over_when_either_session_closes(
    path: str, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        getattr(one, path).close("because")
        await trio.testing.wait_all_tasks_blocked()
        assert one.mirror.closed
        assert one.forward.closed
        assert one.close_reason == "because"
        assert "the peer ended it" in await beta.lost(other)
        await assert_linked(await alpha.link(), await beta.link())


async def test_hosts_meet_again_soon_after_a_cut(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        for away_s in (0.01, 1, 60):
            one, other = await alpha.link(), await beta.link()
            memory.cut("alpha", "beta")
            assert "Connection reset by peer" in await alpha.lost(one)
            assert "Connection reset by peer" in await beta.lost(other)
            await trio.sleep(away_s)
            memory.heal("alpha", "beta")
            healed = trio.current_time()
            await assert_linked(await alpha.link(), await beta.link())
            assert trio.current_time() - healed <= limits.RECONNECT_MAX_S + 0.1
            alpha.linker._link.close("next")  # type: ignore[union-attr]


async def test_links_that_end_at_once_follow_each_other_slowly(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    """Two hosts whose disks were full met each other anew in every millisecond."""
    async with running(alpha, beta):
        began = trio.current_time()
        links = 0
        with trio.move_on_after(30.0):
            while True:
                one, other = await alpha.link(), await beta.link()
                one.close("its disk is full")
                await beta.lost(other)
                links += 1
        assert 20 <= links <= 40, f"{links} links in {trio.current_time() - began:g} s"


async def test_a_stalled_line_is_noticed_and_left_behind(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        memory.stall("alpha", "beta")
        assert "said nothing for 10 s" in await alpha.lost(one)
        assert "said nothing for 10 s" in await beta.lost(other)
        await trio.sleep(60)
        assert "no answer for 2 s" in str(alpha.linker.last_error)
        memory.heal("alpha", "beta")
        await assert_linked(await alpha.link(), await beta.link())


async def test_a_restarted_peer_replaces_the_old_one(
    memory: MemoryNetwork,
    alpha: Host,
    beta: Host,
    backup_hello: MakeHello,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(alpha) as nursery:
        await nursery.start(beta.run)
        one = await alpha.link()
        # The old process ends unnoticed: its stream says nothing any more.
        memory.stall("alpha", "beta")
        beta.stop()
        await trio.testing.wait_all_tasks_blocked()
        memory.heal("alpha", "beta")
        reborn = Host(memory.host("beta"), "beta:7000", "alpha:7000", backup_hello, instance=b"reborn")
        await nursery.start(reborn.run)
        again = await alpha.link()
        assert one.close_reason == "the peer restarted"
        assert again.peer.instance == b"reborn"
        await assert_linked(again, await reborn.link())


async def test_sessions_with_two_processes_of_the_peer_make_no_link(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    instances = iter([b"old", b"new"])

    async with running(alpha) as nursery:
        beta.hello["instance"] = next(instances)
        make_hello = beta.linker._make_hello

        def age(path: str) -> Hello:
            hello = make_hello(path)
            beta.hello["instance"] = next(instances, b"new")
            return hello

        beta.linker._make_hello = age
        await nursery.start(beta.run)
        link = await alpha.link()
        assert link.mirror.peer.instance == link.forward.peer.instance == b"new"


@pytest.mark.parametrize("seed", [26, 98, 459, *range(10)])  # the first three did
async def test_hosts_do_not_go_on_missing_each_other(
    seed: int,
    primary_hello: MakeHello,
    backup_hello: MakeHello,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each may pair what it dialed last with what the other dials next, and both find it dead, for ever."""
    random = Random(seed)
    memory = MemoryNetwork(random, latency_s=0.005, jitter_s=0.02)
    alpha = Host(memory.host("alpha"), "alpha:7000", "beta:7000", primary_hello)
    beta = Host(memory.host("beta"), "beta:7000", "alpha:7000", backup_hello)
    async with running(alpha, beta) as nursery:
        nursery.start_soon(alpha.use_links)
        nursery.start_soon(beta.use_links)
        for _ in range(10):
            await trio.sleep(0.2 * random.random())
            memory.cut("alpha", "beta")
            await trio.sleep(0.2 * random.random())
            memory.heal("alpha", "beta")
        await trio.sleep(2 * limits.RECONNECT_MAX_S)
        one, other = alpha.linker._link, beta.linker._link
        assert one is not None
        assert other is not None
        await trio.sleep(60)
        assert (alpha.linker._link, beta.linker._link) == (one, other), "they met for good"


async def test_a_peer_that_is_reached_but_cannot_reach_us_is_reported(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    beta.linker.dialing.meet_at((Address("nowhere", 7000),))
    async with running(alpha, beta):
        await trio.sleep(2 * limits.HANDSHAKE_TIMEOUT_S + limits.RECONNECT_MAX_S)
        assert "it answers, but does not connect here" in str(alpha.linker.last_error)
        beta.linker.dialing.meet_at((Address("alpha", 7000),))
        await assert_linked(await alpha.link(), await beta.link())


async def test_hosts_that_exchange_their_roles_meet_again(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, _ = await alpha.link(), await beta.link()
        alpha.hello["role"], beta.hello["role"] = "backup", "primary"
        one.close("the roles are exchanged")
        one, other = await alpha.link(), await beta.link()
        assert (one.peer.role, other.peer.role) == ("primary", "backup")
        await assert_linked(one, other)


async def test_a_session_that_the_peer_gives_up_is_dialed_again_at_once(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    beta.linker.dialing.meet_at((Address("nowhere", 7000),))
    async with running(alpha, beta):
        await trio.sleep(0.5)
        assert beta.linker._accepted is not None, "alpha has dialed, and waits for beta"
        beta.linker._discard_accepted("it is given up")
        beta.linker.dialing.meet_at((Address("alpha", 7000),))
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began <= limits.RECONNECT_MAX_S + 0.1


async def test_what_the_peer_dialed_for_a_role_to_come_outlives_the_change(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        alpha.linker.hold()
        alpha.hello.update({"role": "backup", "term": 1})
        beta.hello.update({"role": "primary", "term": 1})
        other.close("the roles changed")
        await alpha.lost(one)
        await trio.sleep(1)
        accepted = alpha.linker._accepted
        assert accepted is not None, "beta has dialed in its new role"
        assert alpha.links.statistics().current_buffer_used == 0, "no link is made meanwhile"
        alpha.linker.meet_anew("the roles changed")
        began = trio.current_time()
        one, other = await alpha.link(), await beta.link()
        assert one.mirror is accepted
        assert trio.current_time() - began < 0.01
        await assert_linked(one, other)


async def test_a_host_that_keeps_its_role_after_all_meets_again(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, _ = await alpha.link(), await beta.link()
        alpha.linker.hold()
        one.close("the roles were not exchanged")
        await trio.sleep(1)
        alpha.linker.go_on()
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began <= limits.RECONNECT_MAX_S + 0.1


async def test_sessions_of_two_roles_make_no_link(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    alpha.linker.dialing.meet_at((Address("nowhere", 7000),))
    async with running(alpha, beta):
        await trio.sleep(1)  # beta has dialed the forward path, as the backup
        alpha.hello["role"], beta.hello["role"] = "backup", "primary"
        alpha.linker.dialing.meet_at((Address("beta", 7000),))  # and now alpha dials it
        await trio.sleep(2 * limits.HANDSHAKE_TIMEOUT_S)
        one, other = await alpha.link(), await beta.link()
        assert (one.peer.role, other.peer.role) == ("primary", "backup")
        await assert_linked(one, other)


async def test_a_peer_that_dials_again_and_again_holds_one_stream(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    alpha.linker.dialing.meet_at((Address("nowhere", 7000),))
    async with running(alpha, beta):
        await trio.sleep(10 * limits.HANDSHAKE_TIMEOUT_S)
        assert open_pipes(memory) <= 2
    assert open_pipes(memory) == 0


async def test_a_retired_linker_keeps_its_link_and_makes_no_other(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        beta.linker.retire()
        await assert_linked(one, other)
        other.close("goodbye")
        await alpha.lost(one)
        with trio.move_on_after(10 * limits.RECONNECT_MAX_S) as waiting:
            await alpha.link()
        assert waiting.cancelled_caught
        assert beta.linker.last_error is not None


async def test_a_link_that_ends_before_it_is_taken_is_not_handed_up(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        await trio.sleep(1)  # one link waits in the channel
        for _ in range(3):
            memory.cut("alpha", "beta")
            memory.heal("alpha", "beta")
            await trio.sleep(2 * PEER_TIMEOUT)
        first = await alpha.links.receive()
        assert first.closed
        assert not (await alpha.links.receive()).closed, "those between were dropped"


async def test_a_consumer_that_died_is_an_error_and_no_hang(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    alpha.links.close()
    with pytest.RaisesGroup(trio.BrokenResourceError, flatten_subgroups=True):
        async with running(alpha, beta):
            await trio.sleep_forever()


async def test_cancelling_closes_the_link_and_the_port(
    memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        link = await alpha.link()
    assert link.close_reason == "closed on this host"
    assert memory.listeners == {}


@pytest.mark.parametrize("after_s", [0.0, 0.0003, 0.0006, 0.001, 0.002, 0.1, 1.0])
async def test_cancelling_at_any_moment_leaves_no_stream_open(
    after_s: float, memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        await trio.sleep(after_s)
    assert open_pipes(memory) == 0


# --- what the peer may not send -------------------------------------------------------------------


async def refuse_one(alpha: Host, beta: Host, *, after_s: float = 0.0) -> tuple[float, float]:
    """Let beta say over the next link what no peer may; when the link was made, and when it had ended."""
    one, other = await alpha.link(), await beta.link()
    met_at = trio.current_time()
    with trio.move_on_after(after_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alpha.lost, one)
            nursery.start_soon(beta.lost, other)
    other.mirror.send(Applied(ChangeNumber(-1)))
    with pytest.raises(RemoteProtocolError, match="Applied"):
        await one.mirror.receive()
    assert "the peer ended it" in await beta.lost(other)
    assert (one.refused, other.refused) == (True, False)
    return met_at, trio.current_time()


@pytest.mark.expects_warnings
async def test_a_peer_that_is_refused_is_met_ever_more_slowly(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rests = []
    async with running(alpha, beta):
        _, ended_at = await refuse_one(alpha, beta)
        for _ in range(8):
            met_at, next_ended_at = await refuse_one(alpha, beta)
            rests.append(met_at - ended_at)
            ended_at = next_ended_at
    wanted = [min(limits.RECONNECT_MAX_S * 2**turn, limits.REFUSED_REST_MAX_S) for turn in range(8)]
    # The peer, which sees no reason to rest, may be in the middle of a dial when this host goes on.
    late = [rest - least for rest, least in zip(rests, wanted, strict=True)]
    assert all(0 <= each <= limits.PARTNER_TIMEOUT_MIN_S for each in late), rests
    assert len(lines(caplog, logging.WARNING)) == 9, "one for each"


@pytest.mark.expects_warnings
async def test_nothing_cuts_the_rest_after_a_refusal_short(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        for _ in range(7):
            _, ended_at = await refuse_one(alpha, beta)
        await trio.sleep(1)
        for host in (alpha, beta):
            host.linker.meet_anew("the roles changed")
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - ended_at >= limits.REFUSED_REST_MAX_S


@pytest.mark.expects_warnings
async def test_a_link_that_lasts_makes_up_for_those_that_were_refused(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(alpha, beta):
        for _ in range(7):
            await refuse_one(alpha, beta)
        _, ended_at = await refuse_one(alpha, beta, after_s=3 * limits.REFUSED_REST_MAX_S)
        await assert_linked(await alpha.link(), await beta.link())
        rest_s = trio.current_time() - ended_at
        assert limits.RECONNECT_MAX_S <= rest_s <= limits.RECONNECT_MAX_S + limits.PARTNER_TIMEOUT_MIN_S


# --- strangers ------------------------------------------------------------------------------------


async def say(network: Network, said: bytes, *, hold: bool = False) -> Transport:
    """Connect to alpha as a stranger and say something."""
    transport = await network.connect("alpha", 7000)
    transport.try_send([said])
    if not hold:
        transport.close()
    return transport


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"filesystem": b"other"}, "another filesystem"),
        ({"host": b"a third"}, "another host of this filesystem than the peer"),
        ({"protocol": 9, "protocol_min": 9}, "protocol versions 9 to 9 there"),
        ({"host": b"host of primary"}, "this is myself"),
    ],
)
async def test_a_wrong_peer_is_refused_with_one_line_on_each_side(
    other: dict[str, Any],
    reason: str,
    memory: MemoryNetwork,
    alpha: Host,
    beta: Host,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    beta.hello.update(other)
    alpha.linker.dialing.meet_at((Address("nowhere", 7000),))  # beta dials; alpha refuses
    async with running(alpha, beta):
        await trio.sleep(1)
        dialed = sum(line.startswith("refused the peer at beta:") for line in lines(caplog, logging.WARNING))
        assert dialed > 1, "it tried again and again"
        told = f"the peer at alpha:7000 refused the connection: {reason}"
        assert [line for line in lines(caplog, logging.WARNING) if line.startswith(told)] == [
            beta.linker.last_error
        ]
        assert all(reason in line for line in lines(caplog, logging.WARNING))


class Remembering(Encounters):
    """The roles of who was met in the role of this host, and the sessions talked over, where `talks`."""

    def __init__(self, *, talks: bool = False) -> None:
        self.met: list[str] = []
        self.sessions: list[Session] = []
        self._talks = talks

    def met_same_role(self, peer: Hello) -> bool:
        self.met.append(peer.role)
        return self._talks

    async def talk(self, session: Session) -> None:
        self.sessions.append(session)
        await session.discard()


async def test_two_hosts_of_the_same_role_tell_each_other_and_link_once_one_has_changed(
    alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    beta.hello.update({"role": "primary"})
    alpha.encounters, beta.encounters = of_alpha, of_beta = Remembering(), Remembering()
    async with running(alpha, beta):
        await trio.sleep(20)
        assert of_alpha.met
        assert of_beta.met
        assert len(of_alpha.met) < 200, "they wait between their attempts"
        beta.hello.update({"role": "backup"})
        beta.linker.meet_anew("the role changed")
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began < 1


async def test_two_hosts_of_the_same_role_that_are_to_talk_keep_what_they_dialed_until_one_changes(
    alpha: Host, beta: Host, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    beta.hello.update({"role": "primary"})
    alpha.encounters = beta.encounters = both = Remembering(talks=True)
    talks = both.sessions
    async with running(alpha, beta):
        await trio.sleep(60)
        before = len(talks)
        assert 2 <= before <= 4, "the two ends of one session, or of two that were dialed at once"
        assert not any(talk.closed for talk in talks)
        memory.cut("alpha", "beta")
        await trio.sleep(60)
        assert all(talk.closed for talk in talks)
        memory.heal("alpha", "beta")
        await trio.sleep(10)
        assert len(talks) > before
        beta.hello.update({"role": "backup"})
        beta.linker.meet_anew("the role changed")
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began < 2
        assert all(talk.closed for talk in talks)


async def test_a_peer_of_the_same_role_that_dials_again_and_again_holds_a_few_sessions(
    memory: MemoryNetwork, alpha: Host, backup_hello: MakeHello, autojump_clock: trio.testing.MockClock
) -> None:
    alpha.encounters = met = Remembering(talks=True)
    hello = backup_hello(role="primary")
    async with running(alpha):
        for _ in range(limits.TALKS_MAX + 4):
            transport = await memory.host("beta").connect("alpha", 7000)
            with pytest.raises(SameRole):
                await open_session(transport, hello, dialer=True, peer_timeout=PEER_TIMEOUT)
            await trio.sleep(0.1)
        assert [talk.closed for talk in met.sessions] == [True] * 4 + [False] * limits.TALKS_MAX


async def test_a_peer_that_is_away_is_logged_once(
    alpha: Host, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.INFO)
    async with running(alpha):
        await trio.sleep(100)
    assert [line for line in lines(caplog, logging.INFO) if "beta" in line] == [alpha.linker.last_error]


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("said", "line"),
    [
        (b"GET / HTTP/1.1\r\nHost: alpha\r\n\r\n", "this is not the protocol of fusemirror"),
        (b"fm\x09\x00" + bytes(16), "protocol version 9 is unknown"),
        (b"fm\x01\x00" + b"\xff" * 16, "is too long"),
        (b"fm\x01\x00" + bytes(16), "the checksum of a frame is wrong"),
    ],
)
async def test_a_stranger_is_refused_with_one_line_and_disturbs_no_link(
    said: bytes,
    line: str,
    memory: MemoryNetwork,
    alpha: Host,
    beta: Host,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        await say(memory.host("mallory"), said)
        await trio.sleep(1)
        await assert_linked(one, other)
    [warning] = lines(caplog, logging.WARNING)
    assert warning.startswith("refused what mallory:")
    assert line in warning


@pytest.mark.parametrize(
    ("said", "line"),
    [(b"", "it ended without a Hello"), (b"fm\x01", "it ended in the middle of its Hello")],
    ids=["a look for an open port", "a spare that was given up"],
)
async def test_a_connection_that_ends_before_it_said_who_it_is_is_no_warning(
    said: bytes,
    line: str,
    memory: MemoryNetwork,
    alpha: Host,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO)
    async with running(alpha):
        await say(memory.host("monitor"), said)
        await trio.sleep(1)
    assert [told for told in lines(caplog, logging.INFO) if line in told]
    assert not lines(caplog, logging.WARNING)


@pytest.mark.expects_warnings
async def test_strangers_are_few_and_do_not_stay(
    memory: MemoryNetwork,
    alpha: Host,
    beta: Host,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(alpha, beta):
        one, other = await alpha.link(), await beta.link()
        for _ in range(limits.STRANGERS_MAX):
            await say(memory.host("mallory"), b"fm", hold=True)
        assert lines(caplog, logging.WARNING) == []
        await trio.sleep(1)
        await say(memory.host("mallory"), b"fm", hold=True)
        await trio.sleep(0.1)
        [given_away] = lines(caplog, logging.WARNING)
        assert "it had not said Hello when others wanted its place" in given_away

        await trio.sleep(limits.HANDSHAKE_TIMEOUT_S + 1)
        waited = lines(caplog, logging.WARNING)[1:]
        assert all("it did not say Hello within 10 s" in line for line in waited)
        assert len(waited) == limits.REFUSALS_LOGGED_MAX - 1
        await assert_linked(one, other)
        caplog.clear()
        await trio.sleep(limits.REFUSALS_INTERVAL_S)
        [summed_up] = lines(caplog, logging.WARNING)
        assert summed_up.startswith("refused 1 more connection in 60 s, of 1 address; the last: refused")


@pytest.mark.expects_warnings
@pytest.mark.parametrize("first", ["strangers", "peer"])
async def test_strangers_who_say_nothing_do_not_keep_the_peer_out(
    first: str, memory: MemoryNetwork, alpha: Host, beta: Host, autojump_clock: trio.testing.MockClock
) -> None:
    """Sixty-four of them dial again as soon as they are closed, before the peer's first dial or after it."""

    async def hold() -> None:
        while True:
            with suppress(ConnectionLost):
                stream = await say(memory.host("mallory"), b"fm", hold=True)
                await stream.receive(1)
            await trio.sleep(0.5)

    async def flood() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(hold)

    async with running(alpha) as nursery:
        if first == "strangers":
            nursery.start_soon(flood)
            await trio.sleep(5)
        await nursery.start(beta.run)
        with trio.fail_after(5):
            one, other = await alpha.link(), await beta.link()
        if first == "peer":
            nursery.start_soon(flood)
            await trio.sleep(5)
        await assert_linked(one, other)
        one.close("the network broke")
        began = trio.current_time()
        await assert_linked(await alpha.link(), await beta.link())
        assert trio.current_time() - began < 1


@pytest.mark.expects_warnings
@pytest.mark.parametrize("tls", [False, True])
def test_random_bytes_at_the_listener_disturb_no_link(
    primary_hello: MakeHello, backup_hello: MakeHello, credentials: Both, tls: bool
) -> None:
    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5), st.integers())
    def disturb(pieces: list[bytes], seed: int) -> None:
        from random import Random

        async def main() -> None:
            memory = MemoryNetwork(Random(seed))
            networks: list[Network] = [memory.host(name) for name in ("alpha", "beta")]
            if tls:
                networks = [TlsNetwork(*each) for each in zip(networks, credentials, strict=True)]
            alpha = Host(networks[0], "alpha:7000", "beta:7000", primary_hello)
            beta = Host(networks[1], "beta:7000", "alpha:7000", backup_hello)
            async with running(alpha, beta):
                one, other = await alpha.link(), await beta.link()
                for said in pieces:
                    await say(memory.host("mallory"), said)
                    await assert_linked(one, other)
                await trio.sleep(1)
                await assert_linked(one, other)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    disturb()


async def test_a_peer_that_is_away_has_a_line_a_minute_whatever_the_reasons(
    alpha: Host, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Reasons that alternated were told each time."""
    caplog.set_level(logging.INFO, "fusemirror.channel.absence")
    for second in range(300):
        why = ("Connection refused", "no answer for 2 s")[second % 2]
        alpha.linker._report(PeerUnreachable("beta:7000", why))
        assert why in str(alpha.linker.last_error)
        await trio.sleep(1)
    assert len(lines(caplog, logging.INFO)) == 5
