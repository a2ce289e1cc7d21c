"""A new catalog, copied from the peer: it takes the place of the old one whole, or not at all."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fusemirror.change import NamespaceChange, Table, WriteChange
from fusemirror.errors import DiskFailed, VolumeDamaged
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.catalog_store import _open_environment as open_environment
from fusemirror.volume.identity import Identity
from fusemirror.volume.requests_done import Done
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, counting_seams, rows_of
from tests.volume.test_volume import R1, killed, run_until_killed


def source_rows(tmp_path: Path) -> tuple[list[tuple[int, bytes, bytes]], ChangeNumber]:
    """The catalog of a peer: a directory with a file in it, and one file that we have too."""
    directory = tmp_path / "peer"
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    writer.write(writer.create(b"ours too"), 0, b"new")
    inode = writer.create(b"theirs", writer.mkdir(b"d"))
    writer.write(inode, 0, b"x" * 10)
    writer.set_xattr(inode, b"user.x", b"value")
    rows = [(table, key, row) for (table, key), row in rows_of(writer.volume).items()]
    number = writer.volume.number
    writer.volume.close()
    return rows, number


def old_volume(directory: Path) -> Writer:
    """Of a backup that has two files, one of which the peer has not, and numbers beyond the peer's."""
    Volume.create(directory, replace_identity(role="backup"))
    writer = Writer(Volume.open(directory, counting_seams()))
    ours = writer.create(b"ours too")
    writer.write(ours, 0, b"old content")
    writer.volume.catalog.reserve_inodes(InodeNumber(100))
    for n in range(10):
        writer.write(writer.create(b"not theirs %d" % n), 0, b"stray")
    writer.volume.requests_done[R1] = Done(ChangeNumber(1), ours)
    return writer


def replace_identity(**changes: Any) -> Identity:
    return msgspec.structs.replace(IDENTITY, **changes)


def test_a_copied_catalog_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    rows, number = source_rows(tmp_path)
    writer = old_volume(tmp_path / "volume")
    volume = writer.volume
    volume.begin_catalog_copy()
    assert not volume.identity.complete
    assert volume.requests_done == {}
    volume.copy_rows(rows[:2])
    late = InodeNumber(4)
    volume.apply(WriteChange(ChangeNumber(number + 1), NO_REQUEST, 5, late, 0, 4), b"late")
    volume.copy_rows(rows[2:])
    volume.apply(WriteChange(ChangeNumber(number + 2), NO_REQUEST, 6, late, 10, 4), b"more")
    volume.finish_catalog_copy(ChangeNumber(number + 2), ChangeNumber(number + 2))
    assert not volume.catalog.copying
    assert (volume.number, volume.journal.last_number) == (number + 2, number + 2)
    assert set(volume.images.numbers()) == {2, late}
    assert volume.read(late, 0, 100) == b"late" + bytes(6) + b"more"
    after = rows_of(volume)
    assert {key for table, key, _ in rows} == {key for _, key in after}
    assert volume.catalog.xattrs.names(late) == [b"user.x"]
    writer.create(b"new")
    after = rows_of(volume)
    writer = killed(volume)
    assert rows_of(writer.volume) == after
    assert not (tmp_path / "volume" / "catalog.new").exists()
    writer.volume.close()


def test_a_copy_can_be_begun_again(tmp_path: Path) -> None:
    rows, number = source_rows(tmp_path)
    volume = old_volume(tmp_path / "volume").volume
    volume.begin_catalog_copy()
    volume.copy_rows([(Table.META, b"note", b"of the first try"), *rows])
    volume.commit()
    volume.begin_catalog_copy()
    volume.copy_rows(rows)
    volume.finish_catalog_copy(number, number)
    assert [(table, key, row) for (table, key), row in rows_of(volume).items()] == rows
    volume.close()


REFUSED_STEPS = [
    "removing one before it",
    "making it",
    "a commit under way",
    "its last commit",
    "removing the old one",
    "taking its place",
]


