"""What a peer may ask for: whatever it is, the primary answers, and its catalog stays whole."""

import errno
import importlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemirror import operations as o
from fusemirror.control.host_state import HostState
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, InodeNumber
from fusemirror.operations import AnyOperation, Create, Reserve, SetAttributes, SetXattr, Write
from fusemirror.protocol.calls import AnyCall
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork
from tests.operations.conftest import Examples
from tests.volume.conftest import IDENTITY, counting_seams, directory, problems_of, volume

__all__ = ["directory", "network", "pair", "volume"]

INTEGERS = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, -1, 1 << 32, (1 << 32) - 1, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63)]
    ),
    st.integers(-(1 << 63), (1 << 64) - 1),
)
NAMES = st.one_of(st.sampled_from([b"new", b"", b".", b"..", b"a/b", b"\0", b"x" * 256]), st.binary())

FILE, DIRECTORY = InodeNumber(2), InodeNumber(3)
SENT: Examples = [
    example
    for kind in get_args(AnyOperation)
    for example in importlib.import_module(
        f"tests.operations.test_{kind.__module__.rpartition('.')[2]}"
    ).EXAMPLES
]
"""Of every operation, from the file of its tests; as the versions before send and stage them."""
PLAIN = [operation for operation, _ in SENT]


@st.composite
def spoilt(draw: st.DrawFn) -> AnyOperation:
    """An operation with one field of another value, which may be none that a kernel gives."""
    operation = draw(st.sampled_from([each for each in PLAIN if not isinstance(each, o.Accessed)]))
    fields = [
        field for field in operation.__struct_fields__ if type(getattr(operation, field)) in (int, bytes)
    ]
    field = draw(st.sampled_from(fields))
    is_number = type(getattr(operation, field)) is int
    changed: AnyOperation = msgspec.structs.replace(
        operation, **{field: draw(INTEGERS if is_number else NAMES)}
    )
    return changed


@settings(max_examples=15, derandomize=True)  # others of them: by hand, with more examples
@given(st.lists(st.one_of(spoilt(), st.sampled_from(PLAIN)), min_size=30, max_size=80))
def test_whatever_the_peer_asks_for_is_done_or_refused(asked: list[AnyOperation]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        path = Path(place) / "volume"
        Volume.create(path, IDENTITY, counting_seams())
        trio.run(_ask, path, asked)
        assert not problems_of(path)


async def _ask(path: Path, asked: list[AnyOperation]) -> None:
    volume = Volume.open(path, counting_seams())
    unit = PrimaryUnit(HostState(volume, b"instance"), counting_seams(), peer_timeout_s=1.0, io_timeout_s=1.0)
    unit.admission.decisions.make(Create(ROOT_INODE, b"file", 0o100644, 0, 0), b"", NO_REQUEST)
    unit.admission.decisions.make(Create(ROOT_INODE, b"directory", 0o040755, 0, 0), b"", NO_REQUEST)
    for operation in asked:
        with suppress(OperationFailed):
            operation.check()
            unit.admission.decisions.make(operation, b"data", NO_REQUEST)
    volume.close()


# --- what every operation says of itself --------------------------------------------------------------------


def test_every_operation_says_what_it_is() -> None:
    asked = {type(operation) for operation in PLAIN}
    assert asked == set(get_args(AnyOperation)), "an operation has no example in the file of its tests"
    tags = [each.__struct_config__.tag for each in (*get_args(AnyOperation), *get_args(AnyCall))]
    assert len(set(tags)) == len(tags)
    for operation in PLAIN:
        operation.check()
        assert bool(operation.touched_names()) == hasattr(operation, "parent"), operation
        sized = getattr(operation, "size", None) is not None
        changes_data = operation.carries_data or sized or type(operation) in (o.Allocate, o.Copy)
        assert bool(operation.image) == changes_data, operation


@pytest.mark.parametrize(("operation", "sent"), SENT, ids=lambda value: type(value).__name__)
def test_an_operation_travels_as_it_always_did(operation: AnyOperation, sent: str) -> None:
    assert msgspec.msgpack.encode(operation) == bytes.fromhex(sent)


WRONG: list[AnyOperation] = [
    SetAttributes(ROOT_INODE, uid=1 << 32),
    SetAttributes(ROOT_INODE, gid=-1),
    SetAttributes(ROOT_INODE, mode=-1),
    SetAttributes(InodeNumber(-1), mode=0o600),
    Create(ROOT_INODE, b"name", 0o644, 0, 0),  # of no type
    Create(ROOT_INODE, b"name", 0o170644, 0, 0),
    Create(ROOT_INODE, b"name", 0o100644, 0, 0, target=b"of a file"),
    Create(ROOT_INODE, b"name", 0o120777, 0, 0),
    Create(ROOT_INODE, b"a/b", 0o100644, 0, 0),
    Create(ROOT_INODE, b"name", 0o120777, 0, 0, target=b"\0"),
    Create(ROOT_INODE, b"name", stat.S_IFBLK, 0, 0, rdev=-1),
    SetXattr(ROOT_INODE, b"", b"value"),
    SetXattr(ROOT_INODE, b"user.a", b"value", 4),
    Write(ROOT_INODE, -1),
]


@pytest.mark.parametrize("operation", WRONG, ids=str)
def test_what_no_kernel_asks_is_no_argument(operation: AnyOperation) -> None:
    with pytest.raises(OperationFailed) as failed:
        operation.check()
    assert failed.value.errno == errno.EINVAL


def test_the_path_of_a_reservation_has_an_end() -> None:
    with pytest.raises(OperationFailed) as failed:
        Reserve(ROOT_INODE, b"x" * (1 << 20)).check()
    assert failed.value.errno == errno.ENAMETOOLONG


async def test_a_request_that_makes_no_sense_is_answered_and_the_link_stays(
    pair: Pair, network: MemoryNetwork
) -> None:
    unit: Any = pair.backup.unit
    link = unit.link
    for operation in WRONG:
        with pytest.raises(OperationFailed) as failed:
            await unit.forwarding.request(operation)
        assert failed.value.errno == errno.EINVAL
    assert unit.link is link
