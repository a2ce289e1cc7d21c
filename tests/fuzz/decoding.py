"""Decoding in bulk: whatever bytes come, they are a message that fits, or they are refused."""

from random import Random

import msgspec

from fusemirror.errors import RemoteProtocolError
from fusemirror.protocol.checks import check_message
from fusemirror.protocol.codec import decode, encode
from tests.fuzz.mutating import mutated
from tests.protocol.test_codec import EXAMPLES, data_of


def fuzz_decoding(random: Random, count: int) -> tuple[int, int]:
    """How many of `count` messages were refused, and how many were taken; nothing else may come of one."""
    refused = 0
    for _ in range(count):
        message = random.choice(EXAMPLES)
        data = data_of(message)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            message = mutated(message, random)
        try:
            body = encode(message)
        except OverflowError:
            continue
        if random.random() < 0.3:
            at = random.randrange(len(body))
            body = (
                body[:at] + random.randbytes(random.choice((1, 1, 4))) + body[at + random.choice((0, 1, 4)) :]
            )
        if random.random() < 0.1:
            data = random.randbytes(random.choice((0, 1, 4, 4096)))
        try:
            taken = decode(body, "the liar", len(data))
        except RemoteProtocolError:
            refused += 1
            continue
        check_message(taken, len(data))
        # What is taken fits as a value too: it is a message again.
        assert msgspec.msgpack.decode(encode(taken), type=type(taken)) == taken or "nan" in repr(taken)
    return refused, count - refused
