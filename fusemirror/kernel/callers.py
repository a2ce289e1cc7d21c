"""What procfs tells of a thread: whether a program that waits for us was killed, and in which call it is;
whether one of ours waits.

The kernel tells of the first signal only, be it SIGCHLD, and of none to a program that closes its files
because it dies. So `proc(5)` is asked: SIGKILL is pending for every thread of a program that a signal ends,
whichever signal that was; once a thread has begun to exit it is not, but its exit status says so.

A program gives itself a name, of any bytes but a newline, and the pages show it.
"""

import signal
from pathlib import Path

_PROC = Path("/proc")
_KILL = 1 << (signal.SIGKILL - 1)
_PF_EXITING = 1 << 2  # include/linux/sched.h
_OPEN_FILE_COMMANDS = (37, 38)  # F_OFD_SETLK, F_OFD_SETLKW: include/uapi/asm-generic/fcntl.h
_UNINTERRUPTIBLE = b"D"
_STATE, _FLAGS, _PENDING, _EXIT_CODE = (
    3 - 3,
    9 - 3,
    31 - 3,
    52 - 3,
)  # fields of stat, counted from the one after the name in brackets


def is_dying(thread: int, proc: Path = _PROC) -> bool:
    """Whether the thread is being ended by a signal. False where that cannot be seen: a thread of another
    PID namespace, which is 0, or one that procfs hides; one that has gone waits for nothing."""
    # Not `status`: that lists all groups of a program, who may have 65,536, and takes 20 ms then.
    try:
        stat = (proc / str(thread) / "stat").read_bytes()
    except OSError:
        return False
    fields = _fields(stat)
    if int(fields[_PENDING]) & _KILL:
        return True
    exits = int(fields[_FLAGS]) & _PF_EXITING
    return bool(exits and int(fields[_EXIT_CODE]) & 0x7F)  # wait(2): the number of the signal


def locks_as_open_file(thread: int, proc: Path = _PROC) -> bool:
    """Whether a thread that waits in fcntl(2) wants a lock of its open file (OFD), not of its process: the
    kernel does not say, but which call a thread is in it does. False where that cannot be seen.
    """
    try:
        call = (proc / str(thread) / "syscall").read_bytes().split()
        return int(call[2], 16) in _OPEN_FILE_COMMANDS
    except (OSError, ValueError, IndexError):  # of another PID namespace; or it runs
        return False


def is_held_up(thread: int, proc: Path = _PROC) -> bool:
    """Whether the thread waits in a call for something in the kernel, as for the lock of a page, and not for
    its turn on a processor. True where that cannot be seen."""
    try:
        stat = (proc / str(thread) / "stat").read_bytes()
    except OSError:
        return True
    return _fields(stat)[_STATE] == _UNINTERRUPTIBLE


def _fields(stat: bytes) -> list[bytes]:
    """Those after the name, which may hold anything."""
    return stat.rpartition(b")")[2].split()
