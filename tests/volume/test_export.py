"""What is exported is compared with what the volume holds, file by file."""

import os
import stat
from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import ExportFailed, RefusedForSafety, VolumeInUse
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB
from fusemirror.volume.catalog import inode_key
from fusemirror.volume.export import export
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, counting_seams, put_inode

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root")


@pytest.fixture
def source(tmp_path: Path) -> Writer:
    Volume.create(tmp_path / "volume", IDENTITY)
    return Writer(Volume.open(tmp_path / "volume", counting_seams()))


def exported(writer: Writer, tmp_path: Path) -> Path:
    writer.volume.close()
    target = tmp_path / "target"
    export(tmp_path / "volume", target, lambda _done, _total: None)
    return target


def set_attributes(writer: Writer, number: InodeNumber, **attributes: int) -> None:
    inode = writer.inode(number)
    for name, value in attributes.items():
        setattr(inode, name, value)
    writer.namespace(put_inode(inode))


@needs_root
def test_everything_comes_out_as_it_is(source: Writer, tmp_path: Path) -> None:
    directory = source.mkdir(b"directory")
    file = source.create(b"file \xff\n", directory)
    source.write(file, 0, b"content")
    set_attributes(
        source, file, mode=0o104755, uid=1234, gid=5678, atime_ns=1_000_000_001, mtime_ns=2_000_000_002
    )
    source.set_xattr(file, b"user.name", b"value\0")
    source.set_xattr(file, b"system.old", b"which an earlier version took")
    source.link(file, b"hard link")
    symlink = source.create(b"symlink", mode=0o120777, target=b"no/such \xfe target")
    set_attributes(source, symlink, uid=7, gid=8, mtime_ns=3_000_000_003)
    source.create(b"fifo", mode=0o010640)
    device = source.create(b"device", mode=0o020600)
    set_attributes(source, device, rdev=os.makedev(1, 3))
    source.create(b"socket", mode=0o140600)
    set_attributes(source, directory, mode=0o041711, mtime_ns=4_000_000_004)
    source.create(b"deleted")
    source.unlink(b"deleted")
    set_attributes(source, ROOT_INODE, mode=0o040750, mtime_ns=5_000_000_005)

    target = os.fsencode(exported(source, tmp_path))

    def status(*names: bytes) -> os.stat_result:
        return os.lstat(os.path.join(target, *names))

    assert sorted(os.listdir(target)) == [
        b"device",
        b"directory",
        b"fifo",
        b"hard link",
        b"socket",
        b"symlink",
    ]
    found = status(b"directory", b"file \xff\n")
    assert (found.st_mode, found.st_uid, found.st_gid) == (0o104755, 1234, 5678)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.path.samestat(found, status(b"hard link"))
    assert found.st_nlink == 2
    path = os.path.join(target, b"hard link")
    assert os.getxattr(path, b"user.name") == b"value\0"
    with open(path, "rb") as copy:
        assert copy.read() == b"content"
    assert os.readlink(os.path.join(target, b"symlink")) == b"no/such \xfe target"
    assert (status(b"symlink").st_uid, status(b"symlink").st_mtime_ns) == (7, 3_000_000_003)
    assert stat.S_ISFIFO(status(b"fifo").st_mode)
    assert stat.S_IMODE(status(b"fifo").st_mode) == 0o640
    assert (status(b"device").st_mode, status(b"device").st_rdev) == (0o020600, os.makedev(1, 3))
    assert stat.S_ISSOCK(status(b"socket").st_mode)
    assert (status(b"directory").st_mode, status(b"directory").st_mtime_ns) == (0o041711, 4_000_000_004)
    assert (status().st_mode, status().st_mtime_ns) == (0o040750, 5_000_000_005)


