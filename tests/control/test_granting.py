"""Main's status ahead of the data: granted once, in turn, and free again where the data does not come."""

from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.control import granting
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.granting import Granting
from fusemirror.control.steps import WriteEvent, WriteState
from fusemirror.identifiers import RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import AskStatus, Excluded, StatusGranted
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, directory, volume

__all__ = ["directory", "volume"]

ONE, OTHER = RequestId(b"1" * 16), RequestId(b"2" * 16)


class Main:
    """Main's statuses with a file of 100 bytes, and what the backup is told."""

    def __init__(self, volume: Volume) -> None:
        writer = Writer(volume)
        self.file = writer.create(b"file")
        writer.write(self.file, 0, bytes(100))
        self.exclusive = ExclusiveAccess(volume, of_main=True)
        self.granting = Granting(volume)
        self.told: list[Any] = []
        self.written: list[ExclusiveWrite] = []

    def send(self, message: Any) -> None:
        """In a session's place."""
        self.told.append(message)

    def ask(self, identity: RequestId, nursery: trio.Nursery) -> ExclusiveWrite:
        write = self.exclusive.begin(Write(self.file, 0), 10, b"h" * 16)
        assert write is not None
        session: Any = self
        self.granting.ask(session, AskStatus(identity, self.file, 0, 10), write, nursery)
        return write

    def carry_out(self, write: ExclusiveWrite) -> None:
        assert write.state is WriteState.COMMANDING
        self.written.append(write)
        write.end(WriteEvent.TRANSFERRED)


@pytest.fixture
def main(volume: Volume) -> Main:
    return Main(volume)


async def test_a_free_status_is_granted_at_once_and_ends_with_the_data(main: Main) -> None:
    async with trio.open_nursery() as nursery:
        write = main.ask(ONE, nursery)
        assert main.told == [StatusGranted(ONE)]
        assert main.granting.granted == [ONE]
        assert main.file in main.granting.inodes
        changed = main.granting.changed
        assert not main.granting.waits(ONE)
        assert main.granting.arrived(ONE, main.carry_out)
        assert changed.is_set()
        assert main.file not in main.granting.inodes
        assert main.written == [write]
        assert not main.granting.arrived(ONE, main.carry_out), "nothing was asked for it any more"
        assert main.exclusive.is_idle()


@pytest.mark.parametrize("data_first", [True, False])
async def test_anothers_status_is_granted_in_turn_or_serves_the_data_that_has_come(
    main: Main, data_first: bool
) -> None:
    async with trio.open_nursery() as nursery:
        before, write = main.ask(ONE, nursery), main.ask(OTHER, nursery)
        assert main.told == [StatusGranted(ONE), Excluded(OTHER)]
        assert main.granting.waits(OTHER)
        if data_first:
            assert main.granting.arrived(OTHER, main.carry_out)
        assert main.granting.arrived(ONE, main.carry_out)
        await trio.testing.wait_all_tasks_blocked()
        if not data_first:
            assert main.told[2:] == [StatusGranted(OTHER)]
            assert main.granting.arrived(OTHER, main.carry_out)
    assert main.written == [before, write]
    assert not main.granting.inodes
    assert main.exclusive.is_idle()


async def test_statuses_are_asked_for_once_and_by_no_more_than_may_be_under_way(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        assert main.granting.takes(ONE)
        main.ask(ONE, nursery)
        assert not main.granting.takes(ONE)
        assert main.granting.takes(OTHER)
        monkeypatch.setattr(granting, "REQUESTS_BESIDE_MAX", 1)
        assert not main.granting.takes(OTHER)
        main.granting.free([ONE])
        assert main.granting.takes(OTHER)


async def test_what_does_not_come_is_free_and_what_waits_ends_with_its_link(main: Main) -> None:
    async with trio.open_nursery() as nursery:
        main.ask(ONE, nursery)
        main.ask(OTHER, nursery)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert main.granting.granted == [ONE], "it outlasts the link"
    main.granting.free([OTHER, ONE])
    assert not main.granting.granted
    assert not main.granting.inodes
    assert main.exclusive.is_idle()


async def test_it_runs_out_once_all_that_was_asked_for_has_landed(main: Main) -> None:
    async with trio.open_nursery() as nursery:
        main.ask(ONE, nursery)
        main.ask(OTHER, nursery)  # in its turn
        over = trio.Event()

        async def run_out() -> None:
            await main.granting.run_out()
            over.set()

        nursery.start_soon(run_out)
        await trio.testing.wait_all_tasks_blocked()
        assert not main.granting.grants
        assert main.granting.arrived(ONE, main.carry_out)
        await trio.testing.wait_all_tasks_blocked()
        assert main.granting.granted == [OTHER]
        assert not over.is_set()
        assert main.granting.arrived(OTHER, main.carry_out)
    assert over.is_set()
    main.granting.go_on()
    assert main.granting.grants


async def test_what_an_earlier_process_granted_is_owed_until_it_has_come(main: Main) -> None:
    assert not main.granting.is_owed
    main.granting.expect(owed=True)
    changed = main.granting.changed
    main.granting.paid()
    assert changed.is_set()
    assert not main.granting.is_owed
    changed = main.granting.changed
    main.granting.paid()
    assert not changed.is_set(), "no news"
