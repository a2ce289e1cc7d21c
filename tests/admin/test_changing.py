"""Changing settings: what words mean, what the file looks like afterwards, and when it stays as it was."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from fusemirror import settings
from fusemirror.admin import changing
from fusemirror.errors import CommandFailed, NotMounted, UsageError
from fusemirror.limits import GIB
from fusemirror.settings import Acknowledge

NAME = "data"
ADDRESSES = {"listen": "alpha:7000", "peer": "beta:7000"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.toml"
    path.write_text(settings.render(settings.make(name=NAME, volume="/srv/data", **ADDRESSES)) + "# mine\n")
    return path


def never_mounted(*_: Any, **__: Any) -> Any:
    raise NotMounted(NAME)


def test_words_are_values_as_the_file_would_hold_them() -> None:
    words = ["io_timeout=5", "stale_reads=true", "acknowledge=async", "communication_capacity=2 GiB", "x=a=b"]
    assert changing.parse_assignments(words) == {
        "io_timeout": 5,
        "stale_reads": True,
        "acknowledge": "async",
        "communication_capacity": "2 GiB",
        "x": "a=b",
    }


def test_addresses_may_be_given_one_after_the_other_or_as_a_list() -> None:
    both = {"peer": ["beta:7000", "beta2:7000"]}
    assert changing.parse_assignments(["peer=beta:7000", "peer=beta2:7000"]) == both
    assert changing.parse_assignments(['peer=["beta:7000", "beta2:7000"]']) == both
    assert changing.parse_assignments(["io_timeout=5", "io_timeout=6"]) == {"io_timeout": 6}


def test_the_file_gets_the_values_and_keeps_the_comments(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "ask", never_mounted)
    before = config.read_text()
    words = ["acknowledge=async", "communication_capacity=2 GiB", "io_timeout=7"]
    assert changing.change(config, config.parent, NAME, words) is None
    found = settings.load(config)
    assert found.acknowledge is Acknowledge.ASYNC
    assert (found.communication_capacity, found.io_timeout) == (2 * GIB, 7.0)
    changed = {
        line.partition(" ")[0] for line in set(config.read_text().split("\n")) ^ set(before.split("\n"))
    }
    assert changed == {"acknowledge", "communication_capacity", "io_timeout"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("io_timeout", "is not KEY=VALUE"),
        ("io_timeout=never", "io_timeout: is text where a number is expected"),
        ("io_timeout=1", "must be at least peer_timeout"),
        ("acknowledge=maybe", "acknowledge: `maybe` is not one of sync, async"),
        ("colour=blue", "colour: unknown key"),
        ("name=other", "keeps its name"),
    ],
)
def test_what_cannot_be_used_is_refused_and_the_file_stays(config: Path, word: str, message: str) -> None:
    before = config.read_bytes()
    with pytest.raises(UsageError, match=message):
        changing.change(config, config.parent, NAME, ["stale_reads=true", word])
    assert config.read_bytes() == before


def test_what_the_mount_refuses_does_not_get_into_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise CommandFailed("not while mounted", 2)

    monkeypatch.setattr(changing, "ask", refuse)
    before = config.read_bytes()
    with pytest.raises(CommandFailed, match="not while mounted"):
        changing.change(config, config.parent, NAME, ["listen=gamma:1"])
    assert config.read_bytes() == before


def test_a_file_that_cannot_be_written_changes_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(config))

    monkeypatch.setattr(changing, "ask", lambda *_: pytest.fail("the mount was told"))
    monkeypatch.setattr(Path, "replace", refuse)  # as where the file is immutable
    before = config.read_bytes()
    with pytest.raises(PermissionError):
        changing.change(config, config.parent, NAME, ["stale_reads=true"])
    assert config.read_bytes() == before
    assert os.listdir(config.parent) == [config.name]


def test_the_mount_is_told_the_values_and_its_status_comes_back(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def answer(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        return {"settings": {}}

    monkeypatch.setattr(changing, "ask", answer)
    assert changing.change(config, Path("/run/x"), NAME, ["stale_reads=true"]) == {"settings": {}}
    assert asked == [(Path("/run/x"), NAME, "set", {"values": {"stale_reads": True}})]
    assert settings.load(config).stale_reads is True


@pytest.mark.parametrize("key", [key for key in settings.FIXED_WHILE_MOUNTED if key != "name"])
def test_a_running_mount_refuses_what_only_the_next_one_can_take(key: str) -> None:
    values: dict[str, Any] = {
        "volume": "/other",
        "communication_directory": "/other",
        "listen": "c:1",
        "peer_timeout": 1.0,
        "path_timeout": 2.0,
        "witness": "http://e:1",
        "tls": False,
        "host_name": "other",
    }
    own = settings.make(name=NAME, volume="/srv/data", **ADDRESSES)
    with pytest.raises(UsageError, match=f"^{key} cannot change while mounted"):
        settings.changed_while_mounted(own, {key: values[key]})
    assert settings.changed_while_mounted(own, {key: getattr(own, key)}) == own


def test_the_file_keeps_its_owner_and_mode(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "ask", never_mounted)
    config.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config, 0, 12)
    before = config.stat()
    changing.change(config, config.parent, NAME, ["io_timeout=7"])
    after = config.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_of_two_changes_at_once_none_is_lost(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = tomlkit.parse
    other = threading.Thread(target=lambda: changing.write_settings(config, {"io_timeout": 7.0}))

    def parse_while_another_writes(text: str) -> tomlkit.TOMLDocument:
        monkeypatch.setattr(tomlkit, "parse", parse)
        other.start()
        other.join(0.3)  # it waits for us
        return parse(text)

    monkeypatch.setattr(tomlkit, "parse", parse_while_another_writes)
    changing.write_settings(config, {"stale_reads": True})
    other.join()
    after = settings.load(config)
    assert (after.stale_reads, after.io_timeout) == (True, 7.0)
