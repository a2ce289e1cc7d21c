"""The communication volume in LMDB: what stands on the disk, and what becomes of it."""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import pytest
import trio
from trio.testing import MockClock

from fusemirror.communication import lmdb_volume
from fusemirror.communication.lmdb_volume import LmdbCommunicationVolume
from fusemirror.errors import DiskFailed, StoreInDoubt
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import DESTAGE_AFTER_S, MIB
from fusemirror.operations import Write
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Request
from fusemirror.seams import Seams
from fusemirror.volume.durable import sync_directory
from tests.volume.conftest import counting_seams
from tests.volume.test_mapped import resident_bytes

T = TypeVar("T")

CAPACITY = 16 * MIB
LONG_ENOUGH_S = 3 * DESTAGE_AFTER_S


def request(number: int) -> Request:
    return Request(RequestId(b"%016d" % number), Write(InodeNumber(2), number))


def opened(
    directory: Path,
    capacity_bytes: int = CAPACITY,
    seams: Seams | None = None,
    memory_bytes: int = 512 * MIB,
) -> LmdbCommunicationVolume:
    return LmdbCommunicationVolume(
        directory / "communication", capacity_bytes, memory_bytes, seams or counting_seams()
    )


def on_disk(directory: Path) -> dict[int, bytes]:
    """Serials and values, as another program would read them; the volume is closed."""
    environment = lmdb.open(str(directory / "communication"), readonly=True)
    with environment, environment.begin() as transaction:
        return {int.from_bytes(key, "big"): bytes(value) for key, value in transaction.cursor()}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LmdbCommunicationVolume]:
    made = opened(tmp_path)
    yield made
    made.close()


