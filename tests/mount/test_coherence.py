"""G2 through two kernels: once a call has returned on one host, the other host sees its effect."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, digest, wait_until

MOVED_TIMEOUT_S = 20.0

_numbers = count()


@pytest.fixture
def name() -> str:
    """A name that no other test has taken."""
    return f"file{next(_numbers)}"


@pytest.fixture
def mine(here: Host, name: str) -> Path:
    return here.mountpoint / name


@pytest.fixture
def theirs(there: Host, name: str) -> Path:
    return there.mountpoint / name


def in_parallel(*functions: Callable[[], None]) -> None:
    """Run the functions at once; return when all have ended, and raise what the first of them raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - handed to the test below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def attributes(path: Path) -> tuple[int, ...]:
    """All that stat(2) tells of a file but the device, which differs by host."""
    found = path.stat()
    names = ("ino", "mode", "nlink", "uid", "gid", "size", "blocks", "atime_ns", "mtime_ns", "ctime_ns")
    return tuple(getattr(found, f"st_{name}") for name in names)


def test_every_write_is_read_by_the_other_host_at_once(mine: Path, theirs: Path) -> None:
    mine.touch()
    with mine.open("r+b", buffering=0) as writing, theirs.open("rb", buffering=0) as reading:
        for number in range(200):
            content = b"%08d" % number
            os.pwrite(writing.fileno(), content, 4 * number)
            assert os.pread(reading.fileno(), 8, 4 * number) == content


def test_the_size_is_seen_at_once(mine: Path, theirs: Path) -> None:
    for size in (0, 1, 4095, 4096, 70_000, 1 << 20):
        mine.write_bytes(b"x" * size)
        assert theirs.stat().st_size == size
    os.truncate(mine, 3)
    assert theirs.read_bytes() == b"xxx"
    os.truncate(mine, 6)
    assert theirs.read_bytes() == b"xxx\0\0\0"


def test_attributes_are_seen_at_once(mine: Path, theirs: Path) -> None:
    mine.touch()
    theirs.stat()  # something to cache, if anything were
    mine.chmod(0o4751)
    assert theirs.stat().st_mode == mine.stat().st_mode
    os.chown(mine, 12, 34)
    assert (theirs.stat().st_uid, theirs.stat().st_gid) == (12, 34)
    os.utime(mine, ns=(1_000_000_007, 2_000_000_009))
    assert attributes(theirs) == attributes(mine)


def test_extended_attributes_are_seen_at_once(mine: Path, theirs: Path) -> None:
    mine.touch()
    assert os.listxattr(theirs) == []
    os.setxattr(mine, "user.long", b"v" * 60_000)
    assert os.getxattr(theirs, "user.long") == b"v" * 60_000
    os.removexattr(mine, "user.long")
    assert os.listxattr(theirs) == []


def test_a_new_name_is_seen_where_it_was_missing_before(mine: Path, theirs: Path) -> None:
    for _ in range(50):
        assert not theirs.exists()
        mine.touch()
        assert theirs.exists()
        mine.unlink()


def test_a_rename_is_seen_at_once(mine: Path, theirs: Path) -> None:
    mine.write_text("moved")
    for number in range(50):
        old, new = (f"{mine.name}.{n}" if n else mine.name for n in (number, number + 1))
        mine.with_name(old).rename(mine.with_name(new))
        assert not theirs.with_name(old).exists()
        assert theirs.with_name(new).read_text() == "moved"


def test_links_are_the_same_file_on_both_hosts(mine: Path, theirs: Path) -> None:
    mine.write_text("one")
    theirs.with_suffix(".hard").hardlink_to(theirs)
    mine.with_suffix(".soft").symlink_to(mine.name)
    mine.write_text("two")
    assert theirs.with_suffix(".hard").read_text() == "two"
    assert theirs.with_suffix(".soft").read_text() == "two"
    assert mine.stat().st_nlink == theirs.stat().st_nlink == 2
    assert mine.stat().st_ino == theirs.with_suffix(".hard").stat().st_ino


