"""A volume as a whole: changes, reading, durability, and being killed between any two system calls."""

import errno
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.change import (
    ALLOCATION_MODES,
    KEEP_SIZE,
    NEWEST_TAG,
    PUNCH_HOLE,
    ZERO_RANGE,
    NamespaceChange,
    Table,
    TruncateChange,
    WriteChange,
)
from fusemirror.errors import (
    DiskFailed,
    DiskFull,
    FusemirrorError,
    OperationFailed,
    SequenceGap,
    VolumeDamaged,
    VolumeError,
    VolumeFormat,
    VolumeInUse,
    VolumeMissing,
)
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import CLOCK_DIFFERENCE_MAX_S, JOURNAL_BYTES_MAX, KIB, MIB, REGION_BYTES
from fusemirror.volume import durable, unsynced
from fusemirror.volume import images as images_module
from fusemirror.volume.entries import inode_key
from fusemirror.volume.identity import Shutdown
from fusemirror.volume.inode import Inode
from fusemirror.volume.journal import Journal
from fusemirror.volume.region_set import RegionSet
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY
from tests.volume.conftest import (
    IDENTITY,
    Writer,
    contents_of,
    counting_seams,
    inode_count,
    problems_of,
    put_inode,
    rows_of,
)

Step = Callable[[Writer], Any]

R1, R2, R3 = (RequestId(b"request%d........" % n) for n in (1, 2, 3))


def killed(volume: Volume) -> Writer:
    """The volume as the next process opens it after this one was killed."""
    volume.abandon()
    return Writer(Volume.open(volume.directory, counting_seams()))


# --- making and opening ---------------------------------------------------------------------------------


def request_in_doubt(volume: Volume) -> RequestId:
    change = volume.recovery.change_in_doubt
    return NO_REQUEST if change is None else change.request


def test_a_volume_is_made_in_an_empty_directory_only(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(VolumeError, match="not empty"):
        Volume.create(tmp_path, IDENTITY)
    assert os.listdir(tmp_path) == ["mine"]


def test_a_volume_is_open_once_at_a_time(directory: Path) -> None:
    volume = Volume.open(directory)
    with pytest.raises(VolumeInUse):
        Volume.open(directory)
    volume.close()
    Volume.open(directory).close()


def test_a_directory_that_is_no_volume_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing):
        Volume.open(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("part", ["journal", "images", "regions", "catalog"])
def test_a_missing_part_is_damage_and_leaves_the_volume_unlocked(directory: Path, part: str) -> None:
    (directory / part).rename(directory / "elsewhere")
    for _ in range(2):
        with pytest.raises(VolumeDamaged, match=part):
            Volume.open(directory)
    (directory / "elsewhere").rename(directory / part)
    Volume.open(directory).close()


def test_a_volume_closed_in_good_order_needs_no_recovery(directory: Path) -> None:
    volume = Volume.open(directory)
    assert volume.recovery.clean
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"data")
    rows, number = rows_of(volume), volume.number
    volume.close()
    volume = Volume.open(directory)
    assert volume.recovery == replace(volume.recovery, clean=True, same_boot=True, replayed=0, cut_bytes=0)
    assert (rows_of(volume), volume.number) == (rows, number)
    volume.close()


def test_the_identity_is_changed_durably(directory: Path) -> None:
    volume = Volume.open(directory)
    volume.update_identity(role="backup", complete=False)
    volume.abandon()
    volume = Volume.open(directory)
    assert (volume.identity.role, volume.identity.complete) == ("backup", False)
    volume.close()


# --- changes --------------------------------------------------------------------------------------------


def test_data_can_be_read_where_it_was_written(writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 10, b"0123456789")
    assert writer.content(inode) == bytes(10) + b"0123456789"
    assert writer.volume.read(inode, 12, 3) == b"234"
    assert writer.volume.read(inode, 18, 100) == b"89"
    assert writer.volume.read(inode, 20, 1) == b""
    found = writer.inode(inode)
    assert found.size == 20
    assert found.mtime_ns == found.ctime_ns > found.atime_ns


def test_a_read_never_goes_beyond_the_size_and_never_falls_short_of_it(writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"0123456789")
    writer.truncate(inode, 4)
    writer.truncate(inode, 8)
    assert writer.content(inode) == b"0123\0\0\0\0"
    writer.volume.images.cut(inode, 2)
    assert writer.content(inode) == b"01\0\0\0\0\0\0"
    writer.volume.images.truncate(inode, 20, 1)
    assert len(writer.content(inode)) == 8
    writer.volume.images.cut(inode, 8)


def test_numbers_must_grow(writer: Writer) -> None:
    inode = writer.create(b"a")
    number = writer.write(inode, 0, b"x")
    volume = writer.volume
    for change in (
        WriteChange(number, NO_REQUEST, 1, inode, 0, 1),
        TruncateChange(number, NO_REQUEST, 1, inode, 0),
        NamespaceChange(number, NO_REQUEST, 1, inode, ()),
    ):
        with pytest.raises(SequenceGap):
            volume.apply(change, b"y")
    assert writer.content(inode) == b"x"


def test_data_of_an_inode_that_is_not_there_is_stale(writer: Writer) -> None:
    gone = InodeNumber(99)
    changes: list[Step] = [lambda w: w.write(gone, 0, b"x", R1), lambda w: w.truncate(gone, 0)]
    for change in changes:
        with pytest.raises(OperationFailed) as raised:
            change(writer)
        assert raised.value.errno == errno.ESTALE
    with pytest.raises(OperationFailed):
        writer.volume.read(gone, 0, 1)
    assert (writer.volume.number, writer.volume.journal.last_number) == (0, 0)
    assert not writer.volume.images.exists(gone)


def test_a_write_must_come_with_its_bytes(writer: Writer) -> None:
    inode = writer.create(b"a")
    with pytest.raises(FusemirrorError, match="3 of 4 bytes"):
        writer.volume.apply(WriteChange(ChangeNumber(9), NO_REQUEST, 1, inode, 0, 4), b"abc")
    assert writer.content(inode) == b""


def test_malformed_rows_reach_neither_journal_nor_catalog(writer: Writer) -> None:
    rows = rows_of(writer.volume)
    with pytest.raises(FusemirrorError, match="no catalog can hold"):
        writer.namespace((Table.XATTRS, b"good key", b""), (Table.INODES, b"bad", b"bad"))
    assert rows_of(writer.volume) == rows
    assert writer.volume.journal.last_number == 0


def test_changed_tells_the_last_change_of_an_inode(writer: Writer) -> None:
    inode = writer.create(b"a")
    volume = writer.volume
    changes: list[Callable[[], Any]] = [
        lambda: writer.write(inode, 0, b"x"),
        lambda: writer.truncate(inode, 0),
        lambda: writer.chmod(inode, 0o600),
    ]
    for change in changes:
        change()
        assert writer.inode(inode).changed == volume.number


