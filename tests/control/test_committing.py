"""The names are made durable by a timer, and sooner where the disk is full."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.control import committing
from fusemirror.control.host_state import HostState
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import COMMIT_INTERVAL_S, SPACE_LOOK_INTERVAL_S
from fusemirror.volume.volume import Volume
from tests.volume.conftest import directory, volume

__all__ = ["directory", "volume"]


async def test_a_full_disk_is_looked_at_more_often(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    host = HostState(volume, b"instance")
    for short, interval_s in ((False, COMMIT_INTERVAL_S), (True, SPACE_LOOK_INTERVAL_S)):
        monkeypatch.setattr(volume.space, "short", short)
        began = trio.current_time()
        await committing.wait_commit_due(host)
        assert trio.current_time() == pytest.approx(began + interval_s)


async def test_a_volume_that_failed_is_left_alone(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    host, committed = HostState(volume, b"instance"), list[bool]()
    monkeypatch.setattr(volume, "commit", lambda *_: committed.append(True))
    await committing.commit_names(host, ChangeNumber(0))
    volume.health.fail("it burns")
    await committing.commit_names(host, ChangeNumber(0))
    assert committed == [True]
