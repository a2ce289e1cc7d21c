"""A backup whose communication volume fails: the primary remembers no more of its requests for that."""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fusemirror.communication import order
from fusemirror.control import peer_requests
from fusemirror.control.backup import BackupUnit
from fusemirror.errors import CheckReport, DiskFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ENDED_INTERVAL_S
from fusemirror.operations import Write
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file, unit
from tests.control.test_roles import content, until
from tests.memory_network import MemoryNetwork

__all__ = ["file", "network", "pair", "unit"]

LATE_S = 0.05  # longer than a request waits for its answer before the store gets it
ALLOWED = 40

PAIR_SETTINGS = {"io_timeout": 5.0}


@pytest.fixture
def store(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether the store of the backup fails, from now on."""
    unit: Any = pair.backup.unit
    volume = unit.communication
    works, fails = volume._store_blocking, [False]

    def store_blocking(*entries: Any) -> None:
        if fails[0]:
            raise DiskFailed("store", OSError(errno.ENOSPC, "no room"))
        works(*entries)

    monkeypatch.setattr(volume, "_store_blocking", store_blocking)

    def set_failing(value: bool) -> None:
        fails[0] = value

    return set_failing


@pytest.fixture
async def stuck(
    pair: Pair,
    unit: BackupUnit,
    network: MemoryNetwork,
    file: InodeNumber,
    store: Callable[[bool], None],
    autojump_clock: MockClock,
) -> None:
    """A kept write has ended, and the store that holds it fails."""
    network.slow("alpha", "beta", LATE_S)
    await pair.backup.roles.perform(Write(file, 0), b"0")
    assert unit.communication.stored_count() == 1
    store(True)
    network.heal("alpha", "beta")
    await pair.backup.roles.wait_drained()


async def write(pair: Pair, file: InodeNumber, numbers: range) -> None:
    for number in numbers:
        await pair.backup.roles.perform(Write(file, number), b"%d" % (number % 10))
    await pair.backup.roles.wait_drained()
    await trio.sleep(2 * ENDED_INTERVAL_S)


@pytest.mark.expects_warnings
async def test_what_no_store_takes_up_again_is_forgotten(
    pair: Pair,
    network: MemoryNetwork,
    file: InodeNumber,
    store: Callable[[bool], None],
    autojump_clock: MockClock,
) -> None:
    """With synchronous acknowledgement that is everything."""
    assert isinstance(pair.backup.unit, BackupUnit)
    communication = pair.backup.unit.communication
    network.slow("alpha", "beta", LATE_S)
    await pair.backup.roles.perform(Write(file, 0), b"0")
    assert communication.destaging.total == 1
    store(True)
    network.heal("alpha", "beta")
    await write(pair, file, range(1, 3 * ALLOWED))
    assert communication.stored_count() > 0, "it fails still"
    assert not pair.primary.roles.volume.requests_done


@pytest.mark.expects_warnings
async def test_so_many_may_come_behind_a_kept_one_and_then_programs_wait(
    pair: Pair,
    unit: BackupUnit,
    file: InodeNumber,
    store: Callable[[bool], None],
    stuck: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order, "STAGED_SINCE_OLDEST_MAX", ALLOWED)
    unit.communication.order.last_allowed = 0
    done = pair.primary.roles.volume.requests_done
    with trio.move_on_after(60) as limit, suppress(CheckReport):
        await write(pair, file, range(1, 3 * ALLOWED))
    assert not limit.cancelled_caught, "a program waits for io_timeout at most"
    assert len(done) == ALLOWED
    assert "lets go of no request that has ended" in unit.status()["reason"]
    store(False)
    await until(lambda: not unit.communication.order.too_far_ahead)
    assert unit.status()["reason"] is None
    await write(pair, file, range(1, 3 * ALLOWED))
    assert not done
    assert content(pair.primary, file) == content(pair.backup, file)
    assert content(pair.primary, file) == bytes(48 + number % 10 for number in range(3 * ALLOWED))


@pytest.mark.expects_warnings
async def test_a_peer_that_lets_the_primary_forget_nothing_is_not_served_until_it_does(
    pair: Pair,
    unit: BackupUnit,
    file: InodeNumber,
    store: Callable[[bool], None],
    stuck: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of an earlier version, which does not wait."""
    monkeypatch.setattr(peer_requests, "REQUESTS_DONE_MAX", ALLOWED)
    done = pair.primary.roles.volume.requests_done
    link = unit.host.links.link
    with pytest.raises(CheckReport):
        await write(pair, file, range(1, 3 * ALLOWED))
    assert len(done) == ALLOWED
    with trio.fail_after(1):
        await pair.primary.roles.perform(Write(file, 3 * ALLOWED), b"x")
    assert unit.host.links.link is link, "it is not cut again and again"
    store(False)
    await until(lambda: unit.host.links.link is not link)
    await pair.backup.unit.wait_normal()
    await write(pair, file, range(1, 3 * ALLOWED))
    assert not done
    assert content(pair.primary, file) == content(pair.backup, file)
