"""What stands in files of the subvolume's own store, and what damage of them does."""

import dataclasses
import errno
import itertools
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import xxhash
from trio.testing import MockClock

from fusemirror.communication import subvolume_volume
from fusemirror.communication.opening import Stores
from fusemirror.communication.subvolume_volume import SubvolumeCommunicationVolume, check_staged
from fusemirror.errors import DiskFailed, StoreInDoubt, VolumeDamaged
from fusemirror.limits import DESTAGE_AFTER_S, STORE_RETRY_S
from fusemirror.protocol.codec import encode
from fusemirror.settings import Communication
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.identity import Shutdown
from tests.communication.test_volume import request, retire, running
from tests.volume.conftest import broken_file, counting_seams

OTHER_BOOT = Shutdown(clean=False, boot_id="another boot")


def opened(directory: Path) -> SubvolumeCommunicationVolume:
    return SubvolumeCommunicationVolume(directory, 1 << 24, counting_seams())


async def staged_one_by_one(directory: Path, *data: bytes) -> tuple[Path, list[int]]:
    """A store of a process that was killed once each request was durable; its file, and where each ends."""
    volume = opened(directory)
    ends = []
    async with running(volume):
        for number, each in enumerate(data):
            await volume.stage(request(number, kept=True), each).answer.wait()
            ends.append(volume._segments[-1].size_bytes)
    volume.close()
    Shutdown(clean=False, boot_id=Shutdown.load(directory).boot_id).store(directory)
    return volume._segments[-1].path, ends


def opened_to_fail(directory: Path, syncs: int) -> SubvolumeCommunicationVolume:
    """One that cannot sync so many times."""
    left = [syncs]

    def fdatasync(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "not synced")
        os.fdatasync(descriptor)

    return SubvolumeCommunicationVolume(
        directory, 1 << 24, dataclasses.replace(counting_seams(), fdatasync=fdatasync)
    )


def fail_to_unlink(monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.EIO, "not removed")

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(os, "unlink", unlink)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def data_in(directory: Path) -> list[bytes]:
    volume = opened(directory)
    volume.close()
    return [volume.data_of(staged) for staged in volume.pending()]


def data_in_copy(directory: Path) -> list[bytes]:
    """What a process finds after one that was killed now."""
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    found = data_in(copy)
    shutil.rmtree(copy)
    return found


@pytest.mark.parametrize("state", [None, OTHER_BOOT], ids=["killed", "power cut"])
async def test_one_flipped_bit_stops_the_opening_and_a_repair_keeps_all_other_requests(
    tmp_path: Path, state: Shutdown | None, autojump_clock: MockClock
) -> None:
    directory = tmp_path / "staged"
    path, ends = await staged_one_by_one(directory, b"first", b"second", b"third", b"fourth")
    if state is not None:
        state.store(directory)
    flip(path, ends[0] + 50)
    with pytest.raises(VolumeDamaged, match=f"staged requests: {path.name} at byte {ends[0]}: .*fsck"):
        opened(directory)
    lines: list[str] = []
    assert not check_staged(directory, repair=False, report=lines.append)
    assert f"at byte {ends[0]}" in lines[0]
    assert not check_staged(directory, repair=True, report=lines.append)
    assert f"kept: 3 staged requests; lost: {ends[1] - ends[0]} bytes of others" in lines[-1]
    assert check_staged(directory, repair=False, report=lines.append)
    assert data_in(directory) == [b"first", b"third", b"fourth"]
    assert (tmp_path / "lost-staged" / path.name).exists()


