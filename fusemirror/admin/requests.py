"""What the commands may ask of a mount: one type for each request, checked when it is read.

A request is a JSON object `{"command": ...}` with the arguments of that command. Only root can send one, but
a mistake in a script must not end a mount either: whatever is not of these types is a `UsageError`.
"""

import json
from typing import Annotated, Any, Literal, Never

import msgspec
from msgspec import Meta

from fusemirror.errors import UsageError
from fusemirror.limits import CERTIFICATE_BYTES_MAX, COUNTER_MAX, GIB
from fusemirror.settings import OneOrMore

WAIT_S_MAX = 10 * 365 * 86_400.0  # ten years: beyond, a deadline would not be one
_RATE_MAX = 1024 * GIB  # bytes per second, as for the setting
_INODE_MAX = (1 << 63) - 1  # the most that msgspec compares with; numbers are given one by one, from 1


class _Request(msgspec.Struct, tag_field="command"):
    """Any of them."""


class Status(_Request, tag="status"):
    pass


class Stop(_Request, tag="stop"):
    pass


class Switch(_Request, tag="switch"):
    pass


class Conflicts(_Request, tag="conflicts"):
    pass


class Locks(_Request, tag="locks"):
    pass


class Wait(_Request, tag="wait"):
    """Until the mount is so, and `timeout` seconds at most."""

    condition: Literal["connected", "normal", "drained"] = msgspec.field(name="for")
    timeout: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0.0


class Verify(_Request, tag="verify"):
    """`keep` names the host whose version replaces what differs, by name or role; "" repairs nothing."""

    keep: str = ""


class Resync(_Request, tag="resync"):
    """Sets what is not None; without a value it only asks."""

    rate: Annotated[int, Meta(ge=0, le=_RATE_MAX)] | None = None
    paused: bool | None = None


class Takeover(_Request, tag="takeover"):
    dry_run: bool = False
    force: bool = False


class Resolve(_Request, tag="resolve"):
    keep: str


class Invite(_Request, tag="invite"):
    """Another host in the peer's place: its identity, its name, its certificate (PEM), where it is dialed."""

    peer: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    peer_name: str
    certificate: Annotated[str, Meta(max_length=CERTIFICATE_BYTES_MAX)]
    address: OneOrMore
    pairing: Annotated[int, Meta(ge=1, le=COUNTER_MAX)]


class RenewKeys(_Request, tag="renew-keys"):
    pass


class Set(_Request, tag="set"):
    """Settings as a config file would hold them; `settings.py` checks the values."""

    values: dict[str, Any]


class Reserve(_Request, tag="reserve"):
    """A file by its inode, with its path for people; inode 0 is everything."""

    inode: Annotated[int, Meta(ge=0, le=_INODE_MAX)] = 0
    path: str = ""
    preempt: bool = False

    @property
    def path_bytes(self) -> bytes:
        """`UsageError` where no path can be meant."""
        try:
            return self.path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise UsageError("`path` is no path: it has characters that stand for no bytes") from None


class Release(_Request, tag="release"):
    inode: Annotated[int, Meta(ge=0, le=_INODE_MAX)] = 0
    preempt: bool = False


Request = (
    Status
    | Stop
    | Switch
    | Conflicts
    | Locks
    | Wait
    | Verify
    | Resync
    | Takeover
    | Resolve
    | Invite
    | RenewKeys
    | Set
    | Reserve
    | Release
)


def parse(received: bytes) -> Request:
    """The request in a line. `UsageError` says what is wrong with it."""
    try:
        # Not msgspec's parser: names that are not UTF-8 come as lone surrogates, which it refuses.
        asked = json.loads(received, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise UsageError("the mount process was asked something that is not JSON") from None
    if not isinstance(asked, dict):
        raise UsageError("the mount process was asked something that is no request")
    try:
        return msgspec.convert(asked, Request)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        command = asked.get("command")
        if "`$.command`" in str(error):
            raise UsageError(
                f"the mount process knows no command {command!r}; is it of another version?"
            ) from None
        raise UsageError(f"the request {command!r} has a wrong argument: {error}") from None
    except UnicodeEncodeError:  # a lone surrogate where only certain words can stand
        raise UsageError(
            "the mount process was asked something with characters that stand for no bytes"
        ) from None


def _refuse_constant(name: str) -> Never:
    """JSON has no NaN and no infinities; Python's parser takes them."""
    raise ValueError(name)
