"""A damaged journal: opening stops, and a repair keeps what is whole, and claims no more than that."""

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
import pytest
import trio

from fusemirror import settings
from fusemirror.control.backup import BackupUnit
from fusemirror.daemon import Host
from fusemirror.errors import RepairCutShort, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber
from fusemirror.limits import JOURNAL_SEGMENT_BYTES
from fusemirror.mirror.histories import Relation, generation_row, history_of, relation
from fusemirror.operations import Create
from fusemirror.volume import journal as journal_module
from fusemirror.volume import salvage as salvage_module
from fusemirror.volume.check import check
from fusemirror.volume.identity import Identity
from fusemirror.volume.journal import Journal
from fusemirror.volume.salvage import repair_journal
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import ALPHA, BETA, GAMMA, IDENTITY, Writer, counting_seams

NAMES = [b"name%d" % number for number in range(9)]
LOST = 4  # the index of the name whose record is damaged


def killed_volume(
    directory: Path, *, committed: int = 0, role: Literal["primary", "backup"] = "primary"
) -> list[int]:
    """A volume of a process that was killed after it had made the names; where each record begins.

    The catalog holds the first `committed` of them.
    """
    Volume.create(directory, msgspec.structs.replace(IDENTITY, role=role))
    writer = Writer(Volume.open(directory, counting_seams()))
    writer.namespace(generation_row(writer.volume, b"of both", ChangeNumber(1)))
    places = []
    for count, name in enumerate(NAMES):
        places.append(writer.volume.journal.size_bytes)
        writer.create(name)
        if count + 1 == committed:
            writer.volume.commit()
    writer.volume.abandon()
    return places


def flip(directory: Path, place: int) -> str:
    """Flip a bit of the journal's only segment; the segment's name."""
    (path,) = (directory / "journal").glob("*.log")
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    return path.name


def names_in(directory: Path) -> list[bytes]:
    volume = Volume.open(directory, counting_seams())
    names = [name for name in NAMES if volume.catalog.entry(ROOT_INODE, name) is not None]
    volume.close()
    return names


def checked(directory: Path, *, repair: bool) -> tuple[int, int, str]:
    """Problems repaired, problems left, and what was said."""
    lines: list[str] = []
    result = check(directory, repair, lines.append)
    return result.repaired, result.left, "\n".join(lines)


def test_one_flipped_bit_stops_the_opening_and_a_repair_keeps_all_other_names(tmp_path: Path) -> None:
    place = killed_volume(tmp_path / "volume")[LOST]
    name = flip(tmp_path / "volume", place + 60)
    with pytest.raises(VolumeDamaged, match=f"{name} at byte {place}: .*; run `fusemirror fsck"):
        Volume.open(tmp_path / "volume")
    _, left, said = checked(tmp_path / "volume", repair=False)
    assert left == 1
    assert f"{name} at byte {place}" in said
    repaired, left, said = checked(tmp_path / "volume", repair=True)
    assert repaired
    assert not left
    assert f"{name} at byte {place}" in said
    assert f"change {LOST + 2} is lost here" in said
    assert "4 whole records behind that are kept" in said
    assert checked(tmp_path / "volume", repair=False)[:2] == (0, 0)
    assert names_in(tmp_path / "volume") == [each for each in NAMES if each != NAMES[LOST]]
    assert (tmp_path / "volume" / "lost-journal").is_dir()


def test_what_the_catalog_holds_is_not_lost(tmp_path: Path) -> None:
    place = killed_volume(tmp_path / "volume", committed=LOST + 2)[LOST]
    flip(tmp_path / "volume", place + 60)
    _, left, said = checked(tmp_path / "volume", repair=True)
    assert not left
    assert "the catalog holds all that stood there" in said
    assert names_in(tmp_path / "volume") == NAMES
    identity = Identity.load(tmp_path / "volume")
    assert (identity.complete, identity.consistent, identity.compare_all) == (True, True, True)


def test_a_header_that_cannot_be_read_is_damage_too(tmp_path: Path) -> None:
    killed_volume(tmp_path / "volume")
    name = flip(tmp_path / "volume", 20)
    with pytest.raises(VolumeDamaged, match=f"{name} at byte 0"):
        Volume.open(tmp_path / "volume")
    assert checked(tmp_path / "volume", repair=True)[1] == 0
    assert names_in(tmp_path / "volume") == NAMES, "what was flipped is not what the records need"
    assert Identity.load(tmp_path / "volume").whole


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_a_repaired_volume_claims_to_be_no_state_of_the_filesystem(
    tmp_path: Path, role: Literal["primary", "backup"]
) -> None:
    place = killed_volume(tmp_path / "volume", role=role)[LOST]
    flip(tmp_path / "volume", place + 60)
    checked(tmp_path / "volume", repair=True)
    identity = Identity.load(tmp_path / "volume")
    assert identity.compare_all
    assert identity.whole is False
    volume = Volume.open(tmp_path / "volume")
    assert volume.journal.first_number == LOST + 3, "no peer is caught up across the gap"
    volume.close()


