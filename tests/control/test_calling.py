"""Calls of the backup: beside the communication volume, and in their place among the changes all the same."""

import errno
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.control import calling
from fusemirror.control.backup import BackupUnit
from fusemirror.control.calling import Calls
from fusemirror.control.peer_requests import PeerRequests
from fusemirror.errors import ConnectionLost, OperationFailed, PrimaryUnreachable, RoleChanged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.calls import AnyCall, Flush, SwitchRoles
from fusemirror.protocol.messages import Answer, Request
from fusemirror.settings import Acknowledge
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import create
from tests.memory_network import MemoryNetwork
from tests.protocol.test_calls import WRONG

__all__ = ["network", "pair"]

FILE = InodeNumber(2)


def request(number: int, call: AnyCall) -> Request:
    return Request(RequestId(b"%16d" % number), call)


@pytest.fixture
async def unit(pair: Pair, network: MemoryNetwork, autojump_clock: MockClock) -> BackupUnit:
    """Of an asynchronous backup with a file, half a second away from its primary."""
    assert await create(pair.primary, b"file") == FILE
    for host in (pair.primary, pair.backup):
        host.succession.configure(msgspec.structs.replace(host.settings, acknowledge=Acknowledge.ASYNC))
    network.slow("alpha", "beta", 0.5)
    unit = pair.backup.unit
    assert isinstance(unit, BackupUnit)
    return unit


async def test_a_call_takes_no_place_in_the_communication_volume(unit: BackupUnit) -> None:
    before = unit.status()["communication"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit.flush, FILE)
        await wait_all_tasks_blocked()
        assert len(unit.forwarding.calls.pending()) == 1
        now = unit.status()["communication"]
        counts = ("pending_requests", "staged_total", "forwarded_total", "answered_total")
        assert {count: now[count] for count in counts} == {count: before[count] for count in counts}
        with trio.fail_after(0):
            await unit.wait_drained()
    assert not unit.forwarding.calls.pending()


async def test_a_flush_goes_behind_the_writes_before_it_also_over_the_next_link(
    pair: Pair, unit: BackupUnit, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    serve_request = PeerRequests._serve_request

    def noted(primary: PeerRequests, session: Any, request: Request, *others: Any) -> None:
        served.append(type(request.operation).__name__)
        serve_request(primary, session, request, *others)

    for number in range(3):  # the first is on its way, and the others wait for it
        await pair.backup.roles.perform(Write(FILE, number), b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit.flush, FILE)
        await wait_all_tasks_blocked()
        network.cut("alpha", "beta")
        await unit.host.links.ended.wait()
        network.heal("alpha", "beta")
        monkeypatch.setattr(PeerRequests, "_serve_request", noted)
        await pair.backup.roles.perform(Write(FILE, 3), b"x")
    await pair.backup.roles.wait_drained()
    assert served == ["Write", "Write", "Write", "Flush", "Write"]


@pytest.mark.expects_warnings
async def test_a_call_that_waits_too_long_gets_a_check_report(
    unit: BackupUnit, network: MemoryNetwork
) -> None:
    unit.patience.io_timeout_s = 0.2
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    with pytest.raises(PrimaryUnreachable):
        await unit.comparisons.report()
    assert not unit.forwarding.calls.pending()


async def test_a_call_that_makes_no_sense_is_answered_and_the_link_stays(unit: BackupUnit) -> None:
    link = unit.link
    for call in WRONG:
        with pytest.raises(OperationFailed) as failed:
            await unit.forwarding.call(call)
        assert failed.value.errno == errno.EINVAL
    assert unit.link is link


# --- without a link ---------------------------------------------------------------------------------------


async def test_a_switch_is_asked_once_and_others_again_over_the_next_link() -> None:
    calls = Calls()
    switch = calls.begin(request(1, SwitchRoles()), 1)
    flush, abandoned = (calls.begin(request(number, Flush(FILE)), 1) for number in (2, 3))
    abandoned.abandoned = True
    calls.link_lost(ConnectionLost("alpha", "gone"))
    assert calls.pending() == [flush]
    with pytest.raises(ConnectionLost):
        await switch.answer.wait()


async def test_whoever_waits_when_the_roles_change_asks_the_new_primary() -> None:
    calls = Calls()
    flush = calls.begin(request(1, Flush(FILE)), 1)
    calls.retire()
    with pytest.raises(RoleChanged):
        await flush.answer.wait()
    assert not calls.pending()


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "CALLS_MAX", 1)
    calls = Calls()
    first = calls.begin(request(1, Flush(FILE)), 1)
    assert calls.is_full()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.wait_room)
        await wait_all_tasks_blocked()
        assert not calls.finish(Answer(RequestId(b"%16d" % 2)), b"")
        assert calls.is_full()
        assert calls.finish(Answer(first.request.identity), b"")
    assert not calls.is_full()
    assert await first.answer.wait() == (Answer(first.request.identity), b"")
