"""What the backup's disk does not take is refused alone: whoever asked hears why, and the mirror goes on."""

import errno
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport, CopyDeclined, OperationFailed, RefusedForSafety
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, InodeNumber
from fusemirror.mirror.declining import Declining, shown_reason, unlike
from fusemirror.mirror.stream import Stream
from fusemirror.operations import Copy, SetAttributes, Unlink, Write
from fusemirror.protocol.messages import Applied, Digests, Hole, Reply
from fusemirror.settings import Acknowledge
from tests.admin.conftest import Pair, network, pair
from tests.control.test_on_degraded import configure
from tests.control.test_roles import PATIENCE_S, content, create, until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]

pytestmark = pytest.mark.expects_warnings


class BadImage:
    """One image that the disk of a host does not write, as if a person had made it immutable."""

    def __init__(self, host: Host, inode: InodeNumber, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_mended = False
        images = host.roles.volume.images
        for name in ("write", "truncate", "allocate", "copy"):
            monkeypatch.setattr(images, name, self._unless_bad(getattr(images, name), inode))

    def _unless_bad(self, act: Any, bad: InodeNumber) -> Any:
        def try_it(inode: InodeNumber, *others: Any) -> Any:
            if inode == bad and not self.is_mended:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            return act(inode, *others)

        return try_it


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusemirror.mirror.resync.DECLINED_RETRY_S", 0.02)


@pytest.fixture
async def file(soon: None, pair: Pair) -> InodeNumber:
    file = await create(pair.primary, b"file")
    await pair.primary.roles.perform(Write(file, 0), b"before")
    return file


@pytest.mark.parametrize("at", ["primary", "backup"])
@pytest.mark.parametrize("what", ["write", "truncate"])
async def test_who_asked_hears_why_and_everything_else_goes_on(
    pair: Pair, file: InodeNumber, at: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, here, link = BadImage(pair.backup, file, monkeypatch), getattr(pair, at), pair.primary.unit.link
    other = await create(pair.primary, b"other")
    operation: Any = Write(file, 0) if what == "write" else SetAttributes(file, size=3)
    with pytest.raises(CopyDeclined, match="Operation not permitted") as told:
        await here.roles.perform(operation, b"after!" if what == "write" else b"")
    assert told.value.errno == errno.EIO
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: "not permitted" in (pair.status(host)["reason"] or ""))  # type: ignore[misc]
        assert pair.status(host)["mirror_state"] == "resyncing"
        await host.roles.perform(Write(other, 0), b"goes on")
    assert content(pair.primary, other) == content(pair.backup, other) == b"goes on"
    expected = b"after!" if what == "write" else b"bef"
    for host in (pair.primary, pair.backup):  # main has it, and the backup reads it there
        assert await host.roles.read(file, 0, 100) == expected
        with pytest.raises(OperationFailed) as failed:
            await host.roles.flush(file)
        assert failed.value.errno == errno.EIO, "one volume alone has what was written"
    with pytest.raises(RefusedForSafety):
        await here.succession.switch()
    assert not pair.backup.roles.volume.identity.consistent
    assert pair.primary.unit.link is link

    bad.is_mended = True
    for host in (pair.primary, pair.backup):
        with trio.fail_after(PATIENCE_S):
            await host.roles.wait_normal()
        await until(lambda host=host: pair.status(host)["reason"] is None)  # type: ignore[misc]
        await host.roles.flush(file)
    assert content(pair.primary, file) == content(pair.backup, file) == expected
    await until(lambda: pair.backup.roles.volume.identity.consistent)
    assert pair.primary.unit.link is link


async def test_a_resync_copies_all_but_what_is_declined_and_that_when_it_can(
    pair: Pair, file: InodeNumber, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = BadImage(pair.backup, file, monkeypatch)
    network.cut("alpha", "beta")
    for host in (pair.primary, pair.backup):
        await host.unit.host.links.ended.wait()
    other = await create(pair.primary, b"other")
    for each in (file, other):
        await pair.primary.roles.perform(Write(each, 0), b"alone")
    network.heal("alpha", "beta")
    await until(lambda: pair.status(pair.backup)["out_of_sync"]["images"] == 1)
    await until(lambda: pair.primary.unit.link is not None)
    await until(lambda: "Operation not permitted" in (pair.status(pair.primary)["reason"] or ""))
    link = pair.primary.unit.link
    await until(lambda: content(pair.backup, other) == b"alone")
    assert await pair.backup.roles.read(file, 0, 100) == b"alonee"
    bad.is_mended = True
    for host in (pair.primary, pair.backup):
        with trio.fail_after(PATIENCE_S):
            await host.roles.wait_normal()
    assert content(pair.backup, file) == b"alonee"
    assert pair.primary.unit.link is link


async def test_what_was_declined_of_a_file_that_is_removed_troubles_nobody(
    pair: Pair, file: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    BadImage(pair.backup, file, monkeypatch)
    with pytest.raises(CopyDeclined):
        await pair.primary.roles.perform(Write(file, 0), b"after!")
    await until(lambda: pair.status(pair.backup)["mirror_state"] == "resyncing")
    # The primary says no more of the image: that its inode goes is all that the backup hears.
    monkeypatch.setattr("fusemirror.mirror.resync.DECLINED_RETRY_S", 1000.0)
    monkeypatch.setattr("fusemirror.control.upkeep.PURGE_AFTER_S", 0.02)
    await pair.primary.roles.perform(Unlink(ROOT_INODE, b"file"))
    await until(lambda: pair.status(pair.backup)["mirror_state"] == "normal")
    await until(lambda: pair.backup.roles.volume.identity.consistent)
    assert pair.status(pair.backup)["out_of_sync"]["images"] == 0


@pytest.mark.parametrize("to", ["itself", "another"])
async def test_what_copies_a_declined_image_is_declined_before_the_primary_knows(
    pair: Pair, file: InodeNumber, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, link = BadImage(pair.backup, file, monkeypatch), pair.primary.unit.link
    copy = file if to == "itself" else await create(pair.primary, b"copy")
    told = []

    async def perform(operation: Any, data: bytes = b"") -> None:
        with pytest.raises(CopyDeclined) as declined:
            await pair.primary.roles.perform(operation, data)
        told.append(str(declined.value))

    async with trio.open_nursery() as nursery:  # both are on their way before anything comes back
        await nursery.start(_started, partial(perform, Write(file, 0), b"after!"))
        nursery.start_soon(perform, Copy(copy, 6, 12, file, 0))
    assert len(told) == 2
    bad.is_mended = True
    for host in (pair.primary, pair.backup):
        with trio.fail_after(PATIENCE_S):
            await host.roles.wait_normal()
    whole = b"after!after!" if to == "itself" else bytes(6) + b"after!"
    assert content(pair.primary, copy) == content(pair.backup, copy) == whole
    assert pair.primary.unit.link is link


async def test_a_change_that_is_declined_behind_the_word_of_its_copying_is_copied_too(
    pair: Pair, file: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, link = BadImage(pair.backup, file, monkeypatch), pair.primary.unit.link
    primary = pair.primary.unit
    told: list[InodeNumber] = []
    noted: list[InodeNumber] = []
    assert isinstance(primary, PrimaryUnit)
    tell, note = primary.mirror.resync[primary.replica]._send_out_of_sync, Declining.note

    def tell_and_write(stream: Stream) -> None:
        tell(stream)
        if not told:
            told.append(primary.admission.decisions.make(Write(file, 0), b"behind", NO_REQUEST))

    def note_and_mend(declining: Declining, inode: InodeNumber, error: OSError) -> None:
        note(declining, inode, error)
        noted.append(inode)
        bad.is_mended = len(noted) == 2  # before anything of the image is copied

    monkeypatch.setattr(primary.mirror.resync[primary.replica], "_send_out_of_sync", tell_and_write)
    monkeypatch.setattr(Declining, "note", note_and_mend)
    with pytest.raises(CopyDeclined):
        await pair.primary.roles.perform(Write(file, 0), b"after!")
    for host in (pair.primary, pair.backup):
        with trio.fail_after(PATIENCE_S):
            await host.roles.wait_normal()
    assert told
    assert noted == [file, file]
    assert content(pair.primary, file) == content(pair.backup, file) == b"behind"
    assert pair.primary.unit.link is link


async def _started(
    work: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    await work()


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_of_a_write_that_was_acknowledged_early_fsync_says_so(
    pair: Pair, file: InodeNumber, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Host = getattr(pair, at)
    configure(here, acknowledge=Acknowledge.ASYNC)
    bad = BadImage(pair.backup, file, monkeypatch)
    await here.roles.perform(Write(file, 0), b"after!")
    with pytest.raises((OperationFailed, CheckReport)) as failed:
        await here.roles.flush(file)
    assert failed.value.errno == errno.EIO
    bad.is_mended = True
    for host in (pair.primary, pair.backup):
        with trio.fail_after(PATIENCE_S):
            await host.roles.wait_normal()
    await here.roles.flush(file)
    assert content(pair.backup, file) == b"after!"


@contextmanager
def replaced_image(host: Host, inode: InodeNumber) -> Iterator[None]:
    """A program of the host has the file open; a person put a link where its image is, for a while."""
    volume = host.roles.volume
    cache = KernelCache(lambda *_: None, lambda *_: None, lambda *_: None, volume.files.ending)
    cache.files.all[inode] = 1
    volume.invalidator = cache
    path = volume.images.path(inode)
    volume.images._open.release(inode)
    away = path.rename(f"{path}.away")
    path.symlink_to(away)
    yield
    away.rename(path)


async def test_an_open_file_whose_image_was_replaced_ends_no_link(pair: Pair, file: InodeNumber) -> None:
    link = pair.primary.unit.link
    # Else a checkpoint meanwhile finds no image to make durable, which ends the link.
    await pair.backup.roles.volume.syncing.flush(file)
    with replaced_image(pair.backup, file):
        with pytest.raises(CopyDeclined):
            await pair.primary.roles.perform(Write(file, 0), b"after!")
        other = await create(pair.backup, b"other")
        await pair.backup.roles.perform(Write(other, 0), b"goes on")
    with trio.fail_after(PATIENCE_S):
        await pair.backup.roles.wait_normal()
    assert content(pair.backup, file) == b"after!"
    assert pair.primary.unit.link is link


@pytest.mark.parametrize("operation", [SetAttributes, Unlink])
async def test_a_change_that_took_effect_is_mirrored_whatever_the_kernel_is_told_of_it(
    pair: Pair, file: InodeNumber, operation: Any
) -> None:
    """What is told of an open file whose row has changed is its last byte, which the disk may not give."""
    is_chmod = operation is SetAttributes
    asked = SetAttributes(file, mode=0o600) if is_chmod else Unlink(ROOT_INODE, b"file")
    with replaced_image(pair.primary, file):
        await pair.backup.roles.perform(asked)
    for host in (pair.primary, pair.backup):
        catalog = host.roles.volume.catalog
        inode = catalog.inode(file)
        assert inode is not None
        assert (inode.mode & 0o777 == 0o600) is is_chmod
        assert (catalog.entry(ROOT_INODE, b"file") is None) is not is_chmod


async def test_an_error_of_the_whole_disk_ends_the_link_as_ever(
    pair: Pair, file: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pair.backup.roles.volume.images, "write", fail)
    await pair.primary.roles.perform(Write(file, 0), b"alone!")
    assert pair.status(pair.backup)["disk"]["failure"]
    assert pair.status(pair.primary)["mirror_state"] == "degraded"


def test_one_reason_stands_for_all() -> None:
    assert shown_reason("beta", {}) is None
    reasons = {InodeNumber(7): "Operation not permitted", InodeNumber(8): "Is a directory"}
    told = shown_reason("beta", reasons)
    what = "the disk of beta does not take the image of inode 7 (and 1 more)"
    assert told == f"{what}: Operation not permitted; it is tried again"


def test_what_cannot_be_looked_at_differs() -> None:
    file = InodeNumber(7)
    digests = Digests(1, file, 0, 5, (1, 2), repair=True)
    assert unlike(digests) == Reply(1, values=(5, 6))
    assert unlike(Hole(2, file, 0, 5, 9, repair=True)) == Reply(2, values=(9,))
    assert unlike(Applied(digests.token)) is None  # type: ignore[arg-type]
