"""The socket of a mount, asked as the commands ask it, and as nobody should."""

import errno
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from fusemirror.admin.client import ask
from fusemirror.admin.server import AdminServer
from fusemirror.control.management import Management
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import CommandFailed
from fusemirror.limits import ADMIN_REQUEST_BYTES_MAX
from tests.admin.conftest import NAME, Pair, Serving


async def command(serving: Serving, name: str, **arguments: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: ask(serving.runtime_dir, NAME, name, arguments))


async def failure(serving: Serving, name: str, **arguments: Any) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        await command(serving, name, **arguments)
    return caught.value


async def answer(serving: Serving, request: bytes) -> dict[str, Any]:
    """What comes back for bytes that no command of ours would send."""
    stream = await trio.open_unix_socket(str(serving.path))
    async with stream:
        await stream.send_all(request)
        if not request.endswith(b"\n"):
            await stream.send_eof()
        received = b""
        with trio.fail_after(10):
            while data := await stream.receive_some():
                received += data
    found: dict[str, Any] = json.loads(received)
    return found


# --- commands ---------------------------------------------------------------------------------------------


async def test_status_is_the_snapshot(serving: Serving) -> None:
    assert await command(serving, "status") == {"role": "primary"}


async def test_stop_stops_and_says_why(serving: Serving) -> None:
    assert await command(serving, "stop") is None
    assert serving.stopped == ["asked to stop"]


async def test_waiting_for_what_is_so_returns_at_once(serving: Serving) -> None:
    assert await command(serving, "wait", **{"for": "drained", "timeout": 10}) is None


@pytest.mark.parametrize("condition", ["normal", "connected"])
async def test_waiting_too_long_has_its_exit_code(serving: Serving, condition: str) -> None:
    failed = await failure(serving, "wait", **{"for": condition, "timeout": 0.01})
    assert failed.exit_code == 8
    assert f"timed out after 0.01 s: not {condition} yet" in str(failed)


async def test_a_verify_that_is_refused_says_so_once(serving: Serving) -> None:
    failed = await failure(serving, "verify")
    assert failed.exit_code == 6
    assert str(failed).startswith("refused: the mirror is ")


@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_a_linked_pair_is_connected_normal_and_drained(pair: Pair, role: str, tmp_path: Path) -> None:
    host = getattr(pair, role)
    server = AdminServer(host.management, lambda: pair.status(host), pytest.fail)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, tmp_path / f"{NAME}.sock")
        for condition in ("connected", "normal", "drained"):
            await command(Serving(tmp_path), "wait", **{"for": condition, "timeout": 10})
        assert (await command(Serving(tmp_path), "status"))["role"] == role
        result = await command(Serving(tmp_path), "verify")
        assert result == {
            "images": 0,
            "rows": result["rows"],
            "bytes": 0,
            "differences": [],
            "repaired": 0,
            "more_differences": 0,
        }
        assert result["rows"] > 0
        nursery.cancel_scope.cancel()


async def test_a_disk_that_fails_under_a_command_is_named_and_used_no_more(
    unit: ControlUnit, tmp_path: Path
) -> None:
    def fail() -> dict[str, Any]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    server = AdminServer(Management(unit), fail, pytest.fail)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, tmp_path / f"{NAME}.sock")
        failed = await failure(Serving(tmp_path), "status")
        nursery.cancel_scope.cancel()
    assert "the disk failed: Input/output error; this host stops serving" in str(failed)
    assert unit.volume.health.failed.is_set()


