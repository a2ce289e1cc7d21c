"""Access control lists: their format, what a mode and a list say of each other, and inheritance.

The lists are those of acl(5); what a kernel would do was looked up there.
"""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import OperationFailed
from fusemirror.operations import acl
from fusemirror.operations.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, AclEntry

NOBODY = 0xFFFFFFFF

permissions = st.integers(0, 7)
identities = st.integers(0, 0xFFFFFFFE)
modes = st.integers(0, 0o7777)


def single(tag: int, bits: int) -> AclEntry:
    return AclEntry(tag, bits, NOBODY)


@st.composite
def lists(draw: st.DrawFn) -> Acl:
    """Valid lists: the three required entries, any named ones, and a mask where it must or may be."""
    named = draw(st.lists(st.tuples(st.sampled_from((USER, GROUP)), permissions, identities), max_size=5))
    with_mask = bool(named) or draw(st.booleans())
    entries = [single(tag, draw(permissions)) for tag in (USER_OBJ, GROUP_OBJ, OTHER)]
    entries += [AclEntry(*fields) for fields in named]
    entries += [single(MASK, draw(permissions))] * with_mask
    return sorted(entries)


def bits_of(entries: Acl) -> dict[int, int]:
    return {entry.tag: entry.permissions for entry in entries if entry.tag not in (USER, GROUP)}


# user::rw- user:lisa:rw- group::r-- group:toolies:rw- mask::r-- other::r-- (acl(5), "ACL TEXT FORMS")
LISA, TOOLIES = 1000, 2000
LONG_TEXT_FORM = [
    single(USER_OBJ, 6),
    AclEntry(USER, 6, LISA),
    single(GROUP_OBJ, 4),
    AclEntry(GROUP, 6, TOOLIES),
    single(MASK, 4),
    single(OTHER, 4),
]


def test_the_example_of_the_manual_shows_its_mask_as_the_group_bits() -> None:
    assert acl.parse(acl.encode(LONG_TEXT_FORM)) == LONG_TEXT_FORM
    assert acl.mode_of(LONG_TEXT_FORM, 0o100000) == 0o100644
    assert not acl.is_minimal(LONG_TEXT_FORM)


def test_chmod_moves_the_mask_of_the_example_and_leaves_the_group_entry() -> None:
    changed = bits_of(acl.after_chmod(LONG_TEXT_FORM, 0o100770))
    assert changed == {USER_OBJ: 7, GROUP_OBJ: 4, MASK: 7, OTHER: 0}


def test_chmod_moves_the_group_entry_where_there_is_no_mask() -> None:
    minimal = [single(USER_OBJ, 6), single(GROUP_OBJ, 4), single(OTHER, 4)]
    assert acl.is_minimal(minimal)
    assert bits_of(acl.after_chmod(minimal, 0o100751)) == {USER_OBJ: 7, GROUP_OBJ: 5, OTHER: 1}


def test_a_file_takes_from_the_default_list_only_what_its_creator_asked_for() -> None:
    default = [
        single(USER_OBJ, 7),
        AclEntry(USER, 7, LISA),
        single(GROUP_OBJ, 5),
        single(MASK, 7),
        single(OTHER, 5),
    ]
    access = acl.inherited(default, 0o100640)
    assert bits_of(access) == {USER_OBJ: 6, GROUP_OBJ: 5, MASK: 4, OTHER: 0}
    assert AclEntry(USER, 7, LISA) in access, "named entries are limited by the mask alone"
    assert acl.mode_of(access, 0o100640) == 0o100640


def test_a_minimal_default_list_limits_the_group_entry_itself() -> None:
    default = [single(USER_OBJ, 7), single(GROUP_OBJ, 5), single(OTHER, 0)]
    assert bits_of(acl.inherited(default, 0o100666)) == {USER_OBJ: 6, GROUP_OBJ: 4, OTHER: 0}


@given(entries=lists())
def test_a_list_survives_the_way_through_its_bytes(entries: Acl) -> None:
    encoded = acl.encode(entries)
    assert len(encoded) == 4 + 8 * len(entries)
    assert acl.parse(encoded) == entries


@given(entries=lists(), mode=modes)
def test_after_chmod_the_list_shows_the_mode(entries: Acl, mode: int) -> None:
    changed = acl.after_chmod(entries, mode)
    assert acl.mode_of(changed, mode) == mode
    assert [entry._replace(permissions=0) for entry in changed] == [
        entry._replace(permissions=0) for entry in entries
    ]
    assert acl.parse(acl.encode(changed)) == changed


@given(entries=lists(), mode=modes)
def test_a_mode_keeps_what_no_list_speaks_of(entries: Acl, mode: int) -> None:
    shown = acl.mode_of(entries, mode)
    assert shown & ~0o777 == mode & ~0o777
    assert acl.mode_of(entries, shown) == shown


@given(entries=lists(), mode=modes)
def test_an_inherited_list_gives_nobody_more_than_the_default_or_the_mode(entries: Acl, mode: int) -> None:
    access = acl.inherited(entries, mode)
    assert all(new.permissions & ~old.permissions == 0 for new, old in zip(access, entries, strict=True))
    assert acl.mode_of(access, 0) & ~mode & 0o777 == 0
    assert acl.parse(acl.encode(access)) == access


def refused(value: bytes) -> bool:
    try:
        acl.parse(value)
    except OperationFailed as error:
        if error.errno != errno.EINVAL:
            raise
        return True
    return False


HEADER = struct.pack("<I", 2)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x02\x00\x00",
        HEADER,
        struct.pack("<I", 1) + acl.encode(LONG_TEXT_FORM)[4:],
        acl.encode(LONG_TEXT_FORM)[:-1],
        acl.encode(LONG_TEXT_FORM) + b"\x00",
        acl.encode([single(USER_OBJ, 6), single(GROUP_OBJ, 4)]),
        acl.encode([single(GROUP_OBJ, 4), single(OTHER, 4)]),
        acl.encode([single(USER_OBJ, 6), single(OTHER, 4)]),
        acl.encode([*LONG_TEXT_FORM, single(USER_OBJ, 6)]),
        acl.encode([*LONG_TEXT_FORM, single(MASK, 6)]),
        acl.encode([entry for entry in LONG_TEXT_FORM if entry.tag != MASK]),
        acl.encode([*LONG_TEXT_FORM, single(0x40, 4)]),
        acl.encode([*LONG_TEXT_FORM[:-1], single(OTHER, 8)]),
    ],
    ids=[
        "nothing",
        "half a header",
        "no entries",
        "another version",
        "cut",
        "too long",
        "no other",
        "no user",
        "no group",
        "two users",
        "two masks",
        "named without a mask",
        "unknown tag",
        "permission above seven",
    ],
)
def test_an_invalid_list_is_refused(value: bytes) -> None:
    assert refused(value)


@given(value=st.one_of(st.binary(), st.binary().map(lambda rest: HEADER + rest)))
def test_any_bytes_are_a_list_or_refused(value: bytes) -> None:
    if not refused(value):
        assert acl.encode(acl.parse(value)) == value


@given(
    value=st.lists(
        st.tuples(st.sampled_from((1, 2, 4, 8, 16, 32, 64)), st.integers(0, 8), identities), max_size=6
    )
)
def test_what_is_accepted_can_always_be_shown_as_a_mode(value: list[tuple[int, int, int]]) -> None:
    encoded = acl.encode([AclEntry(*fields) for fields in value])
    if not refused(encoded):
        assert 0 <= acl.mode_of(acl.parse(encoded), 0) <= 0o777
