"""The access in effect: who waits hears of each change, and of nothing else."""

from fusemirror.mirror.access import PairAccess
from fusemirror.settings import Access


def test_who_waits_hears_of_another_access_only() -> None:
    access = PairAccess()
    before = access.changed
    access.take(Access.ROUTED)
    assert not before.is_set()
    access.take(Access.EXCLUSIVE)
    assert before.is_set()
    assert (access.in_effect, access.changed.is_set()) == (Access.EXCLUSIVE, False)
