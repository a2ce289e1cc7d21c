"""`create` and `join`: two matching sides, wholly or not at all."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fusemirror import settings
from fusemirror.channel.tls import Credentials
from fusemirror.cli import create
from fusemirror.volume import private
from fusemirror.volume.identity import Identity
from fusemirror.volume.volume import Volume
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


ADDRESSES = ("--listen", "alpha:7000", "--peer", "beta:7000", "--host-name", "alpha")


def test_create_and_join_make_two_sides_that_match(run: Run, tmp_path: Path) -> None:
    done = run("create", "data", "main", *ADDRESSES)
    assert (done.exit_code, done.stdout) == (0, "")
    (tmp_path / "etc").rename(tmp_path / "etc-alpha")
    assert run("join", "data.join", "sub").exit_code == 0

    ours = settings.load(tmp_path / "etc-alpha" / "data.toml")
    theirs = settings.load(tmp_path / "etc" / "data.toml")
    assert (ours.listen, ours.peer) == (theirs.peer, theirs.listen) == ("alpha:7000", "beta:7000")
    assert (ours.volume, theirs.volume) == (str(tmp_path / "main"), str(tmp_path / "sub"))

    main, sub = Identity.load(tmp_path / "main"), Identity.load(tmp_path / "sub")
    assert (main.role, main.complete) == ("primary", True)
    assert (sub.role, sub.complete) == ("backup", False)
    assert main.filesystem == sub.filesystem
    assert (main.host, main.only_peer.host) == (sub.only_peer.host, sub.host)
    assert (main.host_name, main.only_peer.name) == (sub.only_peer.name, sub.host_name) == ("alpha", "beta")


def test_both_sides_have_all_addresses_of_both(run: Run, tmp_path: Path) -> None:
    more = ("--listen", "10.1.0.1:7000", "--peer", "10.1.0.2:7000")
    assert run("create", "data", "main", *ADDRESSES, *more).exit_code == 0
    (tmp_path / "etc").rename(tmp_path / "etc-alpha")
    assert run("join", "data.join", "sub").exit_code == 0
    ours = settings.load(tmp_path / "etc-alpha" / "data.toml")
    theirs = settings.load(tmp_path / "etc" / "data.toml")
    assert ours.listen == theirs.peer == ("alpha:7000", "10.1.0.1:7000")
    assert ours.peer == theirs.listen == ("beta:7000", "10.1.0.2:7000")
    assert Identity.load(tmp_path / "main").only_peer.name == "beta"


def test_keys_and_join_file_are_for_their_owner_only(run: Run, tmp_path: Path) -> None:
    run("create", "data", "main", *ADDRESSES)
    assert stat.S_IMODE((tmp_path / "etc" / "data").stat().st_mode) == 0o700
    files = [tmp_path / "data.join", *(tmp_path / "etc" / "data").iterdir()]
    assert {path.name for path in files} == {"data.join", "certificate.pem", "key.pem", "peer.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_each_host_has_a_key_of_its_own_and_knows_the_certificate_of_the_other(
    run: Run, tmp_path: Path
) -> None:
    run("create", "data", "main", *ADDRESSES)
    ours = (tmp_path / "etc").rename(tmp_path / "etc-alpha") / "data"
    run("join", "data.join", "sub")
    theirs = tmp_path / "etc" / "data"
    assert (ours / "peer.pem").read_text() == (theirs / "certificate.pem").read_text()
    assert (theirs / "peer.pem").read_text() == (ours / "certificate.pem").read_text()
    assert (ours / "key.pem").read_text() != (theirs / "key.pem").read_text()
    for directory in (ours, theirs):
        Credentials(directory)
    assert (ours / "key.pem").read_text() not in (tmp_path / "data.join").read_text()


def test_join_takes_other_addresses_and_names(run: Run, tmp_path: Path) -> None:
    run("create", "data", "main", "--listen", "0.0.0.0:7000", "--peer", "beta:7000")
    (tmp_path / "etc" / "data.toml").unlink()
    shutil.rmtree(tmp_path / "etc" / "data")
    refused = run("join", "data.join", "sub")
    assert (refused.exit_code, "name one with --peer" in refused.stderr) == (2, True)
    own = ("--listen", "[::]:7001", "--peer", "[fd00::1]:7000", "--host-name", "gamma")
    assert run("join", "data.join", "sub", *own).exit_code == 0
    chosen = settings.load(tmp_path / "etc" / "data.toml")
    assert (chosen.listen, chosen.peer) == ("[::]:7001", "[fd00::1]:7000")
    assert Identity.load(tmp_path / "sub").host_name == "gamma"


@pytest.mark.parametrize("exists", ["etc/data.toml", "etc/data", "main/file", "data.join"])
def test_nothing_that_exists_is_touched(run: Run, tmp_path: Path, exists: str) -> None:
    path = tmp_path / exists
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    done = run("create", "data", "main", *ADDRESSES)
    assert done.exit_code == 6
    assert done.stderr.startswith("fusemirror: data: refused: ")
    assert done.stderr.count("\n") == 1
    assert [found.relative_to(tmp_path) for found in tmp_path.rglob("*") if found.is_file()] == [Path(exists)]


@pytest.mark.parametrize("directory_is_there", [False, True])
def test_after_a_failure_nothing_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory_is_there: bool
) -> None:
    if directory_is_there:
        (tmp_path / "main").mkdir()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device", "data.join")

    monkeypatch.setattr(create, "write_join_file", fail)
    done = run("create", "data", "main", *ADDRESSES)
    assert (done.exit_code, done.stderr) == (1, "fusemirror: data: data.join: No space left on device\n")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"etc", *(["main"] if directory_is_there else [])}


@pytest.mark.parametrize(("name", "volume"), [("data", "other"), ("other", "main")])
def test_what_another_command_made_meanwhile_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, volume: str
) -> None:
    """Another took the name, or the directory, when this one had begun."""
    (tmp_path / "main").mkdir()
    keep_from_writers = private.keep_from_writers

    def be_overtaken(directory: Path) -> bool:
        monkeypatch.setattr(private, "keep_from_writers", keep_from_writers)
        assert run("create", "data", "main", *ADDRESSES, "--join-file", "first").exit_code == 0
        return keep_from_writers(directory)

    monkeypatch.setattr(private, "keep_from_writers", be_overtaken)
    assert run("create", name, volume, *ADDRESSES).exit_code == 6
    assert settings.load(tmp_path / "etc" / "data.toml").name == "data"
    Credentials(tmp_path / "etc" / "data")
    Volume.open(tmp_path / "main").close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--listen", "alpha"), "listen: `alpha` is not HOST:PORT"),
        (("--peer", "beta:x"), "peer: `beta:x` is not HOST:PORT"),
        (("--access", "both"), "'both' is not one of"),
        (("--host-name", "a/b"), "`a/b` is not a name for a host"),
        (("--peer-name", ".."), "`..` is not a name for a host"),
        (("--host-name", "a\x1b[2J"), r"`a\x1b[2J` is not"),
        (("--peer-name", "x" * 241), "240 at most"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    run: Run, tmp_path: Path, changed: tuple[str, ...], message: str
) -> None:
    done = run("create", "data", "main", *ADDRESSES, *changed)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_join_takes_no_name_that_is_none(run: Run, tmp_path: Path) -> None:
    run("create", "data", "main", *ADDRESSES)
    (tmp_path / "etc").rename(tmp_path / "etc-alpha")
    done = run("join", "data.join", "sub", "--host-name", "../beta")
    assert (done.exit_code, "`../beta` is not a name for a host" in done.stderr) == (2, True)
    path = tmp_path / "data.join"
    path.write_text(path.read_text().replace('"host_name": "beta"', '"host_name": "b/c"'))
    assert run("join", "data.join", "sub").exit_code == 2
    assert not (tmp_path / "sub").exists()


def test_a_bad_join_file_is_exit_status_10(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.join").write_text("{}")
    done = run("join", "data.join", "sub")
    assert done.exit_code == 10
    assert not (tmp_path / "sub").exists()


def test_nothing_that_is_made_is_for_others_whatever_the_umask(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusemirror", "--config-dir", "etc", "create", "data", "main"]
    (tmp_path / "main").mkdir(mode=0o755)
    subprocess.run([*command, *ADDRESSES], cwd=tmp_path, check=True, umask=0, capture_output=True)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.rglob("*")}
    assert {
        "etc",
        "data.toml",
        "key.pem",
        "data.join",
        "main",
        "identity.json",
        "data.mdb",
        "catalog",
    } <= modes.keys()
    assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077}


@pytest.mark.parametrize("what", ["link", "theirs"])
def test_a_volume_directory_that_is_not_ones_own_is_refused(run: Run, tmp_path: Path, what: str) -> None:
    (tmp_path / "there").mkdir()
    if what == "link":
        (tmp_path / "main").symlink_to("there")
    elif os.geteuid() == 0:
        (tmp_path / "main").mkdir()
        os.chown(tmp_path / "main", 1000, 1000)
    else:
        pytest.skip("owners are for root")
    done = run("create", "data", "main", *ADDRESSES)
    assert done.exit_code == 6
    assert "symbolic link" in done.stderr or "belongs to user 1000" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "main", "etc"}
    assert list((tmp_path / "main").iterdir()) == []


def test_keys_that_cannot_be_used_leave_nothing(run: Run, tmp_path: Path) -> None:
    run("create", "data", "main", *ADDRESSES)
    (tmp_path / "etc").rename(tmp_path / "etc-alpha")
    path = tmp_path / "data.join"
    path.write_text(path.read_text().replace("BEGIN PRIVATE KEY", "BEGIN"))
    done = run("join", "data.join", "sub")
    assert (done.exit_code, done.stderr.count("\n")) == (10, 1)
    assert not (tmp_path / "sub").exists()
    assert list((tmp_path / "etc").iterdir()) == []