@pytest.mark.parametrize("step", REFUSED_STEPS)
def test_a_copy_that_the_disk_refused_can_be_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    rows, number = source_rows(tmp_path)
    volume = old_volume(tmp_path / "volume").volume

    def copy() -> None:
        volume.begin_catalog_copy()
        volume.copy_rows(rows)
        volume.commit()
        volume.finish_catalog_copy(number, number)

    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    def refuse_commit(catalog: Catalog, *_place: Any) -> None:
        catalog._store.txn.abort()
        raise DiskFailed(volume.directory, "full")

    with monkeypatch.context() as full:
        if step == "making it":
            full.setattr("fusemirror.volume.catalog_store._open_environment", refuse_creation(refuse))
        elif "removing" in step:
            if "before" in step:
                (volume.directory / "catalog.new").mkdir()
            full.setattr("shutil.rmtree", refuse)
        elif step == "taking its place":
            full.setattr(volume.journal, "restart", refuse)
        else:
            full.setattr(Catalog, "commit_unfinished" if "under way" in step else "commit", refuse_commit)
        if step == "its last commit":
            full.setattr(volume, "commit", lambda: None)
        with pytest.raises((OSError, DiskFailed)):
            copy()
        assert volume.catalog.meta.value(b"whatever") is None, "it can still be asked"
    copy()
    assert [(table, key, row) for (table, key), row in rows_of(volume).items()] == rows
    volume.close()


@pytest.mark.parametrize("step", ["removing one before it", "removing the old one", "giving it up"])
def test_a_disk_that_fails_during_a_copy_leaves_a_catalog_that_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    rows, number = source_rows(tmp_path)
    volume = old_volume(tmp_path / "volume").volume
    volume.begin_catalog_copy()
    volume.copy_rows(rows)
    steps: dict[str, Callable[[], None]] = {
        "removing one before it": volume.begin_catalog_copy,
        "removing the old one": lambda: volume.finish_catalog_copy(number, number),
        "giving it up": volume.abandon_catalog_copy,
    }

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(OSError, match="broken"):
        steps[step]()
    assert volume.health.failure is not None
    assert volume.catalog.inode(ROOT_INODE) is not None
    volume.abandon()


def test_where_no_catalog_can_be_opened_after_an_error_the_host_stops_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = old_volume(tmp_path / "volume").volume

    def fail(directory: Path, **_named: Any) -> None:
        raise VolumeDamaged(directory, "broken")

    monkeypatch.setattr("fusemirror.volume.catalog_store._open_environment", fail)
    with pytest.raises(VolumeDamaged, match="broken"):
        volume.begin_catalog_copy()
    assert "broken" in (volume.health.failure or "")
    with pytest.raises(DiskFailed):
        volume.catalog.inode(InodeNumber(4711))
    volume.abandon()


def refuse_creation(refuse: Callable[..., None]) -> Callable[..., Any]:
    """Opens what there is, and makes nothing new."""

    def opened(directory: Path, *, create: bool) -> Any:
        return refuse() if create else open_environment(directory, create=create)

    return opened


@pytest.mark.parametrize("end", ["abandon", "close"])
@pytest.mark.parametrize("commits", [False, True])
def test_a_copy_that_was_not_finished_leaves_the_old_catalog_known_to_be_incomplete(
    tmp_path: Path, end: str, commits: bool
) -> None:
    rows, number = source_rows(tmp_path)
    volume = old_volume(tmp_path / "volume").volume
    before = rows_of(volume)
    volume.begin_catalog_copy()
    volume.copy_rows(rows)
    volume.apply(NamespaceChange(ChangeNumber(number + 1), NO_REQUEST, 5, InodeNumber(0), ()))
    if commits:
        volume.commit()
    getattr(volume, end)()
    volume = Volume.open(tmp_path / "volume")
    assert not volume.identity.complete
    assert rows_of(volume) == before
    assert not (tmp_path / "volume" / "catalog.new").exists()
    volume.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_copy_killed_at_any_system_call_ends_as_the_old_catalog_or_the_new(tmp_path: Path) -> None:
    rows, number = source_rows(tmp_path)

    def copy(writer: Writer) -> None:
        writer.volume.begin_catalog_copy()
        writer.volume.copy_rows(rows)
        writer.volume.finish_catalog_copy(number, number)

    kill_at, died, ends = 1, True, set()
    while died:
        directory = tmp_path / str(kill_at)
        writer = old_volume(directory)
        before = rows_of(writer.volume)
        writer.volume.close()
        done, died = run_until_killed(directory, kill_at, [copy])
        volume = Volume.open(directory)
        copied = [(table, key, row) for (table, key), row in rows_of(volume).items()] == rows
        ends.add(copied)
        if copied:
            assert not volume.identity.complete
            assert (volume.number, volume.journal.last_number) == (number, number)
            assert set(volume.images.numbers()) <= {2}
        else:
            assert not done
            assert rows_of(volume) == before
        assert not (directory / "catalog.new").exists()
        volume.close()
        kill_at += 1
    assert ends == {False, True}
