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

from fusemirror.change import NamespaceChange, Row
from fusemirror.channel.link import Link
from fusemirror.coherence import directory_leases
from fusemirror.coherence.directory_leases import DirectoryLeases, LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.coherence.lock_table import Key, LockTable, Settled
from fusemirror.communication.volume import CommunicationVolume, Entry
from fusemirror.control import backup, primary, purging
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.mirror import catching_up, copying, histories
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.holdings import Holdings
from fusemirror.mirror.sending import Mirror
from fusemirror.protocol import codec
from fusemirror.protocol.messages import ReclaimLocks, Request
from fusemirror.recent import Recent
from fusemirror.settings import Access, Fence
from fusemirror.volume import images
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.journal import Journal
from fusemirror.volume.regions import Regions
from fusemirror.volume.volume import Volume
from fusemirror.witness.permission import Permission
from tests.simulation import guarding
from tests.simulation.lying import LIES
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
    mirror._held_back = None
    mirror._acknowledge(mirror.volume.number)


@contextmanager
def _acknowledged_before_copied() -> Iterator[None]:
    acknowledge = Mirror._acknowledge

    def mutated(mirror: Mirror, number: ChangeNumber) -> None:
        mirror._held_back = None
        acknowledge(mirror, number)

    with mock.patch.object(Mirror, "_acknowledge", mutated):
        yield


@contextmanager
def _data_not_journalled() -> Iterator[None]:
    apply = Volume.apply

    def mutated(volume: Volume, *args: Any, journal_request: bool = False, **kwargs: Any) -> None:
        apply(volume, *args, **kwargs)

    with mock.patch.object(Volume, "apply", mutated):
        yield


def _hold_no_longer(mirror: Mirror, *_: object) -> None:
    mirror._hold_until = 0.0


def _forget_requests(volume: Volume, *_: object) -> None:
    volume.requests_done.clear()


def _read_here(applier: Applier, *_: object) -> None:
    applier.out_of_sync.clear()


@contextmanager
def _every_fifth_record_skipped() -> Iterator[None]:
    apply_namespace = Volume._apply_namespace
    append = Journal.append

    def mutated(volume: Volume, change: NamespaceChange, encoded: bytes) -> None:
        skips = change.number % 5 == 0 and not volume.copying
        with mock.patch.object(Journal, "append", _nothing if skips else append):
            apply_namespace(volume, change, encoded)

    with mock.patch.object(Volume, "_apply_namespace", mutated):
        yield


def _look_at_all(_volume: Volume, _inode: InodeNumber, _first: int, end: int) -> int:
    return end


def _take_up_nothing(_: CommunicationVolume, entries: Iterable[Entry]) -> list[int]:
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
_SHORT_CUTS = {"faults": ("cut",), "outage": 0.01, "fault_interval": 0.1}
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
_SIZES = {**_LONG_CUTS, "kinds": ("append", "size"), "files": 14, "crowding": 0.0}
_KILLS_UNANSWERED = {
    "faults": ("cut", "kill primary"),  # the answer, and what would tell the backup of the change, are lost
    "kinds": ("append", "size"),
    "access": "routed",
    "clients": 3,
    "names_rest": 0.0,
    "clock_skew": 0.0,
    "buffer_bytes": 1 << 20,
    "small_limits": False,
    "hurry": 5,
    "outage": 0.1,
    "fault_interval": 0.1,
    "fault_count": 60,
    "io_timeout": 10.0,
    "kill_in_step": 0.0,
    "finale": "",
}
_KEPT_NAMES = {"kinds": ("create", "unlink", "rename", "lookup"), "names_rest": 0.01, "clients": 3}
_ASYNC = {"acknowledge": ("sync", "async"), "kinds": ("write", "read", "flush"), "files": 2}
_ASYNC_KILLS = {**_ASYNC, "faults": ("kill backup",), "fault_interval": 0.1, "outage": 0.01}


_FILES = {"kinds": ("write", "chmod", "append", "create", "unlink", "flush"), "io_timeout": 3.0}
_OLD_COPIES = {**_FILES, "faults": ("restore backup",), "outage": 0.1, "fault_interval": 0.4, "hurry": 200}


