"""Flags: set, shown, inherited, and asked for by every operation that they concern."""

import errno

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.flags import KNOWN, Flag
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import (
    Allocate,
    AnyOperation,
    Copy,
    Create,
    CreateUnnamed,
    HardLink,
    LinkUnnamed,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetFlags,
    SetXattr,
    Unlink,
    Write,
)
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples, refused

EXAMPLES: Examples = [
    (SetFlags(InodeNumber(2), 48), "932d0230"),
    (SetFlags(InodeNumber(2), 64), "932d0240"),
]

FILE, DIRECTORY = InodeNumber(2), InodeNumber(3)
FIXED, GROWS = Flag.IMMUTABLE, Flag.APPEND
REGULAR = 0o100644

# What is asked, the inode that has the flag, and the flags by which it is refused.
ASKED: list[tuple[AnyOperation, InodeNumber, Flag]] = [
    (Write(FILE, 0), FILE, FIXED | GROWS),
    (Write(FILE, 0, append=True), FILE, FIXED),
    (Allocate(FILE, 0, 9, 0), FILE, FIXED),
    (Allocate(FILE, 0, 9, 1), FILE, FIXED),
    (Allocate(FILE, 0, 9, 3), FILE, FIXED | GROWS),
    (Allocate(FILE, 0, 9, 16), FILE, FIXED | GROWS),
    (Copy(FILE, 5, 6, FILE, 0), FILE, FIXED | GROWS),
    (SetAttributes(FILE, size=0), FILE, FIXED | GROWS),
    (SetAttributes(FILE, mode=0o600), FILE, FIXED | GROWS),
    (SetAttributes(FILE, uid=1), FILE, FIXED | GROWS),
    (SetAttributes(FILE, gid=1), FILE, FIXED | GROWS),
    (SetAttributes(FILE, atime_ns=1, mtime_ns=1), FILE, FIXED),
    (SetXattr(FILE, b"user.a", b"v"), FILE, FIXED | GROWS),
    (RemoveXattr(FILE, b"user.none"), FILE, FIXED | GROWS),
    (HardLink(FILE, ROOT, b"link"), FILE, FIXED | GROWS),
    (LinkUnnamed(FILE, ROOT, b"link"), FILE, FIXED | GROWS),
    (Unlink(ROOT, b"file"), FILE, FIXED | GROWS),
    (Rename(ROOT, b"file", ROOT, b"new"), FILE, FIXED | GROWS),
    (Rename(ROOT, b"other", ROOT, b"file"), FILE, FIXED | GROWS),
    (Rename(ROOT, b"other", ROOT, b"file", 2), FILE, FIXED | GROWS),
    (Rename(ROOT, b"file", ROOT, b"file"), FILE, Flag(0)),
    (RemoveDirectory(ROOT, b"dir"), DIRECTORY, FIXED | GROWS),
    (Create(DIRECTORY, b"new", REGULAR, 0, 0), DIRECTORY, FIXED),
    (CreateUnnamed(DIRECTORY, REGULAR, 0, 0), DIRECTORY, FIXED),
    (HardLink(FILE, DIRECTORY, b"link"), DIRECTORY, FIXED),
    (Unlink(DIRECTORY, b"inside"), DIRECTORY, FIXED | GROWS),
    (Rename(DIRECTORY, b"inside", ROOT, b"new"), DIRECTORY, FIXED | GROWS),
    (Rename(ROOT, b"file", DIRECTORY, b"new"), DIRECTORY, FIXED),
    (Rename(ROOT, b"file", DIRECTORY, b"inside"), DIRECTORY, FIXED | GROWS),
    (RemoveDirectory(DIRECTORY, b"sub"), DIRECTORY, FIXED | GROWS),
    (SetFlags(FILE, 0), FILE, Flag(0)),
]


