"""Mutations: messages with fields at their limits and beyond, as a peer may send them that means no good."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from fusemirror.protocol.messages import AnyMessage

INTEGERS = (
    *(0, 1, 2, 3, 5, 255, 4096, -1, -2),
    *(
        bound + step
        for bound in (1 << 16, 1 << 31, 1 << 32, 1 << 47, 1 << 56, 1 << 60)
        for step in (-1, 0, 1)
    ),
    *(bound + step for bound in (1 << 61, 1 << 62, 1 << 63) for step in (-1, 0, 1)),
    *((1 << 64) - 1, -(1 << 31), -(1 << 63)),
)
BYTES = (b"", b"\0", b"/", b".", b"..", b"a/b", b"\x1b[2J\n", b"\xff" * 8, b"\xff" * 511)
_PARTS_MAX = 100_000  # mutated three times, one of a few would else take all memory
LENGTHS = (1, 7, 8, 9, 16, 17, 64, 65, 255, 256, 263, 264, 512, 4096, 70_000)


def mutated(message: AnyMessage, random: Random) -> AnyMessage:
    """The message with one field, or a part of it, of another value; one without fields as it is."""
    if not message.__struct_fields__:
        return message
    field = random.choice(message.__struct_fields__)
    return msgspec.structs.replace(message, **{field: other(getattr(message, field), random)})


def other(value: Any, random: Random) -> Any:
    """Another value of about the same kind."""
    for kinds, mutate in _MUTATE:
        if isinstance(value, kinds):
            return mutate(value, random)
    return random.choice((None, value))


def _integer(value: int, random: Random) -> int:
    near = value + random.choice((-2, -1, 1, 2))
    return random.choice((random.choice(INTEGERS), max(-(1 << 63), min(near, (1 << 64) - 1))))


def _bytes(value: bytes, random: Random) -> bytes:
    way = random.randrange(5)
    if way == 0 and value:  # some bytes of it: numbers in keys and rows
        at = random.randrange(len(value))
        piece = random.choice((b"\0", b"\1", b"\xff", b"/", b"\xff" * 8, bytes(8)))
        return value[:at] + piece + value[at + len(piece) :]
    if way == 1:
        return value[: random.randrange(len(value) + 1)]
    if way == 2:
        return value + random.choice(BYTES)
    return random.choice(BYTES) if way == 3 else random.randbytes(random.choice(LENGTHS))


def _text(value: str, random: Random) -> str:
    return random.choice(("", "/", "..", "\x1b[2J", "a\n", "x" * 300, "x" * 20_000, value + "\0"))


def _float(_: float, random: Random) -> float:
    return random.choice((0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300))


def _sequence(value: tuple[Any, ...], random: Random) -> tuple[Any, ...]:
    way = random.randrange(4)
    if way == 0 or not value:
        return () if value else (random.choice(INTEGERS),)
    if way == 1:
        times = random.choice((2, 3, 70, 1100))
        return value * times if len(value) * times <= _PARTS_MAX else value
    at = random.randrange(len(value))
    return (*value[:at], other(value[at], random), *value[at + 1 :])


def _struct(value: Any, random: Random) -> Any:
    return mutated(value, random)


_MUTATE: tuple[tuple[Any, Callable[[Any, Random], Any]], ...] = (
    (bool, lambda value, random: random.choice((not value, 2))),
    (str, _text),
    (int, _integer),
    (bytes, _bytes),
    (float, _float),
    (tuple, _sequence),
    (msgspec.Struct, _struct),
)
