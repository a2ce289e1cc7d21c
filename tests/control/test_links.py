"""The link that lives, and what stays known of those that ended."""

import trio
from trio.testing import MockClock

from fusemirror.control.links import Links
from tests.control.conftest import make_links


async def test_a_link_ends_once_and_another_that_is_over_ends_nothing(autojump_clock: MockClock) -> None:
    first, _ = await make_links()
    second, _ = await make_links()
    links = Links()
    links.begin(first)
    assert not links.ended.is_set()
    assert links.end(first)
    assert links.ended.is_set()
    links.begin(second)
    assert not links.end(first), "it is over already"
    assert links.link is second
    assert not links.ended.is_set()


async def test_the_last_contact_is_known_from_the_first_link_on(autojump_clock: MockClock) -> None:
    link, _ = await make_links()
    links = Links()
    assert links.last_contact_seconds() is None
    links.begin(link)
    assert links.last_contact_seconds() == 0
    links.end(link)
    await trio.sleep(7)
    assert links.last_contact_seconds() == 7


async def test_bytes_of_a_link_that_ended_stay_counted(autojump_clock: MockClock) -> None:
    link, _ = await make_links()
    links = Links()
    links.begin(link)
    lived = links.traffic.of_paths(link)
    links.end(link)
    assert links.traffic.of_paths(None) == lived
