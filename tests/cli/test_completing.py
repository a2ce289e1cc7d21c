"""The words behind the tab key: names, settings, mountpoints and hosts, as each shell parts the line."""

from pathlib import Path

import click
import msgspec
import pytest
from click.shell_completion import ShellComplete

from fusemirror.cli import completing
from fusemirror.cli.main import program
from fusemirror.cli.mounts import FSTYPE, Mount
from fusemirror.volume.identity import Identity
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES
from tests.volume.conftest import GAMMA


@pytest.fixture
def _defined(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data` and `other` have config files; the hosts are alpha and beta."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEMIRROR_CONFIG_DIR", str(tmp_path / "etc"))
    assert run("create", "data", "main", *ADDRESSES).exit_code == 0
    (tmp_path / "etc" / "other.toml").touch()


def completed(*words: str) -> list[str]:
    """What is offered for the last word."""
    assert isinstance(program, click.Command)
    shell = ShellComplete(program, {}, "fusemirror", "_FUSEMIRROR_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.usefixtures("_defined")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("mount", ""), ["data", "other"]),
        (("status", "d"), ["data"]),
        (("set", "data", "ac"), ["access=", "acknowledge="]),
        (("set", "data", "access="), ["access=routed", "access=exclusive"]),
        (("set", "data", "tls=f"), ["tls=false"]),
        (("set", "data", "io_timeout="), []),
        # bash has `=` as a word of its own
        (("set", "data", "access", "="), ["routed", "exclusive"]),
        (("set", "data", "access", "=", "ex"), ["exclusive"]),
        (("set", "data", "io_timeout", "=", "5", "ac"), ["access=", "acknowledge="]),
        (("resolve", "data", "--keep", ""), ["alpha", "beta"]),
        (("verify", "data", "--repair", "--keep", "a"), ["alpha"]),
    ],
)
def test_a_word_is_completed(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


@pytest.mark.usefixtures("_defined")
def test_each_host_of_more_than_two_is_completed(tmp_path: Path) -> None:
    identity = Identity.load(tmp_path / "main")
    msgspec.structs.replace(identity, peers=(*identity.peers, GAMMA)).store(tmp_path / "main")
    assert completed("resolve", "data", "--keep", "") == ["alpha", "beta", "gamma"]


def test_what_is_mounted_is_completed_by_name_and_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "our_mounts", lambda: [Mount("/mnt", FSTYPE, "data")])
    assert completed("umount", "") == ["/mnt", "data"]
    assert completed("umount", "/") == ["/mnt"]


def test_nothing_is_completed_where_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEMIRROR_CONFIG_DIR", "/nowhere")
    assert completed("mount", "") == []
    assert completed("resolve", "data", "--keep", "") == []
