"""Each damage is planted in a volume that is whole otherwise, found, repaired, and then gone."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fusemirror.change import Table
from fusemirror.errors import VolumeDamaged, VolumeInUse, VolumeMissing
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import REGION_BYTES
from fusemirror.volume.check import CheckResult, check
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry, unpack_entry, xattr_key
from fusemirror.volume.identity import Identity
from fusemirror.volume.inode import Inode
from fusemirror.volume.reservations import KEY_PREFIX, Reservation, reservation_row
from fusemirror.volume.tables import Tables
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, counting_seams, put_inode, rows_of

FILE, DIRECTORY, INNER = InodeNumber(2), InodeNumber(3), InodeNumber(4)
DEEP, LINKED, ORPHAN = InodeNumber(5), InodeNumber(6), InodeNumber(7)


@pytest.fixture
def damaged(tmp_path: Path) -> Writer:
    """An open volume with a bit of everything, to be damaged."""
    directory = tmp_path / "volume"
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    assert writer.create(b"file") == FILE
    writer.write(FILE, 0, b"0123456789")
    assert writer.mkdir(b"directory") == DIRECTORY
    assert writer.create(b"inner", DIRECTORY) == INNER
    assert writer.mkdir(b"deep", DIRECTORY) == DEEP
    assert writer.create(b"linked", DEEP) == LINKED
    writer.link(LINKED, b"second name")
    writer.create(b"symlink", mode=0o120777, target=b"target")
    writer.set_xattr(FILE, b"user.x", b"value")
    orphan = writer.create(b"orphan")
    writer.write(orphan, 0, b"still open somewhere")
    writer.unlink(b"orphan")
    return writer


def checked(directory: Path, *, repair: bool) -> tuple[CheckResult, list[str]]:
    lines: list[str] = []
    return check(directory, repair, lines.append), lines


def found_and_repaired(writer: Writer, *expected: str) -> Writer:
    """The check finds what is expected and nothing else, changes nothing unasked, and repairs it."""
    volume = writer.volume
    rows, directory = rows_of(volume), volume.directory
    volume.close()
    result, lines = checked(directory, repair=False)
    assert (result.problems, result.repaired, result.left) == (len(expected), 0, len(expected)), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    volume = Volume.open(directory)
    assert rows_of(volume) == rows
    assert not volume.identity.compare_all
    volume.close()
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    assert result.repaired >= len(expected)
    assert all(line.endswith(": repaired") for line in lines)
    result, lines = checked(directory, repair=False)
    assert result == CheckResult(problems=0, repaired=0), lines
    volume = Volume.open(directory, counting_seams())
    assert volume.identity.compare_all, "the peer must be compared"
    return Writer(volume)


def put(writer: Writer, *rows: Any) -> None:
    writer.volume.catalog.apply_rows(rows)


def raw(writer: Writer, table: str, key: bytes, value: bytes | None) -> None:
    """Past everything that keeps the catalog whole."""
    catalog = writer.volume.catalog
    catalog.cache.flush()
    database = getattr(catalog._store, table)
    if value is None:
        catalog._store.txn.delete(key, db=database)
    else:
        catalog._store.txn.put(key, value, db=database)
    catalog._cached.clear()
    catalog.changes_since_commit += 1


def alter(writer: Writer, number: InodeNumber, **attributes: int) -> None:
    inode = writer.inode(number)
    for name, value in attributes.items():
        setattr(inode, name, value)
    put(writer, put_inode(inode))


def test_a_whole_volume_has_no_problems_and_is_left_alone(damaged: Writer) -> None:
    rows, directory = rows_of(damaged.volume), damaged.volume.directory
    damaged.volume.close()
    for repair in (False, True):
        assert checked(directory, repair=repair) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    assert rows_of(volume) == rows
    assert not volume.identity.compare_all
    volume.close()


def test_a_killed_volume_is_recovered_and_then_whole(damaged: Writer) -> None:
    damaged.volume.abandon()
    assert checked(damaged.volume.directory, repair=False) == (CheckResult(problems=0, repaired=0), [])


def test_marks_that_cannot_be_read_stop_the_opening_and_a_repair_has_everything_compared(
    damaged: Writer,
) -> None:
    volume = damaged.volume
    damaged.write(FILE, 10 * REGION_BYTES, b"behind")
    volume.abandon()
    (epoch,) = (volume.directory / "regions").iterdir()
    content = bytearray(epoch.read_bytes())
    content[3] ^= 1
    epoch.write_bytes(content)
    with pytest.raises(VolumeDamaged, match=r"regions: .*at byte 0"):
        Volume.open(volume.directory)
    result, _ = checked(volume.directory, repair=False)
    assert result == CheckResult(problems=1, repaired=0)
    result, lines = checked(volume.directory, repair=True)
    assert result == CheckResult(problems=1, repaired=1)
    assert any("every image will be compared" in line for line in lines)
    volume = Volume.open(volume.directory, counting_seams())
    assert volume.identity.compare_all
    volume.close()
    assert checked(volume.directory, repair=False) == (CheckResult(problems=0, repaired=0), [])


def test_a_volume_in_use_cannot_be_checked(damaged: Writer) -> None:
    with pytest.raises(VolumeInUse):
        checked(damaged.volume.directory, repair=True)
    damaged.volume.close()


def test_what_is_no_volume_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing):
        checked(tmp_path, repair=True)


def test_a_name_without_an_inode_is_removed(damaged: Writer) -> None:
    entry = pack_entry(Entry(InodeNumber(99), 8, 10_000))
    put(damaged, (Table.ENTRIES, entry_key(DIRECTORY, b"dangling"), entry))
    repaired = found_and_repaired(damaged, "b'dangling': points to inode 99")
    assert repaired.catalog.entry(DIRECTORY, b"dangling") is None
    assert repaired.catalog.entry(DIRECTORY, b"inner") is not None
    repaired.volume.close()


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"a\0b"])
def test_a_name_that_no_file_can_have_is_removed_and_its_file_kept(damaged: Writer, name: bytes) -> None:
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"file"), None))
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, name), pack_entry(Entry(FILE, 8, 10_000))))
    damaged_volume = damaged.volume
    damaged_volume.close()
    result, _ = checked(damaged_volume.directory, repair=True)
    assert result.left == 0
    volume = Volume.open(damaged_volume.directory)
    lost = volume.catalog.entry(ROOT_INODE, b"lost+found")
    assert lost is not None
    assert volume.catalog.entry(lost.inode, b"#2") is not None
    assert volume.read(FILE, 0, 100) == b"0123456789"
    volume.close()


def test_an_entry_that_cannot_be_read_is_removed(damaged: Writer) -> None:
    raw(damaged, "entries", entry_key(DIRECTORY, b"garbage"), b"garbage")
    found_and_repaired(damaged, "the entry cannot be read").volume.close()


def test_reservations_of_nothing_are_removed_and_the_others_kept(damaged: Writer) -> None:
    held = Reservation(b"host", 1, b"file")
    put(damaged, reservation_row(FILE, held), reservation_row(InodeNumber(99), held))
    raw(damaged, "meta", KEY_PREFIX + bytes(8), b"garbage")
    repaired = found_and_repaired(
        damaged, "a reservation that cannot be read", "a reservation of inode 99, which does not exist"
    )
    assert repaired.catalog.reservations == {FILE: held}
    repaired.volume.close()


def test_an_entry_of_no_directory_is_removed(damaged: Writer) -> None:
    entry = pack_entry(Entry(LINKED, 8, 10_000))
    put(damaged, (Table.ENTRIES, entry_key(FILE, b"inside a file"), entry))
    put(damaged, (Table.ENTRIES, entry_key(InodeNumber(99), b"nowhere"), entry))
    problems = ["b'inside a file': the directory does not exist", "b'nowhere': the directory does not exist"]
    found_and_repaired(damaged, *problems).volume.close()


def test_a_wrong_type_is_set_right(damaged: Writer) -> None:
    entry = damaged.catalog.entry(ROOT_INODE, b"file")
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"file"), pack_entry(entry._replace(type=4))))
    repaired = found_and_repaired(damaged, "another type than inode 2")
    assert repaired.catalog.entry(ROOT_INODE, b"file") == entry
    repaired.volume.close()


@pytest.mark.parametrize(
    ("number", "nlink"), [(FILE, 5), (FILE, 0), (LINKED, 1), (DIRECTORY, 2), (ROOT_INODE, 9)]
)
def test_a_wrong_count_of_links_is_set_right(damaged: Writer, number: InodeNumber, nlink: int) -> None:
    right = damaged.inode(number).nlink
    alter(damaged, number, nlink=nlink)
    repaired = found_and_repaired(damaged, f"inode {number} has link count {nlink}, and should have {right}")
    assert repaired.inode(number).nlink == right
    repaired.volume.close()


def test_a_wrong_parent_is_set_right(damaged: Writer) -> None:
    alter(damaged, DEEP, parent=ROOT_INODE)
    repaired = found_and_repaired(damaged, "inode 5 names directory 1 as its parent, and is in 3")
    assert repaired.inode(DEEP).parent == DIRECTORY
    repaired.volume.close()


def test_a_file_without_a_name_gets_one_in_lost_and_found(damaged: Writer) -> None:
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"file"), None))
    put(damaged, (Table.ENTRIES, entry_key(DIRECTORY, b"inner"), None))
    repaired = found_and_repaired(damaged, "inode 2 has no name", "inode 4 has no name")
    lost = repaired.catalog.entry(ROOT_INODE, b"lost+found").inode
    assert [name for _, name, _ in repaired.catalog.listing(lost, 0, 10)] == [b"#2", b"#4"]
    assert repaired.inode(lost).parent == ROOT_INODE
    assert repaired.content(FILE) == b"0123456789"
    cookies = [cookie for cookie, _, _ in repaired.catalog.listing(ROOT_INODE, 0, 100)]
    repaired.create(b"made later")
    assert repaired.catalog.listing(ROOT_INODE, max(cookies), 10)[0][1] == b"made later"
    repaired.volume.close()


def rows_walked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys of the rows that are walked from now on, but for those of the passes over whole tables."""
    walked: list[bytes] = []
    rows_from = Tables.rows_from

    def watched(tables: Tables, table: int, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, row in rows_from(tables, table, first):
            walked.append(key)
            yield key, row

    monkeypatch.setattr(Tables, "rows_from", watched)
    return walked


def test_very_many_files_without_a_name_cost_one_walk_of_the_directory_that_gets_them(
    damaged: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = damaged.mkdir(b"lost+found")
    for number in range(50):
        damaged.create(b"%d" % number, lost)
    for number in range(1000, 1050):
        put(damaged, put_inode(alike(damaged.inode(FILE), InodeNumber(number), size=0)))
    directory = damaged.volume.directory
    damaged.volume.close()
    walked = rows_walked(monkeypatch)
    _, lines = checked(directory, repair=True)
    assert sum("has no name: repaired" in line for line in lines) == 50
    assert len(walked) <= 50 + 1, "one more tells where the directory ends"
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])


