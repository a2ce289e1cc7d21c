"""The join file: what `create` on one host tells `join` on the other. JSON, readable by its owner only.

It holds the key of the host that joins: whoever reads it can pass for that host.
"""

import os
from pathlib import Path

import msgspec

from fusemirror.errors import BadJoinFile
from fusemirror.keys import KeyPair
from fusemirror.limits import PROTOCOL_VERSION
from fusemirror.settings import Access, Acknowledge, Communication

JOIN_FORMAT = 2


class Side(msgspec.Struct, frozen=True):
    """One of the two hosts: its identity, its name, and the address where it listens."""

    host: str
    host_name: str
    address: str


class JoinFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mirrored filesystem, and both its hosts."""

    name: str
    filesystem: str
    primary: Side
    backup: Side
    access: Access
    acknowledge: Acknowledge
    communication: Communication
    primary_certificate: str
    backup_keys: KeyPair
    format: int = JOIN_FORMAT
    protocol: int = PROTOCOL_VERSION


def write_join_file(path: Path, join: JoinFile) -> None:
    """Write it durably, for its owner only. FileExistsError if there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(join), indent=2) + b"\n")
        file.flush()
        os.fsync(descriptor)


def read_join_file(path: Path) -> JoinFile:
    """The join file at `path`; BadJoinFile says what is wrong with it."""
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=dict)
        for key, known in (("format", JOIN_FORMAT), ("protocol", PROTOCOL_VERSION)):
            if found.get(key) != known:
                raise BadJoinFile(path, f"its {key} is {found.get(key)}, and this program knows {known}")
        return msgspec.convert(found, JoinFile)
    except OSError as error:
        raise BadJoinFile(path, error.strerror) from None
    except msgspec.DecodeError as error:
        raise BadJoinFile(path, str(error)) from None
