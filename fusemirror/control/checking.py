"""Checking: whether an operation that the peer asked for is one that a kernel could have asked for.

Its numbers become rows of the catalog and arguments of system calls, and its names become names: what does
not fit there is refused here, before anything looks at it. `deciding.py` gives every other errno.
"""

import errno
import stat

from fusemirror.errors import OperationFailed
from fusemirror.limits import DATA_BYTES_MAX, FILE_BYTES_MAX, RESERVED_PATH_BYTES_MAX
from fusemirror.operations import AnyOperation, Create, RemoveXattr, Reserve, SetXattr

_U32, _U64 = range(1 << 32), range(1 << 64)
_NUMBERS: dict[str, range] = {
    "inode": _U64,
    "parent": _U64,
    "new_parent": _U64,
    "expected": _U64,
    "mode": range(1 << 16),  # the type, and what chmod(2) takes
    "umask": range(1 << 12),
    "uid": _U32,
    "gid": _U32,
    "rdev": _U64,
    "offset": range(FILE_BYTES_MAX + 1),
    "length": range(DATA_BYTES_MAX + 1),
    "rate_bytes": range(FILE_BYTES_MAX + 1),
}
"""Of each field that is a number; sizes and times `primary.py` and `deciding.py` look at themselves."""

_TYPES = frozenset(
    (
        stat.S_IFIFO,
        stat.S_IFCHR,
        stat.S_IFDIR,
        stat.S_IFBLK,
        stat.S_IFREG,
        stat.S_IFLNK,
        stat.S_IFSOCK,
    )
)


def check_operation(operation: AnyOperation) -> None:
    """OperationFailed (EINVAL, or ENAMETOOLONG) for what no kernel asks."""
    for field in operation.__struct_fields__:
        value = getattr(operation, field)
        if field in _NUMBERS and value is not None and value not in _NUMBERS[field]:
            raise OperationFailed(errno.EINVAL)
        if field in ("name", "new_name", "target") and b"\0" in value:
            raise OperationFailed(errno.EINVAL)
    if isinstance(operation, SetXattr | RemoveXattr):
        _check(bool(operation.name))
    else:
        names = (getattr(operation, field, b"") for field in ("name", "new_name"))
        _check(not any(b"/" in name for name in names))
    if isinstance(operation, Create):
        _check(stat.S_IFMT(operation.mode) in _TYPES)
        _check(stat.S_ISLNK(operation.mode) == bool(operation.target))
    if isinstance(operation, Reserve) and len(operation.path) > RESERVED_PATH_BYTES_MAX:
        raise OperationFailed(errno.ENAMETOOLONG)


def _check(good: bool) -> None:
    if not good:
        raise OperationFailed(errno.EINVAL)
