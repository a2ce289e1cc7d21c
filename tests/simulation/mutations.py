"""Bugs to plant: each takes away one step on which a guarantee rests, and the simulation must notice.

A mutation says what brings it to light, so that few seeds are needed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import trio

from fusemirror.change import AllocateChange, AnyChange, CopyChange, NamespaceChange, Row, WriteChange
from fusemirror.channel.link import Link
from fusemirror.coherence import directory_leases, lock_table
from fusemirror.coherence.directory_leases import DirectoryLeases, LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.coherence.lock_table import LockKey, LockTable, Settled
from fusemirror.communication.order import Order
from fusemirror.communication.staged import StoredEntry
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control import backup_reads, purging, upkeep
from fusemirror.control.backup import BackupUnit
from fusemirror.control.backup_reads import BackupReads
from fusemirror.control.forwarding import Forwarding
from fusemirror.control.landing import Landing
from fusemirror.control.open_inodes import OpenInodes
from fusemirror.control.primary_reads import PrimaryReads
from fusemirror.control.states import TRANSITIONS, RoleEvent, RoleState
from fusemirror.identifiers import InodeNumber
from fusemirror.mirror import catching_up, copying
from fusemirror.mirror.acknowledging import Acknowledging
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.authority import Authority
from fusemirror.mirror.holdings import Holdings
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.operations import AnyOperation, Copy
from fusemirror.protocol import codec
from fusemirror.protocol.messages import Answer, AnyMessage, ReclaimLocks, RegionData, Request
from fusemirror.recent import Recent
from fusemirror.settings import Fence
from fusemirror.volume import images
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.effects import Effects
from fusemirror.volume.files import Files
from fusemirror.volume.journal import Journal
from fusemirror.volume.regions import Regions
from fusemirror.volume.volume import Volume
from fusemirror.witness.quorum import QuorumGrant
from tests.simulation import guarding
from tests.simulation.lying import LIES, Lie, Lies
from tests.simulation.options import Options, draw_options

Planting = Callable[[], AbstractContextManager[object]]


class Mutation(NamedTuple):
    what: str
    plant: Planting
    focus: dict[str, Any]


def _nothing(*_: object, **__: object) -> None:
    pass


async def _no_wait(*_: object, **__: object) -> None:
    pass


def _without(owner: Any, name: str) -> Planting:
    """The method does nothing."""
    return lambda: mock.patch.object(owner, name, _nothing)


def _without_waiting(owner: Any, name: str) -> Planting:
    """The method returns at once."""
    return lambda: mock.patch.object(owner, name, _no_wait)


def _replaced(owner: Any, name: str, value: object) -> Planting:
    return lambda: mock.patch.object(owner, name, value)


def _after(owner: Any, name: str, then: Callable[..., None]) -> Planting:
    """`then` follows each call of the method, with its `self` and its arguments."""
    method = getattr(owner, name)

    def mutated(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        then(*args)
        return result

    return lambda: mock.patch.object(owner, name, mutated)


def _acknowledge_all(mirror: Mirror, *_: object) -> None:
    for replica in mirror.replicas:
        replica.progress.release()
    mirror.window.acknowledge(mirror.volume.number)


def _hold_no_longer(replica: Replica, *_: object) -> None:
    replica.hold_until = 0.0


def _read_here(applier: Applier, *_: object) -> None:
    applier.out_of_sync.images.clear()


@contextmanager
def _every_fifth_record_skipped() -> Iterator[None]:
    make_names, append = Effects.make_names, Journal.append

    def mutated(effects: Effects, change: NamespaceChange, encoded: bytes) -> None:
        skips = change.number % 5 == 0 and not effects._catalog.copying
        with mock.patch.object(Journal, "append", _nothing if skips else append):
            make_names(effects, change, encoded)

    with mock.patch.object(Effects, "make_names", mutated):
        yield


def _look_at_all(_files: Files, _inode: InodeNumber, _first: int, end: int) -> int:
    return end


def _take_up_nothing(_: CommunicationVolume, entries: Iterable[StoredEntry]) -> list[int]:
    return [serial for serial, _, _ in entries]


def _without_the_overlay(content: bytes, *_: object) -> bytes:
    return content


_CONTENTION: dict[str, Any] = {
    "acknowledge": ("sync", "sync"),
    "communication": "lmdb",
    "clients": 2,
    "operations_per_client": 40,
    "think_time": 0.02,
    "kinds": ("write", "append", "read", "size"),
    "crowding": 0.9,
    "files": 1,
    "names": 2,
    "latency": 0.005,
    "jitter": 0.02,
    "short_sends": 0.0,
    "coalescing": 0.0,
    "disk_latency": 0.0003,
    "giants": 0.0,
    "peer_timeout": 1.0,
    "io_timeout": 3.0,
    "fence": Fence.NEVER,
    "witness": False,
    "fault_interval": 0.3,
    "outage": 0.3,
    "fault_count": 20,
    "faults": (),
}
_NAMES = {"kinds": ("create", "unlink", "lookup", "listing")}
_LONG_CUTS = {"faults": ("cut",), "outage": 0.6, "peer_timeout": 0.3}
_RESETS = {"faults": ("reset primary",), "outage": 2.0}
_KILLS = {"faults": ("kill primary", "kill backup", "kill both"), "kill_in_step": 0.5}
_GIANTS = {**_LONG_CUTS, "kinds": ("write", "truncate", "read"), "giants": 0.5}
_ERRORS = {"kinds": ("create", "lookup"), "think_time": 0.001, "jitter": 0.05, "clients": 3, "crowding": 0.5}
_HELD_FILES = {
    **_LONG_CUTS,
    "kinds": ("create", "hold", "rename", "temporary"),
    "think_time": 0.1,
    "fault_interval": 1.0,
    "hurry": 200,
}
_REFERENCES = {**_HELD_FILES, "kinds": ("create", "refer", "rename", "unlink")}
_SIZES = {**_LONG_CUTS, "kinds": ("append", "size"), "files": 14, "crowding": 0.0}
_KEPT_NAMES = {"kinds": ("create", "unlink", "rename", "lookup"), "names_rest": 0.01, "clients": 3}
_CROWDED_NAMES = {**_KEPT_NAMES, "names_rest": 0.02, "clients": 6, "latency": 0.001, "jitter": 0.05}
_ASYNC = {"acknowledge": ("sync", "async"), "kinds": ("write", "read", "flush"), "files": 2}
_EXCLUSIVE_ASYNC = {
    "access": "exclusive",
    "acknowledge": ("async", "async"),
    "kinds": ("write", "read", "size"),
    "faults": (),
    "finale": "",
    "clients": 3,
    "operations_per_client": 60,
    "think_time": 0.002,
    "latency": 0.02,
    "short_sends": 0.5,
    "names_rest": 0.0,
}
_ASYNC_KILLS = {**_ASYNC, "faults": ("kill backup",), "fault_interval": 0.1, "outage": 0.01}


_FILES = {"kinds": ("write", "chmod", "append", "create", "unlink", "flush"), "io_timeout": 3.0}
_OLD_COPIES = {**_FILES, "faults": ("restore backup",), "outage": 0.1, "fault_interval": 0.4, "hurry": 200}


_NEW_DISKS = {
    "kinds": ("create", "unlink"),
    "faults": ("replace backup", "switch primary"),
    "fault_interval": 0.5,
    "outage": 0.1,
    "think_time": 0.1,
    "hurry": 200,
    "operations_per_client": 120,
}

_LONELY_PRIMARY = {
    "witness": True,
    "faults": ("alone primary",),
    "kinds": ("write", "read"),
    "think_time": 0.1,
    "peer_timeout": 0.3,
    "io_timeout": 3.0,
    "fault_interval": 1.0,
    "outage": 3.0,
}
_LONELY_BOTH = {
    **_LONELY_PRIMARY,
    "faults": ("cut", "kill primary", "alone primary"),
    "kill_in_step": 0.0,
}


def _hold_nothing(holdings: Holdings) -> None:
    holdings.below = InodeNumber(0)


def _closed(open_inodes: OpenInodes, inodes: Iterable[InodeNumber]) -> list[InodeNumber]:
    return [inode for inode in inodes if inode not in open_inodes]


def _are_theirs(leases: DirectoryLeases, directory: InodeNumber, *, of_change: bool) -> bool:
    return directory in leases.theirs


@contextmanager
def _nothing_is_recent() -> Iterator[None]:
    with (
        mock.patch.object(Recent, "__contains__", _never),
        mock.patch.object(LeaseRequests, "_is_changing", _never),
    ):
        yield


def _never(*_: object) -> bool:
    return False


@contextmanager
def _lapsing_grants() -> Iterator[None]:
    """A host that cannot be the only one with the last changes gives the record back, as by a lease."""
    give_back = QuorumGrant.give_back

    async def mutated(quorum: QuorumGrant, _may: Callable[[], bool]) -> None:
        held = quorum.held
        await give_back(quorum, lambda: True)
        quorum.held = held

    with mock.patch.object(QuorumGrant, "give_back", mutated):
        yield


def _handing_over_unnoticed() -> AbstractContextManager[object]:
    serving = {**TRANSITIONS[RoleState.SERVING], RoleEvent.HAND_OVER: RoleState.SERVING}
    return mock.patch.dict(TRANSITIONS, {RoleState.SERVING: serving})


def _all_rows_at_once(catalog: Catalog, inodes: Iterable[InodeNumber]) -> tuple[Row, ...]:
    return tuple(row for number in inodes for row in purging._rows_of_end(catalog, number))


@contextmanager
def _inodes_purged_first() -> Iterator[None]:
    """The rest of what belongs to one is then nobody's, where its purge takes several records."""
    rows_of_end = purging._rows_of_end

    def mutated(catalog: Catalog, number: InodeNumber) -> Iterator[Row]:
        yield from reversed(list(rows_of_end(catalog, number)))

    with mock.patch.object(purging, "_rows_of_end", mutated):
        yield


