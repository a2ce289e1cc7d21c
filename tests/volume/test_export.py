"""What is exported is compared with what the volume holds, file by file."""

import contextlib
import itertools
import os
import stat
import tempfile
from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import ExportFailed, RefusedForSafety, VolumeInUse
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB
from fusemirror.volume.check import check
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry
from fusemirror.volume.export import Exported, export
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
    export(tmp_path / "volume", target, lambda _done, _total: None, pytest.fail)
    return target


def set_attributes(writer: Writer, number: InodeNumber, **attributes: int) -> None:
    inode = writer.inode(number)
    for name, value in attributes.items():
        setattr(inode, name, value)
    writer.namespace(put_inode(inode))


def test_what_no_inode_can_be_is_exported_as_far_as_it_is_known(source: Writer, tmp_path: Path) -> None:
    file = source.create(b"file")
    source.write(file, 0, b"content")
    for number, attributes in ((ROOT_INODE, {"parent": 4711}), (file, {"parent": 1, "ctime_ns": -1})):
        inode = source.catalog.inode(number)
        for name, value in attributes.items():
            setattr(inode, name, value)
        source.catalog.touch(inode)
    assert (exported(source, tmp_path) / "file").read_bytes() == b"content"


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
    set_attributes(source, device, rdev_or_birth=os.makedev(1, 3))
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
    export(
        tmp_path / "volume", tmp_path / "target", lambda done, total: calls.append((done, total)), pytest.fail
    )
    assert calls == sorted(calls)
    assert calls[-1] == (6 * MIB, 6 * MIB)


def test_an_empty_target_is_taken_and_one_with_something_is_refused(source: Writer, tmp_path: Path) -> None:
    source.create(b"a")
    source.volume.close()
    target = tmp_path / "target"
    target.mkdir()
    export(tmp_path / "volume", target, lambda _done, _total: None, pytest.fail)
    assert os.listdir(target) == ["a"]
    with pytest.raises(RefusedForSafety, match="not an empty directory"):
        export(tmp_path / "volume", target, lambda _done, _total: None, pytest.fail)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RefusedForSafety):
        export(tmp_path / "volume", tmp_path / "file", lambda _done, _total: None, pytest.fail)
    with pytest.raises(RefusedForSafety, match="inside the volume"):
        export(tmp_path / "volume", tmp_path / "volume" / "target", lambda _done, _total: None, pytest.fail)


def test_a_volume_in_use_is_not_exported(source: Writer, tmp_path: Path) -> None:
    with pytest.raises(VolumeInUse):
        export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None, pytest.fail)
    assert not (tmp_path / "target").exists()
    source.volume.close()


def test_an_error_names_the_file_and_leaves_the_volume_closed(
    source: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.create(b"symlink", mode=0o120777, target=b"x")
    source.volume.close()

    def refuse(_target: bytes, _name: bytes, *, dir_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(ExportFailed, match="target/symlink: No space left"):
        export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None, pytest.fail)
    volume = Volume.open(tmp_path / "volume")
    assert volume.recovery.clean
    volume.close()


# --- a volume that is damaged, or made by somebody who means no good ---------------------------------------


_cookies = itertools.count(1 << 40)


def reported(writer: Writer, tmp_path: Path) -> tuple[Exported, list[str]]:
    writer.volume.close()
    lines: list[str] = []
    return export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None, lines.append), lines


def plant_name(writer: Writer, name: bytes, number: InodeNumber, parent: InodeNumber = ROOT_INODE) -> None:
    """A name that no operation would let in, as somebody else's catalog may have it."""
    kind = stat.S_IFMT(writer.inode(number).mode) >> 12
    row = pack_entry(Entry(number, kind, next(_cookies)))
    writer.volume.catalog.apply_rows([(Table.ENTRIES, entry_key(parent, name), row)])


def everything_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    "name", [b"/tmp/absolute", b"../outside", b"..", b".", b"a/b", b"victim/inside", b"a\0b"]
)
def test_no_name_leads_out_of_the_target(source: Writer, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "victim").mkdir(mode=0o700)
    source.create(b"victim", mode=0o120777, target=os.fsencode(tmp_path / "victim"))
    source.create(b"whole")
    hostile = source.create(b"hostile")
    source.write(hostile, 0, b"evil")
    if name.startswith(b"/"):
        name = os.fsencode(tmp_path / "absolute")
    plant_name(source, name, hostile)
    before = everything_in(tmp_path)
    done, lines = reported(source, tmp_path)
    assert done.problems == len(lines) == 1
    assert "no name that a file can have" in lines[0]
    made = {path for path in everything_in(tmp_path) - before if not path.startswith("volume")}
    assert made == {"target", "target/victim", "target/whole", "target/hostile"}
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_directory_is_exported_once_however_it_is_named(source: Writer, tmp_path: Path) -> None:
    directory = source.mkdir(b"directory")
    source.create(b"file", directory)
    plant_name(source, b"again", directory)
    plant_name(source, b"loop", directory, parent=directory)
    plant_name(source, b"root", ROOT_INODE, parent=directory)
    done, lines = reported(source, tmp_path)
    assert done.problems == 3
    assert all("a second name of directory" in line for line in lines)
    assert everything_in(tmp_path / "target") == {"directory", "directory/file"}


