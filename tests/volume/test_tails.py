"""Torn tails and damage, over records that are one character each."""

import pytest

from fusemirror.volume.tails import Found, ReadAt, Whole, is_damage, records_behind


def reader(content: str, durable: int = 0) -> tuple[int, ReadAt]:
    """Digits are whole records with that number, all else is none; all say the same of what was durable."""

    def read_at(offset: int) -> Whole | None:
        character = content[offset]
        return Whole(int(character), durable, offset + 1) if character.isdigit() else None

    return len(content), read_at


@pytest.mark.parametrize(
    ("content", "killed", "power"),
    [
        ("12x", False, False),
        ("12xxxx", False, False),
        ("12x4", True, True),
        ("12x2", False, False),  # an older record of the file
        ("12x1x2x", False, False),
        ("12xx2x3", True, True),
    ],
)
def test_a_higher_number_behind_a_bad_place_is_damage(content: str, killed: bool, power: bool) -> None:
    size, read_at = reader(content, durable=3)
    assert is_damage(read_at, size, 2, 2, lost_power=False) is killed
    assert is_damage(read_at, size, 2, 2, lost_power=True) is power


@pytest.mark.parametrize(("durable", "expected"), [(0, False), (2, False), (3, True), (9, True)])
def test_after_a_power_cut_the_record_must_have_been_durable(durable: int, expected: bool) -> None:
    size, read_at = reader("12x4", durable=durable)
    assert is_damage(read_at, size, 2, 2, lost_power=True) is expected


def test_records_behind_come_in_their_order_and_numbers_grow() -> None:
    size, read_at = reader("1xx35x4x7")
    found = list(records_behind(read_at, size, 1, 1))
    assert found == [Found(3, Whole(3, 0, 4)), Found(4, Whole(5, 0, 5)), Found(8, Whole(7, 0, 9))]
