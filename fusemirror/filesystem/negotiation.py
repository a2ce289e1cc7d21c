"""The first exchange with the kernel (FUSE_INIT), amended by what libfuse 3.14 cannot ask for.

A file that is open for reading and writing is best opened for direct I/O: in the cached mode the
kernel asks for `security.capability` before every write. But without FUSE_DIRECT_IO_ALLOW_MMAP such a
file cannot be mapped shared, and many programs do that (SQLite's WAL, LMDB). Kernels since 6.6 have
that flag; libfuse learned of it in 3.17, pyfuse3 not yet. So libfuse's answer passes through here
once, and the flag is set where the kernel offers it. Likewise FUSE_DONT_MASK, which pyfuse3 never asks
for: with it the kernel leaves the umask to us, who know whether a default access control list stands
in for it. Source: include/uapi/linux/fuse.h, fuse(4).
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fusemirror.errors import MountFailed

_DEVICE = "/dev/fuse"
_REQUEST_BYTES_MAX = 1 << 21
_INIT = 26
_REQUEST_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, inode, uid, gid, pid, extra, padding
_REPLY_HEADER = struct.Struct("=IiQ")  # length, error, unique
_OFFER = struct.Struct("=IIIII")  # major, minor, max_readahead, flags, flags2
_ANSWER = struct.Struct("=IIIIHHIIHHI")  # ..., flags (3), ..., flags2 (10)
_DONT_MASK = 1 << 6
_INIT_EXT = 1 << 30  # flags2 counts
_DIRECT_IO_ALLOW_MMAP = 1 << (36 - 32)


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


async def run_negotiation(descriptor: int, serve: Callable[[], Awaitable[None]]) -> bool:
    """Answer the kernel's FUSE_INIT; whether files open for direct I/O can be mapped shared.

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
            reply, allowed = amend(request, reply)
            os.write(kernel, reply)
        os.dup2(kernel, descriptor, inheritable=False)
    finally:
        os.close(kernel)
    return allowed


def amend(request: bytes, reply: bytes) -> tuple[bytes, bool]:
    """libfuse's reply to FUSE_INIT with the flags that it lacks, where the kernel offers them.

    And whether files open for direct I/O can be mapped shared.
    """
    _, opcode, *_ = _REQUEST_HEADER.unpack_from(request)
    _, error, _ = _REPLY_HEADER.unpack_from(reply)
    asked, answered = request[_REQUEST_HEADER.size :], reply[_REPLY_HEADER.size :]
    if opcode != _INIT or error or len(asked) < _OFFER.size or len(answered) < _ANSWER.size:
        return reply, False  # an old kernel, or one that libfuse refused
    *_, offered, offered2 = _OFFER.unpack_from(asked)
    allowed = bool(offered & _INIT_EXT and offered2 & _DIRECT_IO_ALLOW_MMAP)
    fields = list(_ANSWER.unpack_from(answered))
    fields[3] |= offered & _DONT_MASK
    if allowed:
        fields[3] |= _INIT_EXT
        fields[10] |= _DIRECT_IO_ALLOW_MMAP
    amended = _ANSWER.pack(*fields) + answered[_ANSWER.size :]
    return reply[: _REPLY_HEADER.size] + amended, allowed
