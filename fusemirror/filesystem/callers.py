"""Who asks: what a request does not say of its caller, as /proc tells it."""

import os
from pathlib import Path
from typing import NamedTuple

_CAP_SYS_ADMIN = 21


class Caller(NamedTuple):
    """Who makes something: pyfuse3's RequestContext, which only pyfuse3 can make. `InHeader` serves as
    the same where no umask is asked for."""

    uid: int
    gid: int
    pid: int
    umask: int


def is_administrator(uid: int, pid: int) -> bool:
    """Whether the caller has CAP_SYS_ADMIN over this host, and not only in a user namespace of its own.

    Where /proc has nothing of the caller, its user decides.
    """
    process = Path(f"/proc/{pid}")
    try:
        if os.readlink(process / "ns/user") != os.readlink("/proc/self/ns/user"):
            return False
        effective = _line(process, b"CapEff:")
    except OSError:
        return uid == 0
    return bool(int(effective or b"0", 16) >> _CAP_SYS_ADMIN & 1)


def supplementary_groups(pid: int) -> frozenset[int]:
    """The groups that the caller has beside its own.

    Empty where /proc has nothing of the caller: it was killed, or lives in another PID namespace, which is
    told as process 0.
    """
    try:
        groups = _line(Path(f"/proc/{pid}"), b"Groups:")
    except OSError:
        return frozenset()
    return frozenset(int(group) for group in groups.split())


def _line(process: Path, field: bytes) -> bytes:
    """What the status of a process says in this line; nothing where it has none. OSError.

    The program's name stands there as well, and may hold any bytes but a newline: whatever else a text has
    between lines would let a program write lines of its own.
    """
    lines = (process / "status").read_bytes().split(b"\n")
    return next((line.removeprefix(field) for line in lines if line.startswith(field)), b"")
