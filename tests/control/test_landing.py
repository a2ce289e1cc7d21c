"""Main's right at the subvolume: who gives up for it, who takes the status anew, and what ends it."""

import pytest

from fusemirror.change import NamespaceChange, WriteChange
from fusemirror.communication.staged import Staged
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.landing import Landing
from fusemirror.control.steps import WriteState
from fusemirror.errors import BadChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request, TakeStatus
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, directory, volume

__all__ = ["directory", "volume"]

HOST, REQUEST = b"h" * 16, RequestId(b"r" * 16)
FIVE, SIX = ChangeNumber(5), ChangeNumber(6)


class Subvolume:
    """The statuses of a subvolume with a file of 100 bytes."""

    def __init__(self, volume: Volume) -> None:
        writer = Writer(volume)
        self.file = writer.create(b"file")
        writer.write(self.file, 0, bytes(100))
        self.exclusive = ExclusiveAccess(volume, of_main=False)
        self.landing = Landing(self.exclusive)

    def ask(self, offset: int, length: int) -> ExclusiveWrite:
        """A write of this host, for which main was asked."""
        write = self.exclusive.begin(Write(self.file, offset), length, HOST)
        assert write is not None
        assert state_of(write) is WriteState.ASKING_MAIN
        self.landing.asking[REQUEST] = write
        return write

    def command(self, number: ChangeNumber, start: int, end: int) -> None:
        self.landing.command(TakeStatus(number, self.file, start, end))

    def land(self, number: ChangeNumber, offset: int, length: int, request: RequestId = NO_REQUEST) -> None:
        end = self.landing.begin(WriteChange(number, request, 1, self.file, offset, length))
        assert end is not None
        assert self.exclusive.ranges.is_exclusive(self.file, offset, offset + length)
        end()


@pytest.fixture
def subvolume(volume: Volume) -> Subvolume:
    return Subvolume(volume)


@pytest.mark.parametrize("ahead", [True, False], ids=["command ahead", "command and data in one"])
def test_who_asks_main_gives_up_for_it_and_takes_the_status_anew_before_it_lands(
    subvolume: Subvolume, ahead: bool
) -> None:
    write = subvolume.ask(0, 10)
    if ahead:
        subvolume.command(FIVE, 5, 50)
        assert state_of(write) is WriteState.GIVEN_UP
    subvolume.land(FIVE, 5, 45)
    assert state_of(write) is WriteState.GIVEN_UP
    subvolume.landing.main_is_exclusive(REQUEST)  # main's own answer comes later than its command
    assert subvolume.exclusive.is_idle()
    assert subvolume.exclusive.given_up_total == 1
    subvolume.land(SIX, 0, 10, REQUEST)
    assert state_of(write) is WriteState.ENDED
    assert subvolume.exclusive.is_idle()


def state_of(write: ExclusiveWrite) -> WriteState:
    return write.state


def test_bytes_apart_are_nobodys_business(subvolume: Subvolume) -> None:
    write = subvolume.ask(0, 10)
    subvolume.command(FIVE, 10, 50)
    subvolume.land(FIVE, 10, 40)
    assert state_of(write) is WriteState.ASKING_MAIN
    subvolume.land(SIX, 0, 10, REQUEST)
    assert subvolume.exclusive.given_up_total == 0
    assert subvolume.exclusive.is_idle()


def test_names_take_no_status(subvolume: Subvolume) -> None:
    assert subvolume.landing.begin(NamespaceChange(FIVE, NO_REQUEST, 1, InodeNumber(0), ())) is None


def test_a_command_whose_data_does_not_come_is_refused_or_ends_with_the_link(subvolume: Subvolume) -> None:
    subvolume.command(FIVE, 0, 10)
    with pytest.raises(BadChange, match="the data of change 5"):
        subvolume.command(SIX, 20, 30)
    with pytest.raises(BadChange, match="it was to be change 5"):
        subvolume.land(SIX, 0, 10)
    subvolume.command(FIVE, 0, 10)
    assert len(subvolume.exclusive.ranges) == 1
    subvolume.landing.link_lost()
    subvolume.landing.link_lost()
    assert subvolume.exclusive.is_idle()


def test_a_status_that_is_lost_before_its_write_is_safe_acknowledges_nothing(subvolume: Subvolume) -> None:
    """Else its program hears of success, and the primary that nothing is owed."""
    staged = [
        Staged(
            each,
            Request(RequestId(bytes([each] * 16)), Write(subvolume.file, each), True),
            b"x",
            0,
            1,
            awaits_status=True,
        )
        for each in (1, 2)
    ]
    for each in staged:
        write = subvolume.exclusive.begin(each.operation, 1, HOST)
        assert write is not None
        subvolume.landing.await_status(each, write)
        subvolume.landing.granted(each.request.identity)
    told, untold = staged
    told.acknowledge()
    subvolume.landing.link_lost()
    untold.acknowledge()
    assert (told.acknowledged, untold.acknowledged) == (True, False)
    assert subvolume.exclusive.is_idle()
