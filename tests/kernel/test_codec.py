"""The kernel's protocol: against its own header, back and forth, and against bytes that are no request."""

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import MalformedRequest
from fusemirror.kernel import codec
from fusemirror.kernel.codec import Layout, Opcode

LAYOUTS: dict[str, Layout[Any]] = {
    name: value for name, value in vars(codec).items() if isinstance(value, Layout)
}
STRUCTURES = {
    "ATTR": "fuse_attr",
    "INIT_FLAGS2": None,
    "LK_FLAGS": None,
    "DIRENT": "fuse_dirent",
    "KSTATFS": "fuse_kstatfs",
}
"""Names of structures that are not `fuse_` and the layout's name."""
ENDS_BEFORE = {
    "ENTRY_OUT": "attr",
    "ATTR_OUT": "attr",
    "SETXATTR_IN": "setxattr_flags",
    "INIT_IN": "flags2",
    "DIRENT": "name",
    "LK_IN": "lk",
}
"""Layouts that end before a field of their structure."""

NEWER = {"STATX_IN": 24, "STATX_OUT": 288}
"""Structures that Debian 12's header does not have, and how long they are (6.6 brought them)."""
NEWER_NUMBERS = {"FUSE_STATX": 52}


def numbers() -> dict[str, int]:
    """Every number of the codec, by its name in the header."""
    found = {f"FUSE_{opcode.name}": int(opcode) for opcode in Opcode}
    for name, value in vars(codec).items():
        if isinstance(value, int) and name.startswith(("FATTR_", "FOPEN_")):
            found[name] = value
        elif isinstance(value, int) and name.startswith(("OPEN_", "WRITE_", "FSYNC_", "LK_")):
            found[f"FUSE_{name}"] = value
        elif isinstance(value, int) and name.startswith("INIT_"):
            found[name.replace("INIT_", "FUSE_") if name != "INIT_EXT" else "FUSE_INIT_EXT"] = value
    return found


def offsets(layout: Layout[Any]) -> dict[str, int]:
    """Where each field of a layout begins."""
    codes = [code for code in re.findall(r"\d*[a-zA-Z]", layout.format) if not code.endswith("x")]
    starts = [struct.calcsize("=" + "".join(codes[:index])) for index in range(len(codes))]
    return dict(zip((name.rstrip("_") for name in layout.kind._fields), starts, strict=True))