def alike(inode: Inode, number: InodeNumber, **attributes: int) -> Inode:
    other = inode.copy()
    other.number = number
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def test_very_many_names_with_the_cookie_of_another_cost_one_walk_of_their_directory(
    damaged: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(50):
        name = b"%d" % index
        entry = Entry(damaged.create(name, DEEP), stat.S_IFREG >> 12, 10_000)
        raw(damaged, "entries", entry_key(DEEP, name), pack_entry(entry))
    raw(damaged, "entries", entry_key(DEEP, b"z"), b"cannot be read, and is looked at later")
    directory = damaged.volume.directory
    damaged.volume.close()
    walked = rows_walked(monkeypatch)
    result, lines = checked(directory, repair=True)
    assert sum("the cookie of another name: repaired" in line for line in lines) == 49
    assert result.left == 0
    assert len(walked) <= 50 + 3
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    cookies = [cookie for cookie, _, _ in volume.catalog.listing(DEEP, 0, 100)]
    assert len(set(cookies)) == len(cookies) == 51
    volume.close()


def test_a_directory_without_a_name_keeps_what_is_in_it(damaged: Writer) -> None:
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"directory"), None))
    alter(damaged, ROOT_INODE, nlink=damaged.inode(ROOT_INODE).nlink - 1)
    directory = damaged.volume.directory
    damaged.volume.close()
    result, lines = checked(directory, repair=True)
    assert result.left == 0
    assert lines[0] == "inode 3 has no name: repaired"
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    repaired = Writer(Volume.open(directory))
    lost = repaired.catalog.entry(ROOT_INODE, b"lost+found").inode
    assert repaired.inode(DIRECTORY).parent == lost
    assert repaired.catalog.entry(DIRECTORY, b"inner").inode == INNER
    repaired.volume.close()


