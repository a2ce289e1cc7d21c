"""Asynchronous acknowledgement and the kinds of communication volume, in two mounted hosts."""

import errno
import os
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, run, wait_until
from tests.mount.conftest import checked

KIB, MIB = 1 << 10, 1 << 20
COUNT = 40
PIECE = 4 * KIB
PEER_TIMEOUT_S = 4.0  # a link that answers nothing outlasts the way of the requests, on any machine


def piece(number: int) -> bytes:
    return b"%08d" % number * (PIECE // 8)


def set_both(hosts: TwoHosts, *assignments: str) -> None:
    for host in hosts:
        host.fusemirror("set", FILESYSTEM, *assignments)


def communication(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = host.status()["communication"]
    return found


def mount_again(hosts: TwoHosts, **settings: str | int | float | bool) -> None:
    hosts.umount()
    for host in hosts:
        host.configure(**settings)
    hosts.mount()


@pytest.fixture
def patient(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """Hosts for tests of requests that arrive while their answers do not."""
    with checked(request, peer_timeout_s=PEER_TIMEOUT_S) as pair:
        yield pair


@pytest.fixture(params=["lmdb", "subvolume", "memory"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


# A process of its own has the file open: every program that is started from here closes what is open
# here, and a close waits for what was written.
PROGRAM = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("open", flush=True)
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except OSError as error:
        print(repr(error.errno), flush=True)
"""


class Program:
    """Evaluates expressions with `fd` open, on one host; an errno where one fails."""

    def __init__(self, host: Host, path: Path) -> None:
        command = host.namespace.enter((sys.executable, "-c", PROGRAM, path))
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self._line() == "open"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def begin(self, expression: str) -> None:
        """Let it be evaluated, and wait for no answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def ask(self, expression: str) -> Any:
        self.begin(expression)
        return literal_eval(self._line())

    def write_pieces(self, first: int = 0, count: int = COUNT) -> None:
        done = self.ask(
            f"[os.pwrite(fd, b'%08d' % n * {PIECE // 8}, n * {PIECE})"
            f" for n in range({first}, {first + count})]"
        )
        assert done == [PIECE] * count


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    with ExitStack() as ending:

        def begin(host: Host, name: str = "file") -> Program:
            program = Program(host, host.mountpoint / name)
            ending.enter_context(program.process)
            ending.callback(program.process.kill)
            return program

        yield begin


Start = Callable[..., Program]


def content_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[at : at + PIECE] for at in range(0, len(content), PIECE)]


def test_the_backup_acknowledges_while_the_primary_is_stalled_and_drains_when_it_is_back(
    hosts: TwoHosts, kind: str, start: Start
) -> None:
    mount_again(hosts, acknowledge="async", communication=kind)
    program = start(hosts.backup)
    before = communication(hosts.backup)
    hosts.primary.stop()
    program.write_pieces()
    # What was acknowledged is seen here, while no one else has it.
    assert program.ask("os.fstat(fd).st_size") == COUNT * PIECE
    assert program.ask(f"os.pread(fd, 100, {PIECE} * 3)") == piece(3)[:100]
    status = hosts.backup.status()
    assert status["effective"]["acknowledge"] == "async"
    assert status["effective"]["communication"] == kind
    assert status["communication"]["pending_requests"] == COUNT
    assert status["communication"]["pending_bytes"] == COUNT * PIECE
    assert status["communication"]["oldest_seconds"] > 0
    assert status["communication"]["stored_requests"] == (0 if kind == "memory" else COUNT)
    hosts.primary.resume()
    assert program.ask("os.fsync(fd)") is None
    for host in hosts:
        assert content_of(host.mountpoint / "file") == [piece(number) for number in range(COUNT)]
    hosts.backup.wait_for("drained")
    after = communication(hosts.backup)
    assert after["pending_requests"] == 0
    assert after["staged_total"] - before["staged_total"] >= COUNT


@pytest.mark.parametrize("kind", ["lmdb", "subvolume"], indirect=True)
def test_what_a_killed_backup_had_acknowledged_takes_effect_once(
    patient: TwoHosts, kind: str, start: Start
) -> None:
    hosts = patient
    mount_again(hosts, acknowledge="async", communication=kind)
    program = start(hosts.backup)
    program.write_pieces()
    assert program.ask("os.fsync(fd)") is None
    before = hosts.primary.status()["change"]
    hosts.drop_from(hosts.primary)  # requests reach the primary, its answers do not reach the backup
    program.write_pieces(COUNT, 2)
    wait_until(lambda: hosts.primary.status()["change"] >= before + 2, 30.0, "the requests at the primary")
    hosts.cut()
    program.ask(f"os.pwrite(fd, b'last', {(COUNT + 2) * PIECE})")  # and this one reaches nobody
    hosts.backup.kill()
    wait_until(lambda: hosts.primary.status()["state"] == "alone", 20.0, "a primary alone")
    # Later at the primary, so it must stay: a request that takes effect again would undo it.
    with (hosts.primary.mountpoint / "file").open("r+b") as there:
        there.seek(COUNT * PIECE)
        there.write(b"newer")
    hosts.converge()
    hosts.backup.wait_for("drained")
    wanted = bytearray(b"".join(piece(number) for number in range(COUNT + 2)) + b"last")
    wanted[COUNT * PIECE : COUNT * PIECE + 5] = b"newer"
    for host in hosts:
        assert (host.mountpoint / "file").read_bytes() == wanted


def test_what_a_killed_backup_told_nobody_is_carried_out_if_the_primary_got_it_and_dropped_if_not(
    patient: TwoHosts, start: Start
) -> None:
    hosts = patient
    sent, held = start(hosts.backup, "sent"), start(hosts.backup, "held")
    before = hosts.primary.status()["change"]
    hosts.drop_from(hosts.primary)  # requests reach the primary, its answers do not reach the backup
    sent.begin("os.pwrite(fd, b'data', 0)")
    wait_until(lambda: hosts.primary.status()["change"] > before, 30.0, "the request at the primary")
    hosts.cut()
    # While the link lived, TCP would bring what comes next yet, even that of a process that was killed.
    wait_until(lambda: not any(host.status()["peer"]["connected"] for host in hosts), 20.0, "a lost link")
    held.begin("os.pwrite(fd, b'data', 0)")
    wait_until(lambda: communication(hosts.backup)["stored_requests"] == 2, 30.0, "both in the store")
    hosts.backup.kill()
    hosts.converge()
    assert communication(hosts.backup)["forwarded_total"] == 0
    for host in hosts:
        assert (host.mountpoint / "sent").read_bytes() == b"data"
        assert (host.mountpoint / "held").read_bytes() == b""


def test_a_disk_of_its_own_that_is_full_refuses_writes_and_is_left_when_nothing_is_staged_there(
    hosts: TwoHosts, start: Start, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as ending:
        run("mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", disk)
        ending.callback(run, "umount", "--lazy", disk)
        hosts.umount()
        hosts.backup.configure(acknowledge="async", communication_directory=str(disk))
        hosts.mount()
        hosts.backup.expect_warnings("the disk of the communication volume is full")
        program = start(hosts.backup)
        hosts.cut()
        wait_until(lambda: not hosts.backup.status()["peer"]["connected"], 30.0, "the cut")
        program.begin("[os.pwrite(fd, bytes([n]) * (1 << 20), n << 20) for n in range(40)]")
        assert program._line() == str(errno.ENOSPC)
        status = hosts.backup.status()
        assert status["communication"]["directory"] == str(disk)
        assert status["communication"]["full"]
        staged_bytes = status["communication"]["pending_bytes"]
        assert 10 * MIB <= staged_bytes < 24 * MIB
        assert f"the disk of {disk} is full" in hosts.backup.fusemirror("status", FILESYSTEM).stdout
        hosts.backup.kill()
        hosts.backup.configure(communication_directory="")
        hosts.converge()  # with what is still staged there
        hosts.backup.wait_for("drained")
        content = (hosts.primary.mountpoint / "file").read_bytes()
        assert content == b"".join(bytes([n]) * MIB for n in range(24))[:staged_bytes]
        hosts.backup.umount()
        hosts.backup.mount()
        assert list(disk.iterdir()) == []
        assert communication(hosts.backup)["directory"] == str(hosts.backup.volume / "communication")


@pytest.mark.parametrize("kind", ["lmdb", "memory"], indirect=True)
def test_a_killed_primary_gets_what_was_acknowledged_sent_again_once(
    hosts: TwoHosts, kind: str, start: Start
) -> None:
    mount_again(hosts, acknowledge="async", communication=kind)
    program = start(hosts.backup)
    program.write_pieces()
    hosts.primary.stop()
    program.write_pieces(COUNT)
    hosts.primary.kill()
    program.write_pieces(2 * COUNT)
    assert communication(hosts.backup)["pending_requests"] >= 2 * COUNT
    hosts.converge()
    assert program.ask("os.fsync(fd)") is None
    for host in hosts:
        assert content_of(host.mountpoint / "file") == [piece(number) for number in range(3 * COUNT)]


def test_close_waits_until_both_volumes_have_it_and_the_other_host_sees_it(hosts: TwoHosts) -> None:
    set_both(hosts, "acknowledge=async")
    for here, there in ((hosts.backup, hosts.primary), (hosts.primary, hosts.backup)):
        for number in range(20):
            path = Path(f"closed-{here.name}-{number}")
            (here.mountpoint / path).write_bytes(piece(number))
            assert (there.mountpoint / path).read_bytes() == piece(number)


def refused_write(hosts: TwoHosts, program: Program) -> None:
    """Acknowledged at the backup, and refused by the primary, which reserved the file while it was alone."""
    hosts.cut()
    assert program.ask("os.pwrite(fd, b'XXXX', 0)") == 4
    hosts.primary.fusemirror("reserve", FILESYSTEM, hosts.primary.mountpoint / "file")
    hosts.heal()


def test_a_write_that_fails_after_it_was_acknowledged_is_told_to_each_open_file_once(
    hosts: TwoHosts, start: Start
) -> None:
    hosts.backup.fusemirror("set", FILESYSTEM, "acknowledge=async")
    hosts.backup.expect_warnings("failed after it was acknowledged")
    one, other = start(hosts.backup), start(hosts.backup)
    refused_write(hosts, one)
    for program in (one, other):
        assert program.ask("os.fsync(fd)") == errno.EBUSY
        assert program.ask("os.fsync(fd)") is None
    hosts.primary.fusemirror("release", FILESYSTEM, hosts.primary.mountpoint / "file")
    refused_write(hosts, one)
    assert other.ask("os.close(fd)") == errno.EBUSY
    hosts.primary.fusemirror("release", FILESYSTEM, hosts.primary.mountpoint / "file")
    for host in hosts:
        assert (host.mountpoint / "file").read_bytes() == b""


def test_at_the_limit_writers_wait_until_it_is_raised_and_a_backlog_beyond_the_memory_is_read_back(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    set_both(hosts, "acknowledge=async", "communication_capacity=24 MiB", "communication_memory=16 MiB")
    path, source = hosts.backup.mountpoint / "file", tmp_path / "source"
    path.touch()
    source.write_bytes(os.urandom(48 * MIB))
    program = f"dd if={source} of={path} bs=64k conv=notrunc status=none && echo done"
    hosts.primary.stop()
    command = hosts.backup.namespace.enter(("sh", "-c", program))
    with Popen(command, stdout=PIPE, text=True) as writer:
        wait_until(lambda: communication(hosts.backup)["pending_bytes"] > 23 * MIB, 30.0, "a full volume")
        full = communication(hosts.backup)
        assert full["pending_bytes"] <= full["capacity_bytes"] == 24 * MIB
        assert writer.poll() is None
        hosts.backup.fusemirror("set", FILESYSTEM, "communication_capacity=1 GiB")
        wait_until(
            lambda: communication(hosts.backup)["pending_bytes"] == 48 * MIB, 30.0, "all of it in the volume"
        )
        now = communication(hosts.backup)
        assert now["memory_bytes"] <= now["memory_peak_bytes"] <= 16 * MIB
        hosts.backup.fusemirror("set", FILESYSTEM, "communication_capacity=16 MiB")  # what is there stays
        assert communication(hosts.backup)["pending_bytes"] == 48 * MIB
        hosts.primary.resume()
        assert writer.stdout is not None
        assert writer.stdout.read() == "done\n"
    assert communication(hosts.backup)["read_back_bytes"] >= 32 * MIB
    for host in hosts:
        assert (host.mountpoint / "file").read_bytes() == source.read_bytes()


def test_acknowledgement_changes_while_programs_write(hosts: TwoHosts, start: Start) -> None:
    count = 1500
    programs = [start(host, f"by-{host.name}") for host in hosts]
    for program in programs:
        assert program.process.stdin is not None
        program.process.stdin.write(
            f"sum(os.pwrite(fd, b'%08d' % n, 8 * n) for n in range({count})), os.fsync(fd)\n"
        )
        program.process.stdin.flush()
    for turn in range(4):
        set_both(hosts, f"acknowledge={('async', 'sync')[turn % 2]}")
    for program in programs:
        assert literal_eval(program._line()) == (8 * count, None)
    wanted = b"".join(b"%08d" % number for number in range(count))
    for host in hosts:
        for other in hosts:
            assert (host.mountpoint / f"by-{other.name}").read_bytes() == wanted


def test_set_says_what_is_in_effect_and_what_is_not(hosts: TwoHosts) -> None:
    backup = hosts.backup
    assert backup.fusemirror("set", FILESYSTEM, "acknowledge=async").stdout == "shared: set, and in effect\n"
    done = backup.fusemirror("set", FILESYSTEM, "communication=memory")
    assert "not in effect yet: communication" in done.stdout
    status = backup.status()
    assert status["settings"]["communication"] == "memory"
    assert status["effective"]["communication"] == "lmdb"
    assert "communication" in status["reason"]
    refused = backup.fusemirror("set", FILESYSTEM, "peer_timeout=2", expect=2)
    assert "cannot change while mounted" in refused.stderr
    backup.umount()
    backup.mount()
    backup.wait_for("normal")
    assert backup.status()["effective"] == backup.status()["settings"]


@pytest.mark.parametrize(
    ("acknowledge", "kind"),
    [("sync", "lmdb"), ("async", "lmdb"), ("async", "subvolume"), ("async", "memory")],
    indirect=["kind"],
)
def test_data_crosses_the_network_once_in_every_mode(
    hosts: TwoHosts, kind: str, acknowledge: str, start: Start
) -> None:
    mount_again(hosts, acknowledge=acknowledge, communication=kind)
    for writer, path, other in ((hosts.backup, "forward", "mirror"), (hosts.primary, "mirror", "forward")):
        program = start(writer, f"by-{writer.name}")
        before = writer.status()["paths"]
        program.write_pieces()
        assert program.ask("os.fsync(fd)") is None
        after = writer.status()["paths"]
        assert after[path]["sent_data_bytes"] - before[path]["sent_data_bytes"] == COUNT * PIECE
        assert after[other]["received_data_bytes"] == before[other]["received_data_bytes"]
        reads = hosts.backup.status()["reads"]
        assert content_of(hosts.backup.mountpoint / f"by-{writer.name}")[3] == piece(3)
        now = hosts.backup.status()["reads"]
        assert now["local"] > reads["local"]
        assert now["routed"] == reads["routed"]
