"""Identities of requests: no two alike, in the order in which they are made."""

from fusemirror.control.request_ids import RequestIds


def test_each_request_has_its_own_behind_those_before_it() -> None:
    ids = RequestIds(b"instance")
    taken = []
    for _ in range(300):
        upcoming = ids.upcoming()
        taken.append(ids.take())
        assert taken[-1] == upcoming
    assert taken == sorted(set(taken))
    assert all(identity.startswith(b"instance") for identity in taken)
