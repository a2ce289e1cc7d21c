"""One run from one seed: trouble and work at the same time, then peace; then it is judged.

Safety: what programs were told can be explained by one filesystem on one host. Liveness: once the
faults have stopped both hosts become normal, and both volumes hold the same and are whole.
"""

import errno
import logging
import os
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import trio

from fusemirror.change import Table
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.host_state import HostState
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import CheckReport, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber, RequestId
from fusemirror.limits import CLOCK_DIFFERENCE_MAX_S, COMMIT_INTERVAL_S
from fusemirror.mirror.authority import Authority
from fusemirror.mirror.states import MIRROR_LOST
from fusemirror.operations import Create, Write
from fusemirror.protocol.messages import Request
from fusemirror.settings import Fence
from fusemirror.volume.check import check as check_volume
from fusemirror.volume.volume import Volume
from tests.scheduling import deterministic_trio
from tests.simulation import disk, finale, linearizable, model
from tests.simulation.guarding import Guarded
from tests.simulation.history import DOUBT, History, Operation, Target
from tests.simulation.lying import lies_noticed
from tests.simulation.options import Options, draw_options, limits_in_effect
from tests.simulation.process import SimulatedTime, allow_pauses, clocks_of_hosts, current
from tests.simulation.programs import BURIED, FILE_MODE, GIANTS, Atlas, Program
from tests.simulation.trouble import Trouble
from tests.simulation.world import SimulatedHost, World

_PEACE_TIMEOUT_S = 300.0
_ATTEMPTS = 20
_CPU_TIMEOUT_S = 60.0  # a run takes one; only a loop that never waits takes more
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

_HARMLESS = frozenset({"sparse giants", "toggle primary", "toggle backup", "decline backup"})
"""What happens that no host loses a lock by."""

_WATCHED_BYTES = (0, 3, 100, 4_095, 4_097, 65_530, 65_536, 65_610, 131_072, *GIANTS)
_TASKS_ON_A_DISK = (
    "commit",
    "divergent changes",
    "freeing",
    "link",
    "links",
    "names",
    "purge",
    "quarantine",
    "verify",
    "watch",
)
"""Which fail where the disk does, and are tried again."""

_EXPECTED_WARNINGS = (
    *(f"{task}: {error}" for task in _TASKS_ON_A_DISK for error in ("[Errno ", "volume ")),
    "a write to inode",  # of a file that had gone
    # of a wrong clock
    "this host's clock is ",
    "the clock of ",
    "changes do not follow this host's clock yet",
    "EIO: ",
    "the image of inode ",  # that the backup's disk does not write
    "the witness cannot be asked",
    "stopped before everything was drained",
    "the last checkpoint failed",
    "refused the peer at a:",
    "refused the peer at b:",
    # of a full disk
    "changes under way are not acknowledged",
    "requests are held in memory alone",
    "cannot apply what the primary sent",
    "checkpoint: volume ",
    "fsync: volume ",
    "the disk of ",
    # of what a host held while the other went on alone
    "locks on ",
    "locks are not given ",
    MIRROR_LOST,
    "the mirror stops over this link",
    "volume ",
    "the role was taken, and the disk does not take the record of it",
)


def _is_ahead(host: SimulatedHost) -> bool:
    """Whether the newest change is dated too far in the future."""
    with host.inside() as unit:
        return unit.volume.clock.behind_s() > CLOCK_DIFFERENCE_MAX_S


@dataclass
class Run:
    """What came of a seed. `failure` is None where nothing was found."""

    seed: int
    options: Options
    trace: list[str]
    failure: BaseException | None = None
    operations: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    acknowledging_alone: Callable[[], list[str]] = field(default=list, repr=False)
    lied_in: Callable[[str], bool] = field(default=lambda _: False, repr=False)
    write_failed: Callable[[HostState, Staged, int], None] = field(default=lambda *_: None, repr=False)
    staged_data: dict[RequestId, bytes] = field(default_factory=dict, repr=False)

    @property
    def header(self) -> str:
        return f"seed {self.seed}: {self.options}"


