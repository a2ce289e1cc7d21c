"""Shedding: while a port is flooded the system drops most calls of strangers, before they cost us anything.

To accept a connection and close it takes the loop, which serves every read and write, some 90 us: a stranger
who asks for thousands a second takes a third of it. So a filter is put on the listening socket meanwhile. It
drops the SYN of all but one in so many, by chance (a router's random early drop), and none from the peer's
own addresses. How many is moved until the rest is a number that costs little.

Sources: socket(7), SO_ATTACH_FILTER; the kernel's networking/filter.rst for the machine and its extensions.
"""

import ctypes
import math
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

from fusemirror import limits

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_LD_WORD, _LD_BYTE, _AND, _SHIFT, _JEQ, _RET = 0x20, 0x30, 0x54, 0x74, 0x15, 0x06
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_NETWORK = 0xFFF00000  # SKF_NET_OFF: where the header of IP begins; the packet itself begins with TCP's
_TCP_FLAGS, _SYN, _SYN_ACK = 13, 0x02, 0x12
_IPV4_SOURCE, _IPV6_SOURCE = 12, 8
_TAKE, _DROP = 0xFFFFFFFF, 0


def program(known: Iterable[str], one_in: int) -> bytes:
    """Drops the SYN of a stranger but for one in so many, a power of two; takes all else."""
    code = [
        (_LD_BYTE, 0, 0, _TCP_FLAGS),
        (_AND, 0, 0, _SYN_ACK),
        (_JEQ, 1, 0, _SYN),
        (_RET, 0, 0, _TAKE),
        (_LD_WORD, 0, 0, _RANDOM),
        (_AND, 0, 0, one_in - 1),
        (_JEQ, 0, 1, 0),
        (_RET, 0, 0, _TAKE),
    ]
    for host in known:
        code += _take_from(host)
    code.append((_RET, 0, 0, _DROP))
    return b"".join(_INSTRUCTION.pack(*each) for each in code)


def _take_from(host: str) -> list[tuple[int, int, int, int]]:
    """Take what comes from this address; go on behind otherwise. Nothing for what is no address."""
    for family, version, source in (
        (socket.AF_INET, 4, _IPV4_SOURCE),
        (socket.AF_INET6, 6, _IPV6_SOURCE),
    ):
        with suppress(OSError):
            words = [word for (word,) in struct.iter_unpack(">I", socket.inet_pton(family, host))]
            left = 2 * len(words) + 1
            code = [(_LD_BYTE, 0, 0, _NETWORK), (_SHIFT, 0, 0, 4), (_JEQ, 0, left, version)]
            for index, word in enumerate(words):
                left = 2 * (len(words) - 1 - index) + 1
                code += [(_LD_WORD, 0, 0, _NETWORK + source + 4 * index), (_JEQ, 0, left, word)]
            return [*code, (_RET, 0, 0, _TAKE)]
    return []


class Shedding:
    """Of one listening socket."""

    def __init__(self, listening: socket.socket, known: Callable[[], Iterable[str]]) -> None:
        self.one_in = 1  # so many of strangers get through
        self._socket = listening
        self._known = known
        self._spared: list[str] = []  # by the filter that there is
        self._since = 0.0
        self._turned_away = 0

    @property
    def patience_s(self) -> float:
        """How long nobody may come before `note` is to be told."""
        return math.inf if self.one_in == 1 else limits.SHEDDING_INTERVAL_S

    def accepted(self, connection: socket.socket) -> None:
        """It came with the filter, unless it was there before."""
        if self.one_in > 1:
            with suppress(OSError):
                detach(connection)

    def note(self, turned_away: int, now: float) -> None:
        """So many more were turned away by now: let fewer through from now on, or more."""
        self._turned_away += turned_away
        if self._turned_away > limits.TURNED_AWAY_MAX and now - self._since < limits.SHEDDING_INTERVAL_S:
            wanted = min(self.one_in * limits.SHEDDING_STEP, limits.SHEDDING_MAX)
        elif now - self._since < limits.SHEDDING_INTERVAL_S:
            return
        elif self._turned_away < limits.TURNED_AWAY_MIN:
            wanted = max(self.one_in // limits.SHEDDING_STEP, 1)
        else:
            wanted = self.one_in
        self._since, self._turned_away = now, 0
        if wanted != self.one_in or (wanted > 1 and self._spared != list(self._known())):
            self._let_through(wanted)

    def _let_through(self, one_in: int) -> None:
        with suppress(OSError):  # where there can be no filter, all are turned away by us as before
            if one_in == 1:
                detach(self._socket)
            else:
                self._spared = list(self._known())
                attach(self._socket, program(self._spared, one_in))
            self.one_in = one_in


def attach(listening: socket.socket, code: bytes) -> None:
    """From now on the filter decides what comes in. OSError."""
    kept = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(kept))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def detach(filtered: socket.socket) -> None:
    """On return there is no filter. OSError where there was none."""
    filtered.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
