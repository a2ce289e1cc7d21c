"""Commits: what LMDB's transaction loses comes back from the journal, and from memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fusemirror.errors import DiskFailed, DiskFull
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import CATALOG_CHANGES_PER_COMMIT_MAX, CATALOG_CHANGES_PER_COMMIT_SHORT
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, counting_seams, rows_of


def fail_commits(volume: Volume, monkeypatch: pytest.MonkeyPatch, kind: type[DiskFailed] = DiskFull) -> None:
    def failing(*_arguments: object) -> None:
        volume.catalog.cache.flush()
        volume.catalog._store.txn.abort()
        raise kind(volume.directory, "full")

    monkeypatch.setattr(volume.catalog, "commit", failing)


def test_a_commit_that_fails_loses_nothing(
    writer: Writer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc")  # its size stands in memory and in the image alone
    before = rows_of(volume)
    fail_commits(volume, monkeypatch)
    with pytest.raises(DiskFailed, match="full"):
        volume.commit()
    assert rows_of(volume) == before
    assert volume.catalog.number == 0
    monkeypatch.undo()
    volume.commit()
    assert volume.catalog.number == volume.number


class Broken:
    """LMDB on a disk that fails in a commit. Where that was the last step it begins no transaction again."""

    def __init__(self, volume: Volume, *, begins: bool = False) -> None:
        store = volume.catalog._store
        self.begins = begins
        self._environment, self._transaction = store._environment, store.txn
        store._environment = store.txn = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def commit(self) -> None:
        self._transaction.abort()
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    def begin(self, **options: bool) -> Any:
        if not self.begins:
            raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC")
        return self._environment.begin(**options)

    def close(self) -> None:
        self._environment.close()


def test_a_disk_that_fails_in_the_last_step_of_a_commit_ends_the_service(
    directory: Path,
) -> None:
    """What LMDB says then was none of our errors. So it ended the mount, and `health` did not hear of it."""
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    writer.write(writer.create(b"a"), 0, b"abc")
    before, number, record = rows_of(volume), volume.number, volume.journal.last_number
    Broken(volume)
    with pytest.raises(DiskFailed, match="MDB_PANIC"):
        volume.commit()
    assert "MDB_PANIC" in (volume.health.failure or "")
    again: list[Callable[[], object]] = [
        lambda: writer.create(b"b"),
        lambda: volume.catalog.entry(ROOT_INODE, b"a"),
        volume.commit,
        volume.close,
    ]
    for ask in again:
        with pytest.raises(DiskFailed, match="MDB_PANIC"):
            ask()
        assert (volume.number, volume.journal.last_number) == (number, record), "nothing of it is anywhere"
    opened = Volume.open(directory, counting_seams())
    assert rows_of(opened) == before
    opened.close()


def test_a_change_whose_commit_meets_that_has_taken_effect(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left with an error when it had its number, and so was told to nobody."""
    volume = Volume.open(directory, counting_seams())
    monkeypatch.setattr(volume._parts.commits, "due_at", 0)
    Broken(volume)
    Writer(volume).create(b"a")
    assert volume.number == volume.journal.last_number == 1
    assert volume.health.failure is not None
    volume.abandon()
    opened = Volume.open(directory, counting_seams())
    assert opened.catalog.entry(ROOT_INODE, b"a") is not None
    opened.close()


def test_where_no_transaction_could_be_begun_a_commit_may_be_tried_again(
    writer: Writer, volume: Volume
) -> None:
    writer.write(writer.create(b"a"), 0, b"abc")
    before = rows_of(volume)
    broken = Broken(volume)
    for broken.begins in (False, False, True):
        with pytest.raises(DiskFailed):
            volume.commit()
    volume.commit()
    assert rows_of(volume) == before
    assert volume.catalog.number == volume.number


@pytest.mark.expects_warnings
def test_a_commit_that_fails_is_not_tried_again_with_every_change(
    writer: Writer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_commits(volume, monkeypatch)
    commits = volume._parts.commits
    writer.create(b"a")
    commits.commit_or_later(volume.number)
    assert commits.due_at >= CATALOG_CHANGES_PER_COMMIT_MAX
    assert volume.catalog.entry(ROOT_INODE, b"a") is not None
    monkeypatch.undo()


def test_a_disk_that_fails_in_a_commit_ends_the_service_and_not_the_change(
    writer: Writer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says so at once; programs were served until the next commit of the timer."""
    fail_commits(volume, monkeypatch, DiskFailed)
    monkeypatch.setattr(volume._parts.commits, "due_at", 0)
    writer.create(b"a")
    assert volume.catalog.entry(ROOT_INODE, b"a") is not None
    assert "full" in (volume.health.failure or "")
    monkeypatch.undo()


def test_a_full_disk_has_less_for_one_commit(
    writer: Writer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume.space, "short", True)
    writer.create(b"a")
    volume.commit()
    assert volume._parts.commits.due_at == CATALOG_CHANGES_PER_COMMIT_SHORT


def test_the_journal_is_durable_before_the_catalog(volume: Volume, writer: Writer, tmp_path: Path) -> None:
    writer.create(b"a")
    assert not volume.journal.is_durable
    volume.commit()
    assert volume.journal.is_durable
