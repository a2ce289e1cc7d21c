"""Rows as rows, for who copies, compares or checks them."""

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemirror.change import Table
from fusemirror.volume.catalog import Catalog
from tests.volume.test_catalog import catalog

__all__ = ["catalog"]


@given(
    rows=st.dictionaries(st.binary(min_size=9, max_size=20), st.binary(max_size=20), max_size=20),
    limit=st.integers(1, 5),
    bounds=st.tuples(st.binary(max_size=20), st.binary(max_size=20)),
)
@settings(max_examples=30)
def test_rows_and_digests_cover_exactly_their_range(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[bytes, bytes],
    limit: int,
    bounds: tuple[bytes, bytes],
) -> None:
    directory = tmp_path_factory.mktemp("catalog") / "catalog"
    catalog = Catalog(directory, create=True)
    catalog.apply_rows([(Table.XATTRS, key, value) for key, value in rows.items()])
    found: list[tuple[bytes, bytes]] = []
    while page := catalog.tables.rows(Table.XATTRS, found[-1][0] if found else None, limit):
        assert len(page) <= limit
        found.extend(page)
    assert found == sorted(rows.items())
    expected = xxhash.xxh3_64()
    inside = [(key, value) for key, value in found if bounds[0] <= key <= bounds[1]]
    for key, value in inside:
        expected.update(len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little") + key + value)
    assert catalog.tables.digest(Table.XATTRS, *bounds) == (len(inside), expected.intdigest())
    catalog.close()
