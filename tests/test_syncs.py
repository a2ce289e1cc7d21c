"""Syncs that no thread waits for: by this machine's kernel, and where it takes none."""

import errno
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import trio

from fusemirror import hot, syncs
from fusemirror.limits import SYNCS_UNDER_WAY_MAX
from fusemirror.promise import Promise
from fusemirror.syncs import begin_sync

DEADLINE_S = 10.0


@pytest.fixture(params=["hot", "in a task"])
async def loop(request: pytest.FixtureRequest) -> None:
    if request.param == "hot":
        assert hot.install()


def begun(descriptor: int, *, data_only: bool = True) -> Promise[None]:
    promise = begin_sync(descriptor, data_only=data_only)
    if promise is None:
        pytest.skip("this kernel syncs no file by itself")
    return promise


@pytest.mark.parametrize("data_only", [False, True])
async def test_a_file_is_synced_though_its_descriptor_is_closed(
    loop: None, tmp_path: Path, data_only: bool
) -> None:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x")
    promise = begun(descriptor, data_only=data_only)
    os.close(descriptor)
    with trio.fail_after(DEADLINE_S):
        await promise.wait()


async def test_many_at_once_all_end(loop: None, tmp_path: Path) -> None:
    promises = []
    for number in range(SYNCS_UNDER_WAY_MAX):
        descriptor = os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"x")
        promises.append(begun(descriptor))
        os.close(descriptor)
    with trio.fail_after(DEADLINE_S):
        for promise in promises:
            await promise.wait()


async def test_what_cannot_be_synced_is_told(loop: None, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        await begun(file.fileno()).wait()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        begin_sync(12345, data_only=True)
    for end in os.pipe():
        assert begin_sync(end, data_only=True) is None, "a thread hears from the kernel why"
        os.close(end)


async def test_an_error_of_the_disk_rejects_the_promise(
    loop: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    getevents = syncs._getevents

    def failing(*arguments: Any) -> int:
        count: int = getevents(*arguments)
        for index in range(count):
            serial, iocb, *_ = syncs._EVENT.unpack_from(arguments[4], index * syncs._EVENT.size)
            syncs._EVENT.pack_into(arguments[4], index * syncs._EVENT.size, serial, iocb, -errno.EIO, 0)
        return count

    monkeypatch.setattr(syncs, "_getevents", failing)
    with (tmp_path / "file").open("wb") as file:
        promise = begun(file.fileno())
    with trio.fail_after(DEADLINE_S), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await promise.wait()


async def test_where_the_kernel_takes_none_a_thread_must(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "a machine of tomorrow")
    with (tmp_path / "file").open("wb") as file:
        assert begin_sync(file.fileno(), data_only=True) is None


async def test_a_filter_of_system_calls_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unknown = syncs._Numbers(*[100_000] * 4)
    monkeypatch.setitem(syncs._NUMBERS, platform.machine(), unknown)
    with (tmp_path / "file").open("wb") as file:
        assert begin_sync(file.fileno(), data_only=True) is None
