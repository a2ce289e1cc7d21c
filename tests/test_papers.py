"""The pages for developers name what is there."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "fusemirror/README.md", "fusemirror/DECISIONS.md", "tests/README.md")
NAMED = re.compile(r"`([\w./]*(?:/|\.(?:py|md)))`")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_folders_that_a_page_names_are_there(page: str) -> None:
    named = NAMED.findall((CHECKOUT / page).read_text(encoding="utf-8"))
    assert named
    places = (CHECKOUT, (CHECKOUT / page).parent)
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing


def test_every_folder_of_the_package_stands_on_the_page_of_the_house() -> None:
    text = (CHECKOUT / "fusemirror" / "README.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (CHECKOUT / "fusemirror").glob("*/__init__.py")]
    assert len(folders) > 8
    assert not [folder for folder in folders if f"{folder}/" not in text]


FIRST_OF_FIGURES, FIRST_OF_EXAMPLES = 15, 35  # paragraphs; those between name the figures, and say no more
LAST = 83
STEPS = {*range(701, 730), 804, *range(813, 818), *range(832, 863)}  # numbers of Figs. 3 to 7, 11 to 15, 17


def _spans(text: str) -> set[int]:
    """The numbers of `text`, as in "0012 to 0014, 0072"."""
    spans = re.findall(r"(\d+)(?: to (\d+))?", text)
    return {number for first, last in spans for number in range(int(first), int(last or first) + 1)}


def _rows_of_the_source() -> list[list[str]]:
    """Of its one table: paragraphs, what they say, where it is, tests."""
    text = (CHECKOUT / "fusemirror" / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\| paragraph \| .*\n\| --- .*\n((?:\|.*\n)+)", text)
    assert table is not None
    return [line.strip("|").split("|") for line in table[1].splitlines()]


def test_every_paragraph_and_step_of_the_source_has_a_row_and_each_row_a_test() -> None:
    rows = _rows_of_the_source()
    assert all(len(row) == 4 for row in rows), "a row stands in another table, or is cut"
    told = set[int]().union(*(_spans(row[0]) for row in rows))
    assert {*range(6, FIRST_OF_FIGURES), *range(FIRST_OF_EXAMPLES, LAST + 1)} <= told
    steps = [_spans(found) for row in rows for found in re.findall(r"\(steps? ([^)]*)\)", row[1])]
    assert set[int]().union(*steps) >= STEPS
    for paragraphs, _, where, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert named, f"{paragraphs}: no test"
        for name in named:
            assert "def test_" in (CHECKOUT / name).read_text(encoding="utf-8"), (paragraphs, name)
        assert "nominal" not in where


def test_every_paragraph_that_the_code_cites_stands_on_it_too() -> None:
    told = set[int]().union(*(_spans(row[0]) for row in _rows_of_the_source()))
    for path in (CHECKOUT / "fusemirror").rglob("*.py"):
        cited = re.findall(r"\[(00\d\d)\](?:-\[(00\d\d)\])?", path.read_text(encoding="utf-8"))
        for first, last in cited:
            assert {*range(int(first), int(last or first) + 1)} <= told, (path, first, last)
