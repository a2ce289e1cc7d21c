"""What stands in files of the subvolume's own store, and what damage of them does."""

import shutil
import struct
from pathlib import Path

import msgspec
import pytest
import trio
import xxhash
from trio.testing import MockClock

from fusemirror.communication import subvolume_volume
from fusemirror.communication.subvolume_volume import SubvolumeCommunicationVolume, check_staged
from fusemirror.errors import VolumeDamaged
from fusemirror.limits import DESTAGE_AFTER_S
from fusemirror.protocol.codec import encode
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
    with pytest.raises(OSError, match="space"):
        volume._append([second], 0)
    with pytest.raises(OSError, match="broken"):
        volume._append([second], 0)
    monkeypatch.undo()
    volume._append([third], 0)
    volume.close()
    assert data_in(tmp_path) == [b"first", b"3"]


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