def test_every_region_that_a_change_may_alter_is_marked(writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, REGION_BYTES - 1, b"xx")
    assert writer.volume.regions.marks() == {inode: RegionSet([(0, 2)])}
    writer.volume.drop_marks(writer.volume.regions.rotate())
    writer.truncate(inode, 3 * REGION_BYTES)
    assert writer.volume.regions.marks() == {inode: RegionSet([(1, 2)])}, "its size alone"
    writer.volume.drop_marks(writer.volume.regions.rotate())
    writer.truncate(inode, 5)
    assert writer.volume.regions.marks() == {inode: RegionSet([(0, 3)])}
    writer.truncate(inode, 5)
    writer.truncate(inode, 0)
    assert writer.volume.regions.marks()[inode].covers(0, 1)


def test_time_never_stands_still_over_restarts_and_clocks_set_back(directory: Path) -> None:
    clock = [5_000_000_000]
    seams = replace(counting_seams(), now_ns=lambda: clock[0])
    volume = Volume.open(directory, seams)
    writer = Writer(volume)
    inode = writer.create(b"a")
    first = writer.inode(inode).ctime_ns
    clock[0] = 1
    assert volume.clock.next_ns() > first
    volume.commit()
    writer.write(inode, 0, b"x")
    last = writer.inode(inode).ctime_ns
    volume.abandon()
    volume = Volume.open(directory, seams)
    assert volume.clock.next_ns() > last
    volume.close()


# --- a clock that was wrong ------------------------------------------------------------------------------

YEAR_NS = 365 * 86_400 * 10**9
RIGHT_NS = 57 * YEAR_NS


