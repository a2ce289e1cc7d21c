"""No background task ends a mount, whatever it meets: its host goes on serving, and says what fails."""

import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import MockClock

from fusemirror.channel.link import Linker
from fusemirror.coherence.directory_leases import LeaseGrants
from fusemirror.communication.destaging import Destaging
from fusemirror.control import committing
from fusemirror.control.meeting import PeerMeeting
from fusemirror.control.upkeep import Upkeep
from fusemirror.divergence import quarantine
from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import ROOT_INODE
from fusemirror.mirror.sending import Mirror
from fusemirror.operations import Create, Unlink
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork

__all__ = ["network", "pair"]

Trigger = Callable[[Pair, MemoryNetwork], Any]


def _nothing(pair: Pair, network: MemoryNetwork) -> None:
    """Time is enough."""


def _cut(pair: Pair, network: MemoryNetwork) -> None:
    if pair.primary.unit.link is not None:
        pair.primary.unit.link.close("cut")


class Task(NamedTuple):
    """A task, a step of it that may fail, and what makes it do that step."""

    name: str
    owner: Any
    step: str
    trigger: Trigger


TASKS = (
    Task("purge", Upkeep, "purge", _nothing),
    Task("commit", committing, "commit_names", _nothing),
    Task("names", LeaseGrants, "take", lambda pair, _: pair.primary.unit.reads.want_lease(ROOT_INODE)),
    Task("watch", Mirror, "_hold", _cut),
    Task("link", PeerMeeting, "learn_name", _cut),
    Task("links", Linker, "_meet", _cut),
    Task("staging", Destaging, "_destage", _nothing),
    Task(
        "quarantine", quarantine, "pending", lambda pair, _: pair.backup.succession._publishing.wanted.set()
    ),
)


def _failing(step: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """The step, which fails the first `times` that it is done."""
    left = times

    def fail() -> None:
        nonlocal left
        if left:
            left -= 1
            raise error

    async def asynchronous(*arguments: Any, **more: Any) -> Any:
        fail()
        return await step(*arguments, **more)

    def plain(*arguments: Any, **more: Any) -> Any:
        fail()
        return step(*arguments, **more)

    return asynchronous if inspect.iscoroutinefunction(step) else plain


@pytest.mark.expects_warnings
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
async def test_a_host_goes_on_serving_and_the_task_goes_on_later(
    pair: Pair,
    network: MemoryNetwork,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = VolumeDamaged("/v", "catalog: INODES 02")
    monkeypatch.setattr(task.owner, task.step, _failing(getattr(task.owner, task.step), error, 2))
    hosts = (pair.primary, pair.backup)
    caplog.clear()
    task.trigger(pair, network)
    failing: set[str] = set()
    with trio.fail_after(600):
        for index in range(14):
            for host in hosts:
                name = b"%s%d" % (host.settings.listen_addresses[0].host.encode(), index)
                assert await host.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
                await host.roles.perform(Unlink(ROOT_INODE, name))
            await trio.sleep(0.5)
            failing |= {told["task"] for host in hosts for told in pair.status(host)["background"]}
        assert failing == {task.name}
        lines = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert lines, "the log says so"
        await trio.sleep(60)
        assert [pair.status(host)["background"] for host in hosts] == [[], []]
        for host in hosts:
            await host.roles.wait_normal()


@pytest.mark.expects_warnings
async def test_a_bug_in_a_task_is_not_passed_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    background = pair.primary.roles.host.background

    async def bug() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await background.repeat("bug", bug)
    assert background.status(0) == []
