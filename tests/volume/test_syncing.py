"""Making durable what was written, and letting go of records that nobody needs after that."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from fusemirror.errors import DiskFailed
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import JOURNAL_SEGMENT_BYTES
from fusemirror.promise import Promise
from fusemirror.threads import run_in_thread
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, counting_seams

REQUEST = RequestId(b"of the backup")


async def test_a_flush_is_of_one_image_and_of_the_whole_namespace(volume: Volume, writer: Writer) -> None:
    one, two = writer.create(b"one"), writer.create(b"two")
    writer.write(one, 0, b"a")
    writer.write(two, 0, b"b")
    await volume.syncing.flush(one)
    assert volume.journal.is_durable
    assert set(volume.images.unsynced.dirty) == {two}
    await volume.syncing.flush(InodeNumber(0))
    assert set(volume.images.unsynced.dirty) == {two}
    await volume.syncing.flush_all()
    assert not volume.images.unsynced.dirty


def test_records_of_requests_that_may_be_asked_for_again_stay(volume: Volume, writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc", REQUEST)
    asked = volume.number
    while len(list((volume.directory / "journal").glob("*.log"))) < 3:
        writer.set_xattr(inode, b"user.x", bytes(60_000))
    volume.commit()
    volume.syncing.trim(volume.number, volume.requests_done)
    assert volume.journal.first_number <= asked
    volume.requests_done.forget(REQUEST)
    volume.syncing.trim(volume.number, volume.requests_done)
    assert volume.journal.first_number > asked


def test_of_a_full_disk_records_go_and_what_they_said_of_requests_stays(tmp_path: Path) -> None:
    """Until 0.2.0 a primary that was killed then made a name again for the backup, which heard EEXIST."""
    Volume.create(tmp_path / "new", IDENTITY)
    volume = Volume.open(tmp_path / "new", counting_seams())
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc", REQUEST)
    asked = volume.requests_done[REQUEST]
    while volume.journal.size_bytes < 2 * JOURNAL_SEGMENT_BYTES:
        writer.set_xattr(inode, b"user.x", bytes(60_000))
    volume.commit()
    volume.space.short = True
    volume.syncing.trim(ChangeNumber(0), volume.requests_done)
    assert volume.journal.first_number > asked.number
    volume.abandon()
    again = Volume.open(tmp_path / "new", counting_seams())
    assert again.requests_done == {REQUEST: asked}
    again.close()


def test_without_requests_only_the_peer_and_the_catalog_need_records(volume: Volume, writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc", REQUEST)
    while len(list((volume.directory / "journal").glob("*.log"))) < 3:
        writer.set_xattr(inode, b"user.x", bytes(60_000))
    volume.syncing.trim(volume.number)
    assert volume.journal.first_number == 1, "the catalog does not hold them yet"
    volume.commit()
    volume.syncing.trim(ChangeNumber(1))
    assert volume.journal.first_number == 1
    volume.syncing.trim(volume.number)
    assert volume.journal.first_number > 2


# --- without a thread -----------------------------------------------------------------------------------


class Kernel:
    """It syncs what it is asked to when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Promise[None]]] = []
        self.ends_at_once = False

    def begin_sync(self, descriptor: int, *, data_only: bool) -> Promise[None]:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        promise = Promise[None]()
        self.asked.append((f"{path.parent.name}/{path.name}{'' if data_only else ' with times'}", promise))
        if self.ends_at_once:
            promise.resolve(None)
        return promise

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def synced(directory: Path, kernel: Kernel) -> AsyncIterator[tuple[Volume, Writer, InodeNumber]]:
    """A volume with a file that is durable, name and all, and the inode of that."""
    volume = Volume.open(directory, replace(counting_seams(), begin_sync=kernel.begin_sync))
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"a")
    await volume.syncing.flush(inode)
    assert not kernel.asked, "a new name takes a thread"
    yield volume, writer, inode
    volume.abandon()


Synced = tuple[Volume, Writer, InodeNumber]