def test_data_comes_out_with_its_holes_and_no_more_than_its_size(source: Writer, tmp_path: Path) -> None:
    sparse, short, long = source.create(b"sparse"), source.create(b"short"), source.create(b"long")
    source.write(sparse, 50 * MIB, b"x" * (3 * MIB + 5))
    source.truncate(sparse, 100 * MIB)
    source.write(short, 0, b"0123456789")
    source.write(long, 0, b"0123456789")
    source.volume.images.cut(short, 4)
    source.volume.images.truncate(long, 20, 1)
    target = exported(source, tmp_path)
    found = (target / "sparse").stat()
    assert found.st_size == 100 * MIB
    assert found.st_blocks * 512 < 5 * MIB
    content = (target / "sparse").read_bytes()
    assert content == bytes(50 * MIB) + b"x" * (3 * MIB + 5) + bytes(47 * MIB - 5)
    assert (target / "short").read_bytes() == b"0123" + bytes(6)
    assert (target / "long").read_bytes() == b"0123456789"


def test_a_tree_deeper_than_any_path_comes_out_whole(source: Writer, tmp_path: Path) -> None:
    parent = ROOT_INODE
    for _ in range(30):  # 30 names of 255 bytes: no path as long can be given to the kernel
        parent = source.mkdir(b"d" * 255, parent)
    file = source.create(b"file", parent)
    source.write(file, 0, b"at the bottom")
    source.link(file, b"again", parent)
    set_attributes(source, parent, mode=0o040710)
    target = exported(source, tmp_path)
    for _, directories, files, bottom in os.fwalk(target):
        if directories:
            continue
        assert sorted(files) == ["again", "file"]
        assert stat.S_IMODE(os.fstat(bottom).st_mode) == 0o710
        with open(os.open("again", os.O_RDONLY, dir_fd=bottom)) as copy:
            assert copy.read() == "at the bottom"
            assert os.fstat(copy.fileno()).st_nlink == 2


def test_progress_grows_to_the_total(source: Writer, tmp_path: Path) -> None:
    for name in (b"a", b"b"):
        source.write(source.create(name), 0, bytes(3 * MIB))
    source.write(source.create(b"deleted"), 0, bytes(MIB))
    source.unlink(b"deleted")
    source.volume.close()
    calls: list[tuple[int, int]] = []
    export(tmp_path / "volume", tmp_path / "target", lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (6 * MIB, 6 * MIB)


def test_an_empty_target_is_taken_and_one_with_something_is_refused(source: Writer, tmp_path: Path) -> None:
    source.create(b"a")
    source.volume.close()
    target = tmp_path / "target"
    target.mkdir()
    export(tmp_path / "volume", target, lambda _done, _total: None)
    assert os.listdir(target) == ["a"]
    with pytest.raises(RefusedForSafety, match="not an empty directory"):
        export(tmp_path / "volume", target, lambda _done, _total: None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RefusedForSafety):
        export(tmp_path / "volume", tmp_path / "file", lambda _done, _total: None)
    with pytest.raises(RefusedForSafety, match="inside the volume"):
        export(tmp_path / "volume", tmp_path / "volume" / "target", lambda _done, _total: None)


def test_a_volume_in_use_is_not_exported(source: Writer, tmp_path: Path) -> None:
    with pytest.raises(VolumeInUse):
        export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None)
    assert not (tmp_path / "target").exists()
    source.volume.close()


def test_an_error_names_the_file_and_leaves_the_volume_closed(
    source: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.create(b"symlink", mode=0o120777, target=b"x")
    source.volume.close()

    def refuse(_target: bytes, path: bytes) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(ExportFailed, match="target/symlink: No space left"):
        export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None)
    volume = Volume.open(tmp_path / "volume")
    assert volume.recovery.clean
    volume.close()


def test_a_damaged_volume_says_what_to_do(source: Writer, tmp_path: Path) -> None:
    number = source.create(b"a")
    source.volume.catalog.discard(Table.INODES, inode_key(number))
    source.volume.close()
    with pytest.raises(ExportFailed, match="fsck"):
        export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None)