def test_an_image_that_is_no_file_is_not_read(source: Writer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of somebody")
    files = {name: source.create(name) for name in (b"link", b"pipe", b"directory", b"whole")}
    for number in files.values():
        source.write(number, 0, b"content")
    images = source.volume.images
    paths = {name: images.path(number) for name, number in files.items()}
    source.volume.close()
    for name in (b"link", b"pipe", b"directory"):
        paths[name].unlink()
    paths[b"link"].symlink_to(tmp_path / "secret")
    os.mkfifo(paths[b"pipe"])
    paths[b"directory"].mkdir()
    lines: list[str] = []
    done = export(tmp_path / "volume", tmp_path / "target", lambda _done, _total: None, lines.append)
    assert done.problems == 3
    assert all("a link, a device or a pipe" in line for line in lines)
    assert (tmp_path / "target" / "whole").read_bytes() == b"content"
    assert (tmp_path / "target" / "link").read_bytes() == b""


def test_what_cannot_be_exported_is_reported_and_all_else_comes_out(
    source: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.volume.volume.check_rows", lambda _: None)  # the disk holds what it holds
    huge = source.create(b"huge")
    set_attributes(source, huge, size=1 << 63)
    missing = source.create(b"missing")
    odd = source.create(b"odd")
    set_attributes(source, odd, mode=0o110644)
    file = source.create(b"file", mode=0o100640)
    source.set_xattr(file, b"user.a\0b", b"x")
    source.set_xattr(file, b"user.good", b"x")
    source.create(b"nul", mode=0o120777, target=b"a\0b")
    source.volume.catalog.discard(Table.INODES, inode_key(missing))
    done, lines = reported(source, tmp_path)
    named = {line.partition(":")[0].rpartition("/")[2] for line in lines}
    assert named == {"huge", "missing", "odd", "file", "nul"}
    assert done.problems == len(lines) == 5
    found = tmp_path / "target" / "file"
    assert stat.S_IMODE(found.stat().st_mode) == 0o640
    assert os.listxattr(found) == ["user.good"]


@needs_root
def test_what_gives_privileges_is_exported_as_it_is_and_counted(source: Writer, tmp_path: Path) -> None:
    source.create(b"suid", mode=0o104755)
    device = source.create(b"device", mode=0o060600)
    set_attributes(source, device, rdev_or_birth=os.makedev(7, 0))
    done, lines = reported(source, tmp_path)
    assert (done.problems, done.devices, done.privileged, lines) == (0, 1, 1, [])


@needs_root
def test_the_target_is_ones_own_and_nobody_else_s_until_all_is_done(
    source: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.create(b"link", mode=0o120777, target=b"x")
    source.volume.close()
    target = tmp_path / "target"
    target.mkdir(mode=0o777)
    (tmp_path / "to target").symlink_to(target)
    with pytest.raises(RefusedForSafety, match="symbolic link"):
        export(tmp_path / "volume", tmp_path / "to target", lambda _done, _total: None, pytest.fail)
    os.chown(target, 1000, 1000)
    with pytest.raises(RefusedForSafety, match="belongs to user 1000"):
        export(tmp_path / "volume", target, lambda _done, _total: None, pytest.fail)
    os.chown(target, 0, 0)
    modes: list[int] = []
    symlink = os.symlink

    def look(path: bytes, name: bytes, *, dir_fd: int) -> None:
        modes.append(stat.S_IMODE(target.stat().st_mode))
        symlink(path, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "symlink", look)
    export(tmp_path / "volume", target, lambda _done, _total: None, pytest.fail)
    assert modes == [0o700]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("place", ["here", "in memory"])
def test_the_longest_file_that_the_disk_takes_costs_as_little_as_it_holds(place: str, tmp_path: Path) -> None:
    """Made, cut off, made again, recovered, checked and exported: nothing goes by its length."""
    with contextlib.ExitStack() as stack:
        if place == "in memory":  # there 8 EiB less a page, where ext4 takes 16 TiB
            if not Path("/dev/shm").is_dir():
                pytest.skip("no /dev/shm")
            tmp_path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        directory, copy = tmp_path / "volume", tmp_path / "copy"
        Volume.create(directory, IDENTITY)
        volume = Volume.open(directory)
        writer, largest = Writer(volume), volume.file_bytes_max
        inode = writer.create(b"file")
        writer.write(inode, 0, b"beginning")
        for _ in range(2):
            writer.truncate(inode, largest)
            writer.write(inode, largest - 3, b"end")
            writer.truncate(inode, 5)
        writer.truncate(inode, largest)
        writer.write(inode, largest - 3, b"end")
        assert volume.read(inode, largest - 4, 100) == b"\0end"
        assert sum(path.stat().st_size for path in (directory / "regions").iterdir()) < 1000
        volume.abandon()
        assert check(directory, repair=False, report=pytest.fail).problems == 0
        export(directory, copy, lambda _done, _total: None, pytest.fail)
        with (copy / "file").open("rb", buffering=0) as exported:
            assert os.fstat(exported.fileno()).st_size == largest
            assert os.fstat(exported.fileno()).st_blocks * 512 < 1 << 20
            assert os.pread(exported.fileno(), 6, 0) == b"begin\0"
            assert os.pread(exported.fileno(), 100, largest - 4) == b"\0end"
