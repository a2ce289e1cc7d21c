"""One host serves three filesystems with two peers at once, and none of them feels the others' troubles."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import (
    Host,
    Namespace,
    assert_same,
    mountpoints_below,
    run,
    snapshot,
    wait_for_exit,
    what_is_missing,
)

PATIENCE_S = 60.0
FILES = 20
SPREAD = "alpha", "two"  # over several disks
PLACES = {  # each filesystem, where it is made and who joins, and its port: alpha is the primary of two
    "one": ("alpha", "beta", 7801),
    "two": ("beta", "alpha", 7802),
    "three": ("alpha", "gamma", 7803),
}
NETWORKS = {"beta": "10.77.91", "gamma": "10.77.92"}  # of alpha's to each of its peers


class ThreeHosts:
    """alpha in the middle, with a line to each of beta and gamma."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = directory / "another disk"
        self.hosts: dict[str, Host] = {}
        unique = directory.name.removeprefix("fusemirror-")
        for name, address in (("alpha", "10.77.91.1"), ("beta", "10.77.91.2"), ("gamma", "10.77.92.2")):
            namespace = Namespace(f"fm-{unique}-{name[0]}", address)
            self.hosts[name] = Host(name, namespace, directory / name)
        alpha = self.hosts["alpha"].namespace
        for peer, network in NETWORKS.items():
            end, other = f"to-{peer}", self.hosts[peer].namespace
            ends = ("netns", alpha.name, "type", "veth", "peer", "veth0", "netns", other.name)
            run("ip", "link", "add", end, *ends)
            for namespace, device, last in ((alpha, end, 1), (other, "veth0", 2)):
                namespace.run("ip", "address", "add", f"{network}.{last}/24", "dev", device)
                namespace.run("ip", "link", "set", device, "up")

    def tear_down(self) -> None:
        for mountpoint in mountpoints_below(self.directory):
            run("umount", "--internal-only", "--lazy", mountpoint, expect=None)
        for host in self.hosts.values():
            host.namespace.remove()
        for part in self.place(*SPREAD, "volume").glob("*"):
            run("chattr", "-i", part, expect=None)

    def place(self, host: str, filesystem: str, what: str) -> Path:
        return self.hosts[host].directory / f"{what}-{filesystem}"

    def make(self, filesystem: str) -> None:
        """On both its hosts, as two people would."""
        first, second, port = PLACES[filesystem]
        network = NETWORKS[second if first == "alpha" else first]
        own, peer = (f"{network}.{1 if host == 'alpha' else 2}:{port}" for host in (first, second))
        join_file = self.directory / f"{filesystem}.join"
        self.hosts[first].fusemirror(
            *("create", filesystem, self.place(first, filesystem, "volume"), "--listen", own, "--peer", peer),
            *("--host-name", first, "--join-file", join_file),
        )
        self.hosts[second].fusemirror(
            "join", join_file, self.place(second, filesystem, "volume"), "--host-name", second
        )
        for host in (first, second):
            # A busy moment is no lost host, but where one is to be lost soon.
            timeout_s = 1.0 if filesystem == "three" else 10.0
            self.hosts[host].fusemirror("set", filesystem, f"peer_timeout={timeout_s}")
            self.place(host, filesystem, "mnt").mkdir()
            if (host, filesystem) == SPREAD:
                self.spread(self.place(host, filesystem, "volume"))
            self.mount(host, filesystem)
        self.wait(filesystem, "normal")

    def spread(self, volume: Path) -> None:
        """Put the journal and the communication volume on another disk, as fusemirror-tasks(7) says."""
        self.disk.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "none", self.disk)
        (volume / "communication").mkdir(mode=0o700)  # the first mount would make it
        for part in ("journal", "communication"):
            run("mv", volume / part, self.disk)
            (volume / part).mkdir(mode=0o700)
            run("chattr", "+i", volume / part)  # nothing is made there where that disk is missing
            run("mount", "--bind", self.disk / part, volume / part)

    def mount(self, host: str, filesystem: str) -> None:
        self.hosts[host].fusemirror("mount", filesystem, self.place(host, filesystem, "mnt"))

    def status(self, host: str, filesystem: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.hosts[host].fusemirror("status", filesystem, "--json").stdout)
        return found

    def wait(self, filesystem: str, state: str) -> None:
        for host in PLACES[filesystem][:2]:
            limit = ("--timeout", f"{PATIENCE_S:g}")
            self.hosts[host].fusemirror("wait", filesystem, "--for", state, *limit)

    def work(self, filesystem: str, round_: str) -> None:
        """Both its hosts write at once, each sees what the other wrote, and both copies are the same."""
        seen = [self.place(host, filesystem, "mnt") for host in PLACES[filesystem][:2]]

        def write(mine: Path) -> None:
            for number in range(FILES):
                text = f"{filesystem} {round_} {number} of {mine.parent.name}"
                (mine / f"{round_}-{mine.parent.name}-{number}").write_text(text)

        self.at_once(write, seen)
        for mine, other in (seen, seen[::-1]):
            for number in range(FILES):
                text = (other / f"{round_}-{mine.parent.name}-{number}").read_text()
                assert text == f"{filesystem} {round_} {number} of {mine.parent.name}"

    def at_once(self, act: Callable[[Any], None], what: Any) -> None:
        with ThreadPoolExecutor(max_workers=6) as pool:
            list(pool.map(act, what))

    def cut(self, peer: str, *, healed: bool = False) -> None:
        self.hosts["alpha"].run("ip", "link", "set", f"to-{peer}", "up" if healed else "down")

    def check(self, filesystem: str) -> None:
        """The oracle: verified, unmounted in good order, and clean; both mounts showed the same."""
        first, second, _ = PLACES[filesystem]
        self.hosts[first].fusemirror("verify", filesystem)
        seen = [snapshot(self.place(host, filesystem, "mnt")) for host in (first, second)]
        assert_same(seen[0], seen[1], f"the two mounts of {filesystem}")
        for host in (second, first):
            self.hosts[host].fusemirror("umount", filesystem)
            self.hosts[host].fusemirror("fsck", self.place(host, filesystem, "volume"))


