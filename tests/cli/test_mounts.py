"""The mounts of this host: who holds them, and what libmount's table says."""

import os
import subprocess
from pathlib import Path

import pytest

from fusemirror.cli import mounts
from fusemirror.cli.mounts import (
    Mount,
    Process,
    all_mounts,
    detach,
    holders,
    is_stale,
    mount_at,
    real_path,
    registered_runtime_dir,
)
from fusemirror.errors import MountBusy, TimedOut, UnmountFailed


def test_the_root_is_a_mount() -> None:
    assert mount_at("/") in all_mounts()


def test_a_directory_of_any_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user mounts something there, and no command of another could read the table any more."""
    lines = (
        b"25 1 0:23 / /a\r\x0b\x1c\xc2\x85\\012b rw - tmpfs other rw\n",
        b"26 1 0:24 / /mnt rw - ext4 disk rw\n",
    )
    table = tmp_path / "mountinfo"
    table.write_bytes(b"".join(lines))
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)
    assert all_mounts() == [Mount("/a\r\x0b\x1c\x85\nb", "tmpfs", "other"), Mount("/mnt", "ext4", "disk")]


def test_a_path_is_followed_to_where_something_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "real/mnt").mkdir(parents=True)
    (tmp_path / "parent").symlink_to("real")
    (tmp_path / "itself").symlink_to("parent/mnt")
    for path in ("parent/mnt", "parent/mnt/", "itself", "itself/", "parent/mnt/.", "real/../parent/mnt"):
        assert real_path(f"{tmp_path}/{path}") == str(tmp_path / "real/mnt")
    assert real_path(f"{tmp_path}/missing") == str(tmp_path / "missing")
    assert real_path("/") == "/"


def test_what_answers_is_not_stale(tmp_path: Path) -> None:
    assert not is_stale(Mount(str(tmp_path), "ext4", "x"))
    assert not is_stale(Mount(str(tmp_path / "gone"), "ext4", "x"))


def test_open_files_and_current_directories_hold_a_mount(tmp_path: Path) -> None:
    path = tmp_path / "held"
    with path.open("w"):
        assert any(f"(process {os.getpid()})" in holder for holder in holders(str(tmp_path)))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tmp_path) as process:
        assert f"cat (process {process.pid})" in holders(str(tmp_path))
        process.communicate(b"")


def test_a_name_that_only_begins_the_same_holds_nothing(tmp_path: Path) -> None:
    with Path(f"{tmp_path}-other").open("w"):
        assert holders(str(tmp_path)) == []
    Path(f"{tmp_path}-other").unlink()


def test_what_is_no_mount_cannot_be_detached(tmp_path: Path) -> None:
    with pytest.raises(UnmountFailed, match="cannot unmount: "):
        detach(str(tmp_path))


@pytest.mark.parametrize("name", ["busybox", os.fsdecode(b"bytes \xff")])
def test_what_is_told_of_a_directory_is_not_taken_for_its_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    with pytest.raises(UnmountFailed, match=r"not mounted|not found"):
        detach(str(directory))


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: it takes root to mount")
@pytest.mark.parametrize("name", ["plain", os.fsdecode(b"bytes \xff")])
def test_who_holds_a_mount_is_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    held = os.open(directory, os.O_RDONLY)
    try:
        with pytest.raises(MountBusy, match=f"process {os.getpid()}"):
            detach(str(directory))
    finally:
        os.close(held)
        subprocess.run(["umount", directory], check=True)


def test_the_table_of_libmount_tells_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "utab"
    monkeypatch.setattr(mounts, "UTAB", table)
    assert registered_runtime_dir("/mnt/a b") is None
    table.write_text(
        "SRC=other TARGET=/mnt/b ROOT=/ OPTS=helper=x\n"
        "SRC=data TARGET=/mnt/a\\040b ROOT=/ OPTS=helper=fusemirror,x-fusemirror.runtime-dir=/run/a\\040b\n"
    )
    assert registered_runtime_dir("/mnt/a b") == Path("/run/a b")
    assert registered_runtime_dir("/mnt/b") is None


def test_a_process_is_waited_for() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as running:
        process = Process(running.pid)
        with pytest.raises(TimedOut, match=f"process {running.pid} is still"):
            process.wait_until_safe(0)
        assert running.stdin is not None
        running.stdin.close()
        process.wait_until_safe(10)
    assert Process(running.pid).wait(0)
