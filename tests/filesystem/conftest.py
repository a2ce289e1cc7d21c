"""The request handlers over a primary without a backup and a real volume; only the kernel is left out."""

import errno
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import pyfuse3
import pytest
import trio

from fusemirror.channel.link import Link
from fusemirror.control.host_state import HostState
from fusemirror.control.present_role import PresentRole
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.volume.volume import Volume
from tests.volume.conftest import counting_seams, directory, volume

__all__ = ["directory", "operations", "unit", "volume"]


@dataclass(frozen=True)
class Caller:
    """Who asks, as pyfuse3's RequestContext says it; that one only the kernel can make."""

    uid: int = 0
    gid: int = 0
    umask: int = 0
    pid: int = 4711


KEPT_S = 0.001  # attributes, by a primary whose peer_timeout this is
ROOT_USER = Caller()
USER = Caller(1000, 1000)


def never(*_: object) -> None:
    pytest.fail("a bug was reported")


async def refused(request: Awaitable[Any]) -> str:
    """The name of the errno that the request is answered with."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await request
    return errno.errorcode[caught.value.errno]


@pytest.fixture
async def unit(volume: Volume) -> AsyncIterator[ControlUnit]:
    """Of a primary that need not wait for its backup, and goes on alone."""
    host = HostState(volume, b"instance")
    primary = PrimaryUnit(host, counting_seams(), peer_timeout_s=KEPT_S, io_timeout_s=1)
    send, receive = trio.open_memory_channel[Link](0)
    async with send, receive, trio.open_nursery() as nursery:
        await nursery.start(primary.run, receive)
        await primary.mirror.authority.until_decided()
        yield ControlUnit(PresentRole(primary))
        nursery.cancel_scope.cancel()


@pytest.fixture
def notified() -> list[tuple[InodeNumber, bool]]:
    """What the kernel was told to forget: inodes, and whether only their attributes."""
    return []


@pytest.fixture
def dropped() -> list[NameKey]:
    """The names that the kernel was told to drop."""
    return []


@pytest.fixture
async def cache(
    unit: ControlUnit, notified: list[tuple[InodeNumber, bool]], dropped: list[NameKey]
) -> AsyncIterator[KernelCache]:
    invalidator = KernelCache(
        lambda inode, attributes_only: notified.append((inode, attributes_only)),
        lambda parent, name: dropped.append((parent, name)),
    )
    unit.volume.invalidator = invalidator
    async with trio.open_nursery() as nursery:
        await nursery.start(invalidator.run)
        yield invalidator
        nursery.cancel_scope.cancel()


@pytest.fixture
def operations(unit: ControlUnit, cache: KernelCache) -> Operations:
    return Operations(unit, cache, on_bug=never)