class WrongClock:
    """A volume that was changed at a wrong clock, and then followed the right one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock_ns = RIGHT_NS + 73 * YEAR_NS
        self.writer = self.open()
        self.file = self.writer.create(b"file")
        self.writer.write(self.file, 0, b"of the future")
        self.wrong_ns = self.writer.inode(self.file).mtime_ns

    def open(self) -> Writer:
        def now_ns() -> int:
            self.clock_ns += 1000
            return self.clock_ns

        return Writer(Volume.open(self.directory, replace(counting_seams(), now_ns=now_ns)))

    def repair(self) -> None:
        """The clock is right, and the first change says so."""
        volume = self.writer.volume
        self.clock_ns = RIGHT_NS
        set_back = volume.clock.set_back()
        assert set_back is not None
        row, time_ns = set_back
        number = ChangeNumber(volume.number + 1)
        volume.apply(NamespaceChange(number, NO_REQUEST, time_ns, InodeNumber(0), (row,)))

    def kill(self) -> None:
        self.writer.volume.abandon()
        self.writer = self.open()

    def times(self) -> tuple[int, int]:
        inode = self.writer.inode(self.file)
        return inode.mtime_ns, inode.ctime_ns


@pytest.fixture
def wrong(directory: Path) -> Iterator[WrongClock]:
    made = WrongClock(directory)
    yield made
    made.writer.volume.close()


def test_a_small_step_of_the_clock_is_waited_out(directory: Path) -> None:
    wrong = WrongClock(directory)
    wrong.clock_ns -= round(CLOCK_DIFFERENCE_MAX_S * 10**9) // 2
    assert wrong.writer.volume.clock.set_back() is None
    assert wrong.writer.volume.clock.next_ns() > wrong.wrong_ns
    wrong.writer.volume.close()


def test_a_time_of_a_wrong_clock_that_no_change_got_is_forgotten(directory: Path) -> None:
    clock = [RIGHT_NS + YEAR_NS]
    volume = Volume.open(directory, replace(counting_seams(), now_ns=lambda: clock[0]))
    assert volume.clock.next_ns() == RIGHT_NS + YEAR_NS
    clock[0] = RIGHT_NS
    assert volume.clock.behind_s() < 0
    assert volume.clock.next_ns() == RIGHT_NS
    volume.close()


def test_changes_follow_the_clock_again_over_restarts_too(wrong: WrongClock) -> None:
    wrong.repair()
    times = []
    for name in (b"a", b"b"):
        times.append(wrong.writer.inode(wrong.writer.create(name)).ctime_ns)
        wrong.kill()
        assert wrong.writer.volume.clock.set_back() is None
    assert RIGHT_NS < times[0] < times[1] < RIGHT_NS + YEAR_NS
    assert wrong.times() == (wrong.wrong_ns, wrong.wrong_ns), "what was changed then stays so"


def test_a_killed_process_leaves_the_times_of_after_the_clock_was_set_back(wrong: WrongClock) -> None:
    other = wrong.writer.create(b"other")
    wrong.writer.write(other, 0, b"of the future")
    mtime_ns = wrong.writer.inode(other).mtime_ns
    wrong.repair()
    wrong.writer.write(wrong.file, 0, b"of today")
    wrong.writer.chmod(other, 0o600)
    before, chmodded_ns = wrong.times(), wrong.writer.inode(other).ctime_ns
    assert before < (RIGHT_NS + YEAR_NS, 0)
    wrong.kill()
    assert wrong.times() == before
    assert (wrong.writer.inode(other).mtime_ns, wrong.writer.inode(other).ctime_ns) == (mtime_ns, chmodded_ns)


@pytest.mark.parametrize("done", [True, False])
def test_a_request_is_not_judged_by_a_time_of_before(wrong: WrongClock, *, done: bool) -> None:
    wrong.repair()
    wrong.writer.chmod(wrong.file, 0o600)  # so the row says nothing of the future any more
    path = wrong.directory / "images" / "0" / f"{wrong.file:x}"
    images = wrong.writer.volume.images

    class Killed(BaseException):
        pass

    def killed_before(*_: object) -> None:
        raise Killed

    if done:
        wrong.writer.write(wrong.file, 0, b"OF", R1)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "write", killed_before)
            with pytest.raises(Killed):
                wrong.writer.write(wrong.file, 0, b"OF", R1)
        assert path.stat().st_atime_ns < RIGHT_NS + YEAR_NS
    wrong.kill()
    assert (R1 in wrong.writer.volume.requests_done) is done
    assert wrong.writer.content(wrong.file)[:2] == (b"OF" if done else b"of")


def test_a_write_that_waits_shows_the_time_of_this_host(directory: Path) -> None:
    wrong = WrongClock(directory)
    first, second = wrong.writer.volume.clock.staging_ns(), wrong.writer.volume.clock.staging_ns()
    assert wrong.wrong_ns < first < second
    wrong.clock_ns -= 10**9
    assert wrong.writer.volume.clock.staging_ns() == second + 1
    wrong.clock_ns = RIGHT_NS
    assert RIGHT_NS < wrong.writer.volume.clock.staging_ns() < RIGHT_NS + YEAR_NS
    wrong.writer.volume.close()


def test_numbers_can_be_left_out(writer: Writer) -> None:
    writer.volume.advance(ChangeNumber(50))
    writer.volume.advance(ChangeNumber(3))
    writer.create(b"a")
    assert writer.volume.number == 51


# --- a full or failing disk -------------------------------------------------------------------------------


def full_disk(*_arguments: Any, **_more: Any) -> int:
    raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("call", ["pwrite", "write"])
@pytest.mark.parametrize("request_id", [NO_REQUEST, R1])
def test_a_write_that_fails_did_not_happen(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str, request_id: RequestId
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"old")
    writer.volume.drop_marks(writer.volume.regions.rotate())
    volume, before = writer.volume, rows_of(writer.volume)
    number, journal_number = volume.number, volume.journal.last_number
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="full"):
        writer.write(inode, 3, b"more", request_id)
    monkeypatch.undo()
    assert (volume.number, volume.journal.last_number, volume.requests_done) == (number, journal_number, {})
    assert rows_of(volume) == before
    assert volume.images.size(inode) == 3
    assert writer.write(inode, 3, b"again", request_id) == number + 1
    again = killed(volume)
    assert again.content(inode) == b"oldagain"
    assert again.volume.recovery.cut_bytes == 0
    assert (request_id in again.volume.requests_done) is (request_id != NO_REQUEST)
    again.volume.close()


@pytest.mark.parametrize("request_id", [NO_REQUEST, R1])
def test_a_write_whose_times_a_full_disk_refuses_is_done(
    directory: Path, monkeypatch: pytest.MonkeyPatch, request_id: RequestId
) -> None:
    """Its bytes are in the place of others: nobody can take them back."""
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"old")
    volume = writer.volume
    monkeypatch.setattr(os, "utime", full_disk)
    number = writer.write(inode, 1, b"new", request_id)
    monkeypatch.undo()
    assert volume.number == number
    assert writer.inode(inode).size == 4
    again = killed(volume)
    assert again.content(inode) == b"onew"
    assert again.volume.recovery.change_in_doubt is None
    assert (request_id in again.volume.requests_done) is (request_id != NO_REQUEST)
    again.volume.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_what_a_failed_write_left_behind_the_end_does_not_outlive_a_close_in_good_order(
    directory: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """It would show here, and not at the peer, once the file grows over it."""
    writer = Writer(Volume.open(directory, counting_seams()))
    volume, inode = writer.volume, writer.create(b"a")
    volume.commit()

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    pwrite = os.pwrite

    def begins(descriptor: int, data: bytes, offset: int) -> int:
        if offset:
            failing()
        return pwrite(descriptor, data, offset) - 1

    with monkeypatch.context() as patching:
        patching.setattr(os, "ftruncate", failing)
        patching.setattr(os, "pwrite", begins)
        with pytest.raises(OSError, match=os.strerror(error)):
            writer.write(inode, 0, b"abc")
    assert volume.health.failure is not None
    assert volume.images.size(inode) == 3
    volume.close()
    again = Volume.open(directory, counting_seams())
    found = again.catalog.inode(inode)
    assert found is not None
    assert found.size == again.images.size(inode)
    assert again.regions.has(inode), "the peer's copy is compared with it"
    again.close()
    clean = Volume.open(directory, counting_seams())
    assert clean.recovery.clean
    clean.close()


def test_an_error_of_the_disk_in_trimming_the_journal_is_heard_of(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = writer.volume

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(volume.journal, "trim", broken)
    with pytest.raises(OSError, match="broken"):
        volume.syncing.trim(volume.number)
    assert volume.health.failure is not None


def test_a_commit_that_fails_loses_nothing_and_succeeds_later(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    first = writer.create(b"first")
    volume.commit()
    writer.write(first, 0, b"0123456789")
    second = writer.create(b"second")
    writer.write(second, 0, b"abc")
    writer.chmod(first, 0o600)
    writer.write(first, 10, b"x")
    before = rows_of(volume)
    _fail_one_commit(volume, monkeypatch)
    with pytest.raises(DiskFailed):
        volume.commit()
    assert rows_of(volume) == before
    third = writer.create(b"third")
    volume.commit()
    after = rows_of(volume)
    volume.abandon()
    volume = Volume.open(directory)
    assert rows_of(volume) == after
    assert third in {inode.number for inode in volume.catalog.tables.inodes()}
    volume.close()


def test_what_was_copied_from_the_peer_outlives_a_commit_that_fails(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    number = writer.create(b"first")
    volume.commit()
    copied = writer.inode(number).copy()
    copied.uid = 4711
    volume.copy_rows([(Table.INODES, inode_key(number), copied.pack())])
    before = rows_of(volume)
    _fail_one_commit(volume, monkeypatch)
    with pytest.raises(DiskFailed):
        volume.commit()
    assert writer.inode(number).uid == 4711
    assert rows_of(volume) == before
    volume.close()


@pytest.mark.expects_warnings
def test_a_change_that_applied_is_no_failure_because_the_commit_after_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    volume._parts.commits.due_at = 1
    _fail_one_commit(volume, monkeypatch)
    inode = writer.create(b"a")
    assert writer.inode(inode).nlink == 1
    assert volume.catalog.number == 0
    writer.create(b"b")
    assert volume.catalog.number == 0, "not tried again with every change"
    volume.commit()
    assert volume.catalog.number == 2
    volume.close()


def _fail_one_commit(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: Any) -> None:
        monkeypatch.undo()
        volume.catalog.cache.flush()
        volume.catalog._store.txn.abort()
        raise DiskFull(volume.directory, "full")

    monkeypatch.setattr(volume.catalog, "commit", failing)


# --- durability -------------------------------------------------------------------------------------------


class Synced:
    """Which files were synced, by their names in the volume."""

    def __init__(self, directory: Path) -> None:
        self.names: list[str] = []
        self._directory = directory

    def __call__(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.names.append(str(path.relative_to(self._directory)))


async def test_flush_syncs_the_image_and_the_journal_and_then_has_nothing_to_do(directory: Path) -> None:
    synced = Synced(directory)
    volume = Volume.open(directory, replace(counting_seams(), fdatasync=synced))
    writer = Writer(volume)
    inode, other = writer.create(b"a"), writer.create(b"b")
    writer.write(inode, 0, b"x")
    writer.write(other, 0, b"x")
    await volume.syncing.flush(inode)
    assert synced.names == [f"images/0/{inode:x}", "journal/0000000000000001.log"]
    await volume.syncing.flush(inode)
    await volume.syncing.flush(InodeNumber(0))
    assert len(synced.names) == 2
    writer.create(b"c")
    await volume.syncing.flush(InodeNumber(0))
    assert synced.names[2:] == ["journal/0000000000000001.log"]
    assert set(volume.images.unsynced.dirty) == {other}
    volume.close()


@pytest.mark.parametrize("what", ["flush", "make_durable", "close"])
async def test_what_a_killed_process_wrote_is_made_durable_by_the_next_sync(
    directory: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write was acknowledged and its mount killed: an fsync over the next mount covers it all the same."""
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    inode, untouched = writer.create(b"a"), writer.create(b"b")
    writer.write(inode, 0, b"x")
    volume.files.prepare(untouched)
    volume.abandon()
    synced = Synced(directory)
    with monkeypatch.context() as patching:
        patching.setattr(os, "fsync", synced)  # of directories
        volume = Volume.open(directory, replace(counting_seams(), fdatasync=synced, fsync=synced))
    assert {"images/0", "images"} <= set(synced.names), "an image whose name is lost is lost"
    synced.names.clear()
    if what == "flush":
        await volume.syncing.flush(inode)
    elif what == "make_durable":
        await volume.make_durable()
    else:
        volume.close()
    assert f"images/0/{inode:x}" in synced.names
    assert f"images/0/{untouched:x}" not in synced.names
    if what != "close":
        volume.close()


