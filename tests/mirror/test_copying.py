"""Copying goes by what is data on either host, however long files are; both images end the same."""

import errno
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.change import KEEP_SIZE, PUNCH_HOLE
from fusemirror.channel.session import Session
from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed, RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, GIB, MIB, PURGE_AFTER_S, REGION_BYTES
from fusemirror.mirror.copying import answer_about
from fusemirror.mirror.states import PrimaryState
from fusemirror.mirror.stream import Question, Stream
from fusemirror.operations import (
    Allocate,
    AnyOperation,
    Copy,
    Create,
    CreateUnnamed,
    SetAttributes,
    SetFlags,
    Unlink,
    Write,
)
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Hello, Reply
from fusemirror.settings import Access, Acknowledge
from fusemirror.volume.image_content import Piece
from fusemirror.volume.invalidation import Nobody
from tests.admin.conftest import Pair
from tests.memory_network import MemoryNetwork

FILE = InodeNumber(2)
QUESTIONS_MAX = 40


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many questions the primary asks, by their type."""
    counted = Counter[str]()
    ask = Stream.ask

    def counting(stream: Stream, question: Question) -> Promise[Reply]:
        counted[type(question(0)).__name__] += 1
        return ask(stream, question)

    monkeypatch.setattr(Stream, "ask", counting)
    return counted


async def make_file(pair: Pair, *writes: tuple[int, bytes]) -> None:
    made = await pair.primary.unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    assert made.number == FILE
    for offset, data in writes:
        await pair.primary.unit.perform(Write(FILE, offset), data)


async def apart(pair: Pair, network: MemoryNetwork) -> None:
    """The primary goes on alone."""
    network.cut("alpha", "beta")
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    await unit.host.links.ended.wait()
    while not unit.mirror.authority.acknowledges_alone:
        await unit.mirror.changed.wait()


async def together(pair: Pair, network: MemoryNetwork) -> None:
    network.heal("alpha", "beta")
    with trio.fail_after(60):
        for host in (pair.primary, pair.backup):
            await host.unit.wait_connected()
            await host.unit.wait_normal()


async def truncate(pair: Pair, size: int) -> None:
    await pair.primary.unit.perform(SetAttributes(FILE, size=size))


def assert_same(pair: Pair) -> int:
    """Both images hold the same; how much of the backup's is data."""
    volumes = [host.unit.volume for host in (pair.primary, pair.backup)]
    sizes = {volume.images.size(FILE) for volume in volumes}
    row = volumes[0].catalog.inode(FILE)
    assert row is not None
    assert sizes == {row.size}
    for volume in volumes:
        for offset, length in volume.images.content.extents(FILE, row.size):
            pieces = [each.images.read(FILE, offset, length) for each in volumes]
            assert pieces[0] == pieces[1], f"different from byte {offset} on"
    return volumes[1].images.content.data_bytes(FILE)


@pytest.mark.parametrize("size", [1 << 40, 2 << 40, 15 << 40, None], ids=["1T", "2T", "15T", "the largest"])
async def test_a_file_that_grew_to_a_giant_apart_is_copied_as_the_little_that_it_holds(
    pair: Pair, network: MemoryNetwork, autojump_clock: object, asked: Counter[str], size: int | None
) -> None:
    """A terabyte of a hole once lost 19 links in 28 s, and the pair never became normal again."""
    largest = pair.primary.unit.volume.file_bytes_max
    size = largest if size is None else size
    await make_file(pair, (0, b"before"))
    await apart(pair, network)
    await truncate(pair, size)
    await pair.primary.unit.perform(Write(FILE, size - 3), b"end")
    status = pair.primary.unit.status()
    assert status["out_of_sync"]["images"] == 1
    assert status["out_of_sync"]["bytes"] < MIB
    asked.clear()
    await together(pair, network)
    assert asked["Digests"] + asked["Hole"] < QUESTIONS_MAX
    assert assert_same(pair) < MIB
    assert await pair.backup.roles.read(FILE, size - 3, 10) == b"end"


