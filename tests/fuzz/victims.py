"""Victims: a real control unit of either role, over real sessions in memory, and a peer that lies to it."""

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import msgspec
import trio

from fusemirror.change import NamespaceChange, Row, Table, TruncateChange, WriteChange
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.communication.memory_volume import MemoryCommunicationVolume
from fusemirror.control.backup import BackupUnit
from fusemirror.control.host_state import HostState
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.role import Role
from fusemirror.errors import ChannelError, FusemirrorError
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.mirror.histories import generation_row, generations_of, history_of
from fusemirror.mirror.states import BACKUP_TAKES, PRIMARY_TAKES
from fusemirror.operations import Create, Write
from fusemirror.promise import Promise
from fusemirror.protocol import messages as m
from fusemirror.protocol.codec import encode
from fusemirror.volume import check as check_module
from fusemirror.volume import probe
from fusemirror.volume.check import check
from fusemirror.volume.volume import Volume
from tests.channel.conftest import connect_pair, shake_hands
from tests.fuzz.mutating import mutated
from tests.memory_network import MemoryNetwork
from tests.protocol.test_codec import EXAMPLES
from tests.volume.conftest import IDENTITY, Writer, counting_seams

ROLES = ("primary", "backup")
_PATIENCE_S = 600.0
_OLD_PEERS_FILE_BYTES_MAX = 1 << 32  # a hole is compared with one that takes no holes megabyte by megabyte
_FORWARD = (
    *(m.Request, m.Answer, m.Excluded, m.AskStatus, m.StatusGranted, m.Ended, m.WantNames, m.WantBack),
    *(m.AskLock, m.CancelLock, m.ReleaseLock, m.ReclaimLocks, m.ListLocks),
)


class Harm(AssertionError):
    """The peer did more than its role allows."""


def make_volume(path: Path, role: str) -> Volume:
    """A small volume of that role: files, directories, attributes and names, and one line of changes."""
    identity = msgspec.structs.replace(IDENTITY, role=role)
    Volume.create(path, identity, counting_seams())
    volume = Volume.open(path, counting_seams())
    writer = Writer(volume)
    writer.namespace(generation_row(volume, b"g" * 16, ChangeNumber(1)))
    directory = writer.create(b"dir", mode=0o040755)
    for name in (b"one", b"two"):
        file = writer.create(name, directory)
        writer.write(file, 0, name * 1000)
    writer.create(b"link", mode=0o120777, target=b"dir/one")
    return volume


def state_of(volume: Volume) -> Any:
    """All that a peer must not change by what is refused."""
    rows = [volume.catalog.tables.rows(table, None, 1 << 20) for table in Table]
    images = {number: volume.images.read(number, 0, 1 << 20) for number in sorted(volume.images.numbers())}
    return volume.number, volume.journal.last_number, volume.identity.term, rows, images


class Liar:
    """The other end of one link: honest until it is told to send something else."""

    def __init__(self, role: str, mirror: Session, forward: Session, random: Random) -> None:
        self.role = role
        self.mirror, self.forward = mirror, forward
        self._random = random
        self.lies = 0.0  # how often an honest answer is spoilt

    def send(self, message: m.AnyMessage, data: bytes = b"") -> None:
        session = self.forward if isinstance(message, _FORWARD) else self.mirror
        with suppress(ChannelError, OverflowError):
            session.send_encoded(encode(message), data)

    async def run_reader(self, session: Session) -> None:
        with suppress(ChannelError):
            while True:
                for message, _ in await session.receive():
                    answer = self._answer(message)
                    if answer is not None:
                        spoilt = self._random.random() < self.lies
                        self.send(mutated(answer, self._random) if spoilt else answer)

    def _answer(self, message: m.AnyMessage) -> m.AnyMessage | None:
        if isinstance(message, m.Begin):
            return m.Suspects((), last=True)
        if isinstance(message, m.CaughtUp | NamespaceChange | WriteChange | TruncateChange):
            return m.Applied(message.number)
        if isinstance(message, m.Checkpoint):
            return m.Reply(message.token, number=message.durable)
        if isinstance(message, m.Hole):
            return m.Reply(message.token, values=(message.end_region,))
        if isinstance(message, m.ForgetMarks):
            return None
        if isinstance(message, m.FetchRows | m.FetchRegion):
            return m.Fetched(message.token)
        token = getattr(message, "token", None) if self.role == "backup" else None
        return None if token is None else m.Reply(token)