@contextmanager
def no_threads(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patching:
        patching.setattr(volume.journal, "sync", lambda: pytest.fail("it took a thread"))
        patching.setattr(volume.syncing, "sync", lambda _: pytest.fail("it took a thread"))
        yield


async def test_an_image_and_the_journal_are_synced_side_by_side(
    synced: Synced, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, writer, inode = synced
    image, journal = f"0/{inode:x}", "journal/0000000000000001.log"
    with no_threads(volume, monkeypatch):
        async with trio.open_nursery() as nursery:
            writer.write(inode, 0, b"b", REQUEST)
            nursery.start_soon(volume.syncing.flush, inode)
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.names == [f"{image} with times", journal]
            assert volume.journal.durable_number < volume.number
            for _, promise in kernel.asked:
                promise.resolve(None)
        assert volume.journal.durable_number == volume.number
        assert not volume.images.unsynced.dirty
        kernel.ends_at_once = True
        writer.write(inode, 0, b"c")
        await volume.syncing.flush(inode)
        assert kernel.names[2:] == [image], "times are synced once"
        await volume.syncing.flush(inode)
        assert len(kernel.names) == 3


async def test_those_that_wait_share_one_flush(synced: Synced, kernel: Kernel) -> None:
    volume, writer, inode = synced
    ended: list[str] = []

    async def flush(name: str) -> None:
        await volume.syncing.flush(inode)
        ended.append(name)

    async with trio.open_nursery() as nursery:
        writer.write(inode, 0, b"b")
        nursery.start_soon(flush, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(flush, "of the same")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            writer.write(inode, 0, b"c")
            nursery.start_soon(flush, "later")
            await trio.testing.wait_all_tasks_blocked()
        assert len(kernel.asked) == 1
        kernel.asked[0][1].resolve(None)
        await trio.testing.wait_all_tasks_blocked()
        assert set(ended) == {"first", "of the same"}, "the others' writes came after it began"
        assert len(kernel.asked) == 2
        kernel.asked[1][1].resolve(None)
    assert len(kernel.asked) == 2
    assert not volume.images.unsynced.dirty


async def test_an_error_is_told_to_all_that_share_it(synced: Synced, kernel: Kernel) -> None:
    volume, writer, inode = synced
    failed: list[int | None] = []

    async def flush() -> None:
        with pytest.raises(OSError, match="Input/output") as caught:
            await volume.syncing.flush(inode)
        failed.append(caught.value.errno)

    async with trio.open_nursery() as nursery:
        writer.write(inode, 0, b"b")
        for _ in range(2):
            nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        kernel.asked[0][1].reject(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert failed == [errno.EIO] * 2
    assert volume.health.failure is not None
    assert inode in volume.images.unsynced.dirty


async def test_one_that_is_given_up_leaves_the_others_their_flush(synced: Synced, kernel: Kernel) -> None:
    volume, writer, inode = synced
    gates = [trio.CancelScope(), trio.CancelScope()]

    async def flush(gate: trio.CancelScope) -> None:
        with gate:
            await volume.syncing.flush(inode)

    async with trio.open_nursery() as nursery:
        writer.write(inode, 0, b"b", REQUEST)
        nursery.start_soon(flush, gates[0])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(flush, gates[1])
        gates[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        for _, promise in kernel.asked:
            promise.resolve(None)
    assert not gates[1].cancelled_caught
    assert not volume.images.unsynced.dirty
    assert volume.journal.is_durable


async def test_a_record_that_was_taken_back_is_not_called_durable(synced: Synced, kernel: Kernel) -> None:
    """Another record may have its number by then."""
    volume, writer, inode = synced
    journal = volume.journal
    durable = journal.durable_number
    async with trio.open_nursery() as nursery:
        writer.write(inode, 0, b"b", REQUEST)
        nursery.start_soon(journal.sync_beside)
        await trio.testing.wait_all_tasks_blocked()
        journal.retract(journal.last_number)
        kernel.asked[-1][1].resolve(None)
    assert journal.durable_number == durable
    kernel.ends_at_once = True


async def test_a_journal_that_could_not_be_synced_never_is(synced: Synced, kernel: Kernel) -> None:
    volume, writer, inode = synced

    async def sync() -> None:
        with pytest.raises(DiskFailed, match="Input/output"):
            await volume.journal.sync_beside()

    async with trio.open_nursery() as nursery:
        writer.write(inode, 0, b"b", REQUEST)
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked()
        kernel.asked[-1][1].reject(OSError(errno.EIO, os.strerror(errno.EIO)))
    await sync()
    assert len(kernel.asked) == 1


async def test_an_error_of_a_flush_that_was_given_up_is_heard(
    synced: Synced, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, writer, inode = synced
    writer.write(inode, 0, b"b", REQUEST)
    # The journal needs a thread, and before that begins it can be cancelled.
    seams = replace(volume.journal._seams, run_blocking=run_in_thread)
    monkeypatch.setattr(volume.journal, "_seams", seams)
    monkeypatch.setattr(volume.journal, "_names_unsynced", True)
    async with trio.open_nursery() as nursery:

        async def flush() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(OSError, match="Input/output"):
                    await volume.syncing.flush(inode)

        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        ((_, promise),) = kernel.asked
        promise.reject(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert volume.health.failure is not None, "the next flush would find nothing wrong"
