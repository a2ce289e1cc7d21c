"""What others chose is shown in one line that does nothing to a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.printable import counted, printable, printable_all


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name, größe 文件", "plain name, größe 文件"),
        ("\x1b]0;owned\a\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("a\nname: normal\r\t", r"a\nname: normal\r\t"),
        ("\x9b31m\x85", r"\x9b31m\x85"),  # C1: control sequence introducer, next line
        ("gpj.\u202eexe\u2066\u200f", r"gpj.\u202eexe\u2066\u200f"),
        ("\u2028\u2029\ufeff\U000e0041", r"\u2028\u2029\ufeff\U000e0041"),
        (b"caf\xc3\xa9 \xff\x1b", r"café \xff\x1b"),
        ("\udcff\ud800", r"\xff\ud800"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_is_no_visible_character_is_escaped(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)) | st.binary())
def test_nothing_but_visible_characters_and_spaces_is_left(text: str | bytes) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown
    shown.encode()


def test_an_answer_is_escaped_as_a_whole() -> None:
    answer = {"path": "/\x1b", "kinds": ["a\nb"], "size": 3, "was": None, "by\x07": {"x": "\u202e"}}
    assert printable_all(answer) == {
        "path": r"/\x1b",
        "kinds": [r"a\nb"],
        "size": 3,
        "was": None,
        r"by\x07": {"x": r"\u202e"},
    }


def test_one_is_no_plural() -> None:
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(number, "name differs", "names differ") for number in (1, 2)] == [
        "1 name differs",
        "2 names differ",
    ]
