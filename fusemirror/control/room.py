"""Room: what an operation may need of the disk, before it is decided."""

from fusemirror.limits import SPACE_PER_CHANGE_BYTES
from fusemirror.operations import AnyOperation, Create, Link, SetXattr, Write


def space_needed(operation: AnyOperation, data_bytes: int) -> int:
    """Bytes that the operation may take; 0 for one that must work on a full disk.

    Deleting, cutting, renaming and changing attributes make do with the reserve: a local disk lets
    them through too, and a full one is emptied by them.
    """
    if isinstance(operation, Write):
        return SPACE_PER_CHANGE_BYTES + data_bytes if data_bytes else 0
    if isinstance(operation, SetXattr):
        return SPACE_PER_CHANGE_BYTES + len(operation.value)
    return SPACE_PER_CHANGE_BYTES if isinstance(operation, Create | Link) else 0
