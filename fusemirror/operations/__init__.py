"""Operations: what a program asks of the mirrored filesystem, each in a file of its own.

The one vocabulary of the control unit, the same whether a kernel, a test or a simulation is above it, and
what the backup's requests carry over the forward path. Each operation says itself what it validates,
touches, needs of the disk, decides and answers (`operation.py` has the questions). None of that waits, or
reads more than the catalog. One that succeeds becomes a change (`change.py`), one that fails an errno.

A new one is a file here, its line in `AnyOperation`, and its tests. A tag is never given twice: it stands in
what communication volumes hold, and travels between hosts of two versions.
"""

from fusemirror.operations.accessed import Accessed
from fusemirror.operations.allocate import Allocate
from fusemirror.operations.copy import Copy
from fusemirror.operations.create import Create
from fusemirror.operations.create_unnamed import CreateUnnamed
from fusemirror.operations.draft import Key
from fusemirror.operations.link import HardLink
from fusemirror.operations.link_unnamed import LinkUnnamed
from fusemirror.operations.operation import Operation
from fusemirror.operations.release import Release
from fusemirror.operations.remove_directory import RemoveDirectory
from fusemirror.operations.remove_xattr import RemoveXattr
from fusemirror.operations.rename import Rename
from fusemirror.operations.reserve import Reserve
from fusemirror.operations.set_attributes import SetAttributes
from fusemirror.operations.set_flags import SetFlags
from fusemirror.operations.set_xattr import SetXattr
from fusemirror.operations.unlink import Unlink
from fusemirror.operations.write import Write

AnyOperation = (
    Write
    | Allocate
    | Copy
    | SetAttributes
    | Create
    | CreateUnnamed
    | HardLink
    | LinkUnnamed
    | Unlink
    | RemoveDirectory
    | Rename
    | SetXattr
    | SetFlags
    | Accessed
    | RemoveXattr
    | Reserve
    | Release
)

__all__ = [
    "Accessed",
    "Allocate",
    "AnyOperation",
    "Copy",
    "Create",
    "CreateUnnamed",
    "HardLink",
    "Key",
    "LinkUnnamed",
    "Operation",
    "Release",
    "RemoveDirectory",
    "RemoveXattr",
    "Rename",
    "Reserve",
    "SetAttributes",
    "SetFlags",
    "SetXattr",
    "Unlink",
    "Write",
]
