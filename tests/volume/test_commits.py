"""Commits: what LMDB's transaction loses comes back from the journal, and from memory."""

from pathlib import Path

import pytest

from fusemirror.errors import DiskFailed, DiskFull
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import CATALOG_CHANGES_PER_COMMIT_MAX, CATALOG_CHANGES_PER_COMMIT_SHORT
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, rows_of


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
