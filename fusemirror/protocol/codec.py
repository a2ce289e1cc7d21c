"""Messages to bytes and back: msgpack, typed and checked by msgspec, and by `checks.py` what it cannot see.

Whatever `decode` returns fits its description in `messages.py`: nobody behind it looks at a bound again.
"""

import re
from typing import Any, get_args

import msgspec

from fusemirror.errors import RemoteProtocolError
from fusemirror.protocol.checks import check_message
from fusemirror.protocol.messages import AnyMessage

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_KINDS: dict[Any, type[msgspec.Struct]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyMessage)}
_PLACE = re.compile(r"`\$\[(\d+)\]")
_tag_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])

encode = _encoder.encode
"""The body of a message's frame; for a change, the same bytes as in the journal."""


def decode(body: bytes, peer_name: str = "the peer", data_bytes: int = 0) -> AnyMessage:
    """The message that these bytes are, with so much data beside it.

    `RemoteProtocolError`, with its name, the field and why, if they are none that we know, or none that fits.
    """
    try:
        message = _decoder.decode(body)
    # Fields that we do not know are skipped, to any depth; text may be no UTF-8.
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(peer_name, f"not a message: {_where(body, error)}{error}") from error
    try:
        check_message(message, data_bytes)
    except ValueError as error:
        raise refusal(peer_name, message, error) from error
    return message


def refusal(peer_name: str, message: AnyMessage, why: object) -> RemoteProtocolError:
    """What is raised for a message that does not fit, or that has no place where it came."""
    return RemoteProtocolError(peer_name, f"{type(message).__name__}: {why}")


def _where(body: bytes, error: Exception) -> str:
    """The message and the field that an error of the decoder is about, as far as they can be told."""
    try:
        kind = _KINDS.get(msgspec.msgpack.decode(_tag_decoder.decode(body)[0], type=int))
    except (msgspec.MsgspecError, RecursionError, IndexError):
        return ""
    if kind is None:
        return ""
    place = _PLACE.search(str(error))
    index = int(place[1]) - 1 if place else -1
    fields = kind.__struct_fields__
    return f"{kind.__name__}.{fields[index]}: " if 0 <= index < len(fields) else f"{kind.__name__}: "