RENAMED = {"OPEN_OUT.padding": "OPEN_OUT_padding"}
INCLUDES = """
#include <linux/fuse.h>
#include <stddef.h>
#include <stdio.h>
#if FUSE_KERNEL_MINOR_VERSION >= 40
#define OPEN_OUT_padding backing_id
#else
#define OPEN_OUT_padding padding
#endif
"""
"""What newer headers have by another name: Debian 13's, for one."""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of linux/fuse.h: `size`, `size.field` and numbers by name."""
    if shutil.which("gcc") is None or not Path("/usr/include/linux/fuse.h").exists():
        pytest.skip("no gcc, or no linux/fuse.h: install gcc and linux-libc-dev")
    asked = {name: name for name in numbers().keys() - NEWER_NUMBERS.keys()}
    for name, layout in LAYOUTS.items():
        if name in NEWER:
            continue
        kind = STRUCTURES.get(name, f"fuse_{name.lower()}")
        if kind is None:
            continue
        end = ENDS_BEFORE.get(name)
        asked[name] = f"offsetof(struct {kind}, {end})" if end else f"sizeof(struct {kind})"
        for field in offsets(layout):
            renamed = RENAMED.get(f"{name}.{field}", field)
            asked[f"{name}.{field}"] = f"offsetof(struct {kind}, {renamed})"
    lines = [
        f'printf("%s %lld\\n", "{key}", (long long)({expression}));' for key, expression in asked.items()
    ]
    program = tmp_path_factory.mktemp("header") / "header"
    source = program.with_suffix(".c")
    source.write_text(INCLUDES + "int main(void) {" + "\n".join(lines) + "}")
    subprocess.run(["gcc", "-o", program, source], check=True, timeout=60)
    output = subprocess.run([program], check=True, timeout=60, capture_output=True, text=True).stdout
    return {key: int(value) for key, _, value in (line.partition(" ") for line in output.splitlines())}


def test_numbers_are_those_of_the_kernel(header: dict[str, int]) -> None:
    assert header | NEWER_NUMBERS | numbers() == header | NEWER_NUMBERS


def test_layouts_that_this_header_may_not_have_are_as_long_as_the_kernel_wants_them() -> None:
    """That their fields lie where the kernel looks, the mount tests show."""
    assert {name: LAYOUTS[name].size for name in NEWER} == NEWER


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - NEWER.keys() - {"INIT_FLAGS2", "LK_FLAGS"}))
def test_layouts_are_those_of_the_kernel(name: str, header: dict[str, int]) -> None:
    layout = LAYOUTS[name]
    assert layout.size == header[name]
    assert offsets(layout) == {field: header[f"{name}.{field}"] for field in offsets(layout)}


@given(st.data())
def test_what_is_packed_is_read_again(data: st.DataObject) -> None:
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    codes = re.findall(r"[a-zA-Z]", re.sub(r"\d+x", "", layout.format))
    bits = {"Q": (0, 64), "q": (-(1 << 63), 63), "I": (0, 32), "i": (-(1 << 31), 31), "H": (0, 16)}
    values = [data.draw(st.integers(bits[code][0], (1 << bits[code][1]) - 1)) for code in codes]
    before = data.draw(st.binary(max_size=9))
    packed = before + layout.pack(*values)
    assert tuple(layout.read(packed, len(before))) == tuple(values)
    with pytest.raises(MalformedRequest):
        layout.read(packed[:-1], len(before))


names = st.lists(st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"?")), min_size=1)


@given(names, st.binary(max_size=9))
def test_names_are_taken_out_and_what_follows_them_is_passed_over(found: list[bytes], rest: bytes) -> None:
    body = memoryview(b"12345678" + b"".join(name + b"\0" for name in found) + rest)
    assert codec.names_in(body, 8, len(found)) == found


def test_a_name_without_an_end_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="1 names where there should be 2"):
        codec.names_in(memoryview(b"one\0two"), 0, 2)


def test_data_that_ends_too_soon_is_refused() -> None:
    assert codec.data_in(memoryview(b"..abcd"), 2, 3) == b"abc"
    with pytest.raises(MalformedRequest, match="4 bytes of data where there should be 5"):
        codec.data_in(memoryview(b"..abcd"), 2, 5)


@given(st.lists(st.tuples(st.integers(1, 1 << 60), st.integers(1, 99)), max_size=9))
def test_a_batch_to_forget(asked: list[tuple[int, int]]) -> None:
    head = codec.BATCH_FORGET_IN.pack(len(asked), 0)
    body = head + b"".join(codec.FORGET_ONE.pack(*each) for each in asked)
    assert codec.forgotten_in(memoryview(body)) == asked
    if asked:
        with pytest.raises(MalformedRequest):
            codec.forgotten_in(memoryview(body[:-1]))


ATTR = tuple(range(7, 23))


@pytest.mark.parametrize(
    ("reply", "size"),
    [
        (codec.error_reply(5, 2), 16),
        (codec.empty_reply(5), 16),
        (codec.data_reply(5, b"abc"), 19),
        (codec.attr_reply(5, ATTR, 1.5), 16 + 104),
        (codec.entry_reply(5, codec.entry_fields(ATTR, 1.5, 0, 0)), 16 + 128),
        (codec.open_reply(5, 9, 1), 16 + 16),
        (codec.create_reply(5, codec.entry_fields(ATTR, 1.5, 0, 0), 9, 1), 16 + 144),
        (codec.write_reply(5, 4096), 16 + 8),
        (codec.xattr_size_reply(5, 4096), 16 + 8),
        (codec.statfs_reply(5, codec.Kstatfs(1, 2, 3, 4, 5, 6, 7, 8)), 16 + 80),
    ],
)
def test_replies_are_as_long_as_the_kernel_wants_them(reply: codec.FuseReply, size: int) -> None:
    data = b"".join(reply)
    found = codec.OUT_HEADER.read(data)
    assert (len(data), found.len, found.unique) == (size, size, 5)


@pytest.mark.parametrize("birth_ns", [None, 5_000_000_007])
def test_the_time_of_birth_is_told_where_it_is_known(birth_ns: int | None) -> None:
    fields = dict(zip(codec.Attr._fields, range(16), strict=True))
    attr = codec.Attr(**fields | {"rdev": 7 << 20 | 3 << 8 | 1})
    data = b"".join(codec.statx_reply(5, attr, 1.5, birth_ns))
    found = codec.STATX_OUT.read(data, codec.OUT_HEADER.size)
    assert (found.attr_valid, found.attr_valid_nsec) == (1, 500_000_000)
    assert (found.ino, found.size, found.blocks, found.mode, found.nlink) == (0, 1, 2, 9, 10)
    assert (found.atime, found.mtime, found.ctime) == (3, 4, 5)
    assert (found.rdev_major, found.rdev_minor) == (3, 7 << 8 | 1)
    told = bool(found.mask & codec.STATX_BTIME)
    assert (told, found.btime, found.btimensec) == ((True, 5, 7) if birth_ns else (False, 0, 0))


def test_a_lifetime_is_seconds_and_nanoseconds() -> None:
    out = codec.ATTR_OUT.read(b"".join(codec.attr_reply(5, ATTR, 1.5)), 16)
    assert (out.attr_valid, out.attr_valid_nsec) == (1, 500_000_000)
    entry = codec.ENTRY_OUT.read(b"".join(codec.entry_reply(5, codec.entry_fields(ATTR, 0.25, 2, 3))), 16)
    assert entry == (7, 3, 0, 2, 250_000_000, 0)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.integers(0, 9)), max_size=9))
def test_a_directory_is_read_again(listed: list[tuple[bytes, int]]) -> None:
    entries = [(name, (inode, *ATTR[1:]), number) for number, (name, inode) in enumerate(listed)]
    data = b"".join(
        codec.directory_entry(name, codec.entry_fields(attr, 0, 0, 0), number, 4)
        for name, attr, number in entries
    )
    assert len(data) % 8 == 0
    found = [(name, entry.nodeid, dirent.off) for name, entry, dirent in codec.directory_entries(data)]
    assert found == [(name, attr[0], number) for name, attr, number in entries]


def test_what_a_reply_hands_to_the_kernel() -> None:
    entry = codec.entry_fields(ATTR, 0, 0, 0)
    assert codec.handed_by(Opcode.LOOKUP, codec.entry_reply(5, entry)) == ([7], None, None)
    assert codec.handed_by(Opcode.LOOKUP, codec.entry_reply(5, (0, *entry[1:]))) == ([], None, None)
    assert codec.handed_by(Opcode.CREATE, codec.create_reply(5, entry, 9, 0)) == ([7], 9, None)
    assert codec.handed_by(Opcode.TMPFILE, codec.create_reply(5, entry, 9, 0)) == ([7], 9, None)
    assert codec.handed_by(Opcode.OPEN, codec.open_reply(5, 9, 0)) == ([], 9, None)
    assert codec.handed_by(Opcode.OPENDIR, codec.open_reply(5, 9, 0)) == ([], None, 9)
    assert codec.handed_by(Opcode.OPEN, codec.error_reply(5, 2)) == ([], None, None)
    assert codec.handed_by(Opcode.GETATTR, codec.attr_reply(5, ATTR, 0)) == ([], None, None)
    listed = b"".join(codec.directory_entry(name, entry, 1, 4) for name in (b".", b"..", b"a", b"b"))
    assert codec.handed_by(Opcode.READDIRPLUS, codec.data_reply(5, listed)) == ([7, 7], None, None)


@pytest.mark.parametrize(
    ("opcode", "body", "names"),
    [
        (Opcode.UNLINK, b"a\0", [(3, b"a")]),
        (Opcode.RMDIR, b"a\0", [(3, b"a")]),
        (Opcode.SYMLINK, b"a\0target\0", [(3, b"a")]),
        (Opcode.MKNOD, codec.MKNOD_IN.pack(0, 0, 0, 0) + b"a\0", [(3, b"a")]),
        (Opcode.MKDIR, codec.MKDIR_IN.pack(0, 0) + b"a\0", [(3, b"a")]),
        (Opcode.LINK, codec.LINK_IN.pack(9) + b"a\0", [(3, b"a")]),
        (Opcode.CREATE, codec.CREATE_IN.pack(0, 0, 0, 0) + b"a\0", [(3, b"a")]),
        (Opcode.RENAME, codec.RENAME_IN.pack(8) + b"a\0b\0", [(3, b"a"), (8, b"b")]),
        (Opcode.RENAME2, codec.RENAME2_IN.pack(8, 1, 0) + b"a\0b\0", [(3, b"a"), (8, b"b")]),
        (Opcode.WRITE, b"", []),
    ],
)
def test_which_names_a_request_changes(opcode: Opcode, body: bytes, names: list[tuple[int, bytes]]) -> None:
    header = codec.InHeader(40 + len(body), opcode, 2, 3, 0, 0, 0, 0, 0)
    assert codec.names_changed_by(header, memoryview(body)) == names
    assert codec.effects_of(opcode).names == len(names)


@pytest.mark.parametrize("of_flock", [False, True])
def test_a_lock_is_as_the_kernel_writes_it(of_flock: bool) -> None:
    body = struct.pack("=QQQQIIII", 7, 1 << 63, 10, (1 << 63) - 1, 1, 4711, int(of_flock), 0)
    wanted = codec.lock_in(memoryview(body))
    assert wanted == (7, 1 << 63, codec.FileLock(10, (1 << 63) - 1, 1, 4711), of_flock)
    (_, reply) = codec.lock_reply(5, wanted.lock)
    assert reply == body[16:40]
    with pytest.raises(MalformedRequest):
        codec.lock_in(memoryview(body[:-1]))


def test_a_notice_to_let_go_names_its_inodes() -> None:
    notice = codec.prune_notice([7, 1 << 40])
    assert codec.OUT_HEADER.read(notice) == (len(notice), codec.NOTIFY_PRUNE, 0)
    assert struct.unpack_from("=IIQQQ", notice, codec.OUT_HEADER.size) == (2, 0, 0, 7, 1 << 40)
    assert len(notice) == 16 + 16 + 16