def test_an_unnamed_file_is_found_even_where_lost_and_found_is_a_file(damaged: Writer) -> None:
    damaged.create(b"lost+found")
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"file"), None))
    repaired = found_and_repaired(damaged, "inode 2 has no name")
    names = [name for _, name, _ in repaired.catalog.listing(ROOT_INODE, 0, 100)]
    assert b"lost+found" in names
    assert any(name.startswith(b"lost+found-") for name in names)
    repaired.volume.close()


def test_a_second_name_of_a_directory_is_removed(damaged: Writer) -> None:
    entry = pack_entry(Entry(DEEP, 4, 10_000))
    put(damaged, (Table.ENTRIES, entry_key(DEEP, b"second"), entry))
    found_and_repaired(damaged, "b'second': a second name of directory 5").volume.close()


def test_directories_inside_each_other_are_brought_back(
    damaged: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"directory"), None))
    put(damaged, (Table.ENTRIES, entry_key(DEEP, b"loop"), pack_entry(Entry(DIRECTORY, 4, 10_000))))
    alter(damaged, ROOT_INODE, nlink=damaged.inode(ROOT_INODE).nlink - 1)
    alter(damaged, DEEP, nlink=3)
    alter(damaged, DIRECTORY, parent=DEEP)
    large = damaged.mkdir(b"large")
    for index in range(50):
        damaged.create(b"%d" % index, large)
    directory = damaged.volume.directory
    damaged.volume.close()
    result, lines = checked(directory, repair=False)
    assert (result.problems, result.repaired) == (1, 0), lines
    assert "is inside itself" in lines[0]
    walked = rows_walked(monkeypatch)
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    assert entry_key(large, b"1") not in walked, "no other directory is looked through"
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    reachable = [inode.number for inode in volume.catalog.tables.inodes() if inode.nlink]
    assert {DIRECTORY, DEEP, INNER, LINKED} <= set(reachable)
    volume.close()