@contextmanager
def _allocated_at_the_primary_only() -> Iterator[None]:
    apply, make_data = Volume.apply, Effects.make_data

    def mutated(volume: Volume, change: AnyChange, *args: Any, **kwargs: Any) -> None:
        skips = isinstance(change, AllocateChange | CopyChange) and volume.identity.role == "backup"
        with mock.patch.object(Effects, "make_data", _nothing if skips else make_data):
            apply(volume, change, *args, **kwargs)

    with mock.patch.object(Volume, "apply", mutated):
        yield


@contextmanager
def _copied_as_it_was_when_asked() -> Iterator[None]:
    """The backup has changed what is copied since."""
    ask, apply = Forwarding.request, Volume.apply
    asked: dict[tuple[InodeNumber, int, int], bytes] = {}

    async def request(unit: Forwarding, operation: AnyOperation, *args: Any, **kwargs: Any) -> InodeNumber:
        if isinstance(operation, Copy):
            place, length = operation.source_offset, operation.end - operation.offset
            held = unit._host.volume.images.read(operation.source, place, length)
            asked[operation.source, place, length] = held
        return await ask(unit, operation, *args, **kwargs)

    def mutated(volume: Volume, change: AnyChange, *args: Any, **kwargs: Any) -> None:
        apply(volume, change, *args, **kwargs)
        if isinstance(change, CopyChange) and volume.identity.role == "backup":
            held = asked.get((change.source, change.source_offset, change.end - change.offset), b"")
            volume.images.write(change.inode, change.offset, held, change.time_ns)

    with (
        mock.patch.object(Forwarding, "request", request),
        mock.patch.object(Volume, "apply", mutated),
    ):
        yield


