"""`Operations` behind our own session with the kernel: each request becomes one call of a handler.

It does what pyfuse3's own loop does, without what that costs: `kernel/session.py` reads and replies. What a
request's bytes say, and what its reply's are, stands in `serving/`; what is done with it in `requests/`.
"""

import errno
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import outcome
import pyfuse3

from fusemirror.control.unit import BegunWrite
from fusemirror.errors import MalformedRequest
from fusemirror.filesystem.answers import Handler
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.serving.attributes import AttributeServer
from fusemirror.filesystem.serving.directories import DirectoryServer
from fusemirror.filesystem.serving.files import FileServer
from fusemirror.filesystem.serving.flags import FlagServer
from fusemirror.filesystem.serving.names import NameServer
from fusemirror.kernel import codec
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode

log = logging.getLogger(__name__)

_BUG = "a bug in serving opcode %d: please report it"


class OperationsServer:
    """The `Server` of a session. A bug, too, is answered: with EIO, a trace in the log, and `on_bug`."""

    def __init__(
        self,
        operations: Operations,
        now_ns: Callable[[], int],
        on_bug: Callable[[], None],
        *,
        tells_of_privileges: bool = False,
    ) -> None:
        """`tells_of_privileges`: the kernel says which changes end set-user-id and set-group-id."""
        self._names: Any = operations.names  # as for `NameServer`
        self._files = operations.files
        self._directories = operations.directories
        self._locks = operations.program_locks
        self._on_bug = on_bug
        files = FileServer(
            operations.files, operations.program_locks, tells_of_privileges=tells_of_privileges
        )
        self._begin_write = files.begin_write
        self._end_write = files.end_write
        self.reply_to_write = files.reply_to_write
        self._handlers: dict[int, Handler] = {
            **NameServer(operations.names).handlers,
            **DirectoryServer(operations.directories).handlers,
            **AttributeServer(operations.attributes, now_ns).handlers,
            **FlagServer(operations.attributes).handlers,
            **files.handlers,
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlk,
            Opcode.DESTROY: self._destroy,
        }

    def serve(self, header: InHeader, body: memoryview) -> Coroutine[Any, Any, FuseReply] | None:
        handler = self._handlers.get(header.opcode)
        if handler is not None:
            return self._answer(handler, header, body)
        if header.opcode == Opcode.FORGET:
            self._forget(header.opcode, [(header.nodeid, codec.FORGET_IN.read(body).nlookup)])
        elif header.opcode == Opcode.BATCH_FORGET:
            self._forget(header.opcode, codec.forgotten_in(body))
        return None

    def begin_write(self, header: InHeader, body: memoryview) -> BegunWrite | None:
        try:
            return self._begin_write(header, body)
        except MalformedRequest:
            raise
        except Exception as error:
            log.critical(_BUG, header.opcode, exc_info=True)
            self._on_bug()
            raise MalformedRequest("nobody knows what became of it") from error  # to serve it may do it twice

    def end_write(
        self, header: InHeader, begun: BegunWrite, result: "outcome.Outcome[Any]"
    ) -> Coroutine[Any, Any, FuseReply]:
        async def end(header: InHeader, _: memoryview) -> FuseReply:
            return await self._end_write(header, begun, result)

        return self._answer(end, header, memoryview(b""))

    def _forget(self, opcode: int, inodes: list[tuple[int, int]]) -> None:
        try:
            self._names.forget(inodes)
        except Exception:
            log.critical(_BUG, opcode, exc_info=True)
            self._on_bug()

    async def _answer(self, handler: Handler, header: InHeader, body: memoryview) -> FuseReply:
        try:
            return await handler(header, body)
        except pyfuse3.FUSEError as error:
            return codec.error_reply(header.unique, error.errno)
        except MalformedRequest:
            raise
        except Exception:
            log.critical(_BUG, header.opcode, exc_info=True)
            self._on_bug()
            return codec.error_reply(header.unique, errno.EIO)

    async def untaken(self, header: InHeader, body: bytes, reply: FuseReply) -> None:
        error = codec.error_of(reply)
        if error == errno.EIO:
            self.in_doubt(header, body)
        if error:
            return
        handed = codec.handed_by(header.opcode, reply)
        if handed.file is not None:
            await self._files.release(handed.file)
        if handed.directory is not None:
            await self._directories.releasedir(handed.directory)
        if handed.inodes:
            self._names.forget([(inode, 1) for inode in handed.inodes])
        self._names.changed_untold(
            codec.names_changed_by(header, memoryview(body)),
            codec.content_changed_by(header, memoryview(body)),
        )

    def in_doubt(self, header: InHeader, body: bytes) -> None:
        self._names.changed_untold(codec.names_changed_by(header, memoryview(body)), None)

    async def _getlk(self, header: InHeader, body: memoryview) -> FuseReply:
        conflict = await self._locks.find(header, codec.lock_in(body))
        return codec.lock_reply(header.unique, conflict)

    async def _setlk(self, header: InHeader, body: memoryview) -> FuseReply:
        waits = header.opcode == Opcode.SETLKW
        await self._locks.set(header, codec.lock_in(body), waits=waits)
        return codec.empty_reply(header.unique)

    def interrupt(self, unique: int) -> None:
        self._locks.interrupt(unique)

    async def _destroy(self, header: InHeader, body: memoryview) -> FuseReply:
        return codec.empty_reply(header.unique)