def test_a_missing_root_is_made_again(damaged: Writer) -> None:
    raw(damaged, "inodes", inode_key(ROOT_INODE), None)
    directory = damaged.volume.directory
    damaged.volume.close()
    result, lines = checked(directory, repair=False)
    assert result.left
    assert any("root directory is missing" in line for line in lines)
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    assert volume.catalog.entry(ROOT_INODE, b"file") is not None
    volume.close()


def test_an_inode_that_cannot_be_read_goes_with_its_names(damaged: Writer) -> None:
    raw(damaged, "inodes", inode_key(INNER), b"short")
    found_and_repaired(
        damaged, "an inode that cannot be read", "b'inner': points to inode 4, which does not exist"
    ).volume.close()


@pytest.mark.parametrize(
    ("number", "attributes", "expected"),
    [
        (ROOT_INODE, {"parent": 0xA2000001}, "its own parent"),
        (ROOT_INODE, {"mode": 0o100755, "parent": 0}, "its own parent"),
        (FILE, {"mode": 0x10000 | 0o100644}, "of no type of file"),
        (FILE, {"mode": 0o170644}, "of no type of file"),
        (DIRECTORY, {"mode": 0o170755}, "of no type of file"),
        (FILE, {"size": 1 << 63}, "beyond what can be"),
        (FILE, {"parent": 1}, "a parent, and no directory"),
        (DIRECTORY, {"parent": 0}, "a directory without a parent"),
    ],
)
def test_an_inode_that_cannot_be_so_is_put_right(
    damaged: Writer, number: InodeNumber, attributes: dict[str, int], expected: str
) -> None:
    inode = damaged.inode(number)
    for name, value in attributes.items():
        setattr(inode, name, value)
    raw(damaged, "inodes", inode_key(number), inode.pack())
    with pytest.raises(VolumeDamaged, match=f"INODES {number:016x}"):
        damaged.catalog.inode(number)
    directory = damaged.volume.directory
    damaged.volume.close()
    _, lines = checked(directory, repair=False)
    assert expected in lines[0]
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    assert volume.read(FILE, 0, 100) == b"0123456789"
    assert volume.catalog.entry(ROOT_INODE, b"file") is not None
    assert volume.catalog.entry(DIRECTORY, b"inner") is not None
    volume.close()


