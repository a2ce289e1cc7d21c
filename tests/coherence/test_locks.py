"""Locks between two hosts in one process: who is granted what, and what becomes of it when they part."""

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from fusemirror.coherence import lock_deciding, lock_table
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.coherence.lock_listing import listed
from fusemirror.coherence.lock_table import END_OF_FILE, Lock, LockKey, LockKind, Owner
from fusemirror.coherence.locks import Ask
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport, OperationFailed, RemoteProtocolError
from fusemirror.identifiers import ROOT_INODE, InodeNumber, RequestId
from fusemirror.operations import Create, Write
from fusemirror.protocol.messages import (
    AskLock,
    HeldLock,
    Hello,
    LockAnswer,
    ReclaimLocks,
    ReleaseLock,
    Request,
)
from tests.admin.conftest import Pair, network
from tests.admin.conftest import pair as normal_pair
from tests.memory_network import MemoryNetwork

__all__ = ["network", "normal_pair"]

PATIENCE_S = 60
FILE = InodeNumber(7)
FCNTL, FLOCK = LockKey(FILE, LockKind.FCNTL), LockKey(FILE, LockKind.FLOCK)


@pytest.fixture(name="pair")
async def _decided(normal_pair: Pair) -> Pair:
    """The primary decides already."""
    await until(lambda: normal_pair.backup.roles.locks.arbiter.is_open)
    return normal_pair


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


def begin(
    host: Host,
    number: int = 1,
    what: tuple[int, int] = (0, END_OF_FILE),
    *,
    key: LockKey = FCNTL,
    shared: bool = False,
    **more: Any,
) -> Ask:
    """`number` is both the owner and the open file that it locks through."""
    locks = host.roles.locks
    lock = Lock(Owner(locks.host, number), *what, exclusive=not shared, pid=100 + number, uid=0)
    return locks.begin(number, key, lock, **more)


async def errno_of(host: Host, ask: Ask) -> int:
    with trio.fail_after(PATIENCE_S):
        try:
            await host.roles.locks.end(ask)
        except OperationFailed as error:
            return error.errno
    return 0


async def take(host: Host, number: int = 1, what: tuple[int, int] = (0, END_OF_FILE), **more: Any) -> int:
    return await errno_of(host, begin(host, number, what, **more))


def give_up(
    host: Host, number: int = 1, what: tuple[int, int] = (0, END_OF_FILE), key: LockKey = FCNTL
) -> None:
    host.roles.locks.release(key, Owner(host.roles.locks.host, number), *what)


def staged_at(host: Host) -> CommunicationVolume:
    arbiter = host.roles.locks.arbiter
    assert isinstance(arbiter, Asking)
    return arbiter._communication


def stage_one(host: Host) -> RequestId:
    """A change of the host that does not end."""
    identity = RequestId(b"%016d" % 1)
    staged_at(host).stage(Request(identity, Write(FILE, 0)), b"late")
    return identity


def retire(host: Host, identity: RequestId) -> None:
    staged_at(host).retire(identity)


def held(host: Host) -> list[tuple[str, int, int]]:
    """Whose host, owner and start of each lock that the table of a host has."""
    names = {b"\x01": "primary", b"\x02": "backup"}
    return sorted(
        (names[lock.owner.host], lock.owner.number, lock.start)
        for _, lock in host.roles.locks.table.all_held()
    )


async def part(pair: Pair, network: MemoryNetwork) -> None:
    """On return the primary has gone on alone."""
    network.cut("alpha", "beta")
    await until(lambda: pair.primary.unit.status()["state"] == "alone")
    assert pair.primary.roles.locks.status()["bind"] == "this host"


async def meet(pair: Pair, network: MemoryNetwork) -> None:
    network.heal("alpha", "beta")
    with trio.fail_after(PATIENCE_S):
        for host in (pair.primary, pair.backup):
            await host.roles.wait_normal()
    await until(lambda: pair.backup.roles.locks.arbiter.is_open)


