"""Verify finds each kind of difference and names it, and reports none that is not one."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.change import Table
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import (
    DIFFERENCES_LISTED_BYTES_MAX,
    DIGESTS_PER_MESSAGE,
    REGION_BYTES,
    ROWS_PER_MESSAGE,
)
from fusemirror.operations import Create, SetAttributes, SetXattr, Unlink, Write
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry, xattr_key
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair
from tests.memory_network import MemoryNetwork

FILE_BYTES = (DIGESTS_PER_MESSAGE + 2) * REGION_BYTES + 5  # more than one message, and a part of a region
DEEP = (DIGESTS_PER_MESSAGE + 1) * REGION_BYTES + 7


async def furnish(pair: Pair, name: bytes = b"file", size: int = FILE_BYTES) -> InodeNumber:
    unit = pair.primary.unit
    file = await unit.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    assert file is not None
    number = file.number
    for start in range(0, size, 1 << 20):
        await unit.perform(Write(number, start), b"x" * min(1 << 20, size - start))
    await unit.perform(SetXattr(number, b"user.a", b"value"))
    return number


async def verify(pair: Pair) -> list[str]:
    """The differences, asked for at the backup, found by the primary."""
    unit = pair.backup.unit
    await unit.comparisons.begin()
    with trio.fail_after(60):
        while (report := await unit.comparisons.report())["running"]:
            await trio.testing.wait_all_tasks_blocked()
    assert report["failed"] is None
    found: list[str] = report["differences"]
    return found


async def test_a_pair_that_is_the_same_has_no_difference_and_everything_was_looked_at(pair: Pair) -> None:
    await furnish(pair)
    await furnish(pair, b"empty", 0)
    assert await verify(pair) == []
    report = await pair.primary.unit.comparisons.report()
    assert (report["images"], report["done_bytes"], report["total_bytes"]) == (1, FILE_BYTES, FILE_BYTES)
    catalog = pair.primary.unit.volume.catalog
    assert report["rows"] == sum(len(catalog.tables.rows(table, None, 1000)) for table in Table)


Damage = Callable[[Volume, InodeNumber], None]


def forget_the_type(volume: Volume, file: InodeNumber) -> None:
    """As a disk that forgets bits: no change can have made such a row."""
    catalog, key = volume.catalog, inode_key(file)
    inode = catalog.inode(file)
    assert inode is not None
    catalog._store.txn.put(key, bytes(4) + inode.pack()[4:], db=catalog._store.inodes)
    catalog._cached.pop(file)
    catalog.changes_since_commit += 1


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a byte in the middle": (
        lambda volume, file: volume.images.write(file, DEEP, b"!", 0),
        f"image of inode {{}}: bytes {DEEP // REGION_BYTES * REGION_BYTES}-"
        f"{(DEEP // REGION_BYTES + 1) * REGION_BYTES - 1}",
    ),
    "the last byte": (
        lambda volume, file: volume.images.write(file, FILE_BYTES - 1, b"!", 0),
        f"image of inode {{}}: bytes {FILE_BYTES // REGION_BYTES * REGION_BYTES}-"
        f"{(FILE_BYTES // REGION_BYTES + 1) * REGION_BYTES - 1}",
    ),
    "a longer image": (
        lambda volume, file: volume.images.truncate(file, FILE_BYTES + 1, 0),
        "image of inode {}: length",
    ),
    "an attribute with another value": (
        lambda volume, file: apply(volume, Table.XATTRS, xattr_key(file, b"user.a"), b"other"),
        "catalog: extended attribute of inode {}, name 'user.a'",
    ),
    "an attribute that is missing": (
        lambda volume, file: apply(volume, Table.XATTRS, xattr_key(file, b"user.a"), None),
        "catalog: extended attribute of inode {}, name 'user.a'",
    ),
    "an inode that is missing": (
        lambda volume, file: apply(volume, Table.INODES, inode_key(file), None),
        "catalog: inode {}",
    ),
    "an inode without a type": (forget_the_type, "catalog: inode {}"),
    "a name that is missing": (
        lambda volume, file: apply(volume, Table.ENTRIES, entry_key(ROOT_INODE, b"file"), None),
        "catalog: directory 1, name 'file'",
    ),
    "a name too many": (
        lambda volume, file: apply(
            volume, Table.ENTRIES, entry_key(ROOT_INODE, b"more"), pack_entry(Entry(file, 8, 1 << 30))
        ),
        "catalog: directory 1, name 'file'",  # the nearest row that the primary has
    ),
    "a row of the volume itself": (
        lambda volume, file: apply(volume, Table.META, b"note", b"x"),
        "catalog: row generations",
    ),
}


def apply(volume: Volume, table: Table, key: bytes, value: bytes | None) -> None:
    volume.catalog.apply_rows([(table, key, value)])


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES)
async def test_a_difference_is_found_and_named(pair: Pair, damage: Damage, expected: str) -> None:
    file = await furnish(pair)
    damage(pair.backup.unit.volume, file)
    assert expected.format(file) in await verify(pair)


async def test_an_image_of_another_length_at_the_primary_is_found_too(pair: Pair) -> None:
    file = await furnish(pair)
    pair.primary.unit.volume.images.truncate(file, FILE_BYTES + 1, 0)
    assert f"image of inode {file}: length at the primary" in await verify(pair)


async def test_a_damaged_row_that_says_exbibytes_is_named_like_any_other(pair: Pair) -> None:
    """The image was once compared as far as the row said, for centuries."""
    file = await furnish(pair)
    volume = pair.primary.unit.volume
    inode = volume.catalog.inode(file)
    assert inode is not None
    row = inode.copy()
    row.size += 1 << 60
    apply(volume, Table.INODES, inode_key(file), row.pack())
    found = await verify(pair)
    assert f"catalog: inode {file}" in found
    assert f"image of inode {file}: length at the primary" in found
    apply(volume, Table.INODES, inode_key(file), inode.pack())


async def test_a_hole_of_any_length_is_compared_at_once(pair: Pair) -> None:
    """Region by region 16 TiB took 40 minutes."""
    file = await furnish(pair)
    largest = pair.primary.unit.volume.file_bytes_max
    await pair.primary.unit.perform(SetAttributes(file, size=largest))
    digests = 0
    region_digests = pair.primary.unit.volume.images.content.region_digests

    def counted(inode: InodeNumber, first: int, count: int) -> tuple[int, ...]:
        nonlocal digests
        digests += count
        return region_digests(inode, first, count)

    pair.primary.unit.volume.images.content.region_digests = counted  # type: ignore[assignment, method-assign]
    assert await verify(pair) == []
    report = await pair.primary.unit.comparisons.report()
    assert digests < 10 * FILE_BYTES // REGION_BYTES, "what the disk allocates ahead counts as data"
    assert report["done_bytes"] <= report["total_bytes"] < largest


@pytest.mark.parametrize("host", ["primary", "backup"])
async def test_data_of_one_host_in_a_hole_of_the_other_is_found(pair: Pair, host: str) -> None:
    file = await furnish(pair)
    largest = pair.primary.unit.volume.file_bytes_max
    await pair.primary.unit.perform(SetAttributes(file, size=largest))
    far = (1 << 40) // REGION_BYTES
    for region in (*range(far, far + 3 * DIGESTS_PER_MESSAGE), far + 100):
        getattr(pair, host).unit.volume.images.write(file, region * REGION_BYTES + 5, b"!", 0)
    assert await verify(pair) == [
        f"image of inode {file}: bytes {first * REGION_BYTES}-{end * REGION_BYTES - 1}"
        for first, end in ((far, far + 3 * DIGESTS_PER_MESSAGE), (far + 100, far + 101))
    ]


async def test_zeros_of_one_host_in_a_hole_of_the_other_are_no_difference(pair: Pair) -> None:
    file = await furnish(pair)
    await pair.primary.unit.perform(SetAttributes(file, size=1 << 40))
    pair.primary.unit.volume.images.write(file, 1 << 30, bytes(REGION_BYTES), 0)
    pair.backup.unit.volume.images.write(file, 1 << 31, bytes(40 * REGION_BYTES), 0)
    assert await verify(pair) == []


async def test_one_row_among_many_is_singled_out(pair: Pair) -> None:
    unit = pair.primary.unit
    for index in range(ROWS_PER_MESSAGE + 20):
        await unit.perform(Create(ROOT_INODE, b"%04d" % index, 0o100644, 0, 0))
    apply(pair.backup.unit.volume, Table.ENTRIES, entry_key(ROOT_INODE, b"0300"), None)
    apply(pair.backup.unit.volume, Table.ENTRIES, entry_key(ROOT_INODE, b"0515"), None)
    assert await verify(pair) == [
        "catalog: directory 1, name '0300'",
        "catalog: directory 1, name '0515'",
    ]


async def test_a_report_of_the_longest_differences_reaches_the_backup(pair: Pair) -> None:
    """Each byte that is no text takes seven in an answer; more than a message holds once ended the mount."""
    keys = [xattr_key(ROOT_INODE, b"user.%04d." % index + b"\xff" * 245) for index in range(700)]
    for key in keys:
        apply(pair.backup.unit.volume, Table.XATTRS, key, b"")
        apply(pair.primary.unit.volume, Table.XATTRS, key, b"other")
    await pair.backup.unit.comparisons.begin()
    with trio.fail_after(60):
        while (await pair.primary.unit.comparisons.report())["running"]:
            await trio.testing.wait_all_tasks_blocked()
        report = await pair.backup.unit.comparisons.report()
    assert len(report["differences"]) + report["more"] == len(keys)
    assert 0 < len(msgspec.json.encode(report["differences"])) <= DIFFERENCES_LISTED_BYTES_MAX + 2
    assert report["more"] > 0


async def test_files_without_content_keep_nobody_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of them once kept the heartbeats back until the peer held the primary dead."""
    unit = pair.primary.unit
    for index in range(2 * ROWS_PER_MESSAGE + 20):
        await unit.perform(Create(ROOT_INODE, b"%04d" % index, 0o100644, 0, 0))
    turns, catalog = 0, unit.volume.catalog
    read_in_turn: list[int] = []
    rows = catalog.tables.rows

    def recorded(table: Table, *where: Any) -> list[tuple[bytes, bytes]]:
        if table is Table.INODES:
            read_in_turn.append(turns)
        return rows(table, *where)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(catalog.tables, "rows", recorded)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await unit.comparisons.begin()
        while (await unit.comparisons.report())["running"]:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(read_in_turn) >= 9, "measured, compared as rows and as images"
    assert max(Counter(read_in_turn).values()) <= 2, "one part's last look and the next one's first"