def test_a_cookie_of_two_names_is_replaced(damaged: Writer) -> None:
    rows = dict(damaged.catalog.tables.rows(Table.ENTRIES, None, 100))
    key, other = entry_key(DIRECTORY, b"inner"), entry_key(DIRECTORY, b"deep")
    same = unpack_entry(rows[other]).cookie
    raw(damaged, "entries", key, pack_entry(unpack_entry(rows[key])._replace(cookie=same)))
    directory = damaged.volume.directory
    damaged.volume.close()
    result, lines = checked(directory, repair=False)
    assert any("the cookie of another name" in line for line in lines)
    result, lines = checked(directory, repair=True)
    assert result.left == 0
    assert checked(directory, repair=False) == (CheckResult(problems=0, repaired=0), [])
    volume = Volume.open(directory)
    assert {name for _, name, _ in volume.catalog.listing(DIRECTORY, 0, 10)} == {b"inner", b"deep"}
    volume.close()


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("listing", inode_key(1) + inode_key(8), b"nothing"),
        ("listing", inode_key(1) + inode_key(2), None),
        ("orphans", inode_key(FILE), b""),
        ("orphans", inode_key(8), None),
    ],
)
def test_derived_tables_are_made_again(damaged: Writer, table: str, key: bytes, value: bytes | None) -> None:
    if value is None and table == "listing":
        cookie = damaged.catalog.entry(ROOT_INODE, b"file").cookie
        key = inode_key(1) + inode_key(cookie)
    elif value is None:
        key = inode_key(damaged.catalog.orphans()[0])
    orphans = damaged.catalog.orphans()
    raw(damaged, table, key, value)
    repaired = found_and_repaired(damaged, "wrong: 1 row of listings and orphans")
    assert repaired.catalog.orphans() == orphans
    assert b"file" in [name for _, name, _ in repaired.catalog.listing(ROOT_INODE, 0, 100)]
    repaired.volume.close()


def test_extended_attributes_of_no_inode_are_removed(damaged: Writer) -> None:
    put(damaged, (Table.XATTRS, xattr_key(InodeNumber(99), b"user.x"), b"value"))
    repaired = found_and_repaired(damaged, "an extended attribute of inode 99")
    assert repaired.catalog.xattrs.names(FILE) == [b"user.x"]
    repaired.volume.close()