# --- both there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [FCNTL, FLOCK], ids=["fcntl", "flock"])
async def test_what_one_host_holds_the_other_does_not_get(pair: Pair, key: LockKey) -> None:
    for one, other in ((pair.primary, pair.backup), (pair.backup, pair.primary)):
        assert await take(one, key=key) == 0
        assert await take(other, key=key) == errno.EAGAIN
        waits = begin(other, key=key, waits=True)
        await until(lambda one=one: one.roles.locks.status()["waiting"] or one is pair.backup)  # type: ignore[misc]
        give_up(one, key=key)
        assert await errno_of(other, waits) == 0
        give_up(other, key=key)
    await until(lambda: held(pair.primary) == held(pair.backup) == [])
    assert {host.roles.locks.status()["bind"] for host in (pair.primary, pair.backup)} == {"both hosts"}


async def test_shared_locks_are_shared_by_both_hosts(pair: Pair) -> None:
    assert await take(pair.primary, shared=True) == 0
    assert await take(pair.backup, shared=True) == 0
    assert await take(pair.backup) == errno.EAGAIN
    assert held(pair.primary) == [("backup", 1, 0), ("primary", 1, 0)]
    assert held(pair.backup) == [("backup", 1, 0)]


async def test_what_is_in_the_way_is_told_and_a_process_of_the_other_host_has_no_number(pair: Pair) -> None:
    assert await take(pair.primary, 1, (5, 9)) == 0
    assert await take(pair.backup, 2, (20, 29)) == 0
    for host, pids in ((pair.primary, (101, 0)), (pair.backup, (0, 102))):
        for what, pid in zip(((0, 9), (20, END_OF_FILE)), pids, strict=True):
            locks = host.roles.locks
            conflict = await locks.end(begin(host, 9, what, asks_only=True))
            assert conflict is not None
            assert conflict.pid == pid
        assert await locks.end(begin(host, 9, (10, 19), asks_only=True)) is None
    assert len(held(pair.primary)) == 2


async def test_a_grant_comes_behind_what_its_last_holder_had_changed(pair: Pair) -> None:
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"counter", 0o100644, 0, 0))
    assert made is not None
    key, counts = LockKey(made.number, LockKind.FLOCK), 5

    async def count(host: Host) -> None:
        for _ in range(counts):
            assert await take(host, key=key, waits=True) == 0
            content = host.roles.volume.read(made.number, 0, 100) or b"0"
            await host.roles.perform(Write(made.number, 0), b"%d" % (int(content) + 1))
            give_up(host, key=key)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, pair.primary)
            nursery.start_soon(count, pair.backup)
    assert pair.primary.roles.volume.read(made.number, 0, 100) == b"%d" % (2 * counts)


async def test_asynchronous_writes_come_before_the_release_of_what_guarded_them(pair: Pair) -> None:
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"counter", 0o100644, 0, 0))
    assert made is not None
    for host in (pair.primary, pair.backup):
        host.change_settings({"acknowledge": "async"})
    key = LockKey(made.number, LockKind.FCNTL)
    for number in range(1, 6):
        assert await take(pair.backup, key=key) == 0
        await pair.backup.roles.perform(Write(made.number, 0), b"%d" % number)
        give_up(pair.backup, key=key)
        assert await take(pair.primary, key=key, waits=True) == 0
        assert pair.primary.roles.volume.read(made.number, 0, 10) == b"%d" % number
        give_up(pair.primary, key=key)


async def test_a_release_stands_behind_what_its_program_does_not_wait_for_any_more(
    pair: Pair, autojump_clock: MockClock
) -> None:
    """A program that was told EIO after `io_timeout`, or that was killed."""
    assert await take(pair.backup) == 0
    written = stage_one(pair.backup)
    give_up(pair.backup)
    waits = begin(pair.primary, waits=True)
    await trio.sleep(pair.primary.roles.locks.io_timeout_s / 2)
    assert held(pair.primary) == [("backup", 1, 0)]
    retire(pair.backup, written)
    assert await errno_of(pair.primary, waits) == 0