def simulate(seed: int, options: Options | None = None) -> Run:
    """Run one seed and judge it. Same seed, same options, same code: the same trace."""
    if options is None:
        options = draw_options(Random(f"{seed} options"))
    run = Run(seed, options, [])
    with (
        tempfile.TemporaryDirectory(prefix="fm-simulation-", dir=_MEMORY) as directory,
        deterministic_trio(str(seed)),
        _cpu_timeout(),
        disk.counted_steps(),
        clocks_of_hosts(),
        limits_in_effect(options),
        _told_of_late_failures(run),
        _checked_for_two_primaries(run) if options.witness else nullcontext(),
        lies_noticed(),
        _traced_log(run) as complaints,
    ):
        simulation = Simulation(seed, options, Path(directory), run)
        run.acknowledging_alone = simulation.acknowledging_alone
        run.lied_in = simulation.lied_in
        run.write_failed = simulation.write_failed
        try:
            trio.run(simulation.run, clock=SimulatedTime())
            simulation.judge_volumes()
            assert not complaints, f"the product logged {complaints}"
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001
            run.failure = error
        finally:
            simulation.close()
        run.operations = len(simulation.history.operations)
        run.faults = simulation.faults
    return run


class Hung(Exception):
    """The code runs on without an end, and no simulated time passes."""


