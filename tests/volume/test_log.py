"""What journal and staged requests share: sealed records, whole headers, and the end of a file."""

from functools import partial
from pathlib import Path

import pytest

from fusemirror.errors import VolumeDamaged
from fusemirror.seams import Seams
from fusemirror.volume.log import (
    CHECKSUM_BYTES,
    cut_torn_tail,
    in_order,
    is_checked,
    is_sealed,
    make_file,
    seal,
    with_checksum,
)
from fusemirror.volume.tails import Whole

SEED = 7
BODY_BYTES = 8
RECORD_BYTES = CHECKSUM_BYTES + BODY_BYTES


def record(number: int, seed: int = SEED) -> bytes:
    return seal(number.to_bytes(BODY_BYTES, "little"), seed)


def whole_at(content: bytes, start: int) -> Whole | None:
    end = start + RECORD_BYTES
    if end > len(content) or not is_sealed(memoryview(content), start, end, SEED):
        return None
    number = int.from_bytes(content[start + CHECKSUM_BYTES : end], "little")
    return Whole(number, 0, end)


def damaged(path: Path, offset: int) -> VolumeDamaged:
    return VolumeDamaged(path.parent, f"{path.name} at byte {offset}")


def cut(path: Path, bad: int, last: int, *, may_be_torn: bool = True, lost_power: bool = False) -> int:
    content = path.read_bytes()
    return cut_torn_tail(
        path,
        len(content),
        partial(whole_at, content),
        bad=bad,
        last=last,
        may_be_torn=may_be_torn,
        lost_power=lost_power,
        damaged=damaged,
    )


def test_a_record_counts_with_the_seed_of_its_file_only() -> None:
    assert whole_at(record(1), 0) == Whole(1, 0, RECORD_BYTES)
    assert whole_at(record(1, SEED + 1), 0) is None
    assert whole_at(record(1)[:-1] + b"x", 0) is None


def test_a_header_is_whole_or_none(tmp_path: Path) -> None:
    header = with_checksum(b"magic and so on")
    make_file(tmp_path / "log", header, Seams())
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    content = (tmp_path / "log").read_bytes()
    assert is_checked(content)
    assert not any(is_checked(content[:size]) for size in range(len(content)))


def test_records_are_read_while_their_numbers_grow() -> None:
    content = record(1) + record(4) + record(4) + record(9)
    assert [found.record.number for found in in_order(partial(whole_at, content), 0, 0)] == [1, 4]
    assert list(in_order(partial(whole_at, content), 0, 1)) == []


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1) + record(2)[:-3])
    assert cut(path, RECORD_BYTES, 1) == RECORD_BYTES - 3
    assert path.read_bytes() == record(1)
    assert cut(path, RECORD_BYTES, 1) == 0


@pytest.mark.parametrize("may_be_torn", [False, True])
def test_what_is_no_torn_tail_is_damage(tmp_path: Path, may_be_torn: bool) -> None:
    path = tmp_path / "log"
    content = record(1) + bytes(RECORD_BYTES) + (record(3) if may_be_torn else b"")
    path.write_bytes(content)
    with pytest.raises(VolumeDamaged, match=f"at byte {RECORD_BYTES}"):
        cut(path, RECORD_BYTES, 1, may_be_torn=may_be_torn)
    assert path.read_bytes() == content


def test_after_a_power_cut_what_was_never_durable_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1) + bytes(RECORD_BYTES) + record(3))
    assert cut(path, RECORD_BYTES, 1, lost_power=True) == 2 * RECORD_BYTES