def test_an_inode_number_that_might_be_given_again_is_reserved(damaged: Writer) -> None:
    last = damaged.catalog.next_inode - 1
    damaged.catalog.meta.next_inode = last
    damaged.volume.catalog.changes_since_commit += 1
    repaired = found_and_repaired(damaged, f"inode {last} is beyond the next to be given")
    assert repaired.catalog.next_inode == last + 1
    repaired.volume.close()


@pytest.mark.parametrize("damage", ["longer", "shorter", "missing"])
def test_a_size_becomes_that_of_the_image(damaged: Writer, damage: str) -> None:
    change: dict[str, Callable[[], None]] = {
        "longer": lambda: damaged.volume.images.truncate(FILE, 12, 1),
        "shorter": lambda: damaged.volume.images.truncate(FILE, 3, 1),
        "missing": lambda: damaged.volume.images.remove(FILE),
    }
    change[damage]()
    size = damaged.volume.images.size(FILE)
    repaired = found_and_repaired(damaged, f"inode 2 is 10 bytes long, and its image {size}")
    assert repaired.inode(FILE).size == size
    repaired.volume.close()


@pytest.mark.parametrize("state", ["incomplete", "marked"])
def test_a_backup_may_wait_for_data(damaged: Writer, state: str) -> None:
    damaged.volume.update_identity(role="backup", complete=state != "incomplete")
    if state == "incomplete":
        damaged.volume.drop_marks(damaged.volume.regions.rotate())
    damaged.volume.images.remove(FILE)
    directory = damaged.volume.directory
    damaged.volume.close()
    assert checked(directory, repair=True) == (CheckResult(problems=0, repaired=0), [])


def test_stray_images_are_moved_aside_and_never_over_another(damaged: Writer) -> None:
    images = damaged.volume.images
    images.write(InodeNumber(99), 0, b"stray", 1)
    images.write(DIRECTORY, 0, b"of a directory", 1)
    lost = damaged.volume.directory / "lost-images"
    lost.mkdir()
    (lost / "63").write_bytes(b"from the last time")
    directory = damaged.volume.directory
    damaged.volume.close()
    result, lines = checked(directory, repair=True)
    assert (result.repaired, result.left) == (2, 0), lines
    assert {path.name: path.read_bytes() for path in lost.iterdir()} == {
        "63": b"from the last time",
        "63-2": b"stray",
        "3": b"of a directory",
    }


