"""What is open, and what nobody opens any more."""

import errno

import pytest

from fusemirror.control.open_inodes import OpenInodes
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Unlink
from tests.filesystem.conftest import unit
from tests.volume.conftest import directory, volume

__all__ = ["directory", "unit", "volume"]

ONE, TWO, THREE = InodeNumber(2), InodeNumber(3), InodeNumber(4)


class FakeVolume:
    """A catalog of inodes without names, and a kernel that holds some."""

    def __init__(self) -> None:
        self.held: set[InodeNumber] = set()
        self.named: set[InodeNumber] = set()
        self.catalog = self.derived = self.invalidator = self

    def is_orphan(self, inode: InodeNumber) -> bool:
        return inode not in self.named

    def has_let_go(self, inodes: list[InodeNumber]) -> set[InodeNumber]:
        return set(inodes) - self.held


@pytest.fixture
def fake() -> FakeVolume:
    return FakeVolume()


@pytest.fixture
def inodes(fake: FakeVolume) -> OpenInodes:
    return OpenInodes(fake)  # type: ignore[arg-type]


def is_refused(inodes: OpenInodes, inode: InodeNumber) -> bool:
    try:
        inodes.add(inode)
    except OperationFailed:
        return True
    inodes.remove(inode)
    return False


def test_an_inode_is_open_until_it_was_closed_as_often(inodes: OpenInodes) -> None:
    inodes.add(ONE)
    inodes.add(ONE)
    inodes.remove(ONE)
    assert ONE in inodes
    inodes.remove(ONE)
    assert ONE not in inodes


def test_what_is_open_is_held_and_the_rest_given_up(fake: FakeVolume, inodes: OpenInodes) -> None:
    inodes.add(ONE)
    fake.held.add(THREE)
    assert inodes.give_up((ONE, TWO, THREE)) == (ONE, THREE)
    assert [is_refused(inodes, inode) for inode in (ONE, TWO, THREE)] == [False, True, False]
    inodes.keep_all()
    assert not is_refused(inodes, TWO)


def test_what_has_ended_is_forgotten(fake: FakeVolume, inodes: OpenInodes) -> None:
    inodes.give_up((ONE, TWO))
    fake.named.add(ONE)
    inodes.give_up((THREE,))
    fake.named.clear()
    assert [is_refused(inodes, inode) for inode in (ONE, TWO, THREE)] == [False, True, True]


async def test_nobody_opens_what_was_given_up(unit: ControlUnit) -> None:
    """The primary may have ended it, and this host may have yet to hear so."""
    made = await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    unit.host.open_inodes.give_up((made.number,))
    # It has a name: in another line of changes than that which was asked about.
    unit.open_inodes.add(made.number)
    unit.open_inodes.remove(made.number)
    await unit.perform(Unlink(ROOT_INODE, b"file"))
    unit.host.open_inodes.give_up((made.number,))
    with pytest.raises(OperationFailed) as refused:
        unit.open_inodes.add(made.number)
    assert refused.value.errno == errno.ESTALE
    assert made.number not in unit.open_inodes
