import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.change import KEEP_SIZE, ZERO_RANGE
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    CUT_EXTENTS_MAX,
    DIGESTS_PER_MESSAGE,
    FILE_BYTES_MAX,
    IMAGES_PER_DIRECTORY,
    MIB,
    OPEN_IMAGES_MAX,
    REGION_BYTES,
)
from fusemirror.seams import Seams
from fusemirror.volume.durable import allocate
from fusemirror.volume.extents import allocated, extents_of
from fusemirror.volume.image_content import Piece
from fusemirror.volume.images import ImageFacts, Images
from fusemirror.volume.region_set import REGIONS_END

BLOCK = 4096
ONE, TWO, THREE, FOUR = map(InodeNumber, (1, 2, 3, 4))


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    opened = Images(tmp_path, Seams())
    yield opened
    opened.close()


def test_a_missing_image_is_an_empty_one(images: Images) -> None:
    assert images.read(ONE, 0, 10) == b""
    assert images.facts(ONE) is None
    assert images.size(ONE) == 0
    assert not images.exists(ONE)
    assert images.content.region_digests(ONE, 0, 4) == ()
    images.truncate(ONE, 0, 1)
    images.set_times(ONE, 1, 1)
    images.cut(ONE, 0)
    images.unsynced.sync(ONE)
    images.remove(ONE)
    assert not images.exists(ONE)


def test_a_write_sets_both_times_of_the_file(images: Images) -> None:
    images.write(ONE, 5, b"data", 1_234_567_891)
    assert images.facts(ONE) == ImageFacts(size=9, mtime_ns=1_234_567_891, ctime_ns=1_234_567_891)
    assert images.read(ONE, 0, 100) == bytes(5) + b"data"
    images.set_times(ONE, 5, 7)
    assert images.facts(ONE) == ImageFacts(size=9, mtime_ns=5, ctime_ns=7)


def test_a_new_image_that_was_never_written_tells_of_no_change(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="full"):
        images.write(ONE, 0, b"data", 5)
    assert images.facts(ONE) == ImageFacts(size=0, mtime_ns=0, ctime_ns=0)
    assert set(images.numbers()) == {ONE}


def test_reading_does_not_change_the_times(images: Images) -> None:
    images.write(ONE, 0, b"data", 5)
    images.read(ONE, 0, 4)
    images.content.region_digests(ONE, 0, 1)
    assert images.facts(ONE) == ImageFacts(size=4, mtime_ns=5, ctime_ns=5)


def test_truncating_cuts_and_extends(images: Images) -> None:
    images.truncate(ONE, 3, 9)
    assert images.facts(ONE) == ImageFacts(size=3, mtime_ns=9, ctime_ns=9)
    images.write(ONE, 0, b"abcdef", 10)
    images.truncate(ONE, 2, 11)
    images.truncate(ONE, 4, 12)
    assert images.read(ONE, 0, 10) == b"ab\0\0"


def test_a_short_write_is_continued(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_pwrite(fd, bytes(data)[:3], offset))
    images.write(ONE, 2, b"0123456789", 1)
    assert images.read(ONE, 0, 100) == b"\0\x000123456789"


def test_a_write_that_fails_leaves_the_old_times_and_can_be_cut(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.write(ONE, 0, b"abc", 5)
    real_pwrite = os.pwrite

    def full_disk(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "full")
        return real_pwrite(descriptor, data[:4], offset)

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="full"):
        images.write(ONE, 3, bytes(10), 6)
    images.cut(ONE, 3)
    assert images.read(ONE, 0, 100) == b"abc"
    images.cut(ONE, 100)
    assert images.facts(ONE) is not None
    assert images.size(ONE) == 3


def test_more_images_than_descriptors_are_held_can_be_written(images: Images) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, OPEN_IMAGES_MAX + 100):
        images.write(InodeNumber(number), 0, b"%d" % number, number)
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_IMAGES_MAX
    for number in range(1, OPEN_IMAGES_MAX + 100):
        assert images.read(InodeNumber(number), 0, 10) == b"%d" % number