@pytest.mark.expects_warnings
async def test_a_conversion_that_the_primary_did_not_hear_of_leaves_it_no_lock_of_nobody(
    pair: Pair, autojump_clock: MockClock
) -> None:
    locks = pair.backup.roles.locks
    assert await take(pair.backup, 1) == 0
    assert await take(pair.backup, 5, key=FLOCK) == 0
    written = stage_one(pair.backup)
    give_up(pair.backup, 1)
    with pytest.raises(CheckReport):
        await locks.end(begin(pair.backup, 5, key=FLOCK, shared=True))  # behind that for `io_timeout`
    locks.closed(5)
    waits = begin(pair.primary, key=FLOCK, waits=True)
    retire(pair.backup, written)
    assert await errno_of(pair.primary, waits) == 0
    assert held(pair.primary) == [("primary", 1, 0)]


async def test_who_is_killed_while_a_request_stands_behind_a_change_goes_at_once(
    pair: Pair, autojump_clock: MockClock
) -> None:
    locks = pair.backup.roles.locks
    assert await take(pair.backup, 1) == 0
    written = stage_one(pair.backup)
    give_up(pair.backup, 1)
    waits = begin(pair.backup, 5, key=FLOCK, waits=True)
    locks.interrupt(waits)
    assert await errno_of(pair.backup, waits) == errno.EINTR
    retire(pair.backup, written)
    assert await take(pair.primary, key=FLOCK) == 0


async def test_a_circle_over_both_hosts_is_a_deadlock(pair: Pair) -> None:
    assert await take(pair.primary, 1, (0, 0)) == 0
    assert await take(pair.backup, 1, (1, 1)) == 0
    waits = begin(pair.primary, 1, (1, 1), waits=True, may_deadlock=True)
    assert await take(pair.backup, 1, (0, 0), waits=True, may_deadlock=True) == errno.EDEADLK
    give_up(pair.backup)
    assert await errno_of(pair.primary, waits) == 0


@pytest.mark.parametrize("name", ["primary", "backup"])
async def test_a_signal_ends_what_waits_and_nothing_is_held(
    pair: Pair, autojump_clock: MockClock, name: str
) -> None:
    one, other = (pair.primary, pair.backup) if name == "primary" else (pair.backup, pair.primary)
    assert await take(other) == 0
    waits = begin(one, waits=True)
    await trio.sleep(1)
    one.roles.locks.interrupt(waits)
    assert await errno_of(one, waits) == errno.EINTR
    give_up(other)
    assert await take(other, 2) == 0
    assert len(held(pair.primary)) == 1


async def test_a_signal_at_the_moment_of_the_grant_comes_too_late(pair: Pair) -> None:
    waits = begin(pair.backup, waits=True)
    pair.backup.roles.locks.interrupt(waits)
    assert await errno_of(pair.backup, waits) == 0
    assert held(pair.primary) == held(pair.backup) == [("backup", 1, 0)]


@pytest.mark.parametrize("name", ["primary", "backup"])
async def test_whatever_a_process_holds_and_waits_for_ends_when_it_closes_the_file(
    pair: Pair, name: str
) -> None:
    host, other = (pair.primary, pair.backup) if name == "primary" else (pair.backup, pair.primary)
    locks = host.roles.locks
    assert await take(other, 5, (50, 59)) == 0
    assert await take(host, 1, (0, 9)) == 0
    waits = begin(host, 1, (50, 59), waits=True)
    granted_meanwhile = begin(host, 1, (70, 79))
    locks.closed_by(FILE, Owner(locks.host, 1))
    assert await errno_of(host, waits) == errno.EINTR
    await errno_of(host, granted_meanwhile)
    give_up(other, 5)
    await until(lambda: held(pair.primary) == [])
    assert held(host) == []


@pytest.mark.parametrize("key", [FCNTL, FLOCK], ids=["of an open file", "flock"])
async def test_what_was_locked_through_an_open_file_ends_with_it(pair: Pair, key: LockKey) -> None:
    for host in (pair.primary, pair.backup):
        assert await take(host, 3, key=key) == 0
        host.roles.locks.closed(3)
        assert held(host) == []
        await until(lambda: held(pair.primary) == [])


