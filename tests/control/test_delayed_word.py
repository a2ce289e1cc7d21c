"""The word of what the backup's programs wrote is delayed, and who waits for it asks."""

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.identifiers import InodeNumber
from fusemirror.mirror import acknowledging
from fusemirror.mirror.replica import Replica
from fusemirror.operations import Write
from fusemirror.protocol.messages import WantApplied
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file
from tests.control.test_roles import content

__all__ = ["file", "network", "pair"]

NEVER_S = 1_000.0
AT_ONCE_S = 0.3  # before the primary says anything by itself


@pytest.fixture
async def written(
    pair: Pair, file: InodeNumber, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> InodeNumber:
    """A file that the backup has written, of which the primary does not know that it is applied there."""
    monkeypatch.setattr(acknowledging, "APPLIED_DELAY_S", NEVER_S)
    for _ in range(2):  # the first looks whether the file has flags
        await pair.backup.roles.perform(Write(file, 0), b"before")
    await pair.backup.roles.perform(Write(file, 0), b"after!")
    await trio.testing.wait_all_tasks_blocked()
    assert content(pair.backup, file) == b"after!"
    assert under_way(pair) > 0
    return file


def under_way(pair: Pair) -> int:
    assert isinstance(pair.primary.unit, PrimaryUnit)
    return len(pair.primary.unit.mirror.window.in_flight)


WAITS: dict[str, Callable[[Pair, InodeNumber], Awaitable[object]]] = {
    "a read at the primary": lambda pair, file: pair.primary.roles.read(file, 0, 100),
    "a look at the primary": lambda pair, file: pair.primary.roles.attributes(file),
    "a write at the primary": lambda pair, file: pair.primary.roles.perform(Write(file, 0), b"!"),
    "an fsync at the primary": lambda pair, file: pair.primary.roles.flush(file),
    "an fsync at the backup": lambda pair, file: pair.backup.roles.flush(file),
    "a switch": lambda pair, _: pair.primary.succession.switch(),
    "a switch asked for by the backup": lambda pair, _: pair.backup.succession.switch(),
    "a goodbye of the backup": lambda pair, _: pair.backup.drain("it ends"),
    "a goodbye of the primary": lambda pair, _: pair.primary.drain("it ends"),
}


@pytest.mark.parametrize("wait", WAITS)
async def test_who_waits_for_it_asks(pair: Pair, written: InodeNumber, wait: str) -> None:
    with trio.fail_after(AT_ONCE_S):
        await WAITS[wait](pair, written)
    if isinstance(pair.primary.unit, PrimaryUnit):
        assert under_way(pair) == 0


async def test_nobody_asks_for_the_word_of_another_file(pair: Pair, written: InodeNumber) -> None:
    before = under_way(pair)
    with trio.fail_after(AT_ONCE_S):
        await pair.primary.roles.attributes(InodeNumber(1))
    assert under_way(pair) == before


async def test_a_backup_that_says_goodbye_leaves_nothing_to_be_compared(
    pair: Pair, written: InodeNumber
) -> None:
    assert isinstance(pair.primary.unit, PrimaryUnit)
    await pair.backup.drain("it ends")
    assert not pair.primary.unit.replica.out_of_sync


async def test_a_backup_that_asks_for_an_fsync_says_the_word_before(
    pair: Pair, written: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Replica] = []
    monkeypatch.setattr(Replica, "ask_applied", asked.append)
    with trio.fail_after(AT_ONCE_S):
        await pair.backup.roles.flush(written)
    assert asked == []


async def test_nobody_asks_a_backup_of_an_earlier_version(
    pair: Pair, written: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(pair.primary.unit, PrimaryUnit)
    replica, said = pair.primary.unit.replica, list[object]()
    monkeypatch.setattr(Replica, "say", lambda _, message: said.append(message))
    replica.ask_applied()
    session = replica.feed
    assert session is not None
    monkeypatch.setattr(session, "peer", msgspec.structs.replace(session.peer, takes_delays=False))
    replica.ask_applied()
    assert said == [WantApplied()]
