"""Mapped files: pages that were looked at through a mapping, and need not stay in this process."""

import ctypes
import mmap
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MAPS = Path("/proc/self/maps")


def let_go_of_pages(path: Path) -> None:
    """Pages of a file that this process maps, shared and to read, count as its memory no more until it looks
    at them again; the page cache keeps them. Nothing where it maps none of it. OSError.
    """
    number = str(path.stat().st_ino)
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        # Not every filesystem says the same device here. What is let go of by mistake is only looked at anew.
        span, mode, _, _, inode, *_ = line.split()
        if inode == number and mode == "r--s" and line.endswith(path.name):
            start, end = (int(address, 16) for address in span.split("-"))
            if _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