def _is_readable(directory: Path) -> bool:
    """As a volume's check asks it, in this process: one of its own for each would take most of the time."""
    probe.walk(str(directory))
    return True


class Fuzz:
    """Lies to one unit over one link after the other, and counts."""

    def __init__(self, role: str, random: Random, directory: Path) -> None:
        self.role = role
        self.sent = self.refused = self.links = 0
        self._random = random
        self._directory = directory
        self._network = MemoryNetwork(Random(1), latency_s=0.0, jitter_s=0.0)
        self._serial = 0
        self._old_peer = False  # one of an earlier version, which knows of no holes

    async def run(self, count: int) -> None:
        with mock.patch.object(check_module, "is_readable", _is_readable):
            await self._run(count)

    async def _run(self, count: int) -> None:
        while self.sent < count:
            self._serial += 1
            self._old_peer = self._random.random() < 0.3
            path = self._directory / f"{self.role}{self._serial}"
            volume = make_volume(path, self.role)
            clean = True
            try:
                async with trio.open_nursery() as nursery:
                    unit = await self._start(volume, nursery)
                    for _ in range(30):
                        clean = await self.run_link(unit, nursery) and clean
                        if volume.identity.role != self.role or (not clean and self.role == "backup"):
                            break
                    nursery.cancel_scope.cancel()
            finally:
                volume.close()
            self._check_volume(path, clean=clean or self.role == "primary")

    def _check_volume(self, path: Path, *, clean: bool) -> None:
        problems: list[str] = []
        check(path, not clean, problems.append)
        if clean and problems:
            raise Harm(f"a peer that was refused left {problems}")
        if not clean:  # it was given what a primary may give: that can be mended
            again = check(path, repair=False, report=problems.append)
            if again.left:
                raise Harm(f"what a peer left cannot be mended: {problems}")

    async def _start(self, volume: Volume, nursery: trio.Nursery) -> Role:
        host = HostState(volume, b"instance")
        if self.role == "backup":
            communication = MemoryCommunicationVolume(1 << 24)
            return BackupUnit(host, communication, io_timeout_s=5.0, stale_reads=True)
        unit = PrimaryUnit(host, counting_seams(), peer_timeout_s=1.0, io_timeout_s=5.0)
        await nursery.start(unit.mirror.run_watch, unit.replica)
        nursery.start_soon(unit.tasks.taking_up.run)
        return unit

    async def run_link(self, unit: Role, outer: trio.Nursery) -> bool:
        """One link, from the handshake to its end. Whether nothing was taken that changes rows or bytes."""
        self.links += 1
        volume, random = unit.volume, self._random
        with trio.fail_after(_PATIENCE_S):
            link, liar = await self._connect(unit)
            async with trio.open_nursery() as nursery:
                for session in (link.mirror, link.forward, liar.mirror, liar.forward):
                    nursery.start_soon(session.run)
                for session in (liar.mirror, liar.forward):
                    nursery.start_soon(liar.run_reader, session)
                ended = trio.Event()
                nursery.start_soon(self._serve, unit, link, ended)
                await self._bring(unit, liar)
                start = state_of(volume)
                for _ in range(random.randint(1, 12)):
                    before = state_of(volume)
                    message = self._lie(volume)
                    liar.send(*message)
                    self.sent += 1
                    await trio.sleep(0.001)
                    if volume.health.failure is not None:
                        raise Harm(f"{message[0]} stopped the host: {volume.health.failure}")
                    if link.refused:
                        self.refused += 1
                        if self.role == "backup" and state_of(volume) != before:
                            raise Harm(f"{message[0]} was refused, and changed something")
                        break
                    if link.closed:
                        break
                link.close("enough")
                await ended.wait()
                unit.life._asked = Promise()
                nursery.cancel_scope.cancel()
            if isinstance(unit, PrimaryUnit):
                with trio.fail_after(60):  # it serves its own programs, alone
                    with suppress(FusemirrorError):
                        await unit.perform(Create(ROOT_INODE, b"own%d" % self.links, 0o100644, 0, 0))
            else:
                with suppress(FusemirrorError):  # a copy that is not whole says so
                    await unit.reads.showable(ROOT_INODE)
        return bool(state_of(volume) == start)

    async def _serve(self, unit: Role, link: Link, ended: trio.Event) -> None:
        if isinstance(unit, PrimaryUnit):
            await unit.run_link(link)
        else:
            assert isinstance(unit, BackupUnit)
            await unit.service.run(link)
        ended.set()

    async def _connect(self, unit: Role) -> tuple[Link, Liar]:
        volume = unit.volume
        ours = m.Hello(
            1, 1, "mirror", bytes.fromhex("aa" * 16), b"\1", b"\2", b"victim", self.role, history_of(volume)
        )
        role = "primary" if self.role == "backup" else "backup"
        theirs = msgspec.structs.replace(
            ours,
            host=b"\2",
            peer=b"\1",
            instance=b"liar",
            role=role,
            takes_holes=not self._old_peer,
            file_bytes_max=_OLD_PEERS_FILE_BYTES_MAX if self._old_peer else 0,
        )
        primary, backup = (theirs, ours) if role == "primary" else (ours, theirs)
        alpha, beta = self._network.host("alpha"), self._network.host("beta")
        mirror = await shake_hands(await connect_pair(alpha, beta, "beta"), primary, backup)
        asking, asked = (msgspec.structs.replace(hello, path="forward") for hello in (backup, primary))
        forward = await shake_hands(await connect_pair(beta, alpha, "alpha"), asking, asked)
        if role == "primary":
            return Link(dialed=forward[0], accepted=mirror[1]), Liar(
                role, mirror[0], forward[1], self._random
            )
        return Link(dialed=mirror[0], accepted=forward[1]), Liar(role, mirror[1], forward[0], self._random)

    async def _bring(self, unit: Role, liar: Liar) -> None:
        """Bring the unit to some state, or leave it where a link begins."""
        volume, stage = unit.volume, self._random.randrange(6)
        if liar.role == "primary":
            steps: list[m.AnyMessage] = [
                m.Begin(False, generations_of(volume), volume.number),
                m.CaughtUp(volume.number, volume.journal.last_number, volume.catalog.next_inode),
                m.Normal(volume.number),
            ]
            for step in steps[:stage]:
                liar.send(step)
        else:
            liar.lies = 0.2 if stage == 0 else 0.0
        await trio.sleep(0.05)

    def _lie(self, volume: Volume) -> tuple[m.AnyMessage, bytes]:
        random = self._random
        taken = BACKUP_TAKES if self.role == "backup" else PRIMARY_TAKES
        messages = self._honest(volume)
        if random.random() < 0.95:
            messages = [each for each in messages if type(each) in taken]
        honest = random.choice(messages)
        message = honest if random.random() < 0.1 else mutated(honest, random)
        if random.random() < 0.2:
            message = mutated(message, random)
        length = min(max(0, getattr(message, "length", 4)), 1 << 16)
        has_data = isinstance(message, WriteChange | m.RegionData) or (
            isinstance(message, m.Request) and isinstance(message.operation, Write)
        )
        return message, b"d" * length if has_data or random.random() < 0.02 else b""

    def _honest(self, volume: Volume) -> list[m.AnyMessage]:
        """Messages that fit this volume, and an example of every other kind."""
        number, time_ns = ChangeNumber(volume.number + 1), volume.clock.next_ns()
        inodes = volume.catalog.tables.rows(Table.INODES, None, 20)
        rows: list[Row] = [
            (int(table), key, value)
            for table in Table
            for key, value in volume.catalog.tables.rows(table, None, 20)
        ]
        row = self._random.choice(rows or [(int(Table.INODES), bytes(7) + b"\1", None)])
        rows, file = rows or [row], InodeNumber(3)
        row_of_file = (int(Table.INODES), *inodes[2]) if len(inodes) > 2 else row
        fitting: list[m.AnyMessage] = [
            NamespaceChange(number, NO_REQUEST, time_ns, file, (row,)),
            NamespaceChange(number, NO_REQUEST, time_ns, file, (row, self._random.choice(rows))),
            WriteChange(number, NO_REQUEST, time_ns, file, 0, 4),
            TruncateChange(number, NO_REQUEST, time_ns, file, 5),
            m.CatalogRows((row_of_file,)),
            m.Digests(1, file, 10, 0, (1,), True),
            m.Hole(1, file, 10, 0, 5, True),
            m.RegionData(file, 0),
            m.ReplaceRows(Table(row[0]), row[1], row[1], (row,)),
            m.Request(RequestId(b"liar" * 4), Create(ROOT_INODE, b"new", 0o100644, 0, 0)),
            m.Request(RequestId(b"liar" * 4), Write(file, 0)),
        ]
        return [*fitting, *fitting, *(each for each in EXAMPLES if not isinstance(each, m.Hello | m.Refused))]
