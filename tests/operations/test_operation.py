"""What a peer may ask for: whatever it is, the primary answers, and its catalog stays whole."""

import errno
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
from fusemirror.operations import AnyOperation, Create, Reserve, SetAttributes, SetXattr, Unlink, Write
from fusemirror.protocol.calls import AnyCall
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork
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
PLAIN: list[AnyOperation] = [
    Write(FILE, 0),
    Write(FILE, 0, append=True),
    SetAttributes(FILE, 0o600, 1, 2, None, 3, 4),
    SetAttributes(FILE, size=5),
    Create(ROOT_INODE, b"new", 0o100644, 0, 0),
    Create(ROOT_INODE, b"node", 0o060644, 0, 0, 77),
    Create(ROOT_INODE, b"link", 0o120777, 0, 0, target=b"file"),
    Create(DIRECTORY, b"dir", 0o040755, 0, 0),
    o.CreateUnnamed(DIRECTORY, 0o100644, 0, 0, 0o22),
    o.LinkUnnamed(FILE, DIRECTORY, b"first"),
    o.HardLink(FILE, DIRECTORY, b"second"),
    o.Rename(DIRECTORY, b"second", DIRECTORY, b"third"),
    Unlink(DIRECTORY, b"third"),
    o.RemoveDirectory(DIRECTORY, b"dir"),
    SetXattr(FILE, b"user.name", b"value"),
    o.RemoveXattr(FILE, b"user.name"),
    Reserve(FILE, b"/file"),
    o.Allocate(FILE, 3, 9, 17, True),
    o.Copy(FILE, 3, 4, FILE, 0, True),
    o.SetFlags(FILE, 0x40),
    o.Accessed((FILE, DIRECTORY)),
    o.Release(FILE),
]


@st.composite
def spoilt(draw: st.DrawFn) -> AnyOperation:
    """An operation with one field of another value, which may be none that a kernel gives."""
    operation = draw(st.sampled_from([each for each in PLAIN if not isinstance(each, o.Accessed)]))
    fields = [
        field for field in operation.__struct_fields__ if type(getattr(operation, field)) in (int, bytes)
    ]
    field = draw(st.sampled_from(fields))
    is_number = type(getattr(operation, field)) is int
    return msgspec.structs.replace(operation, **{field: draw(INTEGERS if is_number else NAMES)})


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
    assert asked == set(get_args(AnyOperation)), "an operation has no example here"
    tags = [each.__struct_config__.tag for each in (*get_args(AnyOperation), *get_args(AnyCall))]
    assert len(set(tags)) == len(tags)
    for operation in PLAIN:
        operation.check()
        assert bool(operation.touched_names()) == hasattr(operation, "parent"), operation
        sized = getattr(operation, "size", None) is not None
        changes_data = operation.carries_data or sized or type(operation) in (o.Allocate, o.Copy)
        assert bool(operation.image) == changes_data, operation


SENT: list[tuple[AnyOperation, str]] = [
    (Write(FILE, 7, True, True), "95010207c3c3"),
    (SetAttributes(FILE, 2, 3, 4, 5, 6, 7, True), "990202020304050607c3"),
    (SetAttributes(FILE, size=4), "990202c0c0c004c0c0c2"),
    (Create(ROOT_INODE, b"n", 0o100644, 1, 2, 3, b"t", 0o22), "990301c4016ecd81a4010203c4017412"),
    (o.HardLink(FILE, DIRECTORY, b"n"), "94040203c4016e"),
    (Unlink(DIRECTORY, b"n"), "930503c4016e"),
    (o.RemoveDirectory(DIRECTORY, b"n", InodeNumber(9)), "940603c4016e09"),
    (o.Rename(FILE, b"a", DIRECTORY, b"b", 1, DIRECTORY), "970702c4016103c401620103"),
    (SetXattr(FILE, b"user.a", b"v"), "940802c406757365722e61c40176"),
    (o.RemoveXattr(FILE, b"user.a"), "930902c406757365722e61"),
    (o.CreateUnnamed(FILE, 0o100644, 1, 2, 0o22), "962a02cd81a4010212"),
    (o.LinkUnnamed(FILE, DIRECTORY, b"n"), "942b0203c4016e"),
    (o.Allocate(FILE, 4096, 1 << 32, 3, True), "962902cd1000cf000000010000000003c3"),
    (o.Copy(FILE, 4096, 5000, DIRECTORY, 1, True), "972c02cd1000cd13880301c3"),
    (o.SetFlags(FILE, 0x30), "932d0230"),
    (o.Accessed((FILE, DIRECTORY)), "922e920203"),
    (Reserve(FILE, b"p", True), "941402c40170c3"),
    (o.Release(FILE, True), "931502c3"),
]
"""As the versions before send and stage them."""


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