class Simulation:
    def __init__(self, seed: int, options: Options, directory: Path, run: Run) -> None:
        self.history = History()
        self._settle_s = 26 / options.hurry  # two checkpoints and a purge
        self._atlas = Atlas()
        self._guarded_failed_late = False
        self._staged_data = run.staged_data
        reasons = {
            errno.ESTALE: True,  # the file has gone
            errno.EBUSY: "reserve" in options.kinds,
            errno.ENOSPC: any(fault.startswith(("full", "short")) for fault in options.faults),
        }
        self._late_errors = {error for error, may_be in reasons.items() if may_be}
        self._world = World(seed, options, directory)
        self._world.trace_lines = run.trace
        self._world.network._trace = run.trace.append
        self._programs: list[Program] = []

    @property
    def faults(self) -> Counter[str]:
        return self._world.faults

    def close(self) -> None:
        self._world.close()

    def acknowledging_alone(self) -> list[str]:
        """Hosts whose process lives, and acknowledges without the other."""
        units = {host.name: host.present for host in self._world.hosts if host.volume is not None}
        return [
            name
            for name, unit in units.items()
            if isinstance(unit, PrimaryUnit) and unit.mirror.authority.acknowledges_alone
        ]

    def lied_in(self, refusal: str) -> bool:
        """Whether what a host says that it refused was a lie."""
        return any(lies.holds(refusal) for lies in self._world.lies.values())

    def write_failed(self, host: HostState, staged: Staged, error: int) -> None:
        """A host says that a write came to nothing that it had acknowledged."""
        write = staged.request.operation
        assert isinstance(write, Write), f"{write} was acknowledged early"
        assert error in self._late_errors, f"a write failed late: {os.strerror(error)}"
        if self._atlas.guarded is not None and write.inode == self._atlas.guarded.inode:
            self._guarded_failed_late = True
            return
        (tag,) = (tag for tag, inode in self._atlas.inodes.items() if inode == write.inode)
        name = host.volume.identity.host_name
        self.history.fail_late(name, ("file", tag), write.offset, self._staged_data[staged.request.identity])

    async def run(self) -> None:
        world = self._world
        allow_pauses()
        with trio.fail_after(100_000):
            async with trio.open_nursery() as nursery:
                for host in world.hosts:
                    host.start(nursery.start_soon)
                await self._prepare()
                trouble = Trouble(world, nursery.start_soon)
                async with trio.open_nursery() as troubled:
                    troubled.start_soon(trouble.run)
                    await self._wait_for_programs()
                    troubled.cancel_scope.cancel()
                if world.options.finale.startswith("power"):
                    await finale.lose_power(world, self.history)
                    self._atlas.tags.clear()
                await self._make_peace(trouble)
                await self._look()
                self._judge_history()
                await self._verify()
                await trio.sleep(self._settle_s)
                self._compare()
                await finale.flip(world)
                for host in world.random.sample(world.hosts, 2):
                    host.stop()
                    await host.ended.wait()

    # --- the run --------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Make files and a directory that are never unlinked, and the programs."""
        world, options = self._world, self._world.options
        first = Program(world, self.history, self._atlas, "setup", 0)
        await world.primary.serving.wait()
        with world.primary.inside():
            await self._create_for_sure(first, b"fixed", is_directory=True)
            for index in range(options.files):
                await self._create_for_sure(first, b"file%d" % index, is_directory=False)
            if "guarded" in options.kinds:
                self._atlas.guarded = Guarded(await self._create_guarded(world.primary))
        for host in world.hosts:
            for index in range(options.clients):
                name = f"{host.name}{index}"
                program = Program(world, self.history, self._atlas, name, options.operations_per_client)
                self._programs.append(program)
                host.programs.append(program.run)
        world.prepared.set()

    async def _create_for_sure(self, program: Program, name: bytes, *, is_directory: bool) -> None:
        """A primary with a fence creates nothing before it has met its backup, nor when it loses it."""
        host = self._world.primary
        for attempt in range(_ATTEMPTS):
            if self._world.options.fence is Fence.DATA:
                await host.unit.wait_normal()
            unique = name + b"'" * attempt
            if await program.create(host, model.ROOT_TAG, unique, is_directory=is_directory) != DOUBT:
                return
        raise AssertionError(f"{name!r} cannot be created")

    async def _create_guarded(self, host: SimulatedHost) -> InodeNumber:
        create = Create(ROOT_INODE, BURIED + b"guarded", stat.S_IFREG | FILE_MODE, 0, 0)
        for _ in range(_ATTEMPTS):
            with suppress(CheckReport):
                made = await host.unit.perform(create)
                assert made is not None
                return made.number
            with suppress(OperationFailed):  # it was made, and its answer was a check report
                return (await host.unit.lookup(create.parent, create.name)).number
        raise AssertionError("the guarded file cannot be created")

    async def _wait_for_programs(self) -> None:
        """Until all have ended; or until the power is to go, in the middle of their work."""
        world = self._world
        if world.options.finale.startswith("power"):
            wanted = world.random.randrange(sum(program.left for program in self._programs))
            with trio.move_on_after(wanted * world.options.think_time):
                while len(self.history.operations) < wanted:  # noqa: ASYNC110
                    await trio.sleep(world.options.think_time / 4)
        else:
            for program in self._programs:
                await program.done.wait()

    async def _make_peace(self, trouble: Trouble) -> None:
        world = self._world
        world.trace("peace")
        with trio.fail_after(_PEACE_TIMEOUT_S):
            await trouble.end()
            while True:  # a switch that was asked for just before has yet to come
                for host in world.hosts:
                    await host.serving.wait()
                    await host.unit.wait_normal()
                await trio.sleep(self._settle_s + world.options.peer_timeout)
                for host in world.hosts:
                    await host.unit.wait_drained()
                    self.history.settle(host.name, None, self.history.now())
                if all(host.present.status()["mirror_state"] == "normal" for host in world.hosts):
                    break
            # A clock was wrong: changes follow it again.
            while any(_is_ahead(host) for host in world.hosts):  # noqa: ASYNC110
                await trio.sleep(COMMIT_INTERVAL_S)
        world.trace("normal")

    async def _look(self) -> None:
        for host in self._world.hosts:
            program = Program(self._world, self.history, self._atlas, f"{host.name} last", 0)
            with host.inside():
                await program.read_everything(host)

    async def _verify(self) -> None:
        host = self._world.random.choice(self._world.hosts)
        with host.inside(), trio.fail_after(_PEACE_TIMEOUT_S):
            # As long as what was asked before is on its way, or much of what is compared.
            await finale.patiently(host.management.verify)
            while (report := await finale.patiently(host.management.verify_report))["running"]:  # noqa: ASYNC110
                await trio.sleep(0.1)
        self._world.trace(f"verify at {host.name}: {report}")
        assert report["failed"] is None, report
        assert not report["differences"], report

    # --- judging --------------------------------------------------------------------------------------

    def _judge_history(self) -> None:
        directories = frozenset(
            operation.index
            for operation in self.history.operations
            if operation.name == "create" and operation.arguments[2]
        )
        targets = self.history.by_target()
        if self._world.options.asynchronous:
            for target in [target for target in targets if target[0] == "file" and target[1] % 2 == 0]:
                targets.update(_bytes_of(target, targets.pop(target)))
        for target, operations in targets.items():
            if target[0] == "guarded" and self._guarded_is_unsure():
                continue
            judge, initial = _model_of(target[0], directories)
            if self.history.loss is not None:
                judge, initial, operations = self._through_loss(target, judge, initial, operations)
            try:
                states = linearizable.check(operations, judge, initial)
            except linearizable.TooHard as error:
                self._world.trace(f"too hard: {target}: {error}")
                continue
            except linearizable.NotLinearizable as error:
                raise linearizable.NotLinearizable(f"{target[0]} {target[1]}: {error}") from None
            self._world.trace(f"{target[0]} {target[1]}: {len(operations)} operations, {states} states")

    def _guarded_is_unsure(self) -> bool:
        """Whether a write that was acknowledged early may have come too late for its lock, or to nothing."""
        may_be_late = self._world.options.asynchronous and bool(set(self.faults) - _HARMLESS)
        return may_be_late or self._guarded_failed_late

    def _through_loss(
        self, target: Target, judge: model.Model, initial: Any, operations: list[Operation]
    ) -> tuple[model.Model, Any, list[Operation]]:
        """How to judge operations before and after a loss of power."""
        history = self.history
        assert history.loss is not None
        before, after = finale.parted(history, operations)
        if target[0] == "guarded":
            return judge, initial, before
        if target[0] == "file":
            finale.check_flushed(before, after, stays=target[1] <= self._world.options.files + 1)
            return judge, initial, before
        all_of_it = [*before, *finale.flushes(history), history.loss, *after]
        return model.Lossy(judge), (initial, (initial,)), all_of_it

    def _compare(self) -> None:
        for host in self._world.hosts:
            assert host.present.exclusive.is_idle(), f"{host.name} keeps bytes exclusive"
        _compare_volumes(*(host.unit.volume for host in self._world.hosts))

    def judge_volumes(self) -> None:
        """After a good end: each volume is whole by itself."""
        for host in self._world.hosts:
            problems: list[str] = []
            check_volume(host.directory, False, problems.append)
            assert not problems, f"check of {host.name}: {problems}"


