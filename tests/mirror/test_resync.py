"""Resync: in which order a replica is brought up to date, and what is acknowledged at which step."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from fusemirror.change import NamespaceChange, TruncateChange
from fusemirror.channel.link import Link
from fusemirror.errors import CopyDeclined
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.mirror.histories import history_of
from fusemirror.mirror.pace import Pace
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.resync import Resyncer
from fusemirror.mirror.states import PrimaryEvent
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.window import Window
from fusemirror.protocol.messages import CatalogRows, CaughtUp, Normal, OutOfSync, PurgeOffer, Reply, Suspects
from fusemirror.volume.volume import Volume
from tests.mirror.replicas import FakeSession
from tests.volume.conftest import BETA, GAMMA, Writer

FILE = InodeNumber(7)
PATIENCE_S = 30


class Wire(FakeSession):
    """A session to a process that has what this host has, which the test answers for."""

    def __init__(self, instance: bytes = b"first") -> None:
        super().__init__()
        self.peer = SimpleNamespace(takes_holes=True, instance=instance)

    async def wait_room(self, bytes_max: int | None = None) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def kinds(self) -> list[type]:
        return [type(message) for message, _ in self.sent]


class Brought:
    """The last replica of a volume, which is being brought up to date."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.replica = Replica(volume, volume.identity.peers[-1], hold_until=0.0)
        self.window = Window(volume.number)
        self.reached: list[PrimaryEvent] = []
        self.pace = Pace(0, paused=volume.identity.resync_paused)
        self.resync = Resyncer(
            volume, self.replica, self.window, self.pace, self.reached.append, self.window.acknowledge
        )

    @asynccontextmanager
    async def over(
        self, wire: Wire, *, copy_catalog: bool = False, suspects: Any = ()
    ) -> AsyncIterator[Stream]:
        """A link, over which it has told of its marks."""
        peer = SimpleNamespace(history=history_of(self.volume), instance=wire.peer.instance)
        link = cast(Link, SimpleNamespace(mirror=wire, peer=peer, close=lambda _: None))
        stream = self.replica.linked(link)
        self.resync.linked()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: self.resync.run(link, stream, copy_catalog=copy_catalog))
                await trio.testing.wait_all_tasks_blocked()
                self.resync.take_suspects(Suspects((), last=True, ranges=suspects), cast(Any, wire))
                await trio.testing.wait_all_tasks_blocked()
                yield stream
                nursery.cancel_scope.cancel()
        self.replica.lost("cut", [], permitted=True)


async def confirm(stream: Stream, token: int) -> None:
    stream.answered(Reply(token))
    await trio.testing.wait_all_tasks_blocked()


async def test_names_come_first_and_what_waits_is_acknowledged_before_it_is_normal(volume: Volume) -> None:
    brought, wire = Brought(volume), Wire()
    waits = NamespaceChange(ChangeNumber(volume.number + 1), NO_REQUEST, 0, InodeNumber(0), ())
    brought.window.add(waits, (), 0, now=0.0)
    brought.replica.progress.hold_back(waits.number)
    async with brought.over(wire) as stream:
        assert wire.kinds == [CaughtUp, PurgeOffer]
        assert brought.reached == [PrimaryEvent.CAUGHT_UP]
        brought.replica.take_applied(cast(Any, SimpleNamespace(number=waits.number)), waits.number)
        assert brought.window.acknowledged_number < waits.number, "its image is not copied"
        await confirm(stream, 1)
        assert brought.window.acknowledged_number == waits.number
        assert wire.kinds == [CaughtUp, PurgeOffer, Normal]
        assert brought.reached == [PrimaryEvent.CAUGHT_UP, PrimaryEvent.COPIED]
        assert brought.resync.status is None