def test_numbers_finds_every_image_and_nothing_else(images: Images, tmp_path: Path) -> None:
    numbers = {1, IMAGES_PER_DIRECTORY - 1, IMAGES_PER_DIRECTORY, 12_345_678}
    for number in numbers:
        images.write(InodeNumber(number), 0, b"x", 1)
    (tmp_path / "lost and found").mkdir()
    (tmp_path / "0" / "file.txt").write_text("not mine")
    assert set(images.numbers()) == numbers
    images.remove(InodeNumber(IMAGES_PER_DIRECTORY))
    assert set(images.numbers()) == numbers - {IMAGES_PER_DIRECTORY}


def test_a_removed_image_is_no_longer_dirty(images: Images) -> None:
    images.write(ONE, 0, b"x", 1)
    assert ONE in images.unsynced.dirty
    images.remove(ONE)
    assert not images.unsynced.dirty


def test_settling_keeps_what_was_written_after_the_sync_began(images: Images) -> None:
    two = InodeNumber(2)
    images.write(ONE, 0, b"x", 1)
    images.write(two, 0, b"x", 1)
    synced = dict(images.unsynced.dirty)
    images.write(two, 0, b"y", 1)
    images.unsynced.synced(synced)
    assert set(images.unsynced.dirty) == {two}


def test_sync_makes_the_data_durable_and_a_new_name_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    images = Images(tmp_path, Seams(fdatasync=note))
    images.write(ONE, 0, b"x", 1)
    monkeypatch.setattr(os, "fsync", note)
    images.unsynced.sync(ONE)
    assert synced == [f"{tmp_path}/0/1", f"{tmp_path}/0"]
    images.unsynced.sync(ONE)
    assert synced[2:] == [f"{tmp_path}/0/1"]
    images.close()


def test_a_new_directory_of_images_is_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    images = Images(tmp_path, Seams())
    images.write(ONE, 0, b"x", 1)
    assert synced == [str(tmp_path)]
    images.close()


def recycle(images: Images, inode: InodeNumber) -> None:
    images.leave(inode)
    images.spares.recycle([inode])


def test_a_recycled_image_becomes_the_next_new_one_and_tells_of_nothing(
    images: Images, tmp_path: Path
) -> None:
    images.write(ONE, 0, b"secret", 5)
    on_disk = images.path(ONE).stat().st_ino
    recycle(images, ONE)
    assert not images.exists(ONE)
    assert set(images.numbers()) == set()
    images.prepare(TWO)
    assert images.path(TWO).stat().st_ino == on_disk
    assert images.facts(TWO) == ImageFacts(size=0, mtime_ns=0, ctime_ns=0)
    images.write(TWO, 2, b"x", 7)
    assert images.read(TWO, 0, 10) == b"\0\0x"
    images.write(ONE, 0, b"y", 8)
    assert images.path(ONE).stat().st_ino != on_disk