@contextmanager
def _copied_from_what_differs() -> Iterator[None]:
    """The backup copies of an image that is not yet as the primary's is."""
    change = Applier._change

    def mutated(applier: Applier, *args: Any) -> None:
        with mock.patch.object(applier, "out_of_sync", set()):
            change(applier, *args)

    with (
        mock.patch.object(Replica, "knows", return_value=True),
        mock.patch.object(Applier, "_change", mutated),
    ):
        yield


@contextmanager
def _unchecked_messages() -> Iterator[None]:
    """Most lies are such that something else refuses them, too; so each is one that only the check knows."""
    draw, changed = Lies.draw, Lies._changed

    def drawn(lies: Lies, arrived: bytes, _: str | None) -> tuple[Lie, int] | None:
        return draw(lies, arrived, None)  # nothing that only the other role may say

    def with_data(lies: Lies, message: AnyMessage, data: bytes) -> Lie:
        if isinstance(message, Answer | RegionData | Request | WriteChange):
            return changed(lies, message, data)
        return Lie(message, b"nothing comes beside this")

    with (
        mock.patch.object(codec, "check_message", _nothing),
        mock.patch.multiple(Lies, draw=drawn, _changed=with_data),
    ):
        yield


_CHANGING_ACCESS = {
    **_ASYNC,
    "kinds": ("write", "read", "change_access"),
    "clients": 3,
    "operations_per_client": 60,
    "think_time": 0.005,
    "latency": 0.02,
}
_SWITCHES = {
    **_CHANGING_ACCESS,
    "acknowledge": ("async", "async"),
    "kinds": ("append", "read", "change_access"),
    "think_time": 0.001,
    "faults": ("switch primary",),
    "fault_interval": 0.1,
}
_PILES = {
    "kinds": ("create", "unlink", "pile", "rename"),
    "faults": (),
    "small_limits": True,
    "operations_per_client": 60,
    "crowding": 0.5,
    "hurry": 200,
}
_SPACE = {"kinds": ("allocate", "write", "read", "size")}
_COPIES = {"kinds": ("copy", "write", "read"), "files": 1, "clients": 3}
_COPIES_APART = {**_LONG_CUTS, "kinds": ("copy", "write", "read"), "disk_latency": 0.02}
_LYING = {"faults": LIES, "kinds": ("write", "create", "read"), "think_time": 0.05}
_LOCKS = {
    "kinds": ("guarded",),
    "acknowledge": ("sync", "sync"),
    "clients": 3,
    "operations_per_client": 30,
    "think_time": 0.02,
    "io_timeout": 1.0,
    "peer_timeout": 0.3,
    "fence": Fence.NEVER,
    "faults": (),
}
_LOCKS_APART = {
    **_LOCKS,
    "faults": ("cut", "break"),
    "operations_per_client": 60,
    "fault_interval": 0.5,
    "outage": 0.6,
    "think_time": 0.1,
    "hurry": 5,
}
_LOCKS_UNNOTICED = {**_LOCKS_APART, "faults": ("reset primary", "stall-from primary"), "peer_timeout": 1.0}
_LOCKS_LATE = {**_LOCKS, "acknowledge": ("async", "async"), "latency": 0.02}


