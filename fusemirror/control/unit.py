"""The control unit: the one interface by which anything above drives the mirrored filesystem.

The same for a kernel, a test and a simulation: operations in, inodes and bytes out, errors raised as
`OperationFailed` (the ordinary errno of a filesystem) or `CheckReport` (the mirror state forbids it).
Each request goes to the role that this host has, and anew to the next one where the role changes meanwhile
(`present_role.py`). Reads show nothing that the other host could not see too (G2). Source: seed [0082].
"""

import errno
import os
from collections.abc import Coroutine
from typing import Any, cast

import outcome

from fusemirror.control.host_state import HostState
from fusemirror.control.local_reads import found
from fusemirror.control.present_role import PresentRole
from fusemirror.control.role import Role
from fusemirror.control.states import PARKED
from fusemirror.control.stepwise import steps_of
from fusemirror.errors import OperationFailed, RoleChanged
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import AnyOperation, Key, Write
from fusemirror.promise import Promise
from fusemirror.volume.entries import Entry
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import has_namespace, namespace_of


class BegunWrite:
    """A write that waits for both volumes to have it, and for nothing else."""

    __slots__ = ("data", "operation", "promise", "role")

    def __init__(self, role: Role, operation: Write, data: bytes, promise: Promise[Any]) -> None:
        self.role = role
        self.operation = operation
        self.data = data
        self.promise = promise

    def is_done(self, result: "outcome.Outcome[Any]") -> bool:
        """Whether its program is told of success, the promise being settled so; else `end_write` goes on."""
        return type(result) is outcome.Value and self.role.host.volume.health.failure is None


