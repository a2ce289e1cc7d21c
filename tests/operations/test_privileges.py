"""Privileges: which end with a change of the data, and which stay."""

import stat

from fusemirror.operations import SetXattr
from fusemirror.operations.privileges import EndPrivileges, has_privileges
from fusemirror.xattrs import CAPABILITY
from tests.operations.conftest import Decider


def test_set_group_id_of_a_file_that_the_group_cannot_run_stays(decider: Decider) -> None:
    file = decider.create(b"file", stat.S_IFREG | 0o6705)
    assert has_privileges(decider.catalog, decider.inode(file), clear_set_id=True)
    decider.do(EndPrivileges(file, clear_set_id=True))
    assert decider.inode(file).mode == stat.S_IFREG | 0o2705
    assert not has_privileges(decider.catalog, decider.inode(file), clear_set_id=True)


def test_a_file_without_privileges_has_none_to_end(decider: Decider) -> None:
    file = decider.create(b"file", stat.S_IFREG | 0o4755)
    assert decider.do(EndPrivileges(file, clear_set_id=False)).change is None
    assert decider.do(EndPrivileges(file, clear_set_id=True)).change is not None
    assert decider.do(EndPrivileges(file, clear_set_id=True)).change is None


def test_a_capability_ends_whoever_changes_the_data(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, CAPABILITY, b"value"))
    assert has_privileges(decider.catalog, decider.inode(file), clear_set_id=False)
    decider.do(EndPrivileges(file, clear_set_id=False))
    assert decider.catalog.xattrs.names(file) == []