def _model_of(kind: str, directories: frozenset[int]) -> tuple[model.Model, Any]:
    if kind == "names":
        return model.Namespace(directories), frozenset[tuple[int, bytes, int]]()
    if kind == "file":
        return model.content, model.NO_CONTENT
    if kind.startswith("byte"):
        return model.byte, 0
    if kind == "guarded":
        return model.swapped, b""
    return model.register, {"mode": (FILE_MODE,), "flags": (0,)}.get(kind, ())


def _bytes_of(target: Target, operations: list[Operation]) -> dict[Target, list[Operation]]:
    """What happened to some bytes of a file, each by itself.

    A host sees its own writes at once and the other's later, so no one order explains a whole file; but
    of each byte there is one.
    """
    bytes_of = {}
    for at in _WATCHED_BYTES:
        about = [each for each in (_about(at, one) for one in operations) if each]
        bytes_of[f"byte {at} of file", target[1]] = _without_failures(about)
    return bytes_of


def _without_failures(operations: list[Operation]) -> list[Operation]:
    """What must be explained of a byte where writes failed late: by then its own host may have shown them."""
    failed = [each for each in operations if each.failed_late is not None]

    def showed_one(read: Operation) -> bool:
        return read.name == "get" and any(
            (read.host, read.result) == (write.host, write.arguments[0])
            and read.began < (write.failed_late or 0)
            for write in failed
        )

    return [each for each in operations if each.failed_late is None and not showed_one(each)]


