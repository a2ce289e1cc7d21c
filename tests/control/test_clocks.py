"""Wrong clocks: changes follow the primary's clock again, and both hosts say what they see."""

import logging

import msgspec
import pytest
import trio
from trio.testing import MockClock

from fusemirror.control.clocks import in_words
from fusemirror.daemon import Host
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import COMMIT_INTERVAL_S
from fusemirror.operations import Write
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import create

__all__ = ["network", "pair"]

YEAR_NS = 365 * 86_400 * 10**9
RIGHT_NS = 57 * YEAR_NS


def set_clock(host: Host, time_ns: int) -> None:
    """It goes on from there."""
    began = trio.current_time()
    object.__setattr__(host.seams, "now_ns", lambda: time_ns + round((trio.current_time() - began) * 10**9))


def mtime_ns(host: Host, inode: InodeNumber) -> int:
    found = host.roles.volume.catalog.inode(inode)
    assert found is not None
    return found.mtime_ns


def warnings(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in texts if words in text]


@pytest.mark.expects_warnings
async def test_after_a_write_in_the_future_every_time_is_todays_again(
    pair: Pair, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    set_clock(pair.backup, RIGHT_NS)
    set_clock(pair.primary, RIGHT_NS + 73 * YEAR_NS)
    file = await create(pair.primary, b"file")
    assert mtime_ns(pair.backup, file) >= RIGHT_NS + 73 * YEAR_NS
    set_clock(pair.primary, RIGHT_NS)
    await trio.sleep(2 * COMMIT_INTERVAL_S)
    for host in (pair.primary, pair.backup):
        await host.roles.perform(Write(file, 0), b"today")
        assert mtime_ns(pair.primary, file) == mtime_ns(pair.backup, file)
        assert RIGHT_NS < mtime_ns(pair.primary, file) < RIGHT_NS + YEAR_NS
    for host in (pair.primary, pair.backup):
        assert host.roles.volume.catalog.meta.set_back.from_ns >= RIGHT_NS + 73 * YEAR_NS
    await trio.sleep(4 * COMMIT_INTERVAL_S)
    assert len(warnings(caplog, "behind the newest change")) == 2, "each host once"


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("off_s", "words"), [(7_300.0, "2 hours ahead of"), (-20.0, "20 s behind"), (9.0, "")]
)
async def test_clocks_that_differ_are_said_to_once(
    pair: Pair, caplog: pytest.LogCaptureFixture, off_s: float, words: str, autojump_clock: MockClock
) -> None:
    unit = pair.primary.unit
    assert unit.link is not None
    set_clock(pair.primary, RIGHT_NS)
    there = msgspec.structs.replace(unit.link.peer, clock_ns=RIGHT_NS + round(off_s * 10**9))
    for _ in range(2):
        unit.host.clocks.compare(there)
    assert len(warnings(caplog, "the clock of beta")) == bool(words)
    assert words in "".join(warnings(caplog, "the clock of beta"))
    unit.host.clocks.compare(msgspec.structs.replace(there, clock_ns=0))
    set_clock(pair.primary, there.clock_ns)
    unit.host.clocks.compare(there)
    unit.host.clocks.compare(msgspec.structs.replace(there, clock_ns=1))
    assert len(warnings(caplog, "the clock of beta")) == bool(words) + 1, "they had agreed meanwhile"


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.4, "12 s"), (7_199.0, "7199 s"), (7_200.0, "2 hours"), (2.3e9, "73 years")]
)
def test_time_spans_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
