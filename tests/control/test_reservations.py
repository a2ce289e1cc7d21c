"""Two hosts in one process: who may change what, while one of them holds a file or everything."""

import errno
import stat
from collections.abc import Callable

import pytest

from fusemirror.control.management import reservations
from fusemirror.control.purging import purge_rows
from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed, ReservationConflict
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import (
    AnyOperation,
    Create,
    HardLink,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
    reserve,
)
from fusemirror.volume.reservations import EVERYTHING, reservation_row
from tests.admin.conftest import Pair, network, pair

__all__ = ["network", "pair"]

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Sides:
    """The host that holds, the one that is kept off, and a file."""

    def __init__(self, holder: Host, other: Host, file: InodeNumber) -> None:
        self.holder = holder
        self.other = other
        self.file = file


@pytest.fixture(params=["primary holds", "backup holds"])
async def sides(request: pytest.FixtureRequest, pair: Pair) -> Sides:
    holder, other = pair.primary, pair.backup
    if request.param == "backup holds":
        holder, other = other, holder
    made = await holder.roles.perform(Create(ROOT_INODE, b"held", FILE, 0, 0))
    assert made is not None
    await holder.roles.perform(Create(ROOT_INODE, b"free", FILE, 0, 0))
    await holder.roles.perform(SetXattr(made.number, b"user.x", b"1"))
    return Sides(holder, other, made.number)


async def refusal(host: Host, operation: AnyOperation, data: bytes = b"") -> int:
    """The errno that it met, or 0."""
    try:
        await host.roles.perform(operation, data)
    except OperationFailed as error:
        return error.errno
    return 0


CHANGES: dict[str, Callable[[InodeNumber], AnyOperation]] = {
    "write": lambda file: Write(file, 0),
    "append": lambda file: Write(file, 0, append=True),
    "truncate": lambda file: SetAttributes(file, size=3),
    "chmod": lambda file: SetAttributes(file, mode=0o600),
    "touch": lambda file: SetAttributes(file, mtime_ns=1),
    "setxattr": lambda file: SetXattr(file, b"user.x", b"2"),
    "removexattr": lambda file: RemoveXattr(file, b"user.x"),
    "link": lambda file: HardLink(file, ROOT_INODE, b"linked"),
    "rename": lambda _: Rename(ROOT_INODE, b"held", ROOT_INODE, b"moved"),
    "replace": lambda _: Rename(ROOT_INODE, b"free", ROOT_INODE, b"held"),
    "exchange": lambda _: Rename(ROOT_INODE, b"free", ROOT_INODE, b"held", 2),
    "unlink": lambda _: Unlink(ROOT_INODE, b"held"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_other_host_may_not_change_a_reserved_file(sides: Sides, change: str) -> None:
    operation, data = CHANGES[change](sides.file), b"data" if change in ("write", "append") else b""
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    assert await refusal(sides.other, operation, data) == errno.EBUSY
    assert await refusal(sides.holder, operation, data) == 0


@pytest.mark.parametrize("change", CHANGES)
async def test_the_other_host_may_change_it_once_released(sides: Sides, change: str) -> None:
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    await sides.holder.management.release(sides.file, preempt=False)
    data = b"data" if change in ("write", "append") else b""
    assert await refusal(sides.other, CHANGES[change](sides.file), data) == 0


async def test_other_files_stay_free(sides: Sides) -> None:
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    for operation in (
        Create(ROOT_INODE, b"new", FILE, 0, 0),
        Create(ROOT_INODE, b"directory", DIRECTORY, 0, 0),
        Rename(ROOT_INODE, b"free", ROOT_INODE, b"other"),
        Unlink(ROOT_INODE, b"other"),
    ):
        assert await refusal(sides.other, operation) == 0


async def test_a_host_that_holds_everything_lets_the_other_change_nothing(sides: Sides) -> None:
    await sides.holder.management.reserve(EVERYTHING, b"", preempt=False)
    for operation in (
        Create(ROOT_INODE, b"new", FILE, 0, 0),
        Unlink(ROOT_INODE, b"free"),
        SetAttributes(ROOT_INODE, mode=0o700),
        Write(sides.file, 0),
    ):
        data = b"data" if isinstance(operation, Write) else b""
        assert await refusal(sides.other, operation, data) == errno.EBUSY
        assert await refusal(sides.holder, operation, data) == 0
    assert await sides.other.roles.read(sides.file, 0, 10) == b"data"
    await sides.other.roles.flush(sides.file)


@pytest.mark.parametrize("held", ["file", "everything"])
@pytest.mark.parametrize("wanted", ["file", "everything"])
async def test_a_conflict_names_the_holder_until_it_is_preempted(
    sides: Sides, held: str, wanted: str
) -> None:
    first, second = (sides.file if what == "file" else EVERYTHING for what in (held, wanted))
    await sides.holder.management.reserve(first, b"held", preempt=False)
    with pytest.raises(ReservationConflict, match=sides.holder.roles.volume.identity.host_name) as caught:
        await sides.other.management.reserve(second, b"held", preempt=False)
    assert caught.value.exit_code == 6
    await sides.other.management.reserve(second, b"held", preempt=True)
    for host in (sides.holder, sides.other):
        found = reservations(host.roles.host)
        assert [(each["inode"], each["holder"]) for each in found] == [
            (second or None, sides.other.roles.volume.identity.host_name)
        ]
    assert await refusal(sides.holder, Write(sides.file, 0), b"data") == errno.EBUSY


async def test_reserving_again_keeps_since_when(sides: Sides) -> None:
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    before = reservations(sides.holder.roles.host)
    await sides.holder.management.reserve(sides.file, b"held", preempt=True)
    assert reservations(sides.holder.roles.host) == reservations(sides.other.roles.host) == before


async def test_a_release_of_what_the_other_host_holds_needs_preempt(sides: Sides) -> None:
    await sides.other.management.release(sides.file, preempt=False)  # nobody holds it
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    with pytest.raises(ReservationConflict):
        await sides.other.management.release(sides.file, preempt=False)
    await sides.other.management.release(sides.file, preempt=True)
    assert not reservations(sides.holder.roles.host)


async def test_what_is_no_file_cannot_be_reserved(sides: Sides) -> None:
    for inode, expected in ((ROOT_INODE, errno.EISDIR), (InodeNumber(999), errno.ENOENT)):
        with pytest.raises(OperationFailed) as caught:
            await sides.other.management.reserve(inode, b"x", preempt=False)
        assert caught.value.errno == expected


async def test_there_is_a_limit(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESERVATIONS_MAX", 1)
    await sides.holder.management.reserve(sides.file, b"held", preempt=False)
    with pytest.raises(OperationFailed) as caught:
        await sides.holder.management.reserve(EVERYTHING, b"", preempt=False)
    assert caught.value.errno == errno.ENOLCK
    await sides.other.management.reserve(EVERYTHING, b"", preempt=True)  # in the place of the one that ends


async def test_a_reservation_goes_with_its_file(pair: Pair) -> None:
    unit = pair.primary.roles
    made = await unit.perform(Create(ROOT_INODE, b"held", FILE, 0, 0))
    assert made is not None
    await pair.primary.management.reserve(made.number, b"held", preempt=False)
    await unit.perform(Unlink(ROOT_INODE, b"held"))
    assert reservations(unit.host)
    assert reservation_row(made.number, None) in purge_rows(unit.volume.catalog, [made.number])