def test_an_image_is_durably_empty_before_it_is_a_spare(tmp_path: Path) -> None:
    """Or a power cut could bring back, in a new file, what the deleted one held."""
    synced: list[tuple[str, int]] = []

    def note(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    images = Images(tmp_path, Seams(fdatasync=note))
    images.write(ONE, 0, b"secret", 5)
    recycle(images, ONE)
    assert synced == [(f"{tmp_path}/0/1", 0)]
    images.close()


def test_an_image_that_cannot_be_emptied_durably_is_no_spare_yet(tmp_path: Path) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    images = Images(tmp_path, Seams(fdatasync=fail))
    images.write(ONE, 0, b"secret", 5)
    with pytest.raises(OSError, match="broken"):
        recycle(images, ONE)
    assert not (tmp_path / "spare").exists()
    images.write(TWO, 0, b"x", 6)
    assert set(images.numbers()) == {ONE, TWO}, "it is removed another time"
    images.close()


def test_spares_outlast_the_mount_and_one_that_holds_bytes_is_not_used(tmp_path: Path) -> None:
    images = Images(tmp_path, Seams())
    for inode in (ONE, TWO):
        images.write(inode, 0, b"data", 5)
        recycle(images, inode)
    images.close()
    (tmp_path / "spare" / "1").write_bytes(b"somebody's")
    images = Images(tmp_path, Seams())
    for inode in (THREE, FOUR):
        images.prepare(inode)
        assert images.facts(inode) == ImageFacts(size=0, mtime_ns=0, ctime_ns=0)
    assert [path.name for path in (tmp_path / "spare").iterdir()] == ["1"]
    images.close()


def test_a_spare_that_has_gone_is_not_missed(images: Images, tmp_path: Path) -> None:
    images.write(ONE, 0, b"data", 5)
    recycle(images, ONE)
    (tmp_path / "spare" / "1").unlink()
    images.write(TWO, 0, b"x", 5)
    assert images.read(TWO, 0, 10) == b"x"


def test_only_so_many_spares_are_kept_of_what_is_recycled_together(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.volume.spares.SPARE_IMAGES_MAX", 2)
    for inode in (ONE, TWO, THREE, FOUR):
        images.write(inode, 0, b"data", 5)
        images.leave(inode)
    images.spares.recycle([ONE, TWO, THREE, FOUR])
    assert {path.name for path in (tmp_path / "spare").iterdir()} == {"1", "2"}
    assert set(images.numbers()) == set()


def test_only_so_many_spares_are_kept(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.volume.spares.SPARE_IMAGES_MAX", 1)
    for inode in (ONE, TWO):
        images.write(inode, 0, b"data", 5)
    for inode in (ONE, TWO):
        recycle(images, inode)
    assert [path.name for path in (tmp_path / "spare").iterdir()] == ["1"]
    assert set(images.numbers()) == set()


def test_an_image_is_removed_where_a_full_disk_takes_no_spare(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    images.write(ONE, 0, b"data", 5)
    monkeypatch.setattr(os, "rename", full_disk)
    recycle(images, ONE)
    assert not images.exists(ONE)
    assert not list((tmp_path / "spare").iterdir())


@pytest.mark.parametrize("use", ["write", "keep_all"])
def test_an_image_that_is_needed_again_is_not_recycled(images: Images, use: str) -> None:
    """A copy of the other host's catalog may bring a file back while a thread removes its image."""
    images.write(ONE, 0, b"data", 5)
    images.leave(ONE)
    if use == "write":
        images.write(ONE, 4, b" and more", 6)
    else:
        images.spares.keep_all()
    images.spares.recycle([ONE])
    images.write(TWO, 0, b"x", 7)
    assert images.read(ONE, 0, 20) == (b"data and more" if use == "write" else b"data")


def test_the_whole_filesystem_can_be_synced(images: Images) -> None:
    images.write(ONE, 0, b"x", 1)
    images.unsynced.sync_filesystem()


@given(
    pieces=st.lists(st.tuples(st.integers(0, 6), st.integers(1, REGION_BYTES)), max_size=4),
    size=st.integers(0, 8 * REGION_BYTES),
    first=st.integers(0, 8),
    count=st.integers(0, 8),
)
def test_digests_are_those_of_the_content_with_its_holes(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, int]],
    size: int,
    first: int,
    count: int,
) -> None:
    images = Images(tmp_path_factory.mktemp("images"), Seams())
    for region, length in pieces:
        images.write(ONE, region * REGION_BYTES, b"\xa5" * length, 1)
    images.truncate(ONE, size, 2)
    content = images.read(ONE, 0, 1 << 30).ljust(size, b"\0")
    starts = range(first * REGION_BYTES, min(size, (first + count) * REGION_BYTES), REGION_BYTES)
    expected = tuple(xxhash.xxh3_64_intdigest(content[start : start + REGION_BYTES]) for start in starts)
    assert images.content.region_digests(ONE, first, count) == expected
    copy = bytearray(size)
    for offset, length in images.content.extents(ONE, size):
        copy[offset : offset + length] = images.read(ONE, offset, length)
    assert bytes(copy) == content
    images.close()


def test_holes_are_found_and_not_read(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    images.truncate(ONE, 1000 * REGION_BYTES, 1)
    images.write(ONE, 999 * REGION_BYTES, b"x" * REGION_BYTES, 1)
    real_pread, read = os.pread, []

    def counting_pread(descriptor: int, length: int, offset: int) -> bytes:
        read.append(length)
        return real_pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counting_pread)
    digests = images.content.region_digests(ONE, 0, 1000)
    assert len(digests) == 1000
    assert len(set(digests[:999])) == 1
    assert sum(read) <= 2 * REGION_BYTES


def test_a_link_in_the_place_of_an_image_is_neither_read_nor_written(images: Images, tmp_path: Path) -> None:
    images.write(ONE, 0, b"content", 1)
    path = images.path(ONE)
    images.release(ONE)
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    path.unlink()
    path.symlink_to(victim)
    for use in (
        lambda: images.read(ONE, 0, 5),
        lambda: images.write(ONE, 0, b"x", 2),
        lambda: images.truncate(ONE, 0, 2),
        lambda: images.facts(ONE),
        lambda: images.content.region_digests(ONE, 0, 1),
        lambda: images.unsynced.sync(ONE),
    ):
        with pytest.raises(OSError, match="a link, a device or a pipe"):
            use()
    assert victim.read_bytes() == b"untouched"


# --- sparse files: what an image costs goes by its data ----------------------------------------------------

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(params=["here", "in memory"])
def sparse(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Images]:
    """Images on whatever disk the tests have, and where there is one on tmpfs, which takes the longest."""
    with contextlib.ExitStack() as stack:
        directory = tmp_path
        if request.param == "in memory":
            if not SHARED_MEMORY.is_dir():
                pytest.skip("no /dev/shm")
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=SHARED_MEMORY)))
        images = Images(directory, Seams())
        stack.callback(images.close)
        yield images


