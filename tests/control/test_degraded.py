"""Who goes on while the other host is away: a primary that may, and never a backup."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusemirror.control.degraded import DegradedBackup, DegradedPrimary
from fusemirror.control.life import RoleLife
from fusemirror.control.links import Links
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.mirror.states import BackupState


class FakeMirror:
    """What a primary may do, and when that has changed."""

    def __init__(self) -> None:
        self.changed = trio.Event()
        self.authority = SimpleNamespace(
            acknowledges_alone=False, wants_quorum=True, look=self._change, refuse=self._change
        )
        self.times = 0

    def _change(self) -> None:
        self.times += 1
        changed, self.changed = self.changed, trio.Event()
        changed.set()


def primary_of(life: RoleLife, links: Links, mirror: Any) -> DegradedPrimary:
    return DegradedPrimary(life, links, mirror)


@pytest.mark.parametrize("how", ["alone", "met", "retired"])
async def test_a_primary_is_waited_for_until_it_is_decided(how: str) -> None:
    life, links, mirror = RoleLife(RoleState.BEGINNING), Links(), FakeMirror()
    degraded = primary_of(life, links, mirror)
    seen: list[str] = []

    async def wait() -> None:
        await degraded.wait_alone()
        seen.append(how)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        degraded.refused()
        await wait_all_tasks_blocked()
        assert not seen, "nothing is decided yet"
        if how == "alone":
            mirror.authority.acknowledges_alone = True
        elif how == "met":
            links.link = SimpleNamespace()  # type: ignore[assignment]
        else:
            life.meet(RoleEvent.RETIRE)
        degraded.granted()
    assert seen == [how]
    assert degraded.acknowledges_alone is (how == "alone")
    assert degraded.wants_quorum


async def test_a_backup_takes_over_and_does_not_go_on() -> None:
    applier, refusals = SimpleNamespace(state=BackupState.NORMAL), list[bool]()
    patience = SimpleNamespace(refuse=lambda: refusals.append(True))
    degraded = DegradedBackup(applier, patience)  # type: ignore[arg-type]
    seen = [degraded.wants_quorum]
    applier.state = BackupState.DISCONNECTED
    seen.append(degraded.wants_quorum)
    degraded.granted()
    assert not degraded.acknowledges_alone
    assert seen == [False, True]
    degraded.refused()
    assert refusals == [True]
    with trio.fail_after(1):
        await degraded.wait_alone()
