"""What is open, and what nobody opens any more."""

import errno

import pytest

from fusemirror.control.open_inodes import OpenInodes
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Unlink
from tests.filesystem.conftest import unit
from tests.volume.conftest import directory, volume

__all__ = ["directory", "unit", "volume"]

ONE, TWO, THREE = InodeNumber(2), InodeNumber(3), InodeNumber(4)


def test_an_inode_is_open_until_it_was_closed_as_often() -> None:
    inodes = OpenInodes()
    inodes.add(ONE)
    inodes.add(ONE)
    inodes.remove(ONE)
    assert ONE in inodes
    inodes.remove(ONE)
    assert ONE not in inodes


def test_what_is_open_is_held_and_the_rest_given_up() -> None:
    inodes = OpenInodes()
    inodes.add(ONE)
    assert inodes.give_up((ONE, TWO, THREE), (ONE, TWO), lambda _: True) == (ONE, THREE)
    assert not inodes.is_given_up(ONE)
    assert inodes.is_given_up(TWO)
    inodes.keep_all()
    assert not inodes.is_given_up(TWO)


def test_what_has_ended_is_forgotten() -> None:
    inodes = OpenInodes()
    inodes.give_up((ONE, TWO), (ONE, TWO), lambda _: True)
    inodes.give_up((THREE,), (THREE,), lambda inode: inode != ONE)
    assert [inodes.is_given_up(inode) for inode in (ONE, TWO, THREE)] == [False, True, True]


async def test_nobody_opens_what_was_given_up(unit: PrimaryUnit) -> None:
    """The primary may have ended it, and this host may have yet to hear so."""
    made = await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    unit.give_up((made.number,))
    unit.opened(made.number)  # it has a name: in another line of changes than that which was asked about
    unit.closed(made.number)
    await unit.perform(Unlink(ROOT_INODE, b"file"))
    unit.give_up((made.number,))
    with pytest.raises(OperationFailed) as refused:
        unit.opened(made.number)
    assert refused.value.errno == errno.ESTALE
    assert not unit.is_open(made.number)
