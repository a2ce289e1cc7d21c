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


def test_every_paragraph_that_the_code_cites_stands_on_it_too() -> None:
    text = (CHECKOUT / "fusemirror" / "README.md").read_text(encoding="utf-8")
    told: set[int] = set()
    for line in re.findall(r"^\| (0\d{3}[\d, to]*) \|", text, re.M):
        for part in line.split(", "):
            first, _, last = part.partition(" to ")
            told.update(range(int(first), int(last or first) + 1))
    for path in (CHECKOUT / "fusemirror").rglob("*.py"):
        cited = re.findall(r"\[(00\d\d)\](?:-\[(00\d\d)\])?", path.read_text(encoding="utf-8"))
        for first, last in cited:
            assert {*range(int(first), int(last or first) + 1)} <= told, (path, first, last)