class ControlUnit:
    """See the module: what programs ask, whichever role this host has."""

    def __init__(self, present: PresentRole) -> None:
        self.host: HostState = present.role.host
        self.volume = self.host.volume
        self.leases = self.host.leases
        self.locks = self.host.locks
        self.open_inodes = self.host.open_inodes
        self.present = present

    @property
    def unit(self) -> Role:
        """The unit of the present role."""
        return self.present.role

    # --- names and attributes -----------------------------------------------------------------------------

    async def showable(self, key: Key) -> None:
        """See `Reads.showable`."""
        while True:
            role = self.present.role
            if role.life.state in PARKED:
                role = await self.present.unparked()
            try:
                return await role.reads.showable(key)
            except RoleChanged:
                await self.present.succeeded(role)

    def cacheable_s(self, key: Key) -> float:
        """See `Reads.cacheable_s`."""
        role = self.present.role
        return 0.0 if role.life.state in PARKED else role.reads.cacheable_s(key)

    def name_lifetime_s(self, parent: InodeNumber, name: bytes, keeping: int | None) -> float:
        """Seconds for which this host's kernel may keep that there is, or is not, the name; often 0.

        `keeping` is what `leases.keeping` said of the parent before the catalog was asked.
        """
        if keeping is None or keeping != self.leases.keeping(parent):
            return 0.0
        return self.leases.lifetime_s(parent, self.cacheable_s((parent, name)))

    async def _names_showable(self, directory: InodeNumber, key: Key) -> None:
        role = self.present.role
        if self.leases.look(directory) and role.life.state not in PARKED:
            role.reads.want_lease(directory)
        await self.showable(key)
        while directory in self.leases.theirs:
            await self.present.ask(lambda role: role.reads.free_directory(directory, of_change=False))
            await self.showable(key)

    async def attributes(self, inode: InodeNumber) -> Inode:
        """The inode; ESTALE where it has gone. The object is the catalog's own: read it at once."""
        await self.showable(inode)
        return self.shown(found(self.volume.catalog.inode(inode), errno.ESTALE))

    def shown(self, inode: Inode) -> Inode:
        """See `Reads.shown`."""
        return self.present.role.reads.shown(inode)

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """The inode of a name; ENOENT where there is none. VolumeDamaged where it stands for nothing."""
        await self._names_showable(parent, (parent, name))
        while (entry := self.volume.catalog.entry(parent, name)) is not None:
            try:
                return await self.attributes(entry.inode)
            except OperationFailed:
                # While this waited the name got another inode, and the one before was purged.
                await self._names_showable(parent, (parent, name))
                if self.volume.catalog.entry(parent, name) == entry:
                    self.volume.files.inode_of(parent, name, entry)
                    raise
        found(self.volume.catalog.inode(parent), errno.ESTALE)
        raise OperationFailed(errno.ENOENT)

    async def listing(
        self, directory: InodeNumber, after_cookie: int, limit: int
    ) -> list[tuple[int, bytes, Entry]]:
        """Entries with a cookie above `after_cookie`, in the order of cookies, at most `limit`."""
        await self._names_showable(directory, directory)
        return self.volume.catalog.listing(directory, after_cookie, limit)

    async def xattr(self, inode: InodeNumber, name: bytes) -> bytes:
        """The value of an extended attribute; ENODATA where there is none, EOPNOTSUPP where none can be."""
        namespace_of(name)
        await self.attributes(inode)
        value = self.volume.catalog.xattrs.value(inode, name)
        if value is None:
            raise OperationFailed(errno.ENODATA)
        return value

    async def xattrs(self, inode: InodeNumber) -> list[bytes]:
        """The names of the extended attributes, but for those of no namespace (`xattrs.py`)."""
        await self.attributes(inode)
        return [name for name in self.volume.catalog.xattrs.names(inode) if has_namespace(name)]

    # --- content ------------------------------------------------------------------------------------------

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        """See `Reads.read`."""
        while True:
            role = self.present.role
            if role.life.state in PARKED:
                role = await self.present.unparked()
            try:
                return await role.reads.read(inode, offset, length)
            except RoleChanged:
                await self.present.succeeded(role)

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        """See `Reads.seek`."""
        return await self.present.ask(lambda role: role.reads.seek(inode, offset, data=data))

    def allocated_bytes(self, inode: Inode) -> int:
        """See `Reads.allocated_bytes`."""
        return self.present.role.reads.allocated_bytes(inode)

    # --- changing -----------------------------------------------------------------------------------------

    def perform(self, operation: AnyOperation, data: bytes = b"") -> Coroutine[Any, Any, Inode | None]:
        """Do it, in both volumes; the inode concerned, or None where it has gone meanwhile."""
        return self._perform(operation, data) if operation.stepwise is None else self._perform_long(operation)

    async def _perform_long(self, operation: AnyOperation) -> Inode | None:
        done = None
        for step in await steps_of(operation, self.volume):
            done = await self._perform(step)
        return done

    async def _perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        begun = self.begin_write(cast(Write, operation), data) if operation.carries_data else None
        if begun is None:
            return await self._perform_in_role(operation, data)
        await self.end_write(begun, await outcome.acapture(begun.promise.wait_last))
        inode = self.volume.catalog.inode(begun.operation.inode)
        return inode and self.shown(inode)

    async def _perform_in_role(self, operation: AnyOperation, data: bytes) -> Inode | None:
        while True:
            role = self.present.role
            if role.life.state in PARKED:
                role = await self.present.unparked()
            try:
                return await role.perform(operation, data)
            except RoleChanged:
                await self.present.succeeded(role)

    def begin_write(self, operation: Write, data: bytes) -> BegunWrite | None:
        """Begin with a write that has to wait for nothing but the other host; None: `perform` is to do it."""
        role = self.present.role
        promise = role.begin_write(operation, data)
        return None if promise is None else BegunWrite(role, operation, data, promise)

    async def end_write(self, begun: BegunWrite, result: "outcome.Outcome[Any]") -> None:
        """`perform` from where its promise was settled; `result` is what became of that."""
        try:
            try:
                result.unwrap()
            except OperationFailed:
                await begun.role.may_refuse()
                raise
        except RoleChanged:
            await self.present.succeeded(begun.role)
            await self._perform_in_role(begun.operation, begun.data)
        self.host.check_disk()

    async def flush(self, inode: InodeNumber) -> None:
        """See `Role.flush`."""
        await self.present.ask(lambda role: role.flush(inode))

    async def drain(self, inode: InodeNumber) -> None:
        """See `Role.drain`."""
        await self.present.ask(lambda role: role.drain(inode))

    # --- both hosts ---------------------------------------------------------------------------------------

    def statvfs(self) -> os.statvfs_result:
        """See `Disks.statvfs`."""
        return self.host.news.disks.statvfs()

    @property
    def is_linked(self) -> bool:
        """Whether the other host can be reached, as far as this host knows yet."""
        return self.host.links.link is not None

    async def wait_connected(self) -> None:
        """Return when there is a link to the peer."""
        await self.present.ask(lambda role: role.wait_connected())

    async def wait_normal(self) -> None:
        """Return when the mirror state is normal."""
        await self.present.ask(lambda role: role.wait_normal())

    async def wait_drained(self) -> None:
        """Return when nothing that was asked before is under way any more."""
        await self.present.ask(lambda role: role.wait_drained())
