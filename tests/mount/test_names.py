"""Names that a kernel keeps: no request for what is kept, and nothing old when the other host comes.

Times are those of the product: a directory rests for some seconds before a kernel keeps its names.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, TwoHosts, wait_until
from tests.mount.conftest import checked

FILES = 64
KEPT_TIMEOUT_S = 40.0


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """With the lease that a mount has by itself: names are kept no longer than that."""
    with checked(request, peer_timeout_s=5.0) as shared:
        yield shared


@pytest.fixture
def made(here: Host, request: pytest.FixtureRequest) -> Path:
    """The name of a directory with files, which the other host has not looked into."""
    return make(here, request.node.name)


def make(host: Host, name: str) -> Path:
    (host.mountpoint / name).mkdir()
    for number in range(FILES):
        (host.mountpoint / name / str(number)).write_bytes(b"")
    return Path(name)


def look(host: Host, directory: Path) -> None:
    descriptor = os.open(host.mountpoint / directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(FILES):
            os.stat(str(number), dir_fd=descriptor)
    finally:
        os.close(descriptor)


def kept(host: Host, what: str) -> int:
    count: int = host.status()["kernel_cache"][what]
    return count


def look_until_it_holds(host: Host, directory: Path) -> None:
    """Until the host's kernel answers by itself whatever is asked of the directory."""

    def answers_by_itself() -> bool:
        before = kept(host, "names_looked_up")
        look(host, directory)
        look(host, directory)
        return kept(host, "names_looked_up") - before < 1.5 * FILES

    wait_until(answers_by_itself, KEPT_TIMEOUT_S, "names to be kept")


def test_names_that_are_looked_at_again_and_again_cost_no_request(here: Host, made: Path) -> None:
    look_until_it_holds(here, made)
    assert kept(here, "directories_held") + kept(here, "directories_shared") > 0


def test_what_the_other_host_changes_is_seen_at_once(here: Host, there: Host, made: Path) -> None:
    directory, same = here.mountpoint / made, there.mountpoint / made
    look_until_it_holds(here, made)
    assert not (directory / "new").exists()  # which the kernel keeps, too
    (same / "new").write_bytes(b"new")
    assert (directory / "new").read_bytes() == b"new"
    (same / "0").unlink()
    assert not (directory / "0").exists()
    (same / "1").rename(same / "renamed")
    assert sorted(os.listdir(directory)) == sorted(os.listdir(same))
    assert not (directory / "1").exists()


def test_the_other_host_sees_what_the_holder_changed(here: Host, there: Host, made: Path) -> None:
    directory, same = here.mountpoint / made, there.mountpoint / made
    look_until_it_holds(here, made)
    (directory / "0").unlink()
    (directory / "1").rename(directory / "2")
    (directory / "new").mkdir()
    assert sorted(os.listdir(same)) == sorted(os.listdir(directory))
    assert not (same / "0").exists()
    assert (same / "new").is_dir()


def test_a_directory_that_both_hosts_look_into_is_shared(pair: TwoHosts) -> None:
    here, there = pair
    made = make(here, "shared")

    def is_shared() -> bool:
        look(here, made)
        look(there, made)
        return all(kept(host, "directories_shared") > 0 for host in (here, there))

    wait_until(is_shared, KEPT_TIMEOUT_S, "the directory to be shared")
    for host in (here, there):
        look_until_it_holds(host, made)
    (here.mountpoint / made / "0").unlink()
    for host in (here, there):
        assert not (host.mountpoint / made / "0").exists()
    (there.mountpoint / made / "0").mkdir()
    for host in (here, there):
        assert (host.mountpoint / made / "0").is_dir()
