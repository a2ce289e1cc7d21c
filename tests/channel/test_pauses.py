"""Pauses: ever longer, each kind up to its limit, until what they are for has gone well."""

from fusemirror import limits
from fusemirror.channel.pauses import Pauses

SOON = limits.RECONNECT_MAX_S / 2


def test_dials_follow_each_other_ever_more_slowly_until_one_succeeds() -> None:
    pauses = Pauses()
    found = []
    for _ in range(8):
        found.append(pauses.dial_s)
        pauses.dialed_in_vain()
    assert found[:3] == [limits.RECONNECT_FIRST_S * factor for factor in (1, 2, 4)]
    assert found[-1] == limits.RECONNECT_MAX_S
    pauses.dial_soon()
    assert pauses.dial_s == limits.RECONNECT_FIRST_S


def test_the_first_link_that_ends_at_once_is_followed_at_once_and_the_next_ones_are_not() -> None:
    pauses = Pauses()
    found = [pauses.after_link(SOON) for _ in range(8)]
    assert found[:3] == [0.0, limits.RECONNECT_FIRST_S, 2 * limits.RECONNECT_FIRST_S]
    assert found[-1] == limits.RECONNECT_MAX_S
    assert pauses.after_link(limits.RECONNECT_MAX_S) == 0.0, "it lasted"
    assert pauses.after_link(SOON) == 0.0


def test_links_that_end_by_a_bad_message_rest_longer_until_one_has_been_calm() -> None:
    pauses = Pauses()
    found = [pauses.after_refused_link(SOON) for _ in range(12)]
    assert found[:3] == [limits.RECONNECT_MAX_S * factor for factor in (1, 2, 4)]
    assert found[-1] == limits.REFUSED_REST_MAX_S
    lasted_s = limits.REFUSED_REST_MAX_S
    assert pauses.after_refused_link(lasted_s) == limits.REFUSED_REST_MAX_S, "not long enough"
    assert pauses.after_refused_link(3 * lasted_s) == limits.RECONNECT_MAX_S
