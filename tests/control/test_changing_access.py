"""Access changes while both hosts are mounted: on either of them, for both, and for the mounts to come."""

from collections.abc import Callable

import pytest
import trio

from fusemirror.daemon import Host
from fusemirror.errors import PeerUnreachable, UsageError
from fusemirror.settings import Access
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork

__all__ = ["network", "pair"]

PATIENCE_S = 30


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it waits for sends no word
            await trio.sleep(0.001)


def shown(pair: Pair, host: Host) -> tuple[str, str]:
    status = pair.status(host)
    return status["settings"]["access"], status["effective"]["access"]


@pytest.mark.parametrize("here", ["primary", "backup"])
async def test_it_is_set_on_either_host_for_both(pair: Pair, here: str) -> None:
    there = {"primary": "backup", "backup": "primary"}[here]
    for access in (Access.EXCLUSIVE, Access.ROUTED):
        await getattr(pair, here).set({"access": str(access), "io_timeout": 20})
        assert shown(pair, getattr(pair, here)) == (access, access)
        await until(lambda wanted=access: shown(pair, getattr(pair, there)) == (wanted, wanted))  # type: ignore[misc]
    await until(lambda: len(pair.kept[there]) == 2)
    assert pair.kept[there] == [{"access": "exclusive"}, {"access": "routed"}]
    assert pair.kept[here] == [], "the command has written it there"
    assert getattr(pair, here).settings.io_timeout == 20


async def test_the_pair_keeps_it_when_the_roles_change(pair: Pair) -> None:
    await pair.primary.set({"access": "exclusive"})
    await pair.backup.succession.switch()
    for host in (pair.primary, pair.backup):
        await host.unit.wait_normal()
        assert host.unit.access is Access.EXCLUSIVE
    pair.backup.change_settings({"io_timeout": 20})
    assert pair.backup.unit.access is Access.EXCLUSIVE, "other settings have nothing to do with it"


@pytest.mark.expects_warnings
async def test_a_backup_alone_changes_nothing_and_a_primary_alone_does(
    pair: Pair, network: MemoryNetwork
) -> None:
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    with pytest.raises(PeerUnreachable, match="the primary decides it"):
        await pair.backup.set({"access": "exclusive", "io_timeout": 20})
    assert shown(pair, pair.backup) == ("routed", "routed")
    assert pair.backup.settings.io_timeout == 30
    with trio.fail_after(PATIENCE_S):
        await pair.primary.set({"access": "exclusive"})
    network.heal("alpha", "beta")
    await until(lambda: shown(pair, pair.backup) == ("exclusive", "exclusive"))
    assert pair.kept["backup"] == [{"access": "exclusive"}]


async def test_what_a_mount_cannot_take_changes_no_access(pair: Pair) -> None:
    with pytest.raises(UsageError, match="peer_timeout cannot change"):
        await pair.backup.set({"access": "exclusive", "peer_timeout": 1.0})
    assert shown(pair, pair.backup) == shown(pair, pair.primary) == ("routed", "routed")


async def test_a_file_that_cannot_be_written_is_told_of(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(pair.backup, "_keep", refuse)
    await pair.primary.set({"access": "exclusive"})
    wanted = "access = exclusive is in effect, and the settings cannot be written: no"
    await until(lambda: wanted in caplog.text)
    assert shown(pair, pair.backup) == ("exclusive", "exclusive")
    caplog.clear()