async def test_a_process_that_closed_and_locks_through_another_file_keeps_that(pair: Pair) -> None:
    locks = pair.backup.roles.locks
    assert await take(pair.backup, 1) == 0
    owner = Owner(locks.host, 1)
    locks.closed_by(FILE, owner)
    lock = Lock(owner, 0, 9, exclusive=True, pid=1, uid=0)
    await locks.end(locks.begin(2, FCNTL, lock))
    locks.closed(1)  # it comes late
    assert held(pair.backup) == [("backup", 1, 0)]


async def test_what_another_thread_gives_up_meanwhile_is_given_up_on_both_hosts(pair: Pair) -> None:
    granted = begin(pair.backup, 1, (0, 9))
    give_up(pair.backup, 1, (5, 9))  # behind it on its way
    assert await errno_of(pair.backup, granted) == 0
    await until(lambda: [lock.end for _, lock in pair.primary.roles.locks.table.all_held()] == [4])
    assert [lock.end for _, lock in pair.backup.roles.locks.table.all_held()] == [4]
    assert await take(pair.primary, 1, (20, 29)) == 0
    waits = begin(pair.backup, 1, (20, 29), waits=True)
    give_up(pair.backup, 1, (20, 29))  # before it is granted
    assert await take(pair.backup, 2, (20, 29)) == errno.EAGAIN  # the primary has heard of it
    give_up(pair.primary)
    assert await errno_of(pair.backup, waits) == 0
    assert held(pair.primary) == held(pair.backup) == [("backup", 1, 0), ("backup", 1, 20)]


async def test_who_holds_and_who_waits_is_listed_with_the_names_of_files(pair: Pair) -> None:
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    key = LockKey(made.number, LockKind.FCNTL)
    assert await take(pair.primary, 1, (5, END_OF_FILE), key=key) == 0
    waits = begin(pair.backup, 2, key=key, waits=True)
    await until(lambda: pair.primary.roles.locks.status()["waiting"] == 1)
    found = await listed(pair.primary.roles.locks)
    assert [(row["path"], row["host"], row["pid"], row["state"]) for row in found["locks"]] == [
        ("/file", "alpha", 101, "held"),
        ("/file", "beta", 102, "waiting"),
    ]
    assert (found["whole"], found["count"], found["locks"][0]["end"]) == (True, 2, None)
    found = await listed(pair.backup.roles.locks)
    assert [(row["path"], row["host"], row["pid"], row["state"]) for row in found["locks"]] == [
        ("/file", "beta", 102, "waiting"),
        ("/file", "alpha", 101, "held"),
    ]
    assert (found["whole"], found["count"]) == (True, 2)
    give_up(pair.primary, key=key)
    assert await errno_of(pair.backup, waits) == 0


async def test_a_backup_without_a_primary_lists_its_own(pair: Pair, network: MemoryNetwork) -> None:
    assert await take(pair.backup) == 0
    assert await take(pair.primary, key=FLOCK) == 0
    network.cut("alpha", "beta")
    await until(lambda: not pair.backup.roles.is_linked)
    assert pair.backup.roles.locks.status()["bind"] == "nobody"
    found = await listed(pair.backup.roles.locks)
    assert [(row["host"], row["state"]) for row in found["locks"]] == [("beta", "held")]
    assert not found["whole"]
    assert len((await listed(pair.primary.roles.locks))["locks"]) == 2


# --- failures -----------------------------------------------------------------------------------------------


async def test_a_backup_that_comes_back_in_time_keeps_what_it_holds(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup) == 0
    network.cut("alpha", "beta")
    await until(lambda: not pair.primary.roles.is_linked)
    assert pair.primary.unit.status()["state"] == "holding"
    asked = begin(pair.primary)  # nobody decides now
    assert not asked.asked
    await meet(pair, network)
    assert await errno_of(pair.primary, asked) == errno.EAGAIN
    assert held(pair.backup) == [("backup", 1, 0)]


async def test_what_is_given_up_meanwhile_is_free(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup) == 0
    network.cut("alpha", "beta")
    await until(lambda: not pair.backup.roles.is_linked)
    give_up(pair.backup)
    await meet(pair, network)
    assert await take(pair.primary) == 0


