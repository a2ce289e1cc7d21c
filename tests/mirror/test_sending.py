"""Leaving the backup: what was under way is acknowledged alone, or its program hears that it is in doubt.
And what the backup says where that has no place is refused.
"""

import errno
import os
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.change import NamespaceChange, encode_change
from fusemirror.errors import ChangeUnrecorded, CheckReport, ConnectionLost, RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PrimaryState
from fusemirror.mirror.stream import Stream
from fusemirror.protocol.messages import Applied, Bye, Ended, Reply
from fusemirror.volume.volume import Volume
from tests.channel.conftest import SessionPair

PATIENCE_S = 60
KEY = "what the change is about"


def with_a_change_under_way(volume: Volume) -> Mirror:
    """A mirror that lost its backup before that acknowledged a change, and need not wait any longer."""
    replica = Replica(volume, volume.identity.only_peer, hold_until=0.0)
    mirror = Mirror(volume, (replica,), Random(1).randbytes, io_timeout_s=PATIENCE_S)
    change = NamespaceChange(
        ChangeNumber(volume.number + 1), NO_REQUEST, volume.clock.next_ns(), InodeNumber(0), ()
    )
    encoded = encode_change(change)
    volume.apply(change, encoded=encoded)
    mirror.publish(change, encoded, b"", (KEY,))
    return mirror


async def told(mirror: Mirror) -> tuple[list[CheckReport], list[bool]]:
    """What the program of the change and two that would see it are told once the backup is left."""
    (replica,) = mirror.replicas
    reports: list[CheckReport] = []
    shown: list[bool] = []
    number = mirror.window.unsettled(KEY)
    mirror.window.when_settled(number, shown.append)

    async def change() -> None:
        try:
            await mirror.window.acknowledged(number)
        except CheckReport as error:
            reports.append(error)

    async def look() -> None:
        shown.append(await mirror.window.settled(number))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(change)
            waiting.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as watching:
                await watching.start(mirror.run_watch, replica)
                await mirror.authority.until_decided()
                watching.cancel_scope.cancel()
    assert replica.state is PrimaryState.ALONE
    assert not mirror.window.unsettled(KEY)
    return reports, shown


async def test_what_was_under_way_is_acknowledged_in_a_line_of_its_own(volume: Volume) -> None:
    mirror = with_a_change_under_way(volume)
    assert await told(mirror) == ([], [True, True])
    assert not mirror.replicas[0].progress.shares_line


@pytest.mark.expects_warnings
async def test_what_is_under_way_when_that_line_does_not_fit_is_in_doubt_and_not_refused(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken effect here: its program must not hear that there was no room for it."""
    mirror = with_a_change_under_way(volume)

    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(volume, "apply", refuse)
        (report,), shown = await told(mirror)
    assert isinstance(report, ChangeUnrecorded)
    assert report.errno == errno.EIO
    assert "may or may not have taken effect" in str(report)
    assert os.strerror(errno.ENOSPC) in str(report)
    assert shown == [False, False], "who looks is shown it all the same"
    assert mirror.must_begin_generation, "before the next change"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Applied(ChangeNumber(0)), "Applied: it came when the mirror was holding"),
        (Reply(1), "Reply: token"),
        (Ended(RequestId(bytes(16))), "Ended: it came on the wrong path"),
        (Bye("", mounted=False), "it said goodbye"),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_what_the_backup_says_is_taken_where_it_has_a_place(
    volume: Volume, memory_sessions: SessionPair, message: Any, why: str
) -> None:
    mirror, (here, there) = with_a_change_under_way(volume), memory_sessions
    there.send(message)
    with trio.fail_after(PATIENCE_S), pytest.raises((RemoteProtocolError, ConnectionLost), match=why):
        await mirror._hearing(mirror.replicas[0], here, Stream(here)).run()
