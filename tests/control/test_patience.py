"""How long a backup's request waits, and what it gets then."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fusemirror import settings
from fusemirror.control.links import Links
from fusemirror.control.patience import Patience
from fusemirror.errors import NamesMissing, PrimaryAway, PrimaryUnreachable
from fusemirror.mirror.states import BackupState
from fusemirror.mirror.waits import Waits

IO_TIMEOUT_S, PEER_TIMEOUT_S = 3.0, 1.0
NOBODY: dict[str, str] = {"name": "data", "volume": "/v", "listen": "a:1", "peer": "b:1"}


def configured(patience: Patience, on_degraded: str) -> None:
    times = {"io_timeout": IO_TIMEOUT_S, "peer_timeout": PEER_TIMEOUT_S}
    patience.configure(settings.make(**NOBODY, **times, on_degraded=on_degraded))


@pytest.fixture
def applier() -> SimpleNamespace:
    return SimpleNamespace(state=BackupState.NORMAL, reason=None, left=False, changed=trio.Event())


@pytest.fixture
def staged() -> SimpleNamespace:
    return SimpleNamespace(ended=SimpleNamespace(total=0), order=SimpleNamespace(reason=None))


@pytest.fixture
def links() -> Links:
    return Links()


@pytest.fixture
async def patience(applier: Any, staged: Any, links: Links) -> Patience:
    return Patience(applier, staged, links, Waits(), IO_TIMEOUT_S)


async def _seven() -> int:
    return 7


@pytest.mark.expects_warnings
async def test_what_is_waited_for_has_its_time(patience: Patience, autojump_clock: MockClock) -> None:
    assert await patience.in_time(_seven) == 7
    began = trio.current_time()
    with pytest.raises(PrimaryUnreachable):
        await patience.in_time(trio.sleep_forever)
    assert trio.current_time() == began + 3


@pytest.mark.expects_warnings
async def test_as_long_as_requests_end_it_goes_on(
    patience: Patience, staged: SimpleNamespace, autojump_clock: MockClock
) -> None:
    began = trio.current_time()

    async def end_some() -> None:
        for _ in range(5):
            await trio.sleep(2)
            staged.ended.total += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_some)
        with pytest.raises(PrimaryUnreachable):
            await patience.while_progressing(trio.sleep_forever)
    assert trio.current_time() - began >= 12


@pytest.mark.expects_warnings
async def test_the_log_says_so_once_for_each_link_and_why(
    patience: Patience, applier: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(patience.report(), PrimaryUnreachable)
    applier.state, applier.reason = BackupState.CATCHING_UP, "names are on their way"
    assert isinstance(patience.report(), NamesMissing)
    assert len(caplog.records) == 1
    patience.begin_link()
    patience.report()
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["it is there, but slow" in texts[0], "names are on their way" in texts[1]] == [True, True]


# --- on_degraded: whether it is waited for what cannot be ---------------------------------------------------


async def until_reported(patience: Patience, wait: Any = None) -> float:
    """How long a request waits for the primary before it hears that it is away."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                await patience.watch()

        nursery.start_soon(watch)
        with pytest.raises(PrimaryAway):
            await patience.in_time(wait or trio.sleep_forever)
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


@pytest.mark.expects_warnings
async def test_a_primary_that_is_silent_is_away_once_its_lease_is_over(
    patience: Patience, applier: SimpleNamespace, links: Links, autojump_clock: MockClock
) -> None:
    configured(patience, "report")
    await trio.sleep(10)
    applier.state, applier.reason = BackupState.DISCONNECTED, "no answer"
    links.lost_at = trio.current_time() - 0.25  # a moment ago: it may be back
    patience.check()
    assert await until_reported(patience) == PEER_TIMEOUT_S - 0.25
    with pytest.raises(PrimaryAway, match="no answer"):
        patience.check()
    assert patience.shown_reason is not None
    assert "EIO: the primary is away" in patience.shown_reason
    assert await until_reported(patience) == 0


@pytest.mark.expects_warnings
@pytest.mark.parametrize("decided", ["goodbye", "split brain"])
async def test_what_is_decided_is_reported_at_once(
    patience: Patience, applier: SimpleNamespace, links: Links, decided: str, autojump_clock: MockClock
) -> None:
    configured(patience, "report")
    links.lost_at = trio.current_time()
    applier.left = decided == "goodbye"
    applier.state = BackupState.DIVERGED if decided == "split brain" else BackupState.DISCONNECTED
    patience.look()
    assert await until_reported(patience) == 0


@pytest.mark.expects_warnings
async def test_a_primary_that_was_never_met_has_as_long(
    patience: Patience, applier: SimpleNamespace, autojump_clock: MockClock
) -> None:
    configured(patience, "report")
    applier.state = BackupState.DISCONNECTED
    assert await until_reported(patience) == PEER_TIMEOUT_S


@pytest.mark.expects_warnings
@pytest.mark.parametrize("state", [BackupState.CATCHING_UP, BackupState.RESYNCING, BackupState.NORMAL])
async def test_a_primary_that_is_there_is_waited_for_whatever_is_set(
    patience: Patience, applier: SimpleNamespace, state: BackupState, autojump_clock: MockClock
) -> None:
    configured(patience, "report")
    applier.state = state
    began = trio.current_time()
    with pytest.raises((PrimaryUnreachable, NamesMissing)):
        await patience.in_time(trio.sleep_forever)
    assert trio.current_time() - began == IO_TIMEOUT_S


@pytest.mark.expects_warnings
async def test_who_waits_is_told_when_the_setting_changes_and_waits_again_when_it_changes_back(
    patience: Patience, applier: SimpleNamespace, links: Links, autojump_clock: MockClock
) -> None:
    configured(patience, "wait")
    applier.state, links.lost_at = BackupState.DISCONNECTED, -100.0
    patience.check()

    async def change() -> None:
        await trio.sleep(1)
        configured(patience, "report")
        await trio.sleep_forever()

    assert await until_reported(patience, change) == 1
    configured(patience, "wait")
    patience.check()
    with pytest.raises(PrimaryUnreachable):
        await patience.in_time(trio.sleep_forever)


@pytest.mark.expects_warnings
async def test_a_host_that_may_take_over_by_itself_waits_until_it_may_not(
    applier: Any, staged: Any, links: Links, autojump_clock: MockClock
) -> None:
    patience = Patience(applier, staged, links, Waits(), IO_TIMEOUT_S, may_take_over=True)
    configured(patience, "report")
    applier.state, links.lost_at = BackupState.DISCONNECTED, -100.0
    patience.check()

    async def refuse() -> None:
        await trio.sleep(2)
        patience.refuse()
        await trio.sleep_forever()

    assert await until_reported(patience, refuse) == 2
    applier.state = BackupState.NORMAL
    patience.begin_link()
    applier.state, links.lost_at = BackupState.DISCONNECTED, trio.current_time() - 100
    patience.check()  # the next time apart is another question


@pytest.mark.expects_warnings
async def test_requests_that_end_do_not_make_it_wait_on_in_vain(
    patience: Patience, applier: SimpleNamespace, links: Links, autojump_clock: MockClock
) -> None:
    configured(patience, "report")
    applier.state, links.lost_at = BackupState.DISCONNECTED, -100.0
    patience.begin_link()
    with pytest.raises(PrimaryAway):
        await patience.while_progressing(trio.sleep_forever)
