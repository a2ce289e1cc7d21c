"""Messages to bytes and back: msgpack, typed and checked by msgspec."""

import msgspec

from fusemirror.errors import RemoteProtocolError
from fusemirror.protocol.messages import AnyMessage

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

encode = _encoder.encode
"""The body of a message's frame; for a change, the same bytes as in the journal."""


def decode(body: bytes, peer_name: str = "the peer") -> AnyMessage:
    """The message that these bytes are. `RemoteProtocolError` if they are none that we know."""
    try:
        return _decoder.decode(body)
    # Fields that we do not know are skipped, to any depth; text may be no UTF-8.
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(peer_name, f"not a message: {error}") from error
