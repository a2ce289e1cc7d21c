"""Exclusive access on real mounts: the same bytes wanted by both hosts at once, and what travels for it."""

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, wait_until
from tests.mount.conftest import checked

ROUNDS = int(os.environ.get("FUSEMIRROR_EXCLUSIVE_ROUNDS", "150"))
WRITERS_PER_HOST = 3
FILE_BYTES = 64 << 10


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """A pair for all tests of this module; each takes names of its own."""
    with checked(request, access="exclusive") as shared:
        yield shared


def data_sent(hosts: TwoHosts) -> tuple[int, int]:
    """Bytes of data that left the primary over the mirror path, and the backup over the forward path."""
    paths = [host.status()["paths"] for host in hosts]
    return paths[0]["mirror"]["sent_data_bytes"], paths[1]["forward"]["sent_data_bytes"]


def test_it_is_in_effect_on_both_hosts(pair: TwoHosts) -> None:
    for host in pair:
        assert host.status()["effective"]["access"] == "exclusive"


def test_it_is_set_on_either_host_while_mounted(pair: TwoHosts) -> None:
    for here, there, access in (
        (pair.backup, pair.primary, "routed"),
        (pair.primary, pair.backup, "exclusive"),
    ):
        told = here.fusemirror("set", FILESYSTEM, f"access={access}").stdout
        assert told == f"{FILESYSTEM}: set, and in effect\n"

        def is_so(host: Host, wanted: str = access) -> bool:
            status, file = host.status(), host.config_directory / f"{FILESYSTEM}.toml"
            shown = {status["settings"]["access"], status["effective"]["access"]}
            return shown == {wanted} and f'access = "{wanted}"' in file.read_text()

        assert is_so(here)
        wait_until(lambda there=there: is_so(there), 30.0, f"access = {access}")  # type: ignore[misc]


def test_data_travels_once_from_the_host_that_writes_it(pair: TwoHosts) -> None:
    content = os.urandom(300_000)
    before = data_sent(pair)
    (pair.backup.mountpoint / "from-backup").write_bytes(content)
    at_backup = data_sent(pair)
    assert (at_backup[0] - before[0], at_backup[1] - before[1]) == (0, len(content))
    (pair.primary.mountpoint / "from-primary").write_bytes(content)
    at_primary = data_sent(pair)
    assert (at_primary[0] - at_backup[0], at_primary[1] - at_backup[1]) == (len(content), 0)
    assert (pair.primary.mountpoint / "from-backup").read_bytes() == content


def overwrite(path: Path, seed: int, enough: threading.Event) -> tuple[int, int]:
    """Write and read ranges that others want too, until it is enough; how often what was read was whole."""
    chosen = random.Random(seed)
    descriptor = os.open(path, os.O_RDWR)
    whole = rounds = 0
    try:
        while rounds < ROUNDS or not enough.is_set():
            number, rounds = rounds, rounds + 1
            start = chosen.randrange(4096, FILE_BYTES // 2)
            os.pwrite(descriptor, bytes([seed % 256]) * chosen.randrange(1, FILE_BYTES // 2), start)
            os.pwrite(descriptor, bytes([seed % 256, number % 256]) * 2048, 0)
            seen = os.pread(descriptor, 4096, 0)
            whole += seen == seen[:2] * 2048
    finally:
        os.close(descriptor)
    return whole, rounds


def test_writers_of_both_hosts_want_the_same_bytes_and_all_come_to_an_end(pair: TwoHosts) -> None:
    name = "wanted"
    (pair.primary.mountpoint / name).write_bytes(bytes(FILE_BYTES))
    before = {host.name: host.status() for host in pair}
    hosts: list[Host] = [host for host in pair for _ in range(WRITERS_PER_HOST)]
    sent = data_sent(pair)
    enough = threading.Event()

    def met() -> bool:
        """Whether programs of both hosts have waited, and the backup gave up a status for that."""
        counts = {host.name: host.status()["exclusive"] for host in pair}
        waited = all(
            counts[name]["stood_by_total"] > before[name]["exclusive"]["stood_by_total"] for name in before
        )
        return waited and counts[pair.backup.name]["given_up_total"] > 0

    with ThreadPoolExecutor(len(hosts)) as pool:
        writers = [
            pool.submit(overwrite, host.mountpoint / name, seed, enough) for seed, host in enumerate(hosts, 1)
        ]
        try:
            wait_until(met, 60, "programs of both hosts that have wanted the same bytes at once")
        finally:
            enough.set()
        done = [writer.result() for writer in writers]
    for host in pair:
        status = host.status()
        assert status["exclusive"]["held"] == status["exclusive"]["standing_by"] == 0
        assert status["reads"]["routed"] == before[host.name]["reads"]["routed"], "reads are always local"
    assert pair.primary.status()["exclusive"]["given_up_total"] == 0
    assert all(whole == rounds for whole, rounds in done)
    assert len({(host.mountpoint / name).read_bytes() for host in pair}) == 1
    written = [after - first for after, first in zip(data_sent(pair), sent, strict=True)]
    assert all(each > 4096 * ROUNDS * WRITERS_PER_HOST for each in written)


def test_appends_of_both_hosts_are_all_there_once(pair: TwoHosts) -> None:
    name = "appended"
    (pair.primary.mountpoint / name).touch()

    def append(host: Host, seed: int) -> None:
        descriptor = os.open(host.mountpoint / name, os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(ROUNDS):
                os.write(descriptor, b"%02d.%05d\n" % (seed, number))
        finally:
            os.close(descriptor)

    hosts = [host for host in pair for _ in range(WRITERS_PER_HOST)]
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(append, hosts, range(len(hosts))))
    lines = (pair.backup.mountpoint / name).read_bytes().splitlines()
    expected = [b"%02d.%05d" % (seed, number) for seed in range(len(hosts)) for number in range(ROUNDS)]
    assert sorted(lines) == expected
    for seed in range(len(hosts)):
        own = [line for line in lines if line.startswith(b"%02d." % seed)]
        assert own == sorted(own), "each writer's lines stand in its order"
