"""Syncs: fsync(2) and fdatasync(2) that no thread waits for.

A thread that syncs hands the interpreter back and forth with the loop: some eight futex(2) for one fsync of a
few hundred microseconds. The kernel can do it alone: io_submit(2) gives it the work, and an event descriptor,
which the loop polls anyway (`hot.py`), says that it has ended. The kernel holds the open file meanwhile, so
its descriptor may be closed.

Python has no such call, so the C library is asked for it by number. Where the numbers are not known, or the
kernel says no (a filter of system calls, its limit `fs.aio-max-nr`), `begin_sync` says so: a thread does it.
"""

import ctypes
import errno
import itertools
import logging
import os
import platform
import struct
from contextlib import suppress
from typing import NamedTuple

import outcome
import trio

from fusemirror import hot
from fusemirror.limits import SYNCS_UNDER_WAY_MAX
from fusemirror.promise import Promise

log = logging.getLogger(__name__)


class _Numbers(NamedTuple):
    """Of system calls."""

    setup: int
    destroy: int
    getevents: int
    submit: int


_NUMBERS = {"x86_64": _Numbers(206, 207, 208, 209), "aarch64": _Numbers(0, 1, 4, 2)}
_FSYNC, _FDSYNC = 2, 3  # IOCB_CMD_, linux/aio_abi.h
_NOT_TAKEN = (errno.EAGAIN, errno.EINVAL)  # as many as there may be; a filesystem without it
_RESULT_TO_EVENT = 1  # IOCB_FLAG_RESFD
# struct iocb and struct io_event, of machines that are little-endian: key and rw_flags change places by that.
_IOCB = struct.Struct("=QIIHhIQQqQII")
_EVENT = struct.Struct("=QQqq")

# The interpreter is not released for such short calls, and need not be won back. A name for each prototype.
_libc = ctypes.PyDLL(None, use_errno=True)
_setup, _destroy, _submit, _getevents = (_libc["syscall"] for _ in range(4))
_setup.argtypes = ctypes.c_long, ctypes.c_uint, ctypes.c_void_p
_destroy.argtypes = ctypes.c_long, ctypes.c_ulong
_submit.argtypes = ctypes.c_long, ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p
_getevents.argtypes = (
    ctypes.c_long,
    ctypes.c_ulong,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_void_p,
)
for _call in (_setup, _destroy, _submit, _getevents):
    _call.restype = ctypes.c_long


class _Syncs:
    """Those of one run of trio's loop. OSError where the kernel does not take any."""

    def __init__(self, numbers: _Numbers) -> None:
        self._numbers = numbers
        self._context = ctypes.c_ulong(0)
        if _setup(numbers.setup, SYNCS_UNDER_WAY_MAX, ctypes.byref(self._context)) != 0:
            raise _last_error()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._serials = itertools.count(1)
        self._under_way: dict[int, Promise[None]] = {}
        self._iocb = ctypes.create_string_buffer(_IOCB.size)
        self._list = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._ended = ctypes.create_string_buffer(_EVENT.size * SYNCS_UNDER_WAY_MAX)

    def begin(self, descriptor: int, *, data_only: bool) -> Promise[None] | None:
        """As `begin_sync`. OSError, and nothing has begun."""
        serial = next(self._serials)
        operation = _FDSYNC if data_only else _FSYNC
        _IOCB.pack_into(
            self._iocb, 0, serial, 0, 0, operation, 0, descriptor, 0, 0, 0, 0, _RESULT_TO_EVENT, self._event
        )
        if _submit(self._numbers.submit, self._context.value, 1, self._list) != 1:
            raise _last_error()
        promise = self._under_way[serial] = Promise[None]()
        return promise

    def _hear(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        count = _getevents(
            self._numbers.getevents, self._context.value, 0, SYNCS_UNDER_WAY_MAX, self._ended, None
        )
        if count < 0:
            raise _last_error()
        for index in range(count):
            serial, _, result, _ = _EVENT.unpack_from(self._ended, index * _EVENT.size)
            failed = OSError(-result, os.strerror(-result)) if result < 0 else None
            self._under_way.pop(serial).settle(
                outcome.Value(None) if failed is None else outcome.Error(failed)
            )
        return False

    async def run(self) -> None:
        """Hear of what ends, to the end of the run."""
        try:
            await hot.readable(self._event, self._hear)
        finally:
            _destroy(self._numbers.destroy, self._context.value)  # waits for what is under way
            hot.notify_closing(self._event)
            os.close(self._event)


class _NoSyncs:
    """The kernel takes none."""


_syncs: "trio.lowlevel.RunVar[_Syncs | _NoSyncs | None]" = trio.lowlevel.RunVar("syncs", None)


def begin_sync(descriptor: int, *, data_only: bool) -> Promise[None] | None:
    """Begin to make durable what was written to an open file. The promise is resolved when that is so, or
    rejected with the OSError; None where this machine cannot do it without a thread.

    What was begun goes on whoever gives up, and ends before the run of the loop does.
    """
    syncs = _syncs.get()
    if syncs is None:
        syncs = _made()
        _syncs.set(syncs)
    if isinstance(syncs, _NoSyncs):
        return None
    try:
        return syncs.begin(descriptor, data_only=data_only)
    except OSError as error:
        if error.errno not in _NOT_TAKEN:
            raise
        return None


def _made() -> _Syncs | _NoSyncs:
    numbers = _NUMBERS.get(platform.machine())
    why = "the numbers of its system calls are not known here"
    if numbers is not None and struct.calcsize("P") == 8:
        try:
            syncs = _Syncs(numbers)
        except OSError as error:
            why = str(error)
        else:
            trio.lowlevel.spawn_system_task(syncs.run)
            return syncs
    log.info("this kernel syncs no file by itself (%s), and an fsync takes longer", why)
    return _NoSyncs()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