@pytest.mark.expects_warnings
async def test_alone_the_primary_gives_what_the_backup_held_and_that_is_lost(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup, 1) == 0
    assert await take(pair.backup, 2, key=FLOCK) == 0
    waits = begin(pair.primary, waits=True)
    await part(pair, network)
    assert await errno_of(pair.primary, waits) == 0
    give_up(pair.primary)  # also where nobody holds it any more
    await meet(pair, network)
    locks = pair.backup.roles.locks
    assert locks.lost == {1, 2}
    assert held(pair.primary) == held(pair.backup) == []
    with pytest.raises(OperationFailed, match="Input/output error"):
        begin(pair.backup, 1)
    locks.closed(1)
    assert await take(pair.backup, 1) == 0


async def test_what_nobody_could_get_alone_is_reclaimed(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup) == 0
    await part(pair, network)
    await meet(pair, network)
    assert pair.backup.roles.locks.lost == set()
    assert await take(pair.primary) == errno.EAGAIN


@pytest.mark.expects_warnings
@pytest.mark.parametrize("gives_up", [False, True], ids=["held", "given up"])
async def test_what_was_written_under_a_lost_lock_is_not_carried_out(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork, gives_up: bool
) -> None:
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    key = LockKey(made.number, LockKind.FCNTL)
    assert await take(pair.backup, key=key) == 0
    network.cut("alpha", "beta")
    await until(lambda: not pair.backup.roles.is_linked)
    failed: list[OperationFailed] = []

    async def write() -> None:
        try:
            await pair.backup.roles.perform(Write(made.number, 0), b"late")
        except OperationFailed as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        if gives_up:  # as that of a program that was killed
            give_up(pair.backup, key=key)
        await part(pair, network)
        assert await take(pair.primary, key=key) == 0
        await meet(pair, network)
    assert [error.errno for error in failed] == [errno.EIO]
    assert pair.primary.roles.volume.read(made.number, 0, 10) == b""