def walked(images: Images, end: int) -> list[Piece]:
    pieces = [images.content.piece(ONE, 0, end)]
    while pieces[-1].end < end:
        pieces.append(images.content.piece(ONE, pieces[-1].end, end))
    return pieces


def test_the_largest_file_of_the_disk_is_a_few_pieces(sparse: Images) -> None:
    largest = sparse.disk.file_bytes_max
    sparse.write(ONE, 100, b"beginning", 1)
    sparse.write(ONE, 1 << 40, b"middle", 1)
    sparse.write(ONE, largest - 3, b"end", 1)
    end, middle = -(-largest // REGION_BYTES), (1 << 40) // REGION_BYTES
    assert walked(sparse, end) == [
        Piece(0, 1, is_hole=False),
        Piece(1, middle, is_hole=True),
        Piece(middle, middle + 1, is_hole=False),
        Piece(middle + 1, end - 1, is_hole=True),
        Piece(end - 1, end, is_hole=False),
    ]
    assert sparse.content.data_in(ONE, 0, end) == ([0, middle, end - 1], end)
    assert sparse.content.data_bytes(ONE) < 1 << 20
    assert len(list(sparse.content.extents(ONE, largest))) == 3
    assert sparse.content.region_digests(ONE, end - 1, 4) != sparse.content.region_digests(ONE, 1, 1)


def test_nothing_longer_is_taken_than_the_disk_takes(sparse: Images) -> None:
    largest = sparse.disk.file_bytes_max
    sparse.truncate(ONE, largest, 1)
    assert sparse.size(ONE) == largest
    sparse.write(ONE, largest - 1, b"x", 1)
    assert walked(sparse, REGIONS_END)[-1 if largest % REGION_BYTES else 0].end == REGIONS_END
    if largest < FILE_BYTES_MAX - 4096:
        with pytest.raises(OSError, match="large"):
            sparse.truncate(ONE, largest + 1, 1)
    assert not list(sparse.path(ONE).parents[1].glob("probe*"))


def test_a_disk_that_cannot_be_asked_is_asked_again(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "ftruncate", full)
    assert images.disk.file_bytes_max == FILE_BYTES_MAX
    monkeypatch.undo()
    assert images.disk.file_bytes_max == Images(images.path(ONE).parents[1], Seams()).disk.file_bytes_max


def test_a_disk_that_takes_little_is_found_out(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, real = 17_592_186_040_320, os.ftruncate  # ext4's

    def limited(descriptor: int, size: int) -> None:
        if size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        real(descriptor, min(size, 1))

    monkeypatch.setattr(os, "ftruncate", limited)
    assert images.disk.file_bytes_max == limit


@given(
    writes=st.lists(
        st.tuples(st.integers(0, 40 * REGION_BYTES), st.integers(1, 3 * REGION_BYTES)), max_size=6
    ),
    bounds=st.tuples(st.integers(0, 40), st.integers(1, 10)),
)
def test_pieces_hold_all_that_was_written_and_no_piece_is_too_long(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]], bounds: tuple[int, int]
) -> None:
    images = Images(tmp_path_factory.mktemp("images"), Seams())
    written: set[int] = set()
    for offset, length in writes:
        images.write(ONE, offset, b"x" * length, 1)
        written.update(range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1))
    data: set[int] = set()
    for piece in walked(images, 50):
        assert piece.is_hole or piece.end - piece.first <= DIGESTS_PER_MESSAGE
        data.update(() if piece.is_hole else range(piece.first, piece.end))
    assert data == written
    first, count = bounds
    images.content.punch(ONE, first, first + count)
    assert images.content.data_in(ONE, first, first + count) == ([], first + count)
    kept = [region for region in sorted(written) if not first <= region < first + count]
    looked, found = 0, list[int]()
    while looked < 50:
        more, looked = images.content.data_in(ONE, looked, 50)
        found += more
    assert found == kept
    images.close()


