"""What a seed decides before a run: who does how much, how the world behaves, which faults happen."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from types import ModuleType
from unittest import mock

import msgspec

from fusemirror import background, limits
from fusemirror.coherence import directory_leases
from fusemirror.communication import held_data
from fusemirror.control import backup_reads, committing, failover, forwarding, purging, stepwise, upkeep
from fusemirror.mirror import authority, catching_up, copying, durability, replica, resync, sending, verify
from fusemirror.operations import set_xattr
from fusemirror.settings import Fence
from fusemirror.volume import (
    commits,
    discarded,
    images,
    inode_cache,
    journal,
    open_images,
    recovery,
    spares,
    syncing,
    unsynced,
)
from tests.simulation.lying import LIES

WEIGHTS = {
    "write": 6,
    "append": 3,
    "truncate": 2,
    "read": 8,
    "size": 3,
    "create": 5,
    "unlink": 3,
    "rmdir": 1,
    "rename": 4,
    "link": 2,
    "lookup": 6,
    "listing": 2,
    "nlink": 2,
    "chmod": 2,
    "mode": 2,
    "set_xattr": 1,
    "remove_xattr": 1,
    "xattr": 2,
    "flush": 1,
    "hold": 2,
    "temporary": 2,
    "verify": 1,
    "reserve": 1,
    "change_access": 1,
    "pile": 1,
    "bury": 1,
    "seek": 2,
    "allocate": 2,
    "copy": 2,
    "flags": 1,
    "accessed": 1,
    "guarded": 2,
    "unnamed": 2,
    "refer": 2,
}
"""What programs do, and how often one in relation to the others."""

_LATER = ("seek", "allocate", "guarded", "unnamed", "copy", "flags", "accessed")
"""Kinds that came later. They are drawn last, so that a seed is the same world as before but for them."""
_LAST = ("refer",)
"""And after the rest of what came later."""

LOOKS = frozenset({"listing", "lookup", "mode", "nlink", "read", "seek", "size", "xattr"})
"""Of these, the ones that change nothing."""

FAULTS = (
    "cut",
    "stall",
    "stall-from primary",
    "stall-from backup",
    "refuse primary",
    "refuse backup",
    "slow",
    "break",
    "late",
    "reset primary",
    "reset backup",
    "pause primary",
    "pause backup",
    "pause both",
    "hold",
    "clock primary",
    "clock backup",
    "kill primary",
    "kill backup",
    "kill both",
    "stop primary",
    "stop backup",
    "full primary",
    "full backup",
    "full both",
    "short primary",
    "short backup",
    "fail primary",
    "fail backup",
    "power backup",
    "restore primary",
    "restore backup",
    "replace backup",
    "switch primary",
    "switch backup",
    "takeover primary",
)
"""What happens, and to which host: see `trouble.py`."""


WITNESS_FAULTS = (
    "blind primary",
    "blind backup",
    "blind both",
    "sluggish",
    "alone primary",
    "alone backup",
)
"""With a witness: who does not reach it, that it is slow, and who reaches neither it nor the other host."""

CLOCK_SKEW_MAX = 0.0045
"""Far more than the 200 ppm of a bad oscillator: what `limits.LEASE_CLOCK_MARGIN` is made for."""


LOSES_PENDING = frozenset({"replace backup", "restore backup", "restore primary"})
"""Faults by which what was acknowledged early may be lost, as fusemirror(7) tells."""

LOSES_MEMORY = frozenset({"kill backup", "kill both", "stop backup", "power backup", "fail backup"})
"""The same where it is staged in memory only."""


RECORD_BYTES_SMALL = 2000
"""Of a record with `small_limits`: what the largest single change takes, the longest names and attributes
that are piled up among them."""


FINALES = ("", "", "", "power primary", "power both", "flip image", "flip row")
"""What happens once, in the end: power that goes in the middle of the work, or a bit that flips after it."""


class Options(msgspec.Struct, frozen=True):
    """Times in seconds. Up to `fault_count` faults are drawn, on average every `fault_interval`.

    Programs do what is in `kinds`, and stay at the same file or name with probability `crowding`.
    Hosts' clocks run faster or slower by up to `clock_skew`. `hurry` is how much
    faster than in earnest the timers of commits, checkpoints and purges are.
    """

    clients: int
    operations_per_client: int
    think_time: float
    kinds: tuple[str, ...]
    crowding: float
    files: int
    names: int
    clock_skew: float
    latency: float
    jitter: float
    buffer_bytes: int
    short_sends: float
    coalescing: float
    disk_latency: float
    peer_timeout: float
    io_timeout: float
    fence: Fence
    fault_interval: float
    outage: float
    fault_count: int
    faults: tuple[str, ...]
    kill_in_step: float
    small_limits: bool
    hurry: int
    finale: str = ""
    acknowledge: tuple[str, str] = ("sync", "sync")  # at the primary, at the backup
    communication: str = "lmdb"
    access: str = "routed"
    witness: bool = False
    names_rest: float = 0.0  # how long a directory rests before a kernel keeps its names; 0: no kernel does
    on_degraded: str = "wait"
    giants: float = 0.0  # how often a write or a truncation is far out, at the largest sizes that there are

    @property
    def kernel_delay(self) -> float:
        return self.peer_timeout * 0.02

    @property
    def asynchronous(self) -> bool:
        return "async" in self.acknowledge

    @property
    def power_goes(self) -> bool:
        return any(fault.startswith("power") for fault in (*self.faults, self.finale))

    def __str__(self) -> str:
        return " ".join(f"{name}={_text(getattr(self, name))}" for name in self.__struct_fields__)


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def draw_options(random: Random) -> Options:
    options = _draw_all_but_modes(random)
    acknowledge = random.choice([("sync", "sync"), ("sync", "async"), ("async", "sync"), ("async", "async")])
    communication = random.choice(["lmdb", "subvolume", "memory"])
    faults = options.faults
    if "async" in acknowledge:
        faults += tuple(fault for fault in ("toggle primary", "toggle backup") if random.random() < 0.5)
        lost = LOSES_PENDING | LOSES_MEMORY if communication == "memory" else LOSES_PENDING
        faults = tuple(fault for fault in faults if fault not in lost)
    finale = random.choice(FINALES)
    if "async" in acknowledge and finale.startswith("power"):
        finale = ""
    access = random.choice(["routed", "exclusive"])
    witness = acknowledge == ("sync", "sync") and options.fence is Fence.NEVER and random.random() < 0.4
    if witness:
        faults += tuple(fault for fault in WITNESS_FAULTS if random.random() < 0.5)
    options = msgspec.structs.replace(
        options,
        acknowledge=acknowledge,
        communication=communication,
        faults=faults,
        finale=finale,
        access=access,
        witness=witness,
        names_rest=random.choice([0.0, 0.0, 0.001, 0.02, 0.2]) * options.peer_timeout,
        # What a loss of power leaves of a file is made up byte by byte.
        giants=random.choice([0.0, 0.1, 0.5]) * (not (options.power_goes or finale.startswith("power"))),
    )
    lies = tuple(fault for fault in LIES if random.random() < 0.2)
    later = tuple(kind for kind in _LATER if random.random() < 0.6)
    options = msgspec.structs.replace(
        options,
        faults=options.faults + lies,
        kinds=options.kinds + later,
        on_degraded=random.choice(["wait", "wait", "report"]),
    )
    declines = ("decline backup",) if random.random() < 0.3 else ()
    last = tuple(kind for kind in _LAST if random.random() < 0.6)
    return msgspec.structs.replace(options, faults=options.faults + declines, kinds=options.kinds + last)


def _draw_all_but_modes(random: Random) -> Options:
    peer_timeout = random.choice([0.3, 1.0, 5.0])
    fault_share = random.choice([0.1, 0.3, 0.6])
    kinds = tuple(kind for kind in WEIGHTS if kind not in (*_LATER, *_LAST) and random.random() < 0.6)
    return Options(
        clients=random.randint(1, 3),
        operations_per_client=random.choice([5, 15, 30, 60]),
        think_time=random.choice([0.0005, 0.002, 0.01, 0.1, 0.4]) * peer_timeout,
        kinds=kinds or tuple(kind for kind in WEIGHTS if kind not in (*_LATER, *_LAST)),
        crowding=random.choice([0.0, 0.5, 0.9]),
        files=random.randint(1, 3),
        names=random.randint(2, 5),
        clock_skew=random.choice([0.0, CLOCK_SKEW_MAX]),
        latency=random.choice([0.0001, 0.001, 0.02]),
        jitter=random.choice([0.0, 0.0005, 0.02]),
        buffer_bytes=random.choice([4096, 65536, 1 << 20]),
        disk_latency=random.choice([0.0, 0.0003, 0.02]),
        peer_timeout=peer_timeout,
        io_timeout=peer_timeout * random.choice([1, 3, 10]),
        fence=Fence(random.choice(["never", "never", "data"])),
        fault_interval=random.choice([0.05, 0.3, 1.0, 4.0]) * peer_timeout,
        outage=random.choice([0.01, 0.2, 1.0, 4.0]) * peer_timeout,
        fault_count=random.choice([1, 3, 20]),
        faults=tuple(fault for fault in FAULTS if random.random() < fault_share),
        kill_in_step=random.choice([0.0, 0.5, 1.0]),
        small_limits=random.random() < 0.4,
        hurry=random.choice([5, 20, 200]),
        short_sends=random.choice([0.0, 0.1, 0.5]),
        coalescing=random.choice([0.0, 0.0, 0.001, 0.02]),
    )


def _is_odd(descriptor: int, _size: int) -> bool:
    return os.fstat(descriptor).st_size % 2 == 1


@contextmanager
def limits_in_effect(options: Options) -> Iterator[None]:
    """Timers hurry, and with `small_limits` what takes thousands of changes in earnest comes after a few."""
    timers = (
        (durability, "CHECKPOINT_INTERVAL_S"),
        (committing, "COMMIT_INTERVAL_S"),
        (upkeep, "PURGE_AFTER_S"),
        (failover, "WITNESS_LOOK_S"),
        (background, "BACKGROUND_PAUSE_FIRST_S"),
        (background, "BACKGROUND_PAUSE_MAX_S"),
        (resync, "DECLINED_RETRY_S"),
    )
    small: tuple[tuple[ModuleType, str, object], ...] = (
        (journal, "JOURNAL_SEGMENT_BYTES", 700),
        (syncing, "JOURNAL_BYTES_MAX", 3000),
        (commits, "CATALOG_CHANGES_PER_COMMIT_MAX", 7),
        (recovery, "CATALOG_CHANGES_PER_COMMIT_MAX", 7),
        (inode_cache, "INODES_CACHED_MAX", 6),
        (open_images, "OPEN_IMAGES_MAX", 2),
        (spares, "SPARE_IMAGES_MAX", 3),
        (stepwise, "CUT_SHORT_BYTES", 0),
        (images, "takes_long", _is_odd),  # images are replaced where files are emptied, and discarded
        (spares, "takes_long", _is_odd),
        (discarded, "takes_long", _is_odd),
        (unsynced, "_SYNCED_SINGLY_MAX", 1),
        (limits, "SEND_BUFFERS_MAX", 5),
        (limits, "BACKLOG_BYTES_MAX", 20_000),
        (replica, "BACKLOG_BYTES_MAX", 20_000),
        (forwarding, "BACKLOG_BYTES_MAX", 20_000),
        (journal, "JOURNAL_RECORD_BYTES_MAX", RECORD_BYTES_SMALL),
        (purging, "ROW_BYTES_PER_RECORD", 600),
        (set_xattr, "XATTR_NAMES_BYTES_MAX", 2500),
        (upkeep, "PURGE_BATCH_MAX", 3),
        (upkeep, "PURGE_RECORDS_MAX", 2),
        (catching_up, "ROW_BYTES_PER_MESSAGE", 600),
        (catching_up, "_RECORD_BYTES_PER_TURN", 900),
        (verify, "ROW_BYTES_PER_MESSAGE", 600),
        (forwarding, "GATHERED_BYTES_MAX", 1000),
        (forwarding, "UNSENT_BYTES", 2000),
        (held_data, "STAGED_DATA_PART", 0.0),  # what the store has is always read back
        (copying, "RESYNC_BACKLOG_BYTES_MAX", 100),
        (copying, "_WINDOW_BATCHES", 3),
        (copying, "_BATCHES_CONFIRMED_AT_ONCE", 2),
        (catching_up, "ROWS_PER_MESSAGE", 3),
        (catching_up, "_RECORDS_PER_TURN", 2),
        (verify, "ROWS_PER_MESSAGE", 3),
        (verify, "DIGESTS_PER_MESSAGE", 1),
    )
    rest = options.names_rest
    kept = (
        (directory_leases, "DIRECTORY_REST_S", rest),
        (directory_leases, "DIRECTORY_BACK_OFF_MAX_S", rest * 4),
        (directory_leases, "LOOKS_TO_KEEP", 1),
        (directory_leases, "NAME_LIFETIME_S", options.peer_timeout * 0.2),
        (directory_leases, "SHARED_NAME_LIFETIME_S", options.peer_timeout * 0.1),
        (directory_leases, "KERNEL_DELAY_S", options.kernel_delay),
        (backup_reads, "KERNEL_DELAY_S", options.kernel_delay),
        (authority, "KERNEL_DELAY_S", options.kernel_delay),
    )
    with ExitStack() as stack:
        for module in (sending, forwarding):  # no write here is large
            stack.enter_context(mock.patch.object(module, "STATUS_AHEAD_BYTES", 1))
        for module, name, value in kept if rest else ():
            stack.enter_context(mock.patch.object(module, name, value))
        for module, name in timers:
            stack.enter_context(mock.patch.object(module, name, getattr(module, name) / options.hurry))
        for module, name, limit in small if options.small_limits else ():
            stack.enter_context(mock.patch.object(module, name, limit))
        yield