class _Killed(BaseException):
    """In the place of a SIGKILL."""


def killed_in_repair(directory: Path, step: int) -> str | None:
    """Repair it, and be killed just before the change of a name with this number: what was said until then;
    None if there is none."""
    left = step
    lines: list[str] = []

    def counting(change: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any, **more: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Killed
            change(*arguments, **more)

        return counted

    with pytest.MonkeyPatch.context() as patched:
        for name in ("rename", "replace", "unlink"):
            patched.setattr(os, name, counting(getattr(os, name)))
        try:
            check(directory, True, lines.append)
        except _Killed:
            return "\n".join(lines)
    return None


def reassurances(said: str) -> int:
    """How often it was said that nothing is lost."""
    return said.count("the catalog holds all")


@pytest.mark.parametrize(
    ("segment_bytes", "role"), [(1, "primary"), (400, "backup"), (JOURNAL_SEGMENT_BYTES, "primary")]
)
@pytest.mark.parametrize("damaged", [0, LOST, len(NAMES) - 2])
@pytest.mark.parametrize("committed", [0, LOST + 2])
def test_a_repair_that_was_cut_short_is_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    segment_bytes: int,
    damaged: int,
    committed: int,
    role: Literal["primary", "backup"],
) -> None:
    monkeypatch.setattr(journal_module, "JOURNAL_SEGMENT_BYTES", segment_bytes)
    killed_volume(tmp_path / "volume", committed=committed, role=role)
    for path in (tmp_path / "volume" / "journal").glob("*.log"):
        path.write_bytes(path.read_bytes().replace(NAMES[damaged], b"flipped"[: len(NAMES[damaged])]))
    shutil.copytree(tmp_path / "volume", tmp_path / "whole")
    said_at_once = checked(tmp_path / "whole", repair=True)[2].replace(str(tmp_path / "whole"), "")
    identity = Identity.load(tmp_path / "whole")
    comes = "becomes the primary and has what is lost" if role == "primary" else "has what is lost here: its"
    assert (comes in said_at_once) is (damaged >= committed)
    assert checked(tmp_path / "whole", repair=False)[:2] == (0, 0)
    expected = [name for index, name in enumerate(NAMES) if index != damaged or index < committed]
    assert names_in(tmp_path / "whole") == expected
    for step in itertools.count(1):
        directory = tmp_path / f"killed {step}"
        shutil.copytree(tmp_path / "volume", directory)
        said_before = killed_in_repair(directory, step)
        if said_before is None:
            break
        said = checked(directory, repair=True)[2].replace(str(directory), "")
        if not said_before:
            assert said == said_at_once, f"killed before step {step}"
        assert reassurances(said) <= reassurances(said_at_once), f"killed before step {step}"
        assert (comes in said_before + said) is (damaged >= committed), f"killed before step {step}"
        left = sorted(path.name for path in directory.glob("lost-journal*"))
        assert left == ["lost-journal"], f"killed before step {step}"
        assert names_in(directory) == expected, f"killed before step {step}"
        assert Identity.load(directory) == identity, f"killed before step {step}"
    assert step > 3


@pytest.mark.parametrize("damaged_too", [False, True])
def test_a_repair_that_a_version_before_left_between_its_renames_is_finished(
    tmp_path: Path, damaged_too: bool
) -> None:
    directory = tmp_path / "volume"
    place = killed_volume(directory)[LOST]
    flip(directory, place + 60)
    repair_journal(directory, lambda _line: None)  # what it leaves is what the other had made
    if damaged_too:
        (path,) = (directory / "journal").glob("*.log")
        path.write_bytes(path.read_bytes().replace(NAMES[-2], b"flipped"[: len(NAMES[-2])]))
    (directory / "journal").rename(directory / "journal.new")
    with pytest.raises(RepairCutShort, match="was cut short; finish it with `fusemirror fsck --repair "):
        Volume.open(directory)
    _, left, said = checked(directory, repair=False)
    assert (left, "was cut short; finish it with" in said) == (1, True), said
    _, left, said = checked(directory, repair=True)
    assert (left, "becomes the primary and has what is lost here" in said) == (0, True), said
    assert ("the old journal is lost-journal-2" in said) is damaged_too
    copies = ["lost-journal", "lost-journal-2"] if damaged_too else ["lost-journal"]
    assert sorted(path.name for path in directory.glob("*journal*")) == ["journal", *copies]
    lost = {NAMES[LOST], NAMES[-2]} if damaged_too else {NAMES[LOST]}
    assert names_in(directory) == [name for name in NAMES if name not in lost]
    assert not Identity.load(directory).whole


