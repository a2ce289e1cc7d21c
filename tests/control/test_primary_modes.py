"""The modes in effect at a primary."""

from types import SimpleNamespace
from typing import Any

from fusemirror.control.pair_modes import PairModes
from fusemirror.control.primary_modes import PrimaryModes
from fusemirror.mirror.access import PairAccess
from fusemirror.mirror.pace import Pace
from fusemirror.settings import Access, Acknowledge, Settings


class FakeMirror:
    def __init__(self) -> None:
        self.access = PairAccess()
        self.acknowledges_statuses = False
        self.replicas: tuple[Any, ...] = ()
        self.authority = SimpleNamespace(configure=lambda *_: None)
        self.pace = Pace()

    def change_access(self, access: Access) -> None:
        self.access.take(access)


def settings(acknowledge: Acknowledge, resync_rate: int = 0) -> Settings:
    return Settings(
        name="name",
        volume="/volume",
        listen="alpha:1",
        peer="beta:1",
        acknowledge=acknowledge,
        resync_rate=resync_rate,
    )


def test_what_main_has_is_shown_at_once_where_both_modes_let_it() -> None:
    mirror: Any = FakeMirror()
    modes = PrimaryModes(mirror, PairModes(), None)
    assert modes.in_effect() == {"access": "routed", "acknowledge": "sync"}
    assert not modes.shows_at_once
    for acknowledge in Acknowledge:
        for access in Access:
            modes.configure(settings(acknowledge))
            modes.take_access(access)
            assert modes.in_effect() == {"access": access, "acknowledge": acknowledge}
            asynchronous = acknowledge is Acknowledge.ASYNC
            assert modes.shows_at_once == (asynchronous and access is Access.ROUTED)
            assert mirror.acknowledges_statuses == (asynchronous and access is Access.EXCLUSIVE)


def test_a_peer_that_takes_no_statuses_makes_exclusive_access_synchronous() -> None:
    mirror: Any = FakeMirror()
    modes = PrimaryModes(mirror, PairModes(), None)
    modes.configure(settings(Acknowledge.ASYNC))
    for takes in (False, True):
        link = SimpleNamespace(peer=SimpleNamespace(takes_statuses=takes))
        mirror.replicas = (SimpleNamespace(link=None), SimpleNamespace(link=link))
        modes.take_access(Access.ROUTED)
        assert modes.in_effect()["acknowledge"] == "async"
        modes.take_access(Access.EXCLUSIVE)
        assert modes.in_effect()["acknowledge"] == ("async" if takes else "sync")


def test_the_rate_that_a_person_set_stays_until_its_setting_changes() -> None:
    mirror: Any = FakeMirror()
    modes = PrimaryModes(mirror, PairModes(), None)
    modes.configure(settings(Acknowledge.SYNC, resync_rate=5))
    mirror.pace.change(rate_bytes=7)
    modes.configure(settings(Acknowledge.ASYNC, resync_rate=5))
    assert mirror.pace.rate_bytes == 7
    modes.configure(settings(Acknowledge.ASYNC, resync_rate=6))
    assert mirror.pace.rate_bytes == 6
