"""Requests on the admin socket: what each may hold, and that nothing else gets through."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.admin import requests
from fusemirror.errors import UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
commands = st.sampled_from(["wait", "verify", "resync", "takeover", "resolve", "set", "reserve", "release"])
fields = st.sampled_from(
    "for timeout keep rate paused dry_run force values inode path preempt".split()  # noqa: SIM905
)


def parse(**asked: Any) -> requests.Request:
    return requests.parse(json.dumps(asked).encode())


def test_what_the_commands_send_is_taken() -> None:
    assert parse(command="wait", **{"for": "normal"}, timeout=5) == requests.Wait("normal", 5.0)
    assert parse(command="takeover", force=True) == requests.Takeover(force=True)
    assert parse(command="resync") == requests.Resync(rate=None, paused=None)


def test_a_path_that_is_not_utf8_comes_as_its_bytes() -> None:
    reserve = parse(command="reserve", inode=2, path="caf\udce9")
    assert isinstance(reserve, requests.Reserve)
    assert reserve.path_bytes == b"caf\xe9"


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(UsageError, match=r"'resync' has a wrong argument: .*`int` <= .*rate"):
        parse(command="resync", rate=1 << 50)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(received: bytes) -> None:
    with suppress(UsageError):
        requests.parse(received)


@given(commands, st.dictionaries(fields, json_values, max_size=3))
def test_no_values_do_harm(command: str, arguments: dict[str, Any]) -> None:
    with suppress(UsageError):
        asked = parse(command=command, **arguments)
        if isinstance(asked, requests.Wait):
            assert 0 <= asked.timeout <= requests.WAIT_S_MAX
        elif isinstance(asked, requests.Reserve):
            assert asked.path_bytes.decode("utf-8", "surrogateescape") == asked.path
