"""Three hosts: one mirror, two replicas, real volumes and a network in memory. No class is for two alone."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.change import AnyChange
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session, open_session
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.decisions import Decisions
from fusemirror.control.host_state import HostState
from fusemirror.errors import ConnectionLost, CopyDeclined
from fusemirror.identifiers import NO_CHANGE, NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import CHECKPOINT_INTERVAL_S, REGION_BYTES
from fusemirror.mirror.applying import Applier, Handler
from fusemirror.mirror.histories import Missed, generations_of, history_of, missed
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import BackupState, PrimaryState
from fusemirror.operations import Create, Write
from fusemirror.protocol.messages import AccessInEffect, Hello
from fusemirror.volume.identity import KnownPeer
from fusemirror.volume.volume import Volume
from tests.channel.conftest import BACKUP, PRIMARY, connect_pair
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import (
    ALPHA,
    BETA,
    GAMMA,
    IDENTITY,
    contents_of,
    counting_seams,
    problems_of,
    rows_of,
)

PEER_TIMEOUT_S = 5.0
PATIENCE_S = 120.0
OLD, NEW = b"old" * 100, b"new" * 100


class Backup:
    """A host with a volume of its own, and what the primary knows of it."""

    def __init__(self, known: KnownPeer, directory: Path, main: Volume) -> None:
        self.name, self.identity = known.name, known.identity
        peers = (ALPHA, *(each for each in main.identity.peers if each != known))
        identity = {"host": known.host, "host_name": known.name, "peers": peers}
        Volume.create(directory, msgspec.structs.replace(IDENTITY, role="backup", complete=False, **identity))
        self.volume = Volume.open(directory, counting_seams())
        self.replica = Replica(main, known, hold_until=trio.current_time())
        communication = cast(CommunicationVolume, SimpleNamespace(find=lambda _: None))
        others: dict[type, Handler] = {AccessInEffect: lambda *_: None}
        self.applier = Applier(self.volume, communication, lambda _: (), lambda _: None, others)
        self.held = trio.Event()  # unset: it applies nothing of what arrives
        self.held.set()


class Three:
    """alpha is the primary; beta and gamma have a replica each."""

    def __init__(self, directory: Path) -> None:
        self.directories = [directory / name for name in ("alpha", "beta", "gamma")]
        Volume.create(self.directories[0], msgspec.structs.replace(IDENTITY, peers=(BETA, GAMMA)))
        self.volume = Volume.open(self.directories[0], counting_seams())
        self.network = MemoryNetwork(Random(1))
        self.beta = Backup(BETA, self.directories[1], self.volume)
        self.gamma = Backup(GAMMA, self.directories[2], self.volume)
        self.backups = (self.beta, self.gamma)
        replicas = [backup.replica for backup in self.backups]
        self.mirror = Mirror(self.volume, replicas, Random(1).randbytes, io_timeout_s=PATIENCE_S)
        self.decisions = Decisions(HostState(self.volume, b"instance"), self.mirror)
        self.nursery: Any = None

    # --- links --------------------------------------------------------------------------------------------

    def _hello(self, ours: Hello, path: str, volume: Volume, backup: Backup) -> Hello:
        host, peer = (b"\x01", backup.identity) if ours is PRIMARY else (backup.identity, b"\x01")
        return msgspec.structs.replace(
            ours,
            path=path,
            host=host,
            peer=peer,
            instance=host,
            history=history_of(volume),
            peer_timeout_s=PEER_TIMEOUT_S,
            takes_holes=True,
            takes_declines=True,
        )

    async def _path(self, path: str, backup: Backup) -> tuple[Session, Session]:
        """The sessions of one path, at the primary and at the backup."""
        hosts = [self.network.host("alpha"), self.network.host(backup.name)]
        dials, listens = hosts if path == "mirror" else hosts[::-1]
        dialed, accepted = await connect_pair(dials, listens, listens.name)
        transports = (dialed, accepted) if path == "mirror" else (accepted, dialed)
        sessions: dict[bool, Session] = {}

        async def open_one(at_primary: bool) -> None:
            ours = PRIMARY if at_primary else BACKUP
            hello = self._hello(ours, path, self.volume if at_primary else backup.volume, backup)
            sessions[at_primary] = await open_session(
                transports[not at_primary],
                hello,
                dialer=at_primary == (path == "mirror"),
                peer_timeout=PEER_TIMEOUT_S,
            )

        async with trio.open_nursery() as opening:
            for at_primary in (True, False):
                opening.start_soon(open_one, at_primary)
        return sessions[True], sessions[False]

    async def meet(self, backup: Backup) -> None:
        """A link begins, and mirrors until it is lost."""
        mirror, forward = await self._path("mirror", backup), await self._path("forward", backup)
        here = Link(dialed=mirror[0], accepted=forward[0])
        there = Link(dialed=forward[1], accepted=mirror[1])
        for link in (here, there):
            send, _taken = trio.open_memory_channel[Link](1)
            self.nursery.start_soon(link.run, send)
            self.nursery.start_soon(link.forward.discard)
        self.nursery.start_soon(self.mirror.serve, here, backup.replica)
        self.nursery.start_soon(self._apply, backup, there.mirror)

    async def _apply(self, backup: Backup, session: Session) -> None:
        """Nothing while the backup is held: what came stays in its session."""
        receive = session.receive

        async def receive_unless_held(*_: Any) -> Any:
            received = await receive()
            await backup.held.wait()
            return received

        cast(Any, session).receive = receive_unless_held
        await backup.applier.serve(session)

    async def lose(self, backup: Backup) -> None:
        """Both hosts know that the link is lost on return."""
        self.network.cut("alpha", backup.name)
        await self.until(lambda: backup.replica.link is None)
        await self.until(lambda: backup.applier.state is BackupState.DISCONNECTED)
        self.network.heal("alpha", backup.name)

    # --- changes ------------------------------------------------------------------------------------------

    def create(self, name: bytes) -> InodeNumber:
        return self.decisions.make(Create(ROOT_INODE, name, 0o100644, 0, 0), b"", NO_REQUEST)

    def write(self, file: InodeNumber, offset: int, data: bytes) -> ChangeNumber:
        """The number of the change, which main has."""
        self.decisions.make(Write(file, offset), data, NO_REQUEST)
        return self.volume.number

    def is_acknowledged(self, number: ChangeNumber) -> bool:
        return number <= self.mirror.window.acknowledged_number

    async def until(self, holds: Callable[[], bool]) -> None:
        """Time passes as fast as there is nothing to do."""
        while not holds():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)

    async def until_normal(self) -> None:
        await self.until(
            lambda: all(
                backup.replica.state is PrimaryState.NORMAL and backup.applier.is_normal
                for backup in self.backups
            )
        )
        await self.mirror.window.settled(self.volume.number)

    def close(self) -> None:
        """All three hold the same, and each is whole."""
        volumes = [self.volume, *(backup.volume for backup in self.backups)]
        for volume in volumes[1:]:
            assert rows_of(volume) == rows_of(self.volume)
            assert contents_of(volume) == contents_of(self.volume)
        for volume in volumes:
            volume.close()
        for directory in self.directories:
            assert not problems_of(directory)


@asynccontextmanager
async def running(three: Three, *met: Backup) -> AsyncIterator[None]:
    """The primary serves, and has met these."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            three.nursery = nursery
            for backup in three.backups:
                await nursery.start(three.mirror.run_watch, backup.replica)
            three.mirror.begin_generation()
            for backup in met:
                await three.meet(backup)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def three(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncIterator[Three]:
    """Linked and normal. At the end all three hold the same, and each is whole."""
    made = Three(tmp_path)
    async with running(made, *made.backups):
        await made.until_normal()
        yield made
        await made.until_normal()
    made.close()


async def test_a_change_is_acknowledged_once_both_have_it(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file = three.create(b"file")
    for slow, quick in (three.backups, three.backups[::-1]):
        slow.held = trio.Event()
        number = three.write(file, 0, OLD)
        await three.until(lambda quick=quick, number=number: quick.replica.progress.number >= number)  # type: ignore[misc]
        assert slow.replica.progress.number < number
        assert not three.is_acknowledged(number)
        slow.held.set()
        await three.mirror.window.acknowledged(number)
        assert slow.volume.number >= number


@pytest.mark.expects_warnings
async def test_one_is_lost_and_left_and_comes_back(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file, other = three.create(b"file"), three.create(b"other")
    three.write(file, 0, OLD)
    three.write(other, 0, bytes(3 * REGION_BYTES))
    await three.until_normal()
    generation = generations_of(three.volume)[0]
    beta, gamma = three.backups
    await three.lose(gamma)

    # Changes wait while it may read under its lease, though the other has them. Then it is left.
    number = three.write(file, 0, NEW)
    await three.until(lambda: beta.replica.progress.number >= number)
    assert gamma.replica.is_held
    assert trio.current_time() < gamma.replica.hold_until
    assert not three.is_acknowledged(number)
    await three.mirror.window.acknowledged(number)
    assert trio.current_time() >= gamma.replica.hold_until
    assert gamma.replica.state is PrimaryState.ALONE
    assert beta.replica.state is PrimaryState.NORMAL, "it went on all the time"

    # What is acknowledged without it stands in a line of its own, which the other follows.
    await three.mirror.window.acknowledged(three.volume.number)
    assert generations_of(three.volume)[0] != generation
    assert generations_of(beta.volume) == generations_of(three.volume)
    assert generations_of(gamma.volume)[0] == generation
    number = three.write(other, REGION_BYTES, NEW)
    three.create(b"meanwhile")
    await three.mirror.window.acknowledged(three.volume.number)
    assert set(gamma.replica.out_of_sync.inodes()) == {file, other}
    assert not beta.replica.out_of_sync
    assert gamma.replica.progress.held_back is None, "no change will wait for what it lacks"
    # No checkpoint takes a mark that it needs, however long it is away.
    await trio.sleep(3 * CHECKPOINT_INTERVAL_S)
    assert missed(history_of(three.volume), history_of(gamma.volume)) is Missed.RECORDS

    # It comes back: a change made meanwhile waits for it again, and of the images only the marks travel.
    await three.meet(gamma)
    await three.until_normal()
    assert not gamma.replica.out_of_sync
    gamma.held = trio.Event()
    number = three.write(file, 0, OLD)
    await three.until(lambda: beta.replica.progress.number >= number)
    assert not three.is_acknowledged(number)
    gamma.held.set()
    await three.mirror.window.acknowledged(number)


@pytest.mark.expects_warnings
async def test_the_first_change_without_one_that_was_left_idle_begins_a_line(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file = three.create(b"file")
    await three.until_normal()
    generation = generations_of(three.volume)
    await three.lose(three.beta)
    await three.until(lambda: three.beta.replica.is_left)
    assert generations_of(three.volume) == generation, "nothing was made without it"
    three.write(file, 0, NEW)
    await three.mirror.window.acknowledged(three.volume.number)
    assert generations_of(three.gamma.volume) == generations_of(three.volume) != generation
    await three.meet(three.beta)


async def test_one_that_was_never_met_is_waited_for_as_long_as_it_may_read(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    three = Three(tmp_path)
    beta, gamma = three.backups
    gamma.replica.hold_until = trio.current_time() + 2 * PEER_TIMEOUT_S
    async with running(three, beta):
        await three.until(lambda: beta.replica.state is PrimaryState.NORMAL)
        number = three.write(three.create(b"file"), 0, NEW)
        await three.until(lambda: beta.replica.progress.number >= number)
        assert not three.is_acknowledged(number)
        await three.mirror.window.acknowledged(number)
        assert trio.current_time() >= gamma.replica.hold_until
        await three.meet(gamma)
        await three.until_normal()
    three.close()


@pytest.mark.expects_warnings
async def test_what_one_declines_is_in_doubt_once_the_other_has_it(
    three: Three, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, bad = three.create(b"file"), three.create(b"bad")
    await three.until_normal()
    beta, gamma = three.backups
    apply = gamma.volume.apply

    def refuse_bad(change: AnyChange, *data: Any, **more: Any) -> None:
        if change.image == bad:
            raise PermissionError(errno.EPERM, "immutable")
        apply(change, *data, **more)

    with monkeypatch.context() as broken:
        broken.setattr(gamma.volume, "apply", refuse_bad)
        beta.held = trio.Event()
        before, declined = three.write(file, 0, OLD), three.write(bad, 0, OLD)
        await three.until(lambda: gamma.replica.progress.number >= declined)
        assert not three.is_acknowledged(before), "one of the two does not have it yet"
        beta.held.set()
        with pytest.raises(CopyDeclined, match="gamma"):
            await three.mirror.window.acknowledged(declined)
        assert beta.volume.number >= declined


@pytest.mark.expects_warnings
async def test_with_both_lost_this_host_goes_on_alone(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file = three.create(b"file")
    await three.until_normal()
    for backup in three.backups:
        await three.lose(backup)
    number = three.write(file, 0, NEW)
    assert not three.is_acknowledged(number)
    await three.mirror.window.acknowledged(number)
    assert three.mirror.authority.acknowledges_alone
    for backup in three.backups:
        assert backup.replica.state is PrimaryState.ALONE
        await three.meet(backup)


async def test_what_both_have_durably_is_what_the_slower_one_has(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file = three.create(b"file")
    number = three.write(file, 0, NEW)
    promises = three.mirror.durability.ask_flush(file)
    assert await three.mirror.durability.flushed(file, promises) == 0
    await three.mirror.durability.checkpoint()
    assert three.mirror.durability.peer_durable >= number
    three.beta.replica.progress.durable = NO_CHANGE
    assert three.mirror.durability.peer_durable == NO_CHANGE
    assert three.volume.regions.is_empty
    await three.until(lambda: all(backup.volume.regions.is_empty for backup in three.backups))


@pytest.mark.expects_warnings
async def test_what_is_said_of_one_names_that_one(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    gamma = three.gamma
    gamma.replica.declined[ROOT_INODE] = "immutable"
    assert "gamma" in (three.mirror.shown_reason or "")
    gamma.replica.declined.clear()
    await three.lose(gamma)
    with pytest.raises(ConnectionLost, match="gamma"):
        await three.mirror.durability.checkpoint()
    three.volume.update_peer(gamma.replica.known, name="renamed")  # as it says when the hosts meet
    assert [backup.replica.known.name for backup in three.backups] == ["beta", "renamed"]
    with pytest.raises(ConnectionLost, match="renamed"):
        await three.mirror.durability.checkpoint()
    await three.meet(gamma)


@pytest.mark.expects_warnings
async def test_what_one_may_have_open_is_kept_of_that_one_and_outlives_the_process(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    three = Three(tmp_path)
    beta, gamma = three.backups
    async with running(three, *three.backups):
        await three.until_normal()
        before = three.create(b"before")
        await three.lose(gamma)
        await three.until(lambda: gamma.replica.is_left)
        apart = three.create(b"apart")
        await three.mirror.window.acknowledged(three.volume.number)
        assert await three.mirror.not_held([before, apart]) == [apart]
        number = three.write(before, 0, NEW)
        three.mirror.retire(beta.replica, ChangeNumber(number - 1), b"another process")
        assert "beta" in str(three.mirror.window.end_of(number)), "it may hold this, and no record tells"
    for volume in (three.volume, beta.volume, gamma.volume):
        volume.close()
    volume = Volume.open(three.directories[0], counting_seams())
    replicas = [Replica(volume, known, hold_until=0.0) for known in volume.identity.peers]
    assert [replica.known.name for replica in replicas] == ["beta", "gamma"]
    assert [replica.holdings.below for replica in replicas] == [None, apart]
    replicas[0].holdings.share()
    assert [known.held_below for known in volume.identity.peers] == [None, apart], "gamma has not met it"
    replicas[1].holdings.share()
    assert [known.held_below for known in volume.identity.peers] == [None, None]
    volume.close()


@pytest.mark.expects_warnings
async def test_a_checkpoint_that_failed_at_one_makes_two_compare_more_and_never_less(
    three: Three, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    beta, gamma = three.backups
    three.write(three.create(b"file"), 0, NEW)
    await three.until_normal()
    ended = three.volume.catalog.checkpoints.ended

    async def fail() -> ChangeNumber:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(gamma.volume, "make_durable", fail)
    with pytest.raises(ConnectionLost, match="gamma"):
        await three.mirror.durability.checkpoint()
    monkeypatch.undo()
    assert beta.volume.catalog.checkpoints.ended == ended + 1
    assert three.volume.catalog.checkpoints.ended == gamma.volume.catalog.checkpoints.begun == ended
    main, at_beta, at_gamma = (history_of(each) for each in (three.volume, beta.volume, gamma.volume))
    assert missed(main, at_beta) is missed(main, at_gamma) is Missed.RECORDS
    assert missed(at_gamma, at_beta) is Missed.RECORDS
    assert missed(at_beta, at_gamma) is Missed.CATALOG, "to beta it looks like a copy that was put back"


async def test_a_request_of_one_reaches_the_other_with_its_data(
    three: Three, autojump_clock: trio.testing.MockClock
) -> None:
    file = three.create(b"file")
    three.write(file, 0, OLD)
    await three.until_normal()
    one, other = three.backups
    request = RequestId(b"1234567812345678")
    answer = SimpleNamespace(resolve=lambda _: None)
    staged = SimpleNamespace(operation=Write(file, 0), answer=answer, acknowledged=False)
    one.applier._communication = cast(
        CommunicationVolume,
        SimpleNamespace(find={request: staged}.get, data_of=lambda _: NEW, retire=lambda _: None),
    )
    three.decisions.make(Write(file, 0), NEW, request, holder=one.replica)
    with trio.fail_after(PATIENCE_S):
        await three.mirror.window.acknowledged(three.volume.number)
    assert [backup.replica.state for backup in three.backups] == [PrimaryState.NORMAL] * 2
    assert other.volume.number == three.volume.number