async def test_a_destaged_request_stands_on_the_disk_with_its_data(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        for number in (1, 2):
            volume.stage(request(number), b"data of %d" % number)
        await trio.sleep(LONG_ENOUGH_S)
        nursery.cancel_scope.cancel()
    volume.close()
    assert on_disk(tmp_path) == {
        number: struct.pack("<I", len(encode(request(number))))
        + encode(request(number))
        + b"data of %d" % number
        for number in (1, 2)
    }


async def test_a_retired_request_leaves_the_disk(
    volume: LmdbCommunicationVolume, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(volume.run)
    for number in (1, 2):
        volume.stage(request(number), b"data")
    await trio.sleep(LONG_ENOUGH_S)
    assert volume.stored_count() == 2
    volume.retire(request(1).identity)
    await trio.sleep(LONG_ENOUGH_S)
    assert volume.stored_count() == 1
    volume.retire(request(2).identity)
    await trio.sleep(LONG_ENOUGH_S)
    assert volume.stored_count() == 0
    await volume.wait_empty()


async def test_what_an_earlier_mount_never_acknowledged_is_discarded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    first = opened(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        for number in range(3):
            first.stage(request(number), b"never acknowledged")
        await trio.sleep(LONG_ENOUGH_S)
        nursery.cancel_scope.cancel()
    assert first.stored_count() == 3
    first.close()  # as a killed process does
    second = opened(tmp_path)
    assert second.stored_count() == 0
    assert not second.pending()
    second.close()
    assert not on_disk(tmp_path)


async def test_the_store_writes_beside_the_event_loop(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    writing, may_end = trio.Event(), trio.Event()

    async def run_when_told(function: Callable[..., T], *args: Any) -> T:
        writing.set()
        await may_end.wait()
        return function(*args)

    volume = opened(tmp_path, seams=Seams(run_blocking=run_when_told))
    await nursery.start(volume.run)
    volume.stage(request(1), b"data")
    await writing.wait()
    volume.stage(request(2), b"data")
    assert volume.stored_count() == 0
    may_end.set()
    await trio.sleep(LONG_ENOUGH_S)
    assert volume.stored_count() == 2
    nursery.cancel_scope.cancel()
    volume.close()


@pytest.mark.expects_warnings
async def test_a_full_store_leaves_requests_in_memory_and_their_programs_to_the_primary(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path, capacity_bytes=0)
    await nursery.start(volume.run)
    large = Request(RequestId(b"1" * 16), Write(InodeNumber(2), 0), kept=True)
    small = Request(RequestId(b"2" * 16), Write(InodeNumber(2), 0), kept=True)
    staged = volume.stage(large, bytes(80 * MIB))  # more than LMDB was told to have room for
    await trio.sleep(10)
    assert not staged.acknowledged
    assert volume.stored_count() == 0
    volume.retire(large.identity)
    other = volume.stage(small, b"data")
    await trio.sleep(10)
    assert other.acknowledged
    assert volume.stored_count() == 1
    nursery.cancel_scope.cancel()
    volume.close()


async def test_a_volume_as_full_as_it_may_be_fits_into_the_store_again_and_again(
    volume: LmdbCommunicationVolume, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(volume.run)
    count = CAPACITY // MIB
    for start in range(0, 5 * count, count):
        for number in range(start, start + count):
            volume.retire(request(number - count).identity)
            volume.stage(request(number), bytes(MIB))
        await trio.sleep(10 * LONG_ENOUGH_S)
        assert volume.stored_count() == count


async def test_a_capacity_that_was_raised_is_there_without_a_new_mount(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path, capacity_bytes=0)
    await nursery.start(volume.run)
    volume.configure(200 * MIB, 512 * MIB)
    count = 100  # MiB, more than the map that it was opened with
    for number in range(count):
        volume.stage(request(number), bytes(MIB))
    await trio.sleep(10 * LONG_ENOUGH_S)
    assert volume.stored_count() == count
    nursery.cancel_scope.cancel()
    volume.close()


async def test_what_is_read_back_does_not_stay_memory_of_this_process(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path, capacity_bytes=64 * MIB, memory_bytes=0)
    await nursery.start(volume.run)
    for number in range(32):
        volume.stage(request(number), bytes(MIB))
    await trio.sleep(10 * LONG_ENOUGH_S)
    for staged in volume.pending():
        assert staged.data is None
        assert volume.data_of(staged) == bytes(MIB)
    assert resident_bytes(tmp_path / "communication" / "data.mdb") <= 10 * MIB
    nursery.cancel_scope.cancel()
    volume.close()


@pytest.mark.parametrize("meta_page", [True, False], ids=["meta page", "map full"])
def test_a_commit_that_failed_at_its_last_page_is_in_doubt_and_no_other(
    tmp_path: Path, meta_page: bool
) -> None:
    volume = opened(tmp_path, capacity_bytes=0)
    if meta_page:
        _fail_to_write_meta_pages(tmp_path / "communication" / "data.mdb")
    entry = (1, encode(request(1)), bytes(10 if meta_page else 80 * MIB))
    expected = [StoreInDoubt, DiskFailed] if meta_page else [DiskFailed, DiskFailed]
    for error in expected:
        with pytest.raises(DiskFailed) as caught:
            volume._store_blocking([entry], [])
        assert caught.type is error
    volume.close()


def _fail_to_write_meta_pages(path: Path) -> None:
    """LMDB has a descriptor of its own for them, by which each write is synced."""
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            descriptor = int(each.name)
            if each.readlink() == path and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DSYNC:
                only_read = os.open(path, os.O_RDONLY)
                os.dup2(only_read, descriptor)
                os.close(only_read)


def test_it_is_found_by_its_name_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was acknowledged in it stands in a file of which the directory is to tell."""
    synced: list[tuple[Path, bool]] = []

    def sync_noted(directory: Path) -> None:
        synced.append((directory, (tmp_path / "communication" / "data.mdb").exists()))
        sync_directory(directory)

    monkeypatch.setattr(lmdb_volume, "sync_directory", sync_noted)
    opened(tmp_path).close()
    assert synced == [(tmp_path / "communication", True), (tmp_path, True)]


def test_what_it_shows_as_it_is_opened_is_what_a_power_cut_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the meta page of a commit could not be synced the disk may have another than the page cache."""
    called: list[str] = []

    class Noted:
        def __init__(self, *args: Any, **named: Any) -> None:
            self._environment = real_open(*args, **named)

        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(self._environment, name)

    real_open = lmdb.open
    monkeypatch.setattr(lmdb, "open", Noted)
    opened(tmp_path).close()
    assert called[:2] == ["sync", "begin"]


def test_what_fails_while_it_is_opened_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(lmdb_volume, "sync_directory", fail)
        with pytest.raises(OSError, match="Input/output"):
            opened(tmp_path)
    opened(tmp_path).close()


def test_what_cannot_be_opened_is_an_error_of_the_disk(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "communication" / "data.mdb").write_bytes(b"not LMDB at all" * 1000)
    with pytest.raises(DiskFailed, match="communication"):
        opened(tmp_path)


def test_a_disk_that_failed_in_the_last_step_of_a_transaction_is_one_that_failed(
    volume: LmdbCommunicationVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB begins no transaction any more."""

    class Panicked:
        def begin(self, **_: bool) -> None:
            raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC")

    monkeypatch.setattr(volume, "_environment", Panicked())
    with pytest.raises(DiskFailed, match="MDB_PANIC"):
        volume._store_blocking([], [])
    with pytest.raises(OSError, match="MDB_PANIC") as caught:
        volume._read(1, 0, 1)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