async def test_changes_travel_as_they_are_made_while_the_catalog_is_copied(volume: Volume) -> None:
    brought, wire = Brought(volume), Wire()
    peer = SimpleNamespace(history=history_of(volume), instance=b"first")
    link = cast(Link, SimpleNamespace(mirror=wire, peer=peer, close=lambda _: None))
    stream = brought.replica.linked(link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: brought.resync.run(link, stream, copy_catalog=True))
        await trio.testing.wait_all_tasks_blocked()
        feed = brought.replica.feed
        nursery.cancel_scope.cancel()
    assert feed is cast(Any, wire), "before anything was sent"
    async with Brought(volume).over(wire, copy_catalog=True):
        assert CatalogRows in wire.kinds


async def test_only_a_new_process_is_believed_to_have_lost_something(volume: Volume) -> None:
    brought = Brought(volume)
    told = ((FILE, (0, 1)),)
    for wire, is_marked in ((Wire(b"first"), True), (Wire(b"first"), False), (Wire(b"second"), True)):
        async with brought.over(wire, suspects=told):
            assert (FILE in brought.replica.out_of_sync) is is_marked
            brought.replica.out_of_sync.finish(FILE, brought.replica.out_of_sync.version(FILE))


async def test_what_failed_here_is_compared_over_the_same_link(volume: Volume) -> None:
    brought, wire = Brought(volume), Wire()
    async with brought.over(wire) as stream:
        await confirm(stream, 1)
        brought.resync.repair(TruncateChange(ChangeNumber(volume.number + 1), NO_REQUEST, 0, FILE, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert [message for message, _ in wire.sent if isinstance(message, OutOfSync)] == [OutOfSync((FILE,))]
        assert brought.resync.status is not None


async def test_it_is_paused_only_where_something_is_to_be_copied(volume: Volume) -> None:
    brought, wire = Brought(volume), Wire()
    brought.pace.change(paused=True)
    assert not brought.resync.is_paused, "nothing is being copied"
    brought.replica.out_of_sync.add_whole(ROOT_INODE)
    async with brought.over(wire):
        assert brought.resync.is_paused


async def test_who_waited_for_an_image_that_is_copied_hears_of_no_other(
    volume: Volume, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.update_identity(peers=(BETA, GAMMA))
    brought, wire = Brought(volume), Wire()
    good, bad = writer.create(b"good"), writer.create(b"bad")
    brought.window.acknowledge(volume.number)
    first = ChangeNumber(volume.number + 1)
    changes = [
        TruncateChange(ChangeNumber(first + place), NO_REQUEST, 1, inode, 5)
        for place, inode in enumerate((good, bad, good))
    ]
    for change in changes:
        brought.window.add(change, (), 0, now=0.0)
    brought.replica.progress.hold_back(first)
    brought.replica.progress.applied = changes[-1].number
    heard: dict[ChangeNumber, bool] = {}
    for change in changes:
        brought.window.when_settled(change.number, partial(heard.__setitem__, change.number))
    told = brought.window.acknowledgement(changes[1].number)
    async with brought.over(wire) as stream:
        brought.replica.declined[bad] = "no"
        brought.resync.try_again(bad)
        await confirm(stream, 1)
    assert list(heard.values()) == [True, False, True]
    with pytest.raises(CopyDeclined, match="gamma"):
        await told.wait()


async def test_what_was_declined_and_is_copied_for_who_waits_for_it_is_in_order(
    volume: Volume, writer: Writer
) -> None:
    """Else the pair is never normal again: nothing is left to be copied that would tell."""
    brought, wire = Brought(volume), Wire()
    file = writer.create(b"file")
    brought.window.acknowledge(volume.number)
    async with brought.over(wire) as stream:
        await confirm(stream, 1)
        replica = brought.replica
        replica.declined[file] = "no"
        replica.out_of_sync.add_whole(file)
        change = TruncateChange(ChangeNumber(volume.number + 1), NO_REQUEST, 1, file, 5)
        brought.window.add(change, (), 0, now=0.0)
        replica.progress.applied = change.number
        settled: list[bool] = []
        brought.window.when_settled(change.number, settled.append)
        brought.resync.try_again(file)
        await trio.testing.wait_all_tasks_blocked()
        await confirm(stream, 2)
        await confirm(stream, 3)
        assert not replica.declined
        assert not replica.out_of_sync
        assert settled == [True], "both have it"
