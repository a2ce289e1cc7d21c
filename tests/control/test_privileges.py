"""Privileges of a program end with a change of its data, in the same change, on both hosts."""

import msgspec
import pytest
from trio.testing import MockClock

from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Allocate, AnyOperation, Copy, SetAttributes, SetXattr, Unlink, Write
from fusemirror.settings import Access, Acknowledge
from fusemirror.xattrs import CAPABILITY
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import content, create

__all__ = ["network", "pair"]

PROGRAM = 0o106755
ROOT_WRITES, OTHERS_WRITE = Write(InodeNumber(0), 0), Write(InodeNumber(0), 0, clear_privileges=True)
# What is done, and the mode afterwards: file capabilities end with each, set-id bits not with root's.
CHANGES: dict[str, tuple[AnyOperation, int]] = {
    "a write of root": (ROOT_WRITES, PROGRAM),
    "a write": (OTHERS_WRITE, 0o100755),
    "appending": (Write(InodeNumber(0), 0, append=True, clear_privileges=True), 0o100755),
    "a truncation by root": (SetAttributes(InodeNumber(0), size=3), PROGRAM),
    "O_TRUNC": (SetAttributes(InodeNumber(0), size=0, clear_privileges=True), 0o100755),
    "truncate(2) as asked": (
        SetAttributes(InodeNumber(0), mode=0o755, size=9, mtime_ns=7),
        0o100755,
    ),
    "room": (Allocate(InodeNumber(0), 0, 99, 0, clear_privileges=True), 0o100755),
    "a copy": (Copy(InodeNumber(0), 9, 12, InodeNumber(0), 0, clear_privileges=True), 0o100755),
    "a copy that root makes": (Copy(InodeNumber(0), 9, 12, InodeNumber(0), 0), PROGRAM),
    "a hole that root makes": (Allocate(InodeNumber(0), 1, 3, 3), PROGRAM),
    "a new owner": (SetAttributes(InodeNumber(0), uid=7), 0o100755),
}


@pytest.fixture(params=["at the primary", "at the backup"])
def here(request: pytest.FixtureRequest, pair: Pair) -> Host:
    return pair.primary if request.param == "at the primary" else pair.backup


async def program(pair: Pair) -> InodeNumber:
    inode = await create(pair.primary, b"program")
    await pair.primary.roles.perform(Write(inode, 0), b"as it was")
    await pair.primary.roles.perform(SetAttributes(inode, mode=0o6755))
    await pair.primary.roles.perform(SetXattr(inode, CAPABILITY, b"value"))
    return inode


def privileges(host: Host, inode: InodeNumber) -> tuple[int, bytes | None]:
    catalog = host.roles.volume.catalog
    found = catalog.inode(inode)
    assert found is not None
    return found.mode, catalog.xattrs.value(inode, CAPABILITY)


async def do(host: Host, operation: AnyOperation, inode: InodeNumber) -> None:
    data = b"evil" if isinstance(operation, Write) else b""
    source = {"source": inode} if isinstance(operation, Copy) else {}
    await host.roles.perform(msgspec.structs.replace(operation, inode=inode, **source), data)


@pytest.mark.parametrize("what", CHANGES)
async def test_they_end_with_the_change_on_both_hosts(
    pair: Pair, here: Host, what: str, autojump_clock: MockClock
) -> None:
    operation, mode = CHANGES[what]
    inode = await program(pair)
    number = pair.primary.roles.volume.number
    await do(here, operation, inode)
    assert pair.primary.roles.volume.number == number + 1
    for host in (pair.primary, pair.backup):
        assert privileges(host, inode) == (mode, None)
    shown = [host.roles.volume.catalog.inode(inode) for host in (pair.primary, pair.backup)]
    assert len({(each.size, each.mtime_ns, each.ctime_ns) for each in shown if each}) == 1
    if isinstance(operation, SetAttributes) and operation.mtime_ns is not None:
        assert shown[0] is not None
        assert shown[0].mtime_ns == operation.mtime_ns
    assert content(pair.primary, inode) == content(pair.backup, inode)


async def test_a_write_that_nobody_waits_for_ends_them_before_it_is_shown(
    pair: Pair, autojump_clock: MockClock
) -> None:
    for host in (pair.primary, pair.backup):
        host.succession.configure(msgspec.structs.replace(host.settings, acknowledge=Acknowledge.ASYNC))
    inode = await program(pair)
    await pair.primary.roles.wait_drained()
    await do(pair.backup, ROOT_WRITES, inode)
    assert privileges(pair.backup, inode)[1] is None


async def test_they_end_in_exclusive_access_too(pair: Pair, here: Host, autojump_clock: MockClock) -> None:
    await pair.primary.management.change_access(Access.EXCLUSIVE)
    inode = await program(pair)
    await do(here, OTHERS_WRITE, inode)
    for host in (pair.primary, pair.backup):
        assert privileges(host, inode) == (0o100755, None)


async def test_for_a_backup_of_an_earlier_version_they_end_just_before(
    pair: Pair, here: Host, autojump_clock: MockClock
) -> None:
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    assert unit.replica.stream is not None
    session = unit.replica.stream.session
    session.peer = msgspec.structs.replace(session.peer, takes_rows=False)
    for what in ("a write", "truncate(2) as asked"):
        operation, mode = CHANGES[what]
        inode = await program(pair)
        number = unit.volume.number
        await do(here, operation, inode)
        assert unit.volume.number > number + 1
        for host in (pair.primary, pair.backup):
            assert privileges(host, inode) == (mode, None)
        await remove(pair, b"program")


async def test_a_repair_ends_none(pair: Pair, autojump_clock: MockClock) -> None:
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    inode = await program(pair)
    unit.admission.decisions.restore_data(inode, 0, b"as it was there")
    unit.admission.decisions.restore_length(inode)
    assert privileges(pair.primary, inode) == (PROGRAM, b"value")


async def remove(pair: Pair, name: bytes) -> None:
    await pair.primary.roles.perform(Unlink(ROOT_INODE, name))