@contextmanager
def _nobody_waits_remembered() -> Iterator[None]:
    """A lock that becomes free is given to whoever asks next; the others wait for ever."""

    def settle_nobody(_table: LockTable, _: LockKey, *, closes: bool) -> list[Settled]:
        return []

    with (
        mock.patch.object(LockTable, "_sweep", settle_nobody),
        mock.patch.object(guarding, "_PATIENCE", 20),  # enough where nothing else goes wrong
    ):
        yield


@contextmanager
def _released_before_the_data() -> Iterator[None]:
    """What was acknowledged early is on its way still."""
    with mock.patch.object(Order, "newest", property(lambda _: 0)):
        yield


def _drop_without_record() -> AbstractContextManager[object]:
    """The primary goes on alone, and the backup will not hear that others held its locks since."""

    def mutated(arbiter: Deciding) -> bool:
        arbiter._dropped = True
        arbiter._deliver(arbiter.locks.table.drop_host(arbiter.locks.peer))
        return True

    return mock.patch.object(Deciding, "_begin_epoch", mutated)


def _take_whatever_is_reclaimed(message: ReclaimLocks, arbiter: Deciding) -> ReclaimLocks:
    return msgspec.structs.replace(message, epoch=arbiter.locks.epoch)


@contextmanager
def _old_locks_reclaimed() -> Iterator[None]:
    reclaimed = Deciding.reclaimed

    def mutated(arbiter: Deciding, session: Any, message: ReclaimLocks) -> None:
        reclaimed(arbiter, session, _take_whatever_is_reclaimed(message, arbiter))

    with mock.patch.object(Deciding, "reclaimed", mutated):
        yield


@contextmanager
def _granted_in_grace() -> Iterator[None]:
    """Locks are given before the backup has said what it holds, which takes a slow one a while."""
    begin_link, reclaim = Deciding.begin_link, Asking.reclaim

    def drop_at_once(arbiter: Deciding) -> None:
        begin_link(arbiter)
        arbiter.locks.table.drop_host(arbiter.locks.peer)

    def is_open(arbiter: Deciding) -> bool:
        return arbiter._may_decide() and (arbiter._decides_alone or arbiter._replica.streams)

    async def reclaim_late(asking: Asking, link: Link) -> set[InodeNumber]:
        await trio.sleep(0.3)
        return await reclaim(asking, link)

    with (
        mock.patch.object(Deciding, "begin_link", drop_at_once),
        mock.patch.object(Deciding, "is_open", property(is_open)),
        mock.patch.object(Asking, "reclaim", reclaim_late),
    ):
        yield


def _grant_during_the_lease() -> AbstractContextManager[object]:
    """A primary that has lost the link does not wait until the backup knows."""
    alone = property(lambda arbiter: not arbiter._replica.streams)
    return mock.patch.object(Deciding, "_decides_alone", alone)


