"""Catching up: by the records that were missed, or by every row, while changes go on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.change import NamespaceChange, decode_change
from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import MESSAGE_BYTES_MAX
from fusemirror.mirror.catching_up import send_attributes, send_catalog, send_records
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.mirror.stream import Stream
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import AnyMessage, CatalogRows, Normal
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY
from tests.channel.conftest import SessionPair
from tests.volume.conftest import ALPHA, Writer, counting_seams, rows_of

BEGINNING = ChangeNumber(0)
END = Normal(ChangeNumber(0))


@pytest.fixture
def backup(volume: Volume, tmp_path: Path) -> Iterator[Volume]:
    identity = msgspec.structs.replace(volume.identity, host="02", peers=(ALPHA,), role="backup")
    Volume.create(tmp_path / "backup", identity)
    opened = Volume.open(tmp_path / "backup", counting_seams())
    yield opened
    opened.close()


@pytest.fixture
async def served(memory_sessions: SessionPair) -> AsyncIterator[tuple[Stream, Session]]:
    """The primary's stream, which can wait, and the backup's end of it."""
    ours, theirs = memory_sessions
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.run)
        yield Stream(ours), theirs
        nursery.cancel_scope.cancel()


async def received(session: Session) -> list[AnyMessage]:
    """Everything before `END`."""
    messages: list[AnyMessage] = []
    while END not in messages:
        messages += [message for message, _ in await session.receive()]
    assert messages.pop() == END
    return messages


def records(volume: Volume, after: int = 0) -> list[NamespaceChange]:
    changes = [decode_change(payload) for _, payload in volume.journal.records(ChangeNumber(after))]
    return [change for change in changes if isinstance(change, NamespaceChange)]


# --- records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", [0, 1, 255, 256, 257, 600])
async def test_exactly_the_missed_records_are_sent(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, missed: int, autojump_clock: object
) -> None:
    stream, theirs = served
    for index in range(3 + missed):
        writer.create(b"%d" % index)
    await send_records(stream, volume, ChangeNumber(3))
    stream.send(END)
    messages = await received(theirs)
    assert messages == records(volume, after=3)
    assert len(messages) == missed


async def test_requests_for_data_are_not_sent(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, autojump_clock: object
) -> None:
    stream, theirs = served
    inode = writer.create(b"file")
    writer.write(inode, 0, b"data", request=RequestId(b"of the backup"))
    writer.truncate(inode, 1, request=RequestId(b"another"))
    writer.create(b"after")
    await send_records(stream, volume, BEGINNING)
    stream.send(END)
    assert [change.number for change in records(volume)] == [1, 4]
    assert await received(theirs) == records(volume)


async def test_what_ended_with_data_is_sent_without_it(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, backup: Volume, autojump_clock: object
) -> None:
    stream, theirs = served
    inode = writer.create(b"program", mode=0o104755)
    writer.set_xattr(inode, CAPABILITY, b"value")
    writer.write_program(inode, 0, b"evil")
    await send_records(stream, volume, BEGINNING)
    stream.send(END)
    for message in await received(theirs):
        assert isinstance(message, NamespaceChange)
        backup.apply(message)
    assert rows_of(backup) == rows_of(volume)
    assert backup.journal.last_number == volume.journal.last_number


async def test_records_make_the_backup_the_same(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, backup: Volume, autojump_clock: object
) -> None:
    stream, theirs = served
    directory = writer.mkdir(b"dir")
    inode = writer.create(b"file", directory)
    writer.set_xattr(inode, b"user.a", b"value")
    writer.rename(b"dir", b"moved")
    await send_records(stream, volume, BEGINNING)
    stream.send(END)
    for message in await received(theirs):
        assert isinstance(message, NamespaceChange)
        backup.apply(message)
    assert rows_of(backup) == rows_of(volume)


async def test_what_is_made_while_it_waits_is_sent_too(
    served: tuple[Stream, Session],
    volume: Volume,
    writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: object,
) -> None:
    stream, theirs = served
    monkeypatch.setattr("fusemirror.limits.BACKLOG_BYTES_MAX", 0)
    monkeypatch.setattr("fusemirror.mirror.catching_up._RECORDS_PER_TURN", 1)
    inode = writer.create(b"file")
    for index in range(20):  # more than the network takes at once
        writer.set_xattr(inode, b"user.%d" % index, bytes(60_000))
    returned: list[ChangeNumber] = []

    async def send() -> None:
        await send_records(stream, volume, BEGINNING)
        returned.append(volume.number)
        stream.send(END)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not returned
        writer.create(b"meanwhile")
        messages = await received(theirs)
    assert returned == [volume.number]
    assert messages == records(volume)


async def test_a_journal_that_lost_what_is_needed_ends_the_link(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, autojump_clock: object
) -> None:
    stream, _ = served
    for name in (b"one", b"two"):
        writer.create(name)
    volume.commit()
    volume.journal.restart(volume.number)
    with pytest.raises(ConnectionLost, match="trimmed"):
        await send_records(stream, volume, ChangeNumber(1))
    await send_records(stream, volume, volume.number)  # who has everything misses nothing


# --- rows -------------------------------------------------------------------------------------------------


def furnish(writer: Writer) -> None:
    """Rows of every table, some of them large, more than one message holds."""
    for index in range(40):
        directory = writer.mkdir(b"dir%d" % index)
        inode = writer.create(b"file", directory)
        writer.set_xattr(inode, b"user.large", bytes(50_000))


async def test_every_row_arrives_in_messages_that_fit(
    served: tuple[Stream, Session], volume: Volume, writer: Writer, backup: Volume, autojump_clock: object
) -> None:
    stream, theirs = served
    furnish(writer)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await send_catalog(stream, volume)
            stream.send(END)

        nursery.start_soon(send)
        messages = await received(theirs)
    copied = [message for message in messages if isinstance(message, CatalogRows)]
    assert len(copied) == len(messages) > 4
    keys = [(table, key) for message in copied for table, key, _ in message.rows]
    assert sorted(keys) == sorted(rows_of(volume)), "each row once"
    backup.begin_catalog_copy()
    for message in copied:
        assert len(encode(message)) <= MESSAGE_BYTES_MAX // 2
        backup.copy_rows(message.rows)
    backup.finish_catalog_copy(volume.number, volume.journal.last_number, volume.clock.newest_ns)
    assert rows_of(backup) == rows_of(volume)
    assert backup.clock.newest_ns == volume.clock.newest_ns, "no row tells it"


async def test_changes_made_meanwhile_fall_into_their_places(
    served: tuple[Stream, Session],
    volume: Volume,
    writer: Writer,
    backup: Volume,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: object,
) -> None:
    """As the primary does: each change is sent as it is made, between the rows."""
    stream, theirs = served
    monkeypatch.setattr("fusemirror.limits.BACKLOG_BYTES_MAX", 0)
    monkeypatch.setattr("fusemirror.mirror.catching_up.ROWS_PER_MESSAGE", 3)
    furnish(writer)
    backup.begin_catalog_copy()
    done = trio.Event()

    async def send() -> None:
        await send_catalog(stream, volume)
        done.set()
        stream.send(END)

    async def change() -> None:
        for index in range(40):
            await trio.testing.wait_all_tasks_blocked()
            if done.is_set():
                return
            writer.rename(b"dir%d" % index, b"moved%d" % index)
            publish()
            entry = volume.catalog.entry(ROOT_INODE, b"moved%d" % index)
            assert entry is not None
            writer.unlink(b"file", entry.inode)
            publish()
            theirs_may_go.set()

    def publish() -> None:
        for made in records(volume, after=volume.number - 1):
            stream.send(made)

    theirs_may_go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(change)
        await theirs_may_go.wait()
        assert not done.is_set()
        messages = await received(theirs)
    for message in messages:
        if isinstance(message, CatalogRows):
            backup.copy_rows(message.rows)
        else:
            assert isinstance(message, NamespaceChange)
            backup.apply(message)
    backup.finish_catalog_copy(volume.number, volume.journal.last_number)
    assert rows_of(backup) == rows_of(volume)


# --- attributes -------------------------------------------------------------------------------------------


async def test_attributes_of_many_images_are_sent_a_few_at_a_time_and_are_right_at_the_end(
    served: tuple[Stream, Session],
    volume: Volume,
    writer: Writer,
    backup: Volume,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: object,
) -> None:
    stream, theirs = served
    monkeypatch.setattr("fusemirror.mirror.catching_up.INODES_SENT_AT_ONCE", 2)
    files = [writer.create(b"%d" % index) for index in range(20)]
    for change in records(volume):
        backup.apply(change)
    out_of_sync = OutOfSyncMap()

    def write(inode: InodeNumber, data: bytes) -> None:
        writer.write(inode, 0, data)
        out_of_sync.add_range(inode, 0, len(data))

    waits = 0

    async def wait_room() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:  # the first four are sent
            write(files[0], b"more data")
            write(files[-1], b"more data")
            writer.unlink(b"1")
            write(writer.create(b"new"), b"data")
        elif waits > len(files) / 2:  # of those that had changed meanwhile
            write(files[2], b"late data")

    monkeypatch.setattr(stream, "wait_room", wait_room)
    for file in files:
        write(file, b"data")
    await send_attributes(stream, volume, out_of_sync, volume.journal.last_number)
    stream.send(END)
    assert waits >= len(files) / 2
    for message in await received(theirs):
        if isinstance(message, CatalogRows):
            backup.copy_rows(message.rows)
        else:
            assert isinstance(message, NamespaceChange)
            backup.apply(message)
    assert rows_of(backup) == rows_of(volume)
