"""SECURITY.md names the tests that hold its lines: each of them is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())


def test_every_line_names_a_test() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    lines = [row for row in rows if not row.startswith(("| line", "| ---"))]
    assert len(lines) > 15
    assert all("::test_" in line for line in lines)


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_the_test_is_there(path: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / path).read_text()