MUTATIONS = (
    Mutation("acknowledge in publish", _after(Mirror, "publish", _acknowledge_all), {}),
    Mutation("show what the backup does not have", _without_waiting(PrimaryReads, "showable"), _NAMES),
    Mutation("read at the backup without a lease", _without_waiting(BackupReads, "showable"), _RESETS),
    Mutation("do not hold for the lease", _after(Replica, "lost", _hold_no_longer), _RESETS),
    Mutation("answer before applied", _without_waiting(Acknowledging, "wait_applied"), _ERRORS),
    Mutation("read old images at the backup", _after(Applier, "_out_of_sync_images", _read_here), _LONG_CUTS),
    Mutation("skip records of the journal", _every_fifth_record_skipped, {**_NAMES, **_KILLS}),
    Mutation("do not mark regions on the disk", _without(Regions, "_add"), _KILLS),
    Mutation("do not mark what is not sent", _without(Replica, "mark"), _LONG_CUTS),
    Mutation("catch up without sizes", _replaced(catching_up, "send_inodes", _nothing), _SIZES),
    Mutation("commit no catalog before marks go", _without(Volume, "commit"), _KILLS),
    Mutation("open the fence", _replaced(Authority, "fenced", False), {**_LONG_CUTS, "fence": Fence.DATA}),
    Mutation("take an old copy for a new one", _without(Volume, "end_checkpoint"), _OLD_COPIES),
    Mutation("give inodes a second time", _without(Catalog, "reserve_inodes"), _NEW_DISKS),
    Mutation("go alone without the witness", _replaced(QuorumGrant, "granted", True), _LONELY_PRIMARY),
    Mutation("show what an old primary has", _replaced(Authority, "entitled", True), _LONELY_PRIMARY),
    Mutation("let the permission lapse", _lapsing_grants, _LONELY_BOTH),
    Mutation("purge what may be open", _after(Holdings, "part", _hold_nothing), _HELD_FILES),
    Mutation("purge what a kernel holds", _replaced(OpenInodes, "let_go", _closed), _REFERENCES),
    Mutation("purge as when parted before", _without(Holdings, "share"), _HELD_FILES),
    Mutation("leave data in holes", _replaced(Files, "put_hole", _look_at_all), _GIANTS),
    Mutation("copy nothing", _replaced(copying, "REGION_BYTES", 0), _LONG_CUTS),
    Mutation(
        "show no own writes early", _replaced(backup_reads, "content_with", _without_the_overlay), _ASYNC
    ),
    Mutation("give names up at once", _without_waiting(directory_leases, "_until"), _KEPT_NAMES),
    Mutation("change what is shared", _replaced(DirectoryLeases, "is_in_the_way", _are_theirs), _KEPT_NAMES),
    Mutation("share what is being changed", _nothing_is_recent, _CROWDED_NAMES),
    Mutation("answer without the subvolume's status", _without(Landing, "command"), _EXCLUSIVE_ASYNC),
    Mutation("flush without waiting", _without_waiting(BackupUnit, "flush"), _ASYNC),
    Mutation("change what is handed over", _handing_over_unnoticed, _SWITCHES),
    Mutation("purge in one record", _replaced(upkeep, "purge_rows", _all_rows_at_once), _PILES),
    Mutation("purge the inode first", _inodes_purged_first, _PILES),
    Mutation("take messages as they come", _unchecked_messages, _LYING),
    Mutation("allocate at the primary only", _allocated_at_the_primary_only, _SPACE),
    Mutation("copy what was when it was asked", _copied_as_it_was_when_asked, _COPIES),
    Mutation("copy what differs", _copied_from_what_differs, _COPIES_APART),
    Mutation("keep old bytes in a hole", _replaced(images, "_change_space", _nothing), _SPACE),
    Mutation("release early", _released_before_the_data, _LOCKS_LATE),
    Mutation("grant to all", _replaced(lock_table._FileLocks, "hindrance_count", _never), _LOCKS),
    Mutation("forget who waits", _nobody_waits_remembered, _LOCKS),
    Mutation("grant in grace", _granted_in_grace, {**_LOCKS_APART, "faults": ("break",)}),
    Mutation("grant during the lease", _grant_during_the_lease, _LOCKS_UNNOTICED),
    Mutation("drop locks without a record", _drop_without_record, _LOCKS_APART),
    Mutation("reclaim old locks", _old_locks_reclaimed, _LOCKS_APART),
    Mutation("take up nothing", _replaced(CommunicationVolume, "_take_up", _take_up_nothing), _ASYNC_KILLS),
)


def options_of(mutation: Mutation, seed: int) -> Options:
    """Those of the seed, but for what brings the mutation to light."""
    return msgspec.structs.replace(
        draw_options(Random(f"{seed} options")), **{**_CONTENTION, **mutation.focus}
    )
