"""G2 with the kernel's caches in effect: what it keeps is never older than what a call has returned."""

import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.hosts import Host, TwoHosts, wait_until
from tests.mount.conftest import checked
from tests.mount.test_coherence import in_parallel

BLOCK = 4096
LOOKS_MAX = 2_000
PEER_TIMEOUT_S = 15.0  # the backup's kernel keeps nothing longer than that
DEADLINE_S = 30
PREAD64 = "17 "  # its number on x86-64, in the first column of a thread's `syscall`

_numbers = count()


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with checked(request, peer_timeout_s=PEER_TIMEOUT_S) as shared:
        yield shared


@pytest.fixture
def name() -> str:
    return f"kept{next(_numbers)}"


@pytest.fixture
def mine(here: Host, name: str) -> Path:
    return here.mountpoint / name


def reads_of(host: Host) -> int:
    """Reads that reached the mount process: what the kernel answers by itself is not among them."""
    reads = host.status()["reads"]
    return int(reads["local"]) + int(reads["routed"])


def opened_at_rest(path: Path, host: Host) -> int:
    """A descriptor whose content the kernel keeps: that of a file which nobody changes for a while."""
    found: list[int] = []

    def kept() -> bool:
        descriptor = os.open(path, os.O_RDONLY)
        os.pread(descriptor, BLOCK, 0)
        before = reads_of(host)
        os.pread(descriptor, BLOCK, 0)
        if reads_of(host) == before:
            found.append(descriptor)
            return True
        os.close(descriptor)
        return False

    wait_until(kept, DEADLINE_S, "the kernel keeps the content")
    return found[0]


@pytest.fixture
def reading(mine: Path, there: Host, name: str) -> Iterator[int]:
    """The other host's descriptor of a file at rest, with its content in the other host's page cache."""
    mine.write_bytes(b"0" * BLOCK)
    descriptor = opened_at_rest(there.mountpoint / name, there)
    yield descriptor
    os.close(descriptor)


def test_reads_and_attributes_of_a_file_at_rest_reach_no_mount_process(reading: int, there: Host) -> None:
    def kept() -> bool:
        granted = there.status()["kernel_cache"]["attributes_granted"]
        for _ in range(100):
            os.fstat(reading)
            assert os.pread(reading, BLOCK, 0) == b"0" * BLOCK
        return bool(there.status()["kernel_cache"]["attributes_granted"] == granted > 0)

    before = reads_of(there)
    wait_until(kept, DEADLINE_S, "the kernel keeps the attributes")
    assert reads_of(there) == before


