"""Operations against a real catalog, each decided and applied with the next number, as a primary does."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.operations import AnyOperation, Create, Operation, RemoveDirectory, Unlink, acl
from fusemirror.operations.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry
from fusemirror.operations.draft import Decision, Draft
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import inode_key, key_inode
from fusemirror.volume.inode import Inode

ROOT = ROOT_INODE
FILE, DIRECTORY, SYMLINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
Examples = list[tuple[AnyOperation, str]]
"""Operations that a kernel may ask for, and each as it travels, in hexadecimal digits."""
NOWHERE = InodeNumber(999_999)
TOO_LONG = b"n" * (NAME_BYTES_MAX + 1)


class Decider:
    """Decides and applies. Rows alone: a change of data has its place in the volume's images."""

    def __init__(self, directory: Path) -> None:
        Catalog.create(directory / "catalog")
        self.catalog = Catalog(directory / "catalog")
        self.number = ChangeNumber(0)

    @property
    def time_ns(self) -> int:
        return 1_000_000 + self.number

    def draft(self, request: RequestId = NO_REQUEST, host: bytes = b"") -> Draft:
        """At the next place in the order."""
        return Draft(self.catalog, ChangeNumber(self.number + 1), self.time_ns + 1, request, host)

    def do(self, operation: Operation, data_bytes: int = 0, *, host: bytes = b"") -> Decision:
        decision = operation.decide(self.draft(host=host), data_bytes)
        self.number = ChangeNumber(self.number + 1)
        self.catalog.apply_rows(() if decision.change is None else decision.change.rows, self.number)
        return decision

    def create(
        self,
        name: bytes,
        mode: int = FILE,
        parent: InodeNumber = ROOT_INODE,
        *,
        uid: int = 0,
        gid: int = 0,
    ) -> InodeNumber:
        return self.do(Create(parent, name, mode, uid, gid)).inode

    def inode(self, number: InodeNumber) -> Inode:
        inode = self.catalog.inode(number)
        assert inode is not None
        return inode

    def grow(self, number: InodeNumber, size: int) -> None:
        """As a write would have left it."""
        inode = self.inode(number).copy()
        inode.size = size
        self.put(inode)

    def put(self, inode: Inode) -> None:
        self.catalog.apply_rows([(Table.INODES, inode_key(inode.number), inode.pack())])

    def names(self, directory: InodeNumber = ROOT_INODE) -> list[bytes]:
        """In the order of a listing."""
        return [name for _, name, _ in self.catalog.listing(directory, 0, 1000)]

    def rows(self) -> dict[tuple[int, bytes], bytes]:
        """All of them; what is kept in memory must say the same."""
        for key, row in self.catalog.tables.rows(Table.INODES, None, 1 << 20):
            assert self.inode(key_inode(key)).pack() == row
        return {
            (table, key): row
            for table in Table
            for key, row in self.catalog.tables.rows(table, None, 1 << 20)
        }


class Tree:
    """`dir/inner`, `file`, an empty directory, and two inodes that have lost their names."""

    def __init__(self, decider: Decider) -> None:
        self.directory = decider.create(b"dir", DIRECTORY)
        self.inner = decider.create(b"inner", parent=self.directory)
        self.file = decider.create(b"file")
        self.empty = decider.create(b"empty", DIRECTORY)
        self.removed = decider.create(b"removed", DIRECTORY)
        decider.do(RemoveDirectory(ROOT_INODE, b"removed"))
        self.unlinked = decider.create(b"unlinked")
        decider.do(Unlink(ROOT_INODE, b"unlinked"))


def refused(decider: Decider, operation: Operation, expected: int, data_bytes: int = 0) -> None:
    """It has its errno, and changes nothing."""
    before = decider.rows()
    with pytest.raises(OperationFailed) as caught:
        decider.do(operation, data_bytes)
    assert caught.value.errno == expected
    assert decider.rows() == before


def access_list(user: int, group: int, other: int, *, mask: int | None = None) -> bytes:
    """A list as the kernel writes it; with a mask, user 1000 may read and write."""
    nobody = 0xFFFFFFFF
    made = [
        AclEntry(USER_OBJ, user, nobody),
        AclEntry(GROUP_OBJ, group, nobody),
        AclEntry(OTHER, other, nobody),
    ]
    if mask is not None:
        made[1:1] = [AclEntry(USER, 6, 1000)]
        made[3:3] = [AclEntry(MASK, mask, nobody)]
    return acl.encode(made)


@pytest.fixture
def decider(tmp_path: Path) -> Iterator[Decider]:
    made = Decider(tmp_path)
    yield made
    assert not made.catalog.derived.wrong()
    made.catalog.close()


@pytest.fixture
def tree(decider: Decider) -> Tree:
    made = Tree(decider)
    assert (made.directory, made.file, made.unlinked) == (2, 4, 7), "operations of the tests name them"
    return made
