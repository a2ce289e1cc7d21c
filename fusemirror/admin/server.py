"""The socket of a mount that the commands talk to: one JSON object per line, a request and its answers.

`admin/client.py` is the other end. A request is `{"command": ...}` with its arguments; the answer is
`{"ok": true, "result": ...}` or `{"ok": false, "error": ..., "exit_code": ...}`; long work sends
`{"progress": ...}` lines before it.
"""

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from fusemirror.control.roles import Roles
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import FusemirrorError, RefusedForSafety, TimedOut, UsageError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ADMIN_REQUEST_BYTES_MAX
from fusemirror.volume.health import disk_error

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.25

Answer = dict[str, Any]
Send = Callable[[Answer], Awaitable[None]]


class AdminServer:
    """Answers commands until cancelled. `stop` ends the mount; `change_settings` takes values of a config
    file, or raises UsageError.
    """

    def __init__(
        self,
        unit: ControlUnit,
        take_snapshot: Callable[[], dict[str, Any]],
        stop: Callable[[str], None],
        change_settings: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._unit = unit
        self._change_settings = change_settings
        self._take_snapshot = take_snapshot
        self._stop = stop

    async def run(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on the Unix socket `path`, for root alone; it is gone when this returns."""
        async with _listening(path) as listener:
            await trio.serve_listeners(self._serve, [listener], task_status=_Ready(task_status))

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            # A command that was ended before it had its answer needs none.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._answer(stream, await _request(stream))

    async def _answer(self, stream: trio.SocketStream, request: Answer) -> None:
        async def send(answer: Answer) -> None:
            await stream.send_all(json.dumps(answer).encode() + b"\n")

        try:
            result = await self._carry_out(request, send)
        except FusemirrorError as error:
            await send(_refusal(error))
        except OSError as error:
            volume = self._unit.volume
            volume.health.note(error)
            await send(_refusal(disk_error(volume.directory, error)))
        else:
            await send({"ok": True, "result": result})

    async def _carry_out(self, request: Answer, send: Send) -> Any:
        match request.get("command"):
            case "status":
                return self._take_snapshot()
            case "wait":
                return await self._wait(str(request.get("for")), _seconds(request.get("timeout", 0)))
            case "verify":
                return await self._verify(send, str(request.get("keep", "")))
            case "reserve":
                path = os.fsencode(str(request.get("path", "")))
                await self._unit.reserve(_inode(request), path, preempt=request.get("preempt") is True)
                return self._unit.reservations()
            case "release":
                await self._unit.release(_inode(request), preempt=request.get("preempt") is True)
                return self._unit.reservations()
            case "resync":
                return await self._resync(request)
            case "switch" | "takeover" | "conflicts" | "resolve" as command:
                return await self._change_roles(command, request)
            case "set":
                return self._set(request.get("values"))
            case "stop":
                self._stop("asked to stop")
                return None
            case other:
                raise UsageError(f"the mount process knows no command {other!r}; is it of another version?")

    async def _change_roles(self, command: str, request: Answer) -> Any:
        roles = self._unit
        if not isinstance(roles, Roles):
            raise UsageError("this mount cannot change its role")
        if command == "switch":
            await roles.switch()
            return roles.volume.identity.role
        if command == "takeover":
            if request.get("dry_run") is True:
                return roles.takeover_report()
            return await roles.takeover(force=request.get("force") is True)
        if command == "conflicts":
            return await roles.conflicts()
        return roles.resolve(str(request.get("keep", "")))

    def _set(self, values: Any) -> Any:
        if not isinstance(values, dict):
            raise UsageError("`values` is an object of settings")
        if self._change_settings is None:
            raise UsageError("this mount has no settings to change")
        self._change_settings(values)
        return self._take_snapshot()

    async def _wait(self, condition: str, timeout_s: float) -> None:
        conditions = {
            "connected": self._unit.wait_connected,
            "normal": self._unit.wait_normal,
            "drained": self._unit.wait_drained,
        }
        if condition not in conditions:
            raise UsageError(f"there is no condition {condition!r}")
        with trio.move_on_after(timeout_s):
            await conditions[condition]()
            return
        raise TimedOut(timeout_s, f"not {condition} yet; see `fusemirror status`")

    async def _resync(self, request: Answer) -> Any:
        rate, paused = request.get("rate"), request.get("paused")
        if not (rate is None or (type(rate) is int and rate >= 0)) or paused not in (None, True, False):
            raise UsageError("`rate` is bytes per second, and `paused` is true or false")
        if rate is not None or paused is not None:
            await self._unit.change_pace(rate_bytes=rate, paused=paused)
        return self._take_snapshot()

    async def _verify(self, send: Send, keep: str) -> Any:
        """`keep` names the host whose version replaces what differs, by its name or its role."""
        identity = self._unit.volume.identity
        other = "backup" if identity.role == "primary" else "primary"
        roles = {identity.host_name: identity.role, identity.peer_name: other}
        if keep and keep not in ("primary", "backup", *roles):
            raise UsageError(f"there is no host {keep!r}; the hosts are {' and '.join(roles)}")
        await self._unit.verify(roles.get(keep, keep))
        while True:
            report = await self._unit.verify_report()
            if not report["running"]:
                break
            done, total = report["done_bytes"], max(report["total_bytes"], report["done_bytes"])
            await send({"progress": {"done": done, "total": total, "unit": "bytes"}})
            await trio.sleep(_PROGRESS_INTERVAL_S)
        if report["failed"]:
            raise RefusedForSafety(report["failed"])
        return {
            "images": report["images"],
            "rows": report["rows"],
            "bytes": report["done_bytes"],
            "differences": report["differences"],
            "repaired": report["repaired"],
        }


def _refusal(error: FusemirrorError) -> Answer:
    return {"ok": False, "error": str(error), "exit_code": error.exit_code}


class _Ready:
    """Turns the listeners that `serve_listeners` reports into the None that our starter waits for."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, _: object = None) -> None:
        self._status.started()


@asynccontextmanager
async def _listening(path: Path) -> AsyncIterator[trio.SocketListener]:
    # What a killed process left: the volume's lock says that none lives.
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - a directory in memory
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listening:
        before = os.umask(0o177)
        try:
            await listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen()
        try:
            yield trio.SocketListener(listening)
        finally:
            path.unlink(missing_ok=True)  # noqa: ASYNC240


async def _request(stream: trio.SocketStream) -> Answer:
    received = b""
    while b"\n" not in received and len(received) < ADMIN_REQUEST_BYTES_MAX:
        data = await stream.receive_some(ADMIN_REQUEST_BYTES_MAX)
        if not data:
            break
        received += data
    try:
        request = json.loads(received)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


def _inode(request: Answer) -> InodeNumber:
    """The file that a request is about, 0 for everything; UsageError where it names none."""
    inode = request.get("inode", 0)
    if type(inode) is not int or not 0 <= inode < 1 << 64:
        raise UsageError(f"{inode!r} is no inode")
    return InodeNumber(inode)


def _seconds(value: Any) -> float:
    """A limit as a request gives it; UsageError where it is none."""
    try:
        seconds = float(value)
    except (ValueError, TypeError, OverflowError):
        seconds = -1.0
    if not seconds >= 0:  # nor is NaN
        raise UsageError(f"{value!r} is no number of seconds")
    return seconds