def test_a_write_is_read_at_once_by_who_kept_the_content(mine: Path, reading: int) -> None:
    with mine.open("r+b", buffering=0) as writing:
        for number in range(LOOKS_MAX // 4):
            content = b"%08d" % number
            os.pwrite(writing.fileno(), content, 8 * (number % 100))
            assert os.pread(reading, 8, 8 * (number % 100)) == content


def test_growth_and_truncation_are_read_at_once(mine: Path, reading: int) -> None:
    size = BLOCK
    with mine.open("ab", buffering=0) as writing:
        for number in range(200):
            writing.write(b"%08d" % number)
            size += 8
            assert os.pread(reading, 16, size - 8) == b"%08d" % number
            assert os.fstat(reading).st_size == size
    for size in (BLOCK, 100, 0, 50):
        os.truncate(mine, size)
        assert len(os.pread(reading, 2 * BLOCK, 0)) == size
    assert os.pread(reading, 50, 0) == bytes(50)


def _sent(descriptor: int, size: int, offset: int) -> bytes:
    read_end, write_end = os.pipe()
    try:
        sent = os.sendfile(write_end, descriptor, offset, size)
        return os.read(read_end, size) if sent else b""
    finally:
        os.close(read_end)
        os.close(write_end)


def _spliced(descriptor: int, size: int, offset: int) -> bytes:
    read_end, write_end = os.pipe()
    try:
        moved = os.splice(descriptor, write_end, size, offset_src=offset)
        return os.read(read_end, size) if moved else b""
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("take", [_sent, _spliced])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_sends_pages_of_a_kept_descriptor_sends_the_newest(
    take: Callable[[int, int, int], bytes], flags: int, mine: Path, there: Host, name: str
) -> None:
    """It asks neither for the size nor whether the pages are old."""
    mine.write_bytes(b"a" * BLOCK)
    descriptor = os.open(there.mountpoint / name, flags)
    try:
        with mine.open("r+b", buffering=0) as writing:
            for number in range(20):
                assert take(descriptor, 2 * BLOCK, 0)
                content = b"%08d" % number * (BLOCK // 8)
                os.pwrite(writing.fileno(), content, 0)
                assert take(descriptor, BLOCK, 0) == content
                os.pwrite(writing.fileno(), content[:10], BLOCK)
                assert take(descriptor, BLOCK, BLOCK) == content[:10]
                os.ftruncate(writing.fileno(), 100)
                assert take(descriptor, BLOCK, 0) == content[:100]
    finally:
        os.close(descriptor)


def test_a_map_of_what_the_other_host_made_longer_has_its_pages(mine: Path, there: Host, name: str) -> None:
    """Within the size that the kernel knows; beyond it SIGBUS ends the program."""
    mine.write_bytes(b"a" * BLOCK)
    program = (
        "import mmap, os, sys; held = os.open(sys.argv[1], os.O_RDWR); print(flush=True); input();"
        "import ctypes; libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p;"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long];"
        f"at = libc.mmap(None, {2 * BLOCK}, 3, 1, held, 0); print(ctypes.string_at(at + {BLOCK}, 5).decode())"
    )
    with Popen([sys.executable, "-c", program, there.mountpoint / name], stdin=PIPE, stdout=PIPE) as mapping:
        assert mapping.stdout is not None
        assert mapping.stdout.readline() == b"\n"
        with mine.open("r+b", buffering=0) as writing:
            os.pwrite(writing.fileno(), b"grown" * (BLOCK // 5), BLOCK)
        assert mapping.communicate(b"\n", timeout=DEADLINE_S)[0] == b"grown\n"


def test_a_time_that_was_set_back_hides_no_change(mine: Path, reading: int, there: Host) -> None:
    times = mine.stat()
    assert os.fstat(reading).st_mtime_ns == times.st_mtime_ns
    for letter in b"abc":
        with mine.open("r+b", buffering=0) as writing:
            writing.write(bytes([letter]) * BLOCK)
        os.utime(mine, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert os.pread(reading, BLOCK, 0) == bytes([letter]) * BLOCK
    # A moment after a change the time is some nanoseconds less, where a program reads the file.
    wait_until(lambda: os.fstat(reading).st_mtime_ns == times.st_mtime_ns, DEADLINE_S, "the time as set")


def test_a_program_that_maps_the_file_sees_what_the_other_host_wrote(mine: Path, reading: int) -> None:
    with mmap.mmap(reading, BLOCK, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped[:1] == b"0"
        with mine.open("r+b", buffering=0) as writing:
            writing.write(b"1")
        wait_until(lambda: mapped[:1] == b"1", DEADLINE_S, "the mapping shows the write")


def test_readers_never_go_back_while_the_other_host_writes(mine: Path, reading: int) -> None:
    """A register that only grows: no read may be older than a read, or a write, that ended before it."""
    acknowledged = 0
    done = False

    def write() -> None:
        nonlocal acknowledged, done
        with mine.open("r+b", buffering=0) as writing:
            for number in range(1, LOOKS_MAX):
                os.pwrite(writing.fileno(), b"%08d" % number, 0)
                acknowledged = number
        done = True

    def read() -> None:
        newest = 0
        while not done:
            known = acknowledged
            seen = int(os.pread(reading, 8, 0))
            assert seen >= max(known, newest)
            newest = seen

    with mine.open("r+b", buffering=0) as writing:
        writing.write(b"%08d" % 0)
    in_parallel(write, read, read, read)


def test_a_read_that_waits_for_the_other_host_shows_what_it_changed_alone(hosts: TwoHosts) -> None:
    there, mine = hosts.backup, hosts.primary.mountpoint / "alone"
    mine.write_bytes(b"0" * BLOCK)
    descriptor = opened_at_rest(there.mountpoint / "alone", there)

    def granted() -> bool:
        before = there.status()["kernel_cache"]["attributes_granted"]
        os.fstat(descriptor)
        return bool(there.status()["kernel_cache"]["attributes_granted"] > before)

    wait_until(granted, DEADLINE_S, "the kernel keeps the attributes")
    hosts.cut()
    with mine.open("ab", buffering=0) as writing:
        writing.write(b"1" * BLOCK)  # acknowledged by the primary alone
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(os.pread(descriptor, BLOCK, BLOCK)))
    reader.start()
    call = Path(f"/proc/self/task/{reader.native_id}/syscall")
    wait_until(lambda: call.read_text().startswith(PREAD64), DEADLINE_S, "the read waits")
    hosts.heal()
    reader.join()
    os.close(descriptor)
    assert found == [b"1" * BLOCK]


def test_a_map_of_a_host_that_is_apart_does_not_show_what_was_before(hosts: TwoHosts) -> None:
    """Its program waits for the other host, as one that reads does."""
    there, mine = hosts.backup, hosts.primary.mountpoint / "mapped"
    mine.write_bytes(b"0" * BLOCK)
    descriptor = opened_at_rest(there.mountpoint / "mapped", there)
    program = (
        f"import mmap; mapped = mmap.mmap({descriptor}, {BLOCK}, prot=mmap.PROT_READ);"
        "print(mapped[:1].decode(), flush=True); input(); print(mapped[:1].decode())"
    )
    with Popen([sys.executable, "-c", program], pass_fds=[descriptor], stdin=PIPE, stdout=PIPE) as mapping:
        assert mapping.stdin is not None
        assert mapping.stdout is not None
        assert mapping.stdout.readline() == b"0\n"
        dropped = there.status()["kernel_cache"]["pages_dropped"]
        hosts.cut()
        with mine.open("r+b", buffering=0) as writing:
            writing.write(b"1")  # acknowledged by the primary alone
        wait_until(
            lambda: there.status()["kernel_cache"]["pages_dropped"] > dropped, DEADLINE_S, "the pages go"
        )
        mapping.stdin.write(b"\n")
        mapping.stdin.flush()
        state = Path(f"/proc/{mapping.pid}/stat")
        wait_until(lambda: ") D " in state.read_text(), DEADLINE_S, "it waits for the page")
        hosts.heal()
        assert mapping.communicate(timeout=DEADLINE_S)[0] == b"1\n"
    os.close(descriptor)
