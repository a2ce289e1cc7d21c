"""The table of namespaces: which names there are, of which file types, and who sees them listed.

`mount/test_xattrs.py` compares the same with ext4.
"""

import errno
import stat

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.xattrs import ACL_ACCESS, ACL_DEFAULT, check_settable, has_namespace, listed, namespace_of

FILE, DIRECTORY, LINK, DEVICE = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR
NONE = 0


def refusal(name: bytes, mode: int) -> int:
    try:
        check_settable(name, mode)
    except OperationFailed as error:
        return error.errno
    return NONE


@pytest.mark.parametrize(
    ("name", "of_file", "of_directory", "of_link", "of_device"),
    [
        (b"user.a", NONE, NONE, errno.EPERM, errno.EPERM),
        (b"trusted.a", NONE, NONE, NONE, NONE),
        (b"security.capability", NONE, NONE, NONE, NONE),
        (ACL_ACCESS, NONE, NONE, errno.EOPNOTSUPP, NONE),
        (ACL_DEFAULT, errno.EACCES, NONE, errno.EACCES, errno.EACCES),
        *((name, *[errno.EOPNOTSUPP] * 4) for name in (b"system.a", ACL_ACCESS + b"2", b"os2.a", b"a", b"")),
        *((name, *[errno.EINVAL] * 4) for name in (b"user.", b"trusted.", b"security.")),
    ],
)
def test_each_name_is_of_the_types_that_it_has_on_ext4(
    name: bytes, of_file: int, of_directory: int, of_link: int, of_device: int
) -> None:
    found = tuple(refusal(name, mode | 0o644) for mode in (FILE, DIRECTORY, LINK, DEVICE))
    assert found == (of_file, of_directory, of_link, of_device)


def test_names_of_no_namespace_are_listed_to_nobody_and_trusted_ones_to_administrators() -> None:
    names = [b"foo", b"security.a", ACL_ACCESS, b"system.a", b"trusted.a", b"user.a"]
    assert listed(names, to_administrator=False) == [b"security.a", ACL_ACCESS, b"user.a"]
    assert listed(names, to_administrator=True) == [b"security.a", ACL_ACCESS, b"trusted.a", b"user.a"]
    assert [name for name in names if not has_namespace(name)] == [b"foo", b"system.a"]
    with pytest.raises(OperationFailed):
        namespace_of(b"system.a")