def _about(at: int, operation: Operation) -> Operation | None:
    """What the operation was to the byte at `at`, or None."""
    result = operation.result
    if isinstance(result, int):
        return None  # the file had gone
    if operation.name == "write":
        offset, data = operation.arguments
        if offset <= at < offset + len(data):
            return replace(operation, name="set", arguments=(data[at - offset],))
    elif operation.name == "truncate":
        if operation.arguments[0] <= at:
            return replace(operation, name="set", arguments=(0,))
    elif operation.name == "read" and result != DOUBT:
        offset, length = operation.arguments
        if offset <= at < offset + length:
            value = result[at - offset] if at - offset < len(result) else 0
            return replace(operation, name="get", arguments=(), result=value)
    return None


def _compare_volumes(one: Volume, other: Volume) -> None:
    for table in Table:
        rows, others = (dict(volume.catalog.tables.rows(table, None, 1 << 30)) for volume in (one, other))
        different = dict(rows.items() ^ others.items())
        assert not different, f"rows of {table.name} differ: {different}"
    numbers = sorted({*one.images.numbers(), *other.images.numbers()})
    for number in numbers:
        inode = one.catalog.inode(number)
        assert inode is not None, f"an image of inode {number}, which is not there"
        for volume, compared in ((one, other), (other, one)):
            assert volume.images.size(number) == inode.size, (
                f"image of inode {number}: not {inode.size} bytes"
            )
            for offset, length in volume.images.content.extents(number, inode.size):
                pieces = [each.images.read(number, offset, length) for each in (volume, compared)]
                assert pieces[0] == pieces[1], f"images of inode {number} differ from byte {offset} on"


# --- the world outside ------------------------------------------------------------------------------------


@contextmanager
def _checked_for_two_primaries(run: Run) -> Iterator[None]:
    """Whenever a primary goes from one state to another, and where it has a new permission."""
    look = Authority.look

    def checked(authority: Authority) -> None:
        look(authority)
        assert len(run.acknowledging_alone()) < 2, "two hosts acknowledge changes alone"

    with mock.patch.object(Authority, "look", checked):
        yield


@contextmanager
def _told_of_late_failures(run: Run) -> Iterator[None]:
    note, stage = HostState.note_failed_write, CommunicationVolume.stage

    def staged_(volume: CommunicationVolume, request: Request, data: bytes, *more: Any, **how: Any) -> Staged:
        run.staged_data[request.identity] = data
        return stage(volume, request, data, *more, **how)

    def noted(host: HostState, staged: Staged, error: int) -> None:
        note(host, staged, error)
        run.write_failed(host, staged, error)

    with (
        mock.patch.object(HostState, "note_failed_write", noted),
        mock.patch.object(CommunicationVolume, "stage", staged_),
    ):
        yield


@contextmanager
def _cpu_timeout() -> Iterator[None]:
    def hung(_signal: int, _frame: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, _CPU_TIMEOUT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _traced_log(run: Run) -> Iterator[list[str]]:
    """The product's log goes into the trace; warnings that nothing explains are collected."""
    complaints: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            run.trace.append(f"log {record.levelname} {text}")
            # A host that pauses in its handshake is a stranger for so long.
            is_late = "did not say Hello within" in text or "had not said Hello when" in text
            expected = text.startswith(_EXPECTED_WARNINGS) or is_late
            expected = expected or (text.startswith("refused what ") and run.lied_in(text))
            # Python still unwinds a process that was killed in a step, and it finds the step half done.
            process = current.get()
            expected = expected or (process is not None and process.disk.dead)
            if record.levelno >= logging.WARNING and not expected:
                complaints.append(text)

    logger = logging.getLogger("fusemirror")
    handler, level, propagates = Handler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield complaints
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
