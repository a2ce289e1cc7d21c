"""The config file: what is taken, and that every way to be wrong is refused with its line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusemirror import settings
from fusemirror.errors import BadConfig, ConfigMissing, UsageError
from fusemirror.limits import GIB, KIB, MIB
from fusemirror.settings import Address, Settings, format_bytes, parse_address, parse_bytes

LEAST = {"name": "data", "volume": "/srv/data", "listen": "alpha:7000", "peer": "[fd00::2]:7000"}


def text_of(**values: Any) -> str:
    """A config file with these values written as JSON has them, which TOML shares for ours."""
    lines = [f'{key} = "{value}"' for key, value in LEAST.items() if key not in values]
    lines += [f"{key} = {value}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.toml"


def test_the_least_file_has_the_documented_defaults(path: Path) -> None:
    path.write_text(text_of())
    found = settings.load(path)
    assert (found.access, found.acknowledge, found.communication, found.fence) == (
        "routed",
        "sync",
        "lmdb",
        "never",
    )
    assert (found.io_timeout, found.peer_timeout, found.stale_reads) == (30.0, 5.0, False)
    assert (found.communication_capacity, found.resync_rate, found.log_level) == (GIB, 0, "info")
    assert found.listen_addresses == (Address("alpha", 7000),)
    assert found.peer_addresses == (Address("fd00::2", 7000),)


def test_addresses_may_be_a_list_and_one_stays_as_it_was_written(path: Path) -> None:
    path.write_text(text_of(listen='["alpha:7000", "[fd00::1]:7000"]'))
    found = settings.load(path)
    assert found.listen_addresses == (Address("alpha", 7000), Address("fd00::1", 7000))
    rendered = settings.render(found)
    assert 'listen = ["alpha:7000", "[fd00::1]:7000"]' in rendered
    assert 'peer = "[fd00::2]:7000"' in rendered
    path.write_text(rendered)
    assert settings.load(path) == found
    assert settings.changed(found, {"io_timeout": 7}).listen == found.listen


def test_the_members_of_a_witness_are_told_apart() -> None:
    chosen = settings.make(**LEAST, witness="http://a:1, http://[fd00::2]:2379/")
    assert chosen.witness_endpoints == ("http://a:1", "http://[fd00::2]:2379")
    assert settings.make(**LEAST).witness_endpoints == ()


def test_what_is_rendered_is_loaded_again_the_same(path: Path) -> None:
    chosen = settings.make(**LEAST, io_timeout=60, communication_capacity=100 * MIB + 1, stale_reads=True)
    path.write_text(settings.render(chosen))
    assert settings.load(path) == chosen


def test_a_rendered_file_explains_every_key() -> None:
    lines = settings.render(settings.make(**LEAST)).splitlines()
    for key, description in settings.descriptions().items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[place - 1] == f"# {description}"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"colour": '"red"'}, "colour: unknown key"),
        ({"peer_timeout": "0.1"}, "peer_timeout: must be at least 0.2"),
        ({"peer_timeout": "301"}, "peer_timeout: must be at most 300"),
        ({"peer_timeout": "nan"}, "peer_timeout"),
        ({"io_timeout": "inf"}, "io_timeout"),
        ({"io_timeout": "4.9"}, "io_timeout: must be at least peer_timeout"),
        ({"stale_reads": "1"}, "stale_reads: is a whole number where true or false is expected"),
        ({"peer": "[]"}, "peer: must be one address or a list of 1 to 8"),
        ({"peer": '["b:1", "b:1"]'}, "peer: names an address twice"),
        ({"peer": '["b:1", "b"]'}, "peer: `b` is not HOST:PORT"),
        ({"peer": "[7000]"}, "peer: is a whole number where text is expected"),
        ({"peer": "7000"}, "peer: is a whole number where text or a list is expected"),
        ({"volume": '"srv"'}, "volume: must be an absolute path"),
        ({"access": "1"}, "access: `1` is not one of routed, exclusive"),
        ({"tls": '[""]'}, "tls: is a list where true or false is expected"),
        ({"verify_rate": "0.5"}, "verify_rate: is a number where a whole number is expected"),
        ({"listen": '"alpha"'}, "listen: `alpha` is not HOST:PORT"),
        ({"peer": '"alpha:70000"'}, "peer: `alpha:70000` is not HOST:PORT"),
        ({"fence": '"status"'}, "fence: `status` is not one of never, data"),
        ({"access": '"both"'}, "access: `both` is not one of routed, exclusive"),
        ({"communication_capacity": '"1 GB"'}, "communication_capacity: `1 GB` is not a size"),
        ({"communication_capacity": '"1 MiB"'}, "communication_capacity: must be at least 16 MiB"),
        ({"name": '"other"'}, "name: `other` does not agree with the name of the file"),
        ({"witness": '"alpha:2379"'}, "witness: `alpha:2379` is not http://HOST:PORT"),
        ({"witness": '"http://a:1, http://b"'}, "witness: `b` is not HOST:PORT"),
        ({"fence": '"data"', "witness": '"http://a:1"'}, "witness: is for a host that goes on alone"),
        ({"resync_rate": "-1"}, "resync_rate: must be at least 0 B"),
        ({"resync_rate": f'"{"9" * 400} GiB"'}, "resync_rate: a size of more than 8 EiB"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_line(
    path: Path, values: dict[str, str], what: str
) -> None:
    text = "# a comment\n" + text_of(**values)
    path.write_text(text)
    with pytest.raises(BadConfig) as caught:
        settings.load(path)
    line = len(text.splitlines())
    assert str(caught.value).startswith(f"{path}, line {line}: {what}")


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="is not Unicode text"):
        settings.make(**LEAST, **{"host\ud800": 1})


def test_a_table_is_an_unknown_key_too(path: Path) -> None:
    path.write_text(text_of() + "\n[peers]\nalpha = 1\n")
    with pytest.raises(BadConfig, match="line 6: peers: unknown key"):
        settings.load(path)


def test_a_key_left_out_is_named(path: Path) -> None:
    path.write_text('name = "data"\n')
    with pytest.raises(BadConfig, match="volume: must be there"):
        settings.load(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [("name = \n", 1), ('name = "data"\n= 3\n', 2), ('name = "a"\nname = "b"\n', 2), ('a = "', 1)],
)
def test_a_syntax_error_is_refused_with_its_line(path: Path, text: str, line: int) -> None:
    path.write_text(text)
    with pytest.raises(BadConfig, match=f"line {line}: "):
        settings.load(path)


def test_a_file_that_is_not_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfig, match="not UTF-8"):
        settings.load(path)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[" * 2000, "nested too deeply"),
        ("1" * 5000, "limit"),
        ('"' + "x" * 70_000 + '"', "longer than 64 KiB"),
    ],
)
def test_what_would_take_too_much_is_refused(path: Path, value: str, what: str) -> None:
    path.write_text(text_of(stale_reads=value))
    with pytest.raises(BadConfig, match=what):
        settings.load(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_and_not_waited_for(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(BadConfig, match="and no file"):
        settings.load(path)


def test_a_link_to_a_file_is_followed(path: Path) -> None:
    path.with_name("elsewhere").write_text(text_of())
    path.symlink_to("elsewhere")
    assert settings.load(path).name == "data"


def test_a_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigMissing, match="fusemirror create data"):
        settings.load(path)


@given(st.text())
def test_no_text_raises_anything_but_bad_config(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "data.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(BadConfig):
        settings.load(path)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
KEYS = st.sampled_from(Settings.__struct_fields__)


@given(st.dictionaries(KEYS | st.text(), VALUES))
def test_no_values_raise_anything_but_a_usage_error(values: dict[str, Any]) -> None:
    try:
        made = settings.make(**{**LEAST, **values})
    except UsageError:
        return
    assert made.io_timeout >= made.peer_timeout


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".hidden", "a b", "a" * 65, "a\n"])
def test_what_could_leave_the_directory_is_no_name(name: str) -> None:
    with pytest.raises(UsageError):
        settings.config_path(Path("/etc"), name)


def test_addresses_are_read_back_as_written() -> None:
    for text in ("alpha:1", "10.0.0.1:65535", "[::1]:7000", "a-b.example:7000"):
        assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["", "alpha", ":1", "alpha:", "alpha:0", "::1:7000", "a b:1", "alpha:1x", "a:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1024", 1024), ("1 KiB", 1024), ("1.5MiB", 3 * MIB // 2), ("2 gib", 2 * GIB)],
)
def test_sizes_take_iec_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.integers(min_value=0, max_value=2**60))
@example(int(999.7 * KIB))
def test_a_formatted_size_is_near_the_size(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.06)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        settings.make(**LEAST).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["alpha", "h-1.example.org", "10.77.0.2:7801", "[fe80::1%eth0]:7801", "A_b"])
def test_hosts_are_called_by_names_and_addresses(name: str) -> None:
    assert settings.is_host_name(name)
    assert settings.nearest_host_name(name) == name


@given(st.text())
def test_every_host_name_is_a_directory_s_and_every_text_has_one_near(text: str) -> None:
    if settings.is_host_name(text):
        assert text not in ("", ".", "..")
        assert not set(text) & set("/\0\n\x1b ")
    assert settings.is_host_name(settings.nearest_host_name(text))
