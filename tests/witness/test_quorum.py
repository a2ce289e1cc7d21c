"""The rule by which a host may go on alone: each sentence of it, on a record in memory."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from fusemirror.errors import WitnessUnreachable
from fusemirror.witness.interface import Witness, WitnessRecord
from fusemirror.witness.quorum import QuorumGrant

ALPHA, BETA = "a" * 32, "b" * 32
Hook = Callable[[], Awaitable[None]]


class Stub(Witness):
    """One record. `before_swap` and `after_swap` run around what a swap does, and may raise."""

    def __init__(self) -> None:
        self.record = WitnessRecord("", 0)
        self.before_swap: list[Hook] = []
        self.after_swap: list[Hook] = []
        self.is_away = False

    async def look(self) -> WitnessRecord:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise WitnessUnreachable("it is away")
        return self.record

    async def swap(self, holder: str, revision: int) -> bool:
        if self.before_swap:
            await self.before_swap.pop(0)()
        swaps = self.record.revision == revision
        if swaps:
            self.record = WitnessRecord(holder, revision + 1)
        if self.after_swap:
            await self.after_swap.pop(0)()
        return swaps


async def lose_the_answer() -> None:
    raise WitnessUnreachable("the answer was lost")


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def alpha(stub: Stub) -> QuorumGrant:
    return QuorumGrant(stub, ALPHA, 5.0)


@pytest.fixture
def beta(stub: Stub) -> QuorumGrant:
    return QuorumGrant(stub, BETA, 5.0)


def test_without_a_witness_a_host_may_go_on_alone() -> None:
    assert QuorumGrant().granted
    assert QuorumGrant().status() is None


async def test_the_word_of_another_witness_than_both_agreed_on_is_worth_nothing(
    stub: Stub, alpha: QuorumGrant
) -> None:
    stub.identity, alpha.agreed = "other", "agreed"
    assert not await alpha.ask()
    assert stub.record.holder == ""
    assert "not the one that both hosts went by" in (alpha.reason or "")
    assert await alpha.ask(seize=True)  # a person said so
    stub.identity = "agreed"
    assert await alpha.ask()
    assert alpha.reason is None


async def test_who_asks_first_holds_it_and_the_other_does_not(alpha: QuorumGrant, beta: QuorumGrant) -> None:
    assert await alpha.ask()
    assert not await beta.ask()
    assert (alpha.granted, beta.granted) == (True, False)
    assert (alpha.state, beta.state) == ("held here", "held by the peer")


async def test_it_is_free_once_it_was_given_back(alpha: QuorumGrant, beta: QuorumGrant) -> None:
    await alpha.ask()
    await alpha.give_back(lambda: False)
    assert not await beta.ask()
    await alpha.give_back(lambda: True)
    assert not alpha.granted
    assert await beta.ask()


async def test_nobody_gives_back_what_the_other_holds(alpha: QuorumGrant, beta: QuorumGrant) -> None:
    await alpha.ask()
    await beta.give_back(lambda: True)
    assert not await beta.ask()


@pytest.mark.expects_warnings
async def test_an_answer_that_is_lost_permits_nothing(
    stub: Stub, alpha: QuorumGrant, beta: QuorumGrant
) -> None:
    stub.after_swap.append(lose_the_answer)
    assert not await alpha.ask()
    assert not alpha.granted
    assert not await beta.ask()
    assert await alpha.ask()


async def test_a_host_gives_up_its_own_memory_before_the_word_leaves(stub: Stub, alpha: QuorumGrant) -> None:
    await alpha.ask()

    async def look_at_alpha() -> None:
        assert not alpha.granted

    stub.before_swap.append(look_at_alpha)
    await alpha.give_back(lambda: True)
    assert not stub.before_swap


async def test_a_word_that_was_late_does_not_give_back_what_was_asked_for_since(
    stub: Stub, alpha: QuorumGrant, beta: QuorumGrant
) -> None:
    await alpha.ask()
    seen = stub.record
    assert await alpha.ask()
    assert not await stub.swap("", seen.revision)
    assert not await beta.ask()


async def test_a_swap_from_before_a_give_back_is_not_made_after_it(stub: Stub, alpha: QuorumGrant) -> None:
    await alpha.ask()
    await alpha.give_back(lambda: True)
    assert not await stub.swap(BETA, 0)


@pytest.mark.expects_warnings
async def test_a_witness_that_is_silent_is_waited_for_only_so_long(
    stub: Stub, autojump_clock: object
) -> None:
    alpha = QuorumGrant(stub, ALPHA, 5.0)
    stub.before_swap.append(trio.sleep_forever)
    began = trio.current_time()
    assert not await alpha.ask()
    assert trio.current_time() - began == 5.0
    assert alpha.state == "unreachable"
    assert "no answer within 5 s" in str(alpha.reason)


@pytest.mark.expects_warnings
async def test_the_status_says_that_the_witness_is_away_also_to_who_holds_it(
    stub: Stub, alpha: QuorumGrant
) -> None:
    await alpha.ask()
    stub.is_away = True
    await alpha.give_back(lambda: True)
    assert alpha.granted
    assert alpha.status() == {"state": "unreachable", "reason": "it is away"}


async def test_a_person_may_seize_it(alpha: QuorumGrant, beta: QuorumGrant) -> None:
    await alpha.ask()
    beta.overridden = True
    assert beta.granted
    assert await beta.ask(seize=True)
    assert not await alpha.ask()


async def test_who_moves_holds_both_records_and_the_lost_host_gets_neither(
    alpha: QuorumGrant, beta: QuorumGrant, stub: Stub
) -> None:
    after = Stub()
    assert await beta.ask()  # it was alone when it was lost, and a person decided
    assert await alpha.move(after)
    assert (stub.record.holder, after.record.holder, alpha.held) == (ALPHA, ALPHA, True)
    assert not await beta.ask()
    assert not await QuorumGrant(after, BETA, 5.0).ask()


@pytest.mark.expects_warnings
async def test_who_cannot_hold_both_does_not_move(alpha: QuorumGrant, stub: Stub) -> None:
    after = Stub()
    after.is_away = True
    await alpha.ask()
    assert not await alpha.move(after)
    assert (alpha.held, alpha.state) == (True, "unreachable")
    await alpha.give_back(lambda: True)
    assert stub.record.holder == ""
    stub.is_away = True
    assert not await alpha.move(Stub())


@pytest.mark.expects_warnings
async def test_a_person_may_let_a_host_move_without_the_witness(alpha: QuorumGrant) -> None:
    after = Stub()
    after.is_away = True
    alpha.overridden = True
    assert await alpha.move(after)
    assert (alpha.held, alpha.granted) == (False, True)