async def test_where_marks_are_lost_every_image_of_a_killed_process_is_synced(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    volume.abandon()
    [marks] = [path for path in (directory / "regions").iterdir() if path.stat().st_size]
    marks.write_bytes(bytes(marks.stat().st_size))
    synced = Synced(directory)
    volume = Volume.open(directory, replace(counting_seams(), fdatasync=synced, fsync=synced))
    await volume.syncing.flush(inode)
    assert f"images/0/{inode:x}" in synced.names
    volume.close()


async def test_make_durable_syncs_everything_and_tells_the_number(directory: Path) -> None:
    synced = Synced(directory)
    volume = Volume.open(directory, replace(counting_seams(), fdatasync=synced))
    writer = Writer(volume)
    inodes = [writer.create(b"%d" % n) for n in range(3)]
    for inode in inodes:
        writer.write(inode, 0, b"x")
    assert await volume.make_durable() == volume.number
    assert set(synced.names) == {*(f"images/0/{inode:x}" for inode in inodes), "journal/0000000000000001.log"}
    assert not volume.images.unsynced.dirty
    count = len(synced.names)
    assert await volume.make_durable() == volume.number
    assert len(synced.names) == count
    volume.close()


async def test_what_a_copy_discarded_is_freed_when_names_are_durable(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.files.removal.free_discarded)
            await trio.testing.wait_all_tasks_blocked()
            volume.images.discard(inode)  # as a copied piece of the catalog does, in which it is not
            await volume.files.removal.remove()
    assert volume.images.discarded.is_empty
    volume.abandon()


def test_a_close_makes_durable_the_names_of_images_that_nobody_wrote_to(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume.open(directory, counting_seams())
    volume.files.prepare(Writer(volume).create(b"a"))
    synced: list[str] = []
    monkeypatch.setattr(unsynced, "sync_directory", lambda path: synced.append(os.fspath(path)))
    volume.close()
    assert synced == [f"{directory}/images/0"]


async def test_many_images_are_synced_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    for n in range(40):
        writer.write(writer.create(b"%d" % n), 0, b"x")
    calls: list[str] = []
    monkeypatch.setattr(volume.images.unsynced, "sync_filesystem", lambda: calls.append("all"))
    monkeypatch.setattr(volume.images.unsynced, "sync", lambda inode: calls.append(inode))
    await volume.make_durable()
    assert calls == ["all"]
    volume.close()


async def test_what_changed_while_a_sync_ran_is_synced_by_the_next(directory: Path) -> None:
    async def write_meanwhile(function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        writer.write(inode, 0, b"y")
        writer.create(b"b")
        return result

    volume = Volume.open(directory, replace(counting_seams(), run_blocking=write_meanwhile))
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    before = volume.number
    assert await volume.make_durable() == before
    assert inode in volume.images.unsynced.dirty
    assert not volume.journal.is_durable
    volume.close()


async def test_the_image_of_a_purged_inode_goes_though_it_was_looked_at_again(
    directory: Path,
) -> None:
    looks = True

    async def look_before(function: Callable[..., Any], *arguments: Any) -> Any:
        if looks and volume.images.exists(inode):
            volume.images.content.piece(inode, 0, 1)
        return function(*arguments)

    volume = Volume.open(directory, replace(counting_seams(), run_blocking=look_before))
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    writer.unlink(b"a")
    writer.purge(inode)
    await volume.make_durable()
    assert volume.images.exists(inode)
    looks = False
    await volume.make_durable()
    assert not volume.images.exists(inode)
    volume.close()


async def test_a_sync_that_failed_leaves_the_image_dirty(directory: Path) -> None:
    failing = [True]

    def fdatasync(_descriptor: int) -> None:
        if failing[0]:
            raise OSError(errno.EIO, "lost")

    volume = Volume.open(directory, replace(counting_seams(), fdatasync=fdatasync))
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    for sync in (lambda: volume.syncing.flush(inode), volume.make_durable):
        with pytest.raises(OSError, match="lost"):
            await sync()
        assert inode in volume.images.unsynced.dirty
    failing[0] = False
    await volume.syncing.flush(inode)
    assert not volume.images.unsynced.dirty
    volume.close()


def test_the_catalog_is_never_durable_before_the_journal(directory: Path) -> None:
    synced = Synced(directory)
    volume = Volume.open(directory, replace(counting_seams(), fdatasync=synced))
    Writer(volume).create(b"a")
    volume.commit()
    assert synced.names == ["journal/0000000000000001.log"]
    volume.commit()
    assert len(synced.names) == 1
    volume.close()


async def test_an_image_is_removed_once_the_record_that_says_so_is_durable(writer: Writer) -> None:
    volume = writer.volume
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    writer.unlink(b"a")
    assert volume.catalog.orphans() == [inode]
    assert writer.content(inode) == b"x"
    writer.purge(inode)
    assert volume.images.exists(inode)
    await volume.make_durable()
    assert not volume.images.exists(inode)
    assert not volume.regions.has(inode)
    assert not volume.images.unsynced.dirty


@pytest.mark.parametrize("commits", [False, True])
def test_an_image_whose_removal_was_killed_is_removed_by_the_next_opening(
    directory: Path, commits: bool
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x")
    writer.unlink(b"a")
    writer.purge(inode)
    if commits:
        writer.volume.commit()
    writer.volume.syncing.trim(writer.volume.number)
    writer = killed(writer.volume)
    assert not writer.volume.images.exists(inode)
    writer.volume.close()


def test_records_are_kept_for_the_peer_the_catalog_and_images_to_be_removed(writer: Writer) -> None:
    volume = writer.volume
    big = [(Table.META, b"note %d" % index, bytes(64 * KIB)) for index in range(7)]

    def records() -> int:
        return volume.journal.first_number

    def fill() -> None:
        for _ in range(9):
            writer.namespace(*big)

    fill()
    volume.syncing.trim(volume.number)
    assert records() == 1, "the catalog does not hold them"
    volume.commit()
    volume.syncing.trim(ChangeNumber(3))
    assert records() == 1, "the peer does not have them"
    inode = writer.create(b"a")
    writer.unlink(b"a")
    writer.purge(inode)
    purge_number = volume.number
    fill()
    volume.commit()
    volume.syncing.trim(volume.number)
    assert records() <= purge_number, "the image is still there"
    for _ in range(16):
        fill()
    volume.commit()
    volume.syncing.trim(ChangeNumber(0))
    assert records() <= purge_number
    volume.files.removal.forget()
    volume.syncing.trim(ChangeNumber(0))
    assert records() > purge_number, "a peer that missed too much gets the catalog"
    assert volume.journal.size_bytes <= JOURNAL_BYTES_MAX


# --- crashes ----------------------------------------------------------------------------------------------


def test_marks_are_dropped_only_once_the_catalog_knows_what_they_tell(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.volume.commit()
    writer.write(inode, 0, b"0123456789")
    before = rows_of(writer.volume)
    writer.volume.drop_marks(writer.volume.regions.rotate())
    writer = killed(writer.volume)
    assert writer.volume.regions.is_empty
    assert rows_of(writer.volume) == before
    writer.volume.close()


def test_whichever_of_catalog_and_image_changed_later_has_the_times(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    written_last, touched_last = writer.create(b"a"), writer.create(b"b")
    for inode in (written_last, touched_last):
        writer.write(inode, 0, b"x")
    changed = writer.inode(touched_last)
    changed.mtime_ns, changed.ctime_ns = 17, writer.volume.clock.next_ns()
    writer.namespace(put_inode(changed))
    writer.write(written_last, 1, b"y")
    before = rows_of(writer.volume)
    writer = killed(writer.volume)
    assert rows_of(writer.volume) == before
    assert writer.inode(touched_last).mtime_ns == 17
    writer.volume.close()


def test_a_power_cut_makes_everything_suspect_and_looks_at_every_image(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"0123456789")
    writer.volume.drop_marks(writer.volume.regions.rotate())
    writer.volume.images.truncate(inode, 4, 1)  # what the disk had not yet written is gone
    writer.volume.abandon()
    Shutdown(clean=False, boot_id="another").store(directory)
    writer = Writer(Volume.open(directory))
    assert not writer.volume.recovery.same_boot
    assert writer.volume.identity.compare_all
    assert writer.inode(inode).size == 4
    writer.volume.close()


def test_a_new_file_has_nothing_of_an_image_whose_file_a_power_cut_took(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    stray = writer.volume.catalog.next_inode
    writer.volume.images.write(stray, 0, b"of a file that is lost", 1)
    writer.volume.abandon()
    Shutdown(clean=False, boot_id="another").store(directory)
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    assert inode == stray
    writer.write(inode, 4, b"x")
    assert writer.content(inode) == b"\0\0\0\0x"
    assert (directory / "lost-images" / f"{stray:x}").read_bytes() == b"of a file that is lost"
    writer.volume.close()


def test_an_image_is_prepared_for_a_file_and_holds_nothing_of_its_own(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    volume, inode = writer.volume, writer.create(b"a")
    for prepared in (inode, ROOT_INODE, volume.catalog.next_inode):
        volume.files.prepare(prepared)
    assert list(volume.images.numbers()) == [inode]
    before = writer.inode(inode).mtime_ns
    writer = killed(volume)
    assert (writer.inode(inode).size, writer.inode(inode).mtime_ns) == (0, before)
    writer.write(inode, 2, b"x")
    writer.volume.files.prepare(inode)
    assert writer.content(inode) == b"\0\0x"
    writer.volume.close()


def test_an_image_that_cannot_be_prepared_is_left_to_the_write(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    (directory / "images" / "0").write_text("in the way")
    writer.volume.files.prepare(inode)
    assert writer.volume.health.failure is None
    with pytest.raises(NotADirectoryError):
        writer.write(inode, 0, b"x")
    (directory / "images" / "0").unlink()
    writer.write(inode, 0, b"x")
    assert writer.content(inode) == b"x"
    writer.volume.close()


def test_a_prepared_image_whose_file_a_power_cut_took_is_removed(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    volume.images.prepare(volume.catalog.next_inode)
    volume.abandon()
    Shutdown(clean=False, boot_id="another").store(directory)
    volume = Volume.open(directory, counting_seams())
    assert not list(volume.images.numbers())
    assert not (directory / "lost-images").exists()
    volume.close()


def test_a_record_that_is_taken_back_is_not_missed_later(directory: Path) -> None:
    """Its catalog row of size, too, follows the image that is cut."""
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"before", request=R1)
    writer.write(inode, 6, b" and after", request=R2)
    writer.volume.commit()
    writer.volume.regions.drop(writer.volume.regions.rotate())
    writer.volume.images.truncate(inode, 8, 1)  # what the disk had not yet written is gone
    writer = killed(writer.volume)
    assert request_in_doubt(writer.volume) == R2
    assert writer.inode(inode).size == 6
    assert writer.volume.catalog.journal_number == writer.volume.journal.last_number
    writer.volume.close()


async def test_the_times_that_a_record_is_judged_by_are_durable_with_the_data(directory: Path) -> None:
    synced: list[str] = []
    seams = replace(counting_seams(), fsync=functools.partial(_note_synced, synced))
    writer = Writer(Volume.open(directory, seams))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"a")
    await writer.volume.syncing.flush(inode)
    image = str(writer.volume.images.path(inode))
    assert image not in synced
    writer.write(inode, 0, b"b", request=R1)
    await writer.volume.syncing.flush(inode)
    writer.write(inode, 0, b"c")
    await writer.volume.syncing.flush(inode)
    assert synced.count(image) == 1
    writer.volume.close()


def _note_synced(synced: list[str], descriptor: int) -> None:
    synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))


def test_a_host_that_was_restarted_in_good_order_is_not_suspect(directory: Path) -> None:
    Shutdown(clean=True, boot_id="another").store(directory)
    volume = Volume.open(directory)
    assert not volume.identity.compare_all
    volume.close()


def test_unreadable_marks_make_everything_suspect(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"0123456789")
    writer.volume.abandon()
    (path,) = (directory / "regions").iterdir()
    path.write_bytes(bytes(24))
    writer = Writer(Volume.open(directory))
    assert writer.volume.identity.compare_all
    assert writer.inode(inode).size == 10
    writer.volume.close()


@pytest.mark.expects_warnings
def test_a_journal_that_lost_what_the_catalog_holds_begins_again_behind_it(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    for name in (b"a", b"b", b"c"):
        writer.create(name)
    number = writer.volume.number
    writer.volume.close()
    path = directory / "journal" / "0000000000000001.log"
    path.write_bytes(path.read_bytes()[:-1])
    volume = Volume.open(directory)
    assert volume.recovery.cut_bytes > 0
    assert volume.identity.compare_all
    assert (volume.number, volume.journal.last_number, volume.journal.first_number) == (
        number,
        number,
        number + 1,
    )
    assert volume.catalog.entry(ROOT_INODE, b"c") is not None
    volume.close()


class InDoubt(NamedTuple):
    """The last journalled change, what became of its image before the kill, and what that means."""

    image: bytes
    image_time: str  # of the change, or of the one before
    took_effect: bool
    recovered: bytes


@pytest.mark.parametrize(
    ("offset", "case"),
    [
        (4, InDoubt(b"base", "before", False, b"base")),
        (4, InDoubt(b"baseAP", "before", False, b"base")),
        (4, InDoubt(b"baseAPPEND", "before", True, b"baseAPPEND")),
        (4, InDoubt(b"baseAPPEND", "change", True, b"baseAPPEND")),
        (2, InDoubt(b"base", "before", False, b"base")),
        (2, InDoubt(b"baAP", "before", False, b"baAP")),
        (2, InDoubt(b"baAPPE", "before", False, b"baAP")),
        (2, InDoubt(b"baAPPEND", "before", True, b"baAPPEND")),
        (9, InDoubt(b"base", "before", False, b"base")),
        (9, InDoubt(b"base\0\0\0\0\0APP", "before", False, b"base")),
        (9, InDoubt(b"base\0\0\0\0\0APPEND", "before", True, b"base\0\0\0\0\0APPEND")),
    ],
    ids=str,
)
def test_the_last_request_is_done_or_undone(directory: Path, offset: int, case: InDoubt) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"base")
    before = writer.inode(inode).ctime_ns
    number = writer.write(inode, offset, b"APPEND", R1)
    after = writer.inode(inode).ctime_ns
    writer.volume.abandon()
    path = directory / "images" / "0" / f"{inode:x}"
    path.write_bytes(case.image)
    time_ns = before if case.image_time == "before" else after
    os.utime(path, ns=(time_ns, time_ns))
    for _ in range(2):
        writer = Writer(Volume.open(directory, counting_seams()))
        assert (R1 in writer.volume.requests_done) is case.took_effect
        assert writer.content(inode) == case.recovered
        assert writer.inode(inode).ctime_ns == (after if case.took_effect else before)
        writer.create(b"other%d" % writer.volume.number)  # an undone record must not stand behind this one
        assert writer.volume.number > number
        writer.volume.abandon()


def test_a_record_of_a_kind_that_only_a_later_version_knows_says_so(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.volume.abandon()
    journal = Journal(directory / "journal", counting_seams())
    payload = msgspec.msgpack.encode([NEWEST_TAG + 1, journal.last_number + 1, b"", 1, inode, "unheard of"])
    journal.append(ChangeNumber(journal.last_number + 1), payload)
    journal.close()
    with pytest.raises(
        VolumeFormat, match=f"format {NEWEST_TAG + 1} of its changes.*knows format {NEWEST_TAG}"
    ):
        Volume.open(directory, counting_seams())
    journal = Journal(directory / "journal", counting_seams())
    journal.retract(journal.last_number)
    journal.close()


@pytest.mark.parametrize(
    ("image", "image_time", "took_effect", "recovered"),
    [
        (b"content", "before", False, b"content"),
        (b"con\0\0\0\0", "before", False, b"con\0\0\0\0"),
        (b"con\0\0\0\0\0\0", "before", False, b"con\0\0\0\0"),
        (b"con\0\0\0\0\0\0", "change", True, b"con\0\0\0\0\0\0"),
    ],
)
def test_an_allocation_that_a_kill_cut_short_may_be_asked_for_again(
    directory: Path, image: bytes, image_time: str, took_effect: bool, recovered: bytes
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"content")
    before = writer.inode(inode).ctime_ns
    writer.allocate(inode, 3, 9, ZERO_RANGE, R1)
    after = writer.inode(inode).ctime_ns
    assert writer.content(inode) == b"con" + bytes(6)
    writer.volume.abandon()
    path = directory / "images" / "0" / f"{inode:x}"
    path.write_bytes(image)
    time_ns = before if image_time == "before" else after
    os.utime(path, ns=(time_ns, time_ns))
    for _ in range(2):
        writer = Writer(Volume.open(directory, counting_seams()))
        assert (R1 in writer.volume.requests_done) is took_effect
        assert writer.content(inode) == recovered
        assert writer.inode(inode).ctime_ns == (after if took_effect else before)
        assert inode in writer.volume.regions.inodes()
        writer.volume.abandon()


@pytest.mark.parametrize("mode", sorted(ALLOCATION_MODES))
@pytest.mark.parametrize("native", [True, False], ids=["native", "emulated"])
def test_an_allocation_leaves_zeros_room_or_a_hole(
    directory: Path, monkeypatch: pytest.MonkeyPatch, mode: int, native: bool
) -> None:
    allocate = durable.allocate

    def without_zeroing(descriptor: int, how: int, offset: int, length: int) -> None:
        if how & ZERO_RANGE:
            raise OSError(errno.EOPNOTSUPP, "not on this disk")
        allocate(descriptor, how, offset, length)

    if not native:
        monkeypatch.setattr(images_module, "allocate", without_zeroing)
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"x" * 10_000)
    writer.allocate(inode, 4096, MIB, mode)
    for _ in range(2):
        size = 10_000 if mode & KEEP_SIZE else MIB
        zeros = mode & (PUNCH_HOLE | ZERO_RANGE)
        kept = b"x" * 4096 if zeros else b"x" * 10_000
        assert writer.content(inode) == kept.ljust(size, b"\0")
        assert (writer.volume.images.content.data_bytes(inode) >= MIB) is not (mode & PUNCH_HOLE > 0)
        writer = killed(writer.volume)
    writer.volume.close()


@pytest.mark.parametrize(
    ("image", "image_time", "took_effect", "recovered"),
    [
        (b"content", "before", False, b"content"),
        (b"consour", "before", False, b"consour"),
        (b"consourc", "before", False, b"consour"),
        (b"consource", "change", True, b"consource"),
    ],
)
def test_a_copy_that_a_kill_cut_short_is_not_made_again_by_what_the_source_is_then(
    directory: Path, image: bytes, image_time: str, took_effect: bool, recovered: bytes
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode, source = writer.create(b"a"), writer.create(b"b")
    writer.write(inode, 0, b"content")
    writer.write(source, 0, b"the source")
    before = writer.inode(inode).ctime_ns
    writer.copy(inode, 3, 9, source, 4, R1)
    after = writer.inode(inode).ctime_ns
    assert writer.content(inode) == b"consource"
    writer.write(source, 0, b"as it is later")
    writer.volume.abandon()
    path = directory / "images" / "0" / f"{inode:x}"
    path.write_bytes(image)
    time_ns = before if image_time == "before" else after
    os.utime(path, ns=(time_ns, time_ns))
    for _ in range(2):
        writer = Writer(Volume.open(directory, counting_seams()))
        assert (R1 in writer.volume.requests_done) is took_effect
        assert writer.content(inode) == recovered
        assert inode in writer.volume.regions.inodes()  # it is compared
        writer.volume.abandon()


@pytest.mark.parametrize("native", [True, False], ids=["native", "through the process"])
@pytest.mark.parametrize("source_offset", [0, 1, 4096, MIB - 5])
def test_a_copy_has_the_holes_of_its_source_and_its_bytes(
    directory: Path, monkeypatch: pytest.MonkeyPatch, native: bool, source_offset: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not on this disk")

    if not native:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    writer = Writer(Volume.open(directory, counting_seams()))
    source, inode, nothing = writer.create(b"a"), writer.create(b"b"), writer.create(b"c")
    writer.write(source, MIB, b"x" * 5000)
    writer.write(source, 4 * MIB - 5, b"y" * 5000)
    writer.truncate(source, 8 * MIB)
    writer.write(inode, 0, b"z" * 3 * MIB)
    expected = bytearray(writer.content(inode))
    expected[3:] = writer.content(source)[source_offset : source_offset + 6 * MIB]
    writer.copy(inode, 3, 3 + 6 * MIB, source, source_offset)
    writer.copy(inode, 0, 3, nothing, 0)  # an image that is not there: a file of zeros, as far as we know
    expected[:3] = bytes(3)
    for _ in range(2):
        assert writer.content(inode) == bytes(expected)
        assert writer.volume.images.content.data_bytes(inode) < MIB
        writer = killed(writer.volume)
    writer.copy(source, 20 * MIB, 20 * MIB + 5000, source, MIB)
    assert writer.volume.read(source, 20 * MIB, 9999) == b"x" * 5000
    writer.volume.close()


def test_a_copy_whose_source_takes_the_place_of_its_target_in_the_cache_leaves_its_size(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the source may let go of the target, which was taken before: its row would stay old."""
    source, target = writer.create(b"source"), writer.create(b"target")
    writer.write(source, 0, b"x" * 5000)
    writer.write(target, 0, b"old")
    others = [writer.create(b"other %d" % count) for count in range(7)]
    writer.volume.commit()
    catalog = writer.volume.catalog
    catalog.cache.cached.clear()
    monkeypatch.setattr("fusemirror.volume.inode_cache.INODES_CACHED_MAX", 1 + len(others))
    for number in (target, *others):
        catalog.inode(number)
    assert source not in catalog.cache.cached
    writer.copy(target, 0, 5000, source, 0)
    writer.write(target, 5000, b"tail")
    writer.volume.commit()
    catalog.cache.cached.clear()
    assert writer.content(target) == b"x" * 5000 + b"tail"


@pytest.mark.parametrize("took_effect", [True, False])
def test_privileges_that_end_with_a_write_are_there_until_it_took_effect(
    directory: Path, *, took_effect: bool
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"program", mode=0o104755)
    writer.write(inode, 0, b"as it was")
    writer.set_xattr(inode, CAPABILITY, b"value")
    writer.volume.commit()
    number = writer.write_program(inode, 0, b"evil")
    assert writer.catalog.xattrs.value(inode, CAPABILITY) is None
    assert writer.inode(inode).mode == 0o100755
    assert not writer.catalog.xattrs.has_capability(writer.catalog.inode(inode))
    if not took_effect:
        path = directory / "images" / "0" / f"{inode:x}"
        path.write_bytes(b"as it was")
        os.utime(path, ns=(1, 1))
    writer = killed(writer.volume)
    for _ in range(2):
        kept = None if took_effect else b"value"
        assert writer.catalog.xattrs.value(inode, CAPABILITY) == kept
        assert writer.inode(inode).mode == (0o100755 if took_effect else 0o104755)
        assert writer.content(inode) == (b"evilt was" if took_effect else b"as it was")
        assert (writer.volume.journal.last_number == number) is took_effect
        writer = killed(writer.volume)
    writer.volume.close()


def test_a_catalog_that_is_rebuilt_has_ended_privileges_too(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"program", mode=0o104755)
    writer.set_xattr(inode, CAPABILITY, b"value")
    writer.volume.commit()
    apply_rows, failing = type(writer.volume.catalog).apply_rows, [True]

    def once(self: object, *arguments: Any) -> Any:
        if failing.pop() if failing else False:
            raise DiskFailed(directory, "catalog: planted")
        return apply_rows(writer.volume.catalog, *arguments)

    monkeypatch.setattr(type(writer.volume.catalog), "apply_rows", once)
    writer.write_program(inode, 0, b"evil")
    assert writer.catalog.xattrs.value(inode, CAPABILITY) is None
    assert (writer.inode(inode).mode, writer.inode(inode).size) == (0o100755, 4)
    writer.volume.close()


def test_recovery_names_the_request_in_doubt(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.truncate(inode, 100, R2)
    writer = killed(writer.volume)
    assert request_in_doubt(writer.volume) == NO_REQUEST
    writer.volume.abandon()
    path = directory / "images" / "0" / f"{inode:x}"
    path.write_bytes(b"")
    os.utime(path, ns=(1, 1))
    volume = Volume.open(directory)
    assert request_in_doubt(volume) == R2
    assert volume.requests_done == {}
    volume.close()


@pytest.mark.parametrize(("content", "request_done"), [(b"01over6789", True), (b"01ov456789", False)])
def test_an_overwrite_killed_before_its_times_counts_where_its_bytes_are_there(
    directory: Path, content: bytes, request_done: bool
) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    writer.write(inode, 0, b"0123456789")
    writer.write(inode, 2, b"over", R1)
    writer.volume.abandon()
    path = directory / "images" / "0" / f"{inode:x}"
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    volume = Volume.open(directory)
    assert (R1 in volume.requests_done) is request_done
    volume.close()


# --- a killed process, at every system call ---------------------------------------------------------------

STEPS: list[Step] = [
    lambda w: w.create(b"a"),
    lambda w: w.write(InodeNumber(2), 0, b"0123456789"),
    lambda w: w.write(InodeNumber(2), 10, b"append one", R1),
    lambda w: w.mkdir(b"d"),
    lambda w: w.create(b"b", InodeNumber(3)),
    lambda w: w.write(InodeNumber(4), REGION_BYTES - 5, b"across regions"),
    lambda w: w.volume.commit(),
    lambda w: w.write(InodeNumber(2), 3, b"over"),
    lambda w: w.truncate(InodeNumber(2), 7, R2),
    lambda w: w.rename(b"a", b"renamed"),
    lambda w: w.set_xattr(InodeNumber(2), b"user.x", b"value"),
    lambda w: run(w.volume.make_durable()),
    lambda w: w.volume.drop_marks(w.volume.regions.rotate()),
    lambda w: w.write(InodeNumber(2), 7, b"append three", R3),
    lambda w: w.unlink(b"b", InodeNumber(3)),
    lambda w: w.purge(InodeNumber(4)),
    lambda w: run(w.volume.make_durable()),
    lambda w: w.volume.syncing.trim(w.volume.number),
    lambda w: w.chmod(InodeNumber(2), 0o600),
    lambda w: reopen(w),
    lambda w: w.write(InodeNumber(2), 0, b"after closing"),
    lambda w: w.create(b"c"),
    lambda w: w.write(InodeNumber(2), 0, b"cut short"),
    lambda w: w.chmod(InodeNumber(2), 0o4755),
    lambda w: w.set_xattr(InodeNumber(2), CAPABILITY, b"value"),
    lambda w: w.write_program(InodeNumber(2), 3, b"over the program"),
    lambda w: w.create(b"e"),
    lambda w: w.set_xattr(InodeNumber(2), CAPABILITY, b"again"),
    lambda w: w.write_program(InodeNumber(2), 40, b"behind its end"),
]
REQUESTS = {2: R1, 8: R2, 13: R3}


def run(coroutine: Any) -> None:
    """Runs to its end what never waits, since its seams run everything at once."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def reopen(writer: Writer) -> None:
    writer.volume.close()
    writer.volume = Volume.open(writer.volume.directory, counting_seams())


def state_of(volume: Volume) -> tuple[Any, ...]:
    return rows_of(volume), contents_of(volume)


KILLED_AT = ("write", "pwrite", "ftruncate", "utime", "open", "unlink", "mkdir", "replace", "rename", "fsync")


def run_until_killed(directory: Path, kill_at: int, steps: list[Step]) -> tuple[int, bool]:
    """Run the steps in a child that dies at its `kill_at`-th system call: steps done, and whether it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _run_and_die(directory, kill_at, steps, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        done = len(told.read())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 77), f"the child failed by itself after {done} steps"
    return done, status == 77


def _run_and_die(directory: Path, kill_at: int, steps: list[Step], told: int) -> None:
    real_write = os.write
    calls = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os._exit(77)
            return call(*arguments, **more)

        return counted

    writer = Writer(Volume.open(directory, counting_seams()))
    for name in KILLED_AT:
        setattr(os, name, dying(getattr(os, name)))
    for step in steps:
        step(writer)
        real_write(told, b".")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The state of a volume after each number of steps, when nobody is killed."""
    directory = tmp_path_factory.mktemp("states") / "volume"
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    states = [state_of(writer.volume)]
    for step in STEPS:
        step(writer)
        states.append(state_of(writer.volume))
    writer.volume.close()
    return states


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("part", range(4))
def test_a_process_killed_at_any_system_call_loses_nothing_that_was_done(
    tmp_path: Path, states: list[tuple[Any, ...]], part: int
) -> None:
    kill_at, died = 1 + part, True
    while died:
        directory = tmp_path / str(kill_at)
        Volume.create(directory, IDENTITY)
        done, died = run_until_killed(directory, kill_at, STEPS)
        volume = Volume.open(directory, counting_seams())
        _check_after_kill(volume, done, states)
        volume.close()
        assert not problems_of(directory), f"killed at call {kill_at}, in step {done}"
        kill_at += 4
    assert done == len(STEPS)
    assert kill_at > 40, "there are more system calls than that"


def _check_after_kill(volume: Volume, done: int, states: list[tuple[Any, ...]]) -> None:
    """What was done is there; the step under way happened or not, or its bytes did without its times."""
    for step, request in REQUESTS.items():
        if step < done - 1 and step > 8:  # what came before was trimmed only if the peer had it
            assert request in volume.requests_done
    request_under_way = REQUESTS.get(done)
    rows, contents = state_of(volume)
    if request_under_way is not None:
        # Exactly once: the peer asks again unless it is known to be done.
        assert (rows, contents) == states[done + (request_under_way in volume.requests_done)]
        return
    possible = states[done : done + 2]
    assert contents in [content for _, content in possible]
    assert rows in [row for row, _ in possible] or rows == _times_of(possible[0][0], possible[1][0])


def _times_of(
    old: dict[tuple[int, bytes], bytes], new: dict[tuple[int, bytes], bytes]
) -> dict[tuple[int, bytes], bytes]:
    """The new rows, as they are when a write was cut short before it set the times."""
    rows = dict(new)
    for (table, key), row in old.items():
        if table == Table.INODES and (table, key) in new:
            before, after = (Inode.unpack(InodeNumber(0), inode) for inode in (row, new[table, key]))
            after.mtime_ns, after.ctime_ns = before.mtime_ns, before.ctime_ns
            rows[table, key] = after.pack()
    return rows


# --- what a resync brings ---------------------------------------------------------------------------------


def test_what_resync_copies_changes_content_and_size_and_no_times(writer: Writer) -> None:
    volume = writer.volume
    inode = writer.create(b"a")
    writer.write(inode, 0, b"0123456789")
    number, before = volume.number, writer.inode(inode)
    volume.copy_size(inode, 4)
    volume.files.put_data(inode, 1, b"xy")
    assert writer.content(inode) == b"0xy3"
    after = writer.inode(inode)
    assert (after.mtime_ns, after.ctime_ns, after.size) == (before.mtime_ns, before.ctime_ns, 4)
    assert volume.number == number
    facts = volume.images.facts(inode)
    assert facts is not None
    assert (facts.mtime_ns, facts.ctime_ns) == (before.mtime_ns, before.ctime_ns)
    assert volume.regions.has(inode)
    assert inode in volume.images.unsynced.dirty


def test_a_hundred_thousand_inodes_open_without_touching_each(directory: Path) -> None:
    writer = Writer(Volume.open(directory, counting_seams()))
    template = writer.inode(writer.create(b"a"))
    for batch in range(100):
        rows = []
        for n in range(1000):
            template.number = InodeNumber(10 + batch * 1000 + n)
            template.nlink = 0
            rows.append(put_inode(template))
        writer.namespace(*rows)
    writer.volume.close()
    volume = Volume.open(directory)
    assert volume.recovery.replayed == 0
    assert inode_count(volume.catalog) == 100_002
    assert len(volume.catalog._cached) < 10
    volume.close()