def test_a_journal_that_a_version_before_had_begun_to_make_is_not_taken(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    place = killed_volume(directory)[LOST]
    flip(directory, place + 60)
    (directory / "journal.new").mkdir()
    (directory / "journal.new" / "0000000000000001.log").write_bytes(b"half made")
    assert checked(directory, repair=True)[1] == 0
    assert names_in(directory) == [each for each in NAMES if each != NAMES[LOST]]
    assert not (directory / "journal.new").exists()


@pytest.mark.parametrize("failing", ["copy", "begin_anew"])
def test_a_repair_that_failed_on_a_full_disk_tells_the_truth_when_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    directory = tmp_path / "volume"
    flip(directory, killed_volume(directory)[LOST] + 60)

    def full(source: Path, target: Path, *_others: object) -> None:
        if failing == "copy":
            (target / source.name).write_bytes(source.read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(*((shutil, "copy", full) if failing == "copy" else (salvage_module, failing, full)))
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                checked(directory, repair=True)
    left = [path.name for path in directory.glob("lost-journal*")]
    assert left == ([] if failing == "copy" else ["lost-journal"])
    _, left_over, said = checked(directory, repair=True)
    assert (left_over, reassurances(said)) == (0, 0), said
    assert f"change {LOST + 2} is lost here" in said
    assert "becomes the primary and has what is lost here" in said
    assert [path.name for path in directory.glob("lost-journal*")] == ["lost-journal"]


def test_of_a_journal_that_is_missing_nobody_knows_what_it_held(tmp_path: Path) -> None:
    killed_volume(tmp_path / "volume", committed=LOST)
    shutil.rmtree(tmp_path / "volume" / "journal")
    with pytest.raises(VolumeDamaged, match="journal is missing"):
        Volume.open(tmp_path / "volume")
    _, left, said = checked(tmp_path / "volume", repair=True)
    assert (left, f"changes from {LOST + 2} on are lost here" in said) == (0, True), said
    assert "the old journal" not in said
    assert not list((tmp_path / "volume").glob("lost-journal*"))
    assert names_in(tmp_path / "volume") == NAMES[:LOST]
    assert not Identity.load(tmp_path / "volume").whole


def test_a_repaired_primary_that_goes_on_alone_has_nothing_in_common_with_its_peer(tmp_path: Path) -> None:
    place = killed_volume(tmp_path / "volume")[LOST]
    shutil.copytree(tmp_path / "volume", tmp_path / "theirs")
    volume = Volume.open(tmp_path / "theirs", counting_seams())
    theirs = history_of(volume)
    volume.close()
    flip(tmp_path / "volume", place + 60)
    checked(tmp_path / "volume", repair=True)
    volume = Volume.open(tmp_path / "volume", counting_seams())
    assert relation(history_of(volume), theirs) is not Relation.UNRELATED
    Writer(volume).namespace(generation_row(volume, b"alone", volume.number))
    assert relation(history_of(volume), theirs) is Relation.UNRELATED
    volume.close()


async def test_a_repaired_primary_gives_way_to_the_other_host_which_has_what_is_lost(tmp_path: Path) -> None:
    network = MemoryNetwork(Random(1))
    identities = {
        "alpha": msgspec.structs.replace(IDENTITY, host_name="alpha"),
        "beta": msgspec.structs.replace(
            IDENTITY, role="backup", host="02", peers=(ALPHA,), host_name="beta", complete=False
        ),
    }
    for host_name, identity in identities.items():
        Volume.create(tmp_path / host_name, identity)
    async with AsyncExitStack() as stack:
        hosts = await _open_both(tmp_path, network, stack)
        for name in NAMES:
            await hosts[0].roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
        for host_name in identities:
            shutil.copytree(tmp_path / host_name, tmp_path / "killed" / host_name)
    journal = Journal(tmp_path / "killed" / "alpha" / "journal", counting_seams())
    (number,) = (n for n, payload in journal.records(0) if NAMES[LOST] in payload)
    (segment,) = journal._segments
    content = segment.path.read_bytes()
    journal.close()
    segment.path.write_bytes(content.replace(NAMES[LOST], b"flipped"[: len(NAMES[LOST])], 1))
    assert f"change {number} is lost here" in checked(tmp_path / "killed" / "alpha", repair=True)[2]
    async with AsyncExitStack() as stack:
        hosts = await _open_both(tmp_path / "killed", MemoryNetwork(Random(1)), stack)
        assert isinstance(hosts[0].unit, BackupUnit)
        for host in hosts:
            for name in NAMES:
                assert (await host.roles.lookup(ROOT_INODE, name)).nlink == 1


def test_privileges_that_ended_before_the_damage_do_not_come_back(tmp_path: Path) -> None:
    """The catalog lacks what a change of data carried, and the journal no longer tells of it."""
    directory = tmp_path / "volume"
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    program = writer.create(b"program", mode=0o104755)
    writer.set_xattr(program, CAPABILITY, b"cap")
    writer.volume.commit()
    writer.write_program(program, 0, b"other content")
    writer.create(b"before")
    place = writer.volume.journal.size_bytes
    writer.create(b"damaged")
    writer.create(b"behind")
    writer.volume.abandon()
    flip(directory, place + 60)
    checked(directory, repair=True)
    volume = Volume.open(directory, counting_seams())
    inode = volume.catalog.inode(program)
    assert inode is not None
    assert inode.mode == 0o100755
    assert volume.catalog.xattrs.value(program, CAPABILITY) is None
    volume.close()


async def _open_both(place: Path, network: MemoryNetwork, stack: AsyncExitStack) -> list[Host]:
    """Both hosts, linked and normal."""
    hosts = []
    for name, peer in (("alpha", "beta"), ("beta", "alpha")):
        made = settings.make(
            name="data", volume=str(place / name), listen=f"{name}:7000", peer=f"{peer}:7000"
        )
        host = Host(made, network.host(name), counting_seams())
        await host.open(stack)
        hosts.append(host)
    with trio.fail_after(60):
        for host in hosts:
            await host.roles.wait_normal()
    return hosts


def requests_volume(directory: Path, *, committed: bool) -> list[int]:
    """A primary's volume, killed after six requests of the backup; where the record of each begins."""
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    inode = writer.create(b"a")
    places = []
    for number in range(6):
        places.append(writer.volume.journal.size_bytes)
        writer.write(inode, 10 * number, b"0123456789", b"request%d" % number)
    if committed:
        writer.volume.commit()
    writer.volume.abandon()
    return places


@pytest.mark.parametrize("committed", [False, True])
def test_a_repair_forgets_no_request_that_can_be_read(tmp_path: Path, committed: bool) -> None:
    place = requests_volume(tmp_path / "volume", committed=committed)[LOST]
    flip(tmp_path / "volume", place + 40)
    assert (
        "which requests of beta took effect there is not known"
        in checked(tmp_path / "volume", repair=True)[2]
    )
    volume = Volume.open(tmp_path / "volume", counting_seams())
    assert set(volume.requests_done) == {b"request%d" % number for number in range(6) if number != LOST}
    assert volume.identity.only_peer.forgot_requests, "the backup is to hear of it"
    volume.abandon()
    volume = Volume.open(tmp_path / "volume", counting_seams())
    assert len(volume.requests_done) == 5, "a crash forgets none either"
    volume.close()


def test_a_repair_that_lost_requests_says_so_of_each_peer(tmp_path: Path) -> None:
    place = requests_volume(tmp_path / "volume", committed=True)[LOST]
    identity = Identity.load(tmp_path / "volume")
    msgspec.structs.replace(identity, peers=(BETA, GAMMA)).store(tmp_path / "volume")
    flip(tmp_path / "volume", place + 40)
    assert "which requests of beta or gamma took" in checked(tmp_path / "volume", repair=True)[2]
    assert [peer.forgot_requests for peer in Identity.load(tmp_path / "volume").peers] == [True, True]


def test_two_repairs_keep_what_the_first_one_kept(tmp_path: Path) -> None:
    places = requests_volume(tmp_path / "volume", committed=True)
    flip(tmp_path / "volume", places[1] + 40)
    checked(tmp_path / "volume", repair=True)
    writer = Writer(Volume.open(tmp_path / "volume", counting_seams()))
    inode = writer.create(b"b")
    damaged = writer.volume.journal.size_bytes
    for number in (6, 7):
        writer.write(inode, 0, b"x", b"request%d" % number)
    writer.volume.abandon()
    flip(tmp_path / "volume", damaged + 40)
    checked(tmp_path / "volume", repair=True)
    volume = Volume.open(tmp_path / "volume", counting_seams())
    assert set(volume.requests_done) == {b"request%d" % number for number in (0, 2, 3, 4, 5, 7)}
    volume.close()
