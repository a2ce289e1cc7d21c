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
        status = (process / "status").read_text(errors="replace")
    except OSError:
        return uid == 0
    effective = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
