"""Authority: one row for each combination of facts, and the promises that the table has to keep."""

import itertools
import logging
from typing import cast

import pytest
import trio
import trio.testing

from fusemirror.channel.link import Link
from fusemirror.errors import ChangesRefused, NotPermitted, RoleChanged
from fusemirror.limits import KERNEL_DELAY_S
from fusemirror.mirror.authority import RIGHTS, Acknowledged, Authority, Left, Making, Shown, rights_at
from fusemirror.mirror.states import PRIMARY_STANDINGS, PrimaryEvent, PrimaryState, Standing
from fusemirror.settings import Fence, OnDegraded
from fusemirror.volume.volume import Volume
from fusemirror.witness.interface import Witness
from fusemirror.witness.quorum import QuorumGrant
from tests.mirror.replicas import FakeLink, FakeSession, replica_in

PATIENCE_S = 30
FACTS = list(itertools.product(Standing, (False, True), (False, True)))


def authority_in(
    volume: Volume, state: PrimaryState, *, permitted: bool = True, fence: Fence = Fence.NEVER
) -> tuple[Authority, FakeSession]:
    replica, session = replica_in(volume, state)
    quorum = QuorumGrant() if permitted else QuorumGrant(cast(Witness, object()))
    return Authority((replica,), quorum, fence, PATIENCE_S), session


# --- the table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("standing", "permitted", "fenced"), FACTS)
def test_exactly_one_row_decides(standing: Standing, permitted: bool, fenced: bool) -> None:
    facts = (standing, permitted, fenced)
    matching = [
        rights
        for columns, rights in RIGHTS
        if all(expected is None or expected == fact for expected, fact in zip(columns, facts, strict=True))
    ]
    assert matching == [rights_at(standing, permitted=permitted, fenced=fenced)]


@pytest.mark.parametrize(("standing", "permitted", "fenced"), FACTS)
def test_what_the_table_promises(standing: Standing, permitted: bool, fenced: bool) -> None:
    rights = rights_at(standing, permitted=permitted, fenced=fenced)
    alone = rights.acknowledged is Acknowledged.ALONE
    if not permitted:
        assert not alone, "two hosts would acknowledge alone"
        assert rights.shown is not Shown.ALWAYS, "the other host may be the primary"
    if standing >= Standing.HOLDS:
        assert rights.acknowledged is Acknowledged.BY_BACKUP, "it may still read what was before (G2)"
        assert rights.left is Left.WAIT
    else:
        assert rights.left is not Left.WAIT, "nobody else acknowledges what is under way"
    if fenced:
        assert (rights.making is Making.MADE) == (standing is Standing.STREAMS)
        assert rights.left is not Left.IN_A_LINE_OF_THEIR_OWN
    else:
        assert rights.making is Making.MADE
    # What `fenced` and `admit` go by is the row with the permission.
    assert rights.making is rights_at(standing, permitted=True, fenced=fenced).making


def test_every_state_has_a_standing() -> None:
    assert set(PRIMARY_STANDINGS) == set(PrimaryState)


# --- the row that holds now -----------------------------------------------------------------------------


def test_the_strongest_replica_counts(volume: Volume) -> None:
    gone, _ = replica_in(volume, PrimaryState.ALONE)
    there, _ = replica_in(volume, PrimaryState.NORMAL)
    authority = Authority((gone, there), QuorumGrant(), Fence.DATA, PATIENCE_S)
    seen = [authority.fenced]
    assert not authority.acknowledges_alone
    there.go(PrimaryEvent.LOST, None, is_meant=True)
    authority.look()
    assert [*seen, authority.fenced] == [False, True]


def test_a_permission_that_is_given_back_counts_at_once(volume: Volume) -> None:
    authority, _ = authority_in(volume, PrimaryState.ALONE, permitted=False)
    for held in (True, False):
        authority.quorum.held = held
        assert (authority.acknowledges_alone, authority.entitled) == (held, held)


