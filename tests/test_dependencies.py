"""What is installed: ranges for users in pyproject.toml, one hashed version of each for developers."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RANGES = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(each for extra in PROJECT["project"]["optional-dependencies"].values() for each in extra),
]
LOCKED = re.findall(
    r"^([a-z0-9-]+)==(\S+).*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    (ROOT / ".ci" / "requirements.txt").read_text(),
    re.MULTILINE,
)
VERSIONS = {name: version for name, version, _ in LOCKED}


def test_every_locked_package_has_hashes() -> None:
    lines = (ROOT / ".ci" / "requirements.txt").read_text().splitlines()
    assert sum("==" in line for line in lines if not line.startswith("#")) == len(LOCKED) > 20


@pytest.mark.parametrize("text", RANGES)
def test_the_locked_version_is_in_the_range_that_users_get(text: str) -> None:
    wanted = Requirement(text)
    assert wanted.specifier.contains(VERSIONS[canonicalize_name(wanted.name)]), ".ci/requirements.txt is old"


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"])
def test_a_range_has_both_ends(text: str) -> None:
    operators = {each.operator for each in Requirement(text).specifier}
    assert operators == {">=", "<"}


def part(name: str) -> set[str]:
    """The packages that a file of .ci/ names, which has them to the letter as requirements.txt has them."""
    whole, text = ((ROOT / ".ci" / each).read_text() for each in ("requirements.txt", name))
    entries = re.findall(r"^[a-z0-9-]+==.*\\\n(?:    --hash=.*\n)+", text, re.MULTILINE)
    assert "".join(line for line in text.splitlines(True) if not line.startswith("#")) == "".join(entries)
    assert all(entry in whole for entry in entries)
    return {entry.partition("==")[0] for entry in entries}


def test_what_a_host_runs_is_a_part_of_what_developers_have() -> None:
    """Every package of the project and its witness, and nothing of the tests."""
    names = part("requirements-run.txt")
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["witness"]]
    assert {canonicalize_name(Requirement(text).name) for text in wanted} <= names
    assert not names & {"pytest", "hypothesis", "mypy", "ruff", "setuptools", "pip"}


def test_what_builds_is_locked_and_nothing_else_is_fetched_to_build() -> None:
    """pip would fetch the newest of it by itself, without a look at hashes."""
    wanted = PROJECT["project"]["optional-dependencies"]["build"]
    assert {canonicalize_name(Requirement(text).name) for text in wanted} <= part("requirements-build.txt")
    for script in ("install", "setup-environment"):
        text = (ROOT / "bin" / script).read_text()
        building = re.findall(r"pip wheel .*|-m pip install .*", text)
        assert building
        assert all("--no-build-isolation" in line for line in building), script
