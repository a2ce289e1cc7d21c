"""The communication volume at work: what the primary has not answered is held, counted and sent once."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from mmap import mmap
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import lmdb
import pytest

from tests.hosts import Host, TwoHosts, wait_until

MIB = 1 << 20
PIECE_BYTES = 100_000
WRITERS = 3

# Waits for a line, writes its piece, and says so. A process of its own: it may be stalled for long.
WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("open", flush=True)
sys.stdin.readline()
os.pwrite(descriptor, sys.argv[2].encode() * (int(sys.argv[3]) // len(sys.argv[2])), 0)
print("written", flush=True)
"""


class Writer:
    def __init__(self, host: Host, path: Path, word: str) -> None:
        self.path = path
        self.content = word.encode() * (PIECE_BYTES // len(word))
        arguments = (sys.executable, "-c", WRITER, path, word, str(PIECE_BYTES))
        entered = host.namespace.enter(arguments)
        self.process = Popen(entered, stdin=PIPE, stdout=PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        assert self._stdout.readline() == "open\n"

    def go(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()

    def end(self) -> None:
        """Return once it has written."""
        assert self._stdout.readline() == "written\n"
        assert self.process.wait(30) == 0


@pytest.fixture
def writers(hosts: TwoHosts) -> Iterator[list[Writer]]:
    """Programs on the backup, each with a file open."""
    made = [Writer(hosts.backup, hosts.backup.mountpoint / f"file{n}", f"word{n}") for n in range(WRITERS)]
    yield made
    for writer in made:
        with writer.process:
            writer.process.kill()


def stored_data(host: Host) -> list[bytes]:
    """What the LMDB file of the communication volume holds, read by ourselves."""
    options: dict[str, Any] = {"readonly": True, "create": False, "max_readers": 8}
    with (
        closing(lmdb.open(str(host.volume / "communication"), **options)) as environment,
        environment.begin() as transaction,
    ):
        return [bytes(value) for _, value in transaction.cursor()]


def test_what_a_stalled_primary_has_not_answered_is_staged(hosts: TwoHosts, writers: list[Writer]) -> None:
    wait_until(lambda: stored_data(hosts.backup) == [], 30.0, "an empty store")  # of what made the files
    hosts.primary.stop()
    for writer in writers:
        writer.go()
    wait_until(lambda: _staged(hosts.backup)["stored_requests"] == WRITERS, 30.0, "requests in the store")
    before = _staged(hosts.backup)
    assert before["pending_requests"] == WRITERS
    assert before["pending_bytes"] == sum(len(writer.content) for writer in writers)
    assert before["answered_total"] == before["staged_total"] - WRITERS
    assert before["oldest_seconds"] > 0
    assert _staged(hosts.backup)["oldest_seconds"] > before["oldest_seconds"]
    values = stored_data(hosts.backup)
    for writer, value in zip(writers, sorted(values, key=lambda value: value[-6:]), strict=True):
        assert value.endswith(writer.content)

    hosts.primary.resume()
    for writer in writers:
        writer.end()
        for host in hosts:
            assert (host.mountpoint / writer.path.name).read_bytes() == writer.content
    hosts.backup.wait_for("drained")
    after = _staged(hosts.backup)
    assert (after["pending_requests"], after["pending_bytes"], after["oldest_seconds"]) == (0, 0, 0)
    assert after["answered_total"] == after["staged_total"]
    wait_until(lambda: _staged(hosts.backup)["stored_requests"] == 0, 30.0, "an empty store")
    assert stored_data(hosts.backup) == []


def _staged(host: Host) -> dict[str, Any]:
    communication: dict[str, Any] = host.status()["communication"]
    return communication


def _paths(host: Host) -> dict[str, dict[str, int]]:
    paths: dict[str, dict[str, int]] = host.status()["paths"]
    return paths


@pytest.mark.parametrize(
    ("writes_at", "path", "other"), [("backup", "forward", "mirror"), ("primary", "mirror", "forward")]
)
def test_data_crosses_the_network_once(hosts: TwoHosts, writes_at: str, path: str, other: str) -> None:
    writer: Host = getattr(hosts, writes_at)
    reader = hosts.primary if writer is hosts.backup else hosts.backup
    descriptor = os.open(writer.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
    sent, received = _paths(writer), _paths(reader)
    staged = _staged(hosts.backup)
    content = mmap(-1, MIB)  # it begins with a page: else the kernel makes two requests of it
    content.write(os.urandom(MIB))
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)
    sent_now, received_now = _paths(writer), _paths(reader)
    assert sent_now[path]["sent_data_bytes"] - sent[path]["sent_data_bytes"] == MIB
    assert received_now[path]["received_data_bytes"] - received[path]["received_data_bytes"] == MIB
    assert sent_now[path]["sent_bytes"] - sent[path]["sent_bytes"] < MIB + 16_384
    for now, before in ((sent_now, sent), (received_now, received)):
        assert now[other]["sent_data_bytes"] == before[other]["sent_data_bytes"]
        assert now[other]["received_data_bytes"] == before[other]["received_data_bytes"]
    requests = 1 if writer is hosts.backup else 0
    for counter in ("staged_total", "forwarded_total", "answered_total"):
        assert _staged(hosts.backup)[counter] - staged[counter] == requests
    assert (reader.mountpoint / "file").read_bytes() == content[:]