@pytest.mark.parametrize("state", [PrimaryState.NORMAL, PrimaryState.HOLDING])
async def test_a_lease_entitles_for_as_long_as_it_lasts(
    volume: Volume, state: PrimaryState, autojump_clock: trio.testing.MockClock
) -> None:
    replica, session = replica_in(volume, PrimaryState.NORMAL)
    authority = Authority((replica,), QuorumGrant(cast(Witness, object())), Fence.NEVER, PATIENCE_S)
    session.heartbeat.lease_until = trio.current_time() + 5
    if state is PrimaryState.HOLDING:
        replica.lost("cut", [], permitted=False)
        replica.go(PrimaryEvent.LOST, "cut", is_meant=True)
        authority.look()
    seen = [authority.entitled]
    assert authority.shows_for_s(60) == pytest.approx(5 - KERNEL_DELAY_S)
    await trio.sleep(5)
    assert [*seen, authority.entitled] == [True, False]
    assert authority.shows_for_s(60) == 0


async def test_a_lease_entitles_nobody_who_is_apart(volume: Volume) -> None:
    authority, session = authority_in(volume, PrimaryState.ALONE, permitted=False)
    session.heartbeat.lease_until = trio.current_time() + 5
    assert not authority.entitled


# --- waiting --------------------------------------------------------------------------------------------


@pytest.mark.expects_warnings
async def test_who_waits_too_long_for_the_witness_is_told_so(
    volume: Volume, autojump_clock: trio.testing.MockClock
) -> None:
    authority, _ = authority_in(volume, PrimaryState.ALONE, permitted=False)
    began = trio.current_time()
    with pytest.raises(NotPermitted):
        await authority.wait_entitled()
    assert trio.current_time() - began == PATIENCE_S


@pytest.mark.expects_warnings
async def test_a_fence_refuses_at_once_where_the_backup_is_away(volume: Volume) -> None:
    authority, _ = authority_in(volume, PrimaryState.ALONE, fence=Fence.DATA)
    with pytest.raises(ChangesRefused):
        await authority.admit()


async def test_a_fence_lets_changes_wait_for_a_backup_that_comes_back(volume: Volume) -> None:
    replica, _ = replica_in(volume, PrimaryState.REJOINING)
    authority = Authority((replica,), QuorumGrant(), Fence.DATA, PATIENCE_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(authority.admit)
        await trio.testing.wait_all_tasks_blocked()
        assert authority.fenced
        replica.go(PrimaryEvent.CAUGHT_UP, None, is_meant=True)
        authority.look()


async def test_a_fence_that_is_taken_away_lets_changes_pass(volume: Volume) -> None:
    authority, _ = authority_in(volume, PrimaryState.HOLDING, fence=Fence.DATA)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(authority.admit)
        await trio.testing.wait_all_tasks_blocked()
        authority.configure(Fence.NEVER, PATIENCE_S, OnDegraded.WAIT)


async def test_who_waits_hears_that_the_role_changed(volume: Volume) -> None:
    authority, _ = authority_in(volume, PrimaryState.HOLDING, fence=Fence.DATA)
    told: list[str] = []

    async def waits(name: str) -> None:
        with pytest.raises(RoleChanged):
            await getattr(authority, name)()
        told.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("admit", "until_decided"):
            nursery.start_soon(waits, name)
        await trio.testing.wait_all_tasks_blocked()
        authority.retire()
    assert sorted(told) == ["admit", "until_decided"]


@pytest.mark.expects_warnings
def test_the_log_says_it_once_for_each_time_apart(volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    replica, _ = replica_in(volume, PrimaryState.ALONE)
    authority = Authority((replica,), QuorumGrant(), Fence.NEVER, PATIENCE_S)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            authority.not_permitted()
        assert len(caplog.records) == 1
        replica.linked(cast(Link, FakeLink(FakeSession())))
        for event in (PrimaryEvent.LINKED, PrimaryEvent.CAUGHT_UP):
            replica.go(event, None, is_meant=True)
        authority.look()
        authority.not_permitted()
    assert len(caplog.records) == 2


async def test_the_witness_is_wanted_once_the_lease_is_over(volume: Volume) -> None:
    for state, is_wanted in ((PrimaryState.ALONE, True), (PrimaryState.NORMAL, False)):
        authority, _ = authority_in(volume, state, permitted=False)
        assert authority.wants_quorum is is_wanted
    authority.quorum.held = True
    assert not authority.wants_quorum