async def test_what_was_cut_off_and_is_a_hole_now_is_one_at_the_backup_too(
    pair: Pair,
    network: MemoryNetwork,
    autojump_clock: object,
    asked: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusemirror.volume.files.HOLE_PIECE_BYTES", MIB)  # more than one answer is needed
    await make_file(pair, *((start * MIB, b"x" * MIB) for start in range(8)), (3 * GIB, b"far"))
    await apart(pair, network)
    await truncate(pair, 5)
    await truncate(pair, 1 << 40)
    await pair.primary.unit.perform(Write(FILE, 6 * MIB), b"new")
    asked.clear()
    await together(pair, network)
    assert_same(pair)
    images, end = pair.backup.unit.volume.images, (1 << 40) // REGION_BYTES
    assert images.content.data_in(FILE, 0, end) == ([0, 6 * MIB // REGION_BYTES], end)
    assert asked["Hole"] > 6
    assert await pair.backup.roles.read(FILE, 0, 6) == b"xxxxx\0"


def _older_hello(**fields: Any) -> Hello:
    return Hello(**{**fields, "takes_holes": False, "file_bytes_max": 0})


async def test_a_peer_that_does_not_know_holes_gets_checksums(
    pair: Pair,
    network: MemoryNetwork,
    autojump_clock: object,
    asked: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a program of the version before, which says nothing of what it understands."""
    monkeypatch.setattr("fusemirror.daemon.Hello", _older_hello)
    await make_file(pair, (0, b"x" * MIB), (20 * MIB, b"y" * MIB))
    await apart(pair, network)
    await truncate(pair, 5)
    await truncate(pair, 20 * MIB)
    await together(pair, network)
    assert asked["Hole"] == 0
    assert asked["Digests"] > 10
    assert_same(pair)
    await pair.backup.unit.comparisons.begin()
    while (report := await pair.backup.unit.comparisons.report())["running"]:
        await trio.testing.wait_all_tasks_blocked()
    assert (report["failed"], report["differences"]) == (None, [])
    assert asked["Hole"] == 0


@pytest.mark.parametrize("takes_seeks", [True, False], ids=["this version", "the version before"])
async def test_holes_of_an_image_that_is_being_copied_are_those_of_the_primary(
    pair: Pair,
    network: MemoryNetwork,
    autojump_clock: object,
    monkeypatch: pytest.MonkeyPatch,
    takes_seeks: bool,
) -> None:
    """What the backup has of it may be a hole yet, and is none."""
    monkeypatch.setattr(
        "fusemirror.daemon.Hello", lambda **fields: Hello(**{**fields, "takes_seeks": takes_seeks})
    )
    unit = pair.backup.roles
    await make_file(pair, (0, b"x"))
    await apart(pair, network)
    await truncate(pair, 3 * MIB)
    await pair.primary.unit.perform(Write(FILE, MIB), b"y" * MIB)
    await pair.primary.unit.change_pace(paused=True)
    network.heal("alpha", "beta")
    with trio.fail_after(60):
        await unit.wait_connected()
        row = await unit.attributes(FILE)
        routed = unit.host.reads.routed
        assert unit.allocated_bytes(row) == row.size == 3 * MIB
        assert await unit.seek(FILE, 5 * REGION_BYTES, data=True) == (
            MIB if takes_seeks else 5 * REGION_BYTES
        )
        assert await unit.seek(FILE, MIB, data=False) == (2 if takes_seeks else 3) * MIB
        for offset, data in ((3 * MIB, True), (3 * MIB, False), *([(2 * MIB, True)] if takes_seeks else [])):
            with pytest.raises(OperationFailed) as refused:
                await unit.seek(FILE, offset, data=data)
            assert refused.value.errno == errno.ENXIO
        assert unit.host.reads.routed == routed + (3 if takes_seeks else 0)
        await pair.primary.unit.change_pace(paused=False)
        await unit.wait_normal()
    assert await unit.seek(FILE, 5 * REGION_BYTES, data=True) == MIB
    assert unit.allocated_bytes(row) < 2 * MIB
    assert unit.host.reads.routed == routed + (3 if takes_seeks else 0)


@pytest.mark.parametrize("host", ["primary", "backup"])
async def test_a_hole_is_made_on_both_hosts_by_a_change_without_data(
    pair: Pair, network: MemoryNetwork, autojump_clock: object, host: str
) -> None:
    await make_file(pair, (0, b"x" * MIB))
    volumes = [each.unit.volume for each in (pair.primary, pair.backup)]
    unit, number = getattr(pair, host).roles, volumes[0].number
    await unit.perform(Allocate(FILE, REGION_BYTES, MIB - 10, PUNCH_HOLE | KEEP_SIZE))
    assert [volume.number for volume in volumes] == [number + 1] * 2
    assert await unit.seek(FILE, 0, data=False) == REGION_BYTES
    assert (
        await pair.backup.roles.read(FILE, REGION_BYTES - 1, MIB)
        == b"x".ljust(MIB - REGION_BYTES - 9, b"\0") + b"x" * 10
    )
    await unit.perform(Allocate(FILE, 2 * MIB, 3 * MIB, 0))
    for volume in volumes:
        assert volume.images.size(FILE) == 3 * MIB
        assert MIB < volume.images.content.data_bytes(FILE) < 2 * MIB
    assert_same(pair)
    await apart(pair, network)
    await pair.primary.unit.perform(Allocate(FILE, 0, 3 * MIB, PUNCH_HOLE | KEEP_SIZE))
    await together(pair, network)
    assert_same(pair)
    assert volumes[1].images.content.data_bytes(FILE) < MIB


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("acknowledge", list(Acknowledge))
@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_a_copy_sends_none_of_its_bytes_in_any_mode(
    pair: Pair, autojump_clock: object, at: str, acknowledge: Acknowledge, access: Access
) -> None:
    here: Host = getattr(pair, at)
    await make_file(pair, *((start * MIB, b"%d" % start * MIB) for start in range(8)))
    await pair.primary.management.change_access(access)
    for host in (pair.primary, pair.backup):
        host.succession.configure(msgspec.structs.replace(host.settings, acknowledge=acknowledge))
    copy = await here.roles.perform(Create(ROOT_INODE, b"copy", 0o100644, 0, 0))
    assert copy is not None
    await here.roles.perform(Write(FILE, MIB), b"new")  # which the copy has, if it is acknowledged early too
    await here.roles.drain(FILE)
    paths = [session for host in (pair.primary, pair.backup) for session in sessions(host)]
    before = sum(session.counters.sent_bytes for session in paths)
    await here.roles.perform(Copy(copy.number, 0, 8 * MIB, FILE, 0))
    await here.roles.perform(Copy(copy.number, 9 * MIB, 12 * MIB, copy.number, 0))
    assert sum(session.counters.sent_bytes for session in paths) - before < 4000
    await here.roles.drain(copy.number)
    await here.roles.flush(copy.number)
    for host in (pair.primary, pair.backup):
        content = host.roles.volume.read(FILE, 0, 9 * MIB)
        assert content[MIB : MIB + 4] == b"new1"
        assert (
            host.roles.volume.read(copy.number, 0, 20 * MIB)
            == content.ljust(9 * MIB, b"\0") + content[: 3 * MIB]
        )


def sessions(host: Host) -> list[Session]:
    link = host.unit.link
    assert link is not None
    return [link.mirror, link.forward]


async def test_what_may_differ_at_the_backup_is_not_copied_there(
    pair: Pair, network: MemoryNetwork, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel then copies by itself: as data."""
    await make_file(pair, (0, b"x" * MIB))
    await apart(pair, network)
    await pair.primary.unit.perform(Write(FILE, 5), b"alone")
    await pair.primary.unit.perform(Copy(FILE, 2 * MIB, 3 * MIB, FILE, 0))
    network.heal("alpha", "beta")
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    refusals = 0
    while unit.replica.state is not PrimaryState.NORMAL:
        if unit.replica.streams:
            with pytest.raises(OperationFailed) as refused:
                unit.admission.decisions.make(Copy(FILE, 4 * MIB, 5 * MIB, FILE, 0), b"", NO_REQUEST)
            assert refused.value.errno == errno.EOPNOTSUPP
            refusals += 1
        await unit.mirror.changed.wait()
    assert refusals
    await together(pair, network)
    await unit.perform(Copy(FILE, 4 * MIB, 5 * MIB, FILE, 2 * MIB))
    assert_same(pair)
    assert await pair.backup.roles.read(FILE, 4 * MIB, 11) == b"xxxxxalonex"


@pytest.mark.parametrize(
    "asked",
    [
        Allocate(FILE, 0, MIB, 0),
        Copy(FILE, 1, 2, FILE, 0),
        CreateUnnamed(ROOT_INODE, 0o100644, 0, 0),
        SetFlags(FILE, 0x40),
    ],
)
@pytest.mark.parametrize("host", ["primary", "backup"])
async def test_a_peer_of_the_version_before_is_not_asked_for_what_it_does_not_know(
    pair: Pair,
    network: MemoryNetwork,
    autojump_clock: object,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    asked: AnyOperation,
) -> None:
    def hello(**fields: Any) -> Hello:
        return Hello(
            **{
                **fields,
                "takes_allocations": False,
                "takes_copies": False,
                "takes_flags": False,
                "takes_unnamed": False,
            }
        )

    monkeypatch.setattr("fusemirror.daemon.Hello", hello)
    await make_file(pair, (0, b"x"))
    await apart(pair, network)
    refusals = list[int]()

    async def ask() -> None:
        with pytest.raises(OperationFailed) as refused:
            await getattr(pair, host).unit.perform(asked)
        refusals.append(refused.value.errno)

    async with trio.open_nursery() as nursery:
        if host == "backup":
            nursery.start_soon(ask)  # while there is no link yet
            await trio.testing.wait_all_tasks_blocked(0.01)
        await together(pair, network)
    await ask()
    assert set(refusals) == {errno.EOPNOTSUPP}
    assert len(refusals) == (2 if host == "backup" else 1)
    assert_same(pair)


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_a_file_without_a_name_ends_on_both_hosts_with_its_last_close(
    pair: Pair, autojump_clock: object, at: str
) -> None:
    here = getattr(pair, at).roles
    made = await here.perform(CreateUnnamed(ROOT_INODE, 0o100644, 0, 0))
    here.open_inodes.add(made.number)
    await here.perform(Write(made.number, 0), b"content")
    volumes = [each.unit.volume for each in (pair.primary, pair.backup)]
    await trio.sleep(5 * PURGE_AFTER_S)
    for volume in volumes:
        assert volume.read(made.number, 0, 100) == b"content"
    here.open_inodes.remove(made.number)
    await trio.sleep(5 * PURGE_AFTER_S)
    for volume in volumes:
        assert volume.catalog.inode(made.number) is None


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_what_a_kernel_still_holds_stays_on_both_hosts(
    pair: Pair, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Though nobody has it open."""
    await make_file(pair, (0, b"content"))
    await pair.primary.unit.perform(Unlink(ROOT_INODE, b"file"))
    held = True
    volumes = [each.unit.volume for each in (pair.primary, pair.backup)]
    invalidator = Nobody()
    invalidator.has_let_go = lambda inodes: () if held else inodes  # type: ignore[method-assign]
    getattr(pair, at).unit.volume.invalidator = invalidator
    await trio.sleep(5 * PURGE_AFTER_S)
    for volume in volumes:
        assert volume.read(FILE, 0, 100) == b"content"
    held = False
    await trio.sleep(5 * PURGE_AFTER_S)
    for volume in volumes:
        assert volume.catalog.inode(FILE) is None


async def test_a_file_longer_than_either_disk_takes_is_refused_before_anything_is_changed(
    pair: Pair, network: MemoryNetwork, autojump_clock: object
) -> None:
    """The smaller limit counts, of both hosts' requests, also while the other host is away."""
    limit = 1 << 30
    pair.backup.unit.volume.images.disk._file_bytes_max = limit
    await apart(pair, network)
    await together(pair, network)
    await make_file(pair, (0, b"before"))
    number = pair.primary.unit.volume.number

    async def expect_too_long(host: str, operation: SetAttributes | Write) -> None:
        with pytest.raises(OperationFailed) as refused:
            await getattr(pair, host).unit.perform(operation, b"data" if type(operation) is Write else b"")
        assert refused.value.errno == errno.EFBIG

    for host in ("primary", "backup"):
        await expect_too_long(host, SetAttributes(FILE, size=limit + 1))
        await expect_too_long(host, Write(FILE, limit - 3))
        await expect_too_long(host, Write(FILE, FILE_BYTES_MAX - 4))
    assert pair.primary.unit.volume.number == number
    await pair.backup.unit.perform(Write(FILE, limit - 4), b"data")
    await expect_too_long("primary", Write(FILE, 0, append=True))
    await apart(pair, network)
    await expect_too_long("primary", SetAttributes(FILE, size=limit + 1))
    await together(pair, network)
    assert_same(pair)


@pytest.mark.parametrize("values", [(), (5,), (4,), (21,), (-1,)], ids=str)
def test_an_answer_about_a_hole_that_leads_nowhere_ends_the_link(values: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match="looked"):
        answer_about(Piece(5, 20, is_hole=True), Reply(1, values=values), "peer")


def test_an_answer_about_a_hole_says_how_far_it_goes_and_what_differs() -> None:
    piece = Piece(5, 20, is_hole=True)
    assert answer_about(piece, Reply(1, values=(20,)), "peer") == (20, ())
    assert answer_about(piece, Reply(1, values=(9, 6, 7)), "peer") == (9, (6, 7))
