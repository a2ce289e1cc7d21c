"""A backup asks again for whatever was not answered when the link was lost, however much that is."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.control import peer_requests
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import ENDED_INTERVAL_S
from fusemirror.operations import Write
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file, unit
from tests.control.test_roles import content, until
from tests.memory_network import MemoryNetwork

__all__ = ["file", "network", "pair", "unit"]

BESIDE_MAX = 4
COUNT = 10 * BESIDE_MAX


@pytest.fixture
async def unanswered(
    pair: Pair,
    unit: BackupUnit,
    network: MemoryNetwork,
    file: InodeNumber,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The primary has done more than it serves at once beside the stream, and no word of it arrived."""
    monkeypatch.setattr(peer_requests, "REQUESTS_BESIDE_MAX", BESIDE_MAX)
    network.heal("alpha", "beta")
    network.stall_one_way("alpha", "beta")
    for number in range(COUNT):
        await pair.backup.roles.perform(Write(file, number), b"%d" % (number % 10))
    unit.forwarding.send_gathered()
    await until(lambda: len(pair.primary.roles.volume.requests_done) == COUNT)
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()


@pytest.fixture
def settling(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Until it is set, nobody at the primary hears that a change is acknowledged."""
    assert isinstance(pair.primary.unit, PrimaryUnit)
    window, event = pair.primary.unit.mirror.window, trio.Event()
    settled = window.settled

    async def settled_late(number: ChangeNumber) -> bool:
        await event.wait()
        return await settled(number)

    monkeypatch.setattr(window, "settled", settled_late)
    return event


@pytest.mark.expects_warnings
async def test_all_are_answered_over_the_next_link(
    pair: Pair,
    unit: BackupUnit,
    network: MemoryNetwork,
    file: InodeNumber,
    unanswered: None,
    settling: trio.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network.heal("alpha", "beta")
    await until(lambda: unit.forwarding.forwarded_total == 2 * COUNT)
    await trio.sleep(3 * ENDED_INTERVAL_S)  # a message of another kind comes behind them
    settling.set()
    with trio.fail_after(30):
        await pair.backup.roles.wait_drained()
    assert "refused what" not in caplog.text
    with trio.fail_after(30):
        await until(lambda: not pair.primary.roles.volume.requests_done)
    assert content(pair.primary, file) == content(pair.backup, file)


@pytest.mark.expects_warnings
async def test_more_than_a_backup_may_stage_is_refused(
    pair: Pair,
    unit: BackupUnit,
    network: MemoryNetwork,
    unanswered: None,
    settling: trio.Event,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_requests, "STAGED_REQUESTS_MAX", COUNT // 2)
    network.heal("alpha", "beta")
    await until(lambda: "Request: too many of its kind at once" in caplog.text)