@pytest.mark.expects_warnings
async def test_programs_of_a_backup_that_is_away_get_check_reports(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    await part(pair, network)
    with pytest.raises(CheckReport), trio.fail_after(PATIENCE_S):
        await pair.backup.roles.locks.end(begin(pair.backup, waits=True))


async def test_a_switch_takes_the_locks_along(pair: Pair, autojump_clock: MockClock) -> None:
    assert await take(pair.primary, 1, (0, 9)) == 0
    assert await take(pair.backup, 2, (20, 29)) == 0
    waits = begin(pair.backup, 3, (0, 9), waits=True)
    await trio.sleep(1)
    await pair.primary.succession.switch()
    await until(lambda: pair.primary.roles.locks.arbiter.is_open)
    assert held(pair.backup) == [("backup", 2, 20), ("primary", 1, 0)]
    assert await take(pair.primary, 4, (20, 20)) == errno.EAGAIN
    assert await take(pair.backup, 4, (0, 0)) == errno.EAGAIN
    give_up(pair.primary, 1)
    assert await errno_of(pair.backup, waits) == 0


@pytest.mark.expects_warnings
async def test_after_a_take_over_the_lost_hosts_locks_end(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.primary, 1, (0, 9)) == 0
    assert await take(pair.backup, 2, (20, 29)) == 0
    network.cut("alpha", "beta")
    await until(lambda: not pair.backup.roles.is_linked)
    await pair.backup.succession.takeover(force=True)
    assert await take(pair.backup, 3, (0, 9), waits=True) == 0
    assert await take(pair.backup, 4, (20, 20)) == errno.EAGAIN


@pytest.mark.expects_warnings
async def test_a_peer_of_an_earlier_version_has_no_locks(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await take(pair.backup, 1) == 0
    for host in (pair.primary, pair.backup):
        make = host.linker._make_hello

        def older(path: str, make: Callable[[str], Hello] = make) -> Hello:
            return msgspec.structs.replace(make(path), takes_locks=False)

        monkeypatch.setattr(host.linker, "_make_hello", older)
    network.cut("alpha", "beta")
    await until(lambda: not pair.primary.roles.is_linked and not pair.backup.roles.is_linked)
    await meet(pair, network)
    assert await take(pair.primary, 2, (5, 5)) == errno.ENOLCK
    assert await take(pair.backup, 2, (5, 5)) == errno.ENOLCK
    assert pair.backup.roles.locks.lost == {1}


@pytest.mark.expects_warnings
async def test_a_disk_that_takes_no_record_gives_no_locks_alone(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await take(pair.backup) == 0
    await part(pair, network)

    def refuses(**_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(pair.primary.unit.volume, "update_identity", refuses)
    assert await take(pair.primary) == errno.EIO
    assert held(pair.primary) == [("backup", 1, 0)]


@pytest.mark.expects_warnings
async def test_who_waits_at_the_backup_costs_it_no_locks(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup, 1) == 0
    waits = begin(pair.backup, 2, waits=True)
    await until(lambda: pair.primary.roles.locks.table.count() == (1, 1))
    await part(pair, network)
    await meet(pair, network)
    assert pair.backup.roles.locks.lost == set()
    give_up(pair.backup, 1)
    assert await errno_of(pair.backup, waits) == 0


@pytest.mark.expects_warnings
async def test_who_waits_for_programs_of_the_primary_costs_the_backup_no_locks(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.backup, 1, (50, 59)) == 0
    assert await take(pair.primary, 1, (0, 9)) == 0
    waits = begin(pair.primary, 2, (0, 49), waits=True)
    await part(pair, network)
    give_up(pair.primary, 1)
    assert await errno_of(pair.primary, waits) == 0
    await meet(pair, network)
    assert pair.backup.roles.locks.lost == set()
    assert held(pair.primary) == [("backup", 1, 50), ("primary", 2, 0)]


async def test_nobody_is_granted_anything_who_could_not_be_told(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork
) -> None:
    assert await take(pair.primary) == 0
    waits = begin(pair.backup, waits=True)
    behind = begin(pair.primary, 2, waits=True)
    await until(lambda: pair.primary.roles.locks.table.count() == (1, 2))
    network.cut("alpha", "beta")
    await until(lambda: not pair.primary.roles.is_linked)
    give_up(pair.primary)
    assert await errno_of(pair.primary, behind) == 0
    await meet(pair, network)
    give_up(pair.primary, 2)
    assert await errno_of(pair.backup, waits) == 0
    assert held(pair.primary) == held(pair.backup) == [("backup", 1, 0)]


# --- limits -------------------------------------------------------------------------------------------------


async def _at_the_limit(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A user may have one lock more, and has just been granted it."""
    monkeypatch.setattr(lock_table, "LOCKS_PER_USER_MAX", 3)
    assert await take(pair.backup, 1, (0, 9)) == 0
    assert await take(pair.backup, 2, (20, 29)) == 0
    return begin(pair.backup, 3, (40, 49))


async def test_what_is_granted_meanwhile_counts_before_a_range_is_cut(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = await _at_the_limit(pair, monkeypatch)
    link = pair.backup.roles.host.links.link
    with pytest.raises(OperationFailed, match="No locks available"):
        give_up(pair.backup, 1, (4, 5))
    give_up(pair.backup, 1, (5, 9))  # it needs no more of them
    assert await errno_of(pair.backup, third) == 0
    assert await take(pair.backup, 4, (60, 69)) == errno.ENOLCK  # and the primary has heard of all that
    assert held(pair.primary) == held(pair.backup) == [("backup", 1, 0), ("backup", 2, 20), ("backup", 3, 40)]
    assert link is not None
    assert not link.closed


async def test_a_backup_that_does_not_count_it_is_not_cut_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Asking, "under_way", lambda _: [])  # as in earlier versions
    third = await _at_the_limit(pair, monkeypatch)
    link = pair.backup.roles.host.links.link
    give_up(pair.backup, 1, (4, 5))
    assert await errno_of(pair.backup, third) == 0
    assert await take(pair.backup, 4, (60, 69)) == errno.ENOLCK
    assert len(held(pair.primary)) == len(held(pair.backup)) == 4
    assert link is not None
    assert not link.closed


async def test_more_than_programs_can_make_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_deciding, "LOCKS_PER_PEER_MAX", 2)
    assert await take(pair.backup, 1, (0, 9)) == 0
    assert await take(pair.backup, 2, (20, 29)) == 0
    arbiter, stream = pair.primary.roles.locks.arbiter, pair.primary.roles.host.links.link
    assert isinstance(arbiter, Deciding)
    assert stream is not None
    with pytest.raises(RemoteProtocolError, match="too many ranges"):
        arbiter.released(stream.forward, ReleaseLock(FILE, 0, 1, 4, 5, waiting=False))
    arbiter.released(stream.forward, ReleaseLock(FILE, 0, 1, 5, 9, waiting=False))
    assert held(pair.primary) == [("backup", 1, 0), ("backup", 2, 20)]


async def test_what_is_no_range_is_refused(pair: Pair) -> None:
    arbiter, link = pair.primary.roles.locks.arbiter, pair.primary.roles.host.links.link
    assert isinstance(arbiter, Deciding)
    assert link is not None
    lock = HeldLock(FILE, 0, 1, 5, 4, exclusive=True)
    with pytest.raises(RemoteProtocolError, match="ends before it begins"):
        arbiter.asked(link.forward, AskLock(1, lock, waits=False))
    with pytest.raises(RemoteProtocolError, match="ends before it begins"):
        arbiter.released(link.forward, ReleaseLock(FILE, 0, 1, 5, 4))
    arbiter.begin_link()
    with pytest.raises(RemoteProtocolError, match="ends before it begins"):
        arbiter.reclaimed(link.forward, ReclaimLocks(bytes(8), (lock,), last=True))


# --- requests that are not answered -------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_a_grant_that_comes_too_late_leaves_no_lock(pair: Pair, autojump_clock: MockClock) -> None:
    locks, link = pair.backup.roles.locks, pair.backup.roles.host.links.link
    asked = begin(pair.backup)
    assert asked.asked
    assert link is not None
    asked.since -= 2 * locks.io_timeout_s  # as if it had taken so long
    locks.expire()
    assert isinstance(locks.arbiter, Asking)
    locks.arbiter.answered(LockAnswer(asked.wanted.token), b"", link.mirror)  # before its task runs
    with pytest.raises(CheckReport):
        await locks.end(asked)
    assert held(pair.backup) == []


class _SlowWrites:
    """Those that this host has staged: one has not ended."""

    newest = 1

    def __init__(self) -> None:
        self.one = trio.Event()

    async def wait_up_to(self, serial: int) -> None:
        if serial:
            await self.one.wait()


@pytest.mark.expects_warnings
async def test_a_request_behind_slow_writes_ends_and_not_the_link(
    pair: Pair, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, link, slow = pair.backup.roles.locks, pair.backup.roles.host.links.link, _SlowWrites()
    assert await take(pair.backup, 1) == 0
    monkeypatch.setattr(locks.arbiter, "_communication", SimpleNamespace(ended=slow, order=slow))
    give_up(pair.backup, 1)
    behind = begin(pair.backup, 2)
    waits = begin(pair.backup, 3, waits=True)
    with pytest.raises(CheckReport), trio.fail_after(2 * locks.io_timeout_s):
        await locks.end(behind)
    assert link is not None
    assert not link.closed
    slow.one.set()
    assert await errno_of(pair.backup, waits) == 0
    assert held(pair.primary) == held(pair.backup) == [("backup", 3, 0)]


async def test_what_is_kept_of_a_release_is_what_it_gave_up(
    pair: Pair, autojump_clock: MockClock, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 40, 2):
        assert await take(pair.backup, 1, (start, start)) == 0
    arbiter = pair.backup.roles.locks.arbiter
    assert isinstance(arbiter, Asking)
    monkeypatch.setattr(arbiter, "_communication", SimpleNamespace(ended=_SlowWrites(), order=_SlowWrites()))
    for start in range(40):  # every second one holds nothing
        give_up(pair.backup, 1, (start, start))
    assert [len(before) for _, _, before in arbiter._unsent] == [1] * 20
    assert len(arbiter._still_held()) == 20