async def test_several_commands_are_answered_at_once(serving: Serving) -> None:
    failures: list[CommandFailed] = []

    async def wait() -> None:
        failures.append(await failure(serving, "wait", **{"for": "normal", "timeout": 0.5}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await command(serving, "status")
        assert not failures
    assert len(failures) == 2


# --- what no command sends --------------------------------------------------------------------------------


async def test_a_command_of_another_version_is_named(serving: Serving) -> None:
    failed = await failure(serving, "frobnicate")
    assert failed.exit_code == 2
    assert "'frobnicate'" in str(failed)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"7\n",
        b"null\n",
        b"{}\n",
        b'{"command": 7}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "\\ud800"}\n',
        b'{"command": "status"',
        b"[" * (ADMIN_REQUEST_BYTES_MAX - 1) + b"\n",
        b"x" * ADMIN_REQUEST_BYTES_MAX,
        b'{"command": "wait", "timeout": 1}\n',
        b'{"command": "wait", "for": ["normal"], "timeout": 1}\n',
        b'{"command": "wait", "for": "\\ud800", "timeout": 1}\n',
        b'{"command": "wait", "for": "normal", "timeout": "soon"}\n',
        b'{"command": "wait", "for": "normal", "timeout": null}\n',
        b'{"command": "wait", "for": "normal", "timeout": []}\n',
        b'{"command": "wait", "for": "normal", "timeout": -1}\n',
        b'{"command": "wait", "for": "normal", "timeout": NaN}\n',
        b'{"command": "wait", "for": "normal", "timeout": 1' + b"0" * 400 + b"}\n",
        b'{"command": "wait", "for": "normal", "timeout": 1e400}\n',
        b'{"command": "wait", "for": "normal", "timeout": true}\n',
        b'{"command": "reserve", "inode": 2, "path": "\\ud800"}\n',
        b'{"command": "reserve", "inode": ' + b"1" * 5000 + b"}\n",
        b'{"command": "reserve", "inode": -1}\n',
        b'{"command": "release", "inode": "x"}\n',
        b'{"command": "resync", "rate": 1180591620717411303424}\n',
        b'{"command": "resync", "rate": true}\n',
        b'{"command": "resync", "paused": 1}\n',
        b'{"command": "resolve"}\n',
        b'{"command": "resolve", "keep": 5}\n',
        b'{"command": "verify", "keep": ["x"]}\n',
        b'{"command": "takeover", "force": 1}\n',
        b'{"command": "set"}\n',
        b'{"command": "set", "values": []}\n',
    ],
    ids=lambda request: repr(request[:60]),
)
async def test_nonsense_is_a_usage_error_and_the_mount_lives_on(
    serving: Serving, request_bytes: bytes
) -> None:
    refused = await answer(serving, request_bytes)
    assert (refused["ok"], refused["exit_code"]) == (False, 2)
    assert refused["error"]
    assert await command(serving, "status") == {"role": "primary"}


async def test_who_leaves_before_the_answer_disturbs_nobody(serving: Serving) -> None:
    for request in (
        b'{"command": "status"}\n',
        b'{"command": "wait", "for": "normal", "timeout": 0.01}\n',
        b"",
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(serving.path))
            connection.sendall(request)
    await trio.sleep(0.05)
    assert await command(serving, "status") == {"role": "primary"}


async def test_who_leaves_is_waited_for_no_more(serving: Serving) -> None:
    """A script with a limit of its own asks again and again, and each wait keeps a descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(serving.path))
            connection.sendall(b'{"command": "wait", "for": "normal", "timeout": 1000}\n')
            await trio.sleep(0.01)
    for _ in range(100):
        if (after := len(os.listdir("/proc/self/fd"))) <= before:
            break
        await trio.sleep(0.1)
    assert after <= before


async def test_who_has_no_more_to_say_may_wait(serving: Serving) -> None:
    stream = await trio.open_unix_socket(str(serving.path))
    async with stream:
        await stream.send_all(b'{"command": "wait", "for": "normal", "timeout": 1.5}\n')
        await stream.send_eof()
        with trio.fail_after(10):
            answered = json.loads(await stream.receive_some())
    assert answered["exit_code"] == 8


# --- the socket itself ------------------------------------------------------------------------------------


async def test_the_socket_is_its_owners_alone(serving: Serving) -> None:
    mode = serving.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_making_the_socket_leaves_the_umask_alone(unit: ControlUnit, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(AdminServer(Management(unit), dict, pytest.fail).run, tmp_path / "data.sock")
            assert os.umask(0o022) == 0o022
            nursery.cancel_scope.cancel()
    finally:
        os.umask(before)


async def test_the_socket_is_gone_at_the_end(unit: ControlUnit, tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(AdminServer(Management(unit), dict, pytest.fail).run, path)
        assert path.exists()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_the_socket_of_a_killed_process_is_replaced(unit: ControlUnit, tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(AdminServer(Management(unit), dict, pytest.fail).run, path)
        assert await command(Serving(tmp_path), "status") == {}
        nursery.cancel_scope.cancel()
