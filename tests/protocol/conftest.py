"""What the tests of the protocol share: Hellos of two hosts that belong together."""

from collections.abc import Callable

import msgspec
import pytest

from fusemirror.identifiers import ChangeNumber
from fusemirror.protocol.messages import Hello, History

HISTORY = History(
    generations=(),
    journal_number=ChangeNumber(0),
    journal_first=ChangeNumber(1),
    complete=True,
    compare_all=False,
)
PRIMARY = Hello(
    protocol=1,
    protocol_min=1,
    path="mirror",
    filesystem=b"filesystem",
    host=b"host of primary",
    peer=b"host of backup",
    instance=b"instance of primary",
    role="primary",
    history=HISTORY,
)
BACKUP = msgspec.structs.replace(
    PRIMARY,
    host=PRIMARY.peer,
    peer=PRIMARY.host,
    instance=b"instance of backup",
    role="backup",
)

MakeHello = Callable[..., Hello]


@pytest.fixture(scope="session")
def primary_hello() -> MakeHello:
    """Makes the Hello of the primary, with other fields as named."""
    return lambda **other: msgspec.structs.replace(PRIMARY, **other)


@pytest.fixture(scope="session")
def backup_hello() -> MakeHello:
    """Makes the Hello of the backup, with other fields as named."""
    return lambda **other: msgspec.structs.replace(BACKUP, **other)