async def test_changes_of_both_hosts_meanwhile_are_no_differences(pair: Pair) -> None:
    file = await furnish(pair)
    ended = trio.Event()

    async def change(index: int) -> None:
        unit = (pair.primary if index else pair.backup).unit
        name = b"busy%d" % index
        while not ended.is_set():
            await unit.perform(Write(file, 0, append=True), bytes(5000))
            await unit.perform(Write(file, DEEP), b"%d" % index)
            await unit.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
            await unit.perform(SetXattr(file, b"user." + name, name))
            await unit.perform(Unlink(ROOT_INODE, name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, 0)
        nursery.start_soon(change, 1)
        await pair.backup.unit.comparisons.begin()
        while (report := await pair.primary.unit.comparisons.report())["running"]:
            await trio.testing.wait_all_tasks_blocked()
        ended.set()
    assert (report["failed"], report["differences"]) == (None, [])
    assert report["images"] == 1


async def test_without_the_backup_there_is_nothing_to_compare_with(
    pair: Pair, network: MemoryNetwork
) -> None:
    network.cut("alpha", "beta")
    await pair.primary.unit.host.links.ended.wait()
    await pair.primary.unit.comparisons.begin()
    with trio.fail_after(10):
        while (report := await pair.primary.unit.comparisons.report())["running"]:
            await trio.testing.wait_all_tasks_blocked()
    assert "only a normal one can be compared" in report["failed"]
