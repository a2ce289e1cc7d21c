"""Mistakes: settings that could never work are refused before anything is made."""

import socket
from pathlib import Path
from typing import Any

import pytest

from fusemirror.cli import mistakes
from fusemirror.cli.mounts import FSTYPE, Mount
from fusemirror.errors import RefusedForSafety, UsageError
from fusemirror.settings import Settings, make
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES

HOSTS = {
    "alpha": ["127.0.1.1"],
    "beta": ["192.0.2.7"],
    "here": ["127.0.0.1", "::1"],
    "both": ["127.0.1.1", "192.0.2.1"],
    "127.0.0.2": ["127.0.0.2"],
    "::1": ["::1"],
}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, **__: object) -> Any:
        if host not in HOSTS:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in HOSTS[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(mistakes, "_own_address", lambda _: "192.0.2.1")


def settings(listen: str, peer: str) -> Settings:
    return make(name="data", volume="/srv/data", listen=listen, peer=peer)


def test_a_name_that_is_loopback_here_is_refused_with_the_address_to_use() -> None:
    """As Debian's /etc/hosts has it."""
    with pytest.raises(UsageError) as refused:
        mistakes.check_addresses(settings("alpha:7000", "beta:7000"))
    assert "alpha is 127.0.1.1 on this host, a loopback address, where beta can never" in str(refused.value)
    assert "use --listen 192.0.2.1:7000" in str(refused.value)


@pytest.mark.parametrize("listen", ["127.0.0.2:7000", "[::1]:7000", "here:7000"])
def test_a_loopback_address_is_refused_too(listen: str) -> None:
    with pytest.raises(UsageError, match="loopback"):
        mistakes.check_addresses(settings(listen, "gamma:7000"))


@pytest.mark.parametrize(
    ("listen", "peer"),
    [
        ("beta:7000", "alpha:7000"),
        ("both:7000", "beta:7000"),
        ("unknown:7000", "beta:7000"),
        ("0.0.0.0:7000", "beta:7000"),
        ("here:7000", "127.0.0.2:7000"),  # both hosts on one machine
        ("beta:7000", "beta:7001"),
    ],
)
def test_what_may_work_is_taken(listen: str, peer: str) -> None:
    mistakes.check_addresses(settings(listen, peer))


@pytest.mark.parametrize(
    ("listen", "peer", "why"),
    [("beta:7000", "beta:7000", "are both"), ("beta:7000", "0.0.0.0:7000", "every address")],
)
def test_a_peer_that_is_this_host_or_no_place_is_refused(listen: str, peer: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        mistakes.check_addresses(settings(listen, peer))


def test_create_makes_nothing_of_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("create", "data", "main", *ADDRESSES)
    assert (done.exit_code, "loopback" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_no_volume_lies_in_a_mirrored_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "all_mounts", lambda: [Mount(str(tmp_path / "mnt"), FSTYPE, "data")])
    with pytest.raises(RefusedForSafety, match="in the mirrored filesystem on"):
        mistakes.check_place(tmp_path / "mnt" / "volume")
    mistakes.check_place(tmp_path / "volume")


def test_no_volume_lies_in_another_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(HOSTS, "alpha", ["192.0.2.9"])
    assert run("create", "data", "main", *ADDRESSES).exit_code == 0
    done = run("create", "other", "main/images/other", *ADDRESSES)
    assert (done.exit_code, "is inside the volume of data" in done.stderr) == (6, True)
    (tmp_path / "link").symlink_to("main")
    assert run("create", "other", "link/other", *ADDRESSES).exit_code == 6


def test_a_volume_and_its_mount_point_are_not_inside_each_other(tmp_path: Path) -> None:
    for volume, mountpoint in ((tmp_path / "a" / "b", tmp_path / "a"), (tmp_path, tmp_path / "a")):
        with pytest.raises(RefusedForSafety, match="is inside the other"):
            mistakes.check_mountpoint(volume, str(mountpoint))
    mistakes.check_mountpoint(tmp_path / "ab", str(tmp_path / "a"))


def test_a_communication_directory_is_held_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistakes, "all_mounts", lambda: [Mount(str(tmp_path / "mnt"), FSTYPE, "data")])
    with pytest.raises(RefusedForSafety, match="in the mirrored filesystem on"):
        mistakes.check_place(tmp_path / "mnt" / "place", what="communication_directory")
    with pytest.raises(RefusedForSafety, match=r"communication_directory .* is inside"):
        mistakes.check_place(tmp_path, str(tmp_path / "there"), what="communication_directory")
