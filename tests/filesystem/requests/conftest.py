"""The request handlers, driven as the kernel drives them, over a real volume."""

import os
import stat
from dataclasses import dataclass
from typing import Any

import pyfuse3
import pytest

from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import PURGE_AFTER_S
from tests.filesystem.conftest import ROOT_USER, Caller

ROOT = ROOT_INODE
LATER_S = 3 * PURGE_AFTER_S


class Kernel:
    """Requests in short: by whom is told once, and what is made is known by its inode."""

    def __init__(self, operations: Operations, caller: Caller = ROOT_USER) -> None:
        self.operations: Any = operations
        self.caller = caller

    async def create(
        self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644, parent: int = ROOT
    ) -> tuple[int, InodeNumber]:
        """The handle and the inode."""
        info, entry = await self.operations.create(parent, name, mode, flags | os.O_CREAT, self.caller)
        return info.fh, InodeNumber(entry.st_ino)

    async def make(self, name: bytes, content: bytes = b"", mode: int = 0o644) -> InodeNumber:
        handle, inode = await self.create(name, mode=mode)
        await self.operations.write(handle, 0, content)
        await self.operations.release(handle)
        return inode

    async def mkdir(self, name: bytes, parent: int = ROOT) -> InodeNumber:
        entry = await self.operations.mkdir(parent, name, stat.S_IFDIR | 0o755, self.caller)
        return InodeNumber(entry.st_ino)

    async def open(self, inode: InodeNumber, flags: int = os.O_RDWR) -> int:
        handle: int = (await self.operations.open(inode, flags, self.caller)).fh
        return handle

    async def content(self, inode: InodeNumber) -> bytes:
        handle = await self.open(inode, os.O_RDONLY)
        content: bytes = await self.operations.read(handle, 0, 1 << 20)
        await self.operations.release(handle)
        return content

    async def attributes(self, inode: int) -> Any:
        return await self.operations.getattr(inode, self.caller)

    async def lookup(self, name: bytes, parent: int = ROOT) -> int:
        number: int = (await self.operations.lookup(parent, name, self.caller)).st_ino
        return number


@pytest.fixture
def kernel(operations: Operations) -> Kernel:
    return Kernel(operations)


@dataclass
class Fields:
    """As pyfuse3's SetattrFields, whose fields only the kernel can set."""

    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


async def change(kernel: Kernel, inode: int, **values: int) -> Any:
    attributes, fields = pyfuse3.EntryAttributes(), Fields()
    for field, value in values.items():
        setattr(attributes, f"st_{field}", value)
        setattr(fields, f"update_{field.removesuffix('_ns')}", True)
    return await kernel.operations.setattr(inode, attributes, fields, None, kernel.caller)
