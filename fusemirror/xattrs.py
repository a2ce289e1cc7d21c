"""Extended attributes: the one table of their namespaces, of who may do what, and who sees to that.

The kernel (fs/xattr.c, security/commoncap.c, fs/posix_acl.c) asks for permissions before it asks a
filesystem, as it does for a local one; the rest is left to the filesystem, and decided here as ext4
does it. `*` marks what is decided here, for both hosts, and once more by the primary.

| namespace                | set, remove                | get               | list            | files     |
| ------------------------ | -------------------------- | ----------------- | --------------- | --------- |
| user.                    | who may write; the owner   | who may read      | everyone        | regular,  |
|                          | in a sticky directory      |                   |                 | directory*|
| trusted.                 | CAP_SYS_ADMIN              | CAP_SYS_ADMIN     | CAP_SYS_ADMIN*  | all       |
| security.                | CAP_SYS_ADMIN; CAP_SETFCAP | everyone          | everyone        | all       |
|                          | for security.capability    |                   |                 |           |
| system.posix_acl_access  | the owner or CAP_FOWNER    | everyone          | everyone        | no link*  |
| system.posix_acl_default | the owner or CAP_FOWNER    | everyone          | everyone        | directory*|
| all others*              | EOPNOTSUPP                 | EOPNOTSUPP        | never           | none      |

Volumes of earlier versions may hold names of no namespace, and flags have such a name. They are shown to
nobody, and go with their inode. Source: xattr(7), acl(5), capabilities(7).
"""

import errno
import stat
from typing import NamedTuple

from fusemirror.errors import OperationFailed

ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
CAPABILITY = b"security.capability"
"""What a program may do that runs the file: it ends when the file changes (capabilities(7))."""

FLAGS = b"fusemirror.flags"
"""The flags of chattr(1), of no namespace (`flags.py`)."""

XATTR_CREATE, XATTR_REPLACE = 1, 2  # linux/xattr.h; `os` is not for what decides
SETTING_FLAGS = XATTR_CREATE | XATTR_REPLACE
"""Those of setxattr(2)."""

_EVERY_TYPE = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
)


class Namespace(NamedTuple):
    """One row of the table: `refusal` is the errno of setting such an attribute on another file type."""

    prefix: bytes
    is_whole_name: bool
    types: frozenset[int]
    refusal: int
    is_listed_to_all: bool


NAMESPACES = (
    Namespace(b"user.", False, frozenset((stat.S_IFREG, stat.S_IFDIR)), errno.EPERM, True),
    Namespace(b"trusted.", False, _EVERY_TYPE, 0, False),
    Namespace(b"security.", False, _EVERY_TYPE, 0, True),
    Namespace(ACL_ACCESS, True, _EVERY_TYPE - {stat.S_IFLNK}, errno.EOPNOTSUPP, True),
    Namespace(ACL_DEFAULT, True, frozenset((stat.S_IFDIR,)), errno.EACCES, True),
)


def _find(name: bytes) -> Namespace | None:
    for namespace in NAMESPACES:
        if name.startswith(namespace.prefix) and (not namespace.is_whole_name or name == namespace.prefix):
            return namespace
    return None


def namespace_of(name: bytes) -> Namespace:
    """The namespace of a name. OperationFailed: EOPNOTSUPP where it has none, EINVAL for a bare prefix."""
    namespace = _find(name)
    if namespace is None:
        raise OperationFailed(errno.EOPNOTSUPP)
    if name == namespace.prefix and not namespace.is_whole_name:
        raise OperationFailed(errno.EINVAL)
    return namespace


def check_settable(name: bytes, mode: int) -> None:
    """OperationFailed where no file of the type in `mode` has an attribute of this name."""
    namespace = namespace_of(name)
    if stat.S_IFMT(mode) not in namespace.types:
        raise OperationFailed(namespace.refusal)


def listed(names: list[bytes], *, to_administrator: bool) -> list[bytes]:
    """The names that a listing shows, to one with CAP_SYS_ADMIN or to others."""
    shown = []
    for name in names:
        namespace = _find(name)
        if namespace is not None and (namespace.is_listed_to_all or to_administrator):
            shown.append(name)
    return shown


def has_namespace(name: bytes) -> bool:
    return _find(name) is not None