def test_zeros_that_take_room_are_no_data(images: Images) -> None:
    images.write(ONE, 0, bytes(3 * REGION_BYTES + 5), 1)
    assert images.content.data_in(ONE, 0, 9) == ([], 9)
    images.write(ONE, REGION_BYTES, b"x", 1)
    assert images.content.data_in(ONE, 0, 9) == ([1], 9)


def test_a_filesystem_without_holes_gets_zeros(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr("fusemirror.volume.image_content.punch_hole", refuse)
    images.write(ONE, 0, b"x" * (40 * REGION_BYTES), 1)
    at = 2
    while at < 39:
        at = images.content.punch(ONE, at, 39)
    data = images.read(ONE, 0, 1 << 30)
    ends = b"x" * (2 * REGION_BYTES), b"x" * REGION_BYTES
    assert data == ends[0] + bytes(37 * REGION_BYTES) + ends[1]


def test_copying_out_leaves_holes_out_whatever_their_length(sparse: Images, tmp_path: Path) -> None:
    sparse.write(ONE, 5, b"here", 1)
    sparse.write(ONE, 3 << 40, b"there", 1)
    with (tmp_path / "copy").open("w+b", buffering=0) as copy:
        offset, steps = 0, 0
        while offset < sparse.size(ONE):
            offset = sparse.content.copy_out(
                ONE, copy.fileno(), offset, min(sparse.size(ONE), offset + (8 << 20))
            )
            steps += 1
        assert steps == 2
        assert os.pread(copy.fileno(), 9, 3 << 40) == b"there"
        assert os.pread(copy.fileno(), 9, 0) == bytes(5) + b"here"


def test_a_discarded_image_is_gone_at_once_and_freed_later_or_by_the_next_mount(
    images: Images, tmp_path: Path
) -> None:
    for round_ in range(2):
        images.write(ONE, 0, b"%d" % round_, 1)
        images.discard(ONE)
        images.discard(TWO)
        assert not images.exists(ONE)
        assert images.read(ONE, 0, 10) == b""
    assert set(images.numbers()) == set()
    again = Images(tmp_path, Seams())
    waiting = [not again.discarded.is_empty]
    free(again)
    assert [*waiting, not again.discarded.is_empty] == [True, False]
    assert not list((tmp_path / "discarded").iterdir())


def test_what_was_no_file_is_discarded_too_and_what_it_leads_to_stays(images: Images, tmp_path: Path) -> None:
    images.write(ONE, 0, b"x", 1)
    images.path(TWO).symlink_to(images.path(ONE))
    images.discard(TWO)
    free(images)
    assert not list((tmp_path / "discarded").iterdir())
    assert images.read(ONE, 0, 10) == b"x"


# --- images in very many places: none is cut or removed at one go ------------------------------------------


def free(images: Images) -> int:
    """Free all that is discarded; how many parts that took."""
    parts = 1
    while images.discarded.free_some():
        parts += 1
    return parts


@pytest.fixture
def scattered(sparse: Images, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Images of which ONE lies in 100 places; a disk that frees more than 40 at once would take too long."""
    for place in range(100):
        sparse.write(ONE, place * 2 * REGION_BYTES, b"x" * REGION_BYTES, 5)

    def ftruncate(descriptor: int, size: int, cut: Callable[[int, int], None] = os.ftruncate) -> None:
        assert sum(1 for _ in extents_of(descriptor, FILE_BYTES_MAX)) <= 40 + sum(
            1 for _ in extents_of(descriptor, size)
        )
        cut(descriptor, size)

    def unlink(path: str, remove: Callable[[str], None] = os.unlink) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            is_last = os.fstat(descriptor).st_nlink == 1
            assert not is_last or sum(1 for _ in extents_of(descriptor, FILE_BYTES_MAX)) <= 40
        finally:
            os.close(descriptor)
        remove(path)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    monkeypatch.setattr(os, "unlink", unlink)
    return sparse


def test_a_scattered_image_is_emptied_by_an_empty_one_that_takes_its_name(scattered: Images) -> None:
    scattered.truncate(ONE, 0, 9)
    assert scattered.facts(ONE) == ImageFacts(size=0, mtime_ns=9, ctime_ns=9)
    scattered.write(ONE, 3, b"new", 10)  # never to what is freed
    assert free(scattered) > 3
    assert scattered.read(ONE, 0, 100) == bytes(3) + b"new"
    assert scattered.discarded.is_empty


def test_a_scattered_image_is_recycled_without_a_long_step(scattered: Images) -> None:
    scattered.leave(ONE)
    assert scattered.spares.recycle([ONE]) == []
    assert not scattered.exists(ONE)
    assert free(scattered) > 3


def pieces_of(path: str | Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sum(1 for _ in allocated(descriptor, 0))
    finally:
        os.close(descriptor)


@pytest.fixture
def reserved(images: Images, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Images of which ONE has a byte, and 100 blocks in as many places beyond its end, as an earlier version
    let it have; a disk that frees more than 40 places at once would take too long."""
    images.write(ONE, 0, b"x", 5)
    descriptor = os.open(images.path(ONE), os.O_RDWR)
    for place in range(1, 101):
        allocate(descriptor, KEEP_SIZE, place * 2 * BLOCK, BLOCK)
    os.fsync(descriptor)
    os.close(descriptor)
    if pieces_of(images.path(ONE)) < 100:
        pytest.skip("this disk tells of no extents")

    def ftruncate(descriptor: int, size: int, cut: Callable[[int, int], None] = os.ftruncate) -> None:
        before = sum(1 for _ in allocated(descriptor, 0))
        cut(descriptor, size)
        assert before - sum(1 for _ in allocated(descriptor, 0)) <= 40

    def unlink(path: str, remove: Callable[[str], None] = os.unlink) -> None:
        assert os.stat(path).st_nlink > 1 or pieces_of(path) <= 40
        remove(path)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    monkeypatch.setattr(os, "unlink", unlink)
    return images


def test_what_is_reserved_beyond_the_end_is_freed_a_little_at_a_time(reserved: Images) -> None:
    reserved.truncate(ONE, 0, 9)
    assert reserved.facts(ONE) == ImageFacts(size=0, mtime_ns=9, ctime_ns=9)
    reserved.write(ONE, 3, b"new", 10)
    assert free(reserved) > 3
    assert reserved.read(ONE, 0, 100) == bytes(3) + b"new"
    assert reserved.discarded.is_empty


def test_an_image_with_much_reserved_beyond_its_end_is_recycled_without_a_long_step(reserved: Images) -> None:
    reserved.leave(ONE)
    assert reserved.spares.recycle([ONE]) == []
    assert not reserved.exists(ONE)
    assert free(reserved) > 3


@pytest.mark.parametrize("mode", [KEEP_SIZE, ZERO_RANGE | KEEP_SIZE])
def test_no_more_is_reserved_beyond_the_end_than_is_freed_at_once(images: Images, mode: int) -> None:
    images.write(ONE, 0, b"x" * 3 * BLOCK, 5)
    for place in range(2, 100):
        images.allocate(ONE, place * 2 * BLOCK, (place * 2 + 1) * BLOCK, mode, 6 + place)
    assert images.facts(ONE) == ImageFacts(size=3 * BLOCK, mtime_ns=105, ctime_ns=105)
    assert pieces_of(images.path(ONE)) <= CUT_EXTENTS_MAX + 1
    images.allocate(ONE, BLOCK, 900 * BLOCK, mode, 200)  # what lies within it does all the same
    data = b"x" * BLOCK if mode & ZERO_RANGE else b"x" * 3 * BLOCK
    assert images.read(ONE, 0, MIB) == data.ljust(3 * BLOCK, b"\0")
    if images.content.is_scattered_beyond_end(ONE):
        assert images.content.data_bytes(ONE) < 900 * BLOCK
    images.truncate(ONE, 3 * BLOCK, 300)
    assert not images.content.is_scattered_beyond_end(ONE)
    assert not images.content.is_scattered_beyond_end(TWO)


def test_a_scattered_image_is_cut_at_its_points_and_a_whole_one_at_once(scattered: Images) -> None:
    size = 20 * 2 * REGION_BYTES
    points = list(scattered.content.step_points(ONE, size, FILE_BYTES_MAX))
    assert len(points) == 2
    assert list(scattered.content.step_points(ONE, size, points[1])) == points[:1]
    for point in (*reversed(points), size):
        scattered.truncate(ONE, point, 9)
    assert scattered.size(ONE) == size
    scattered.write(TWO, 0, b"x" * MIB, 5)
    assert list(scattered.content.step_points(TWO, 0, FILE_BYTES_MAX)) == []
    assert list(scattered.content.step_points(THREE, 0, FILE_BYTES_MAX)) == []


def test_a_hole_of_a_scattered_image_is_made_in_parts(scattered: Images) -> None:
    end, parts = 200, [0]
    while parts[-1] < end:
        parts.append(scattered.content.punch(ONE, parts[-1], end))
    assert len(parts) > 3
    assert scattered.content.piece(ONE, 0, end) == Piece(0, end, is_hole=True)


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EPERM])
def test_where_no_image_can_take_its_place_a_scattered_one_is_cut(
    sparse: Images, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def link(*_arguments: object) -> None:
        raise OSError(refusal, "refused")

    for place in range(100):
        sparse.write(ONE, place * 2 * REGION_BYTES, b"x" * REGION_BYTES, 5)
    monkeypatch.setattr(os, "link", link)
    sparse.truncate(ONE, 0, 9)
    assert sparse.facts(ONE) == ImageFacts(size=0, mtime_ns=9, ctime_ns=9)
    assert sparse.discarded.is_empty


def test_killed_before_another_image_took_its_place_it_stays_whole(
    sparse: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def rename(*_arguments: object) -> None:
        raise Killed

    for place in range(100):
        sparse.write(ONE, place * 2 * REGION_BYTES, b"x" * REGION_BYTES, 5)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        with pytest.raises(Killed):
            sparse.truncate(ONE, 0, 9)
    again = Images(sparse.path(ONE).parent.parent, Seams())
    free(again)
    assert again.read(ONE, 99 * 2 * REGION_BYTES, MIB) == b"x" * REGION_BYTES
    assert again.facts(ONE) == ImageFacts(size=199 * REGION_BYTES, mtime_ns=5, ctime_ns=5)
    again.close()


def test_the_name_of_an_image_that_took_another_s_place_meanwhile_is_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread syncs a name, and the loop gives it to another image just then: that one's is not durable."""
    synced: list[str] = []
    images = Images(tmp_path, Seams())
    monkeypatch.setattr("fusemirror.volume.images.takes_long", lambda _descriptor, _size: True)

    def sync_and_replace(directory: str) -> None:
        synced.append(directory)
        if len(synced) == 2:
            images.write(ONE, 0, b"more", 2)
            images.truncate(ONE, 0, 3)

    for module in ("unsynced", "image_files"):
        monkeypatch.setattr(f"fusemirror.volume.{module}.sync_directory", sync_and_replace)
    images.write(ONE, 0, b"data", 1)
    images.unsynced.sync(ONE)
    assert len(synced) == 2  # the directory of images once, for the one that was made in it
    images.unsynced.sync(ONE)
    images.unsynced.sync(ONE)
    assert len(synced) == 3
    images.close()
