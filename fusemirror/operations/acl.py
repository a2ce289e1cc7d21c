"""POSIX access control lists as the kernel stores them, as far as a filesystem must know them.

With the kernel checking permissions, the filesystem keeps three things true: the mode shows the
access list's owner, mask and other entries; chmod changes those entries; a new file takes over its
directory's default list. Source: acl(5), "Correspondence between ACL entries and file permission
bits" and "Object creation and default ACLs"; the format is linux/posix_acl_xattr.h, version 2.
"""

import errno
import struct
from typing import NamedTuple

from fusemirror.errors import OperationFailed
from fusemirror.xattrs import ACL_ACCESS, ACL_DEFAULT

ACCESS, DEFAULT = ACL_ACCESS, ACL_DEFAULT

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_REQUIRED = frozenset({USER_OBJ, GROUP_OBJ, OTHER})
_NAMED = frozenset({USER, GROUP})


class AclEntry(NamedTuple):
    tag: int
    permissions: int
    identity: int


Acl = list[AclEntry]


def parse(value: bytes) -> Acl:
    """The entries of an attribute's value; EINVAL where it is not a valid list."""
    if len(value) < _HEADER.size or _HEADER.unpack_from(value)[0] != _VERSION:
        raise OperationFailed(errno.EINVAL)
    body = value[_HEADER.size :]
    if len(body) % _ENTRY.size:
        raise OperationFailed(errno.EINVAL)
    acl = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(body)]
    tags = [entry.tag for entry in acl]
    # The order of the tags is that of their numbers; posix_acl_valid() of the kernel insists on it.
    singles = [tag for tag in tags if tag not in _NAMED]
    valid = (
        set(singles) >= _REQUIRED
        and len(singles) == len(set(singles))
        and set(singles) <= _REQUIRED | {MASK}
        and (MASK in singles or not _NAMED & set(tags))
        and tags == sorted(tags)
        and all(entry.permissions <= 7 for entry in acl)
    )
    if not valid:
        raise OperationFailed(errno.EINVAL)
    return acl


def encode(acl: Acl) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """True where the list says no more than the mode does, so that it need not be kept."""
    return len(acl) == len(_REQUIRED)


def mode_of(acl: Acl, mode: int) -> int:
    """`mode` with its permission bits as the list has them."""
    bits = {entry.tag: entry.permissions for entry in acl if entry.tag not in _NAMED}
    group = bits.get(MASK, bits[GROUP_OBJ])
    return (mode & ~0o777) | bits[USER_OBJ] << 6 | group << 3 | bits[OTHER]


def after_chmod(acl: Acl, mode: int) -> Acl:
    """The list once its file's mode is `mode`."""
    has_mask = any(entry.tag == MASK for entry in acl)
    group_tag = MASK if has_mask else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in acl]


def inherited(default: Acl, mode: int) -> Acl:
    """The access list of a file created with `mode` in a directory that has this default list."""
    has_mask = any(entry.tag == MASK for entry in default)
    group_tag = MASK if has_mask else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return [entry._replace(permissions=entry.permissions & bits.get(entry.tag, 7)) for entry in default]