@pytest.fixture
def files(decider: Decider) -> None:
    assert decider.create(b"file") == FILE
    assert decider.do(Create(ROOT, b"dir", 0o040755, 0, 0)).inode == DIRECTORY
    decider.create(b"other")
    decider.grow(FILE, 3)
    decider.do(Create(DIRECTORY, b"inside", REGULAR, 0, 0))
    decider.do(Create(DIRECTORY, b"sub", 0o040755, 0, 0))


@pytest.mark.parametrize("flag", Flag, ids=lambda flag: flag.name)
@pytest.mark.parametrize(("operation", "flagged", "refusing"), ASKED, ids=str)
def test_an_operation_is_refused_by_the_flags_that_concern_it(
    decider: Decider, files: None, operation: AnyOperation, flagged: InodeNumber, refusing: Flag, flag: Flag
) -> None:
    decider.do(SetFlags(flagged, flag))
    before = decider.rows()
    assert (error_of(decider, operation) == errno.EPERM) is bool(flag & refusing)
    assert decider.rows() == before
    decider.do(SetFlags(flagged, 0))
    assert error_of(decider, operation) != errno.EPERM


def error_of(decider: Decider, operation: AnyOperation) -> int:
    try:
        operation.decide(decider.draft(), 1)
    except OperationFailed as error:
        return error.errno
    return 0


@pytest.mark.parametrize("flag", Flag, ids=lambda flag: flag.name)
def test_what_they_may_forbid_is_not_acknowledged_early(decider: Decider, files: None, flag: Flag) -> None:
    decider.do(SetFlags(FILE, flag))
    early = Write(FILE, 0).may_be_written_behind(decider.catalog, 1, 1 << 40)
    assert early is not bool(flag & (FIXED | GROWS))


def test_they_are_kept_shown_and_taken_away(decider: Decider, files: None) -> None:
    assert decider.catalog.xattrs.flags(decider.inode(FILE)) == 0
    decider.do(SetFlags(FILE, KNOWN))
    assert decider.catalog.xattrs.flags(decider.inode(FILE)) == KNOWN
    assert decider.inode(FILE).ctime_ns == decider.time_ns
    decider.do(SetFlags(FILE, 0))
    assert decider.catalog.xattrs.flags(decider.inode(FILE)) == 0
    assert not decider.catalog.xattrs.names(FILE)


@pytest.mark.parametrize("mode", [REGULAR, 0o040755, 0o010644])
def test_what_is_made_in_a_directory_inherits_those_that_forbid_nothing(
    decider: Decider, files: None, mode: int
) -> None:
    decider.do(SetFlags(DIRECTORY, GROWS | Flag.NODUMP | Flag.NOATIME))
    made = decider.do(Create(DIRECTORY, b"made", mode, 0, 0)).inode
    assert decider.catalog.xattrs.flags(decider.inode(made)) == Flag.NODUMP | Flag.NOATIME


def test_what_cannot_be_has_its_errno(decider: Decider, files: None) -> None:
    refused(decider, SetFlags(NOWHERE, 0), errno.ESTALE)
    pipe = decider.do(Create(ROOT, b"pipe", 0o010644, 0, 0)).inode
    refused(decider, SetFlags(pipe, Flag.NODUMP), errno.ENOTTY)


@pytest.mark.parametrize("bit", [each for each in range(32) if not 1 << each & KNOWN])
def test_any_other_flag_is_refused(bit: int) -> None:
    for flags in (1 << bit, 1 << bit | KNOWN):
        with pytest.raises(OperationFailed) as failed:
            SetFlags(FILE, flags).check()
        assert failed.value.errno == errno.EOPNOTSUPP


def test_what_stays_immutable_keeps_the_flags_that_it_has(decider: Decider, files: None) -> None:
    decider.do(SetFlags(FILE, FIXED))
    for flags in (FIXED | GROWS, FIXED | Flag.NODUMP):
        refused(decider, SetFlags(FILE, flags), errno.EPERM)
    decider.do(SetFlags(FILE, FIXED))
    decider.do(SetFlags(FILE, Flag.NODUMP))
    assert decider.catalog.xattrs.flags(decider.inode(FILE)) == Flag.NODUMP
