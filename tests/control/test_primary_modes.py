"""The modes in effect at a primary."""

from types import SimpleNamespace
from typing import Any

from fusemirror.control.primary_modes import PrimaryModes
from fusemirror.mirror.access import PairAccess
from fusemirror.settings import Access, Acknowledge


class FakeMirror:
    def __init__(self) -> None:
        self.access = PairAccess()
        self.acknowledges_statuses = False
        self.replicas: tuple[Any, ...] = ()

    def change_access(self, access: Access) -> None:
        self.access.take(access)


def test_what_main_has_is_shown_at_once_where_both_modes_let_it() -> None:
    mirror: Any = FakeMirror()
    modes = PrimaryModes(mirror)
    assert modes.in_effect() == {"access": "routed", "acknowledge": "sync"}
    assert not modes.shows_at_once
    for acknowledge in Acknowledge:
        for access in Access:
            modes.configure(acknowledge)
            modes.take_access(access)
            assert modes.in_effect() == {"access": access, "acknowledge": acknowledge}
            asynchronous = acknowledge is Acknowledge.ASYNC
            assert modes.shows_at_once == (asynchronous and access is Access.ROUTED)
            assert mirror.acknowledges_statuses == (asynchronous and access is Access.EXCLUSIVE)


def test_a_peer_that_takes_no_statuses_makes_exclusive_access_synchronous() -> None:
    mirror: Any = FakeMirror()
    modes = PrimaryModes(mirror)
    modes.configure(Acknowledge.ASYNC)
    for takes in (False, True):
        link = SimpleNamespace(peer=SimpleNamespace(takes_statuses=takes))
        mirror.replicas = (SimpleNamespace(link=None), SimpleNamespace(link=link))
        modes.take_access(Access.ROUTED)
        assert modes.in_effect()["acknowledge"] == "async"
        modes.take_access(Access.EXCLUSIVE)
        assert modes.in_effect()["acknowledge"] == ("async" if takes else "sync")