_NEW_DISKS = {
    "kinds": ("create", "unlink"),
    "faults": ("replace backup", "switch primary", "switch backup"),
    "fault_interval": 1.0,
    "outage": 0.1,
    "think_time": 0.1,
    "hurry": 200,
    "operations_per_client": 120,
}
_OLD_PRIMARIES = {**_OLD_COPIES, "faults": ("restore primary",)}
_KILLS_APART = {
    "faults": ("kill primary", "kill primary", "cut", "cut"),
    "kinds": ("write", "chmod", "read"),
    "outage": 0.6,
    "peer_timeout": 0.3,
    "kill_in_step": 0.0,
    "think_time": 0.1,
    "hurry": 5,
    "small_limits": False,
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
def _lapsing_permissions() -> Iterator[None]:
    """A host that cannot be the only one with the last changes gives the record back, as by a lease."""
    give_back = Permission.give_back

    async def mutated(permission: Permission, _may: Callable[[], bool]) -> None:
        held = permission.held
        await give_back(permission, lambda: True)
        permission.held = held

    with mock.patch.object(Permission, "give_back", mutated):
        yield


def _pass_those_acknowledged_early() -> AbstractContextManager[object]:
    """A write that was acknowledged early stands by at main, and what came after it does not."""
    serve_request = PrimaryUnit._serve_request

    def mutated(unit: PrimaryUnit, session: Any, request: Request, *others: Any) -> None:
        serve_request(unit, session, msgspec.structs.replace(request, kept=False), *others)

    return mock.patch.object(PrimaryUnit, "_serve_request", mutated)


def _handing_over_unnoticed() -> AbstractContextManager[object]:
    never = property(lambda _: False, lambda _, value: None)
    return mock.patch.object(PrimaryUnit, "_handing_over", never, create=True)


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
    allocate = Volume._apply_allocate

    def mutated(volume: Volume, *args: Any) -> None:
        if volume.identity.role == "primary":
            allocate(volume, *args)

    with mock.patch.object(Volume, "_apply_allocate", mutated):
        yield


def _either(*_: object) -> histories.Better:
    return histories.Better.EITHER


def _take_routed(unit: BackupUnit, *_: object, **__: object) -> None:
    unit.applier.access = Access.ROUTED


_CHANGING_ACCESS = {
    **_ASYNC,
    "kinds": ("write", "read", "change_access"),
    "clients": 3,
    "operations_per_client": 60,
    "think_time": 0.005,
    "latency": 0.02,
}
_ONE_FILE = {**_CHANGING_ACCESS, "files": 1}
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
_LYING = {"faults": LIES, "kinds": ("write", "create", "read"), "think_time": 0.05}
_APART = {
    **_ASYNC,
    "access": "exclusive",
    "faults": ("kill backup", "cut"),
    "kill_in_step": 0.0,
    "fault_interval": 0.2,
    "outage": 0.5,
}

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

    def settle_nobody(_table: LockTable, _: Key) -> list[Settled]:
        return []

    with (
        mock.patch.object(LockTable, "_sweep", settle_nobody),
        mock.patch.object(guarding, "_PATIENCE", 20),  # enough where nothing else goes wrong
    ):
        yield


@contextmanager
def _released_before_the_data() -> Iterator[None]:
    """What was acknowledged early is on its way still."""
    never = property(lambda _: 0)
    with mock.patch.object(CommunicationVolume, "newest_kept", never):
        yield


def _drop_without_record() -> AbstractContextManager[object]:
    """The primary goes on alone, and the backup will not hear that others held its locks since."""

    def mutated(arbiter: Deciding) -> bool:
        arbiter._dropped = True
        arbiter._deliver(arbiter.locks.table.drop_host(arbiter.locks.peer))
        return True

    return mock.patch.object(Deciding, "_begin_epoch", mutated)


def _take_whatever_is_reclaimed(message: ReclaimLocks, arbiter: Deciding) -> ReclaimLocks:
    return msgspec.structs.replace(message, epoch=bytes.fromhex(arbiter.locks.volume.identity.lock_epoch))


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
        mirror = arbiter._mirror
        return arbiter._may_decide() and (arbiter._decides_alone or mirror.streams)

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
    alone = property(lambda arbiter: not arbiter._mirror.streams)
    return mock.patch.object(Deciding, "_decides_alone", alone)


MUTATIONS = (
    Mutation("acknowledge in publish", _after(Mirror, "publish", _acknowledge_all), {}),
    Mutation("acknowledge before the image is copied", _acknowledged_before_copied, _SHORT_CUTS),
    Mutation("show what the backup does not have", _without_waiting(PrimaryUnit, "showable"), _NAMES),
    Mutation("read at the backup without a lease", _without_waiting(BackupUnit, "showable"), _RESETS),
    Mutation("do not hold for the lease", _after(Mirror, "_lost", _hold_no_longer), _RESETS),
    Mutation("answer before applied", _without_waiting(Applier, "wait_applied"), _ERRORS),
    Mutation("read old images at the backup", _after(Applier, "_out_of_sync_images", _read_here), _LONG_CUTS),
    Mutation("skip records of the journal", _every_fifth_record_skipped, {**_NAMES, **_KILLS}),
    Mutation("forget what is done exactly once", _after(Volume, "apply", _forget_requests), _SHORT_CUTS),
    Mutation("do not journal requests for data", _data_not_journalled, _KILLS_UNANSWERED),
    Mutation("do not mark regions on the disk", _without(Regions, "_add"), _KILLS),
    Mutation("do not mark what is not sent", _without(Mirror, "_mark"), _LONG_CUTS),
    Mutation("catch up without sizes", _replaced(catching_up, "send_inodes", _nothing), _SIZES),
    Mutation("commit no catalog before marks go", _without(Volume, "commit"), _KILLS),
    Mutation("open the fence", _replaced(Mirror, "fenced", False), {**_LONG_CUTS, "fence": Fence.DATA}),
    Mutation("take an old copy for a new one", _without(Volume, "end_checkpoint"), _OLD_COPIES),
    Mutation("take an old primary for a new one", _replaced(histories, "_newer", _either), _OLD_PRIMARIES),
    Mutation("give inodes a second time", _without(Catalog, "reserve_inodes"), _NEW_DISKS),
    Mutation("take numbers of data for records", _without(Volume, "rewind"), _KILLS_APART),
    Mutation("go alone without the witness", _replaced(Permission, "granted", True), _LONELY_PRIMARY),
    Mutation("show what an old primary has", _replaced(Mirror, "entitled", True), _LONELY_PRIMARY),
    Mutation("let the permission lapse", _lapsing_permissions, _LONELY_BOTH),
    Mutation("purge what may be open", _after(Holdings, "part", _hold_nothing), _HELD_FILES),
    Mutation("purge as when parted before", _without(Holdings, "share"), _HELD_FILES),
    Mutation("leave data in holes", _replaced(Volume, "copy_hole", _look_at_all), _GIANTS),
    Mutation("copy nothing", _replaced(copying, "REGION_BYTES", 0), _LONG_CUTS),
    Mutation("show no own writes early", _replaced(backup, "content_with", _without_the_overlay), _ASYNC),
    Mutation("give names up at once", _without_waiting(directory_leases, "_until"), _KEPT_NAMES),
    Mutation("change what is shared", _replaced(DirectoryLeases, "is_in_the_way", _are_theirs), _KEPT_NAMES),
    Mutation("share what is being changed", _nothing_is_recent, _KEPT_NAMES),
    Mutation("flush without waiting", _without_waiting(BackupUnit, "flush"), _ASYNC),
    Mutation("pass what was acknowledged early", _pass_those_acknowledged_early, _ONE_FILE),
    Mutation("change what is handed over", _handing_over_unnoticed, _SWITCHES),
    Mutation("begin with routed access", _after(BackupUnit, "__init__", _take_routed), _APART),
    Mutation("purge in one record", _replaced(primary, "purge_rows", _all_rows_at_once), _PILES),
    Mutation("purge the inode first", _inodes_purged_first, _PILES),
    Mutation("take messages as they come", _replaced(codec, "check_message", _nothing), _LYING),
    Mutation("allocate at the primary only", _allocated_at_the_primary_only, _SPACE),
    Mutation("keep old bytes in a hole", _replaced(images, "_change_space", _nothing), _SPACE),
    Mutation("release early", _released_before_the_data, _LOCKS_LATE),
    Mutation("grant to all", _replaced(LockTable, "_is_hindered", _never), _LOCKS),
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