def test_an_open_file_survives_what_the_other_host_does_to_its_name(mine: Path, theirs: Path) -> None:
    mine.write_text("kept")
    with mine.open("r+b", buffering=0) as held:
        theirs.rename(theirs.with_suffix(".moved"))
        assert os.pread(held.fileno(), 9, 0) == b"kept"
        theirs.with_suffix(".moved").unlink()
        os.pwrite(held.fileno(), b"still here", 0)
        assert os.pread(held.fileno(), 99, 0) == b"still here"
        assert os.fstat(held.fileno()).st_nlink == 0


def test_a_directory_that_the_other_host_filled_is_not_removed(mine: Path, theirs: Path) -> None:
    mine.mkdir()
    assert list(theirs.iterdir()) == []
    (theirs / "inside").touch()
    with pytest.raises(OSError, match="not empty") as raised:
        mine.rmdir()
    assert raised.value.errno == errno.ENOTEMPTY
    assert [path.name for path in mine.iterdir()] == ["inside"]


def test_of_two_hosts_that_create_a_name_exclusively_one_wins(pair: TwoHosts, name: str) -> None:
    directory = pair.primary.mountpoint / name
    directory.mkdir()
    won: list[str] = []

    def take(host: Host) -> None:
        for number in range(200):
            try:
                (host.mountpoint / name / f"{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            won.append(f"{number}")

    in_parallel(lambda: take(pair.primary), lambda: take(pair.backup))
    assert sorted(won) == sorted(path.name for path in directory.iterdir())
    assert len(won) == 200


def test_appends_of_both_hosts_leave_every_record_whole_and_in_order(pair: TwoHosts, name: str) -> None:
    def append(host: Host) -> None:
        with (host.mountpoint / name).open("ab", buffering=0) as file:
            for number in range(300):
                file.write(f"{host.name:>8}{number:7}\n".encode())

    in_parallel(lambda: append(pair.primary), lambda: append(pair.backup))
    lines = (pair.primary.mountpoint / name).read_text().splitlines()
    for host in pair:
        assert [int(line[8:]) for line in lines if line[:8].strip() == host.name] == list(range(300))


def test_hosts_that_hammer_the_same_names_neither_hang_nor_differ(pair: TwoHosts, name: str) -> None:
    (pair.primary.mountpoint / name).mkdir()

    def hammer(host: Host) -> None:
        directory = host.mountpoint / name
        for number in range(150):
            one, other = (directory / f"{(number + n) % 3}" for n in (0, 1))
            for act in (
                lambda one=one: one.write_text(host.name),
                lambda one=one, other=other: one.rename(other),
                lambda: os.listdir(directory),
                lambda other=other: other.read_text(),
                lambda other=other: other.unlink(),
            ):
                try:
                    act()
                except FileNotFoundError:  # the other host was first
                    continue

    in_parallel(lambda: hammer(pair.primary), lambda: hammer(pair.backup))
    listed = [sorted(os.listdir(host.mountpoint / name)) for host in pair]
    assert listed[0] == listed[1]


def test_large_files_are_the_same_on_both_hosts(mine: Path, theirs: Path) -> None:
    with mine.open("wb") as file:
        for piece in range(8):
            file.seek(piece * 3_000_017)
            file.write(os.urandom(1_500_000))
    assert theirs.stat().st_size == mine.stat().st_size
    assert digest(theirs) == digest(mine)


def test_verify_finds_no_difference_while_both_hosts_write(pair: TwoHosts, name: str) -> None:
    ended = threading.Event()

    def write(host: Host) -> None:
        number = 0
        while not ended.is_set():
            path = host.mountpoint / f"{name}.{host.name}.{number % 5}"
            path.write_bytes(os.urandom(100_000))
            number += 1

    def verify() -> None:
        try:
            for host in pair:
                host.fusemirror("verify", FILESYSTEM)
        finally:
            ended.set()

    in_parallel(lambda: write(pair.primary), lambda: write(pair.backup), verify)


KINDS_OF_JOBS: dict[str, Callable[[Path], None]] = {"a directory": Path.mkdir, "a file": Path.touch}


@pytest.mark.parametrize("kind", KINDS_OF_JOBS)
def test_what_the_other_host_moved_is_moved_on_at_once(mine: Path, theirs: Path, kind: str) -> None:
    """Between directories, within one, back to where it was, and by either host in turn."""
    places = ("new/job", "work/job", "done/job", "done/again", "work/again", "new/job")
    for place in ("new", "work", "done"):
        (mine / place).mkdir(parents=True)
    KINDS_OF_JOBS[kind](mine / "new/job")
    assert (mine / "new/job").exists(), "so that the kernel has it by this name"
    hosts = (theirs, theirs, mine)
    for turn in range(10):
        for index, (old, new) in enumerate(pairwise(places)):
            host = hosts[(turn + index) % len(hosts)]
            (host / old).rename(host / new)
    for host in (mine, theirs):
        assert [path.name for path in (host / "new").iterdir()] == ["job"]


def test_what_the_other_host_moved_is_moved_on_in_a_moment_while_programs_use_it(
    mine: Path, theirs: Path
) -> None:
    """Nobody has to look at its new place first: without that it could never be moved on."""
    for place in ("new", "work", "done/below"):
        (mine / place).mkdir(parents=True)
    (mine / "new/job").mkdir()
    places = ("new/job", "work/job", "done/below/again", "new/job")
    with opened(theirs / "new/job"), (theirs / "new/job/log").open("w"), opened(mine / "new/job"):
        for turn in range(4):
            for index, (old, new) in enumerate(pairwise(places)):
                host = (mine, theirs)[(turn + index) % 2]
                move = partial(is_moved, host / old, host / new)
                wait_until(move, MOVED_TIMEOUT_S, f"{old} to become {new}")
                assert (host / new / "log").exists()


def test_a_directory_in_use_that_moved_into_a_new_one_is_no_longer_below_what_is_moved_there(
    mine: Path, theirs: Path
) -> None:
    """Though nobody on this host has ever looked at the new one."""
    (mine / "above/used").mkdir(parents=True)
    with opened(theirs / "above/used") as used:
        (mine / "new/newer").mkdir(parents=True)
        (mine / "above/used").rename(mine / "new/newer/used")
        move = partial(is_moved, theirs / "above", Path("below"), used)
        wait_until(move, MOVED_TIMEOUT_S, "what was above it to go below it")
    assert (mine / "new/newer/used/below").is_dir()


def is_moved(old: Path, new: Path, directory: int | None = None) -> bool:
    """Whether the kernel has heard by now where it is."""
    try:
        os.rename(old, new, dst_dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.EINVAL):
            raise
        return False
    return True


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_both_hosts_take_directories_from_the_queues_of_each_other(pair: TwoHosts, name: str) -> None:
    """Each claims a job by moving it to a place of its own, and from there to the next queue, or back."""
    root = pair.primary.mountpoint / name
    queues = ("first", "second", "third", "done")
    for place in (*queues, *(host.name for host in pair)):
        (root / place).mkdir(parents=True)
    jobs = [f"job{number}" for number in range(12)]
    for job in jobs:
        (root / "first" / job).mkdir()

    def work(host: Host) -> None:
        top = host.mountpoint / name
        returned: set[tuple[str, str]] = set()
        while len(os.listdir(top / "done")) < len(jobs):
            for queue, following in pairwise(queues):
                for job in jobs:  # without a look at the queue, which would tell the kernel of the move
                    claimed = top / host.name / job
                    try:
                        (top / queue / job).rename(claimed)
                    except FileNotFoundError:
                        continue  # the other host was faster
                    (claimed / f"{queue} by {host.name}").touch()
                    goes_back = (queue, job) not in returned and len(returned) % 2 == 0
                    returned.add((queue, job))
                    claimed.rename(top / (queue if goes_back else following) / job)

    in_parallel(*(partial(work, host) for host in pair))
    for host in pair:
        done = host.mountpoint / name / "done"
        assert sorted(os.listdir(done)) == sorted(jobs)
        for job in jobs:
            assert {each.split()[0] for each in os.listdir(done / job)} == {"first", "second", "third"}
