"""Repair makes equal what verify found, by the version that is kept, and touches nothing else."""

import pytest
import trio
import trio.testing

from fusemirror.change import Row, Table
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import RefusedForSafety
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Write
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair
from tests.memory_network import MemoryNetwork
from tests.mirror.test_verify import DAMAGES, DEEP, FILE_BYTES, Damage, furnish

DAMAGES_HERE: dict[str, Damage] = {
    **{name: damage for name, (damage, _) in DAMAGES.items()},
    "an image that is missing": lambda volume, file: volume.images.remove(file),
    "a shorter image": lambda volume, file: volume.images.truncate(file, 3, 0),
}
HOSTS = ["primary", "backup"]


async def repair(pair: Pair, keep: str) -> dict[str, object]:
    """The report of a comparison that mends, asked for at the backup."""
    unit = pair.backup.unit
    await unit.comparisons.begin(keep)
    with trio.fail_after(60):
        while (report := await unit.comparisons.report())["running"]:
            await trio.testing.wait_all_tasks_blocked()
    assert report["failed"] is None
    return report


def names_and_content(volume: Volume) -> tuple[list[Row], dict[InodeNumber, bytes]]:
    """All rows, those of inodes without their times, and what programs read."""
    rows: list[Row] = []
    for table in Table:
        for key, value in volume.catalog.tables.rows(table, None, 10_000):
            rows.append((table, key, value[:40] + value[64:] if table is Table.INODES else value))
    content = {
        inode.number: volume.read(inode.number, 0, 1 << 30)
        for inode in volume.catalog.tables.inodes()
        if inode.is_regular
    }
    return rows, content


@pytest.mark.parametrize("damaged", HOSTS)
@pytest.mark.parametrize("damage", DAMAGES_HERE.values(), ids=DAMAGES_HERE)
async def test_what_differs_is_replaced_by_the_version_of_the_host_that_is_kept(
    pair: Pair, damage: Damage, damaged: str
) -> None:
    file = await furnish(pair)
    await furnish(pair, b"beside", 5)
    kept = "backup" if damaged == "primary" else "primary"
    before = names_and_content(getattr(pair, kept).unit.volume)
    damage(getattr(pair, damaged).unit.volume, file)
    report = await repair(pair, kept)
    assert (report["differences"], bool(report["repaired"])) == ([], True)
    for host in (pair.primary, pair.backup):
        assert names_and_content(host.unit.volume) == before
        assert host.unit.volume.catalog.derived.wrong() == 0
    assert (await repair(pair, ""))["differences"] == []


@pytest.mark.parametrize("keep", HOSTS)
async def test_where_nothing_differs_nothing_is_touched(pair: Pair, keep: str) -> None:
    await furnish(pair)
    number = pair.primary.unit.volume.number
    report = await repair(pair, keep)
    assert (report["differences"], report["repaired"]) == ([], 0)
    assert pair.primary.unit.volume.number == number


@pytest.mark.parametrize("keep", HOSTS)
async def test_what_programs_write_meanwhile_stands(pair: Pair, keep: str) -> None:
    file = await furnish(pair)
    damaged = pair.primary if keep == "backup" else pair.backup
    for region in range(3):
        damaged.unit.volume.images.write(file, region << 16, b"damage", 0)
    ended, written = trio.Event(), 0

    async def change() -> None:
        nonlocal written
        while not ended.is_set():
            await pair.primary.unit.perform(Write(file, DEEP), b"%08d" % written)
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        report = await repair(pair, keep)
        ended.set()
    assert report["differences"] == []
    for host in (pair.primary, pair.backup):
        content = host.unit.volume.read(file, 0, FILE_BYTES)
        assert content == b"x" * DEEP + b"%08d" % (written - 1) + b"x" * (FILE_BYTES - DEEP - 8)


async def test_a_comparison_goes_on_where_it_was_after_a_lost_link(
    pair: Pair, network: MemoryNetwork
) -> None:
    files = [await furnish(pair, b"%d" % index) for index in range(6)]
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    unit.comparisons.rate = FILE_BYTES  # a second for each: it is cut in the middle
    pair.backup.unit.volume.images.write(files[0], DEEP, b"!", 0)
    pair.backup.unit.volume.images.write(files[5], DEEP, b"!", 0)
    await unit.comparisons.begin()
    with trio.fail_after(60):
        while (await unit.comparisons.report())["images"] < 3:  # noqa: ASYNC110
            await trio.sleep(0.01)
        network.cut("alpha", "beta")
        await unit.host.links.ended.wait()
        network.heal("alpha", "beta")
        while (report := await unit.comparisons.report())["running"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert report["failed"] is None
    assert len(report["differences"]) == 2
    assert 6 <= report["images"] <= 7, "what was done before was done again"


async def test_a_comparison_waits_while_a_lost_link_is_not_yet_known_to_be_lost(pair: Pair) -> None:
    """A session that broke while something was sent: the mirror hears of it from its own task."""
    await furnish(pair)
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    assert unit.replica.stream is not None
    unit.replica.stream.session.close("broken in the middle of a message")
    await unit.comparisons.begin()
    with trio.fail_after(60):
        while (report := await unit.comparisons.report())["running"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert report["failed"] is None
    assert report["differences"] == []


async def test_a_comparison_keeps_its_rate(pair: Pair) -> None:
    await furnish(pair)
    assert isinstance(pair.primary.unit, PrimaryUnit)
    pair.primary.unit.comparisons.rate = FILE_BYTES
    started = trio.current_time()
    await repair(pair, "")
    assert trio.current_time() - started >= 0.9


async def test_another_comparison_than_the_one_under_way_is_refused(pair: Pair) -> None:
    await furnish(pair)
    await pair.primary.unit.comparisons.begin()
    for host in (pair.primary, pair.backup):
        await host.unit.comparisons.begin()
        with pytest.raises(RefusedForSafety, match="different options"):
            await host.unit.comparisons.begin("primary")