def test_a_damaged_journal_is_set_aside_and_the_volume_goes_on(damaged: Writer) -> None:
    volume = damaged.volume
    rows, directory = rows_of(volume), volume.directory
    number = volume.number
    volume.journal._begin_segment(volume.number)
    damaged.create(b"last")
    rows = rows_of(volume)
    number = volume.number
    volume.close()
    first = min((directory / "journal").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    result, lines = checked(directory, repair=False)
    assert result.left == 1
    assert "journal" in lines[0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fusemirror.volume.recovery._log.warning", lambda *_arguments: None)
        result, lines = checked(directory, repair=True)
    assert (result.repaired, result.left) == (1, 0), lines
    assert (directory / "lost-journal").is_dir()
    volume = Volume.open(directory)
    assert volume.identity.compare_all
    assert rows_of(volume) == rows
    assert volume.number == number
    Writer(volume).create(b"goes on")
    volume.close()


def test_damage_that_cannot_be_mended_here_is_left_and_named(damaged: Writer) -> None:
    directory = damaged.volume.directory
    damaged.volume.close()
    (directory / "identity.json").write_bytes(b"not JSON")
    before = sorted(os.listdir(directory))
    result, lines = checked(directory, repair=True)
    assert (result.problems, result.repaired) == (1, 0)
    assert "identity" in lines[0]
    assert sorted(os.listdir(directory)) == before


def test_lost_and_found_is_for_root_alone(damaged: Writer) -> None:
    put(damaged, (Table.ENTRIES, entry_key(ROOT_INODE, b"file"), None))
    repaired = found_and_repaired(damaged, "inode 2 has no name")
    lost = repaired.inode(repaired.catalog.entry(ROOT_INODE, b"lost+found").inode)
    assert stat.S_IMODE(lost.mode) == 0o700
    repaired.volume.close()


# --- a catalog that cannot be read ------------------------------------------------------------------------


def destroy_catalog(writer: Writer) -> Path:
    writer.volume.close()
    directory = writer.volume.directory
    (directory / "catalog" / "data.mdb").write_bytes(b"nothing that LMDB ever wrote" * 1000)
    return directory


def tree_of(volume: Volume) -> dict[bytes, InodeNumber]:
    """Names of the root directory, and their inodes."""
    return {name: entry.inode for _, name, entry in volume.catalog.listing(ROOT_INODE, 0, 1000)}


def test_a_catalog_is_made_again_from_a_whole_journal(damaged: Writer) -> None:
    def without_own(volume: Volume) -> list[object]:
        return [row for row in rows_of(volume) if row[1] not in (b"number", b"journal_number", b"time_ns")]

    before = without_own(damaged.volume)
    directory = destroy_catalog(damaged)
    result, lines = checked(directory, repair=False)
    assert (result.left, len(lines)) == (1, 1)
    result, lines = checked(directory, repair=True)
    assert (result.repaired, result.left) == (1, 0), lines
    assert "no name is lost" in lines[1]
    assert checked(directory, repair=False)[0].problems == 0
    volume = Volume.open(directory)
    assert without_own(volume) == before
    assert volume.identity.compare_all
    assert list(directory.glob("lost-catalog"))
    volume.close()


def test_without_the_journal_files_are_found_by_inode_number(damaged: Writer) -> None:
    damaged.volume.commit()
    damaged.volume.journal.restart(damaged.volume.number)
    damaged.create(b"later")
    put(damaged, (Table.META, b"generations", b"line"))
    directory = destroy_catalog(damaged)
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    assert any("lost+found" in line for line in lines)
    assert checked(directory, repair=False)[0].problems == 0
    volume = Volume.open(directory)
    tree = tree_of(volume)
    assert set(tree) == {b"later", b"lost+found"}
    found = {name: entry.inode for _, name, entry in volume.catalog.listing(tree[b"lost+found"], 0, 10)}
    assert found[b"#%d" % FILE] == FILE
    assert volume.read(FILE, 0, 100) == b"0123456789"
    assert volume.catalog.meta.value(b"generations") is None, "another line: it must not overwrite its peer"
    volume.close()


def test_a_backup_asks_for_a_complete_copy(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    Volume.create(directory, msgspec.structs.replace(IDENTITY, role="backup"))
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"file")
    writer.write(inode, 0, b"content")
    destroy_catalog(writer)
    result, lines = checked(directory, repair=True)
    assert result.left == 0, lines
    volume = Volume.open(directory)
    assert not volume.identity.complete
    assert volume.images.size(inode) == 7, "what is the same need not travel again"
    volume.close()


def test_a_host_name_of_an_earlier_version_is_mended(damaged: Writer, tmp_path: Path) -> None:
    damaged.volume.update_identity(host_name="al/p\x1bha")
    damaged.volume.close()
    assert check(tmp_path / "volume", True, lambda _: None).repaired == 1
    assert Identity.load(tmp_path / "volume").host_name == "al-p-ha"
    assert check(tmp_path / "volume", False, lambda _: None).problems == 0


def test_an_image_that_is_a_link_is_moved_away_unread(damaged: Writer, tmp_path: Path) -> None:
    path = damaged.volume.images.path(FILE)
    damaged.volume.close()
    (tmp_path / "secret").write_text("0123456789")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    found: list[str] = []
    check(tmp_path / "volume", False, found.append)
    assert any("images/0/2 is a link" in line for line in found)
    assert check(tmp_path / "volume", True, lambda _: None).left == 0
    assert (tmp_path / "volume" / "lost-images" / "2").is_symlink()
    assert (tmp_path / "secret").read_text() == "0123456789"
    assert check(tmp_path / "volume", False, lambda _: None).problems == 0
