"""Probe: tells a readable LMDB file from a damaged one, whatever reading that does to a process."""

from pathlib import Path

import pytest

from fusemirror.errors import VolumeError
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.probe import is_readable


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    Catalog.create(tmp_path / "catalog")
    return tmp_path / "catalog"


def test_a_whole_catalog_is_readable(catalog: Path) -> None:
    assert is_readable(catalog)


def test_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    assert not is_readable(tmp_path / "catalog")


@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 3 * 4096])
def test_one_that_was_cut_is_not(catalog: Path, size: int) -> None:
    """Beyond its second page this ends the process that reads it by SIGBUS."""
    with (catalog / "data.mdb").open("r+b") as file:
        file.truncate(size)
    assert not is_readable(catalog)


def test_a_probe_that_failed_itself_says_nothing_of_the_catalog(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsck --repair would set a good catalog aside."""
    monkeypatch.setattr("fusemirror.volume.probe.sys.executable", "/bin/false")
    with pytest.raises(VolumeError, match="catalog could not be looked at"):
        is_readable(catalog)


def test_nothing_is_imported_from_where_the_caller_stands(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look at a volume from a directory of a user's."""
    (tmp_path / "fusemirror").mkdir()
    (tmp_path / "fusemirror" / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert is_readable(catalog)