@pytest.mark.parametrize("finished_by", ["a repair", "a mount", "a mount of another kind"])
async def test_a_repair_that_is_killed_at_any_step_loses_nothing_that_it_kept(
    tmp_path: Path, finished_by: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole" / "staged"
    whole.parent.mkdir()
    path, ends = await staged_one_by_one(whole, b"first", b"second", b"third")
    flip(path, ends[0] + 50)
    kind = Communication.LMDB if finished_by == "a mount of another kind" else Communication.SUBVOLUME
    for steps in itertools.count():
        place = tmp_path / str(steps)
        shutil.copytree(whole.parent, place)
        directory = place / "staged"
        lines: list[str] = []
        repair = partial(check_staged, directory, repair=True, report=lines.append)
        if not killed_after(steps, monkeypatch, repair):
            break
        if finished_by == "a repair" or (directory.is_dir() and is_damaged(directory)):
            was_clean = check_staged(directory, repair=False, report=lines.append)
            assert check_staged(directory, repair=True, report=lines.append) is was_clean
            assert check_staged(directory, repair=False, report=lines.append), lines
        _, volume = Stores(place, 1 << 20, 1 << 24, counting_seams()).open_wanted(kind)
        assert [volume.data_of(staged) for staged in volume.pending()] == [b"first", b"third"]
        volume.close()
        assert len(list(place.glob("lost-staged*"))) == 1
    assert steps > 4


async def test_each_step_of_a_repair_is_durable_before_the_next(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "staged"
    path, ends = await staged_one_by_one(directory, b"first", b"second", b"third")
    flip(path, ends[0] + 50)
    done = steps_noted(monkeypatch)
    check_staged(directory, repair=True, report=lambda _: None)
    renames = [("rename", directory), ("rename", tmp_path / "staged.new")]
    synced = ("sync", tmp_path)
    assert done[done.index(renames[0]) - 1 :] == [synced, renames[0], synced, renames[1], synced]


async def test_the_floor_is_given_up_once_the_files_below_it_are_durably_gone(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subvolume_volume, "STAGING_SEGMENT_BYTES", 50)
    volume = opened(tmp_path)
    for number in (1, 2):
        volume._store_blocking([(number, encode(request(number, kept=True)), b"data")], 1)
    first, last = (segment.path for segment in volume._segments)
    done = steps_noted(monkeypatch)
    volume._store_blocking([], 3)
    assert done == [("unlink", first), ("sync", tmp_path), ("cut", last)]
    volume.close()


def steps_noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is done from now on to names, and to the length of files, with what it is done to."""
    done: list[tuple[str, Path]] = []
    cut, rename, unlink = os.ftruncate, Path.rename, Path.unlink

    def note_cut(descriptor: int, length: int) -> None:
        done.append(("cut", Path(f"/proc/self/fd/{descriptor}").readlink()))
        cut(descriptor, length)

    def note_rename(path: Path, target: Path) -> Path:
        done.append(("rename", path))
        return rename(path, target)

    def note_unlink(path: Path, missing_ok: bool = False) -> None:
        done.append(("unlink", path))
        unlink(path, missing_ok)

    def note_sync(directory: Path) -> None:
        done.append(("sync", directory))
        sync_directory(directory)

    monkeypatch.setattr(os, "ftruncate", note_cut)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(Path, "unlink", note_unlink)
    monkeypatch.setattr(subvolume_volume, "sync_directory", note_sync)
    return done


class Killed(BaseException):
    """The process ended here."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> bool:
    """Whether it did not live to the end of it: so many names were changed or directories synced."""
    left = itertools.count(steps, -1)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if next(left) == 0:
                raise Killed
            return real(*args, **named)

        return call

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "replace"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        patched.setattr(subvolume_volume, "sync_directory", counted(sync_directory))
        try:
            run()
        except Killed:
            return True
    return False


def is_damaged(directory: Path) -> bool:
    try:
        opened(directory).close()
    except VolumeDamaged:
        return True
    return False


async def test_what_was_not_durable_when_the_power_went_is_a_torn_tail(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, ends = await staged_one_by_one(tmp_path, b"durable")
    volume = opened(tmp_path)
    volume._append([(8, encode(request(8)), b"lost"), (9, encode(request(9)), b"kept by the disk")], 0)
    volume.close()
    flip(path, ends[0] + 50)
    with pytest.raises(VolumeDamaged):
        opened(tmp_path)
    OTHER_BOOT.store(tmp_path)
    assert data_in(tmp_path) == [b"durable"]


async def test_no_request_stands_behind_half_of_one_that_could_not_be_cut(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await staged_one_by_one(tmp_path, b"first")
    volume = opened(tmp_path)
    second, third = ((number, encode(request(number, kept=True)), b"%d" % number) for number in (2, 3))
    broken_file(monkeypatch)
    with pytest.raises(StoreInDoubt, match="space"):
        volume._store_blocking([second], 0)
    with pytest.raises(DiskFailed, match="broken") as caught:
        volume._store_blocking([second], 0)
    assert caught.type is DiskFailed, "nothing was written"
    monkeypatch.undo()
    volume._store_blocking([third], 0)
    volume.close()
    assert data_in(tmp_path) == [b"first", b"3"]


@pytest.mark.expects_warnings
async def test_what_could_not_be_synced_is_not_there_and_stands_there_once_when_it_is_stored_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    directory = tmp_path / "staged"
    volume = opened_to_fail(directory, 1)
    async with running(volume):
        staged = volume.stage(request(1, kept=True), bytes(1000))
        await trio.sleep(STORE_RETRY_S / 2)
        assert not staged.acknowledged
        assert data_in_copy(directory) == []
        await staged.answer.wait()
        assert data_in_copy(directory) == [bytes(1000)]
    (segment,) = volume._segments
    assert segment.path.stat().st_size == segment.size_bytes < 1500, "it stands there once"
    volume.close()


@pytest.mark.expects_warnings
async def test_what_could_not_be_cut_off_again_counts_as_stored_until_it_is(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    directory = tmp_path / "staged"
    volume = opened_to_fail(directory, 3)
    async with running(volume):
        staged = volume.stage(request(1, kept=True), b"in doubt")
        await trio.sleep(STORE_RETRY_S / 2)
        assert not staged.acknowledged
        retire(volume, 1)
        await trio.sleep(STORE_RETRY_S)  # cutting it fails again
        live = [volume.order.oldest_live]
        await trio.sleep(STORE_RETRY_S)
        assert [*live, volume.order.oldest_live] == [staged.request.identity, None], "not forgotten before"
        assert data_in_copy(directory) == []
    volume.close()
    assert Shutdown.load(directory).clean


async def test_what_is_in_doubt_at_the_end_of_a_mount_is_cut_off_or_it_does_not_end_cleanly(
    tmp_path: Path,
) -> None:
    entry = (1, encode(request(1, kept=True)), b"data")
    for syncs, is_cut in ((2, True), (3, False)):
        directory = tmp_path / str(syncs)
        volume = opened_to_fail(directory, syncs)
        with pytest.raises(StoreInDoubt):
            volume._store_blocking([entry], 1)
        volume.close()
        assert Shutdown.load(directory).clean is is_cut


@pytest.mark.parametrize("ended", ["killed", "cleanly"])
async def test_what_a_killed_process_left_is_made_durable_before_the_primary_goes_by_it(
    tmp_path: Path, ended: str, autojump_clock: MockClock
) -> None:
    path, ends = await staged_one_by_one(tmp_path, b"first", b"cut off and not synced")
    os.truncate(path, ends[0])
    Shutdown(clean=ended == "cleanly", boot_id=Shutdown.load(tmp_path).boot_id).store(tmp_path)
    synced: list[int] = []
    seams = dataclasses.replace(
        counting_seams(), fdatasync=lambda file: synced.append(os.fstat(file).st_size)
    )
    SubvolumeCommunicationVolume(tmp_path, 1 << 24, seams).close()
    assert synced == ([ends[0]] if ended == "killed" else [])


async def test_a_request_that_a_version_before_stored_twice_is_taken_up_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path)
    for data in (b"not synced", b"stored again"):
        volume._append([(1, encode(request(1, kept=True)), data)], 1)
    volume.close()
    volume = opened(tmp_path)
    assert [volume.data_of(staged) for staged in volume.pending()] == [b"stored again"]
    retire(volume, 1)
    assert (volume.pending_bytes, volume.held.bytes) == (0, 0)
    volume.close()


async def test_a_file_that_cannot_be_removed_fails_no_store_and_is_removed_later(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subvolume_volume, "STAGING_SEGMENT_BYTES", 50)
    volume = opened(tmp_path / "staged")
    first, second, third = (
        [(number, encode(request(number, kept=True)), b"%d" % number)] for number in (1, 2, 3)
    )
    volume._store_blocking(first, 1)
    with monkeypatch.context() as patched:
        fail_to_unlink(patched)
        volume._store_blocking(second, 2)
    assert data_in_copy(tmp_path / "staged") == [b"2"]
    # Now the floor would go with the last file, and what stands in the first would be pending again.
    with monkeypatch.context() as patched:
        fail_to_unlink(patched)
        with pytest.raises(DiskFailed, match="not removed"):
            volume._store_blocking([], 3)
    assert data_in_copy(tmp_path / "staged") == [b"2"]
    volume._store_blocking(third, 3)
    assert len(list((tmp_path / "staged").glob("*.requests"))) == 1
    assert data_in_copy(tmp_path / "staged") == [b"3"]
    volume.close()


async def test_what_programs_write_passes_for_no_record(tmp_path: Path, autojump_clock: MockClock) -> None:
    forger, _ = await staged_one_by_one(tmp_path / "forger", b"", b"", b"run me as root")
    path, ends = await staged_one_by_one(tmp_path / "staged", b"first", forger.read_bytes() + b"end")
    with path.open("r+b") as file:
        file.truncate(ends[-1] - 1)
    assert data_in(tmp_path / "staged") == [b"first"]


async def test_what_has_ended_stays_so_where_the_record_that_said_it_is_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    volume = opened(tmp_path)
    async with running(volume):
        for number in range(3):
            await volume.stage(request(number, kept=True), b"%d" % number).answer.wait()
        retire(volume, 0)
        await trio.sleep(5 * DESTAGE_AFTER_S)
        place = volume._segments[-1].size_bytes
        await volume.stage(request(3, kept=True), b"3").answer.wait()
    volume.close()
    flip(volume._segments[-1].path, place - 20)
    check_staged(tmp_path, repair=True, report=lambda _: None)
    assert data_in(tmp_path) == [b"1", b"2", b"3"]


async def test_files_of_the_version_before_are_read_and_not_written_to(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    message = encode(request(1, kept=True))
    body = struct.pack("<QII", 7, len(message), 3) + message + b"old"
    old = struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body
    path = tmp_path / f"{1:016x}.staged"
    path.write_bytes(old + b"torn")
    volume = opened(tmp_path)
    async with running(volume):
        assert [volume.data_of(staged) for staged in volume.pending()] == [b"old"]
        await volume.stage(request(2, kept=True), b"new").answer.wait()
    volume.close()
    assert path.read_bytes() == old
    volume = opened(tmp_path)
    async with running(volume):
        assert [volume.data_of(staged) for staged in volume.pending()] == [b"old", b"new"]
        retire(volume, 1)
        await trio.sleep(5 * DESTAGE_AFTER_S)
    volume.close()
    assert volume._segments[0].path != path, "the old file is removed"
    assert data_in(tmp_path) == [b"new"]


def test_a_later_version_stops_the_opening(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (path,) = tmp_path.glob("*.requests")
    flip(path, 9)
    with pytest.raises(VolumeDamaged, match="at byte 0"):
        opened(tmp_path)
    assert msgspec.json.decode((tmp_path / "state.json").read_bytes())["clean"]


@pytest.mark.parametrize("segment_bytes", [50, 200, 300])
async def test_after_a_restart_new_files_come_behind_those_that_are_there(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """The one that stays when all requests have ended is empty, and its name alone says how far they got."""
    monkeypatch.setattr(subvolume_volume, "STAGING_SEGMENT_BYTES", segment_bytes)
    data = [b"%d" % number for number in range(8)]
    for _ in range(3):
        volume = opened(tmp_path)
        async with running(volume):
            for number, each in enumerate(data):
                await volume.stage(request(number, kept=True), each).answer.wait()
            assert len(volume._segments) > 1
            assert data_in_copy(tmp_path) == data, "a process that is killed now has lost nothing"
            for number in range(len(data)):
                retire(volume, number)
            await trio.sleep(5 * DESTAGE_AFTER_S)
        volume.close()
        assert data_in(tmp_path) == []
