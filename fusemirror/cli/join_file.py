"""The join file: what `create` or `invite` on one host tells `join` on the other. JSON, for its owner only.

It holds the key of the host that joins: whoever reads it can pass for that host.
"""

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fusemirror import settings
from fusemirror.errors import BadJoinFile
from fusemirror.keys import KeyPair
from fusemirror.limits import COUNTER_MAX, JOIN_FILE_BYTES_MAX, PROTOCOL_VERSION
from fusemirror.settings import Access, Acknowledge, Communication, OneOrMore
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import sync_directory

JOIN_FORMAT = 3
JOIN_FORMATS = (2, JOIN_FORMAT)
"""Those that can be read; 2 is that of version 0.1."""


Pairing = Annotated[int, Meta(ge=0, le=COUNTER_MAX)]
Identifier = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Side(msgspec.Struct, frozen=True):
    """One of the two hosts: its identity, its name, and where it listens."""

    host: Identifier
    host_name: str
    address: str
    more_addresses: tuple[str, ...] = ()  # apart, so that earlier versions take the first

    @property
    def addresses(self) -> OneOrMore:
        """All of them, as the settings have them."""
        return (self.address, *self.more_addresses) if self.more_addresses else self.address


def split(addresses: OneOrMore) -> tuple[str, tuple[str, ...]]:
    """The first address, and the others, as `Side` has them."""
    first, *more = settings.several(addresses)
    return first, tuple(more)


class JoinFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mirrored filesystem, and both its hosts."""

    name: str
    filesystem: Identifier
    primary: Side
    backup: Side
    access: Access
    acknowledge: Acknowledge
    communication: Communication
    primary_certificate: str
    backup_keys: KeyPair
    tls: bool = True
    witness: str = ""
    pairing: Pairing = 0  # how many invitations there were, this one included
    format: int = JOIN_FORMAT
    protocol: int = PROTOCOL_VERSION


def write_join_file(path: Path, join: JoinFile) -> None:
    """Write it durably, for its owner only. OSError: there is one, or none can be made, and none is left."""
    content = msgspec.json.format(msgspec.json.encode(join), indent=2) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with ExitStack() as undoing:
        undoing.callback(path.unlink, missing_ok=True)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
        undoing.pop_all()


def read_join_file(path: Path) -> JoinFile:
    """The join file at `path`; BadJoinFile says what is wrong with it."""
    try:
        content = read_plain(path, JOIN_FILE_BYTES_MAX)
        _check_private(path)
        found = msgspec.json.decode(content, type=dict)
        for key, known in (("format", JOIN_FORMATS), ("protocol", (PROTOCOL_VERSION,))):
            if found.get(key) not in known:
                knows = " and ".join(map(str, known))
                raise BadJoinFile(path, f"its {key} is {found.get(key)}, and this program knows {knows}")
        return msgspec.convert(found, JoinFile)
    except OSError as error:
        raise BadJoinFile(path, error.strerror) from None
    except UnicodeDecodeError as error:
        raise BadJoinFile(path, f"it is not UTF-8 text: {error.reason}") from None
    except RecursionError:
        raise BadJoinFile(path, "it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise BadJoinFile(path, f"it was cut short, or is none: {error}") from None


def _check_private(path: Path) -> None:
    """Whoever reads it can pass for this host, and whoever writes it decides whom this host trusts."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise BadJoinFile(path, f"it belongs to user {status.st_uid}")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise BadJoinFile(path, f"others may read it (mode {mode:04o}); `chmod 600` it where nobody did")
