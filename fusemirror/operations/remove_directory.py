"""RemoveDirectory: take the name from an empty directory; rmdir(2)."""

from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import NO_INODE, OfName
from fusemirror.volume.catalog import Catalog


class RemoveDirectory(OfName, tag=6, frozen=True, array_like=True):
    """`expected`: the directory that the kernel takes the name for, 0 where that is not known."""

    expected: InodeNumber = NO_INODE

    def must_be_empty(self, catalog: Catalog) -> InodeNumber | None:
        entry = catalog.entry(self.parent, self.name)
        return None if entry is None else entry.inode

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        parent = draft.directory(self.parent)
        inode = draft.named(self.parent, self.name)
        draft.check_taken_for(self.expected, inode.number)
        draft.check_flags(parent, Act.REMOVE_ENTRY)
        draft.check_flags(inode, Act.LOSE_NAME)
        draft.drop_directory(parent, inode)
        draft.remove_name(self.parent, self.name)
        return draft.decision(inode.number)
