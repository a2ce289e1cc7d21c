"""The first exchange with the kernel (FUSE_INIT), amended by what libfuse 3.14 cannot ask for.

A file that is open for reading and writing is best opened for direct I/O: in the cached mode the
kernel asks for `security.capability` before every write. But without FUSE_DIRECT_IO_ALLOW_MMAP such a
file cannot be mapped shared, and many programs do that (SQLite's WAL, LMDB). Kernels since 6.6 have
that flag; libfuse learned of it in 3.17, pyfuse3 not yet. So libfuse's answer passes through here
once, and the flag is set where the kernel offers it. Likewise FUSE_DONT_MASK, which pyfuse3 never asks
for: with it the kernel leaves the umask to us, who know whether a default access control list stands
in for it. And where our own session serves, FUSE_HANDLE_KILLPRIV_V2: the kernel says with each change that
ends set-user-id and set-group-id that it does, and no longer asks for `security.capability` each time. And
FUSE_POSIX_LOCKS and FUSE_FLOCK_LOCKS: it asks for locks, which bind both hosts then.

libfuse answers with its own version of the protocol, 7.31, and what a kernel knows beyond that it uses
only where a flag asks for it. Source: include/uapi/linux/fuse.h, fuse(4).
"""

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import trio

from fusemirror.errors import MalformedRequest, MountFailed
from fusemirror.kernel import codec
from fusemirror.kernel.codec import IN_HEADER, INIT_FLAGS2, INIT_IN, INIT_OUT, OUT_HEADER, InitOut, Opcode

_DEVICE = "/dev/fuse"
_REQUEST_BYTES_MAX = 1 << 21
_PRUNING = (7, 45)  # Linux 6.18; no flag tells of it


class Agreed(NamedTuple):
    """What was agreed on beyond what libfuse asks for."""

    maps_direct_io: bool = False
    """Files that are open for direct I/O can be mapped shared."""
    tells_of_privileges: bool = False
    """The kernel says which changes end set-user-id and set-group-id, and leaves it to us."""
    prunes: bool = False
    """The kernel lets go, when it is told to, of an inode that no program holds (`codec.prune_notice`)."""


def fuse_descriptor() -> int:
    """The one descriptor of this process that is a FUSE connection."""
    found = [int(link.name) for link in Path("/proc/self/fd").iterdir() if _leads_to_fuse(link)]
    if len(found) != 1:
        raise MountFailed(f"{len(found)} connections to {_DEVICE} are open where there should be one")
    return found[0]


def _leads_to_fuse(link: Path) -> bool:
    try:
        return os.readlink(link) == _DEVICE
    except FileNotFoundError:  # the descriptor of this very listing
        return False


async def run_negotiation(
    descriptor: int, serve: Callable[[], Awaitable[None]], *, own_session: bool = False
) -> Agreed:
    """Answer the kernel's FUSE_INIT; what was agreed on.

    `serve` is libfuse's loop over `descriptor`; it runs until it has answered, and is cancelled. On
    return the descriptor leads to the kernel. OSError where the connection has ended.
    """
    await trio.lowlevel.wait_readable(descriptor)
    kernel = os.dup(descriptor)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours, theirs:
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
            request = os.read(kernel, _REQUEST_BYTES_MAX)
            ours.send(request)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await trio.lowlevel.wait_readable(ours)
                reply = ours.recv(_REQUEST_BYTES_MAX)
                nursery.cancel_scope.cancel()
            reply, agreed = amend(request, reply, own_session=own_session)
            os.write(kernel, reply)
        os.dup2(kernel, descriptor, inheritable=False)
    finally:
        os.close(kernel)
    return agreed


def amend(request: bytes, reply: bytes, *, own_session: bool) -> tuple[bytes, Agreed]:
    """libfuse's reply to FUSE_INIT with the flags that it lacks, where the kernel offers them."""
    try:
        header, answer = IN_HEADER.read(request), OUT_HEADER.read(reply)
        asked, answered = INIT_IN.read(request, IN_HEADER.size), INIT_OUT.read(reply, OUT_HEADER.size)
    except MalformedRequest:  # an old kernel, or one that libfuse refused
        return reply, Agreed()
    if header.opcode != Opcode.INIT or answer.error:
        return reply, Agreed()
    flags, flags2 = _wanted(asked.flags, _second_flags(request, asked.flags), own_session=own_session)
    amended: InitOut = answered._replace(flags=answered.flags | flags, flags2=answered.flags2 | flags2)
    rest = reply[OUT_HEADER.size + INIT_OUT.size :]
    return reply[: OUT_HEADER.size] + INIT_OUT.pack(*amended) + rest, Agreed(
        maps_direct_io=bool(flags2 & codec.INIT2_DIRECT_IO_ALLOW_MMAP),
        tells_of_privileges=bool(flags & codec.INIT_HANDLE_KILLPRIV_V2),
        prunes=own_session and (asked.major, asked.minor) >= _PRUNING,
    )


def _second_flags(request: bytes, flags: int) -> int:
    """What a kernel since 5.17 offers in a second number."""
    start = IN_HEADER.size + INIT_IN.size
    if not flags & codec.INIT_EXT or len(request) < start + INIT_FLAGS2.size:
        return 0
    return INIT_FLAGS2.read(request, start).flags2


def _wanted(offered: int, offered2: int, *, own_session: bool) -> tuple[int, int]:
    """The flags of both numbers that we add, of those that the kernel offers."""
    flags = offered & codec.INIT_DONT_MASK
    if own_session:
        flags |= offered & (codec.INIT_HANDLE_KILLPRIV_V2 | codec.INIT_POSIX_LOCKS | codec.INIT_FLOCK_LOCKS)
    flags2 = offered2 & codec.INIT2_DIRECT_IO_ALLOW_MMAP
    return (flags | codec.INIT_EXT if flags2 else flags), flags2
