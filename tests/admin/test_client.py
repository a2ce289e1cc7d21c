"""The commands' end of the admin socket: results, progress, and every way not to get an answer."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fusemirror.admin.client import ask, mounted_names, process_id
from fusemirror.errors import CommandFailed, NotMounted, PermissionRefused, TimedOut
from tests.admin.answering import answering, failure, progress, result


def test_a_result_is_given_back(tmp_path: Path) -> None:
    with answering(tmp_path, "data", lambda _request: [result({"role": "primary"})]) as requests:
        assert ask(tmp_path, "data", "wait", {"for": "normal"}) == {"role": "primary"}
    assert requests == [{"command": "wait", "for": "normal"}]


def test_progress_comes_before_the_result(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    with answering(tmp_path, "data", lambda _request: [progress(1, 2), progress(2, 2), result("done")]):
        assert ask(tmp_path, "data", "verify", progress=seen.append) == "done"
    assert [(record["done"], record["total"]) for record in seen] == [(1, 2), (2, 2)]


def test_an_error_keeps_its_text_and_exit_code(tmp_path: Path) -> None:
    with (
        answering(tmp_path, "data", lambda _request: [failure("the peer is away", 5)]),
        pytest.raises(CommandFailed, match="the peer is away") as caught,
    ):
        ask(tmp_path, "data", "verify")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("lines", [[], [b"nonsense\n"], [b"[]\n"], [b"{}\n"], [b'{"ok": true}\n'], [b"7\n"]])
def test_nonsense_is_an_error_and_no_crash(tmp_path: Path, lines: list[bytes]) -> None:
    with answering(tmp_path, "data", lambda _request: lines), pytest.raises(CommandFailed):
        ask(tmp_path, "data", "status")


def test_no_socket_means_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="fusemirror mount data"):
        ask(tmp_path, "data", "status")


def test_the_socket_of_a_killed_process_means_not_mounted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "data.sock"))
    assert mounted_names(tmp_path) == ["data"]
    with pytest.raises(NotMounted):
        ask(tmp_path, "data", "status")


def test_a_process_that_is_silent_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "data.sock"))
        listener.listen()
        with pytest.raises(TimedOut, match="no answer"):
            ask(tmp_path, "data", "status", timeout_s=0.01)


def test_a_silent_process_is_known_by_its_number_all_the_same(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "data.sock"))
        listener.listen()
        assert process_id(tmp_path, "data") == os.getpid()


@pytest.mark.skipif(os.geteuid() != 0, reason="to listen as somebody else is for root")
def test_a_socket_of_somebody_else_is_asked_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "data.sock"))
        os.seteuid(1000)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(PermissionRefused, match="answered by a process of user 1000"):
            ask(tmp_path, "data", "takeover", {"force": True})
        with listener.accept()[0] as connection:
            assert connection.recv(100) == b""
