"""Whatever users make fits into records and messages, however many and long they make it."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.change import Row, Table
from fusemirror.channel.session import Session
from fusemirror.control.purging import purge_rows
from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import (
    JOURNAL_RECORD_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_NAMES_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from fusemirror.operations import Create, RemoveXattr, Rename, SetXattr, Unlink
from fusemirror.volume.entries import inode_key, xattr_key
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import create
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import Writer, counting_seams, directory, problems_of, rows_of, volume, writer

__all__ = ["directory", "network", "pair", "volume", "writer"]

MANY = 5_000  # names of 255 bytes: more than two records hold


def names(count: int) -> list[bytes]:
    return [
        b"user.%d." % index + b"n" * (NAME_BYTES_MAX - len(b"user.%d." % index)) for index in range(count)
    ]


def many_attributes(inode: InodeNumber, count: int = MANY, value: bytes = b"") -> list[Row]:
    """As a volume may have them that an earlier version has served."""
    return [(Table.XATTRS, xattr_key(inode, name), value) for name in names(count)]


def put(host: Host, rows: list[Row]) -> None:
    """Put rows into a volume as a program of an earlier version did."""
    host.unit.volume.copy_rows(rows)


def attributes_left(host: Host, inode: InodeNumber) -> list[bytes]:
    return host.unit.volume.catalog.xattrs.names(inode)


async def wait_purged(pair: Pair, inode: InodeNumber) -> None:
    with trio.fail_after(60):
        while any(host.unit.volume.catalog.inode(inode) for host in (pair.primary, pair.backup)):  # noqa: ASYNC110
            await trio.sleep(0.1)


def records_of(volume: Volume) -> list[bytes]:
    return [payload for _, payload in volume.journal.records(0)]


# --- purges ---------------------------------------------------------------------------------------------


async def test_a_file_with_more_attributes_than_a_record_holds_is_purged_on_both_hosts(
    pair: Pair, autojump_clock: MockClock
) -> None:
    """One record of it all once ended the mount, at every mount of either host."""
    file = await create(pair.primary, b"file")
    for host in (pair.primary, pair.backup):
        put(host, many_attributes(file))
    await pair.backup.roles.perform(Unlink(ROOT_INODE, b"file"))
    await wait_purged(pair, file)
    assert attributes_left(pair.primary, file) == attributes_left(pair.backup, file) == []
    await pair.primary.unit.comparisons.begin()
    while (report := await pair.primary.unit.comparisons.report())["running"]:  # noqa: ASYNC110
        await trio.sleep(0.1)
    assert (report["failed"], report["differences"]) == (None, [])


async def test_many_files_with_many_attributes_are_purged_at_once(
    pair: Pair, autojump_clock: MockClock
) -> None:
    files = [await create(pair.primary, b"%d" % index) for index in range(40)]
    for file in files:
        for host in (pair.primary, pair.backup):
            put(host, many_attributes(file, 100))
    for index in range(40):
        await pair.primary.roles.perform(Unlink(ROOT_INODE, b"%d" % index))
    for file in files:
        await wait_purged(pair, file)


@pytest.mark.parametrize("applied", [0, 1, 3])
def test_a_purge_that_was_cut_short_is_taken_up_again(directory: Path, applied: int) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    file = writer.create(b"file")
    beside = writer.create(b"beside")
    volume.copy_rows([*many_attributes(file), *many_attributes(beside, 3)])
    volume.commit()
    writer.unlink(b"file")
    for _ in range(applied):
        writer.namespace(*purge_rows(volume.catalog, [file]))
    assert volume.catalog.orphans() == [file]
    volume.abandon()
    again = Volume.open(directory, counting_seams())
    assert again.catalog.orphans() == [file]
    left = len(again.catalog.xattrs.names(file))
    assert left == MANY if not applied else left < MANY
    writer_again = Writer(again)
    pieces = 0
    while rows := purge_rows(again.catalog, [file]):
        writer_again.namespace(*rows)
        pieces += 1
    assert pieces > 3 - applied
    assert again.catalog.inode(file) is None
    assert again.catalog.xattrs.names(file) == []
    assert again.catalog.xattrs.names(beside) == names(3)
    assert max(map(len, records_of(again))) <= JOURNAL_RECORD_BYTES_MAX // 4
    again.close()
    assert not problems_of(directory)


def test_an_inode_is_the_last_that_goes_of_it(volume: Volume, writer: Writer) -> None:
    file = writer.create(b"file")
    writer.unlink(b"file")
    volume.copy_rows(many_attributes(file))
    pieces = []
    while rows := purge_rows(volume.catalog, [file]):
        pieces.append(rows)
        volume.copy_rows(rows)
    assert len(pieces) > 2
    assert all(table == Table.XATTRS for piece in pieces for table, _, _ in piece[:-1])
    assert [piece[-1][0] for piece in pieces] == [Table.XATTRS] * (len(pieces) - 1) + [Table.INODES]


async def test_files_that_the_backup_has_open_keep_no_others_from_being_purged(
    pair: Pair, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.control.upkeep.PURGE_BATCH_MAX", 4)
    files = [await create(pair.primary, b"%d" % index) for index in range(9)]
    for file in files[:8]:
        pair.backup.roles.open_inodes.add(file)
    for index in range(9):
        await pair.primary.roles.perform(Unlink(ROOT_INODE, b"%d" % index))
    await wait_purged(pair, files[8])
    assert all(pair.primary.unit.volume.catalog.inode(file) for file in files[:8])


# --- how many attributes there may be --------------------------------------------------------------------


async def test_the_names_of_all_attributes_can_always_be_listed(pair: Pair) -> None:
    file = await create(pair.primary, b"file")
    fitting = XATTR_NAMES_BYTES_MAX // (NAME_BYTES_MAX + 1)
    for name in names(fitting):
        await pair.backup.roles.perform(SetXattr(file, name, b"value"))
    for name in (b"user.n", names(fitting + 1)[-1]):
        with pytest.raises(OperationFailed) as caught:
            await pair.backup.roles.perform(SetXattr(file, name, b""))
        assert caught.value.errno == errno.ENOSPC
    await pair.backup.roles.perform(SetXattr(file, names(1)[0], b"another value"))
    listed = await pair.primary.roles.xattrs(file)
    assert sum(len(name) + 1 for name in listed) == XATTR_NAMES_BYTES_MAX
    await pair.primary.roles.perform(RemoveXattr(file, names(1)[0]))
    await pair.primary.roles.perform(SetXattr(file, b"user.n", b""))


# --- the largest of each change ---------------------------------------------------------------------------


async def test_the_largest_changes_of_names_fit_into_a_record(pair: Pair) -> None:
    """Renames over what is largest, with the longest names and targets, in directories with attributes."""
    longest = [bytes([letter]) * NAME_BYTES_MAX for letter in b"abcd"]
    directories = []
    for name in longest[:2]:
        made = await pair.primary.roles.perform(Create(ROOT_INODE, name, 0o040755, 0, 0))
        assert made is not None
        directories.append(made.number)
    for parent in directories:
        link = Create(parent, longest[2], 0o120777, 0, 0, target=b"t" * SYMLINK_BYTES_MAX)
        made = await pair.primary.roles.perform(link)
        assert made is not None
        await pair.primary.roles.perform(SetXattr(made.number, b"trusted.a", b"v" * XATTR_VALUE_BYTES_MAX))
    await pair.backup.roles.perform(Rename(directories[0], longest[2], directories[1], longest[2], 2))
    await pair.backup.roles.perform(Rename(directories[0], longest[2], directories[1], longest[2]))
    for host in (pair.primary, pair.backup):
        assert max(map(len, records_of(host.unit.volume))) <= JOURNAL_RECORD_BYTES_MAX


# --- between the hosts ------------------------------------------------------------------------------------


@pytest.fixture
def largest_message(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    largest = 0
    send_encoded = Session.send_encoded

    def measured(session: Session, body: bytes, data: bytes = b"") -> None:
        nonlocal largest
        largest = max(largest, len(body))
        send_encoded(session, body, data)

    monkeypatch.setattr(Session, "send_encoded", measured)
    return lambda: largest


@pytest.mark.parametrize("keep", ["primary", "backup"])
@pytest.mark.parametrize("missing_at", ["primary", "backup"])
async def test_rows_of_any_size_are_repaired(
    pair: Pair, keep: str, missing_at: str, largest_message: Callable[[], int]
) -> None:
    """A range of rows of which the other host has none was once answered with one message."""
    file = await create(pair.primary, b"file")
    there = pair.primary if missing_at == "backup" else pair.backup
    large = many_attributes(file, 30, b"v" * XATTR_VALUE_BYTES_MAX)
    put(there, [*large, *[row for row in many_attributes(file, 700) if row[1] > large[-1][1]]])
    expected = rows_of(getattr(pair, keep).unit.volume)
    await pair.primary.unit.comparisons.begin(keep)
    with trio.fail_after(60):
        while (report := await pair.primary.unit.comparisons.report())["running"]:
            await wait_all_tasks_blocked()
    assert (report["failed"], report["differences"], bool(report["repaired"])) == (None, [], True)
    times = {(Table.INODES, inode_key(ROOT_INODE)), (Table.INODES, inode_key(file))}
    for host in (pair.primary, pair.backup):
        rows = rows_of(host.unit.volume)
        assert {key: rows[key] for key in rows if key not in times} == {
            key: expected[key] for key in expected if key not in times
        }
    assert largest_message() <= MESSAGE_BYTES_MAX
    for host in (pair.primary, pair.backup):
        assert max(map(len, records_of(host.unit.volume))) <= JOURNAL_RECORD_BYTES_MAX


async def test_a_backup_that_missed_the_largest_rows_is_brought_up_to_date(
    pair: Pair, network: MemoryNetwork, largest_message: Callable[[], int], autojump_clock: MockClock
) -> None:
    file = await create(pair.primary, b"file")
    network.cut("alpha", "beta")
    await pair.primary.unit.host.links.ended.wait()
    for name in names(40):
        await pair.primary.roles.perform(SetXattr(file, name, b"v" * XATTR_VALUE_BYTES_MAX))
    network.heal("alpha", "beta")
    with trio.fail_after(600):
        await pair.backup.roles.wait_normal()
        await pair.primary.roles.wait_normal()
    assert len(attributes_left(pair.backup, file)) == 40
    assert 0 < largest_message() <= MESSAGE_BYTES_MAX
