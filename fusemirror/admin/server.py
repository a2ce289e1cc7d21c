"""The socket of a mount that the commands talk to: one JSON object per line, a request and its answers.

`admin/client.py` is the other end; `requests.py` has what may be asked. The answer is
`{"ok": true, "result": ...}` or `{"ok": false, "error": ..., "exit_code": ...}`; long work sends
`{"progress": ...}` lines before it.
"""

import json
import logging
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from fusemirror.admin import requests
from fusemirror.coherence.lock_listing import listed
from fusemirror.control.management import Management, reservations
from fusemirror.control.succession import Succession
from fusemirror.errors import FusemirrorError, TimedOut, UsageError, VerifyFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ADMIN_REQUEST_BYTES_MAX
from fusemirror.volume.health import disk_error

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.25
_LEFT_LOOK_S = 1.0

Answer = dict[str, Any]
Send = Callable[[Answer], Awaitable[None]]


class AdminServer:
    """Answers commands until cancelled. `stop` ends the mount; `change_settings` takes values of a config
    file, or raises UsageError; `invite` lets another host take the peer's place; `renew_keys` returns when
    both hosts have new ones.
    """

    def __init__(
        self,
        management: Management,
        take_snapshot: Callable[[], dict[str, Any]],
        stop: Callable[[str], None],
        succession: Succession | None = None,
        change_settings: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
        invite: Callable[[requests.Invite], Awaitable[None]] | None = None,
        renew_keys: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._management = management
        self._succession = succession
        self._change_settings = change_settings
        self._invite = invite
        self._renew_keys = renew_keys
        self._take_snapshot = take_snapshot
        self._stop = stop
        self._waits: dict[int, trio.CancelScope] = {}  # by the descriptor of who asked

    async def run(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on the Unix socket `path`, for root alone; it is gone when this returns."""
        async with _listening(path) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(self._leave_waits)
            await trio.serve_listeners(self._serve, [listener], task_status=_Ready(task_status))

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            # A command that was ended before it had its answer needs none.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._answer(stream, await _receive_line(stream))

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        async def send(answer: Answer) -> None:
            await stream.send_all(json.dumps(answer).encode() + b"\n")

        try:
            result = await self._carry_out(requests.parse(line), stream, send)
        except FusemirrorError as error:
            await send(_refusal(error))
        except OSError as error:
            volume = self._management.host.volume
            volume.health.note(error)
            await send(_refusal(disk_error(volume.directory, error)))
        else:
            await send({"ok": True, "result": result})

    async def _carry_out(self, request: requests.Request, stream: trio.SocketStream, send: Send) -> Any:
        match request:
            case requests.Status():
                return self._take_snapshot()
            case requests.Locks():
                return await listed(self._management.host.locks)
            case requests.Wait():
                return await self._wait(stream.socket.fileno(), request.condition, request.timeout)
            case requests.Verify():
                return await self._verify(send, request.keep)
            case requests.Reserve():
                await self._management.reserve(
                    InodeNumber(request.inode), request.path_bytes, preempt=request.preempt
                )
                return reservations(self._management.host)
            case requests.Release():
                await self._management.release(InodeNumber(request.inode), preempt=request.preempt)
                return reservations(self._management.host)
            case requests.Resync():
                if request.rate is not None or request.paused is not None:
                    await self._management.change_pace(rate_bytes=request.rate, paused=request.paused)
                return self._take_snapshot()
            case requests.Switch() | requests.Takeover() | requests.Conflicts() | requests.Resolve():
                return await self._change_roles(request)
            case requests.Invite():
                if self._invite is None:
                    raise UsageError("this mount can invite nobody")
                await self._invite(request)
                return None
            case requests.RenewKeys():
                if self._renew_keys is None:
                    raise UsageError("this mount has no keys")
                await self._renew_keys()
                return None
            case requests.Set():
                return await self._set(request.values)
            case requests.Stop():
                self._stop("asked to stop")
                return None

    async def _change_roles(
        self, request: requests.Switch | requests.Takeover | requests.Conflicts | requests.Resolve
    ) -> Any:
        succession = self._succession
        if succession is None:
            raise UsageError("this mount cannot change its role")
        match request:
            case requests.Switch():
                await succession.switch()
                return self._management.host.volume.identity.role
            case requests.Takeover(dry_run=True):
                return succession.takeover_report()
            case requests.Takeover():
                return await succession.takeover(force=request.force)
            case requests.Conflicts():
                return await succession.conflicts()
            case requests.Resolve():
                return succession.resolve(request.keep)

    async def _set(self, values: dict[str, Any]) -> Any:
        if self._change_settings is None:
            raise UsageError("this mount has no settings to change")
        await self._change_settings(values)
        return self._take_snapshot()

    async def _wait(self, asker: int, condition: str, timeout_s: float) -> None:
        conditions = {
            "connected": self._management.unit.wait_connected,
            "normal": self._management.unit.wait_normal,
            "drained": self._management.unit.wait_drained,
        }
        with trio.move_on_after(timeout_s) as patience:
            self._waits[asker] = patience
            try:
                await conditions[condition]()
            finally:
                del self._waits[asker]
            return
        raise TimedOut(timeout_s, f"not {condition} yet; see `fusemirror status`")

    async def _leave_waits(self) -> None:
        """End the waits of those who have left, for ever: each has a descriptor, and may last for years."""
        while True:
            await trio.sleep(_LEFT_LOOK_S)
            poll = select.poll()
            for asker in self._waits:
                poll.register(asker, 0)  # only that it hung up: who has no more to say may still listen
            for asker, _ in poll.poll(0):
                self._waits[asker].cancel()

    async def _verify(self, send: Send, keep: str) -> Any:
        """`keep` names the host whose version replaces what differs, by its name or its role."""
        identity = self._management.host.volume.identity
        other = "backup" if identity.role == "primary" else "primary"
        roles = {identity.host_name: identity.role, identity.only_peer.name: other}
        if keep and keep not in ("primary", "backup", *roles):
            raise UsageError(f"there is no host {keep!r}; the hosts are {' and '.join(roles)}")
        await self._management.verify(roles.get(keep, keep))
        while True:
            report = await self._management.verify_report()
            if not report["running"]:
                break
            done, total = report["done_bytes"], max(report["total_bytes"], report["done_bytes"])
            await send({"progress": {"done": done, "total": total, "unit": "bytes"}})
            await trio.sleep(_PROGRESS_INTERVAL_S)
        if report["failed"]:
            raise VerifyFailed(report["failed"])
        return {
            "images": report["images"],
            "rows": report["rows"],
            "bytes": report["done_bytes"],
            "differences": report["differences"],
            "more_differences": report.get("more", 0),
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


async def _receive_line(stream: trio.SocketStream) -> bytes:
    received = b""
    while b"\n" not in received and len(received) < ADMIN_REQUEST_BYTES_MAX:
        data = await stream.receive_some(ADMIN_REQUEST_BYTES_MAX)
        if not data:
            break
        received += data
    return received