@pytest.fixture
def three() -> Iterator[ThreeHosts]:
    if missing := what_is_missing():
        pytest.skip(missing)
    directory = Path(tempfile.mkdtemp(prefix="fusemirror-")).resolve()
    hosts = ThreeHosts(directory)
    try:
        yield hosts
    finally:
        hosts.tear_down()
        shutil.rmtree(directory)


def test_one_host_serves_three_filesystems_with_two_peers_at_once(three: ThreeHosts) -> None:
    three.at_once(three.make, PLACES)
    listed = json.loads(three.hosts["alpha"].fusemirror("list", "--json").stdout)
    assert sorted(each["name"] for each in listed) == sorted(PLACES)
    three.at_once(lambda filesystem: three.work(filesystem, "together"), PLACES)

    three.cut("gamma")  # one of them is alone, and the other two do not feel it
    (three.place("alpha", "three", "mnt") / "alone").write_text("once the lease of the other host is over")
    three.hosts["alpha"].fusemirror("set", "two", "acknowledge=async")
    three.at_once(lambda filesystem: three.work(filesystem, "apart"), ("one", "two"))
    states = {name: three.status("alpha", name)["mirror_state"] for name in PLACES}
    assert states == {"one": "normal", "two": "normal", "three": "degraded"}

    process = three.status("alpha", "one")["pid"]  # and the end of one process is not that of the others
    os.kill(process, signal.SIGKILL)
    wait_for_exit(process, PATIENCE_S)
    three.work("two", "on")
    three.mount("alpha", "one")
    three.cut("gamma", healed=True)
    for filesystem in PLACES:
        three.wait(filesystem, "normal")
    assert (three.place("gamma", "three", "mnt") / "alone").exists()
    three.at_once(lambda filesystem: three.work(filesystem, "again"), PLACES)
    three.hosts["alpha"].fusemirror("wait", "two", "--for", "drained")
    assert any((three.disk / "journal").iterdir())
    assert any((three.disk / "communication").iterdir())
    three.at_once(three.check, PLACES)
    volume = three.place(*SPREAD, "volume")
    for part in ("journal", "communication"):
        run("umount", volume / part)
    refused = three.hosts["alpha"].fusemirror("mount", "two", three.place("alpha", "two", "mnt"), expect=None)
    for part in ("journal", "communication"):
        run("chattr", "-i", volume / part)
    assert refused.returncode != 0
    assert refused.stderr.startswith("fusemirror: two: ")
    assert "journal" in refused.stderr
